"The records of a training: losses by part and metrics by epoch, without waiting for the device at every batch"
import time

import pandas as pd
import torch
from fastai.vision.all import AvgSmoothLoss, Callback, L, ProgressCallback, Recorder, tensor

from magnifier.train.distributed import mean_over_ranks

__all__ = ['DeviceSmoothLoss', 'DeviceRecorder', 'CalmProgress', 'LossParts']


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
