"What a similarity threshold stands for in one gallery: who else looks this alike, and who is missed"
from typing import NamedTuple

import numpy as np
from magnifier.gallery.store import Where
from magnifier.regions import N_REGIONS, region_indices
from magnifier.retrieval.region_distance import region_distance

__all__ = ['PairRates', 'pair_rates', 'sample_keys', 'UNKNOWN_RATES']

UNKNOWN_RATES = ('What a threshold stands for is not known here: this gallery has no two identities with a name. '
                 'Label some people, or read it from a test set.')
SAMPLE = 1000       # Images whose pairs are compared: half a million pairs
PER_IDENTITY = 20   # Of them at most: one person with many pictures is not many people


class PairRates(NamedTuple):
    "Similarities of labelled pairs of a gallery, ascending"
    impostor: np.ndarray  # Of two people
    genuine: np.ndarray   # Of one person, not by one camera twice; empty where nobody was seen by two

    def false_accept(self,
        threshold:float, # Similarity, -1 to 1
    ) -> float:  # Share of pairs of two people that are at least this alike
        "The false-accept rate of a threshold"
        return float((len(self.impostor) - np.searchsorted(self.impostor, threshold))/len(self.impostor))

    def misses(self,
        threshold:float, # Similarity
    ) -> float|None:  # Share of pairs of one person that are less alike; None where there are no such pairs
        "The false-reject rate of a threshold"
        return float(np.searchsorted(self.genuine, threshold)/len(self.genuine)) if len(self.genuine) else None


def pair_rates(
    gallery,    # A Gallery
    regions=(), # Regions that are compared; none for the whole person
    *,
    seed:int=0, # Of the sample
) -> PairRates|None:  # None where no two people have names
    "Similarities of pairs among a sample of the labelled images. Identity 0, which Market-like sets give to nobody, is left out"
    keys = sample_keys(gallery.images(), seed)
    rows = gallery.store.read(Where(keys=tuple(keys)), ('pid', 'camid', *(('regions', 'visible') if len(regions) else ('vector',))))
    pids, cameras = np.array(rows['pid']), np.array([-1 if c is None else c for c in rows['camid']])
    if len(np.unique(pids)) < 2: return None
    similar = _by_regions(rows, regions) if len(regions) else _whole(rows)
    a, b = np.triu_indices(len(pids), 1)
    known = similar[a, b] > -1  # -1: no region of the wanted is shown by both
    same, elsewhere = pids[a] == pids[b], (cameras[a] != cameras[b]) | (cameras[a] == -1)
    impostor, genuine = (np.sort(similar[a, b][known & which]) for which in (~same, same & elsewhere))
    return PairRates(impostor, genuine) if len(impostor) else None


def sample_keys(
    images,     # `Gallery.images()`
    seed:int=0, # Of the choice
) -> list:  # Keys of images of whole identities, as many as are compared
    "A sample of the images of people with names"
    rng, named = np.random.default_rng(seed), images[images['pid'].notna() & (images['pid'] != 0)]
    shuffled = named.iloc[rng.permutation(len(named))].groupby('pid', sort=False).head(PER_IDENTITY)
    order = {pid: i for i, pid in enumerate(shuffled['pid'].unique())}
    return shuffled.iloc[np.argsort(shuffled['pid'].map(order).to_numpy(), kind='stable')]['key'].head(SAMPLE).tolist()


def _whole(rows):
    return rows['vector'] @ rows['vector'].T


def _by_regions(rows, regions):
    x = rows['regions'].reshape(len(rows['regions']), N_REGIONS, -1)
    seen = (np.array(rows['visible'])[:, None] >> np.arange(N_REGIONS) & 1).astype(bool)
    return 1 - region_distance(x, x, seen, seen, regions=region_indices(list(regions)))
