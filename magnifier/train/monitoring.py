"""Callbacks that watch a training: losses by part and metrics by epoch, recorded without waiting for the device at each
batch; guards against a loss that is NaN, Ctrl-C, and trackers of metrics that are missing in some epochs"""

import logging
import math
import signal
import threading
import time
from collections import deque
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.mixup import MixHandler
from fastai.callback.tracker import TrackerCallback
from fastai.vision.all import AvgSmoothLoss, Callback, L, ProgressCallback, Recorder, tensor

from magnifier.checks import refuse
from magnifier.files import aside
from magnifier.train.distributed import mean_over_ranks

__all__ = ['NonFiniteLoss', 'StopAtNonFinite']

log = logging.getLogger(__name__)
_MOST_WAITING = 16  # Batches a GPU may be ahead of the check; each is held in memory until its loss is known


class DeviceSmoothLoss(AvgSmoothLoss):
    """fastai's smoothed loss, kept on the device; fastai's own copies each batch's loss to the CPU and so waits for the
    step"""

    def reset(self):
        "Starts anew"
        self.count, self.val = 0, None

    def accumulate(self, learn):
        "Adds a batch's loss"
        loss = learn.loss.detach().mean()
        self.count += 1
        self.val = torch.lerp(loss, torch.zeros_like(loss) if self.val is None else self.val.to(loss), self.beta)

    @property
    def value(self):
        "The smoothed loss, a scalar on the losses' device"
        return tensor(0.) if self.val is None else super().value


class DeviceRecorder(Recorder):
    "fastai's recorder, with losses copied to the CPU once an epoch; with several processes, each gets the mean"

    name = 'recorder'

    def __init__(
        self,
        beta: float = 0.98,  # Of the smoothed loss
    ):
        super().__init__(beta=beta)
        self.smooth_loss = DeviceSmoothLoss(beta)

    def before_fit(self):
        "As in fastai; no losses are copied yet"
        super().before_fit()
        self.fetched = 0

    def fetch(self):
        "Copies the losses since the last call to the CPU, all at once"
        if (new := self.losses[self.fetched:]): self.losses[self.fetched:] = list(torch.stack(new).cpu())
        self.fetched = len(self.losses)

    def after_train(self):
        "The epoch's row"
        if self.smooth_loss.val is not None: self.smooth_loss.val = mean_over_ranks(self.smooth_loss.val)
        self.fetch()
        super().after_train()

    @property
    def passed_over(self) -> bool:
        "Whether this epoch neither trained nor validated, as the skipped epochs of a resumed fit"
        return len(self.log) == 1  # the epoch's number alone

    def after_epoch(self):
        "Writes fastai's row, if the epoch was not skipped"
        if not self.passed_over: super().after_epoch()

    def after_fit(self):
        "Also after a fit that ended early"
        if hasattr(self, 'fetched'): self.fetch()

    def plot_loss(
        self,
        skip_start: int = 5,  # Batches left out at the start
        **kwargs,  # As in fastai: log, show_epochs, ax
    ):  # The axes
        "fastai's curve of the training loss, without a validation loss"
        return super().plot_loss(skip_start, **{**kwargs, 'with_valid': False})


class CalmProgress(ProgressCallback):
    "fastai's progress bar, with the loss updated once a second instead of at every batch"

    name, every, asked = 'progress', 1., -float('inf')  # seconds between questions, when the last one was

    def after_batch(self):
        "Moves the bar; updates the loss once a second"
        self.pbar.update(self.iter + 1)
        if not hasattr(self, 'smooth_loss') or time.monotonic() - self.asked < self.every: return
        self.asked = time.monotonic()
        self.pbar.comment = f'{self.smooth_loss.item():.4f}'


class LossParts(Callback):
    """Training losses by part, averaged over an epoch: columns beside the metrics, all of them in `.history`.

    Columns add the branches up (`id`, `triplet`), beside `mask` and `sd`; the history keeps each part, the regions' own
    too. The people of the validation images are not in training, so only the mask loss is defined for them: with a mask
    module it is shown as `valid_mask_loss`, and fastai's `valid_loss` is not shown. Sums stay on the device until the
    epoch ends, so no step waits for them; with several processes, each gets the mean"""

    order = Recorder.order + 1  # the recorder's row is there, and nobody has shown it yet

    def before_fit(self):
        "Starts the history before a fit's first epoch, and names the columns"
        if not hasattr(self, 'history') or self.learn.epoch == 0: self.history = pd.DataFrame()
        names, loss = self.recorder.metric_names, self.learn.loss_func
        self.columns = list(loss.columns)
        if self.learn.net.segmentation is not None: self.columns.append('valid_mask_loss')
        self.at = names.index('valid_loss') if 'valid_loss' in names else len(names)
        self.recorder.metric_names = names[:self.at] + self.columns + names[self.at + 1:]

    def before_epoch(self):
        "Resets the sums"
        self.sums, self.n = {}, 0
        self.valid_masks, self.n_valid = 0, 0

    def after_loss(self):
        "Adds the parts of a batch, on their device"
        last = self.learn.loss_func.last
        if self.training:
            for key, value in last.items(): self.sums[key] = self.sums.get(key, 0) + value.detach()
            self.n += 1
        elif 'mask' in last:
            self.valid_masks = self.valid_masks + last['mask']
            self.n_valid += 1

    def after_validate(self):
        "Writes the epoch's means into the recorder's row; a separate validation has none"
        if not self.n: return
        sums = torch.stack(list(self.sums.values())) if self.sums else torch.zeros(0)
        means = dict(zip(self.sums, (mean_over_ranks(sums)/self.n).tolist()))
        self.history = pd.concat([self.history, pd.DataFrame([means])], ignore_index=True)
        column_of = self.learn.loss_func.column_of
        shown = {column: sum(v for key, v in means.items() if column_of[key] == column) for column in self.columns}
        if 'valid_mask_loss' in shown: shown['valid_mask_loss'] = self._valid_mask_loss()
        row = [*self.recorder.log[:self.at], *shown.values(), *self.recorder.log[self.at + 1:]]
        row += [None]*(len(self.recorder.metric_names) - self.recorder.add_time - len(row))  # a validation left out
        self.recorder.log = L(row)

    def _valid_mask_loss(self):
        return (mean_over_ranks(self.valid_masks)/self.n_valid).item() if self.n_valid else None


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
        seen = dict(epoch=self.learn.epoch, step=self.learn.iter, loss=self.learn.loss_grad.detach(), parts=dict(parts),
                    xb=self.learn.xb, yb=self.learn.yb)
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
        refuse({
            f'{kind.__name__} mixes images and class labels, but the triplet loss needs one identity per image: use '
            "the loaders' erase=0.5, which erases a part of each image": issubclass(kind, MixHandler),
            f'{kind.__name__} would monitor valid_loss, which is not defined for people who are not in training: use '
            f"{kind.__name__}(monitor='mAP')":
                issubclass(kind, TrackerCallback) and getattr(cb, 'monitor', 'valid_loss') == 'valid_loss',
        })


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
            waits = isinstance(cb, TrackerCallback) and cb.run and not getattr(cb, 'every_epoch', False)
            if waits and self._is_missing(cb):
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
