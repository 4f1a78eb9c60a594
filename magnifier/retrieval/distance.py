"Cosine and Euclidean distances between images, in blocks, on any device"

from contextlib import contextmanager
from dataclasses import dataclass
import numpy as np
import torch
from torch import Tensor
from magnifier.retrieval.inputs import as_features, check_pair
from magnifier.retrieval.norms import ROW_BLOCK, direction_norms, handy, row_norms, row_slices, squared_sums, unit, unit_rows, working_dtype

__all__ = ['normalise', 'cosine_distances', 'euclidean_distances', 'FeatureDistances', 'MatrixDistances', 'METRICS']

BAND_BYTES = 48 << 20  # Of one band of distances. Larger bands multiply faster, smaller ones leave more memory


@contextmanager
def full_precision(
    device: torch.device,  # Where the products run
):
    "Float32 means float32: no autocast, no TF32 and no bfloat16 in matrix products while this is open, and no gradient"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad(): yield
    finally: torch.set_float32_matmul_precision(before)


def band_slices(
    q: int,  # Number of queries
    g: int,  # Length of a row of distances
    itemsize: int = 4,  # Bytes a distance
) -> list[slice]:  # Slices that cover 0..q in order
    "Slices of the queries whose distances take about 48 MB, though never fewer than 256 rows: below that a product is slow"
    return row_slices(q, min(1024, max(256, BAND_BYTES // (g * itemsize))))


def like(
    result: Tensor,  # What was computed
    *given,  # What the caller passed
):  # `result`, as an array where nothing given was a tensor
    "Tensors give tensors, anything else gives NumPy arrays"
    return result if any(isinstance(o, Tensor) for o in given) else result.numpy()


def to_numpy(
    x: Tensor,  # Floating point, on any device
) -> np.ndarray:  # float64 if it was, float32 otherwise
    "A tensor as an array that NumPy can compute with"
    return x.to('cpu', working_dtype(x)).numpy()


def normalise(
    feats,  # (n, d) features, array or tensor; half precision is computed in float32
):  # (n, d) rows of length 1, float32 (float64 if given), array or tensor as given
    "L2-normalise each row. A ValueError names the first row that is zero, NaN or infinite"
    x = as_features(feats)
    with full_precision(x.device): return like(unit(x, 'features'), feats)


class Cosine:
    "1 - cosine similarity, 0 to 2. The gallery is divided by its norms after the product, which spares a copy of it"

    def __init__(self, gallery: Tensor, dtype: torch.dtype):
        norms = direction_norms(gallery, 'gallery_feats')
        plain = gallery.dtype == dtype and handy(norms)
        self.gallery = gallery if plain else unit_rows(gallery, norms, dtype)
        self.scale = (1 / norms if plain else torch.ones_like(norms)).to(dtype)

    def prepare(self, query: Tensor) -> Tensor: return unit(query, 'query_feats', self.gallery.dtype).neg_()

    def band(self, query: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(self.scale.new_ones(1), torch.mm(query, self.gallery.T, out=out), self.scale, out=out)


class SquaredEuclidean:
    "Squared Euclidean distance of the features as they are"

    def __init__(self, gallery: Tensor, dtype: torch.dtype):
        row_norms(gallery, 'gallery_feats')
        self.gallery, self.centre = centred(gallery.to(dtype))
        self.norms = squared_sums(self.gallery).to(dtype)

    def prepare(self, query: Tensor) -> Tensor:
        row_norms(query, 'query_feats')
        query = query.to(self.gallery.dtype)
        return query - self.centre if self.centre.any() else query

    def band(self, query: Tensor, out: Tensor) -> Tensor:
        return squared_distances(query, self.gallery, squared_sums(query), self.norms, out)


class Euclidean(SquaredEuclidean):
    "Euclidean distance of the features as they are"

    def band(self, query: Tensor, out: Tensor) -> Tensor: return super().band(query, out).sqrt_()


def squared_distances(
    rows: Tensor,  # (a, d) features
    cols: Tensor,  # (b, d) features
    row_sums: Tensor,  # (a,) their squared norms
    col_sums: Tensor,  # (b,) theirs
    out: Tensor,  # (a, b) written to
) -> Tensor:  # `out`
    "|x|^2 + |y|^2 - 2 x.y in place, never below 0"
    return torch.addmm(col_sums, rows, cols.T, alpha=-2, out=out).add_(row_sums.to(out.dtype)[:, None]).clamp_(min=0)


def centred(
    feats: Tensor,  # (n, d) features, float32 or float64
) -> tuple[Tensor, Tensor]:  # The features, moved where that pays, and (d,) what was subtracted
    """Distances do not change when all features move together, but a common offset eats their digits: take it away where it
    dominates"""
    mean = torch.stack([f.sum(0, dtype=torch.float64) for f in feats.split(ROW_BLOCK)]).sum(0) / len(feats)
    power = squared_sums(feats).mean()
    offset = mean.square().sum()
    if offset <= 0.9 * power: return feats, torch.zeros_like(mean, dtype=feats.dtype)
    step = 2 ** (mean.abs().amax().log2().floor() - 6)  # seven bits are enough, and leave equal distances of short numbers equal
    mean = ((mean / step).round() * step).to(feats.dtype)
    return feats - mean, mean


METRICS = {'cosine': Cosine, 'euclidean': Euclidean, 'sqeuclidean': SquaredEuclidean}


def find_metric(
    metric: str,  # A name in `METRICS`
) -> type:  # Its class
    "The metric of that name; a ValueError lists the names"
    if metric not in METRICS: raise ValueError(f'unknown metric {metric!r}: use one of {", ".join(METRICS)}')
    return METRICS[metric]


@dataclass(frozen=True, eq=False)
class FeatureDistances:
    "The distances between two sets of features, never all at once: computed a band of queries, or one row, at a time"
    query: Tensor  # (q, d) features as the caller holds them
    gallery: Tensor  # (g, d) features as the caller holds them
    metric: str = 'cosine'  # A name in `METRICS`
    dtype: torch.dtype = torch.float32  # Computed in

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return len(self.query), len(self.gallery)

    def bands(self):
        """Yields (slice of the queries, their (b, g) distances). One piece of memory serves all bands: each is gone when the
        next is asked for"""
        with full_precision(self.query.device):
            metric = find_metric(self.metric)(self.gallery, self.dtype)
            query = metric.prepare(self.query)
        slices = band_slices(*self.shape, query.element_size())
        memory = query.new_empty(slices[0].stop, self.shape[1])
        for rows in slices:
            with full_precision(query.device): band = metric.band(query[rows], memory[:rows.stop - rows.start])
            yield rows, band

    def row(self,
        query: int,  # Index of a query
    ) -> np.ndarray:  # (g,) distances
        "One query's distances, computed anew: they may differ from the band's by float rounding"
        with full_precision(self.query.device):
            row = torch.empty(1, self.shape[1], dtype=self.dtype, device=self.query.device)
            for cols in row_slices(self.shape[1], ROW_BLOCK):
                metric = find_metric(self.metric)(self.gallery[cols], self.dtype)
                row[:, cols] = metric.band(metric.prepare(self.query[query:query+1]), row.new_empty(1, cols.stop - cols.start))
            return row[0].cpu().numpy()


@dataclass(frozen=True, eq=False)
class MatrixDistances:
    "A distance matrix that exists, read a band or a row at a time"
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


def full_matrix(
    query_feats,  # (q, d) features
    gallery_feats,  # (g, d) features
    metric: str,  # A name in `METRICS`
):  # (q, g) distances
    "All distances of a metric, filled band by band"
    q, g = check_pair(query_feats, gallery_feats)
    dtype = working_dtype(q, g)
    dist = torch.empty(len(q), len(g), dtype=dtype, device=q.device)
    for rows, band in FeatureDistances(q, g, metric, dtype).bands(): dist[rows] = band
    return like(dist, query_feats, gallery_feats)


def cosine_distances(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
):  # (q, g) distances from 0 to 2, float32 (float64 if given), array or tensor as given
    """1 - cosine similarity. Half-precision features are normalised and summed in float32. A ValueError names zero, NaN or
    infinite rows"""
    return full_matrix(query_feats, gallery_feats, 'cosine')


def euclidean_distances(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
    *,
    squared: bool = False,  # Leave out the root, as `rerank_distances` wants it
):  # (q, g) distances of 0 and more, float32 (float64 if given), array or tensor as given
    "Euclidean distances of features as they are, not normalised. A ValueError names NaN or infinite rows"
    return full_matrix(query_feats, gallery_feats, 'sqeuclidean' if squared else 'euclidean')
