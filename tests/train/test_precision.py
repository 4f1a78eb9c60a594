"Training at the hardware's pace changes what the hardware does, and nothing of the learner that comes out"
import json
from functools import partialmethod

import pytest
import torch
from torch import nn
from fastai.vision.all import Callback
from magnifier.train import callbacks as precision
from magnifier.train.callbacks import fast_training
from magnifier.train.runs import train_run

# torch's own tracing looks at it
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')]


@pytest.fixture(autouse=True)
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


@pytest.mark.parametrize('pays', [True, False])
def test_fits_inside_are_fast_and_the_learner_is_plain_afterwards(small_learn, monkeypatch, pays):
    monkeypatch.setattr(precision, 'bfloat16_pays', lambda: pays)
    seen, cbs = Seen(), list(small_learn.cbs)
    with fast_training(small_learn):
        assert hasattr(small_learn, 'cpu_bfloat16') == pays
        small_learn.fit(1, cbs=[seen])
    assert seen.steps and set(seen.steps) == {(True, True, torch.float32)}
    assert list(small_learn.cbs) == cbs
    assert not hasattr(small_learn, 'cpu_bfloat16')
    assert small_learn.model._compiled_call_impl is None
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in small_learn.model.parameters())


def test_a_compiled_training_is_the_plain_one(small, how, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, 'bfloat16_pays', lambda: False)
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    plain, quick = (train_run(small, 'one_cycle', tmp_path/name, epochs=2, fast=name == 'b', **how) for name in 'ab')
    for (name, a), b in zip(plain.learn.model.state_dict().items(), quick.learn.model.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-3, rtol=1e-2), name
    assert json.loads((tmp_path/'b/run.json').read_text())['arguments']['fast'] is True
    with pytest.raises(ValueError, match='fast=True, and now it is False'):
        train_run(small, 'one_cycle', tmp_path/'b', epochs=2, resume=True, **how)


def test_an_error_leaves_the_learner_plain(small_learn):
    with pytest.raises(KeyError), fast_training(small_learn): raise KeyError
    assert not hasattr(small_learn, 'cpu_bfloat16') and small_learn.model._compiled_call_impl is None
