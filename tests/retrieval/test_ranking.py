"The Ranking, its figures and the single-shot CMC against obvious loops, worked cases, and every awkward input"

import itertools
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from slow_ranking import slow_ranking, slow_summary

from magnifier.retrieval.distance import Cosine, cosine_distances, euclidean_distances
from magnifier.retrieval.ranking import (AP_FORMS, NO_MATCH, Labels, band_ranks, cmc_single_shot, evaluate_distances,
                                         rank, row_ranks)
from magnifier.retrieval.region_distance import region_distance
from magnifier.retrieval.rerank import rerank


@contextmanager
def may_warn():
    "Cases where no query has a match warn, rightly"
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'none of .* has a true match')
        yield


@st.composite
def cases(draw):
    "Small searches with ties, junk, distractors, missing matches, one camera or several"
    q = draw(st.integers(1, 6))
    g = draw(st.integers(1, 14))
    ids = draw(st.integers(1, 5))
    cams = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dist = rng.integers(0, draw(st.sampled_from([1, 3, 8, 1000])),
                        (q, g)).astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    return (dist, rng.integers(-1, ids, q), rng.integers(-1, ids + 1, g), rng.integers(0, cams, q),
            rng.integers(0, cams, g))


def assert_same(ranking, wanted):
    "Every figure of `ranking` equals the loop's"
    for i, q in enumerate(wanted):
        own = ranking.match_ranks(i)
        assert own['rank'].tolist() == q['ranks']
        assert own['item'].tolist() == [q['order'][r - 1] for r in q['ranks']]
        assert ranking.ap[i] == pytest.approx(np.nan if q['ap'] is None else q['ap'], abs=1e-12, nan_ok=True)
    for r in (1, 2, 5, 100):
        assert ((ranking.cmc(r), ranking.mAP, ranking.mINP)
                == pytest.approx(slow_summary(wanted, r), abs=1e-12, nan_ok=True))
    assert ranking.n_skipped == sum(q['ap'] is None for q in wanted)
    assert ranking.n_unmatched == len(ranking.unmatched) == sum(not q['ranks'] for q in wanted)


@given(cases(), st.sampled_from(sorted(AP_FORMS)), st.sampled_from(NO_MATCH), st.booleans())
def test_equals_the_slow_loop(case, ap, no_match, separate):
    with may_warn(): ranking = evaluate_distances(*case, ap=ap, no_match=no_match, separate_cameras=separate)
    assert_same(ranking, slow_ranking(*map(np.ndarray.tolist, case), ap, no_match, separate))


@given(cases(), st.booleans(), st.integers(1, 20))
def test_hits_are_the_slow_order(case, separate, k):
    with may_warn(): ranking = evaluate_distances(*case, separate_cameras=separate)
    for i, q in enumerate(slow_ranking(*map(np.ndarray.tolist, case), separate_cameras=separate)):
        hits = ranking.hits(i, k)
        assert hits['item'].tolist() == q['order'][:k]
        assert hits['rank'].tolist() == list(range(1, len(hits) + 1))
        assert hits['rank'][hits['match']].tolist() == [r for r in q['ranks'] if r <= k]
        assert not hits['removed'].any()
        everything = ranking.hits(i, case[0].shape[1], removed=True)
        assert everything['item'].tolist() == np.argsort(case[0][i], kind='stable').tolist()
        assert everything['item'][~everything['removed']].tolist() == q['order']
        assert (everything['rank'][everything['removed']] == 0).all()


@given(cases())
def test_gpu_way_of_counting_equals_the_row_by_row_one(case):
    dist, *ids = case
    labels = Labels(*ids, dist.shape)
    splits = [labels.split(i) for i in range(len(dist))]
    rows = [int(r) for row, split in zip(dist.astype(np.float32), splits) for r in row_ranks(row, *split)]
    assert band_ranks(torch.from_numpy(dist.astype(np.float32)), splits).tolist() == rows


@given(st.integers(0, 2**32 - 1), st.sampled_from(['cosine', 'euclidean', 'sqeuclidean']))
def test_features_and_their_matrix_give_the_same_ranking(seed, metric):
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(0, 3, (n, 4)).astype(np.float32) + 1 for n in (5, 17))
    ids = rng.integers(0, 4, 5), rng.integers(0, 4, 17), rng.integers(0, 2, 5), rng.integers(0, 2, 17)
    with may_warn(): ranking = rank(q, g, *ids, metric=metric)
    dist = cosine_distances(q, g) if metric == 'cosine' else euclidean_distances(q, g)
    with may_warn(): other = evaluate_distances(dist, *ids)
    assert ranking.matches.ranks.tolist() == other.matches.ranks.tolist()
    assert ranking.matches.items.tolist() == other.matches.items.tolist()


def worked(**kw):
    "One query whose matches lie at ranks 1, 2, 4 and 7"
    return evaluate_distances(np.arange(7.)[None], [1], [1, 1, 0, 1, 0, 0, 1], [0], [1] * 7, **kw)


def test_worked_cases():
    assert worked().mAP == pytest.approx(0.8304, abs=5e-5)
    assert worked(ap='trapezoid').mAP == pytest.approx(0.8110, abs=5e-5)
    assert worked().mINP == 4 / 7
    for ap, value in (('step', 0.5), ('trapezoid', 0.25)):
        assert evaluate_distances([[0, 1]], [1], [0, 1], [0], [1, 1], ap=ap).mAP == value


def test_cmc_takes_one_rank_or_several_and_refuses_zero():
    r = evaluate_distances(np.tile(np.arange(4.), (2, 1)), [1, 2], [0, 1, 0, 2], [0, 0], [1] * 4)
    assert r.cmc(1) == 0
    assert isinstance(r.cmc(1), float)
    assert r.cmc(np.arange(1, 6)).tolist() == [0, 0.5, 0.5, 1, 1]
    for bad in (0, 1.5, [1, -1]):
        with pytest.raises(ValueError, match='ranks are integers from 1'): r.cmc(bad)


def test_table_is_one_row_of_the_usual_figures():
    t = worked().table('re-ranked')
    assert list(t.columns) == ['R1', 'R5', 'R10', 'mAP', 'mINP']
    assert list(t.index) == ['re-ranked']
    assert t.iloc[0].tolist() == pytest.approx([1, 1, 1, 0.830357, 4 / 7], abs=1e-6)


def test_why_queries_lost_their_matches():
    with pytest.warns(UserWarning, match='none of 3 queries has a true match .*1 x identity not in the gallery'):
        r = evaluate_distances(np.zeros((3, 4)), [7, 1, -1], [1, 1, 2, -1], [0, 0, 0], [0, 0, 1, 1])
    assert r.unmatched.to_dict() == {0: 'identity not in the gallery', 1: 'identity only in the same camera',
                                     2: 'the query is junk'}
    assert np.isnan([r.mAP, r.mINP, r.cmc(1)]).all()
    assert np.isnan(r.ap).all()
    assert r.n_skipped == r.n_unmatched == 3
    with pytest.warns(UserWarning, match='none of'):
        z = evaluate_distances(np.zeros((1, 1)), [0], [0], [0], [0], no_match='zero')
    assert (z.mAP, z.mINP, z.cmc(1), z.n_skipped, z.n_unmatched, z.ap.tolist()) == (0, 0, 0, 0, 1, [0])


def test_a_gallery_of_junk_alone_and_of_one_image():
    with may_warn(): r = evaluate_distances(np.zeros((2, 3)), [1, 2], [-1] * 3, [0, 0], [1] * 3)
    assert r.n_skipped == 2
    assert len(r.hits(0)) == 0
    assert len(r.hits(0, removed=True)) == 3
    one = rank([[1., 0]], [[0., 1]], [3], [3], [0], [1])
    assert (one.mAP, one.cmc(1)) == (1, 1)
    assert one.hits(0)['distance'].tolist() == [1]


def features(q=5, g=30, d=8, seed=0):
    "Random features and ids, two cameras"
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(q, d)).astype(np.float32), rng.normal(size=(g, d)).astype(np.float32),
            np.arange(q) % 4, np.arange(g) % 4, np.zeros(q, int), np.ones(g, int))


@pytest.mark.parametrize('convert', [torch.from_numpy, lambda x: x.tolist(),
                                     lambda x: x[:, ::-1] if x.ndim == 2 else x[::-1][::-1], np.asfortranarray,
                                     lambda x: pd.Series(x) if x.ndim == 1 else x.astype('>f4'),
                                     lambda x: torch.from_numpy(x).requires_grad_() if x.ndim == 2
                                     else torch.from_numpy(x)])
def test_arrays_tensors_lists_and_series_give_the_same(convert):
    case = features()
    assert rank(*map(convert, case)).mAP == pytest.approx(rank(*case).mAP, abs=1e-12)


def test_read_only_memory_maps_are_read_without_a_copy_or_a_warning(tmp_path):
    case = features()
    np.save(tmp_path / 'g.npy', case[1])
    gallery = np.load(tmp_path / 'g.npy', mmap_mode='r')
    r = rank(case[0], gallery, *case[2:])
    assert r.mAP == rank(*case).mAP
    assert np.shares_memory(r.distances.gallery.numpy(), gallery)
    assert np.shares_memory(Cosine(r.distances.query, r.distances.gallery, torch.float32).gallery.numpy(), gallery)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_compared_in_float32(dtype):
    q, g, *ids = features()
    q, g = torch.from_numpy(q).to(dtype), torch.from_numpy(g).to(dtype)
    r, wanted = rank(q, g, *ids), rank(q.float(), g.float(), *ids)
    assert r.ap.tolist() == wanted.ap.tolist()
    assert r.hits(0)['distance'].dtype == np.float32


def test_autocast_and_low_matmul_precision_change_nothing_and_are_put_back():
    case = [torch.from_numpy(c) for c in features(g=300, d=64)]
    wanted = rank(*case).ap.tolist()
    torch.set_float32_matmul_precision('medium')
    try:
        with torch.autocast('cpu', dtype=torch.bfloat16): assert rank(*case).ap.tolist() == wanted
        assert torch.get_float32_matmul_precision() == 'medium'
    finally: torch.set_float32_matmul_precision('highest')


def test_what_was_given_is_not_written_to():
    dist = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    before, pids = dist.copy(), np.array([0, 1, 2])
    r = evaluate_distances(dist, pids, np.arange(9) % 3 - 1 * (np.arange(9) > 6), [0] * 3, np.arange(9) % 2)
    assert (dist == before).all()
    pids[:] = 9
    assert r.labels.q_pids.tolist() == [0, 1, 2]


def test_nothing_in_a_ranking_can_be_changed():
    r = worked()
    with pytest.raises(AttributeError): r.ap_form = 'trapezoid'
    for a in (r.ap, r.inp, r.first_match, r.n_matches, r.matches.ranks, r.labels.q_pids):
        with pytest.raises(ValueError, match='read-only'): a[0] = 1


@pytest.mark.parametrize('convert', [np.asarray, torch.from_numpy])
def test_features_by_region_are_ranked_by_region_distance(convert):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(5, 8, 3))
    g = rng.normal(size=(30, 8, 3))
    q_seen = rng.random((5, 8)) < .7
    g_seen = rng.random((30, 8)) < .7
    ids = features()[2:]
    for regions in (None, 'foot', ['head', 2]):
        r = rank(*map(convert, (q, g)), *ids, regions=regions, q_visible=q_seen, g_visible=g_seen, ap='trapezoid')
        wanted = evaluate_distances(region_distance(q, g, q_seen, g_seen, regions=regions), *ids, ap='trapezoid')
        assert r.ap.tolist() == wanted.ap.tolist()
        assert r.hits(2, 30).equals(wanted.hits(2, 30))
    assert rank(q, g, *ids).ap.tolist() == rank(q / np.linalg.norm(q, axis=2, keepdims=True), g, *ids,
                                                q_visible=np.ones((5, 8))).ap.tolist()


@pytest.mark.parametrize('kwargs, message', [
    (dict(regions='foot'),
     r'go with features by region, of shape \(images, regions, channels\); query_feats have shape \(2, 3\)'),
    (dict(q_visible=np.ones((2, 8))), 'go with features by region')])
def test_regions_of_whole_features_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message): rank(q, g, *ids, **kwargs)
    with pytest.raises(ValueError, match="metric of features by region='euclidean': use one of cosine"):
        rank(np.ones((2, 8, 3)), np.ones((3, 8, 3)), *ids, metric='euclidean')


ids = [0, 1], [0, 1, 0], [0, 0], [1, 1, 1]
q, g = np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)


def with_value(x, row, value):
    x = x.copy()
    x[row] = value
    return x


@pytest.mark.parametrize('args, error, message', [
    ((with_value(q, 1, np.nan), g, *ids), ValueError,
     r'query_feats: 1 of 2 rows hold NaN or infinite values, the first is row 1'),
    ((q, with_value(g, 2, np.inf), *ids), ValueError, r'gallery_feats: 1 of 3 rows hold NaN or infinite'),
    ((q, with_value(g, 0, 0), *ids), ValueError, r'gallery_feats: 1 of 3 rows are zero, the first is row 0'),
    ((q[:0], g, [], *ids[1:2], [], ids[3]), ValueError, r'query_feats: shape .* none of them 0, got \(0, 3\)'),
    ((q, g[:0], ids[0], [], ids[2], []), ValueError, r'gallery_feats: shape .* got \(0, 3\)$'),
    ((q[0], g, *ids), ValueError,
     r'query_feats: shape \(images, dimensions\) wanted, .* got \(3,\). Use query_feats\[None\] for a single one'),
    ((q[:, :2], g, *ids), ValueError, 'query_feats have 2 dimensions and gallery_feats 3'),
    ((q, g, [0], *ids[1:]), ValueError, 'q_pids: 1 ids for 2 images'),
    ((q, g, *ids[:3], [[1, 1, 1]]), ValueError, r'g_camids: one id per image wanted, shape \(3,\)'),
    ((q, g, ['a', 'b'], *ids[1:]), TypeError, r'q_pids: integers below 2\*\*63 wanted, got dtype <U1.*factorize'),
    ((q, g, [0., 1], *ids[1:]), TypeError, r'q_pids: integers below 2\*\*63 wanted, got dtype float64'),
    ((q, g, np.array([2**63, 1], np.uint64), *ids[1:]), ValueError,
     r'q_pids: integers below 2\*\*63 wanted, got 9223372036854775808\. .*factorize'),
    ((q, g, [2**64, 1], *ids[1:]), TypeError, r'q_pids: integers below 2\*\*63 wanted, got dtype object'),
    ((q.astype(str), g, *ids), TypeError, 'query_feats: real numbers wanted, got dtype <U32'),
    ((q.astype(complex), g, *ids), TypeError, 'query_feats: real numbers wanted, got dtype complex128'),
    ((torch.eye(3, dtype=torch.bool)[:2], g, *ids), TypeError,
     'query_feats: real numbers wanted, got dtype torch.bool'),
    ((torch.eye(3, device='meta')[:2], g, *ids), ValueError, 'query_feats are on meta and gallery_feats on cpu'),
])
def test_rank_says_what_is_wrong(args, error, message):
    with pytest.raises(error, match=message): rank(*args)


@pytest.mark.parametrize('kw, message', [
    (dict(metric='cos'), "metric='cos': use one of cosine, euclidean"),
    (dict(ap='mean'), "ap='mean': use one of step, trapezoid"),
    (dict(no_match='drop'), "no_match='drop': use one of skip, zero")])
def test_unknown_choices_list_the_known(kw, message):
    with pytest.raises(ValueError, match=message): rank(q, g, *ids, **kw)


@pytest.mark.parametrize('dist, error, message', [
    ([[0, 1, np.nan], [0, 1, 2]], ValueError, 'distances of query 0 hold NaN or infinite'),
    ([[0, 1, 2], [0, np.inf, 2]], ValueError, 'distances of query 1'),
    (np.zeros((0, 3)), ValueError, r'dist: shape \(queries, gallery\) wanted, none of them 0, got \(0, 3\)'),
    (np.zeros(3), ValueError, r'dist: shape \(queries, gallery\) wanted, none of them 0, got \(3,\)'),
    (np.zeros((3, 3)), ValueError, 'q_pids: 2 ids for 3 images'),
    ([['a', 'b', 'c']] * 2, TypeError, 'dist: real numbers wanted')])
def test_evaluate_distances_says_what_is_wrong(dist, error, message):
    with pytest.raises(error, match=message): evaluate_distances(dist, *ids)


def test_hits_refuses_what_is_not_there():
    for bad in (1, -2):
        with pytest.raises(IndexError, match=f'query {bad}: there are 1 queries, 0 to 0'): worked().hits(bad)
    with pytest.raises(ValueError, match='k=0: a whole number of 1 or more wanted'): worked().hits(0, 0)
    assert worked().hits(-1).equals(worked().hits(0))


def test_repr_says_how_many_queries_counted():
    with_skip = evaluate_distances([[0., 1], [1, 0]], [1, 5], [1, 2], [0, 0], [1, 1])
    assert repr(with_skip) == ('Ranking(2 queries, 2 gallery images: R1 1.0000, mAP 1.0000, mINP 1.0000, '
                               '1 queries without a match)')


# --- CMC by single shot

def all_draws(dist, q_pids, g_pids, q_camids, g_camids, max_rank):
    "The mean over every possible gallery of one image an identity, each as likely"
    curve, counted = np.zeros(max_rank), 0
    for q in range(len(dist)):
        left = [g for g in range(len(g_pids)) if g_pids[g] != -1
                and not (g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])]
        by_pid = {p: [g for g in left if g_pids[g] == p] for p in {g_pids[g] for g in left}}
        if q_pids[q] not in by_pid: continue
        counted += 1
        ranks = [sorted(draw, key=lambda g: (dist[q][g], g)) for draw in itertools.product(*by_pid.values())]
        ranks = [[g_pids[g] for g in order].index(q_pids[q]) + 1 for order in ranks]
        curve += [np.mean([r <= k for r in ranks]) for k in range(1, max_rank + 1)]
    return curve / counted if counted else np.full(max_rank, np.nan)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_repeated_draws_approach_the_mean_over_all_draws(seed):
    rng = np.random.default_rng(seed)
    case = (rng.integers(0, 5, (3, 8)).astype(float), rng.integers(-1, 4, 3), rng.integers(-1, 4, 8),
            rng.integers(0, 2, 3), rng.integers(0, 2, 8))
    got, wanted = cmc_single_shot(*case, max_rank=5, repeats=4000, seed=1), all_draws(*(c.tolist() for c in case), 5)
    assert got == pytest.approx(wanted, abs=0.04, nan_ok=True)


@given(st.integers(0, 2**32 - 1))
def test_one_image_an_identity_needs_no_draw(seed):
    rng = np.random.default_rng(seed)
    case = (rng.integers(0, 4, (4, 6)).astype(np.float32), rng.integers(0, 6, 4), rng.permutation(6),
            rng.integers(0, 2, 4), rng.integers(0, 2, 6))
    assert (cmc_single_shot(*case, max_rank=8, repeats=3)
            == pytest.approx(all_draws(*(c.tolist() for c in case), 8), abs=1e-12, nan_ok=True))


def test_a_seed_gives_one_single_shot_curve_and_the_global_generator_is_left_alone():
    rng = np.random.default_rng(0)
    case = rng.normal(size=(9, 60)), rng.integers(0, 9, 9), rng.integers(0, 9, 60), np.zeros(9, int), np.ones(60, int)
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    one, two, three = (cmc_single_shot(*case, seed=s) for s in (0, 0, 1))
    assert np.random.get_state()[1].tolist() == before
    assert one.tolist() == two.tolist() != three.tolist()
    assert (np.diff(one) >= 0).all()
    assert one[-1] == pytest.approx(1)
    assert cmc_single_shot(torch.from_numpy(case[0]), *case[1:]).tolist() == one.tolist()
    assert np.isnan(cmc_single_shot(*case[:4], case[4], separate_cameras=False)).sum() == 0
    assert np.isnan(cmc_single_shot(*case[:3], case[3] + 1, case[4], separate_cameras=True)).all()


def test_single_shot_takes_a_sparse_reranking():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(6, 4)), rng.normal(size=(40, 4))
    ids = np.arange(6), np.arange(40) % 6, np.zeros(6, int), np.ones(40, int)
    assert cmc_single_shot(rerank(q, g, return_sparse=True),
                           *ids).tolist() == cmc_single_shot(rerank(q, g), *ids).tolist()


@pytest.mark.parametrize('kw, message', [(dict(repeats=0), 'repeats=0: a whole number of 1 or more'),
                                         (dict(max_rank=1.5), 'max_rank=1.5')])
def test_single_shot_says_which_setting_is_wrong(kw, message):
    with pytest.raises(ValueError, match=message): cmc_single_shot([[0.]], [1], [1], [0], [1], **kw)


def test_single_shot_says_what_is_wrong():
    with pytest.raises(ValueError, match='distances of query 0 hold NaN'):
        cmc_single_shot([[np.nan]], [1], [1], [0], [1])
    with pytest.raises(ValueError, match='g_pids: 2 ids for 1 images'): cmc_single_shot([[0.]], [1], [1, 1], [0], [1])
