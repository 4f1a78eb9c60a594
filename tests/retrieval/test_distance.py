"Distances in blocks against SciPy and float64, on every kind of input"

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.spatial.distance import cdist
from magnifier.retrieval import distance as module, features as of_rows
from magnifier.retrieval.distance import (FeatureDistances, MatrixDistances, cosine_distances, euclidean_distances,
                                          normalise)
from magnifier.retrieval.ranking import rank
from magnifier.retrieval.region_distance import region_distance

rng = np.random.default_rng(0)
q, g = rng.normal(size=(7, 12)), rng.normal(size=(23, 12))


def ids(n_q=7, n_g=23): return np.arange(n_q) % 4, np.arange(n_g) % 4, np.zeros(n_q, int), np.ones(n_g, int)


@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 5e-3)])
def test_equal_scipy(dtype, tolerance):
    x, y = q.astype(dtype), g.astype(dtype)
    for got, name in ((cosine_distances(x, y), 'cosine'), (euclidean_distances(x, y), 'euclidean'),
                      (euclidean_distances(x, y, squared=True), 'sqeuclidean')):
        assert np.abs(got - cdist(q, g, name)).max() < tolerance * (10 if name == 'sqeuclidean' else 1)
        assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6),
       st.integers(0, 2**32 - 1))
def test_blocks_of_any_size_give_the_same(n_q, n_g, d, band, rows, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n_q, d)) + 0.1, rng.normal(size=(n_g, d)) + 0.1
    with pytest.MonkeyPatch.context() as m:
        for owner in (module, of_rows): m.setattr(owner, 'ROW_BLOCK', rows)
        m.setattr(module, 'band_slices', lambda q, g, size=4: module.row_slices(q, band))
        for name, dist in (('cosine', cosine_distances), ('euclidean', euclidean_distances)):
            assert np.abs(dist(x, y) - cdist(x, y, name)).max() < 1e-6
            lazy = FeatureDistances(torch.from_numpy(x), torch.from_numpy(y), name, torch.float64)
            assert np.abs(np.stack([lazy.row(i) for i in range(n_q)]) - cdist(x, y, name)).max() < 1e-6


def test_small_integers_have_exact_distances_so_that_ties_stay_ties():
    x, y = rng.integers(-3, 4, (9, 5)) + 2, rng.integers(-3, 4, (30, 5)) + 2
    assert (euclidean_distances(x.astype(np.float32), y.astype(np.float32),
                                squared=True) == cdist(x, y, 'sqeuclidean')).all()


def test_a_common_offset_does_not_eat_the_digits():
    got = euclidean_distances((q + 1000).astype(np.float32), (g + 1000).astype(np.float32))
    exact = cdist((q + 1000).astype(np.float32).astype(float), (g + 1000).astype(np.float32).astype(float))
    assert np.abs(got - exact).max() < 1e-5
    assert (euclidean_distances(np.full((2, 3), 7.), np.full((3, 3), 7.)) == 0).all()


def test_half_precision_is_summed_in_float32():
    x = np.full((1, 5000), 1, np.float16)
    # 20000 would be infinite when squared in float16
    assert euclidean_distances(x, -x)[0, 0] == pytest.approx(2 * 5000 ** .5, rel=1e-6)
    assert normalise(np.full((1, 4), 60000, np.float16)).tolist() == [[0.5] * 4]


def test_normalise_keeps_kind_and_length():
    assert np.abs(np.linalg.norm(normalise(q), axis=1) - 1).max() < 1e-12
    t = normalise(torch.from_numpy(g).bfloat16().requires_grad_())
    assert isinstance(t, torch.Tensor)
    assert t.dtype == torch.float32
    assert not t.requires_grad
    assert np.abs(normalise(g.astype(np.float32) * 1e30) - normalise(g)).max() < 1e-6
    assert np.abs(normalise(g.astype(np.float32) * 1e-30) - normalise(g)).max() < 1e-6
    assert normalise([[3, 4]]).tolist() == [[0.6, 0.8]]


@pytest.mark.parametrize('scale', [1e-30, 1e-10, 1, 1e10, 1e30])
def test_cosine_of_features_of_any_length(scale):
    got = cosine_distances((q * scale).astype(np.float32), (g * scale).astype(np.float32))
    assert np.abs(got - cdist(q, g, 'cosine')).max() < 1e-6


def test_tensors_give_tensors():
    for dist in (cosine_distances, euclidean_distances):
        got = dist(torch.from_numpy(q), torch.from_numpy(g))
        assert isinstance(got, torch.Tensor)
        assert np.abs(got.numpy() - dist(q, g)).max() == 0


def test_matrix_is_read_as_it_lies():
    m = torch.from_numpy(q @ g.T).half()
    lazy = MatrixDistances(m)
    assert lazy.shape == (7, 23)
    assert lazy.row(2).dtype == np.float32
    (rows, band), = lazy.bands()
    assert (rows, band.data_ptr()) == (slice(0, 7), m.data_ptr())


@pytest.mark.parametrize('x, message', [
    (np.where(np.arange(7)[:, None] == 3, np.nan, q),
     'query_feats: 1 of 7 rows hold NaN or infinite values, the first is row 3'),
    (np.where(np.arange(7)[:, None] > 4, -np.inf, q),
     'query_feats: 2 of 7 rows hold NaN or infinite values, the first is row 5'),
    (np.where(np.arange(7)[:, None] == 3, 0, q), 'query_feats: 1 of 7 rows are zero, the first is row 3')])
def test_rows_without_a_direction_are_named(x, message):
    with pytest.raises(ValueError, match=message): cosine_distances(x, g)
    with pytest.raises(ValueError, match=message.replace('query_feats', 'features')): normalise(x)
    if 'zero' in message: assert np.isfinite(euclidean_distances(x, g)).all()
    else:
        with pytest.raises(ValueError, match=message): euclidean_distances(x, g)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric='l1': use one of cosine, euclidean, sqeuclidean"):
        rank(q, g, *ids(), metric='l1')


@pytest.mark.parametrize('scale', [1e-300, 1e-160, 1e-50, 1e-30, 1e30, 1e50, 1e160, 1e300])
def test_lengths_beyond_float32_and_squares_beyond_float64_keep_their_directions(scale):
    assert np.abs(normalise(q * scale) - normalise(q)).max() < 1e-12
    assert np.abs(cosine_distances(q * scale, g) - cosine_distances(q, g)).max() < 1e-12
    assert np.abs(cosine_distances(q, g * scale) - cosine_distances(q, g)).max() < 1e-12
    assert rank(q * scale, g * scale, *ids()).matches.ranks.tolist() == rank(q, g, *ids()).matches.ranks.tolist()
    assert rank(q, g * np.where(np.arange(23) % 2, 1, scale)[:, None],
                *ids()).matches.ranks.tolist() == rank(q, g, *ids()).matches.ranks.tolist()


def test_float32_to_its_last_number():
    x = np.full((2, 200), 3e38, np.float32) * np.sign(rng.normal(size=(2, 200))).astype(np.float32)
    assert normalise(x).dtype == np.float32
    assert np.abs(np.linalg.norm(normalise(x), axis=1) - 1).max() < 1e-6
    assert np.abs(cosine_distances(x, x[:1]) - cosine_distances(np.sign(x), np.sign(x[:1]))).max() < 1e-6
    seen = np.ones((1, 2), bool)
    assert (np.abs(region_distance(x[None, :, :], x[None, ::-1], seen, seen) - cosine_distances(x[:1], x[1:])).max()
            < 1e-6)
    for bad, message in ((np.inf, 'NaN or infinite'), (np.nan, 'NaN or infinite'), (0, 'rows are zero')):
        with pytest.raises(ValueError, match=message): normalise(np.full((1, 3), bad))


def test_features_on_a_device_without_float64_come_to_the_cpu(monkeypatch):
    from magnifier.retrieval import features
    moved = []
    monkeypatch.setattr(features, 'WITHOUT_FLOAT64', ('cpu',))
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: moved.append(self.shape) or self)
    features.as_tensor(torch.ones(2, 3), 'features')
    assert moved == [(2, 3)]
