"Cosine and Euclidean distances between images, in bands of queries, on any device"

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from magnifier.retrieval.features import (
    DISTANCES, FEATURES, ROW_BLOCK, as_tensor, can_be_squared, check_pair, checked_norms, copies, divided, row_norms,
    row_slices, squared_sums, unit, working_dtype)

__all__ = ['normalise', 'cosine_distances', 'euclidean_distances', 'FeatureDistances', 'MatrixDistances', 'METRICS']

BAND_BYTES = 48 << 20  # Of one band of distances. Larger bands multiply faster, smaller ones leave more memory


def normalise(
    feats,  # (n, d) features, array or tensor; half precision is computed in float32
):  # (n, d) rows of length 1, float32 (float64 if given), array or tensor as given
    "L2-normalise each row. A ValueError names the first row that is zero, NaN or infinite"
    x = as_tensor(feats, 'features', FEATURES)
    with full_precision(x.device): return like(unit(x, 'features'), feats)


def cosine_distances(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
):  # (q, g) distances from 0 to 2, float32 (float64 if given), array or tensor as given
    """1 - cosine similarity. Half-precision features are normalised and summed in float32. A ValueError names zero,
    NaN or infinite rows"""
    return full_matrix(query_feats, gallery_feats, 'cosine')


def euclidean_distances(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
    *,
    squared: bool = False,  # Leave out the root, as `rerank_distances` wants it
):  # (q, g) distances of 0 and more, float32 (float64 if given), array or tensor as given
    "Euclidean distances of features as they are, not normalised. A ValueError names NaN or infinite rows"
    return full_matrix(query_feats, gallery_feats, 'sqeuclidean' if squared else 'euclidean')


def full_matrix(
    query_feats,  # (q, d) features
    gallery_feats,  # (g, d) features
    metric: str,  # A name in `METRICS`
):  # (q, g) distances
    """All distances of a metric, filled band by band; copies on either side get equal distances. A ValueError if shapes
    do not agree"""
    q, g = check_pair(query_feats, gallery_feats)
    dtype = working_dtype(q, g)
    dist = torch.empty(len(q), len(g), dtype=dtype, device=q.device)
    for rows, band in FeatureDistances(q, g, metric, dtype).bands():
        dist[rows] = band
        if band.dtype != dtype and ((dist[rows] == 0) & (band > 0) | dist[rows].isinf()).any():
            raise ValueError(f'{metric} distances of these features overflow {str(dtype)[6:]}: '
                             'give the features as float64')
    later, first = copies(q)
    if len(later): dist[later] = dist[first]
    return like(dist, query_feats, gallery_feats)


@dataclass(frozen=True, eq=False)
class FeatureDistances:
    "The distances between two sets of features, computed for a band of queries or one row at a time"
    query: Tensor  # (q, d) features as the caller holds them
    gallery: Tensor  # (g, d) features as the caller holds them
    metric: str = 'cosine'  # A name in `METRICS`
    dtype: torch.dtype = torch.float32  # Computed in, or in float64 where float32 cannot hold the squares

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return len(self.query), len(self.gallery)

    @cached_property
    def copies(self) -> tuple[np.ndarray, np.ndarray]:  # As of `copies`
        "Gallery images that repeat an earlier one"
        return copies(self.gallery)

    def bands(self):
        """Yields (slice of the queries, their (b, g) distances), with equal distances for copies in the gallery. All
        bands use the same memory: each is overwritten by the next"""
        later, first = self.copies
        with full_precision(self.query.device): metric = METRICS[self.metric](self.query, self.gallery, self.dtype)
        slices = band_slices(*self.shape, metric.query.element_size())
        memory = metric.query.new_empty(slices[0].stop, self.shape[1])
        for rows in slices:
            with full_precision(self.query.device): band = metric.band(rows, memory[:rows.stop - rows.start])
            if len(later): band[:, later] = band[:, first]
            yield rows, band

    def row(self,
        query: int,  # Index of a query
    ) -> np.ndarray:  # (g,) distances
        "One query's distances, computed again; they may differ from the band's by rounding"
        own = self.query[query:query+1]
        parts = []
        with full_precision(own.device):
            for gallery in self.gallery.split(ROW_BLOCK):  # or all of a half-precision gallery would be converted
                metric = METRICS[self.metric](own, gallery, self.dtype)
                parts.append(metric.band(slice(0, 1), metric.query.new_empty(1, len(gallery))))
        row = torch.cat(parts, 1)[0].cpu().numpy()
        later, first = self.copies
        row[later] = row[first]
        return row


@dataclass(frozen=True, eq=False)
class MatrixDistances:
    "A given distance matrix, read a band or a row at a time"
    dist: Tensor  # (q, g) distances as the caller holds them

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return tuple(self.dist.shape)

    def bands(self):
        "Yields (slice of the queries, their (b, g) distances), as views of the caller's matrix"
        for rows in band_slices(*self.shape, self.dist.element_size()): yield rows, self.dist[rows]

    def row(self,
        query: int,  # Index of a query
    ) -> np.ndarray:  # (g,) distances
        "One query's distances"
        return to_numpy(self.dist[query])


def as_distances(
    dist,  # (q, g) distances, array or tensor, or something that computes them a band at a time
):  # Something with `.shape`, `.bands()` and `.row(i)`
    "A distance matrix as `MatrixDistances`; an error if it is not a matrix of real numbers"
    return dist if hasattr(dist, 'bands') else MatrixDistances(as_tensor(dist, 'dist', DISTANCES))


class Cosine:
    """1 - cosine similarity, 0 to 2. The product, not the gallery, is divided by the gallery's norms, which avoids a
    copy"""

    def __init__(self, query: Tensor, gallery: Tensor, dtype: torch.dtype):
        norms = checked_norms(gallery, 'gallery_feats', above_zero=True)
        if gallery.dtype == dtype and can_be_squared(norms):
            self.gallery = gallery
            self.scale = (1 / norms).to(dtype)
        else:
            self.gallery = divided(gallery, norms, dtype)
            self.scale = torch.ones_like(norms, dtype=dtype)
        self.query = unit(query, 'query_feats', dtype).neg_()

    def band(self, rows: slice, out: Tensor) -> Tensor:
        product = torch.mm(self.query[rows], self.gallery.T, out=out)
        return torch.addcmul(self.scale.new_ones(1), product, self.scale, out=out)


class SquaredEuclidean:
    "Squared Euclidean distance of the features as they are"

    def __init__(self, query: Tensor, gallery: Tensor, dtype: torch.dtype):
        self.query, self.gallery = ready_to_square(query, gallery, dtype)
        self.query_sums = squared_sums(self.query).to(self.query.dtype)
        self.gallery_sums = squared_sums(self.gallery).to(self.gallery.dtype)

    def band(self, rows: slice, out: Tensor) -> Tensor:
        return squared_distances(self.query[rows], self.gallery, self.query_sums[rows], self.gallery_sums, out)


class Euclidean(SquaredEuclidean):
    "Euclidean distance of the features as they are"

    def band(self, rows: slice, out: Tensor) -> Tensor: return super().band(rows, out).sqrt_()


METRICS = {'cosine': Cosine, 'euclidean': Euclidean, 'sqeuclidean': SquaredEuclidean}


def squared_distances(rows: Tensor, cols: Tensor, row_sums: Tensor, col_sums: Tensor, out: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y, never below 0, of (a, d) and (b, d) features with squared norms (a,) and (b,); written to
    `out` (a, b)"""
    return torch.addmm(col_sums, rows, cols.T, alpha=-2, out=out).add_(row_sums[:, None]).clamp_(min=0)


def ready_to_square(
    query: Tensor,  # (q, d) features
    gallery: Tensor,  # (g, d) features
    dtype: torch.dtype,  # Wanted; float64 takes its place where float32 cannot hold the squares
) -> tuple[Tensor, Tensor]:  # Both of one type, without their common offset where that is large
    """Features with finite squared distances; a ValueError for NaN or infinite rows, or lengths that are too large or
    too small"""
    norms = checked_norms(query, 'query_feats'), checked_norms(gallery, 'gallery_feats')
    offset = common_offset(gallery, norms[1])
    if offset is not None:
        norms = [torch.cat([row_norms(f.double() - offset) for f in x.split(ROW_BLOCK)]) for x in (query, gallery)]
    fitting = [t for t in (dtype, torch.float64) if all(can_be_squared(n, t) for n in norms)]
    if not fitting:
        lengths = torch.cat(norms)
        smallest, largest = float(lengths[lengths > 0].min()), float(lengths.max())
        raise ValueError(f'features of lengths from {smallest:g} to {largest:g}: their squared distances are no '
                         "numbers of float64. Multiply all by one number, or use metric='cosine'")
    return moved(query, offset, fitting[0]), moved(gallery, offset, fitting[0])


def common_offset(feats: Tensor, norms: Tensor) -> Tensor | None:
    """The mean (d,) of (n, d) features with norms (n,) if they lie far from 0, else None. Subtracting it keeps their
    distances and avoids a loss of digits"""
    mean = torch.stack([f.sum(0, dtype=torch.float64) for f in feats.split(ROW_BLOCK)]).sum(0) / len(feats)
    if mean.square().sum() <= 0.9 * norms.square().mean(): return None
    # Seven bits are enough, and leave equal distances of short numbers equal
    step = 2 ** (mean.abs().amax().log2().floor() - 6)
    return (mean / step).round() * step


def moved(feats: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    "(n, d) features minus their (d,) offset in float64, block by block; the features themselves if nothing changes"
    if offset is None: return feats.to(dtype)
    result = torch.empty(feats.shape, dtype=dtype, device=feats.device)
    for rows in row_slices(len(feats), ROW_BLOCK): result[rows] = feats[rows].double() - offset
    return result


@contextmanager
def full_precision(device: torch.device):
    "Inside, matrix products on `device` are in full float32, without autocast, TF32, bfloat16 or gradients"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad(): yield
    finally: torch.set_float32_matmul_precision(before)


def band_slices(q: int, g: int, itemsize: int = 4) -> list[slice]:
    """Slices of q queries with about 48 MB of distances to g images each, of `itemsize` bytes, but at least 256 rows,
    because smaller products are slow"""
    return row_slices(q, min(1024, max(256, BAND_BYTES // (g * itemsize))))


def like(result: Tensor, *given):
    "The result as a tensor where the caller gave a tensor, else as an array"
    return result if any(isinstance(x, Tensor) for x in given) else result.numpy()


def to_numpy(x: Tensor) -> np.ndarray:
    "A floating-point tensor as an array that NumPy can compute with: float64 if it was, float32 otherwise"
    return x.to('cpu', working_dtype(x)).numpy()
