"""The rank of every true match by counting: one plus the number of allowed gallery items that are nearer. The gallery
is not sorted"""

from dataclasses import dataclass
import numpy as np
import torch
from torch import Tensor
from magnifier.retrieval.inputs import as_ids

__all__ = ['Labels', 'Matches', 'count_matches', 'JUNK']

JUNK = -1            # The identity of images that are never used, as in Market-1501
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
        self.q_pids, self.g_pids = as_ids(q_pids, q, 'q_pids'), as_ids(g_pids, g, 'g_pids')
        self.q_camids, self.g_camids = as_ids(q_camids, q, 'q_camids'), as_ids(g_camids, g, 'g_camids')
        self.separate_cameras = separate_cameras
        self.junk = np.flatnonzero(self.g_pids == JUNK)
        self.by_pid = np.argsort(self.g_pids, kind='stable')
        ordered = self.g_pids[self.by_pid]
        self._first = np.searchsorted(ordered, self.q_pids)
        self._last = np.searchsorted(ordered, self.q_pids, side='right')

    def split(self,
        query: int,  # Index of a query
    ) -> tuple[np.ndarray, np.ndarray]:  # Gallery indices of its true matches, ascending, and of what is removed for it
        """True matches and removed items of one query: same identity elsewhere, and same identity in the same
        camera plus junk"""
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


@dataclass(frozen=True, eq=False)
class Matches:
    """The true matches of all queries, one after the other: those of query i lie at offsets[i]:offsets[i+1],
    nearest first"""
    offsets: np.ndarray  # (q+1,) where each query's matches begin and end
    ranks: np.ndarray  # (m,) rank of each match among what is left of the gallery, from 1
    items: np.ndarray  # (m,) its gallery index

    def __post_init__(self):
        for a in (self.offsets, self.ranks, self.items): a.setflags(write=False)


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
    band = band.clone().index_put_(places([removed for _, removed in splits]), band.new_tensor(torch.inf))
    rows, items = places([matches for matches, _ in splits])
    before, ranks = torch.arange(band.shape[1], device=band.device), []
    step = max(1, GPU_ITEMS // band.shape[1])
    for r, i in zip(rows.split(step), items.split(step)):
        dist, own = band[r], band[r, i][:, None]
        ranks.append(1 + ((dist < own) | ((dist == own) & (before < i[:, None]))).sum(1))
    return torch.cat(ranks).cpu().numpy() if ranks else np.empty(0, np.int64)


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


def check_finite(
    band: Tensor,  # (b, g) distances of some queries
    first: int,  # Index of the first query
):
    "A ValueError that names the first query with a NaN or infinite distance"
    bad = (~band.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f'the distances of query {first + int(bad[0])} hold NaN or infinite values. '
                         'To remove gallery images, give them identity -1')


def count_matches(
    distances,  # Something with `.bands()`: FeatureDistances, MatrixDistances, a sparse re-ranking
    labels: Labels,  # Who is who
) -> Matches:  # Every query's true matches, nearest first
    "Ranks of all true matches, one band of distances in memory at a time"
    sizes, items, ranks = [], [], []
    for rows, band in distances.bands():
        splits = [labels.split(i) for i in range(rows.start, rows.stop)]
        sizes += [len(m) for m, _ in splits]
        items += [m for m, _ in splits]
        ranks.append(count_band(band, splits, rows.start))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    items, ranks = np.concatenate(items), np.concatenate(ranks)
    order = np.lexsort([ranks, np.repeat(np.arange(len(sizes)), sizes)])
    return Matches(offsets, ranks[order], items[order])
