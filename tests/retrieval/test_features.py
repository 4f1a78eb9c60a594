"Copies of an image are equally far, wherever they lie; distances keep their order whatever the size of features"

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from magnifier.retrieval import distance, features as module, neighbours
from magnifier.retrieval.features import copies
from magnifier.retrieval.distance import cosine_distances, euclidean_distances
from magnifier.retrieval.ranking import rank
from magnifier.retrieval.region_distance import region_distance
from magnifier.retrieval.rerank import rerank

METRICS = ('cosine', 'euclidean', 'sqeuclidean')


def with_copies(seed, n, d, dtype=np.float32):
    "Rows of which about half repeat others, and the first row of each kind"
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, max(1, n // 2), n)
    first = np.array([np.flatnonzero(kind == k)[0] for k in kind])
    return rng.normal(size=(n, d)).astype(dtype)[first], first


# Which rows are copies

@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_copies_against_a_loop(seed, n, d, values, two_parts):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, values, (n, d)).astype(np.float32), rng.integers(0, 2, (n, 1)).astype(bool)
    rows = [(*a, *(b if two_parts else ())) for a, b in zip(x.tolist(), y.tolist())]
    wanted = [(i, rows.index(row)) for i, row in enumerate(rows) if rows.index(row) < i]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'BLOCK', 3)
        later, first = copies(*map(torch.from_numpy, (x, y) if two_parts else (x,)))
    assert list(zip(later.tolist(), first.tolist())) == wanted


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_copies_of_every_type(dtype):
    x = torch.randn(5, 3).to(dtype)[[0, 1, 0, 2, 1]]
    later, first = copies(x)
    assert (later.tolist(), first.tolist()) == ([2, 4], [0, 1])


def test_rows_that_agree_in_the_columns_seen_first_are_told_apart():
    x = torch.zeros(3, 100)
    x[1, 1] = 1
    assert copies(x)[0].tolist() == [2]


# Their distances

@pytest.mark.parametrize('metric', ['cosine', *(pytest.param(m, marks=pytest.mark.slow) for m in METRICS[1:])])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(3, 70), st.sampled_from([1, 3, 17, 64, 129]))
def test_copies_in_the_gallery_have_the_rank_of_their_place(metric, seed, n_q, n_g, d):
    "Against whole rows in which every copy has the distance of the first of its kind, and the earlier comes first"
    q = np.random.default_rng(seed).normal(size=(n_q, d)).astype(np.float32)
    g, first = with_copies(seed + 1, n_g, d)
    ids = np.arange(n_q) % 3, np.arange(n_g) % 3, np.zeros(n_q, int), np.ones(n_g, int)
    with pytest.MonkeyPatch.context() as m:
        for owner in (distance, module): m.setattr(owner, 'ROW_BLOCK', 7)
        m.setattr(distance, 'band_slices', lambda q, g, size=4: distance.row_slices(q, 5))
        ranking = rank(q, g, *ids, metric=metric)
        bands = np.concatenate([band.clone().numpy() for _, band in ranking.distances.bands()])
        row, hits = ranking.distances.row(1), ranking.hits(1, n_g)
    assert (bands == bands[:, first]).all()
    assert (row == row[first]).all()
    assert hits['item'].tolist() == sorted(range(n_g), key=lambda j: (row[j], j))
    for i in range(n_q):
        order = sorted(range(n_g), key=lambda j: (bands[i, j], j))
        wanted = [r for r, j in enumerate(order, 1) if ids[1][j] == ids[0][i]]
        assert ranking.matches.ranks[slice(*ranking.matches.offsets[i:i+2])].tolist() == wanted


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([1, 5, 64, 129]),
       st.sampled_from([np.float16, np.float32, np.float64]))
def test_the_same_bytes_give_the_same_distance_on_both_sides(seed, n, d, dtype):
    x, first = with_copies(seed, n, d, dtype)
    for dist in (cosine_distances(x, x), euclidean_distances(x, x), euclidean_distances(x, x, squared=True)):
        assert (dist == dist[first]).all()
        assert (dist == dist[:, first]).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 4))
def test_copies_are_equally_far_by_region(seed, n, c):
    x, first = with_copies(seed, n, 8 * c)
    seen = (np.random.default_rng(seed).random((n, 8)) < .6)[first]
    dist = region_distance(x.reshape(n, 8, c), x.reshape(n, 8, c), seen, seen)
    assert (dist == dist[first]).all()
    assert (dist == dist[:, first]).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 60), st.integers(1, 8), st.integers(1, 6),
       st.integers(1, 20))
def test_neighbours_of_copies_are_exact(seed, n_q, n_g, k1, k2, tile):
    "Against distances whose copies were made equal, and sorted whole"
    x, first = with_copies(seed, n_q + n_g, 33)
    pairs = neighbours.FeaturePairs(torch.from_numpy(x[:n_q]), torch.from_numpy(x[n_q:]), torch.float32)
    exact = ((x[:, None].astype(float) - x[None].astype(float))**2).sum(2)
    k = max(k1 + 1, k2)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(neighbours, 'TILE', tile)
        near = pairs.nearest(k)
    assert near.index.tolist() == np.argsort(exact, axis=1, kind='stable')[:, :k].tolist()
    assert near.furthest == pytest.approx(np.where(exact.max(1) > 0, exact.max(1), 1), rel=1e-5)


def test_reranking_many_copies_of_one_image():
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    x[5:35] = x[5]
    assert np.isfinite(rerank(x[:10], x[10:], 5, 3)).all()


# Their size

@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('scale', [1e-36, 1e-25, 1e-20, 1e20, 1e25, 1e36])
@pytest.mark.parametrize('metric', METRICS)
def test_small_and_large_features_are_ranked_as_others_are(scale, metric, dtype):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(6, 12)), rng.normal(size=(50, 12))
    ids = np.arange(6) % 4, np.arange(50) % 4, np.zeros(6, int), np.ones(50, int)
    plain = rank(q, g, *ids, metric=metric)
    scaled = rank((q * scale).astype(dtype), (g * scale).astype(dtype), *ids, metric=metric)
    assert scaled.matches.ranks.tolist() == plain.matches.ranks.tolist()
    assert scaled.hits(2, 50)['item'].tolist() == plain.hits(2, 50)['item'].tolist()


@pytest.mark.parametrize('scale', [1e-36, 1e-25, 1e25, 1e36])
def test_small_and_large_features_are_reranked_as_others_are(scale):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(6, 12)), rng.normal(size=(50, 12))
    got = rerank((q * scale).astype(np.float32), (g * scale).astype(np.float32))
    assert got.dtype == np.float32
    assert np.abs(got - rerank(q, g)).max() < 1e-4


def test_small_features_beside_a_large_one_are_told_apart():
    q, g = np.array([[1e-25, 0]], np.float32), np.array([[3e-25, 0], [2e-25, 0], [0, 0], [1, 0]], np.float32)
    assert rank(q, g, [1], [1, 1, 1, 1], [0], [1] * 4, metric='euclidean').hits(0, 4)['item'].tolist() == [1, 2, 0, 3]


def test_distances_that_no_float_can_hold_are_refused():
    small, tiny = np.full((2, 3), 1e-25, np.float32), np.eye(3) * [[1e-160], [2e-160], [3e-160]]
    small[1] = 3e-25
    assert euclidean_distances(small, small)[0, 1] == pytest.approx(2e-25 * 3**.5, rel=1e-6)
    with pytest.raises(ValueError,
                       match='sqeuclidean distances of these features overflow float32: give the features '
                             'as float64'):
        euclidean_distances(small, small, squared=True)
    assert euclidean_distances(small.astype(float), small, squared=True)[0, 1] == pytest.approx(12e-50, rel=1e-6)
    for refused in (lambda: euclidean_distances(tiny, tiny), lambda: rerank(tiny, tiny)):
        with pytest.raises(ValueError, match='features of lengths from 1e-160 to 3e-160: .*Multiply all by one number'):
            refused()


@pytest.mark.parametrize('kind', [np.int64, np.int8, np.uint16, torch.tensor])
def test_integers_of_every_kind_are_integers(kind):
    from magnifier.retrieval.expansion import average_query_expansion
    from magnifier.retrieval.ranking import cmc_single_shot
    x, first = with_copies(3, 20, 6)
    ids = np.arange(5) % 3, np.arange(15) % 3, np.zeros(5, int), np.ones(15, int)
    q, g = x[:5], x[5:]
    ranking = rank(q, g, *ids)
    assert ranking.hits(kind(2), kind(3)).equals(ranking.hits(2, 3))
    assert ranking.cmc(int(kind(3))) == ranking.cmc(3)
    assert (rerank(q, g, kind(5), kind(3)) == rerank(q, g, 5, 3)).all()
    assert (average_query_expansion(q, g, kind(3)) == average_query_expansion(q, g, 3)).all()
    dist = cosine_distances(q, g)
    wanted = cmc_single_shot(dist, *ids, max_rank=4, repeats=9)
    assert (cmc_single_shot(dist, *ids, max_rank=kind(4), repeats=kind(9)) == wanted).all()


def test_large_identities_are_told_apart():
    big = 2**63 - 1
    ranking = rank(np.eye(3)[:1], np.eye(3), [big], [big - 1, big, -2**63], [0], [1] * 3)
    assert ranking.match_ranks(0)['item'].tolist() == [1]
