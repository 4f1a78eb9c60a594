"Sparse re-ranking against the published algorithm written densely and plainly"

import dense_rerank as dense
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from magnifier.retrieval import neighbours as neighbours_module, rerank as rerank_module
from magnifier.retrieval.distance import euclidean_distances, normalise
from magnifier.retrieval.neighbours import FeaturePairs, MatrixPairs
from magnifier.retrieval.ranking import evaluate_distances
from magnifier.retrieval.rerank import Reranked, expanded, reciprocal, rerank, rerank_distances


def people(q=20, g=120, d=16, ids=25, spread=0.7, seed=0):
    "Clustered features of both sides in float64"
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(ids, d))
    return tuple(centres[rng.integers(0, ids, n)] + spread * rng.normal(size=(n, d)) for n in (q, g))


def matrices(q, g):
    "Squared distances, as `rerank_distances` takes them"
    return dense.squared(q, g), dense.squared(q, q), dense.squared(g, g)


def sets_of(pairs, k1):
    "Sorted members of R*(i) of each image"
    near = pairs.nearest(k1 + 1)
    r = expanded(reciprocal(near.index[:, :k1 + 1]), reciprocal(near.index[:, :round(k1 / 2) + 1]))
    r.sort_indices()
    return [r.indices[a:b].tolist() for a, b in zip(r.indptr, r.indptr[1:])]


@pytest.mark.parametrize('k1, k2, lambda_value',
                         [(20, 6, 0.3), (20, 1, 0.3), (6, 3, 0), (7, 2, 1), (1, 1, 0.5), (3, 40, 0.3)])
@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_equals_the_published_algorithm(k1, k2, lambda_value, dtype, tolerance):
    q, g = people()
    wanted, sets = dense.dense_rerank(*matrices(q, g), k1, k2, lambda_value)
    got = rerank(q.astype(dtype), g.astype(dtype), k1, k2, lambda_value)
    assert got.dtype == dtype
    assert np.abs(got - wanted).max() < tolerance
    got = rerank_distances(*(m.astype(dtype) for m in matrices(q, g)), k1, k2, lambda_value)
    assert got.dtype == dtype
    assert np.abs(got - wanted).max() < tolerance
    assert sets_of(FeaturePairs(*map(torch.from_numpy, (q, g)), torch.float64), k1) == sets
    assert sets_of(MatrixPairs(*map(torch.from_numpy, matrices(q, g))), k1) == sets


def test_fewer_images_than_neighbours():
    q, g = people(3, 12)
    wanted = dense.dense_rerank(*matrices(q, g), 20, 30)[0]
    assert np.abs(rerank(q, g, 20, 30) - wanted).max() < 1e-6
    assert np.abs(rerank_distances(*matrices(q, g), 20, 30) - wanted).max() < 1e-6


@given(st.integers(1, 6), st.integers(1, 16), st.integers(1, 8), st.integers(1, 6), st.sampled_from([1, 2, 5, 1000]),
       st.integers(0, 2**32 - 1))
def test_small_cases_with_ties(q, g, k1, k2, values, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values + 1, (q + g, 3)).astype(float)
    m = matrices(x[:q], x[q:])
    wanted, sets = dense.dense_rerank(*m, k1, k2)
    assert np.abs(rerank_distances(*m, k1, k2) - wanted).max() < 1e-6
    assert sets_of(MatrixPairs(*map(torch.from_numpy, m)), k1) == sets
    assert np.abs(rerank(x[:q], x[q:], k1, k2) - wanted).max() < 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 6))
def test_matrices_that_are_not_symmetric_are_read_by_column_as_in_the_original(seed, k1, k2):
    rng = np.random.default_rng(seed)
    m = rng.random((4, 9)), rng.random((4, 4)), rng.random((9, 9))
    assert np.abs(rerank_distances(*m, k1, k2) - dense.dense_rerank(*m, k1, k2)[0]).max() < 1e-6


@pytest.mark.parametrize('tile, shared', [(16, 1), (33, 700), (2048, 1 << 20)])
def test_tiles_and_steps_of_any_size_give_the_same(monkeypatch, tile, shared):
    monkeypatch.setattr(neighbours_module, 'TILE', tile)
    monkeypatch.setattr(rerank_module, 'SHARED', shared)
    q, g = people()
    assert np.abs(rerank(q, g) - dense.dense_rerank(*matrices(q, g))[0]).max() < 1e-6


def test_duplicates_and_identical_features():
    x = np.ones((30, 4))
    assert np.isfinite(rerank(x[:5], x[5:])).all()
    x = np.repeat(np.arange(6.)[:, None] * [1, 2], 30, 0)
    wanted = dense.dense_rerank(*matrices(x[:20], x[20:]))[0]
    assert np.abs(rerank_distances(*matrices(x[:20], x[20:])) - wanted).max() < 1e-6
    assert np.abs(rerank(x[:20], x[20:]) - wanted).max() < 1e-6


def test_a_common_offset_does_not_eat_the_digits():
    q, g = people()
    wanted = rerank(q, g)
    assert np.abs(rerank((q + 100).astype(np.float32), (g + 100).astype(np.float32)) - wanted).max() < 1e-4


def test_sparse_result_is_the_dense_one():
    q, g = people()
    wanted, sparse = rerank(q, g), rerank(q, g, return_sparse=True)
    assert isinstance(sparse, Reranked)
    assert sparse.shape == wanted.shape
    assert sparse.similarity.nnz < wanted.size
    assert np.abs(sparse.dense().numpy() - wanted).max() == 0
    assert np.abs(np.stack([sparse.row(i) for i in range(len(q))]) - wanted).max() < 1e-6
    ids = np.arange(20) % 5, np.arange(120) % 5, np.zeros(20, int), np.ones(120, int)
    one, other = evaluate_distances(sparse, *ids), evaluate_distances(wanted, *ids)
    assert one.ap.tolist() == other.ap.tolist()
    assert one.hits(3)['item'].tolist() == other.hits(3)['item'].tolist()
    from_matrices = rerank_distances(*matrices(q, g), return_sparse=True)
    assert np.abs(from_matrices.dense().numpy() - wanted).max() < 1e-6


def test_tensors_give_tensors_and_half_precision_float32():
    q, g = people()
    got = rerank(torch.from_numpy(q), torch.from_numpy(g))
    assert isinstance(got, torch.Tensor)
    assert np.abs(got.numpy() - rerank(q, g)).max() == 0
    q, g = normalise(q).astype(np.float16), normalise(g).astype(np.float16)
    half = rerank(q, g)
    assert half.dtype == np.float32
    assert np.abs(half - rerank(q.astype(np.float32), g.astype(np.float32))).max() == 0
    assert rerank_distances(*(m.astype(np.float16) for m in matrices(q, g))).dtype == np.float32


def test_it_helps_where_neighbours_agree():
    rng = np.random.default_rng(0)
    centres, q_pids, g_pids = rng.normal(size=(40, 8)), rng.integers(0, 40, 40), rng.integers(0, 40, 600)
    q, g = (centres[pids] + 0.6 * rng.normal(size=(len(pids), 8)) for pids in (q_pids, g_pids))
    ids = q_pids, g_pids, np.zeros(40, int), np.ones(600, int)
    plain = evaluate_distances(euclidean_distances(q, g), *ids)
    assert evaluate_distances(rerank(q, g), *ids).mAP > plain.mAP + 0.05


@pytest.mark.parametrize('kw, message', [(dict(k1=0), 'k1=0: a whole number'), (dict(k2=0), 'k2=0'),
                                         (dict(k1=2.5), 'k1=2.5'),
                                         (dict(lambda_value=1.1), 'lambda_value=1.1: a weight from 0')])
def test_settings_that_mean_nothing(kw, message):
    q, g = people(3, 5)
    with pytest.raises(ValueError, match=message): rerank(q, g, **kw)
    with pytest.raises(ValueError, match=message): rerank_distances(*matrices(q, g), **kw)


def test_bad_features_and_matrices():
    q, g = people(3, 5)
    with pytest.raises(ValueError, match='gallery_feats: 1 of 5 rows hold NaN'):
        rerank(q, np.where(np.arange(5)[:, None] == 2, np.nan, g))
    m = list(matrices(q, g))
    with pytest.raises(ValueError, match=r'g_g_dist: shape \(5, 5\) wanted beside q_g_dist of \(3, 5\), got \(3, 3\)'):
        rerank_distances(m[0], m[1], m[1])
    for value in (np.nan, np.inf, -np.inf):
        m[2][3, 1] = value
        with pytest.raises(ValueError, match='matrices: the distances of image 4 .* NaN or infinite'):
            rerank_distances(*m)
