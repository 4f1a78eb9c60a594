"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), in sparse form, without a matrix of all pairs.

The steps: 1, distances of all images; 2, reciprocal neighbours; 3, their expansion; 4, weights exp(-distance) over
them; 5, the mean of these weights over the first k2 neighbours; 6, the Jaccard distance of two images' weights; 7, its
weighted sum with the plain distance"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from magnifier.checks import as_count
from magnifier.retrieval.distance import full_precision, like
from magnifier.retrieval.features import DISTANCES, as_tensor, check_pair, working_dtype
from magnifier.retrieval.neighbours import FeaturePairs, MatrixPairs, Neighbours

__all__ = ['rerank', 'rerank_distances']

SHARED = 1 << 20  # Elements of one step's dense sum over shared neighbours, and of the terms that go into it


@dataclass(frozen=True, eq=False)
class Reranked:
    """Re-ranked distances in sparse form; `evaluate_distances` reads them a band at a time, if q x g is too big for
    memory"""
    similarity: csr_array  # (q, g) 1 - Jaccard distance of the pairs that share a neighbour; 0 for all others
    plain: object  # Squared distances with `.bands()` and `.row(i)`
    furthest: np.ndarray  # (q,) largest squared distance of each query to any image, which divides its plain distances
    lambda_value: float  # Weight of the plain distance, 0 to 1

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return self.similarity.shape

    def bands(self):
        "Yields (slice of the queries, their (b, g) re-ranked distances)"
        for rows, band in self.plain.bands():
            band = band if band.dtype == torch.float64 else band.float()
            scale = torch.from_numpy(self.lambda_value / self.furthest[rows]).to(band)[:, None]
            jaccard = torch.from_numpy(1 - self.similarity[rows].toarray()).to(band)
            yield rows, (band * scale).add_(jaccard, alpha=1 - self.lambda_value)

    def row(self,
        query: int,  # Index of a query
    ) -> np.ndarray:  # (g,) re-ranked distances
        "One query's re-ranked distances"
        jaccard = 1 - self.similarity[query:query+1].toarray()[0]
        return (1 - self.lambda_value) * jaccard + self.plain.row(query) * (self.lambda_value / self.furthest[query])

    def dense(self) -> Tensor:  # (q, g)
        "All re-ranked distances as one tensor"
        out = None
        for rows, band in self.bands():
            out = band.new_empty(self.shape) if out is None else out
            out[rows] = band
        return out


def rerank(
    query_feats,  # (q, d) features, array or tensor on any device; L2-normalised to re-rank what `rank` compares
    gallery_feats,  # (g, d) features of the same model, on the same device
    k1: int = 20,  # Neighbours that must be mutual; where there are fewer images, all of them are neighbours
    k2: int = 6,  # Neighbours whose encodings are averaged; 1 averages none
    lambda_value: float = 0.3,  # Weight of the plain distance, 0 to 1, beside the Jaccard distance
    *,
    return_sparse: bool = False,  # A `Reranked` for `evaluate_distances` in place of the matrix, where q x g is too big
):  # (q, g) re-ranked distances, float32 (float64 if given), array or tensor as given; or a Reranked
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017) from squared Euclidean distances of the features, not
    normalised. It uses the other test images: report it beside the plain figures. ValueError for invalid settings or
    features"""
    k1, k2 = check_settings(k1, k2, lambda_value)
    q, g = check_pair(query_feats, gallery_feats)
    dtype = working_dtype(q, g)
    with full_precision(q.device):
        result = reranked(FeaturePairs(q, g, dtype), len(q), k1, k2, lambda_value)
    return result if return_sparse else like(result.dense().to(dtype), query_feats, gallery_feats)


def rerank_distances(
    q_g_dist,  # (q, g) SQUARED Euclidean distances, as in the original; array or tensor
    q_q_dist,  # (q, q) the same between the queries
    g_g_dist,  # (g, g) the same between the gallery images
    k1: int = 20,  # Neighbours that must be mutual; where there are fewer images, all of them are neighbours
    k2: int = 6,  # Neighbours whose encodings are averaged; 1 averages none
    lambda_value: float = 0.3,  # Weight of the plain distance, 0 to 1, beside the Jaccard distance
    *,
    return_sparse: bool = False,  # A `Reranked` for `evaluate_distances` in place of the matrix
):  # (q, g) re-ranked distances, float32 (float64 if given), array or tensor as given; or a Reranked
    "As `rerank`, from three distance matrices, without joining or copying them. ValueError for shapes that disagree"
    k1, k2 = check_settings(k1, k2, lambda_value)
    q_g = as_tensor(q_g_dist, 'q_g_dist', DISTANCES)
    q_q = as_tensor(q_q_dist, 'q_q_dist', ('queries', 'queries'))
    g_g = as_tensor(g_g_dist, 'g_g_dist', ('gallery', 'gallery'))
    q, g = q_g.shape
    for name, m, n in (('q_q_dist', q_q, q), ('g_g_dist', g_g, g)):
        if m.shape != (n, n):
            raise ValueError(f'{name}: shape {(n, n)} wanted beside q_g_dist of {(q, g)}, got {tuple(m.shape)}')
    result = reranked(MatrixPairs(q_g, q_q, g_g), q, k1, k2, lambda_value)
    return result if return_sparse else like(result.dense(), q_g_dist, q_q_dist, g_g_dist)


def check_settings(k1, k2, lambda_value) -> tuple[int, int]:
    "k1 and k2 as integers; a ValueError for invalid settings"
    if not 0 <= lambda_value <= 1:
        raise ValueError(f'lambda_value={lambda_value}: a weight from 0 (Jaccard alone) to 1 (original alone) '
                         'wanted; the paper uses 0.3')
    hint = '; the paper uses k1=20 and k2=6'
    return as_count(k1, 'k1', hint), as_count(k2, 'k2', hint)


def reranked(pairs: FeaturePairs | MatrixPairs, q: int, k1: int, k2: int, lambda_value: float) -> Reranked:
    "The steps for q queries and the gallery behind them"
    near = pairs.nearest(max(k1 + 1, k2))
    similarity = jaccard_similarity(encode(pairs, near, k1, k2), q)
    return Reranked(similarity, pairs.plain, near.furthest[:q], lambda_value)


def encode(
    pairs: FeaturePairs | MatrixPairs,  # Distances of all images
    near: Neighbours,  # Their first neighbours
    k1: int,  # Neighbours that must be mutual
    k2: int,  # Neighbours averaged over
) -> csr_array:  # (n, n) V, rows that sum to 1
    "Steps 2 to 5: each image as weights over its expanded reciprocal neighbours"
    v = expanded(reciprocal(near.index[:, :k1 + 1]), reciprocal(near.index[:, :round(k1 / 2) + 1]))
    v.sort_indices()
    rows = np.repeat(np.arange(v.shape[0]), np.diff(v.indptr))
    v.data = np.exp(-pairs.lookup(v) / near.furthest[rows])  # step 4
    v.data /= np.bincount(rows, v.data, v.shape[0])[rows]
    if k2 == 1: return v
    # Step 5: a product with the matrix that takes the mean over the first k2
    first = near.index[:, :k2]
    starts = np.arange(0, first.size + 1, first.shape[1])
    mean = csr_array((np.full(first.size, 1 / first.shape[1]), first.ravel(), starts), v.shape)
    return (mean @ v).tocsr()


def reciprocal(index: np.ndarray) -> csr_array:
    "Step 2, from the (n, k) first neighbours: (n, n) ones where i and j are among each other's"
    n, k = index.shape
    starts = np.arange(0, n * k + 1, k, dtype=np.int32)
    near = csr_array((np.ones(n * k, np.float32), index.astype(np.int32).ravel(), starts), (n, n))
    return near.multiply(near.T.tocsr()).tocsr()


def expanded(
    near: csr_array,  # (n, n) R: reciprocal among k1 + 1
    half: csr_array,  # (n, n) the same among round(k1 / 2) + 1
) -> csr_array:  # (n, n) stored where j belongs to R*(i), values without meaning
    "Step 3: adds a candidate's half-size set if more than two thirds of it lies in the original R(i)"
    overlap = (near @ half.T.tocsr()).multiply(near).tocoo()
    size = np.diff(half.indptr)
    joins = 3 * overlap.data > 2 * size[overlap.col]
    candidates = csr_array((overlap.data[joins], (overlap.row[joins], overlap.col[joins])), near.shape)
    return (near + candidates @ half).tocsr()


def jaccard_similarity(
    v: csr_array,  # (n, n) encodings, queries first
    q: int,  # Number of queries
) -> csr_array:  # (q, g) 1 - Jaccard distance, float32
    "Step 6 for all queries, in steps of limited memory"
    inverted = v[q:].T.tocsr()
    terms = np.concatenate([[0], np.cumsum(np.diff(inverted.indptr)[v[:q].indices])])[v.indptr[:q+1]]
    g = inverted.shape[1]
    parts = []
    start = 0
    while start < q:
        stop = np.searchsorted(terms, terms[start] + SHARED, side='right') - 1
        stop = int(np.clip(stop, start + 1, min(q, start + max(1, SHARED // g))))
        shared = shared_weight(v[start:stop], inverted)
        shared.data = (shared.data / (2 - shared.data)).astype(np.float32)
        parts.append(shared)
        start = stop
    return vstack(parts, format='csr')


def shared_weight(
    query: csr_array,  # (b, n) rows of V of some queries
    inverted: csr_array,  # (n, g) which gallery images hold neighbour j, and how much of it
) -> csr_array:  # (b, g) sum over j of min(V[q, j], V[g, j]), stored where it is above 0
    "Step 6: the sum of the smaller weights over the shared neighbours of every pair, by an inverted index"
    b = query.shape[0]
    g = inverted.shape[1]
    begin = inverted.indptr[query.indices]
    count = np.diff(inverted.indptr)[query.indices]
    ends = np.cumsum(count)
    at = np.arange(count.sum()) + np.repeat(begin - (ends - count), count)  # positions in the index, entry after entry
    row = np.repeat(np.arange(b), np.diff(query.indptr))
    cell = np.repeat(row * g, count) + inverted.indices[at]
    total = np.bincount(cell, np.minimum(np.repeat(query.data, count), inverted.data[at]), b * g)
    cells = np.flatnonzero(total)
    return csr_array((total[cells], cells % g, np.searchsorted(cells, np.arange(b + 1) * g)), (b, g))
