"""Callbacks that watch a training: losses by part, recorded without waiting for the device at each batch; a guard
against a loss that is NaN; fastai's trackers where a metric is missing in some epochs"""

import math
import time
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.mixup import MixHandler
from fastai.callback.tracker import TrackerCallback
from fastai.vision.all import AvgSmoothLoss, Callback, L, ProgressCallback, Recorder

from magnifier.checks import refuse
from magnifier.files import aside
from magnifier.train.distributed import mean_over_ranks

__all__ = ['NonFiniteLoss', 'StopAtNonFinite']


class DeviceSmoothLoss(AvgSmoothLoss):
    "fastai's smoothed loss, kept on the device; fastai copies it to the CPU and so waits for each step"

    def accumulate(self, learn):
        "Adds a batch's loss"
        loss = learn.loss.detach().mean()
        self.count += 1
        self.val = torch.lerp(loss, self.val.to(loss), self.beta)


class DeviceRecorder(Recorder):
    "fastai's recorder, with losses copied to the CPU after the fit; with several processes, each gets the mean"

    name = 'recorder'

    def __init__(self):
        super().__init__()
        self.smooth_loss = DeviceSmoothLoss()

    def after_train(self):
        "The epoch's row"
        self.smooth_loss.val = mean_over_ranks(self.smooth_loss.val)
        super().after_train()

    @property
    def skipped(self) -> bool:
        "Whether this epoch neither trained nor validated, as the first epochs of a resumed fit"
        return len(self.log) == 1  # the epoch's number alone

    def after_epoch(self):
        "Writes fastai's row, if the epoch was not skipped"
        if not self.skipped: super().after_epoch()

    def after_fit(self):
        "Copies the losses to the CPU, all at once"
        if getattr(self, 'losses', None): self.losses = list(torch.stack(self.losses).cpu())

    def plot_loss(
        self,
        skip_start: int = 5,  # Batches left out at the start
        **kwargs,  # As in fastai: log, show_epochs, ax
    ):  # The axes
        "fastai's curve of the training loss, without a validation loss"
        return super().plot_loss(skip_start, **{**kwargs, 'with_valid': False})


class CalmProgress(ProgressCallback):
    "fastai's progress bar, with the loss updated once a second: reading it waits for the device"

    name = 'progress'
    every = 1.  # Seconds from one update of the loss to the next
    updated = -math.inf  # When the last one was

    def after_batch(self):
        "Moves the bar; updates the loss once a second"
        self.pbar.update(self.iter + 1)
        if not hasattr(self, 'smooth_loss') or time.monotonic() - self.updated < self.every: return
        self.updated = time.monotonic()
        self.pbar.comment = f'{self.smooth_loss.item():.4f}'


class LossParts(Callback):
    """Training losses by part, averaged over an epoch: columns beside the metrics, all of them in `.history`.

    Columns add the branches up (`id`, `triplet`), beside `mask` and `sd`; the history keeps each part, the regions' own
    too. The people of the validation images are not in training, so only the mask loss is defined for them: with a mask
    module it is shown as `valid_mask_loss`, and fastai's `valid_loss` is not shown. Sums stay on the device until the
    epoch ends, so no step waits for them; with several processes, each gets the mean"""

    order = Recorder.order + 1  # after the recorder has made its row, before the progress bar shows it

    def before_fit(self):
        "Starts the history before a fit's first epoch, and names the columns"
        if not hasattr(self, 'history') or self.learn.epoch == 0: self.history = pd.DataFrame()
        names = self.recorder.metric_names
        self.columns = list(self.learn.loss_func.columns)
        if self.learn.net.segmentation is not None: self.columns.append('valid_mask_loss')
        self.at = names.index('valid_loss') if 'valid_loss' in names else len(names)
        self.recorder.metric_names = names[:self.at] + self.columns + names[self.at + 1:]

    def before_epoch(self):
        "Resets the sums"
        self.sums = {}
        self.n = 0
        self.valid_masks = 0
        self.n_valid = 0

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
        if 'valid_mask_loss' in shown:
            loss = (mean_over_ranks(self.valid_masks)/self.n_valid).item() if self.n_valid else None
            shown['valid_mask_loss'] = loss
        row = [*self.recorder.log[:self.at], *shown.values(), *self.recorder.log[self.at + 1:]]
        row += [None]*(len(self.recorder.metric_names) - self.recorder.add_time - len(row))  # without a validation
        self.recorder.log = L(row)


class NonFiniteLoss(ValueError):
    "The loss of a training is NaN or infinite"

    def __init__(
        self,
        message: str,  # Where, which parts, and what to try
    ):
        super().__init__(message)
        self.message = message

    def __str__(self): return self.message  # fastai puts the callback's name into `args`


class StopAtNonFinite(Callback):
    """Stops a training at the first batch with a NaN or infinite loss, and saves that batch in a file.

    On a CPU the loss is checked before the step, so the weights are still those that gave it. On a GPU that check
    would make every step wait for the device. There the result is copied while the device continues, and the batch is
    kept and checked when the next one has its loss, or at the end of the epoch."""

    order = LossParts.order + 1
    run_valid = False

    def __init__(
        self,
        file='nonfinite.pth',  # File for the batch; `torch.load(file)` reads it
    ):
        self.file = Path(file)

    def before_fit(self):
        "Starts without a batch to check"
        self.batch = None

    def after_loss(self):
        "Checks the batch before, and this one too on a CPU"
        self._check()
        loss = self.learn.loss_grad.detach()
        finite, copied = _copied(torch.isfinite(loss).all())
        parts = dict(getattr(self.learn.loss_func, 'last', {}))
        self.batch = dict(finite=finite, copied=copied, epoch=self.learn.epoch, step=self.learn.iter, loss=loss,
                          parts=parts, xb=self.learn.xb, yb=self.learn.yb)
        if copied is None: self._check()

    def after_train(self):
        "Checks the epoch's last batch"
        self._check()

    def _check(self):
        batch, self.batch = self.batch, None
        if batch is None: return
        if batch['copied'] is not None: batch['copied'].synchronize()
        if batch['finite']: return
        self._save(batch)
        raise NonFiniteLoss(self._message(batch))

    def _message(self, batch):
        bad = [name for name, value in batch['parts'].items() if not torch.isfinite(value)]
        parts = f' (in {", ".join(bad)})' if bad else ''
        weights = next((name for name, p in self.learn.model.named_parameters() if not torch.isfinite(p).all()), None)
        # On a GPU the step of this batch is done by now
        step = 'an earlier step' if batch['copied'] is None else 'an earlier step, or this one,'
        cause = f'the weights are not finite either, first of all {weights}: {step} was too large. ' if weights else ''
        return (f'the loss is {float(batch["loss"].mean())}{parts} in epoch {batch["epoch"]}, batch {batch["step"]}, '
                f'counted from 0; {cause}'
                f'That batch is in {self.file} (torch.load). Look at its images and masks, and try a lower rate, a '
                'longer warm-up, or float32')

    def _save(self, batch):
        "Writes images, masks, identities, occlusion, and the parts of the loss"
        plain = lambda o: o.detach().cpu().as_subclass(torch.Tensor) if isinstance(o, torch.Tensor) else o
        inputs = dict(zip(('images', 'given_masks', 'kept'), map(plain, batch['xb'])))
        targets = dict(zip(('identities', 'masks'), map(plain, batch['yb'][::-1])))
        parts = {name: float(value) for name, value in batch['parts'].items()}
        saved = {**inputs, **targets, 'parts': parts, 'epoch': batch['epoch'], 'step': batch['step']}
        with aside(self.file) as part: torch.save(saved, part)


def _copied(answer):
    "(result on the CPU, CUDA event that says when it has arrived or None where it was there), without waiting"
    if answer.device.type != 'cuda': return answer, None
    copy = answer.to('cpu', non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived


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
    """fastai's trackers skip epochs without their metric: those that `ValidateEvery` does not validate, or that a
    resumed fit skips"""

    order = TrackerCallback.order - 1

    def before_fit(self):
        "Turns all trackers on"
        self.asleep = []

    def after_epoch(self):
        "Turns trackers off whose metric is missing"
        for cb in self.learn.cbs:
            waits = isinstance(cb, TrackerCallback) and cb.run and not getattr(cb, 'every_epoch', False)
            if waits and (self.recorder.skipped or self.recorder.values[-1][cb.idx] is None):
                cb.run = False
                self.asleep.append(cb)

    def before_epoch(self):
        "Turns them on again"
        for cb in self.asleep: cb.run = True
        self.asleep = []

    def after_fit(self):
        "Turns on those that have seen a metric, since they may load their best epoch"
        for cb in self.asleep: cb.run = math.isfinite(cb.best)
