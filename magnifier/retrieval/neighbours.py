"The nearest neighbours of every image among all, from features or from matrices: what k-reciprocal encoding starts from"

from dataclasses import dataclass
import numpy as np
import torch
from torch import Tensor
from magnifier.retrieval.distance import FeatureDistances, MatrixDistances, band_slices, centred, row_norms, row_slices, squared_norms

__all__ = ['Neighbours', 'FeaturePairs', 'MatrixPairs']

TILE = 2048        # Side of a tile of the product of all pairs: large enough to multiply fast, 16 MB in float32
LOOKUP_PAIRS = 4096  # Pairs of features multiplied at once


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


def keep_nearest(
    dist: Tensor,  # (b, k) best distances so far, overwritten
    index: Tensor,  # (b, k) their indices, overwritten
    tile: Tensor,  # (b, w) distances to w more images
    start: int,  # Index of the first of these
):
    "Merge a tile into the running best"
    near, at = tile.topk(min(dist.shape[1], tile.shape[1]), dim=1, largest=False)
    near, at = torch.cat([dist, near], 1), torch.cat([index, at + start], 1)
    dist[:], order = near.topk(dist.shape[1], dim=1, largest=False)
    index[:] = at.gather(1, order)


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
        self.norms = squared_norms(self.feats)
        self.plain = FeatureDistances(query, gallery, 'sqeuclidean', dtype)

    def tile(self,
        rows: slice | Tensor,  # Some images
        cols: slice,  # Others
    ) -> Tensor:  # Their squared distances
        "Distances of two groups; an image's own is exactly 0"
        tile = torch.addmm(self.norms[cols], self.feats[rows], self.feats[cols].T, alpha=-2).add_(self.norms[rows, None]).clamp_(min=0)
        if rows is cols: tile.fill_diagonal_(0)
        return tile

    def nearest(self,
        k: int,  # How many, the image itself included
    ) -> Neighbours:  # Of all images
        "The first k of each image and its furthest, one tile in memory at a time, each used by rows and by columns"
        n, device = len(self.feats), self.feats.device
        k = min(k, n)
        dist = torch.full((n, min(k + 1, n)), torch.inf, dtype=self.feats.dtype, device=device)
        index, furthest = torch.zeros(dist.shape, dtype=torch.long, device=device), torch.zeros(n, dtype=dist.dtype, device=device)
        slices = row_slices(n, TILE)
        for i, rows in enumerate(slices):
            for cols in slices[i:]:
                tile = self.tile(rows, cols)
                for own, others in ((rows, cols), (cols, rows))[:1 if rows is cols else 2]:
                    furthest[own] = furthest[own].maximum(tile.amax(1))
                    keep_nearest(dist[own], index[own], tile, others.start)
                    tile = tile.T.contiguous()
        dist, index = in_order(dist, index)
        tied = (dist[:, k-1:k] == dist[:, k:]).any(1).nonzero()[:, 0]
        for rows in tied.split(TILE // 4): index[rows, :k] = nearest_in_rows(self.own_zero(rows), k)
        return as_neighbours(index[:, :k], furthest, 'features')

    def own_zero(self,
        rows: Tensor,  # Indices of images
    ) -> Tensor:  # (b, n) squared distances
        "Whole rows of distances, an image's own exactly 0"
        return self.tile(rows, slice(None)).scatter_(1, rows[:, None], 0)

    def lookup(self,
        rows: np.ndarray,  # (m,) images
        cols: np.ndarray,  # (m,) others
    ) -> np.ndarray:  # (m,) squared distances
        "Distances of single pairs"
        dist = np.empty(len(rows))
        for part in row_slices(len(rows), LOOKUP_PAIRS):
            r, c = (torch.from_numpy(x[part].astype(np.int64)).to(self.feats.device) for x in (rows, cols))
            dist[part] = (self.feats[r] - self.feats[c]).square_().sum(1).cpu().numpy()
        return dist


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
        (q, g), index, furthest = self.q_g.shape, [], []
        for above, below in ((self.q_q, self.q_g.T), (self.q_g, self.g_g)):
            for own in band_slices(above.shape[1], q + g, self.q_g.element_size()):
                band = torch.cat([above[:, own].T, below[:, own].T], 1)  # (b, n)
                band = band if band.dtype == torch.float64 else band.float()
                furthest.append(torch.where(band.isfinite().all(1), band.amax(1), torch.nan))
                index.append(nearest_in_rows(band, min(k, q + g)))
        return as_neighbours(torch.cat(index), torch.cat(furthest), 'matrices')

    def lookup(self,
        rows: np.ndarray,  # (m,) images
        cols: np.ndarray,  # (m,) others
    ) -> np.ndarray:  # (m,) squared distances
        "Distances of single pairs: [cols, rows] of the matrix of all pairs"
        q, dist = len(self.q_g), np.empty(len(rows))
        for of_query, to_query, matrix in ((True, True, self.q_q), (True, False, self.q_g.T), (False, True, self.q_g), (False, False, self.g_g)):
            here = np.flatnonzero(((rows < q) == of_query) & ((cols < q) == to_query))
            r, c = rows[here] - (0 if of_query else q), cols[here] - (0 if to_query else q)
            r, c = (torch.from_numpy(x.astype(np.int64)).to(matrix.device) for x in (r, c))
            dist[here] = matrix[c, r].double().cpu().numpy()
        return dist
