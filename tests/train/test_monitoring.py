"""A training step does not ask the device for a number; what is written down is what fastai would have. A loss that is
no number is found at its batch, on a CPU at once and on a GPU a batch later; trackers follow a metric where it was
measured"""
import pytest
import torch
from fastai.vision.all import (AvgSmoothLoss, Callback, CancelFitException, CancelValidException, CutMix, DataLoader,
                               DataLoaders, EarlyStoppingCallback, MixUp, Recorder, ReduceLROnPlateau,
                               SaveModelCallback)
from torch.utils._python_dispatch import TorchDispatchMode

from magnifier.model import pooling
from magnifier.train import monitoring
from magnifier.train.callbacks import ValidateEvery
from magnifier.train.learner import ReIDLearner, magnifier_learner
from magnifier.train.monitoring import CalmProgress, DeviceRecorder, LossParts, NonFiniteLoss, StopAtNonFinite

TRACKERS = (SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau)


class Asked(TorchDispatchMode):
    "Counts what would make a GPU's queue empty: a number or a shape that depends on values, a copy to the CPU"
    WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2')
    def __init__(self): super().__init__(); self.found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[-1]
        if name in self.WAITS or name == 'index' and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    "What training steps ask for, from the batch's start to the end of everybody's work on it"
    order = -100
    def __init__(self, monkeypatch): self.patch, self.copies, self.mode = monkeypatch, [], None
    def before_batch(self):
        if not self.training: return
        self.mode = Asked()
        self.mode.__enter__()
        for name in ('tolist', 'cpu', 'numpy'):
            was = getattr(torch.Tensor, name)
            self.patch.setattr(torch.Tensor, name,
                               lambda t, *a, was=was, name=name, **kw: self.copies.append(name) or was(t, *a, **kw))


class Over(Callback):
    "The end of the batch; nothing is validated"
    order = 1000
    def before_validate(self): raise CancelValidException
    def after_batch(self):
        steps = self.learn.steps
        if steps.mode is None: return
        steps.mode.__exit__(None, None, None)
        steps.asked = getattr(steps, 'asked', []) + steps.mode.found
        steps.mode = None
        steps.patch.undo()


@pytest.fixture
def blind(monkeypatch):
    """On a CPU the model looks at labels, to name one that is wrong, and at how sparse masks are; here it goes
    the way that it goes on a GPU"""
    monkeypatch.setattr('magnifier.model.net._check_masks', lambda masks, logits: masks)
    monkeypatch.setattr('magnifier.model.pooling.max_by_region',
                        lambda maps, masks: pooling._max_dense(maps.flatten(2), masks.flatten(2)))


@pytest.fixture
def line(tmp_path):
    "A learner of a straight line"
    g = torch.Generator().manual_seed(0)
    items = [(torch.randn(3, generator=g), torch.randn(1, generator=g)) for _ in range(40)]
    learn = ReIDLearner(DataLoaders(*(DataLoader(items, bs=4, num_workers=0) for _ in range(2)), path=tmp_path),
                        torch.nn.Linear(3, 1), torch.nn.functional.mse_loss)
    with learn.no_bar(), learn.no_logging(): yield learn


def fit(learn, *cbs):
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        learn.fit(1, 1e-3, cbs=[steps, Over(), *cbs])
    return steps


@pytest.mark.slow
def test_no_step_asks(learn, blind):
    steps = fit(learn)
    assert (steps.asked, steps.copies) == ([], [])
    assert len(learn.recorder.losses) > 4


@pytest.mark.slow
def test_the_bar_asks_once_a_second(dls, blind, monkeypatch, capsys, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, hidden=16)
    assert isinstance(learn.progress, CalmProgress)
    assert isinstance(learn.recorder, DeviceRecorder)
    monkeypatch.setattr(CalmProgress, 'every', 1e9)
    steps = fit(learn)
    assert steps.asked == ['_local_scalar_dense']
    assert steps.copies == []
    with learn.no_bar(): assert not hasattr(learn, 'progress')
    assert type(learn.progress) is CalmProgress


def test_the_counter_counts(line):
    class Hasty(Callback):
        order = 60
        def after_batch(self): self.learn.loss.item()
    assert set(fit(line, Hasty()).asked) == {'_local_scalar_dense'}


class Both(Callback):
    "fastai's own smoothed loss beside"
    order = Recorder.order + 1
    def __init__(self): self.smooth, self.values = AvgSmoothLoss(), []
    def before_fit(self): self.smooth.reset()
    def after_batch(self):
        if self.training: self.smooth.accumulate(self.learn); self.values.append(float(self.smooth.value))


def test_losses_are_fastais(line):
    both = Both()
    line.fit(2, 1e-3, cbs=both)
    assert [float(v) for v in line.recorder.losses] == pytest.approx(both.values, rel=1e-5)
    assert line.recorder.values[-1][0] == pytest.approx(both.values[-1], rel=1e-5)
    assert line.recorder.iters[-1] == len(both.values)
    assert all(v.device.type == 'cpu' and v.ndim == 0 for v in line.recorder.losses)


def test_a_cancelled_fit_has_its_losses(line):
    class Stop(Callback):
        def after_batch(self):
            if self.iter == 2: raise CancelFitException
    line.fit(1, cbs=Stop())
    assert len(line.recorder.losses) == 2  # the third one ended before its record
    assert all(torch.isfinite(loss) for loss in line.recorder.losses)


def test_an_epoch_that_is_skipped_leaves_no_row(line):
    line.fit(3, 1e-3, start_epoch=2)
    assert len(line.recorder.values) == len(line.recorder.iters) == 1


class Spoil(Callback):
    "Makes one batch's pictures no numbers"
    def __init__(self, epoch, step, value=torch.nan): self.spoilt, self.value = (epoch, step), value

    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.spoilt:
            self.learn.xb = (self.xb[0]*self.value, *self.xb[1:])


class Later:
    "An event of a device, whose answer is read at the next batch"
    waited = 0

    def synchronize(self): Later.waited += 1


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize('step', [1, 3])
def test_a_late_answer_finds_the_same_batch(small_learn, monkeypatch, tmp_path, late, step):
    monkeypatch.setattr(Later, 'waited', 0)
    if late: monkeypatch.setattr(monitoring, '_copied', lambda answer: (answer, Later()))
    guard = StopAtNonFinite(tmp_path/'bad.pth')
    with pytest.raises(NonFiniteLoss, match=f'in epoch 0, batch {step}') as e:
        small_learn.fit(2, cbs=[guard, Spoil(0, step)])
    assert ('or this one,' in str(e.value)) == late, 'a step was done on that batch before its answer was read'
    assert torch.load(tmp_path/'bad.pth', weights_only=True)['step'] == step
    assert Later.waited == late*(step + 1)
    assert guard.batch is None


def test_a_training_of_numbers_goes_on(small_learn, tmp_path):
    small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth')])
    assert not (tmp_path/'bad.pth').exists()


def test_weights_that_are_no_numbers_are_named(small_learn, tmp_path):
    with torch.no_grad(): small_learn.model.backbone.layer3[0].conv1.weight[0, 0, 1, 1] = torch.inf
    with pytest.raises(NonFiniteLoss,
                       match='the weights are not finite either, first of all .*layer3.0.conv1.weight') as e:
        small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'new/bad.pth')])
    assert isinstance(e.value, ValueError)
    assert 'try a lower rate' in str(e.value)
    assert (tmp_path/'new/bad.pth').exists()


def test_the_step_that_would_spoil_the_weights_is_not_made(small_learn, tmp_path):
    with pytest.raises(NonFiniteLoss): small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth'), Spoil(0, 2)])
    assert all(torch.isfinite(p).all() for p in small_learn.model.parameters())


def test_infinite_is_no_number(small_learn, tmp_path, monkeypatch):
    loss = type(small_learn.loss_func).__call__
    monkeypatch.setattr(type(small_learn.loss_func), '__call__', lambda self, *args: loss(self, *args) + torch.inf)
    with pytest.raises(NonFiniteLoss, match='the loss is inf in epoch 0, batch 0'):
        small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth')])


class Figures(Callback):
    "Puts known figures into the mAP column, epoch by epoch; None where there is none"
    order = LossParts.order + 1

    def __init__(self, *values): self.values = values

    def after_validate(self): self.recorder.log[list(self.recorder.metric_names).index('mAP')] = self.values[self.epoch]


@pytest.mark.parametrize('tracker', TRACKERS)
@pytest.mark.parametrize('make', [lambda tracker: tracker(), lambda tracker: tracker])
def test_without_a_monitor_they_are_refused_before_anything_is_trained(small_learn, tracker, make):
    with pytest.raises(ValueError,
                       match=rf"{tracker.__name__} would monitor valid_loss.*use {tracker.__name__}\(monitor='mAP'\)"):
        small_learn.fit(1, cbs=make(tracker))
    assert not hasattr(small_learn.recorder, 'lrs')


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_identities_are_refused(small_learn, mix):
    with pytest.raises(ValueError, match=f'{mix.__name__} mixes images.*erase=0.5'): small_learn.fit(1, cbs=mix())


@pytest.mark.slow
def test_the_best_epoch_is_saved_and_loaded_and_missing_figures_are_skipped(small_learn):
    save, weights = SaveModelCallback(monitor='mAP'), []

    class Weights(Callback):
        order = 99
        def after_epoch(self): weights.append(self.learn.model.backbone.conv1.weight.detach().clone())

    small_learn.fit(5, 1e-3, cbs=[save, Weights(), Figures(None, .2, .6, None, .4)])
    assert save.best == .6
    assert torch.equal(small_learn.model.backbone.conv1.weight, weights[2])


@pytest.mark.slow
def test_patience_counts_measured_epochs_alone(small_learn):
    stop = EarlyStoppingCallback(monitor='mAP', patience=2)
    small_learn.fit(6, 1e-3, cbs=[stop, Figures(.5, None, .4, None, .3, .9)])
    assert len(small_learn.recorder.values) == 5  # the second epoch that is worse is the fifth


@pytest.mark.slow
def test_a_plateau_is_of_measured_epochs_alone(small_learn):
    small_learn.fit(5, 1e-3,
                    cbs=[ReduceLROnPlateau(monitor='mAP', patience=2, factor=10), Figures(.5, None, .4, .3, .3)])
    last = small_learn.recorder.lrs[::4]
    assert last == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-4])


def test_validation_every_second_epoch_goes_with_a_tracker(small_learn):
    save = SaveModelCallback(monitor='mAP')
    small_learn.fit(3, 1e-3, cbs=[save, ValidateEvery(2)])
    assert 0 < save.best <= 1


def test_where_nothing_was_ever_measured_nothing_is_loaded(small_learn):
    small_learn.fit(2, 1e-3, cbs=[SaveModelCallback(monitor='mAP'), Figures(None, None)])
    assert not (small_learn.path/'models/model.pth').exists()


def test_without_a_mask_module_there_is_no_validation_loss(small, how, small_learn):
    learn = magnifier_learner(small_learn.dls, **{**how['model'], 'mask': False, 'sab': False, 'sfb': False})
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert (list(learn.recorder.metric_names)
            == ['epoch', 'train_loss', 'id', 'triplet', 'mask', 'sd', 'R1', 'mAP', 'time'])
    assert len(learn.recorder.values[-1]) == 7


def test_the_validation_mask_loss_is_the_mask_loss_of_the_validation_images(small_learn):
    small_learn.fit(1)
    row = dict(zip(small_learn.recorder.metric_names[1:], small_learn.recorder.values[-1]))
    parts = []

    class Parts(Callback):
        def after_loss(self): parts.append(float(self.learn.loss_func.last['mask']))

    small_learn.validate(cbs=Parts())
    assert row['valid_mask_loss'] == pytest.approx(sum(parts)/len(parts), rel=1e-4)
