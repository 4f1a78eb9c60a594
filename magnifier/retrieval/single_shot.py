"CMC with one gallery image an identity, drawn again and again: CUHK03's first protocol"

import numpy as np
from magnifier.retrieval.counting import Labels, check_finite
from magnifier.retrieval.distance import as_distances, to_numpy
from magnifier.retrieval.inputs import as_count

__all__ = ['cmc_single_shot']


def cmc_single_shot(
    dist,  # (q, g) distances, smaller is nearer: array or tensor; or what `rerank(..., return_sparse=True)` returned
    q_pids,  # (q,) identities of the queries, integers
    g_pids,  # (g,) identities of the gallery; -1 is junk and never drawn
    q_camids,  # (q,) cameras of the queries, integers
    g_camids,  # (g,) cameras of the gallery
    *,
    max_rank: int = 20,  # Length of the curve; past the number of identities it stays what it was
    repeats: int = 100,  # Draws that are averaged
    seed: int = 0,  # Of the draws: the same seed gives the same curve, and no other generator is touched
    separate_cameras: bool = False,  # Remove all gallery images of the query's camera, not its identity there alone
) -> np.ndarray:  # (max_rank,) CMC@1, CMC@2, ... from 0 to 1; NaN where no query has a match
    """Single-shot CMC (Li et al., CVPR 2014, as open-reid draws it): for each query and repeat, one of the images
    of every identity that are left to it makes up the gallery. Queries without a match are left out; ValueError or
    TypeError as in `evaluate_distances`"""
    max_rank, repeats = as_count(max_rank, 'max_rank'), as_count(repeats, 'repeats')
    distances = as_distances(dist)
    labels = Labels(q_pids, g_pids, q_camids, g_camids, distances.shape, separate_cameras)
    rng, found, counted = np.random.default_rng(seed), np.zeros(max_rank + 1), 0
    for rows, band in distances.bands():
        check_finite(band, rows.start)
        for query, row in enumerate(to_numpy(band), rows.start):
            matches, removed = labels.split(query)
            if not len(matches): continue
            counted += 1
            ranks = drawn_ranks(row, labels, query, removed, rng, repeats)
            found += np.bincount(np.minimum(ranks, max_rank + 1) - 1, minlength=max_rank + 1) / repeats
    return np.cumsum(found)[:max_rank] / counted if counted else np.full(max_rank, np.nan)


def drawn_ranks(
    row: np.ndarray,  # (g,) distances of one query
    labels: Labels,  # Who is who
    query: int,  # Its index
    removed: np.ndarray,  # Gallery items that do not count for it
    rng: np.random.Generator,  # Draws
    repeats: int,  # How many draws
) -> np.ndarray:  # (repeats,) rank of the query's identity among all identities, from 1
    "One image of each identity, `repeats` times; of equal distances the earlier in the gallery is the nearer"
    keep = np.ones(len(row), bool)
    keep[removed] = False
    items = labels.by_pid[keep[labels.by_pid]]  # what is left, identity by identity
    pids, first, count = np.unique(labels.g_pids[items], return_index=True, return_counts=True)
    drawn = items[first + rng.integers(0, count, (repeats, len(pids)))]  # (repeats, identities)
    own = drawn[:, np.searchsorted(pids, labels.q_pids[query]), None]
    nearer = (row[drawn] < row[own]) | ((row[drawn] == row[own]) & (drawn < own))
    return 1 + nearer.sum(1)
