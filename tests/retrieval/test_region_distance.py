"Distances region by region against an obvious loop"

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from magnifier.retrieval.ranking import evaluate_distances
from magnifier.retrieval.region_distance import NOTHING_SHARED, region_distance


def slow(q, g, q_seen, g_seen, regions):
    "One pair and one region at a time"
    dist = np.empty((len(q), len(g)))
    for i in range(len(q)):
        for j in range(len(g)):
            own = [1 - q[i, r] @ g[j, r] / (np.linalg.norm(q[i, r]) * np.linalg.norm(g[j, r]))
                   for r in regions if q_seen[i, r] and g_seen[j, r]]
            dist[i, j] = np.mean(own) if own else NOTHING_SHARED
    return dist


def case(n_q=4, n_g=9, k=8, c=5, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_q, k, c)), rng.normal(size=(n_g, k, c)), rng.random((n_q, k)) < 0.5,
            rng.random((n_g, k)) < 0.5)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1), st.data())
def test_equals_the_loop(n_q, n_g, k, c, seed, data):
    args = case(n_q, n_g, k, c, seed)
    regions = data.draw(st.one_of(st.none(), st.lists(st.integers(0, k - 1), min_size=1, unique=True)))
    assert np.abs(region_distance(*args, regions=regions) - slow(*args,
                                                                 range(k) if regions is None else regions)).max() < 1e-9


def test_what_cannot_be_seen_may_hold_anything():
    q, g, q_seen, g_seen = case()
    wanted = region_distance(q, g, q_seen, g_seen)
    q[~q_seen], g[~g_seen] = np.nan, np.inf
    assert (region_distance(q, g, q_seen, g_seen) == wanted).all()
    assert region_distance(q.astype(np.float16), g.astype(np.float16), q_seen,
                           g_seen) == pytest.approx(wanted, abs=5e-3)


def test_pairs_that_share_nothing_come_last():
    seen = np.array([[True, False], [False, True]])
    x = np.ones((2, 2, 3))
    assert region_distance(x[:1], x, seen[:1], seen)[0] == pytest.approx([0, NOTHING_SHARED], abs=1e-12)
    assert region_distance(x[:1], -x, seen[:1], seen).tolist() == [[2, 2]]
    assert evaluate_distances(region_distance(x[:1], x, seen[:1], seen), [0], [1, 0], [0],
                              [1, 1]).match_ranks(0)['rank'].tolist() == [2]


def test_a_visible_region_without_a_feature_resembles_nothing():
    x, seen = np.zeros((1, 1, 3)), np.ones((1, 1), bool)
    assert region_distance(x, x, seen, seen).tolist() == region_distance(x, x + 1, seen, seen).tolist() == [[1]]


def test_regions_by_name_and_one_alone():
    args = case()
    for regions, index in ((['foot', 'lower_leg'], [7, 6]), ('head', [1]), (3, [3]), (np.array([0, 2]), [0, 2]),
                           (['foot', 1], [7, 1])):
        assert (region_distance(*args, regions=regions) == region_distance(*args, regions=index)).all()


def test_tensors_and_numbers_as_visibility():
    q, g, q_seen, g_seen = case()
    got = region_distance(torch.from_numpy(q), torch.from_numpy(g), q_seen.astype(int),
                          torch.from_numpy(g_seen).float())
    assert isinstance(got, torch.Tensor)
    assert (got.numpy() == region_distance(q, g, q_seen, g_seen)).all()


@pytest.mark.parametrize('change, message', [
    (dict(q=np.zeros((4, 8))),
     r'query_regions: shape \(images, regions, channels\) wanted, none of them 0, got \(4, 8\)'),
    (dict(g=np.zeros((0, 8, 5))), 'gallery_regions: shape'),
    (dict(g=np.zeros((9, 7, 5))), r'\(8, 5\) and gallery_regions \(7, 5\)'),
    (dict(qv=np.ones((4, 7), bool)), r'query_visible: shape \(4, 8\) .* got \(4, 7\)'),
    (dict(gv=np.full((9, 8), 0.5)), 'gallery_visible: booleans wanted'),
    (dict(q=np.full((4, 8, 5), np.nan)), r'query_regions: region \d of image 0 is visible and holds NaN'),
    (dict(g=torch.zeros(9, 8, 5, device='meta')), 'query_regions are on cpu and gallery_regions on meta')])
def test_what_does_not_fit(change, message):
    args = dict(zip(('q', 'g', 'qv', 'gv'), case())) | change
    with pytest.raises(ValueError, match=message): region_distance(*args.values())


@pytest.mark.parametrize('regions, message', [([8], 'unknown region 8: .* or indices 0 to 7'),
                                              ([], 'regions is empty'), ([1, 1], "'head' is named twice"),
                                              ('hat', "unknown region 'hat'"), ([-1], 'unknown region -1')])
def test_unknown_regions(regions, message):
    with pytest.raises(ValueError, match=message): region_distance(*case(), regions=regions)


@pytest.mark.parametrize('scale', [1e-170, 1e-30, 1e30, 1e170])
def test_the_size_of_features_does_not_matter(scale):
    rng = np.random.default_rng(5)
    q, g = rng.normal(size=(3, 8, 6)), rng.normal(size=(4, 8, 6))
    seen = np.ones((3, 8), bool), np.ones((4, 8), bool)
    np.testing.assert_allclose(region_distance(q*scale, g*scale, *seen), region_distance(q, g, *seen), atol=1e-6)
