"Recipes: what they fit, found without training, and what their numbers are"
import subprocess
import sys

import pytest
import torch
from fastai.callback.schedule import ParamScheduler

from magnifier.train import callbacks
from magnifier.train.callbacks import SemanticDiversityPhase, WarmupMilestones, stage_callbacks
from magnifier.train.learner import OPTIMISERS
from magnifier.train.recipes import RECIPES, Stage, recipe

PAPER, BASELINE = RECIPES['paper'], RECIPES['baseline']


def test_the_papers_two_stages():
    one, two = PAPER.plan()
    assert one == Stage(460, 3.5e-4, 'steps', warmup=10, milestones=(40, 70), rank_every=20)
    assert two == Stage(40, 1e-3, 'annealed', diversity_from=0., rank_every=20)
    assert (one.diversity_epoch, two.diversity_epoch, two.gamma) == (None, 0, 2e-3)


def test_the_diversity_loss_goes_where_it_is_asked_for():
    starts = lambda stages: [stage.diversity_epoch for stage in stages]
    assert starts(PAPER.plan(diversity=False)) == [None, None]
    assert starts(BASELINE.plan()) == [None]
    assert starts(BASELINE.plan(diversity=True)) == [70]
    assert starts(RECIPES['quick'].plan()) == [13]
    assert starts(RECIPES['one_cycle'].plan(12)) == [10]
    assert starts(RECIPES['one_cycle'].plan(1)) == [None]  # no "from epoch 2 on" in a training of one epoch


def test_the_baselines_120_epochs():
    assert BASELINE.plan() == [Stage(120, 3.5e-4, 'steps', warmup=10, milestones=(40, 70), diversity_from=1.,
                                     rank_every=10)]
    half, = BASELINE.plan(60)
    assert (half.epochs, half.warmup, half.milestones) == (60, 5, (20, 35))


@pytest.mark.parametrize('epochs, first, second, warmup, milestones', [
    (500, 460, 40, 10, (40, 70)), (250, 230, 20, 10, (40, 70)), (130, 120, 10, 10, (40, 70)), (65, 60, 5, 5, (20, 35)),
    (5, 4, 1, 0, (1, 2)), (2, 1, 1, 0, (1, 1))])
def test_shorter_papers(epochs, first, second, warmup, milestones):
    one, two = PAPER.plan(epochs)
    assert (one.epochs, two.epochs) == (first, second)
    assert (one.warmup, one.milestones) == (warmup, milestones)


def test_one_epoch_is_one_stage(): assert [stage.epochs for stage in PAPER.plan(1)] == [1]


def test_what_is_given_holds_as_it_is():
    one, two = PAPER.plan(50, milestones=(40,), warmup=3, lr=1e-3, second_lr=2e-4, second_schedule='annealed',
                          gamma=.01, rank_every=7)
    assert one == Stage(46, 1e-3, 'steps', warmup=3, milestones=(40,), gamma=.01, rank_every=7)
    assert two == Stage(4, 2e-4, 'annealed', diversity_from=0., gamma=.01, rank_every=7)


def test_the_second_stage_can_go_on_at_the_decayed_rate():
    assert PAPER.plan(second_lr=0)[1].lr == pytest.approx(3.5e-6)
    assert PAPER.plan(milestones=(40,), second_lr=0)[1].lr == pytest.approx(3.5e-5)  # CUHK03, by the authors


@pytest.mark.parametrize('how, message', [
    (dict(epochs=0), 'epochs=0: train one or more'), (dict(lr=-1.), 'a rate is positive'),
    (dict(warmup=-1), '0 or more epochs'),
    (dict(milestones=(70, 40)), 'in order'),
    (dict(schedule='flat'), "unknown schedule 'flat': use one of constant, annealed"),
    (dict(gamma=-1.), 'gamma=-1.0: a weight is zero or positive'), (dict(rank_every=0), 'rank_every=0')])
def test_what_is_no_training_is_refused(how, message):
    with pytest.raises(ValueError, match=message): PAPER.plan(**how)


def test_a_recipe_of_one_stage_has_no_second_rate():
    with pytest.raises(ValueError, match='this recipe has a single stage'): RECIPES['quick'].plan(second_lr=1e-3)


@pytest.mark.parametrize('name', ['paper', 'baseline'])
def test_the_papers_numbers(name):
    plan = RECIPES[name]
    assert plan.loading == dict(size=(384, 192), bs=64, n_per_id=4, cache='disk')
    assert (plan.model['arch'], plan.model['opt_func']) == ('resnet50', 'adam')


def test_their_adam_is_torchs():
    a, b = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours, torchs = OPTIMISERS['adam']([a], lr=.01, wd=5e-4), torch.optim.Adam([b], lr=.01, weight_decay=5e-4)
    for step in range(20):
        for p, opt in ((a, ours), (b, torchs)):
            opt.zero_grad()
            ((p - step)**2).sin().sum().backward()
            opt.step()
    assert torch.allclose(a, b, atol=1e-6)


def test_stages_in_words():
    one, two = PAPER.plan()
    assert str(one) == ('460 epochs, rate 0.00035, linear warm-up over 10 epochs, x 0.1 from epoch 41 and 71 on, '
                        'ranked every 20 epochs')
    assert str(two) == '40 epochs, rate 0.001, falling to 0, semantic diversity loss x 0.002, ranked every 20 epochs'
    assert (str(Stage(1, .01, 'one_cycle', diversity_from=.8))
            == '1 epoch, rate 0.01, one cycle with that rate at its top')
    assert (str(Stage(2, .01, 'annealed', diversity_from=.5))
            == '2 epochs, rate 0.01, falling to 0, semantic diversity loss x 0.002 from epoch 2 on')


def test_a_model_without_sfb_has_no_diversity_loss(learn, dls, arch):
    from magnifier.train.learner import magnifier_learner
    assert learn.plan('paper', 4)[1].diversity_epoch == 0
    plain = magnifier_learner(dls, arch, pretrained=False, hidden=32, sfb=False)
    assert plain.plan('paper', 4)[1].diversity_epoch is None


def rates(learn, stage):
    "Rates of a stage's batches, as its schedule gives them"
    learn.fit(stage.epochs, stage.lr,
              cbs=[cb for cb in stage_callbacks(stage, learn) if isinstance(cb, ParamScheduler)])
    return learn.recorder.lrs


def test_one_cycle_is_fastais(small_learn):
    got = rates(small_learn, Stage(2, .01, 'one_cycle'))
    small_learn.fit_one_cycle(2, .01)
    assert got == pytest.approx(small_learn.recorder.lrs)


def test_annealed_falls_to_nothing(small_learn):
    got = rates(small_learn, Stage(2, .01, 'annealed'))
    assert got[0] == .01
    assert got == sorted(got, reverse=True)
    assert got[-1] < .002


def test_a_stage_becomes_its_callbacks(small_learn):
    schedule, = stage_callbacks(Stage(9, .01, 'steps', warmup=2, milestones=(3,)), small_learn)
    assert isinstance(schedule, WarmupMilestones)
    assert [schedule.rate(e) for e in (0, 2, 3)] == pytest.approx([1e-4, .01, .001])
    phase, = stage_callbacks(Stage(10, .01, diversity_from=.7, gamma=.5), small_learn)
    assert isinstance(phase, SemanticDiversityPhase)
    assert (phase.gamma, phase.start_epoch) == (.5, 7)
    assert stage_callbacks(Stage(10, .01), small_learn) == []


@pytest.mark.parametrize('pays', [True, False])
def test_bfloat16_is_a_stages_choice_where_it_pays(small_learn, monkeypatch, pays):
    monkeypatch.setattr(callbacks, 'bfloat16_pays', lambda: pays)
    asked = stage_callbacks(Stage(1, .01, bfloat16=True), small_learn)
    assert [cb.name for cb in asked] == ['cpu_bfloat16']*pays
    assert stage_callbacks(Stage(1, .01, channels_last=True), small_learn) == []


def test_recipes_by_name():
    assert recipe('quick') is RECIPES['quick']


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match="unknown recipe 'fast': use one of quick, light, one_cycle, baseline, paper"):
        recipe('fast')


def test_recipes_are_read_without_heavy_imports():
    code = 'import sys, magnifier.train.recipes; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'fastai', 'pandas', 'numpy'} & set(loaded)
