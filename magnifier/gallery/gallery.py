"A gallery of people: images embedded once, and searched by image, camera, time and region"

import re
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from magnifier.checks import as_count, choose, refuse
from magnifier.data.images import image_name
from magnifier.gallery.adding import Reading, VideoReading, Writing, embedded, remember_names, with_bar
from magnifier.gallery.entries import embedded_regions, entries, fingerprint_of, identity, read_entry, unit_rows
from magnifier.gallery.hits import Hits, as_table, nearest, nearest_by_regions, nearest_reranked
from magnifier.gallery.lance import LanceStore
from magnifier.gallery.milvus import MilvusStore
from magnifier.gallery.people import Tracklets, identity_clusters, joined_people, summarise
from magnifier.gallery.store import COLUMNS, Where, where
from magnifier.gallery.video import Video
from magnifier.regions import N_REGIONS, REGIONS, region_indices

__all__ = ['Gallery', 'Added', 'GalleryWarning']

LIMIT = 16_384  # Hits of one search, which is what a Milvus server gives
EXACT_UP_TO = 500_000_000  # Numbers in all vectors: 2 GB, whose product with a query takes a tenth of a second
QUERIES = 50  # Images whose neighbours say what an index finds
NAME = re.compile('[A-Za-z_][A-Za-z0-9_]{0,200}')
SERVERS = ('http://', 'https://', 'tcp://', 'unix:')


class GalleryWarning(UserWarning):
    "Images that could not be added to a gallery"


class Added(NamedTuple):
    "The result of adding images"

    added: int  # New in the gallery
    known: int  # There already, or twice in the call: left as they were
    skipped: pd.DataFrame  # path, problem: not readable as images


class Gallery:
    """Images of people that can be searched: `g.add(learn, catalog)`, then `g.search(learn, image, k=10,
    not_camera=3)`.

    A local gallery is a folder (a LanceDB table), and so is one on object storage; a server's address gives the same
    gallery in a Milvus cluster. Several processes may add, search and delete at the same time. A gallery keeps an
    image's path, identity, camera, time (UTC) and embedding, never its pixels. ValueError for a folder that holds
    something else, ImportError without the database library, OSError for damaged files and an address where no server
    answers."""

    def __init__(self,
        uri: str = 'people',  # A folder, one on object storage (s3://bucket/people), or a server (http://host:19530)
        *,
        name: str = 'people',  # Of the table: one uri may hold several galleries
        regions: bool = False,  # Also keeps each region's embedding, so that `search(regions=...)` works
        exact_up_to: int = EXACT_UP_TO,  # Images times dimensions, past which `add` builds an index
        token: str = '',  # 'user:password' or an API key, for servers that want one
    ):
        if not NAME.fullmatch(name): raise ValueError(f'name={name!r}: letters, digits and underscores wanted')
        self.uri = str(uri)
        self.exact_up_to = exact_up_to
        self.store = MilvusStore(self.uri, name, token) if self.uri.startswith(SERVERS) else LanceStore(self.uri, name)
        self._regions_asked = bool(regions)
        self._images = None  # The version of the last table of all images, and the table
        try: self._check_regions()
        except ValueError:
            self.close()
            raise

    @property
    def regions(self) -> bool:
        "Whether the embedding of each region is kept; of an empty gallery, whether it was requested"
        about = self.store.about
        return about['regions'] > 0 if about else self._regions_asked

    def _check_regions(self):
        if self._regions_asked and not self.regions:
            raise ValueError(f'{self.uri} keeps no regions: regions=True is for a new gallery; make a new one, or '
                             'leave it out')

    def __enter__(self): return self

    def __exit__(self, *error): self.close()

    def __len__(self): return self.store.count()

    def __repr__(self): return f'Gallery({self.uri!r}): {len(self)} images'

    def close(self):
        "Releases memory, files or the connection"
        self.store.close()

    def add(self,
        embedder,  # Has `.embed(images) -> (n,d)` and `.fingerprint`: a learner, or an exported model's Embedder
        images,  # Catalog (path, and where known pid, camid, time, tracklet); or paths, PIL images, arrays
        *,
        pids=None,  # Identities, one an image; None where unknown
        camids=None,  # Cameras
        times=None,  # Seconds since 1970 in UTC, ISO texts or datetimes
        tracklets=None,  # Names of tracklets: what a tracker followed as one person; None for single images
        paths=None,  # Paths to remember, for images that are not given by path
        bs: int = 64,  # Images embedded at once
        progress: bool = True,  # Shows a bar
    ) -> Added:  # How many are new, how many were known, and what could not be read
        """Embeds the images that the gallery does not have yet; decoding, embedding and writing run at the same time.
        An image is recognised by its content, so if the call is repeated after a crash, nothing is added twice. An
        image that is already there keeps its labels (see `label`), and its new path is stored beside the old one. Files
        that are not images are left out, with a `GalleryWarning` that names the first. ValueError if no file is an
        image, or if another model made the gallery"""
        bs = as_count(bs, 'bs')
        table = entries(images, pids=pids, camids=camids, times=times, tracklets=tracklets, paths=paths)
        return self._add(embedder, Reading(self.store, table, bs), len(table), bs, progress)

    def add_video(self,
        embedder,  # As in `add`; one with `embed_visible` also tells how much of each person is seen
        video,  # A video file, or a folder of frames whose names end in their number
        boxes,  # A MOTChallenge file, or a table as `read_mot` gives it: one track is one person in this camera
        *,
        camera: int,  # This camera's number
        start=None,  # When frame 1 was taken (seconds in UTC, ISO text or datetime); None counts from 1970
        fps: float | None = None,  # Frames a second; None takes a video file's own
        every: int = 1,  # Embeds each track's first box and every so-many-th after it
        crops=None,  # Folder that keeps the cut-out people as PNG files; None keeps none
        bs: int = 64,  # People embedded at once
        progress: bool = True,  # Shows a bar
    ) -> Added:  # As in `add`; boxes whose frame is missing or that lie outside it are among the skipped
        """Adds what a tracker followed in one camera: each track becomes a tracklet (see `tracklets`, `people`). Frames
        are read once, while the people before are embedded; run again after a crash, it goes on. ValueError for no
        video, no boxes, another video of this camera under the same name, and as in `add`"""
        bs = as_count(bs, 'bs')
        every = as_count(every, 'every')
        video = Video(video, fps=fps)
        reading = VideoReading(self.store, video, boxes, bs, camera=camera, start=start, every=every, crops=crops)
        return self._add(embedder, reading, len(reading.table), bs, progress)

    def _add(self, embedder, reading, n, bs, progress):
        "Embeds and writes the images of `reading`, and counts the results of all `n` images"
        self._check_regions()  # another may have made the gallery since
        self._check_model(embedder)
        with Writing(self.store) as writing:
            for new in with_bar(reading, n, bs) if progress and n > bs else reading:
                if not new: continue
                about = self.store.about
                rows = embedded(embedder, new, self.regions, about.get('d'))
                if not about: self._create(embedder, rows)
                writing.put(rows)
        remember_names(self.store, reading.names)
        if writing.added:
            self.store.settle()
            if self.store.kind == 'exact' and len(self) * self.store.about['d'] > self.exact_up_to: self.index('ivf')
        return _reported(writing.added, n - writing.added - len(reading.skipped), reading.skipped)

    def _check_model(self, embedder):
        "Checks that the embedder's embeddings can be compared with those of the gallery"
        made_by, own = self.store.about.get('fingerprint'), fingerprint_of(embedder)
        if made_by not in (None, own):
            raise ValueError(f'{self.uri} was made by the model {made_by}, and this one is {own}: their embeddings '
                             'cannot be compared. Use that model, or make another gallery with this one')

    def _create(self, embedder, rows):
        "Makes the gallery for its first rows"
        regions = rows['regions'].shape[1] if 'regions' in rows else 0
        self.store.create(dict(fingerprint=fingerprint_of(embedder), d=rows['vector'].shape[1], regions=regions))
        self._check_model(embedder)  # another process may have made it first
        self._check_regions()

    def search(self,
        embedder,  # The model that made the gallery
        image,  # A path, PIL image or (h,w,3) uint8 array
        k: int = 10,  # Hits at most
        *,
        not_camera=None,  # Camera or cameras to leave out, as the query's own; images of unknown cameras stay
        cameras=None,  # Camera or cameras to search in
        since=None,  # Earliest time (seconds in UTC, ISO text or datetime); images without a time are left out
        until=None,  # Latest time
        regions=None,  # Regions to compare ('foot', ['head', 'upper_leg'], indices); None for the whole person
        rerank: bool = False,  # Re-orders the first hundred by k-reciprocal encoding
        threshold: float | None = None,  # Least similarity of a hit, -1 to 1; None for all
    ) -> Hits:  # Most similar first; fewer than k where there are no more
        """Who is this, and where else were they seen? An image of the gallery is its own first hit. ValueError for an
        empty gallery, another model's embedder, regions that the gallery does not keep, a file that is not an image"""
        k = as_count(k, 'k')
        refuse({
            f'k={k}: up to {LIMIT} hits in one search': k > LIMIT,
            f'threshold={threshold}: a cosine similarity from -1 to 1 wanted':
                threshold is not None and not -1 <= threshold <= 1,
            're-ranking compares whole embeddings: leave out rerank or regions': rerank and regions is not None,
        })
        self._check_filled()
        conditions = where(not_camera=not_camera, cameras=cameras, since=since, until=until)
        if regions is None:
            search = nearest_reranked if rerank else nearest
            rows = search(self.store, self._query(embedder, image), k, conditions)
            names = None
        else:
            compared = region_indices(regions)
            rows = self._nearest_by_regions(embedder, image, compared, k, conditions)
            names = tuple(REGIONS[r] for r in compared)
        table = as_table(rows)
        if threshold is not None: table = table[table['similarity'] >= threshold].reset_index(drop=True)
        return Hits(table, image, names)

    def _query(self, embedder, image):
        "(d,) embedding of an image that is searched"
        self._check_model(embedder)
        return unit_rows(embedder.embed([_read_query(image)]), 1, self.store.about['d'])[0]

    def _nearest_by_regions(self, embedder, image, regions, k, conditions):
        if not self.regions:
            raise ValueError(f'{self.uri} keeps no regions: make a new gallery with Gallery(..., regions=True)')
        self._check_model(embedder)
        vectors, visible = embedded_regions(embedder, [_read_query(image)])
        return nearest_by_regions(self.store, vectors[0], int(visible[0]), regions, k, conditions)

    def label(self,
        keys,  # Keys, as tables of hits, images and clusters have them
        pids,  # Identities, one a key; None takes one away, and so does -1, which is nobody
    ) -> int:  # Images labelled
        "Gives images an identity, for example after `cluster`. A ValueError for keys that the gallery does not have"
        keys = list(keys)
        pids = [identity(pid) for pid in pids]
        missing = sorted(set(keys) - set(self.store.known(keys)))
        refuse({
            f'{len(pids)} identities for {len(keys)} keys; one a key is needed': len(keys) != len(pids),
            f'{len(missing)} of {len(keys)} keys are not in {self.uri} (one is {"".join(missing[:1])!r}): '
            'take them from `images()`': bool(missing),
        })
        if keys: self.store.update(dict(key=keys, pid=pids))
        return len(keys)

    def cluster(self,
        eps: float = .5,  # Largest Jaccard distance of neighbours, 0 to 1: lower splits people, higher merges them
        min_images: int = 2,  # Images that make a cluster
        **kwargs,  # Passed to `identity_clusters`: k1, k2
    ) -> pd.DataFrame:  # As `images()`, and cluster: numbers from 0, the largest first; missing for images in none
        """Proposes identities for all images by DBSCAN on k-reciprocal distances. Look at the proposals before
        `g.label(t['key'], t['cluster'])`"""
        self._check_filled()
        table = self.images()
        labels = identity_clusters(self.embeddings(table['key']), eps, min_images, **kwargs)
        return table.assign(cluster=pd.Series(labels).astype('Int64').mask(labels < 0))

    def delete(self,
        *,
        pids=None,  # Identities whose images go
        paths=None,  # Paths, as they were added; content that was added under several goes by each
        keys=None,  # Keys, as tables of hits and images have them
        until=None,  # Everything up to this time
    ) -> int:  # Images deleted
        """Removes the images that meet all given conditions from every search. Their data stay in a local gallery's
        files until `compact`. A ValueError without conditions"""
        conditions = where(pids=pids, paths=paths, keys=keys, until=until)
        if not conditions: raise ValueError('name what to delete: pids, paths, keys or until')
        return self.store.delete(conditions) if self.store.about else 0

    def compact(self):
        """Rewrites the files that hold deleted images, so that nothing of them is left on disk. A server is asked to do
        so and does it later"""
        self.store.compact()

    def tracklets(self,
        *,
        pids=None,  # Identity or identities; None for all
        cameras=None,  # Camera or cameras; None for all
        since=None,  # Earliest time of an image
        until=None,  # Latest time of an image
        weighted: bool = True,  # Embeddings are weighted by how much of the person each image shows
    ) -> Tracklets:  # Their table and their embeddings
        """The tracklets, one row each: camera, times, best image, and the mean embedding weighted by the visible share
        of the person"""
        conditions = replace(where(pids=pids, cameras=cameras, since=since, until=until), tracklets=())
        return summarise(self.store.read(conditions, (*COLUMNS, 'vector')), weighted)

    def search_tracklets(self,
        query,  # A tracklet's name, or an image as `search` takes it
        embedder=None,  # The model that made the gallery; needed for an image
        k: int = 10,  # Tracklets at most
        *,
        not_camera=None,  # Camera or cameras to leave out
        cameras=None,  # Camera or cameras to search in
        since=None,  # Earliest time
        until=None,  # Latest time
    ) -> Hits:  # Most similar first; the columns of `tracklets`, and similarity
        """Where else was this person seen? The tracklet itself is not among its hits. A name that no tracklet has is
        taken as an image's path"""
        k = as_count(k, 'k')
        everything = self.tracklets()
        vectors = everything.vectors[everything.table['tracklet'] == query] if isinstance(query, str) else ()
        if len(vectors): vector = vectors[0]
        elif embedder is not None: vector = self._query(embedder, query)
        else: raise ValueError('a search by image needs the model that made the gallery: pass embedder=')
        found = self.tracklets(cameras=cameras, since=since, until=until)
        similarity = found.vectors @ vector if len(found) else np.empty(0, np.float32)
        left_out = found.table['camid'].isin(where(not_camera=not_camera).not_cameras or ())
        if len(vectors): left_out |= found.table['tracklet'] == query
        table = found.table.assign(similarity=similarity)[~left_out]
        return Hits(table.nlargest(k, 'similarity').reset_index(drop=True), query)

    def people(self,
        threshold: float | None = None,  # Least mean similarity of one person's tracklets; None finds one
        *,
        far: float = .01,  # Share of strangers, and of looks of one person, that a threshold found takes for exceptions
        travel=None,  # (camera, camera) -> least seconds from the one to the other
        centre: bool = True,  # Takes each camera's mean away first: what all people share there, as its light
        anew: bool = False,  # Forgets who is who; else new tracklets join the people that exist
        save: bool = True,  # Labels the images with their person
    ) -> pd.DataFrame:  # person, camid, start, end, tracklet, certainty, images, path, key; by person, time
        """Who was where: joins the tracklets of all cameras to people by their similarity (average linkage). Tracklets
        that cannot be one person are never joined: two at one time in one camera, or two cameras within less than the
        `travel` time. A ValueError without tracklets, or without a threshold if too few people were seen together to
        estimate one"""
        found = self.tracklets()
        if not len(found):
            raise ValueError(f'{self.uri} has no tracklets: add some with `add_video`, or with `add(..., '
                             'tracklets=...)`')
        table = joined_people(found, threshold, far=far, travel=travel, centre=centre, anew=anew)
        if save: self._label_tracklets(dict(zip(table['tracklet'], table['person'])))
        columns = ['person', 'camid', 'start', 'end', 'tracklet', 'certainty', 'images', 'path', 'key']
        return table.sort_values(['person', 'start', 'camid'], ignore_index=True)[columns]

    def _label_tracklets(self, people):
        "Labels the images of tracklets, given as name -> person; writes those alone whose label changes"
        rows = self.store.read(Where(tracklets=()), ('key', 'tracklet', 'pid'))
        changed = {}
        for key, name, pid in zip(rows['key'], rows['tracklet'], rows['pid']):
            if people.get(name, pid) != pid: changed[key] = int(people[name])
        if changed: self.store.update(dict(key=list(changed), pid=list(changed.values())))

    def index(self,
        kind: str,  # 'exact', or the approximate 'ivf'
    ):
        """Sets how vectors are searched, exactly or by an index; regions are always searched exactly. A ValueError for
        an unknown kind or an empty gallery"""
        choose(kind, ('exact', 'ivf'), 'kind')
        self._check_filled()
        self.store.index(kind)

    def _check_filled(self):
        if not self.store.count():
            raise ValueError(f'{self.uri} is empty: add images first, with `add(learn, catalog)`')

    def images(self,
        *,
        pids=None,  # Identity or identities; None for all
        cameras=None,  # Camera or cameras; None for all
        since=None,  # Earliest time
        until=None,  # Latest time
        paths=None,  # Path or paths, as they were added; None for all
    ) -> pd.DataFrame:  # path, pid, camid, time, key; by identity, camera, time and path
        "The images of the gallery, without embeddings"
        conditions = where(pids=pids, cameras=cameras, since=since, until=until, paths=paths)
        version = self.store.version
        if not conditions and self._images is not None and self._images[0] == version: return self._images[1].copy()
        table = as_table(self.store.read(conditions, ('key', 'path', 'pid', 'camid', 'time')))
        table = table.sort_values(['pid', 'camid', 'time', 'path'], ignore_index=True, na_position='last')
        if not conditions and version is not None: self._images = version, table.copy()
        return table

    def embeddings(self,
        keys,  # Keys, as tables of hits and images have them
    ) -> np.ndarray:  # (n, d) float32 of length 1, in the order of the keys
        "Embeddings of images. A KeyError for a key that the gallery does not have"
        return self.store.rows_of(keys, ('vector',))['vector']

    def region_embeddings(self,
        keys,  # Keys, as tables of hits and images have them
    ) -> tuple[np.ndarray, np.ndarray]:  # (n, k, c) float32, and (n, k) booleans: which regions can be seen
        "Embeddings of the regions of images, of a gallery that keeps them. A KeyError for a key that it does not have"
        rows = self.store.rows_of(keys, ('regions', 'visible'))
        visible = np.array(rows['visible'])[:, None] >> np.arange(N_REGIONS) & 1
        return rows['regions'].reshape(len(keys), N_REGIONS, -1), visible.astype(bool)

    def info(self) -> dict:  # Names and figures
        """Numbers about the gallery; recall is the share of the exact first ten hits that an approximate index finds,
        for a sample of images"""
        about = self.store.about
        kind = self.store.kind
        images = self.images()
        return dict(
            uri=self.uri,
            images=len(images),
            identities=images['pid'].nunique(),
            unlabelled=int(images['pid'].isna().sum()),
            cameras=sorted(images['camid'].dropna().astype(int).unique().tolist()),
            first=images['time'].min(),
            last=images['time'].max(),
            model=about.get('fingerprint'),
            dimensions=about.get('d'),
            regions=self.regions,
            index=kind,
            recall=self._recall(images['key']) if kind == 'ivf' else None,
        )

    def _recall(self, keys, k=10):
        queries = keys.iloc[np.unique(np.linspace(0, len(keys) - 1, QUERIES).astype(int))]
        found = 0
        for vector in self.embeddings(queries):
            exact, indexed = (set(self.store.search(vector, k, exact=way)['key']) for way in (True, False))
            found += len(exact & indexed) / len(exact)
        return found / len(queries)


def _read_query(image):
    read = read_entry(image)
    if read.image is None: raise ValueError(f'{image_name(image)} is not a readable image ({read.problem})')
    return read.image


def _reported(added, known, skipped):
    skipped = pd.DataFrame(skipped, columns=['path', 'problem'])
    if len(skipped):
        first = f'{skipped["path"][0]}: {skipped["problem"][0]}'
        said = f'{len(skipped)} of {added + known + len(skipped)} files are no readable images (first: {first})'
        if not added + known: raise ValueError(said)
        warnings.warn(said + '; they were left out', GalleryWarning, stacklevel=3)
    return Added(added, known, skipped)
