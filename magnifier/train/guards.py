"Guards of a training: a loss that is NaN or infinite, Ctrl-C, and trackers of metrics that are missing in some epochs"
import logging
import math
import signal
import threading
from collections import deque
from pathlib import Path

import torch
from fastai.callback.mixup import MixHandler
from fastai.callback.tracker import TrackerCallback
from fastai.vision.all import Callback
from magnifier.files import aside
from magnifier.train.recording import LossParts

__all__ = ['NonFiniteLoss', 'StopAtNonFinite']

log = logging.getLogger(__name__)
_MOST_WAITING = 16  # Batches a GPU may be ahead of the check; each is held in memory until its loss is known


class NonFiniteLoss(ValueError):
    "The loss of a training is NaN or infinite"
    def __init__(self,
        message: str,  # Where, which parts, and what to try
    ):
        super().__init__(message)
        self.message = message

    def __str__(self): return self.message  # fastai puts the callback's name into `args`


class StopAtNonFinite(Callback):
    """Stops a training at the first batch with a NaN or infinite loss, and saves that batch in a file.

    On a CPU the loss is checked before the step, so the weights are still those that gave it. On a GPU, this check
    would make every step wait for the device. There, the result is copied while the device continues and checked when
    the copy is done, one or two batches later. The batch is kept until then, and an epoch ends only when all results
    are checked."""
    order, run_valid = LossParts.order + 1, False
    def __init__(self,
        file='nonfinite.pth',  # Where the batch goes; `torch.load(file)` reads it
    ):
        self.file = Path(file)

    def before_fit(self):
        "Starts without waiting results"
        self.waiting = deque()

    def after_loss(self):
        "Starts the check of this batch, and reads the results that have arrived"
        parts = getattr(self.learn.loss_func, 'last', {})
        seen = dict(
            epoch=self.learn.epoch,
            step=self.learn.iter,
            loss=self.learn.loss_grad.detach(),
            parts=dict(parts),
            xb=self.learn.xb,
            yb=self.learn.yb,
        )
        self.waiting.append((*_asked(torch.isfinite(seen['loss']).all()), seen))
        while self.waiting and (self.waiting[0][1].query() or len(self.waiting) > _MOST_WAITING): self._look()

    def after_train(self):
        "Waits for all results of the epoch"
        while self.waiting: self._look()

    def _look(self):
        finite, done, seen = self.waiting.popleft()
        done.synchronize()
        if finite: return
        self.waiting.clear()
        self._save(seen)
        bad = [name for name, value in seen['parts'].items() if not torch.isfinite(value)]
        weights = next((name for name, p in self.learn.model.named_parameters() if not torch.isfinite(p).all()), None)
        which = f' (in {", ".join(bad)})' if bad else ''
        # A GPU has done this step by now
        step = 'an earlier step' if isinstance(done, _Here) else 'an earlier step, or this one,'
        cause = f'the weights are not finite either, first of all {weights}: {step} was too large. ' if weights else ''
        raise NonFiniteLoss(
            f'the loss is {float(seen["loss"].mean())}{which} in epoch {seen["epoch"]}, batch {seen["step"]}, '
            f'counted from 0; {cause}'
            f'That batch is in {self.file} (torch.load). Look at its images and masks, and try a lower rate, a '
            'longer warm-up, or float32'
        )

    def _save(self, seen):
        "Images, masks, identities, occlusion, and the parts of the loss"
        plain = lambda o: o.detach().cpu().as_subclass(torch.Tensor) if isinstance(o, torch.Tensor) else o
        inputs = dict(zip(('images', 'given_masks', 'kept'), map(plain, seen['xb'])))
        targets = dict(zip(('identities', 'masks'), map(plain, seen['yb'][::-1])))
        parts = {k: float(v) for k, v in seen['parts'].items()}
        batch = {**inputs, **targets, 'parts': parts, 'epoch': seen['epoch'], 'step': seen['step']}
        with aside(self.file) as part: torch.save(batch, part)


class _Here:
    "An event for the CPU, where the result is there at once"
    def query(self): return True
    def synchronize(self): pass


def _asked(answer):
    "(result on the CPU, event that tells when it is there), without waiting"
    if answer.device.type != 'cuda': return answer, _Here()
    copied, done = answer.to('cpu', non_blocking=True), torch.cuda.Event()
    done.record()
    return copied, done


class StopByKeyboard(Callback):
    """Within this context, Ctrl-C ends a training after the current batch (`KeyboardInterrupt`); a second Ctrl-C ends
    it at once.

    A checkpoint that is being written is completed. Outside the main thread, where Python gets no signals, it does
    nothing."""
    order = 200  # last: the batch is done
    def __init__(self,
        say=log.warning,  # Is told that the batch at hand will be the last
    ):
        self.say = say

    def __enter__(self):
        self.asked, self.former = False, None
        if threading.current_thread() is threading.main_thread(): self.former = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind, error, trace):
        if self.former is not None: signal.signal(signal.SIGINT, self.former)
        # asked after the last batch, or a worker was hit by the same Ctrl-C and its loss was noticed first
        if self.asked and (kind is None or issubclass(kind, RuntimeError)): raise KeyboardInterrupt from error

    def _ask(self, *_):
        if self.asked: raise KeyboardInterrupt
        self.asked = True
        self.say('stopping after this batch; Ctrl-C once more stops at once')

    def after_batch(self):
        "Stops if Ctrl-C was pressed"
        if self.asked: raise KeyboardInterrupt


def check_callbacks(
    cbs,  # Callbacks of a fit, or their classes
):
    "A ValueError for callbacks that do not work for a training of identities"
    for cb in cbs:
        kind = cb if isinstance(cb, type) else type(cb)
        if issubclass(kind, MixHandler):
            raise ValueError(
                f'{kind.__name__} mixes images and class labels, but the triplet loss needs one identity '
                'per image: use the loaders\' erase=0.5, which erases a part of each image'
            )
        if issubclass(kind, TrackerCallback) and getattr(cb, 'monitor', 'valid_loss') == 'valid_loss':
            raise ValueError(
                f'{kind.__name__} would monitor valid_loss, which is not defined for people who are not in '
                f"training: use {kind.__name__}(monitor='mAP')"
            )


class TrackersWait(Callback):
    """Trackers skip epochs without their metric: those that `ValidateEvery` does not validate, or that a resumed fit
    skips"""

    order = TrackerCallback.order - 1

    def before_fit(self):
        "Turns all trackers on"
        self.asleep = []

    def after_epoch(self):
        "Turns trackers off whose metric is missing"
        for cb in self.learn.cbs:
            if (
                isinstance(cb, TrackerCallback)
                and cb.run
                and not getattr(cb, 'every_epoch', False)
                and self._is_missing(cb)
            ):
                cb.run = False
                self.asleep.append(cb)

    def _is_missing(self, tracker): return self.recorder.passed_over or self.recorder.values[-1][tracker.idx] is None

    def before_epoch(self):
        "Turns them on again"
        for cb in self.asleep: cb.run = True
        self.asleep = []

    def after_fit(self):
        "Turns trackers on that have seen a metric, since they may load their best epoch"
        for cb in self.asleep: cb.run = math.isfinite(cb.best)
