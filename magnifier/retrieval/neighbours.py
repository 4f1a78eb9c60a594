"The nearest neighbours of every image among all images, from features or from matrices, for k-reciprocal encoding"

import warnings
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from magnifier.retrieval.distance import FeatureDistances, MatrixDistances, ready_to_square, squared_distances
from magnifier.retrieval.features import copies, row_slices, squared_sums, working_dtype

__all__ = ['Neighbours', 'FeaturePairs', 'MatrixPairs']

TILE = 2048  # Side of a tile of the product of all pairs: large enough to multiply fast, 16 MB in float32
WAITING = 128  # Candidates an image that wait for a merge: more of them save merges, fewer lower its limit sooner
COLUMNS = 512  # Columns of the matrices turned into rows at once


@dataclass(frozen=True, eq=False)
class Neighbours:
    "The k nearest of every image among all n, itself included, and its largest distance"
    index: np.ndarray  # (n, k) nearest first; of equal distances the lower index first
    furthest: np.ndarray  # (n,) largest distance to any image, by which the paper's code divides; 1 where all are 0


class FeaturePairs:
    """Squared Euclidean distances between all images of both sides, from their features; they are symmetric, so half of
    the tiles are computed. Copies of an image have equal distances to all others, and 0 to each other"""

    def __init__(self,
        query: Tensor,  # (q, d) features
        gallery: Tensor,  # (g, d) features
        dtype: torch.dtype,  # Computed in
    ):
        self.feats = torch.cat(ready_to_square(query, gallery, dtype))  # (n, d)
        self.sums = squared_sums(self.feats).to(self.feats.dtype)
        self.plain = FeatureDistances(query, gallery, 'sqeuclidean', dtype)
        self.original = np.arange(len(self.feats))  # (n,) the first image of those that are the same
        later, first = copies(self.feats)
        self.original[later] = first

    def nearest(self,
        k: int,  # How many, the image itself included
    ) -> Neighbours:  # Of all images
        "The k nearest of each image, and its largest distance"
        different, kind, count = np.unique(self.original, return_inverse=True, return_counts=True)
        if len(different) == len(self.feats):
            _, index, furthest = nearest_of_all(self.feats, self.sums, k)
            return as_neighbours(index, furthest, 'features')
        dist, index, furthest = nearest_of_all(self.feats[different], self.sums[different], k)
        members = torch.from_numpy(members_of_kinds(kind, count, k)).to(index.device)
        k = min(k, len(self.feats))
        index = torch.cat([with_copies(d, i, members, k) for d, i in zip(dist.split(TILE), index.split(TILE))])
        return as_neighbours(index[kind], furthest[kind], 'features')

    def lookup(self,
        wanted: csr_array,  # (n, n) stored where a distance is wanted
    ) -> np.ndarray:  # (m,) squared distances in the order of its indices
        "Distances of single pairs, computed for these pairs only"
        device = self.feats.device
        start = torch.from_numpy(wanted.indptr.astype(np.int64)).to(device)
        cols = torch.from_numpy(wanted.indices.astype(np.int64)).to(device)
        rows = torch.repeat_interleave(start.diff())
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta', UserWarning)
            nothing = self.feats.new_zeros(len(cols))
            pattern = torch.sparse_csr_tensor(start, cols, nothing, wanted.shape, check_invariants=True)
            product = torch.sparse.sampled_addmm(pattern, self.feats, self.feats.T, beta=0).values()
        dist = self.sums[rows] + self.sums[cols] - 2 * product
        same = torch.from_numpy(self.original).to(rows.device)
        return dist.clamp_(min=0).masked_fill_(same[rows] == same[cols], 0).cpu().numpy()


@dataclass(frozen=True, eq=False)
class MatrixPairs:
    "Squared Euclidean distances between all images of both sides, from three matrices, without joining them"
    q_g: Tensor  # (q, g) squared distances
    q_q: Tensor  # (q, q)
    g_g: Tensor  # (g, g)

    @property
    def plain(self) -> MatrixDistances:  # (q, g)
        "Distances between queries and gallery"
        return MatrixDistances(self.q_g)

    def nearest(self,
        k: int,  # How many, the image itself included
    ) -> Neighbours:  # Of all images
        """The k nearest of each image and its largest distance. As in the original, an image's distances are read from
        its COLUMN of the matrix of all pairs"""
        n = sum(self.q_g.shape)
        dtype = working_dtype(self.q_g, self.q_q, self.g_g)
        index = []
        furthest = []
        for above, below in ((self.q_q, self.q_g.T), (self.q_g, self.g_g)):
            slices = row_slices(above.shape[1], COLUMNS)
            memory = torch.empty(2, slices[0].stop * n, dtype=dtype, device=self.q_g.device)
            for own in slices:
                b = own.stop - own.start
                columns = memory[0, :b * n].view(n, b)
                band = memory[1, :b * n].view(b, n)
                columns[:len(above)] = above[:, own]
                columns[len(above):] = below[:, own]
                band.copy_(columns.T)  # three times as fast as to read transposed slices
                near, low = nearest_in_rows(band, min(k, n))
                index.append(near)
                furthest.append(torch.where(low.isfinite(), band.amax(1), torch.nan))
        return as_neighbours(torch.cat(index), torch.cat(furthest), 'matrices')

    def lookup(self,
        wanted: csr_array,  # (n, n) stored where a distance is wanted
    ) -> np.ndarray:  # (m,) squared distances in the order of its indices
        "Distances of single pairs: [column, row] of the matrix of all pairs"
        q = len(self.q_g)
        rows = np.repeat(np.arange(wanted.shape[0]), np.diff(wanted.indptr))
        cols = wanted.indices.astype(np.int64)
        dist = np.empty(wanted.nnz)
        parts = (True, True, self.q_q), (True, False, self.q_g.T), (False, True, self.q_g), (False, False, self.g_g)
        for row_is_query, col_is_query, matrix in parts:
            here = np.flatnonzero(((rows < q) == row_is_query) & ((cols < q) == col_is_query))
            row = torch.from_numpy(rows[here] - (0 if row_is_query else q)).to(matrix.device)
            col = torch.from_numpy(cols[here] - (0 if col_is_query else q)).to(matrix.device)
            dist[here] = matrix[col, row].double().cpu().numpy()
        return dist


def as_neighbours(index: Tensor, furthest: Tensor, what: str) -> Neighbours:
    """Neighbours on the CPU, from (n, k) indices and (n,) largest distances. A ValueError if a distance was NaN or
    infinite; `what` is the word for the input in it"""
    bad = (~furthest.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f'{what}: the distances of image {int(bad[0])} (queries first, '
                         'then gallery) hold NaN or infinite values')
    furthest = furthest.double().cpu().numpy()
    return Neighbours(index.cpu().numpy(), np.where(furthest > 0, furthest, 1.))


def nearest_of_all(
    feats: Tensor,  # (n, d) features, no two rows the same
    sums: Tensor,  # (n,) their squared norms
    k: int,  # How many, the image itself included
) -> tuple[Tensor, Tensor, Tensor]:  # (n, k) distances, (n, k) indices in stable order, (n,) the largest distance
    """The k nearest of each image and its largest distance, with one tile in memory at a time, used for its rows and
    its columns"""
    n = len(feats)
    k = min(k, n)
    best = RunningBest(n, min(k + 1, n), feats)
    memory = feats.new_empty(min(n, TILE) ** 2)
    slices = row_slices(n, TILE)
    for i, rows in enumerate(slices):
        for cols in slices[i:]:
            tile = tile_distances(feats, sums, rows, cols, memory)
            best.offer(rows, tile, 1, cols)
            if cols is not rows: best.offer(cols, tile, 0, rows)
        best.settle(rows)
    dist, index = in_order(best.dist, best.index)
    tied = (dist[:, k-1:k] == dist[:, k:]).any(1).nonzero()[:, 0]
    for rows in tied.split(TILE // 4): index[rows, :k] = nearest_in_rows(row_distances(feats, sums, rows), k)[0]
    return dist[:, :k], index[:, :k], best.furthest


class RunningBest:
    """The nearest neighbours and the largest distance of each image, updated tile by tile. Candidates that are nearer
    than an image's k-th so far are collected and merged in groups"""

    def __init__(self, n: int, k: int, like: Tensor):
        self.dist = like.new_full((n, k), torch.inf)
        self.index = torch.zeros(self.dist.shape, dtype=torch.long, device=like.device)
        self.furthest = like.new_zeros(n)
        # By the first image of a group: candidates as (image in the group, other image, distance)
        self.waiting = defaultdict(list)

    def offer(self, own: slice, tile: Tensor, dim: int, others: slice):
        "`own` are the tile's rows (dim 1) or columns (dim 0), `others` the other side"
        self.furthest[own] = self.furthest[own].maximum(tile.amax(dim))
        limit = self.dist[own, -1]
        if limit.isinf().any():  # the first tile fills the list
            by_own = tile if dim else tile.T.contiguous()
            near, at = by_own.topk(min(self.dist.shape[1], tile.shape[dim]), dim=1, largest=False)
            return self.merge(own, near, at + others.start)
        better = tile < limit.unsqueeze(dim)
        if tile.is_cuda: flat = better.flatten().nonzero()[:, 0]
        else: flat = torch.from_numpy(np.flatnonzero(better.numpy()))  # several times as fast
        place = flat // tile.shape[1], flat % tile.shape[1]
        waiting = self.waiting[own.start]
        waiting.append((place[1 - dim], place[dim] + others.start, tile.flatten()[flat]))
        if sum(len(w[0]) for w in waiting) > WAITING * len(limit): self.settle(own)

    def settle(self, own: slice):
        if not self.waiting[own.start]: return
        image, other, dist = map(torch.cat, zip(*self.waiting.pop(own.start)))
        if image.is_cuda: order = image.argsort()
        else: order = torch.from_numpy(np.argsort(image.numpy().astype(np.int16), kind='stable'))  # 16 bits: by radix
        image = image[order]
        count = image.bincount(minlength=own.stop - own.start)
        slot = torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image]
        near = dist.new_full((len(count), int(count.max())), torch.inf)
        at = other.new_zeros(near.shape)
        near[image, slot] = dist[order]
        at[image, slot] = other[order]
        self.merge(own, near, at)

    def merge(self, own: slice, near: Tensor, at: Tensor):
        near = torch.cat([self.dist[own], near], 1)
        at = torch.cat([self.index[own], at], 1)
        self.dist[own], order = near.topk(self.dist.shape[1], dim=1, largest=False)
        self.index[own] = at.gather(1, order)


def tile_distances(feats: Tensor, sums: Tensor, rows: slice, cols: slice, memory: Tensor) -> Tensor:
    """Squared distances of two groups of the (n, d) features, whose squared norms are `sums` (n,), written to `memory`;
    of an image to itself exactly 0"""
    shape = rows.stop - rows.start, cols.stop - cols.start
    tile = memory[:shape[0] * shape[1]].view(shape)
    squared_distances(feats[rows], feats[cols], sums[rows], sums[cols], tile)
    return tile.fill_diagonal_(0) if rows is cols else tile


def row_distances(feats: Tensor, sums: Tensor, rows: Tensor) -> Tensor:
    "(b, n) squared distances of some images to all, as `tile_distances`"
    band = feats.new_empty(len(rows), len(feats))
    return squared_distances(feats[rows], feats, sums[rows], sums, band).scatter_(1, rows[:, None], 0)


def nearest_in_rows(
    band: Tensor,  # (b, n) distances
    k: int,  # How many, at most n
) -> tuple[Tensor, Tensor]:  # (b, k) their indices in stable order, and (b,) the smallest distance
    """The first k of whole rows. Rows with equal distances at k and k + 1 are sorted completely, because a partial sort
    chooses arbitrarily among equals"""
    dist, index = in_order(*band.topk(min(k + 1, band.shape[1]), dim=1, largest=False))
    tied = (dist[:, k-1:k] == dist[:, k:]).any(1).nonzero()[:, 0]
    index = index[:, :k]
    if len(tied): index[tied] = band[tied].sort(dim=1, stable=True).indices[:, :k]
    return index, dist[:, 0]


def in_order(dist: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    "(b, k) distances and the indices of their images, both sorted by distance and then by index"
    index, by_index = index.sort(dim=1)
    dist, by_dist = dist.gather(1, by_index).sort(dim=1, stable=True)
    return dist, index.gather(1, by_dist)


def members_of_kinds(
    kind: np.ndarray,  # (n,) which of the u different images each image is
    count: np.ndarray,  # (u,) how many images of each there are
    k: int,  # How many to name at most
) -> np.ndarray:  # (u, c) images that are the same as each different image, ascending; -1 where there are fewer
    "The images of each kind side by side"
    order = np.argsort(kind, kind='stable')
    starts = np.cumsum(count) - count
    members = np.full((len(count), min(k, count.max())), -1)
    for i in range(members.shape[1]): members[count > i, i] = order[starts[count > i] + i]
    return members


def with_copies(
    dist: Tensor,  # (b, k) distances of the nearest different images
    index: Tensor,  # (b, k) which of the different images they are
    members: Tensor,  # (u, c) as of `members_of_kinds`
    k: int,  # How many
) -> Tensor:  # (b, k) nearest images, of equal distances the lower index first
    "Neighbours among all images including copies"
    items = members[index].flatten(1)  # (b, k c)
    dist = dist[:, :, None].expand(-1, -1, members.shape[1]).flatten(1)  # (b, k c)
    return in_order(dist.masked_fill(items < 0, torch.inf), items)[1][:, :k]
