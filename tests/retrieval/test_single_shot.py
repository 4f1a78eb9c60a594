"Single-shot CMC against an obvious loop over draws, and against every possible draw"

import itertools
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from magnifier.retrieval.rerank import rerank
from magnifier.retrieval.ranking import cmc_single_shot


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


def test_a_seed_gives_one_curve_and_the_global_generator_is_left_alone():
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


def test_it_takes_a_sparse_reranking():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(6, 4)), rng.normal(size=(40, 4))
    ids = np.arange(6), np.arange(40) % 6, np.zeros(6, int), np.ones(40, int)
    assert cmc_single_shot(rerank(q, g, return_sparse=True),
                           *ids).tolist() == cmc_single_shot(rerank(q, g), *ids).tolist()


@pytest.mark.parametrize('kw, message', [(dict(repeats=0), 'repeats=0: a whole number of 1 or more'),
                                         (dict(max_rank=1.5), 'max_rank=1.5')])
def test_bad_settings(kw, message):
    with pytest.raises(ValueError, match=message): cmc_single_shot([[0.]], [1], [1], [0], [1], **kw)


def test_bad_distances():
    with pytest.raises(ValueError, match='distances of query 0 hold NaN'):
        cmc_single_shot([[np.nan]], [1], [1], [0], [1])
    with pytest.raises(ValueError, match='g_pids: 2 ids for 1 images'): cmc_single_shot([[0.]], [1], [1, 1], [0], [1])
