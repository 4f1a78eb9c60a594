"What a training writes down and shows, without a wait for the device at every batch"
import time

import torch
from fastai.vision.all import AvgSmoothLoss, ProgressCallback, Recorder, tensor
from magnifier.train.distributed import mean_over_ranks

__all__ = ['DeviceSmoothLoss', 'DeviceRecorder', 'CalmProgress', 'without_waiting']


class DeviceSmoothLoss(AvgSmoothLoss):
    "fastai's smoothed loss, left on the device: fastai's copies each batch's loss to the CPU, and so waits for the step to end"
    def reset(self):
        "Starts anew"
        self.count, self.val = 0, None

    def accumulate(self, learn):
        "Takes a batch's loss in"
        loss = learn.loss.detach().mean()
        self.count += 1
        self.val = torch.lerp(loss, torch.zeros_like(loss) if self.val is None else self.val.to(loss), self.beta)

    @property
    def value(self):
        "The smoothed loss, a scalar where the losses are"
        return tensor(0.) if self.val is None else super().value


class DeviceRecorder(Recorder):
    "fastai's recorder, whose losses come to the CPU once an epoch; of several processes each then has the mean"
    name = 'recorder'
    def __init__(self,
        add_time:bool=True,       # Whether there is a column of times
        train_metrics:bool=False, # Whether metrics are computed in training too
        valid_metrics:bool=True,  # Whether they are in validation
        beta:float=0.98,          # Of the smoothed loss
    ):
        super().__init__(add_time, train_metrics, valid_metrics, beta)
        self.smooth_loss = DeviceSmoothLoss(beta)

    def before_fit(self):
        "As fastai's; nothing is fetched yet"
        super().before_fit()
        self.fetched = 0

    def fetch(self):
        "Losses recorded since the last time to the CPU, all at once"
        if (new := self.losses[self.fetched:]): self.losses[self.fetched:] = list(torch.stack(new).cpu())
        self.fetched = len(self.losses)

    def after_train(self):
        "The epoch's row"
        if self.smooth_loss.val is not None: self.smooth_loss.val = mean_over_ranks(self.smooth_loss.val)
        self.fetch()
        super().after_train()

    def after_fit(self):
        "Whatever ended the fit"
        if hasattr(self, 'fetched'): self.fetch()


class CalmProgress(ProgressCallback):
    "fastai's progress bar, which asks for the loss once a second instead of at every batch"
    name, every, asked = 'progress', 1., -float('inf')  # seconds between questions, when the last one was

    def after_batch(self):
        "The bar moves; the loss beside it waits for its time"
        self.pbar.update(self.iter + 1)
        if not hasattr(self, 'smooth_loss') or time.monotonic() - self.asked < self.every: return
        self.asked = time.monotonic()
        self.pbar.comment = f'{self.smooth_loss.item():.4f}'


def without_waiting(
    cb, # A callback, or the class of one
):      # The one that does the same without a wait for the device at every batch, where there is one
    "What a learner should have in place of fastai's recorder and progress bar"
    cb = cb() if isinstance(cb, type) else cb
    if type(cb) is ProgressCallback: return CalmProgress()
    if type(cb) is Recorder: return DeviceRecorder(cb.add_time, cb.train_metrics, cb.valid_metrics, cb.smooth_loss.beta)
    return cb
