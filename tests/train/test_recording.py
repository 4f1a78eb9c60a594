"A training step does not ask the device for a number; what is written down is what fastai would have"
import pytest
import torch
from fastai.vision.all import (AvgSmoothLoss, Callback, CancelFitException, CancelValidException, DataLoader,
                               DataLoaders, Recorder)
from magnifier.model import pooling
from magnifier.train.learner import ReIDLearner
from magnifier.train.recording import CalmProgress, DeviceRecorder, DeviceSmoothLoss
from torch.utils._python_dispatch import TorchDispatchMode


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
    monkeypatch.setattr('magnifier.model.pooling._max_by_region', pooling._max_dense)


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


def test_no_step_asks(learn, blind):
    steps = fit(learn)
    assert (steps.asked, steps.copies) == ([], []) and len(learn.recorder.losses) > 4


def test_the_bar_asks_once_a_second(dls, blind, monkeypatch, capsys):
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=16)
    assert isinstance(learn.progress, CalmProgress) and isinstance(learn.recorder, DeviceRecorder)
    monkeypatch.setattr(CalmProgress, 'every', 1e9)
    steps = fit(learn)
    assert steps.asked == ['_local_scalar_dense'] and steps.copies == []
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
    assert line.recorder.fetched == len(line.recorder.losses) >= 2


def test_before_anything_the_smoothed_loss_is_zero():
    smooth = DeviceSmoothLoss()
    smooth.reset()
    assert float(smooth.value) == 0.


def test_an_epoch_that_is_passed_over_leaves_no_row(line):
    line.fit(3, 1e-3, start_epoch=2)
    assert len(line.recorder.values) == len(line.recorder.iters) == 1
