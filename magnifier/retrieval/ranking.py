"""Rankings and their figures by the protocol of Market-1501: CMC, AP, mAP, mINP; and CMC by single shot.

The gallery is not sorted for a query. The rank of each true match is counted instead: one plus the number of gallery
images that are nearer and not removed"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from magnifier.checks import as_count, choose
from magnifier.retrieval.distance import METRICS, FeatureDistances, as_distances, to_numpy
from magnifier.retrieval.features import as_ids, check_pair
from magnifier.retrieval.region_distance import region_distance

__all__ = ['Ranking', 'rank', 'evaluate_distances', 'cmc_single_shot']

JUNK = -1  # The identity of images that are never used, as in Market-1501
GPU_ITEMS = 1 << 27  # Distances compared at once where there is no cache to stay in


class Labels:
    """Identities and cameras of queries and gallery, and the protocol's rule: which gallery items match a query, and
    which are removed"""

    def __init__(self,
        q_pids,  # (q,) identities of the queries, integers; -1 is junk
        g_pids,  # (g,) identities of the gallery; -1 is junk, and identities no query has are distractors
        q_camids,  # (q,) cameras of the queries, integers
        g_camids,  # (g,) cameras of the gallery
        shape: tuple[int, int],  # (q, g) of the distances that they belong to
        separate_cameras: bool = False,  # Remove ALL of the query's camera, not its own identity there alone
    ):
        q, g = shape
        self.q_pids = as_ids(q_pids, q, 'q_pids')
        self.g_pids = as_ids(g_pids, g, 'g_pids')
        self.q_camids = as_ids(q_camids, q, 'q_camids')
        self.g_camids = as_ids(g_camids, g, 'g_camids')
        self.separate_cameras = separate_cameras
        self.junk = np.flatnonzero(self.g_pids == JUNK)
        self.by_pid = np.argsort(self.g_pids, kind='stable')
        ordered = self.g_pids[self.by_pid]
        self._first = np.searchsorted(ordered, self.q_pids)
        self._last = np.searchsorted(ordered, self.q_pids, side='right')

    def split(self,
        query: int,  # Index of a query
    ) -> tuple[np.ndarray, np.ndarray]:  # Gallery indices, of the true matches ascending
        """One query's true matches, its identity in other cameras; and what is removed for it, its identity in its own
        camera (all of its camera with `separate_cameras`) and junk"""
        same = self.by_pid[self._first[query]:self._last[query]]
        if self.q_pids[query] == JUNK: same = same[:0]
        own_camera = self.g_camids[same] == self.q_camids[query]
        matches = same[~own_camera]
        removed = same[own_camera]
        if self.separate_cameras: removed = np.flatnonzero(self.g_camids == self.q_camids[query])
        return matches, np.concatenate([removed, self.junk]) if len(self.junk) else removed

    def why_no_match(self,
        query: int,  # Index of a query without a match left
    ) -> str:  # The reason, in words
        "Why this query has no true match in its remaining gallery"
        if self.q_pids[query] == JUNK: return 'the query is junk'
        if self._first[query] == self._last[query]: return 'identity not in the gallery'
        return 'identity only in the same camera'


class Matches(NamedTuple):
    """The true matches of all queries, one after the other: those of query i lie at offsets[i]:offsets[i+1],
    nearest first"""
    offsets: np.ndarray  # (q+1,) where each query's matches begin and end
    ranks: np.ndarray  # (m,) rank of each match among what is left of the gallery, from 1
    items: np.ndarray  # (m,) its gallery index


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The result of ranking a gallery for every query: the rank of each true match, with ids and settings. It is
    immutable. `rank` and `evaluate_distances` make it"""
    labels: Labels  # Identities and cameras of both sides, and the rule that removes items
    matches: Matches  # Ranks and gallery indices of all true matches
    ap_form: str  # A name in `AP_FORMS`
    no_match: str  # 'skip' leaves queries without a match out of the figures, 'zero' counts them as 0
    distances: object  # Where `.hits` reads a query's distances: the features or the matrix given, by reference

    def __repr__(self):
        q, g = self.shape
        figures = f'R1 {self.cmc(1):.4f}, mAP {self.mAP:.4f}, mINP {self.mINP:.4f}'
        if self.n_unmatched: figures += f', {self.n_unmatched} queries without a match'
        return f'Ranking({q} queries, {g} gallery images: {figures})'

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return len(self.labels.q_pids), len(self.labels.g_pids)

    @cached_property
    def n_matches(self) -> np.ndarray:  # (q,)
        "Number of true matches of each query, after removal"
        return frozen(np.diff(self.matches.offsets))

    @cached_property
    def ap(self) -> np.ndarray:  # (q,)
        "Average precision of each query, 0 to 1; without a match NaN, or 0 under `no_match='zero'`"
        q = len(self.n_matches)
        query = np.repeat(np.arange(q), self.n_matches)
        i = np.arange(len(query)) - self.matches.offsets[query] + 1
        terms = AP_FORMS[self.ap_form](i, self.matches.ranks)
        return self._per_query(np.bincount(query, terms, q) / np.maximum(self.n_matches, 1))

    @cached_property
    def inp(self) -> np.ndarray:  # (q,)
        "Inverse negative penalty of each query: number of matches / rank of the last; without a match as in `.ap`"
        return self._per_query(self.n_matches / self._rank_at(self.matches.offsets[1:] - 1))

    @cached_property
    def first_match(self) -> np.ndarray:  # (q,)
        "Rank of each query's first true match, from 1; infinite where there is none"
        return frozen(np.where(self.n_matches > 0, self._rank_at(self.matches.offsets[:-1]), np.inf))

    @property
    def mAP(self) -> float:  # 0 to 1; NaN where no query counts
        "Mean average precision over the queries that count"
        return mean(self.ap[self.counted])

    @property
    def mINP(self) -> float:  # 0 to 1; NaN where no query counts
        "Mean inverse negative penalty over the queries that count"
        return mean(self.inp[self.counted])

    @property
    def counted(self) -> np.ndarray:  # (q,) booleans
        "Which queries count in the figures: those with a match, or all with `no_match='zero'`"
        return (self.n_matches > 0) | (self.no_match == 'zero')

    @property
    def n_unmatched(self) -> int:
        "Number of queries without a true match, skipped or counted as 0"
        return int((self.n_matches == 0).sum())

    @property
    def n_skipped(self) -> int:
        "Number of queries left out of the figures"
        return int((~self.counted).sum())

    @cached_property
    def unmatched(self) -> pd.Series:
        "The reason for each query without a match, indexed by query. `.unmatched.value_counts()` counts the reasons"
        queries = np.flatnonzero(self.n_matches == 0)
        reasons = [self.labels.why_no_match(i) for i in queries]
        return pd.Series(reasons, index=pd.Index(queries, name='query'), name='reason', dtype=object)

    def cmc(self,
        r,  # Rank from 1, or several; past the gallery's end it stays what it was
    ):  # Share of queries with a true match among the first r, 0 to 1: a float, or (len(r),) for several
        "Cumulative match characteristic. A ValueError for a rank below 1"
        ranks = np.asarray(r)
        if ranks.dtype.kind not in 'iu' or (ranks < 1).any(): raise ValueError(f'cmc({r!r}): ranks are integers from 1')
        first = np.sort(self.first_match[self.counted])
        if len(first): share = np.searchsorted(first, ranks, side='right') / len(first)
        else: share = np.full(ranks.shape, np.nan)
        return float(share) if ranks.ndim == 0 else share

    def table(self,
        label: str = 'plain',  # The row's name, so that tables can be set one above the other
    ) -> pd.DataFrame:  # One row: R1, R5, R10, mAP, mINP from 0 to 1
        "The usual figures as a table"
        figures = [*map(self.cmc, (1, 5, 10)), self.mAP, self.mINP]
        return pd.DataFrame([figures], index=[label], columns=['R1', 'R5', 'R10', 'mAP', 'mINP'])

    def match_ranks(self,
        query: int,  # Index of a query
    ) -> pd.DataFrame:  # Columns `rank` from 1 and `item`, the gallery index
        "One query's true matches, nearest first"
        i = self._query(query)
        own = slice(*self.matches.offsets[i:i+2])
        return pd.DataFrame({'rank': self.matches.ranks[own], 'item': self.matches.items[own]})

    def hits(self,
        query: int,  # Index of a query
        k: int = 10,  # How many, from 1; fewer come back where the gallery holds fewer
        *,
        removed: bool = False,  # Also show what the protocol removes for this query; it has rank 0
    ) -> pd.DataFrame:  # Nearest first: `item` (gallery index), `rank`, `distance`, `pid`, `camid`, `match`, `removed`
        """The first k gallery images of one query. Its row of distances is computed again from the given features,
        which are kept by reference"""
        i = self._query(query)
        k = as_count(k, 'k')
        row = self.distances.row(i)
        matches, gone = self.labels.split(i)
        left = np.ones(len(row), bool)
        left[gone] = False
        candidates = np.arange(len(row)) if removed else np.flatnonzero(left)
        items = candidates[first_k(row[candidates], k)]
        return pd.DataFrame(dict(
            item=items,
            rank=np.where(left[items], np.cumsum(left[items]), 0),
            distance=row[items],
            pid=self.labels.g_pids[items],
            camid=self.labels.g_camids[items],
            match=np.isin(items, matches),
            removed=~left[items]))

    def _query(self, query):
        q = self.shape[0]
        if not -q <= query < q: raise IndexError(f'query {query}: there are {q} queries, 0 to {q-1}')
        return int(query) % q

    def _rank_at(self, positions):
        "(q,) ranks as floats; meaningless for queries without a match"
        if not len(self.matches.ranks): return np.full(len(positions), np.inf)
        return self.matches.ranks[positions.clip(0, len(self.matches.ranks) - 1)].astype(float)

    def _per_query(self, values):
        without = 0. if self.no_match == 'zero' else np.nan
        return frozen(np.where(self.n_matches > 0, values, without))


# What each match adds to the average precision: i (m,) is its number within its query, rank (m,) its rank, both from 1

def step_terms(i, rank):
    "Precision at each match: reid-strong-baseline, fast-reid, torchreid"
    return i / rank


def trapezoid_terms(i, rank):
    "Mean of the precision at each match and just before it, 1 before the first rank: Market-1501's MATLAB code"
    before = np.where(rank > 1, (i - 1) / np.maximum(rank - 1, 1), 1.)
    return (before + i / rank) / 2


AP_FORMS = {'step': step_terms, 'trapezoid': trapezoid_terms}
NO_MATCH = ('skip', 'zero')


def first_k(dist: np.ndarray, k: int) -> np.ndarray:
    "Indices of the k smallest distances, nearest first and of equal ones the earlier, without sorting all of them"
    if k >= len(dist): return np.argsort(dist, kind='stable')
    near = np.flatnonzero(dist <= np.partition(dist, k - 1)[k - 1])
    return near[np.argsort(dist[near], kind='stable')[:k]]


def frozen(x: np.ndarray) -> np.ndarray:
    "The same array, read-only"
    x.setflags(write=False)
    return x


def mean(x: np.ndarray) -> float:
    "Mean; NaN of none, without NumPy's warning"
    return float(x.mean()) if len(x) else float('nan')


def rank(
    query_feats,  # (q, d) features, array or tensor, any float precision, on any device; or (q, k, c), of k regions
    gallery_feats,  # (g, d) or (g, k, c) features of the same model, on the same device
    q_pids,  # (q,) identities of the queries, integers
    g_pids,  # (g,) identities of the gallery; -1 is junk and never counts, identities no query has are distractors
    q_camids,  # (q,) cameras of the queries, integers
    g_camids,  # (g,) cameras of the gallery
    *,
    metric: str = 'cosine',  # 'cosine' L2-normalises; 'euclidean' and 'sqeuclidean' compare the features as they are
    ap: str = 'step',  # 'step' as most code does, 'trapezoid' as Market-1501's MATLAB code does
    no_match: str = 'skip',  # Queries without a match left: 'skip' reports and leaves out, 'zero' counts as 0
    separate_cameras: bool = False,  # Remove all gallery images of the query's camera, not its identity there alone
    regions=None,  # Of features by region: names or indices of those to compare; None for all k
    q_visible=None,  # (q, k) booleans, which regions of the queries can be seen; None for all
    g_visible=None,  # (g, k) booleans of the gallery
) -> Ranking:  # CMC, AP, mAP, mINP and hits
    """Rank a gallery for each query by the protocol of Market-1501 (Zheng et al., 2015), computed in float32 a band of
    queries at a time; features by region by `region_distance`. A query's own identity in its own camera is removed, of
    equal distances the earlier gallery image is nearer; ValueError or TypeError for invalid features or ids"""
    choose(metric, METRICS, 'metric')
    if np.ndim(query_feats) == 3:
        choose(metric, ('cosine',), 'metric of features by region')
        distances = as_distances(region_distance(query_feats, gallery_feats, q_visible, g_visible, regions=regions))
    elif any(given is not None for given in (regions, q_visible, g_visible)):
        raise ValueError('regions, q_visible and g_visible go with features by region, of shape (images, regions, '
                         f'channels); query_feats have shape {tuple(np.shape(query_feats))}')
    else: distances = FeatureDistances(*check_pair(query_feats, gallery_feats), metric, torch.float32)
    return ranking_of(distances, (q_pids, g_pids, q_camids, g_camids), ap, no_match, separate_cameras)


def evaluate_distances(
    dist,  # (q, g) distances, smaller is nearer: array or tensor; or what `rerank(..., return_sparse=True)` returned
    q_pids,  # (q,) identities of the queries, integers
    g_pids,  # (g,) identities of the gallery; -1 is junk and never counts, identities no query has are distractors
    q_camids,  # (q,) cameras of the queries, integers
    g_camids,  # (g,) cameras of the gallery
    *,
    ap: str = 'step',  # 'step' as most code does, 'trapezoid' as Market-1501's MATLAB code does
    no_match: str = 'skip',  # Queries without a match left: 'skip' reports and leaves out, 'zero' counts as 0
    separate_cameras: bool = False,  # Remove all gallery images of the query's camera, not its identity there alone
) -> Ranking:  # CMC, AP, mAP, mINP and hits
    """As `rank`, from any distances: re-ranked, by region, or of another tool. A ValueError for infinite and NaN
    distances"""
    return ranking_of(as_distances(dist), (q_pids, g_pids, q_camids, g_camids), ap, no_match, separate_cameras)


def ranking_of(distances, ids: tuple, ap: str, no_match: str, separate_cameras: bool) -> Ranking:
    """The common part of `rank` and `evaluate_distances`: checks the ids, counts ranks, builds the Ranking; a warning
    where not one query has a match"""
    choose(ap, AP_FORMS, 'ap')
    choose(no_match, NO_MATCH, 'no_match')
    labels = Labels(*ids, distances.shape, separate_cameras)
    ranking = Ranking(labels, count_matches(distances, labels), ap, no_match, distances)
    if ranking.n_unmatched == distances.shape[0]:
        why = ', '.join(f'{n} x {reason}' for reason, n in ranking.unmatched.value_counts().items())
        warnings.warn(f'none of {ranking.n_unmatched} queries has a true match in the gallery ({why}). '
                      'Queries need their identity in another camera: check pids and camids', stacklevel=3)
    return ranking


def count_matches(distances, labels: Labels) -> Matches:
    "Ranks of all true matches, one band of distances in memory at a time"
    matches = []
    ranks = []
    for rows, band in distances.bands():
        splits = [labels.split(i) for i in range(rows.start, rows.stop)]
        matches += [items for items, _ in splits]
        ranks.append(count_band(band, splits, rows.start))
    sizes = [len(items) for items in matches]
    items = np.concatenate(matches)
    ranks = np.concatenate(ranks)
    nearest_first = np.lexsort([ranks, np.repeat(np.arange(len(sizes)), sizes)])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Matches(frozen(offsets), frozen(ranks[nearest_first]), frozen(items[nearest_first]))


def count_band(
    band: Tensor,  # (b, g) distances of some queries
    splits: list[tuple[np.ndarray, np.ndarray]],  # Matches and removed items of each
    first: int,  # Index of the first query, for the error
) -> np.ndarray:  # (m,) ranks of all their matches, in order
    "Ranks in one band, by the faster method for its device; a ValueError for NaN or infinite distances"
    if band.dtype not in (torch.float32, torch.float64): band = band.float()
    if band.device.type != 'cpu':
        check_finite(band, first)
        return band_ranks(band, splits)
    ranks = []
    with np.errstate(over='ignore', invalid='ignore'):
        for i, (row, split) in enumerate(zip(band.numpy(), splits)):
            if not np.isfinite(row.sum()): check_finite(band[i:i+1], first + i)  # the sum alone is quicker
            ranks.append(row_ranks(row, *split))
    return np.concatenate(ranks)


def row_ranks(
    row: np.ndarray,  # (g,) distances of one query
    matches: np.ndarray,  # Gallery indices of its true matches
    removed: np.ndarray,  # Gallery indices of what does not count
) -> np.ndarray:  # Ranks of the matches, from 1
    """Ranks in one row. Only values up to the last match are sorted, which is many times faster than sorting indices;
    of equal distances, the one earlier in the gallery is nearer"""
    row = row.copy()  # leaves the caller's matrix alone
    row[removed] = np.inf
    own = row[matches]
    near = np.sort(row.compress(row <= own.max(initial=-np.inf)))
    ranks = 1 + near.searchsorted(own)
    tied = np.flatnonzero(near.searchsorted(own, side='right') > ranks)
    for i in tied: ranks[i] += np.count_nonzero(row[:matches[i]] == own[i])
    return ranks


def band_ranks(
    band: Tensor,  # (b, g) distances of some queries on a GPU
    splits: list[tuple[np.ndarray, np.ndarray]],  # Matches and removed items of each
) -> np.ndarray:  # (m,) ranks of all their matches, in order
    "The same count for all matches of a band at once, in steps of at most half a gigabyte"
    def places(of_each):
        "Rows and columns of the band"
        rows = np.repeat(np.arange(len(of_each)), [len(items) for items in of_each])
        return torch.from_numpy(rows).to(band.device), torch.from_numpy(np.concatenate(of_each)).to(band.device)
    band = band.index_put(places([removed for _, removed in splits]), band.new_tensor(torch.inf))
    rows, items = places([matches for matches, _ in splits])
    columns = torch.arange(band.shape[1], device=band.device)
    step = max(1, GPU_ITEMS // band.shape[1])
    ranks = []
    for r, i in zip(rows.split(step), items.split(step)):
        dist = band[r]
        own = band[r, i][:, None]
        ranks.append(1 + ((dist < own) | ((dist == own) & (columns < i[:, None]))).sum(1))
    return torch.cat(ranks).cpu().numpy() if ranks else np.empty(0, np.int64)


def check_finite(band: Tensor, first: int):
    "A ValueError that names the first query with a NaN or infinite distance in a band that begins at query `first`"
    bad = (~band.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f'the distances of query {first + int(bad[0])} hold NaN or infinite values. '
                         'To remove gallery images, give them identity -1')


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
    """Single-shot CMC (Li et al., CVPR 2014, as open-reid draws it): for each query and repeat, the gallery has one
    remaining image of every identity. Queries without a match are left out; ValueError or TypeError as in
    `evaluate_distances`"""
    max_rank = as_count(max_rank, 'max_rank')
    repeats = as_count(repeats, 'repeats')
    distances = as_distances(dist)
    labels = Labels(q_pids, g_pids, q_camids, g_camids, distances.shape, separate_cameras)
    rng = np.random.default_rng(seed)
    found = np.zeros(max_rank + 1)
    counted = 0
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
    """Ranks in galleries of one image for each identity, drawn `repeats` times; of equal distances the earlier image is
    nearer"""
    keep = np.ones(len(row), bool)
    keep[removed] = False
    items = labels.by_pid[keep[labels.by_pid]]  # what is left, identity by identity
    pids, first, count = np.unique(labels.g_pids[items], return_index=True, return_counts=True)
    drawn = items[first + rng.integers(0, count, (repeats, len(pids)))]  # (repeats, identities)
    own = drawn[:, np.searchsorted(pids, labels.q_pids[query]), None]
    nearer = (row[drawn] < row[own]) | ((row[drawn] == row[own]) & (drawn < own))
    return 1 + nearer.sum(1)
