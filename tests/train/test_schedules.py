"Rates by the formula, written out by hand, and as a training sees them"
import pytest
from fastai.vision.all import Callback
from hypothesis import given, settings, strategies as st
from magnifier.train.schedules import WarmupMilestones, warmup_milestones


def test_the_baselines_rates():
    rate = lambda epoch: warmup_milestones(epoch, 3.5e-4)
    assert rate(0) == pytest.approx(3.5e-6)
    assert rate(1) == pytest.approx(3.5e-4*.109)
    assert rate(5) == pytest.approx(3.5e-4*.505)
    assert rate(9) == pytest.approx(3.5e-4*.901) and rate(10) == rate(39) == pytest.approx(3.5e-4)
    assert rate(40) == rate(69) == pytest.approx(3.5e-5) and rate(70) == rate(119) == pytest.approx(3.5e-6)


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
