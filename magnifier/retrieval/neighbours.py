"The nearest neighbours of every image among all, from features or from matrices: what k-reciprocal encoding starts from"

import warnings
from dataclasses import dataclass
import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from magnifier.retrieval.distance import FeatureDistances, MatrixDistances, centred, row_norms, row_slices, squared_distances, squared_sums, working_dtype

__all__ = ['Neighbours', 'FeaturePairs', 'MatrixPairs']

TILE = 2048    # Side of a tile of the product of all pairs: large enough to multiply fast, 16 MB in float32
COLUMNS = 512  # Columns of the matrices turned into rows at once


@dataclass(frozen=True, eq=False)
class Neighbours:
    "The first k of every image among all n, itself included, and how far its furthest is"
    index: np.ndarray  # (n, k) nearest first; of equal distances the lower index first
    furthest: np.ndarray  # (n,) its largest distance to any image, 1 where all are 0: what the original divides by


def in_order(
    dist: Tensor,  # (b, k) distances
    index: Tensor,  # (b, k) whose they are
) -> tuple[Tensor, Tensor]:  # Both, sorted by distance and then by index
    "Nearest first, ties by index"
    index, by_index = index.sort(dim=1)
    dist, by_dist = dist.gather(1, by_index).sort(dim=1, stable=True)
    return dist, index.gather(1, by_dist)


def nearest_in_rows(
    band: Tensor,  # (b, n) distances
    k: int,  # How many, at most n
) -> Tensor:  # (b, k) their indices in stable order
    "The first k of whole rows. Rows whose k-th distance equals the next are sorted whole: a partial sort would pick among equals as it likes"
    dist, index = in_order(*band.topk(min(k + 1, band.shape[1]), dim=1, largest=False))
    tied = (dist[:, k-1:k] == dist[:, k:]).any(1).nonzero()[:, 0]
    index = index[:, :k]
    if len(tied): index[tied] = band[tied].sort(dim=1, stable=True).indices[:, :k]
    return index


class RunningBest:
    "The nearest of each image, and its furthest, while tiles of distances come in"

    def __init__(self, n: int, k: int, like: Tensor):
        self.dist = like.new_full((n, k), torch.inf)
        self.index = torch.zeros(self.dist.shape, dtype=torch.long, device=like.device)
        self.furthest = like.new_zeros(n)

    def add(self, rows: slice, tile: Tensor, cols: slice):
        dist, index, k = self.dist[rows], self.index[rows], self.dist.shape[1]
        near, at = tile.topk(min(k, tile.shape[1]), dim=1, largest=False)
        near, at = torch.cat([dist, near], 1), torch.cat([index, at + cols.start], 1)
        dist[:], order = near.topk(k, dim=1, largest=False)
        index[:] = at.gather(1, order)
        self.furthest[rows] = self.furthest[rows].maximum(tile.amax(1))


def as_neighbours(
    index: Tensor,  # (n, k) indices
    furthest: Tensor,  # (n,) largest distances
    what: str,  # What was compared, for the error
) -> Neighbours:  # In NumPy
    "Neighbours on the CPU, where sparse matrices live; a ValueError where a distance was NaN or infinite"
    bad = (~furthest.isfinite()).nonzero()
    if len(bad): raise ValueError(f'{what}: the distances of image {int(bad[0])} (queries first, then gallery) hold NaN or infinite values')
    furthest = furthest.double().cpu().numpy()
    return Neighbours(index.cpu().numpy(), np.where(furthest > 0, furthest, 1.))


class FeaturePairs:
    "Squared Euclidean distances between all images of both sides, from their features; symmetric, so half of the tiles are enough"

    def __init__(self,
        query: Tensor,  # (q, d) features
        gallery: Tensor,  # (g, d) features
        dtype: torch.dtype,  # Computed in
    ):
        row_norms(query, 'query_feats'), row_norms(gallery, 'gallery_feats')
        self.feats = centred(torch.cat([query.to(dtype), gallery.to(dtype)]))[0]  # (n, d)
        self.sums = squared_sums(self.feats).to(dtype)
        self.plain = FeatureDistances(query, gallery, 'sqeuclidean', dtype)

    def nearest(self,
        k: int,  # How many, the image itself included
    ) -> Neighbours:  # Of all images
        "The first k of each image and its furthest, one tile in memory at a time, each used by rows and by columns"
        n = len(self.feats)
        k, best = min(k, n), RunningBest(n, min(k + 1, n), self.feats)
        slices, memory = row_slices(n, TILE), self.feats.new_empty(2, min(n, TILE) ** 2)
        for i, rows in enumerate(slices):
            for cols in slices[i:]:
                tile = self.tile(rows, cols, memory[0])
                best.add(rows, tile, cols)
                if cols is not rows: best.add(cols, memory[1, :tile.numel()].view(tile.T.shape).copy_(tile.T), rows)
        dist, index = in_order(best.dist, best.index)
        tied = (dist[:, k-1:k] == dist[:, k:]).any(1).nonzero()[:, 0]
        for rows in tied.split(TILE // 4): index[rows, :k] = nearest_in_rows(self.rows(rows), k)
        return as_neighbours(index[:, :k], best.furthest, 'features')

    def tile(self,
        rows: slice,  # Some images
        cols: slice,  # Others
        memory: Tensor,  # Where the tile goes
    ) -> Tensor:  # Their squared distances
        "Distances of two groups; an image's own is exactly 0"
        shape = rows.stop - rows.start, cols.stop - cols.start
        tile = squared_distances(self.feats[rows], self.feats[cols], self.sums[rows], self.sums[cols], memory[:shape[0] * shape[1]].view(shape))
        return tile.fill_diagonal_(0) if rows is cols else tile

    def rows(self,
        rows: Tensor,  # Indices of images
    ) -> Tensor:  # (b, n) squared distances
        "Whole rows of distances, an image's own exactly 0"
        band = squared_distances(self.feats[rows], self.feats, self.sums[rows], self.sums, self.feats.new_empty(len(rows), len(self.feats)))
        return band.scatter_(1, rows[:, None], 0)

    def lookup(self,
        wanted: csr_array,  # (n, n) stored where a distance is wanted
    ) -> np.ndarray:  # (m,) squared distances in the order of its indices
        "Distances of single pairs, by products of just these"
        start, cols = (torch.from_numpy(x.astype(np.int64)).to(self.feats.device) for x in (wanted.indptr, wanted.indices))
        rows = torch.repeat_interleave(start.diff())
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Sparse CSR tensor support is in beta', UserWarning)
            pattern = torch.sparse_csr_tensor(start, cols, self.feats.new_zeros(len(cols)), wanted.shape, check_invariants=True)
            product = torch.sparse.sampled_addmm(pattern, self.feats, self.feats.T, beta=0).values()
        dist = self.sums[rows] + self.sums[cols] - 2 * product
        return dist.clamp_(min=0).masked_fill_(rows == cols, 0).cpu().numpy()


class MatrixPairs:
    "Squared Euclidean distances between all images of both sides, from three matrices, read where they lie"

    def __init__(self,
        q_g: Tensor,  # (q, g) squared distances
        q_q: Tensor,  # (q, q)
        g_g: Tensor,  # (g, g)
    ): self.q_g, self.q_q, self.g_g, self.plain = q_g, q_q, g_g, MatrixDistances(q_g)

    def nearest(self,
        k: int,  # How many, the image itself included
    ) -> Neighbours:  # Of all images
        "The first k of each image and its furthest. As in the original, an image's distances are read from its COLUMN of the matrix of all pairs"
        n, index, furthest = sum(self.q_g.shape), [], []
        dtype, device = working_dtype(self.q_g, self.q_q, self.g_g), self.q_g.device
        for above, below in ((self.q_q, self.q_g.T), (self.q_g, self.g_g)):
            slices = row_slices(above.shape[1], COLUMNS)
            memory = torch.empty(2, slices[0].stop * n, dtype=dtype, device=device)
            for own in slices:
                b = own.stop - own.start
                columns, band = memory[0, :b * n].view(n, b), memory[1, :b * n].view(b, n)
                columns[:len(above)], columns[len(above):] = above[:, own], below[:, own]
                band.copy_(columns.T)  # three times as fast as to read transposed slices
                low, high = band.aminmax(dim=1)
                furthest.append(torch.where(low.isfinite(), high, torch.nan))
                index.append(nearest_in_rows(band, min(k, n)))
        return as_neighbours(torch.cat(index), torch.cat(furthest), 'matrices')

    def lookup(self,
        wanted: csr_array,  # (n, n) stored where a distance is wanted
    ) -> np.ndarray:  # (m,) squared distances in the order of its indices
        "Distances of single pairs: [column, row] of the matrix of all pairs"
        q, dist = len(self.q_g), np.empty(wanted.nnz)
        rows, cols = np.repeat(np.arange(wanted.shape[0]), np.diff(wanted.indptr)), wanted.indices
        for of_query, to_query, matrix in ((True, True, self.q_q), (True, False, self.q_g.T), (False, True, self.q_g), (False, False, self.g_g)):
            here = np.flatnonzero(((rows < q) == of_query) & ((cols < q) == to_query))
            r, c = rows[here] - (0 if of_query else q), cols[here] - (0 if to_query else q)
            r, c = (torch.from_numpy(x.astype(np.int64)).to(matrix.device) for x in (r, c))
            dist[here] = matrix[c, r].double().cpu().numpy()
        return dist
