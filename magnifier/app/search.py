"What the page asks of a gallery and its model: plain functions from pictures and filters to hits, shares and masks"
from dataclasses import dataclass, field
from threading import RLock
from typing import NamedTuple

import numpy as np
import pandas as pd
import magnifier.train.pretrained  # noqa: F401, what a gallery asks of a learner
from PIL import Image
from magnifier.look.explain import explained, match_words
from magnifier.app.rates import PairRates, pair_rates
from magnifier.look.saliency import Sight
from magnifier.gallery.hits import Hits
from magnifier.gallery.entries import stored_image

__all__ = ['Query', 'Found', 'Match', 'Finder']

HITS = 24        # Hits of a search, at most
SIDE = 256       # Pixels of the longer side of what is shown
NO_PARTS = 'this model knows no parts: it was built with mask=False'


class Query(NamedTuple):
    "Who is searched"
    image: Image.Image   # Mode RGB
    row: object = None   # Of `Gallery.images()`, where it is a picture of the gallery; None for an upload


@dataclass(eq=False)
class Found:
    "Hits of one search with their pictures"
    query: Query
    hits: Hits
    pictures: list                  # RGB images no longer than `SIDE`; None where the file is gone or another
    labels: list = field(default_factory=list) # (h,w) part labels of the hits, or None; empty until asked for

    def above(self,
        threshold:float, # Least similarity; 0 for all
    ) -> int:  # How many, from the first
        "Hits at a threshold"
        return len(self.hits) if threshold <= 0 else int((self.hits.table['similarity'] >= threshold).sum())


class Match(NamedTuple):
    "Why one hit was found"
    row: object          # Of the hits' table
    place: int           # Among the hits, from 1
    words: str           # In sentences
    table: pd.DataFrame  # By region, as `Explanation.table`
    pictures: tuple      # RGB images of query and hit
    labels: tuple        # (h,w) part labels of both
    heats: tuple         # (h,w) similarity maps of both, in units of the score


class Finder:
    """A gallery and the model that made it, for one page. Its methods may be called from several threads. ValueError for a gallery
    without images or of another model.

    Pictures of the gallery are read from the paths it keeps, and only while their content is what was added: a file that was changed, or put
    in another's place, is not shown."""

    def __init__(self,
        learn,   # A ReIDLearner
        gallery, # A Gallery
    ):
        info = gallery.info()
        if not info['images']: raise ValueError(f'{gallery.uri} is empty: add images first, with `Gallery({gallery.uri!r}).add(learn, catalog)`')
        if info['model'] != learn.fingerprint:
            raise ValueError(f'{gallery.uri} was made by the model {info["model"]}, and this learner is {learn.fingerprint}: '
                             'use the learner that made it')
        self.learn, self.gallery, self.lock = learn, gallery, RLock()
        self.parts = learn.model.segmentation is not None
        self.by_region = self.parts and gallery.regions and hasattr(learn, 'embed_regions')
        self.refresh()

    def refresh(self):
        "Reads the gallery's table anew: who was deleted elsewhere is shown no more"
        with self.lock:
            self.images, self._rates = self.gallery.images(), {}
            self._rows = self.images.set_index('key', drop=False)
            self.cameras = sorted(self.images['camid'].dropna().astype(int).unique().tolist())
            self.has_times = bool(self.images['time'].notna().any())

    def picture(self,
        key:str, # Of an image of the gallery
    ) -> Image.Image|None:  # Mode RGB at its own size; None where the file is gone or holds another picture, or the key is unknown
        "A picture of the gallery"
        path = self._rows['path'].get(key)
        if path is None: return None
        return stored_image(path, key)

    def pick(self,
        key:str, # Of an image of the gallery
    ) -> Query:
        "A person of the gallery as the query; a ValueError where there is no such picture any more"
        image = self.picture(key)
        if image is None: raise ValueError('this picture cannot be shown: its file is gone, or is not the one that was added')
        return Query(image, self._rows.loc[key])

    def find(self,
        query:Query, # Who
        *,
        k:int=HITS,  # Hits at most
        cameras=(),  # Cameras to search in; none for all
        not_camera=None, # Camera to leave out: the query's own
        since:str='',# Earliest time, ISO, UTC; empty for any
        until:str='',# Latest time
        regions=(),  # Regions to compare; none for the whole person
    ) -> Found:  # Most similar first, the query itself left out
        "Searches; a ValueError in a sentence for filters that make no sense"
        with self.lock:
            hits = self.gallery.search(self.learn, query.image, k + 1, cameras=list(cameras) or None, not_camera=not_camera,
                                       since=(since or '').strip() or None, until=(until or '').strip() or None, regions=list(regions) or None)
        table = hits.table if query.row is None else hits.table[hits.table['key'] != query.row['key']]
        hits = Hits(table.iloc[:k].reset_index(drop=True), query.image, hits.regions)
        return Found(query, hits, [shrunk(self.picture(key)) for key in hits.table['key']])

    def label(self,
        found:Found, # Gets its labels, if it has none yet
    ) -> Found:  # The same
        "The model's part masks of every hit; a ValueError for a model without any"
        if not self.parts: raise ValueError(NO_PARTS)
        if found.labels: return found
        there = [i for i, picture in enumerate(found.pictures) if picture is not None]
        if not there: return found
        with self.lock: parsed = Sight.of(self.learn, [found.pictures[i] for i in there]).parsed
        found.labels = [None]*len(found.pictures)
        for i, labels in zip(there, parsed): found.labels[i] = labels
        return found

    def match(self,
        found:Found, # The search
        place:int,   # Of the hit, from 1
    ) -> Match:
        "Why a hit was found; a ValueError for a place without a hit, a hit whose file is gone, a model that knows no parts"
        if not self.parts: raise ValueError(f'{NO_PARTS}, so that it cannot say which matched')
        if not isinstance(place, int) or not 1 <= place <= len(found.hits): raise ValueError('there is no such hit any more: search again')
        row = found.hits[place - 1]
        image = self.pick(row['key']).image
        with self.lock: sight, score, table, heats = explained(self.learn, found.query.image, image)
        words = self._asked(found.hits.regions, row['similarity']) + match_words(table, score)
        return Match(row, place, words, table, (shrunk(found.query.image), shrunk(image)), tuple(sight.seen), tuple(heats))

    def _asked(self, regions, similarity):
        "A sentence, where hits are ranked by another score than the one that is explained"
        if regions is None: return ''
        names = ', '.join(regions).replace('_', ' ')
        return f'Found with {similarity:.2f} by {names} alone, as far as both show them; what follows is of the whole person. '

    def rates(self,
        regions=(), # Regions that are compared
    ) -> PairRates|None:  # None where no two people have names
        "What thresholds stand for (`pair_rates`), worked out once for each choice of regions"
        regions = tuple(sorted(regions))
        with self.lock:
            if regions not in self._rates: self._rates[regions] = pair_rates(self.gallery, regions)
            return self._rates[regions]

    def some(self,
        n:int=8, # How many
    ) -> pd.DataFrame:  # Rows of `Gallery.images()`
        "People to begin with: one image each of identities (or else images) evenly spaced over the gallery"
        one = self.images.drop_duplicates('pid') if self.images['pid'].nunique() >= n else self.images
        return one.iloc[np.unique(np.linspace(0, len(one) - 1, n).astype(int))]


def shrunk(
    image,         # PIL image, or None
    side:int=SIDE, # Pixels of the longer side, at most
):  # A copy, or None
    "A picture as small as it is shown"
    if image is None: return None
    image = image.copy()
    image.thumbnail((side, side))
    return image
