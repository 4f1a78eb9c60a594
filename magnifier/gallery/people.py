"""People across cameras: tracklets joined by similarity, under constraints of time and place.

A tracklet is one person as one camera followed them, from one time to another. Two tracklets can be one person if they
look alike and nobody would have to be at two places at once."""
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

__all__ = [
    'tracklet_distances', 'half_distances', 'join_tracklets', 'impossible_pairs', 'unlabelled_threshold', 'certainty']

NEVER = 1e6  # Distance of a pair that cannot be one person: its share of any mean of distances is above every threshold
FEWEST_CENTRED = 5  # Tracklets of a camera whose mean is the camera's, and not the people's
FEWEST_HALVED = 4  # Images of a tracklet whose halves say how unlike one person looks
FEWEST_PAIRS = 10  # Pairs of different people that a threshold without labels rests on, at least


def impossible_pairs(
    camids,  # (t,) cameras of the tracklets
    starts,  # (t,) seconds at which they begin
    ends,  # (t,) seconds at which they end
    *,
    travel: Mapping | None = None,  # (camera, camera) -> least seconds from the one to the other, either way
) -> np.ndarray:  # (t, t) booleans, symmetric, False on the diagonal
    "Pairs of tracklets that must be two people: at one time in one camera, or too far apart for the time between them"
    camids, starts, ends = np.asarray(camids), np.asarray(starts, float), np.asarray(ends, float)
    if (ends < starts).any(): raise ValueError(f'tracklet {int((ends < starts).argmax())} ends before it begins')
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


def half_distances(
    vectors,  # (t, d) embeddings of tracklets, of length 1
    halves,  # (t, 2, d) embeddings of their halves, of length 1
    camids,  # (t,) cameras
    images,  # (t,) how many images each tracklet has
    *,
    centre: bool = True,  # As in `tracklet_distances`
) -> np.ndarray:  # (h,) cosine distances, 0 to 2; of tracklets with too few images there is none
    "How unlike one person looks: between the halves of each tracklet"
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


def _unit(vectors): return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def join_tracklets(
    distances,  # (t, t) distances between tracklets, symmetric, 0 or more
    never,  # (t, t) booleans: pairs that cannot be one person (`impossible_pairs`)
    threshold: float,  # People are joined while the mean distance between their tracklets is at most this
    *,
    known=None,  # (t,) people that are known already, -1 where a tracklet is new: they stay as they are, and stay apart
) -> np.ndarray:  # (t,) people from 0; known ones keep their numbers, new ones follow
    """Average-linkage clustering (Sokal and Michener 1958) that never joins the pairs in `never`. Tracklets of one
    `known` person are joined first; new tracklets join known people or become new people."""
    distances = np.array(distances, dtype=float)
    t = len(distances)
    known = np.full(t, -1) if known is None else np.asarray(known)
    if t < 2: return _renumbered(np.zeros(t, int), known)
    distances[np.asarray(never, bool)] = NEVER
    named = (known >= 0)[:, None] & (known >= 0)
    same = known[:, None] == known
    distances[named & same] = 0
    distances[named & ~same] = NEVER
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), 'average')
    return _renumbered(fcluster(merges, threshold, 'distance'), known)


def _renumbered(groups, known):
    "Known people keep their numbers; new people are numbered after them, in the order of their first tracklet"
    people, following = np.empty(len(groups), int), int(known.max(initial=-1)) + 1
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
    if not 0 < far < 1: raise ValueError(f'far={far}: a share above 0 and below 1 is wanted')
    alike = float(np.quantile(strangers, far))
    if not len(same): return alike
    return (alike + float(np.quantile(same, 1 - far))) / 2  # few strangers look less alike than many would


def certainty(
    distances,  # (t, t) distances between tracklets
    people,  # (t,) person of each
) -> np.ndarray:  # (t,) from -1 to 1: 1 is sure, below 0 looks more like somebody else; NaN without anybody else
    """How much nearer a tracklet is to its own person than to the nearest other person: the silhouette (Rousseeuw
    1987), -1 to 1; 0 for a person with one tracklet"""
    distances, people = np.asarray(distances, float), np.asarray(people)
    numbers, group = np.unique(people, return_inverse=True)
    if len(numbers) < 2: return np.full(len(people), np.nan)
    member = np.eye(len(numbers))[group]  # (t, people)
    counts = member.sum(0)
    sums = distances @ member
    own = sums[np.arange(len(people)), group] / np.maximum(counts[group] - 1, 1)
    means = sums / counts
    means[np.arange(len(people)), group] = np.inf
    other = means.min(1)
    value = (other - own) / np.maximum(np.maximum(own, other), 1e-12)
    return np.where(counts[group] == 1, 0., value)
