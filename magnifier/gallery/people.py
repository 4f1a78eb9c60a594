"""Who is who: tracklets are joined to people across cameras, and clusters of single images propose identities.

A tracklet is one person as a tracker followed them in one camera, from one time to another. It has no row of its own in
a gallery: it consists of the images with its name, so that deleting, labelling and adding images keep it consistent.
Two tracklets can be one person if they look alike and nobody would have to be at two places at once."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from magnifier.checks import needs, refuse
from magnifier.gallery.hits import as_times
from magnifier.gallery.store import Where
from magnifier.gallery.video import box_of

__all__ = ['Tracklets', 'identity_clusters']

OF_AN_IMAGE = ('tracklet', 'camid', 'time', 'pid', 'path', 'key', 'visibility')
LEAST_WEIGHT = .05  # Of an image of which nothing is seen, so that a tracklet of such images has an embedding too
NEVER = 1e6  # Distance of a pair that cannot be one person: its share of any mean of distances is above every threshold
FEWEST_CENTRED = 5  # Tracklets of a camera whose mean is the camera's, and not the people's
FEWEST_HALVED = 4  # Images of a tracklet whose halves say how unlike one person looks
FEWEST_PAIRS = 10  # Pairs of different people that a threshold without labels rests on, at least
EPOCH = pd.Timestamp(0, unit='s', tz='UTC')


class Tracklets(NamedTuple):
    "The tracklets of a gallery: their table and their embeddings"

    table: pd.DataFrame  # tracklet, camid, start, end (UTC), images, visibility, pid; path and key of the best
    vectors: np.ndarray  # (t, d) float32 of length 1, in the order of the table
    halves: np.ndarray  # (t, 2, d) float32 of length 1: of the earlier and of the later half of the images; 0 for none

    def __len__(self): return len(self.table)


def summarise(columns: dict, weighted: bool = True) -> Tracklets:
    """Each tracklet's camera, times, best image and embedding, from columns of a store ('vector' among them) of its
    images: the mean of their embeddings at length 1, weighted by how much of the person each shows"""
    images = pd.DataFrame({name: columns[name] for name in OF_AN_IMAGE})
    images = images.astype({'pid': 'Int64', 'camid': 'Int64', 'time': 'float64', 'visibility': 'float64'})
    images['seen'] = images['visibility'].fillna(1).clip(lower=LEAST_WEIGHT) if weighted else 1.
    best = _best_images(images)
    found = images.groupby('tracklet')
    table = pd.DataFrame(dict(
        camid=best['camid'],
        start=as_times(found['time'].min()).dt.round('ms'),
        end=as_times(found['time'].max()).dt.round('ms'),
        images=found.size(),
        visibility=found['visibility'].mean(),
        pid=found['pid'].first(),
        path=best['path'],
        key=best['key'],
    )).sort_values('start', kind='stable').reset_index()
    halves = _sums_of_halves(images, columns['vector'], table['tracklet'])
    return Tracklets(table, _unit(halves.sum(1)), _unit(halves))


def _best_images(images):
    """The image of each tracklet that shows most of the person. Of images that show about as much, one from the middle:
    where a track begins and ends, the frame cuts people off"""
    middle = images.groupby('tracklet')['time'].transform('median')
    ranked = images.assign(about=images['seen'].round(1), aside=(images['time'] - middle).abs())
    return ranked.sort_values(['about', 'aside', 'key'], ascending=[False, True, True]).groupby('tracklet').first()


def _sums_of_halves(images, vectors, names):
    "(t, 2, d) weighted sums of the embeddings of each tracklet's earlier and later images, by the tracklets' names"
    halves = np.zeros((len(names), 2, vectors.shape[1]), np.float32)
    place = pd.Series(np.arange(len(names)), index=names)
    nth = images.sort_values('time', kind='stable').groupby('tracklet').cumcount().sort_index()
    later = (2*nth >= images.groupby('tracklet')['key'].transform('size')).to_numpy(int)
    weighted = vectors * images['seen'].to_numpy(np.float32)[:, None]
    np.add.at(halves, (place[images['tracklet']].to_numpy(), later), weighted)
    return halves


def _unit(vectors): return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def joined_people(tracklets: Tracklets, threshold, *, far, travel, centre, anew) -> pd.DataFrame:
    """The table of tracklets, at least one, with columns person, to whom each belongs, and certainty; the arguments are
    those of `Gallery.people`"""
    t = tracklets.table
    cameras = t['camid'].to_numpy()
    start, end = (((t[name] - EPOCH) / pd.Timedelta('1s')).to_numpy() for name in ('start', 'end'))
    never = impossible_pairs(cameras, start, end, travel=travel)
    distances = tracklet_distances(tracklets.vectors, cameras, centre=centre)
    if threshold is None:
        same = half_distances(tracklets.vectors, tracklets.halves, cameras, t['images'], centre=centre)
        limit = unlabelled_threshold(distances, never, same, far=far)
    else: limit = 1 - threshold
    known = None if anew else t['pid'].fillna(-1).to_numpy(int)
    people = join_tracklets(distances, never, limit, known=known)
    return t.assign(person=people, certainty=certainty(distances, people))


def impossible_pairs(
    camids,  # (t,) cameras of the tracklets
    starts,  # (t,) seconds at which they begin
    ends,  # (t,) seconds at which they end
    *,
    travel: Mapping | None = None,  # (camera, camera) -> least seconds from the one to the other, either way
) -> np.ndarray:  # (t, t) booleans, symmetric, False on the diagonal
    "Pairs of tracklets that must be two people: at one time in one camera, or too far apart for the time between them"
    camids = np.asarray(camids)
    starts = np.asarray(starts, float)
    ends = np.asarray(ends, float)
    gap = np.maximum(starts[:, None] - ends, starts - ends[:, None])  # (t, t) seconds; 0 or less: they overlap
    never = (camids[:, None] == camids) & (gap <= 0)
    for pair, seconds in (travel or {}).items():
        if not seconds >= 0: raise ValueError(f'travel between cameras {pair}: {seconds} seconds; 0 or more are wanted')
        a, b = pair
        between = (camids[:, None] == a) & (camids == b)
        never |= (between | between.T) & (gap < seconds)
    np.fill_diagonal(never, False)
    return never


def tracklet_distances(
    vectors,  # (t, d) embeddings of length 1
    camids,  # (t,) cameras
    *,
    centre: bool = True,  # Takes each camera's mean away, where it has enough tracklets to have one
) -> np.ndarray:  # (t, t) cosine distances, 0 to 2
    """Cosine distances of tracklets, after the mean of each camera is subtracted: it holds the effect of the camera's
    light on everybody"""
    vectors = np.asarray(vectors, np.float64)
    if centre: vectors = vectors - _camera_means(vectors, camids)
    vectors = _unit(vectors)
    return np.clip(1 - vectors @ vectors.T, 0, 2)


def half_distances(vectors, halves, camids, images, *, centre: bool = True) -> np.ndarray:
    """How unlike one person looks: (h,) cosine distances, 0 to 2, between the halves (t, 2, d) of each tracklet that
    has enough `images` (t,). The other arguments are those of `tracklet_distances`"""
    halves = np.asarray(halves, np.float64)
    if centre: halves = halves - _camera_means(np.asarray(vectors, np.float64), camids)[:, None]
    halves = _unit(halves[np.asarray(images) >= FEWEST_HALVED])
    return np.clip(1 - (halves[:, 0] * halves[:, 1]).sum(1), 0, 2)


def _camera_means(vectors, camids):
    "(t, d) mean of each tracklet's camera; 0 where the camera has few tracklets"
    means, camids = np.zeros_like(vectors), np.asarray(camids)
    for camera in np.unique(camids):
        seen = camids == camera
        if seen.sum() >= FEWEST_CENTRED: means[seen] = vectors[seen].mean(0)
    return means


def join_tracklets(
    distances,  # (t, t) distances between tracklets, symmetric, 0 or more
    never,  # (t, t) booleans: pairs that cannot be one person (`impossible_pairs`)
    threshold: float,  # People are joined while the mean distance between their tracklets is at most this
    *,
    known=None,  # (t,) people that are known already, -1 where a tracklet is new: they stay as they are, and stay apart
) -> np.ndarray:  # (t,) people from 0; known ones keep their numbers, new ones follow
    """Average-linkage clustering (Sokal and Michener 1958) that never joins the pairs in `never`. Tracklets of one
    `known` person are joined first; new tracklets join known people or become new people."""
    from scipy.cluster.hierarchy import fcluster, linkage  # a search does without
    from scipy.spatial.distance import squareform
    distances = np.array(distances, dtype=float)
    t = len(distances)
    known = np.full(t, -1) if known is None else np.asarray(known)
    if t < 2: return _renumbered(np.zeros(t, int), known)
    distances[np.asarray(never, bool)] = NEVER
    both_known = (known >= 0)[:, None] & (known >= 0)
    same = known[:, None] == known
    distances[both_known & same] = 0
    distances[both_known & ~same] = NEVER
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), 'average')
    return _renumbered(fcluster(merges, threshold, 'distance'), known)


def _renumbered(groups, known):
    "Known people keep their numbers; new people are numbered after them, in the order of their first tracklet"
    people = np.empty(len(groups), int)
    following = int(known.max(initial=-1)) + 1
    for group in pd.unique(groups):
        members = groups == group
        number = int(known[members].max())
        if number < 0:
            number = following
            following += 1
        people[members] = number
    return people


def unlabelled_threshold(
    distances,  # (t, t) distances between tracklets
    never,  # (t, t) booleans: pairs that are two people (`impossible_pairs`)
    same=(),  # (h,) distances between what is one person (`half_distances`)
    *,
    far: float = .01,  # Share of the strangers, and of the pairs of one person, that count as exceptions
) -> float:  # A distance for `join_tracklets`
    """A threshold without labels, halfway between how unlike one person looks and how alike strangers look.

    Halves of a tracklet are one person, and two tracklets at one time in one camera are strangers. A ValueError
    where there are too few strangers."""
    strangers = np.asarray(distances)[np.triu(np.asarray(never, bool), 1)]
    if len(strangers) < FEWEST_PAIRS:
        raise ValueError(f'{len(strangers)} pairs of tracklets are at one time in one camera, and {FEWEST_PAIRS} are '
                         'needed to choose a threshold: give one, for example by `learn.threshold` on labelled '
                         'images')
    alike = float(np.quantile(strangers, far))
    if not len(same): return alike
    return (alike + float(np.quantile(same, 1 - far))) / 2  # few strangers look less alike than many would


def certainty(
    distances,  # (t, t) distances between tracklets
    people,  # (t,) person of each
) -> np.ndarray:  # (t,) from -1 to 1; 0 for a person with one tracklet, NaN without anybody else
    "How much nearer a tracklet is to its own person than to the nearest other person: the silhouette (Rousseeuw 1987)"
    distances, people = np.asarray(distances, float), np.asarray(people)
    numbers, group = np.unique(people, return_inverse=True)
    if len(numbers) < 2: return np.full(len(people), np.nan)
    member = np.eye(len(numbers))[group]  # (t, people)
    counts = member.sum(0)
    sums = distances @ member  # (t, people)
    itself = np.arange(len(people)), group
    own = sums[itself] / np.maximum(counts[group] - 1, 1)
    means = sums / counts
    means[itself] = np.inf
    other = means.min(1)
    value = (other - own) / np.maximum(np.maximum(own, other), 1e-12)
    return np.where(counts[group] == 1, 0., value)


def people_boxes(store) -> dict[str, pd.DataFrame]:
    """Boxes of all people in a gallery's videos, for other tools: cam1_NAME, of camera and video, -> boxes as
    `write_mot` takes them, with the person as track"""
    rows = store.read(Where(tracklets=()), ('path', 'also', 'pid', 'camid'))
    found = []
    for path, also, pid, camid in zip(*rows.values()):
        boxes = [box for box in map(box_of, [path, *also]) if box is not None]
        if not boxes or pid is None: continue
        video, frame, box = boxes[0]
        found.append((f'cam{camid}_{Path(video).stem}', frame, pid, *box))
    columns = ['video', 'frame', 'track', 'left', 'top', 'width', 'height']
    table = pd.DataFrame(found, columns=columns).sort_values(['video', 'frame', 'track'])
    return {video: boxes.drop(columns='video').reset_index(drop=True) for video, boxes in table.groupby('video')}


def identity_clusters(
    features,  # (n, d) features, array or tensor; compared by cosine
    eps: float = .5,  # Largest Jaccard distance of neighbours, 0 to 1: lower splits people, higher merges them
    min_images: int = 2,  # An image with fewer neighbours than this, itself included, starts no cluster
    k1: int = 10,  # Neighbours that must be mutual: fewer than a person has images, or strangers join
    k2: int = 2,  # Neighbours whose encodings are averaged; more make people larger, and strangers join them
) -> np.ndarray:  # (n,) cluster numbers from 0, the largest first; -1 for images in none
    """DBSCAN on k-reciprocal distances. They are proposals: people who look alike can share a cluster, and one person
    can have several. ValueError for invalid settings, ImportError without scikit-learn"""
    with needs("clusters need scikit-learn: pip install 'magnifier-reid[gallery]'"):
        from sklearn.cluster import DBSCAN
    refuse({
        f'eps={eps}: a Jaccard distance above 0 and below 1 wanted': not 0 < eps < 1,
        f'min_images={min_images}: at least 1 wanted': min_images < 1,
    })
    if len(features) < 2: return np.full(len(features), -1) if min_images > 1 else np.zeros(len(features), int)
    near = jaccard_neighbours(features, k1, k2)
    near.data = np.clip(1 - near.data, 0, None)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Precomputed sparse input was not sorted')
        labels = DBSCAN(eps=eps, min_samples=min_images, metric='precomputed').fit(near).labels_
    return _by_size(labels)


def jaccard_neighbours(features, k1: int, k2: int):
    """Overlap of two images' neighbourhoods for all pairs of one set (Zhong et al., CVPR 2017, without the original
    distance): sparse (n, n) 1 - Jaccard distance of the k-reciprocal encodings, stored where images share a neighbour.
    The arguments are those of `identity_clusters`"""
    import torch  # like all of these, slow to import, and a search does without
    from scipy.sparse import vstack
    from magnifier.retrieval.distance import full_precision, normalise
    from magnifier.retrieval.features import working_dtype
    from magnifier.retrieval.neighbours import FeaturePairs
    from magnifier.retrieval.rerank import check_settings, encode, jaccard_similarity
    check_settings(k1, k2, 0)
    k1 = min(k1, max(1, len(features)//4))  # or all of a few images would be each other's neighbours
    k2 = min(k2, max(1, len(features)//12))
    x = torch.as_tensor(normalise(features)).cpu()
    with full_precision(x.device):
        pairs = FeaturePairs(x[:1], x[1:], working_dtype(x))
        v = encode(pairs, pairs.nearest(max(k1 + 1, k2)), k1, k2)
    return jaccard_similarity(vstack([v, v], format='csr'), len(x))


def _by_size(labels):
    "Clusters renumbered by size, the largest first"
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    number = {old: new for new, old in enumerate(found[np.argsort(-counts, kind='stable')])}
    return np.array([number.get(label, -1) for label in labels], dtype=int)
