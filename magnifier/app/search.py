"What the page asks of a gallery and its model: hits, why they were found, what a threshold means, who was where"
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.gallery.entries import stored_image
from magnifier.gallery.hits import Hits
from magnifier.look.drawing import region_name
from magnifier.look.explain import explain_images, match_words
from magnifier.look.gallery import show_timeline
from magnifier.look.saliency import Sight, learnt_stripes
from magnifier.regions import region_indices
from magnifier.retrieval.region_distance import region_distance

__all__ = []

HITS = 24  # of a search, at most
SIDE = 256  # pixels of the longer side of what is shown
REMEMBERED = 8  # searches and explanations that are not made again when a threshold moves
SAMPLE = 1000  # images whose pairs are compared: half a million pairs
PER_IDENTITY = 20  # of them at most: one person with many images is not many people
UPLOAD = 'upload-'  # how the key of an uploaded image begins
NO_PARTS = 'this model knows no parts: it was built with mask=False, so that it cannot say which matched'
UPLOAD_GONE = 'your image is no longer kept: choose it again'
FILE_GONE = 'this image cannot be shown: its file is gone, or is not the one that was added'


@dataclass(frozen=True, eq=False)
class Query:
    "The person who is searched"
    key: str  # of an image of the gallery, or of an upload
    image: Image.Image  # mode RGB
    row: pd.Series | None = None  # of `Gallery.images()`; None for an upload

    @property
    def camera(self) -> int | None:
        "The camera that took it, where that is known"
        return None if self.row is None or pd.isna(self.row['camid']) else int(self.row['camid'])

    @property
    def pid(self) -> int | None:
        "The identity, where that is known"
        return None if self.row is None else known_identity(self.row)


@dataclass(frozen=True)
class Asked:
    "One search, as the page's form asks for it"
    query: str  # `Query.key`
    own_camera: bool = True  # Leaves out the camera that took the query
    cameras: tuple = ()  # To search in; none for all
    not_cameras: tuple = ()  # To leave out
    since: str = ''  # Earliest time, ISO, UTC; empty for any
    until: str = ''  # Latest time
    regions: tuple = ()  # To compare; none for the whole person


@dataclass(frozen=True, eq=False)
class Found:
    "Hits of one search with their images"
    query: Query
    hits: Hits
    images: list  # mode RGB, no side over `SIDE`; None where the file is gone or holds another image
    left_out: tuple = ()  # cameras
    stripes: bool = False  # whether the model's parts are horizontal stripes, which must not be called body parts

    def above(self, threshold: float) -> int:
        "How many hits have at least this similarity; 0 stands for no threshold"
        return len(self.hits) if threshold <= 0 else int((self.hits.table['similarity'] >= threshold).sum())

    def place(self, key: str) -> int | None:
        "The place of an image among the hits, from 1; None where it is no hit"
        places = np.flatnonzero(self.hits.table['key'] == key)
        return int(places[0]) + 1 if len(places) else None


@dataclass(frozen=True, eq=False)
class Match:
    "Why one hit was found"
    place: int  # among the hits, from 1
    query: Query
    row: pd.Series  # of the hits' table
    words: str  # in sentences
    table: pd.DataFrame  # a row a region, as `Explanation.table`; of a search by regions, `region_table`
    images: tuple  # of query and hit, mode RGB
    labels: tuple  # (h, w) part labels of both
    heats: tuple  # (h, w) similarity maps of both, in units of the score; empty for a search by regions
    regions: tuple | None = None  # that were compared; None for the whole person
    stripes: bool = False  # as `Found.stripes`


class PairRates(NamedTuple):
    "Similarities of labelled pairs of a gallery"
    impostor: np.ndarray  # of two people
    genuine: np.ndarray   # of one person, not by one camera twice; empty where nobody was seen by two


@dataclass(frozen=True, eq=False)
class WhoWhere:
    "What a gallery knows of tracklets and people"
    table: pd.DataFrame  # As `Gallery.people` gives it, of the tracklets whose person is known
    unjoined: int  # Tracklets that nobody has joined to a person yet
    timeline: bytes  # PNG; empty where the table is


class Finder:
    """A gallery and the model that made it, for one page; its methods may be called from several threads. Images are
    read from the paths that the gallery keeps, and shown only if their content is still what was added. The errors of
    `Gallery.search`: a ValueError for a gallery without images or of another model"""

    def __init__(self,
        learn,  # A ReIDLearner
        gallery,  # A Gallery
        uploads,  # Uploaded images by key: whatever has `get`, as a dict has
    ):
        gallery.search(learn, Image.new('RGB', (16, 16)), 1)  # says why, where it cannot be searched
        self.learn = learn
        self.gallery = gallery
        self.uploads = uploads
        self.parts = learn.model.segmentation is not None
        self.by_region = self.parts and gallery.regions
        self.stripes = self.parts and learnt_stripes(learn)
        self._lock = RLock()
        self.find = lru_cache(REMEMBERED)(self._find)
        self.labels = lru_cache(REMEMBERED)(self._labels)
        self.match = lru_cache(REMEMBERED)(self._match)
        self.rates = lru_cache(None)(self._rates)
        self.people = lru_cache(1)(self._people)
        self.refresh()

    def refresh(self):
        "Reads the gallery's table again, so that images deleted by another process are no longer shown"
        with self._lock:
            self.images = self.gallery.images()
            self._rows = self.images.set_index('key', drop=False)
            self.cameras = sorted(self.images['camid'].dropna().astype(int).unique().tolist())
            self.has_times = bool(self.images['time'].notna().any())
            for remembered in (self.find, self.labels, self.match, self.rates, self.people): remembered.cache_clear()

    def image(self, key: str) -> Image.Image | None:
        "An image of the gallery (mode RGB); None for an unknown key, and where its file is gone or holds another image"
        path = self._rows['path'].get(key)
        return None if path is None else stored_image(path, key)

    def query(self, key: str) -> Query:
        "An image of the gallery or an upload as a query; a ValueError if it is no longer there"
        uploaded = key.startswith(UPLOAD)
        image = self.uploads.get(key) if uploaded else self.image(key)
        if image is None: raise ValueError(UPLOAD_GONE if uploaded else FILE_GONE)
        return Query(key, image, None if uploaded else self._rows.loc[key])

    def _find(self, asked: Asked) -> Found:
        "Hits without the query itself, most similar first; a ValueError for invalid filters"
        query = self.query(asked.query)
        unknown = {*asked.cameras, *asked.not_cameras}.difference(self.cameras)
        if unknown: raise ValueError(f'this gallery has no camera {min(unknown)}: open the page again')
        own = {query.camera} if asked.own_camera else set()
        left_out = tuple(sorted({*asked.not_cameras} | own - {None}))
        with self._lock:
            hits = self.gallery.search(self.learn, query.image, HITS + 1,
                                       cameras=list(asked.cameras) or None, not_camera=list(left_out) or None,
                                       since=asked.since.strip() or None, until=asked.until.strip() or None,
                                       regions=list(asked.regions) or None)
        table = hits.table[hits.table['key'] != query.key].head(HITS).reset_index(drop=True)
        images = [shrunk(self.image(key)) for key in table['key']]
        return Found(query, Hits(table, query.image, hits.regions), images, left_out, self.stripes)

    def _labels(self, found: Found) -> list:
        "(h, w) part labels of each hit by a model with parts, None where there is no image"
        there = [image for image in found.images if image is not None]
        if not there: return [None]*len(found.images)
        with self._lock: parsed = iter(Sight.of(self.learn, there).parsed.astype(np.uint8))
        return [None if image is None else next(parsed) for image in found.images]

    def _match(self, found: Found, place: int) -> Match:
        "Why a hit was found; a ValueError where its file is gone, and for a model without parts"
        if not self.parts: raise ValueError(NO_PARTS)
        row = found.hits.table.iloc[place - 1]
        query = found.query
        regions = found.hits.regions
        image = self.query(row['key']).image
        with self._lock: compared = explain_images(self.learn, query.image, image)
        if regions:
            table = region_table(compared.table, regions)
            words = region_words(table, row['similarity'], stripes=self.stripes)
            heats = ()
        else:
            table = compared.table
            words = match_words(table, compared.score, stripes=self.stripes)
            heats = tuple(compared.heats)
        images = shrunk(query.image), shrunk(image)
        return Match(place, query, row, words, table, images, tuple(compared.sight.seen), heats, regions, self.stripes)

    def _rates(self, regions: tuple) -> PairRates | None:
        "`pair_rates` of a choice of regions; none for the whole person"
        with self._lock: return pair_rates(self.gallery, regions)

    def _people(self) -> WhoWhere:
        "Who was where, when the page was opened"
        with self._lock: return who_was_where(self.gallery)

    def some(self, n: int = 8) -> pd.DataFrame:
        """Rows of `n` images to begin with: one of each of some identities (without labels, any images), evenly spaced
        over the gallery"""
        one = self.images.drop_duplicates('pid') if self.images['pid'].nunique() >= n else self.images
        return one.iloc[np.unique(np.linspace(0, len(one) - 1, n).astype(int))]


def known_identity(row) -> int | None:
    "The identity of an image or hit; None where nobody named it, and for identity 0, the distractors of Market-1501"
    return None if pd.isna(row['pid']) or row['pid'] == 0 else int(row['pid'])


def region_table(table: pd.DataFrame, regions: tuple) -> pd.DataFrame:
    """The table of an `Explanation` for a search by regions, whose score is the mean over those that both images show:
    similarity and share are NaN for all regions that were not compared"""
    table = table.copy()
    table.loc[~table.index.isin(regions), 'similarity'] = np.nan
    table['share'] = table['similarity']/max(1, table['similarity'].notna().sum())
    table['compared'] = table.index.isin(regions)
    return table


def region_words(table: pd.DataFrame, score: float, *, stripes: bool = False) -> str:
    """A `region_table` and its score in sentences: what was compared, what is most and least alike, and what could not
    be seen"""
    compared = table[table['compared']]
    both = compared['similarity'].dropna()
    unseen = compared.index.difference(both.index, sort=False)
    def said(names): return ', '.join(region_name(name, stripes=stripes) for name in names)
    if len(both) > 1:
        best = both.idxmax()
        least = both.idxmin()
        words = (f'Similarity {score:.2f}, the mean over {said(both.index)}. '
                 f'Most alike: {said([best])} ({both[best]:.2f}). Least alike: {said([least])} ({both[least]:.2f}).')
    else: words = f'Similarity {score:.2f}, by {said(both.index)} alone.'
    return words + (f' Left out, since not seen in both: {said(unseen)}.' if len(unseen) else '')


def pair_rates(gallery, regions: tuple = ()) -> PairRates | None:
    """Similarities of pairs in a sample of a gallery's labelled images, by some regions or by the whole person; None
    where no two people have names"""
    images = gallery.images()
    keys = sample_keys(images)
    sample = images.set_index('key').loc[keys]
    pids, cameras = sample['pid'].to_numpy(int), sample['camid'].fillna(-1).to_numpy(int)
    if len(np.unique(pids)) < 2: return None
    a, b = np.triu_indices(len(pids), 1)
    similar = _similarities(gallery, keys, regions)[a, b]
    compared = similar > -1  # -1 where the two share no region
    same = pids[a] == pids[b]
    two_views = (cameras[a] != cameras[b]) | (cameras[a] == -1)
    rates = PairRates(similar[compared & ~same], similar[compared & same & two_views])
    return rates if len(rates.impostor) else None


def sample_keys(images: pd.DataFrame) -> list:
    """At most `SAMPLE` keys of the images of labelled people, people by people, without identity 0 (distractors). The
    same images give the same sample"""
    named = images[images['pid'].notna() & (images['pid'] != 0)]
    people = named.sample(frac=1, random_state=0).groupby('pid', sort=False)
    order = np.argsort(people.ngroup()[people.head(PER_IDENTITY).index], kind='stable')
    return people.head(PER_IDENTITY)['key'].iloc[order].head(SAMPLE).tolist()


def _similarities(gallery, keys, regions):
    "(n, n) similarities of images of a gallery"
    if not regions:
        x = gallery.embeddings(keys)
        return x @ x.T
    x, seen = gallery.region_embeddings(keys)
    return 1 - region_distance(x, x, seen, seen, regions=region_indices(list(regions)))


def who_was_where(gallery) -> WhoWhere:
    "People as they were joined. Nobody is joined here, and nothing is written"
    tracklets = gallery.tracklets().table
    known = tracklets['tracklet'][tracklets['pid'].notna()]
    if not len(known): return WhoWhere(tracklets.iloc[:0], len(tracklets), b'')
    table = gallery.people(threshold=1, save=False)  # 1 is more alike than two tracklets ever are
    table = table[table['tracklet'].isin(known)].reset_index(drop=True)
    return WhoWhere(table, len(tracklets) - len(known), show_timeline(table).png())


def shrunk(image: Image.Image | None, side: int = SIDE) -> Image.Image | None:
    "A copy of an image, as small as it is shown: its longer side has at most so many pixels. None for None"
    if image is None: return None
    image = image.copy()
    image.thumbnail((side, side))
    return image
