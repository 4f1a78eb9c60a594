"""Occlusions counted over many draws; the phase, the masks, the columns and the rates as training sees them; low
precision and compiled training, which leave the learner as it was"""
import json
import random
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from fastai.vision.all import Callback, CancelFitException
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from magnifier.regions import LOWER_TORSO, UPPER_TORSO
from magnifier.train import callbacks
from magnifier.train.callbacks import (CPUBfloat16, RegionOcclusion, SemanticDiversityPhase, TeacherMasks,
                                       ValidateEvery, WarmupMilestones, bfloat16_pays, draw_kept_regions,
                                       fast_training, warmup_milestones)
from magnifier.train.monitoring import LossParts
from magnifier.train.runs import train_run


def drawn(strategy, keep, n=3000):  # (n, 8) booleans
    rng = random.Random(0)
    return torch.stack([draw_kept_regions(strategy, keep, rng) for _ in range(n)])


@pytest.mark.parametrize('keep', [2, 4, 6])
def test_torso_keeps_half_of_each_group_evenly(keep):
    kept = drawn('torso', keep)
    assert kept.dtype == torch.bool
    assert kept.shape == (3000, 8)
    assert kept[:, 0].all()
    for group in (UPPER_TORSO, LOWER_TORSO):
        assert (kept[:, group].sum(1) == keep//2).all()
        assert (kept[:, group].float().mean(0) - keep/2/len(group)).abs().max() < .04


@pytest.mark.parametrize('keep', range(1, 8))
def test_random_keeps_any_body_regions_evenly(keep):
    kept = drawn('random', keep)
    assert kept[:, 0].all()
    assert (kept[:, 1:].sum(1) == keep).all()
    assert (kept[:, 1:].float().mean(0) - keep/7).abs().max() < .04


@pytest.mark.parametrize('keep', range(1, 9))
def test_random_all_draws_the_background_like_any_other(keep):
    kept = drawn('random_all', keep)
    assert (kept.sum(1) == keep).all()
    assert (kept.float().mean(0) - keep/8).abs().max() < .04


def test_random_all_and_no_background_do_not_go_together():
    with pytest.raises(ValueError, match="keep_background=False never keeps it: use 'random'"):
        draw_kept_regions('random_all', 4, random.Random(0), keep_background=False)


def test_random_draws_every_subset():
    assert len(set(map(tuple, drawn('random', 4, 1500).tolist()))) == 35  # 7 choose 4


def test_the_background_can_go_too():
    assert not draw_kept_regions('torso', 4, random.Random(0), keep_background=False)[0]


@pytest.mark.parametrize('strategy, keep, message', [
    ('torso', 3, 'keep one of 2, 4, 6$'), ('torso', 8, 'keep one of 2, 4, 6$'), ('torso', 0, 'keep one of 2, 4, 6$'),
    ('random', 8, 'keep one of 1, 2, 3, 4, 5, 6, 7$'), ('random', 0, 'keep one of 1, 2'),
    ('random', 2.5, 'keep one of 1, 2'),
    ('random_all', 9, 'keep one of 1, 2, 3, 4, 5, 6, 7, 8$'), ('both', 4, 'use one of torso, random, random_all')])
def test_impossible_occlusions_are_refused(strategy, keep, message):
    with pytest.raises(ValueError, match=message): RegionOcclusion(strategy, keep)
    with pytest.raises(ValueError, match=message): draw_kept_regions(strategy, keep, random.Random(0))


def test_the_occlusion_asks_the_model_for_the_background():
    for kept in (True, False):
        occlusion = RegionOcclusion('torso', 4)
        occlusion.learn = SimpleNamespace(net=SimpleNamespace(sab=SimpleNamespace(keep_background=kept)))
        assert {bool(occlusion.draw()[0]) for _ in range(5)} == {kept}
    occlusion = RegionOcclusion('random_all', 4)
    occlusion.learn = SimpleNamespace(net=SimpleNamespace(sab=SimpleNamespace(keep_background=False)))
    with pytest.raises(ValueError, match="keep_background=False never keeps it: use 'random'"): occlusion.before_fit()


def test_draws_follow_their_own_seed_alone():
    random.seed(0)
    before = random.getstate()
    a, b, c = (RegionOcclusion(seed=s) for s in (1, 1, 2))
    draws = [[o.draw().tolist() for _ in range(20)] for o in (a, b, c)]
    assert draws[0] == draws[1] != draws[2]
    assert random.getstate() == before


class Watch(Callback):
    "What the model was given, and the weight of the diversity loss, batch by batch"
    order = RegionOcclusion.order + .5
    def before_fit(self): self.seen, self.gammas = [], []
    def before_batch(self): self.seen.append((self.training, self.xb, self.yb))
    def after_loss(self):
        if self.training: self.gammas.append((self.epoch, self.learn.loss_func.gamma))


@pytest.mark.slow
def test_training_sees_masks_and_one_occlusion_a_batch_and_validation_neither(learn):
    watch = Watch()
    learn.fit(1, cbs=watch)
    training = [(xb, yb) for is_training, xb, yb in watch.seen if is_training]
    assert training
    assert all(len(xb) == 3 and xb[1] is yb[0] and xb[2].shape == (8,) for xb, yb in training)
    assert len({tuple(xb[2].tolist()) for xb, _ in training}) > 1
    assert all(len(xb) == 1 for is_training, xb, _ in watch.seen if not is_training)


@pytest.mark.slow
def test_the_phase_starts_at_its_epoch_and_ends_with_the_fit(learn):
    watch = Watch()
    learn.fit(3, cbs=[watch, SemanticDiversityPhase(gamma=.01, start_epoch=2)])
    assert {e: g for e, g in watch.gammas} == {0: 0., 1: 0., 2: .01}
    assert learn.loss_func.gamma == 0.


def test_a_cancelled_phase_puts_the_weight_back(learn):
    class Stop(Callback):
        def after_batch(self): raise CancelFitException
    learn.fit(1, cbs=[SemanticDiversityPhase(.01), Stop()])
    assert learn.loss_func.gamma == 0.


@pytest.mark.slow
def test_the_second_stage_has_the_diversity_loss_in_its_total(learn):
    watch = Watch()
    learn.fit_semantic_diversity(1, lr=1e-4, gamma=.5, cbs=watch)
    assert {g for _, g in watch.gammas} == {.5}
    with pytest.raises(ValueError, match='gamma=-1'): SemanticDiversityPhase(-1)


@pytest.mark.slow
def test_the_second_stage_goes_on_at_the_decayed_rate_or_falls(learn):
    learn.fit(1, 2e-4)
    learn.fit_semantic_diversity(1, lr=None, schedule='constant')
    assert set(learn.recorder.lrs) == {2e-4}
    learn.fit_semantic_diversity(1)
    assert learn.recorder.lrs[0] == 1e-3
    assert learn.recorder.lrs[-1] < 5e-4
    with pytest.raises(ValueError, match="unknown schedule 'cosine': use constant or annealed"):
        learn.fit_semantic_diversity(1, schedule='cosine')


def test_the_phase_refuses_a_model_without_region_features(dls, arch):
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(dls, arch, pretrained=False, hidden=32, sfb=False)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='sfb=True'):
        learn.fit_semantic_diversity(1)


class Parts(Callback):
    "The parts of each training batch, as an obvious list"
    order = LossParts.order + 1
    def before_fit(self): self.rows = []
    def after_loss(self):
        if self.training: self.rows.append({k: float(v) for k, v in self.learn.loss_func.last.items()})


@pytest.mark.slow
def test_columns_are_the_epochs_means(learn):
    import pandas as pd
    parts = Parts()
    learn.fit(1, cbs=parts)
    expected = pd.DataFrame(parts.rows).mean()
    history = learn.loss_parts.history
    assert len(history) == 1
    pd.testing.assert_series_equal(history.iloc[0][expected.index], expected, check_names=False, rtol=1e-4,
                                   check_dtype=False)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row['id'] == pytest.approx(expected[['global_cls', 'sab_cls', 'sfb_cls']].sum(), rel=1e-4)
    assert row['triplet'] == pytest.approx(expected[['global_tri', 'sfb_tri']].sum(), rel=1e-4)
    assert row['mask'] == pytest.approx(expected['mask'], rel=1e-4)
    assert row['sd'] == pytest.approx(expected['sd'], rel=1e-4)


@pytest.mark.slow
def test_columns_stay_one_set_over_fits(learn):
    learn.fit(1); learn.fit(1)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'id', 'triplet', 'mask', 'sd', 'valid_mask_loss', 'R1', 'mAP', 'time']


def test_callbacks_come_before_types_are_cast_and_precision_is_lowered():
    from fastai.vision.all import CastToTensor, MixedPrecision
    assert TeacherMasks.order < RegionOcclusion.order < CastToTensor.order < MixedPrecision.order


@pytest.mark.slow
def test_validation_every_second_epoch_and_the_last(learn):
    learn.fit(3, cbs=ValidateEvery(2))
    at = list(learn.recorder.metric_names[1:-1]).index('mAP')
    assert [row[at] is not None for row in learn.recorder.values] == [False, True, True]
    assert all(len(row) == len(learn.recorder.metric_names) - 2 and row[1] > 0
               for row in learn.recorder.values), 'losses stay in their columns'
    with pytest.raises(ValueError, match='n=0'): ValidateEvery(0)


class Precision(Callback):
    "Precision in which the model runs, and what leaves it"
    order = CPUBfloat16.order + 1
    def before_fit(self): self.inside, self.outside, self.out = set(), set(), set()
    def before_batch(self): self.inside.add(torch.is_autocast_enabled('cpu'))
    def after_pred(self): self.outside.add(torch.is_autocast_enabled('cpu')); self.out |= {o.dtype for o in self.pred}


@pytest.mark.slow
def test_bfloat16_ends_before_the_loss_and_leaves_float32(learn):
    seen = Precision()
    learn.fit(1, cbs=[CPUBfloat16(), seen])
    assert (seen.inside, seen.outside, seen.out) == ({True}, {False}, {torch.float32})
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_a_cancelled_batch_does_not_stay_in_bfloat16():
    cb = CPUBfloat16()
    cb.before_batch()
    assert torch.is_autocast_enabled('cpu')
    cb.after_cancel_batch(); cb.after_cancel_batch()
    assert not torch.is_autocast_enabled('cpu')


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(catalog, tmp_path, arch):
    # A bfloat16 keeps 8 bits: each layer's output is off by up to 0.4 %, and 18 steps of Adam on such gradients
    # drift apart. Measured: the mean losses of an epoch differ by 0.8 % at most, while those of identities and
    # masks fall by 30 %; 4 % leaves room for other machines' kernels
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    final = []
    for cbs in ([], [CPUBfloat16()]):
        torch.manual_seed(0)
        dls = ReIDDataLoaders.from_df(catalog, path=tmp_path, size=(64, 32), bs=16, n_per_id=2, pad=0, flip=0, erase=0,
                                      num_workers=0)
        learn = magnifier_learner(dls, arch, pretrained=False, hidden=32)
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, cbs=[ValidateEvery(9), *cbs])
        final.append(learn.loss_parts.history[['global_cls', 'sfb_cls', 'mask']])
    assert (final[0].iloc[-1] < final[0].iloc[0]).all()
    assert (final[1].iloc[-1] < final[1].iloc[0]).all()
    assert ((final[0] - final[1]).abs().max() < .04*final[0].max()).all()


def test_bfloat16_pays_where_the_cpu_says_so(monkeypatch):
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not bfloat16_pays()
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True, raising=False)
    assert bfloat16_pays()


def test_the_baselines_rates():
    rate = lambda epoch: warmup_milestones(epoch, 3.5e-4)
    assert rate(0) == pytest.approx(3.5e-6)
    assert rate(1) == pytest.approx(3.5e-4*.109)
    assert rate(5) == pytest.approx(3.5e-4*.505)
    assert rate(9) == pytest.approx(3.5e-4*.901)
    assert rate(10) == rate(39) == pytest.approx(3.5e-4)
    assert rate(40) == rate(69) == pytest.approx(3.5e-5)
    assert rate(70) == rate(119) == pytest.approx(3.5e-6)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 20), st.floats(.001, 1),
       st.lists(st.integers(1, 150), max_size=4).map(sorted), st.floats(.01, 1))
def test_rates_are_those_of_an_obvious_loop(epoch, warmup, start, milestones, decay):
    expected = 2.
    for m in milestones:
        if epoch >= m: expected *= decay
    if epoch < warmup: expected *= start*(1 - epoch/warmup) + epoch/warmup
    assert warmup_milestones(epoch, 2., warmup=warmup, start=start, milestones=milestones,
                             decay=decay) == pytest.approx(expected)


class Rates(Callback):
    order, run_valid = 61, False
    def __init__(self): self.seen = []

    def before_batch(self): self.seen.append((self.epoch, [h['lr'] for h in self.opt.hypers]))


def test_every_batch_of_an_epoch_has_its_rate(small_learn):
    learn, schedule, rates = small_learn, WarmupMilestones(.01, warmup=2, milestones=(3,)), Rates()
    learn.fit(4, 1., cbs=[schedule, rates])
    n = len(learn.dls.train)
    assert [e for e, _ in rates.seen] == [e for e in range(4) for _ in range(n)]
    for epoch, lrs in rates.seen: assert set(lrs) == {schedule.rate(epoch)}  # every parameter group
    assert learn.recorder.hps['lr'] == [schedule.rate(e) for e, _ in rates.seen] == learn.recorder.lrs


# torch's own tracing looks at gradients that are not there
COMPILED = pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')


@pytest.fixture
def quick_compiler(monkeypatch):
    "Traced as ever, but run as it is: no C++ is made"
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(nn.Module.compile, backend='eager'))


class Seen(Callback):
    "How each step was made"
    order, run_valid = 0, False
    def __init__(self): self.steps = []

    def after_loss(self):
        model, kernel = self.learn.model, self.learn.model.backbone.state_dict()['layer1.0.conv1.weight']
        self.steps.append((model._compiled_call_impl is not None,
                           kernel.is_contiguous(memory_format=torch.channels_last), self.learn.loss_grad.dtype))


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiler')
@COMPILED
@pytest.mark.parametrize('pays', [True, False])
def test_fits_inside_are_fast_and_the_learner_is_plain_afterwards(small_learn, monkeypatch, pays):
    monkeypatch.setattr(callbacks, 'bfloat16_pays', lambda: pays)
    seen, cbs = Seen(), list(small_learn.cbs)
    with fast_training(small_learn):
        assert hasattr(small_learn, 'cpu_bfloat16') == pays
        small_learn.fit(1, cbs=[seen])
    assert seen.steps
    assert set(seen.steps) == {(True, True, torch.float32)}
    assert list(small_learn.cbs) == cbs
    assert not hasattr(small_learn, 'cpu_bfloat16')
    assert small_learn.model._compiled_call_impl is None
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in small_learn.model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiler')
@COMPILED
def test_a_compiled_training_is_the_plain_one(small, how, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, 'bfloat16_pays', lambda: False)
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    plain, quick = (train_run(small, 'one_cycle', tmp_path/name, epochs=2, fast=name == 'b', **how) for name in 'ab')
    for (name, a), b in zip(plain.learn.model.state_dict().items(), quick.learn.model.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-3, rtol=1e-2), name
    assert json.loads((tmp_path/'b/run.json').read_text())['arguments']['fast'] is True
    with pytest.raises(ValueError, match='fast=True, and now it is False'):
        train_run(small, 'one_cycle', tmp_path/'b', epochs=2, resume=True, **how)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compiler')
@COMPILED
def test_an_error_leaves_the_learner_plain(small_learn):
    with pytest.raises(KeyError), fast_training(small_learn): raise KeyError
    assert not hasattr(small_learn, 'cpu_bfloat16')
    assert small_learn.model._compiled_call_impl is None
