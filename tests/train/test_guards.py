"""A loss that is no number is found at its batch, on a CPU at once and on a device when its answer comes;
Ctrl-C ends after the batch"""
import os
import signal
import threading

import pytest
import torch
from fastai.vision.all import Callback
from magnifier.train import guards
from magnifier.train.guards import NonFiniteLoss, StopAtNonFinite, StopByKeyboard


class Spoil(Callback):
    "Makes one batch's pictures no numbers"
    def __init__(self, epoch, step, value=torch.nan): self.spoilt, self.value = (epoch, step), value

    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.spoilt:
            self.learn.xb = (self.xb[0]*self.value, *self.xb[1:])


class Later:
    "An answer of a device that is `lag` questions behind"
    asked, waited = 0, 0
    def __init__(self, lag): Later.asked += 1; self.due = Later.asked + lag

    def query(self): return Later.asked >= self.due

    def synchronize(self):
        if not self.query(): Later.waited += 1


@pytest.mark.parametrize('lag', [0, 1, 2, 100])
def test_a_late_answer_finds_the_same_batch(small_learn, monkeypatch, tmp_path, lag):
    Later.asked = Later.waited = 0
    monkeypatch.setattr(guards, '_asked', lambda answer: (answer, Later(lag)))
    guard = StopAtNonFinite(tmp_path/'bad.pth')
    with pytest.raises(NonFiniteLoss, match='in epoch 0, batch 1') as e: small_learn.fit(2, cbs=[guard, Spoil(0, 1)])
    assert ('or this one,' in str(e.value)) == (lag > 0), 'a step was done on that batch before its answer came'
    assert torch.load(tmp_path/'bad.pth', weights_only=True)['step'] == 1
    assert (Later.waited > 0) == (lag > 2)  # at the epoch's end, for what has not come


def test_few_batches_are_held_however_far_the_device_is_behind(small_learn, monkeypatch, tmp_path):
    Later.asked = Later.waited = 0
    monkeypatch.setattr(guards, '_asked', lambda answer: (answer, Later(10**6)))
    monkeypatch.setattr(guards, '_MOST_WAITING', 2)
    guard, held = StopAtNonFinite(tmp_path/'bad.pth'), []
    class Held(Callback):
        order, run_valid = guard.order + 1, False
        def after_loss(self): held.append(len(guard.waiting))
    small_learn.fit(1, cbs=[guard, Held()])
    assert held == [1, 2, 2, 2] and not guard.waiting


def test_a_training_of_numbers_goes_on(small_learn, tmp_path):
    small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth')])
    assert not (tmp_path/'bad.pth').exists()


def test_weights_that_are_no_numbers_are_named(small_learn, tmp_path):
    with torch.no_grad(): small_learn.model.backbone.layer3[0].conv1.weight[0, 0, 1, 1] = torch.inf
    with pytest.raises(NonFiniteLoss,
                       match='the weights are not finite either, first of all .*layer3.0.conv1.weight') as e:
        small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'new/bad.pth')])
    assert isinstance(e.value, ValueError) and 'try a lower rate' in str(e.value) and (tmp_path/'new/bad.pth').exists()


def test_the_step_that_would_spoil_the_weights_is_not_made(small_learn, tmp_path):
    with pytest.raises(NonFiniteLoss): small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth'), Spoil(0, 2)])
    assert all(torch.isfinite(p).all() for p in small_learn.model.parameters())


def test_infinite_is_no_number(small_learn, tmp_path, monkeypatch):
    loss = type(small_learn.loss_func).__call__
    monkeypatch.setattr(type(small_learn.loss_func), '__call__', lambda self, *args: loss(self, *args) + torch.inf)
    with pytest.raises(NonFiniteLoss, match='the loss is inf in epoch 0, batch 0'):
        small_learn.fit(1, cbs=[StopAtNonFinite(tmp_path/'bad.pth')])


def press(): os.kill(os.getpid(), signal.SIGINT)


def test_the_second_ctrl_c_is_at_once():
    said = []
    with pytest.raises(KeyboardInterrupt), StopByKeyboard(said.append):
        press()
        assert len(said) == 1
        press()
        raise AssertionError('not reached')
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_asked_after_the_last_batch_it_still_ends():
    with pytest.raises(KeyboardInterrupt), StopByKeyboard(lambda text: None): press()


def test_a_worker_that_the_same_ctrl_c_hit_is_no_error():
    with pytest.raises(KeyboardInterrupt) as e, StopByKeyboard(lambda text: None):
        press()
        raise RuntimeError('DataLoader worker (pid 1) exited unexpectedly')
    assert 'worker' in str(e.value.__cause__)


def test_errors_pass():
    with pytest.raises(RuntimeError, match='mine'), StopByKeyboard(): raise RuntimeError('mine')
    with pytest.raises(ValueError, match='mine'), StopByKeyboard(lambda text: None):
        press()
        raise ValueError('mine')


def test_outside_the_main_thread_it_does_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []
    def inside():
        with StopByKeyboard(): seen.append(signal.getsignal(signal.SIGINT))
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before] and signal.getsignal(signal.SIGINT) is before
