"""What a similarity threshold means in one gallery: how many pairs of two people it accepts, and how many pairs of one
person it misses"""
from typing import NamedTuple

import numpy as np

from magnifier.gallery.store import Where
from magnifier.regions import N_REGIONS, region_indices
from magnifier.retrieval.region_distance import region_distance

__all__ = ['PairRates', 'pair_rates', 'sample_keys']

SAMPLE = 1000      # images whose pairs are compared: half a million pairs
PER_IDENTITY = 20  # of them at most: one person with many images is not many people


class PairRates(NamedTuple):
    "Similarities of labelled pairs of a gallery"
    impostor: np.ndarray  # of two people
    genuine: np.ndarray   # of one person, not by one camera twice; empty where nobody was seen by two


def pair_rates(
    gallery,  # A Gallery
    regions=(),  # Names of the regions that are compared; none for the whole person
    *,
    seed: int = 0,  # Of the sample
) -> PairRates | None:  # None where no two people have names
    "Similarities of pairs in a sample of the labelled images, without identity 0 (distractors in Market-like sets)"
    keys = sample_keys(gallery.images(), seed)
    vectors = ('regions', 'visible') if regions else ('vector',)
    rows = gallery.store.read(Where(keys=tuple(keys)), ('pid', 'camid', *vectors))
    pids = np.array(rows['pid'])
    cameras = np.array([-1 if c is None else c for c in rows['camid']])
    if len(np.unique(pids)) < 2: return None
    a, b = np.triu_indices(len(pids), 1)
    similar = (_by_regions(rows, regions) if regions else rows['vector'] @ rows['vector'].T)[a, b]
    compared = similar > -1  # -1 where the two share no region
    same = pids[a] == pids[b]
    two_views = (cameras[a] != cameras[b]) | (cameras[a] == -1)
    rates = PairRates(similar[compared & ~same], similar[compared & same & two_views])
    return rates if len(rates.impostor) else None


def sample_keys(
    images,  # `Gallery.images()`
    seed: int = 0,  # Of the choice
) -> list:  # Keys, at most `SAMPLE` of them
    "A sample of the labelled people, with all images of each"
    named = images[images['pid'].notna() & (images['pid'] != 0)]
    people = named.sample(frac=1, random_state=seed).groupby('pid', sort=False)
    order = np.argsort(people.ngroup()[people.head(PER_IDENTITY).index], kind='stable')
    return people.head(PER_IDENTITY)['key'].iloc[order].head(SAMPLE).tolist()


def _by_regions(rows, regions):
    x = rows['regions'].reshape(len(rows['regions']), N_REGIONS, -1)
    seen = (np.array(rows['visible'])[:, None] >> np.arange(N_REGIONS) & 1).astype(bool)
    return 1 - region_distance(x, x, seen, seen, regions=region_indices(list(regions)))
