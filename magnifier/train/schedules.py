"Learning rates over epochs: linear warm-up, then a drop at each milestone (METHOD: Training)"
from bisect import bisect_right

from fastai.callback.schedule import ParamScheduler

__all__ = ['warmup_milestones', 'WarmupMilestones']


def warmup_milestones(
    epoch:int,               # Epoch, counted from 0
    lr:float,                # Rate between the warm-up and the first milestone
    *,
    warmup:int=10,           # Epochs of warm-up; 0 for none
    start:float=.01,         # Share of `lr` in the first epoch of the warm-up
    milestones=(40, 70),     # Epochs that begin with a drop, in order
    decay:float=.1,          # What a drop multiplies the rate by
) -> float:  # Rate of that epoch
    "Rate of an epoch: from `start` of it linearly to all of it, then `decay` to the power of the milestones reached (reid-strong-baseline)"
    share = start + (1 - start)*epoch/warmup if epoch < warmup else 1.
    return lr*share*decay**bisect_right(milestones, epoch)


class WarmupMilestones(ParamScheduler):
    "`warmup_milestones` as a schedule: every batch of an epoch has that epoch's rate; `recorder.plot_sched` shows it"
    def __init__(self,
        lr:float,            # Rate between the warm-up and the first milestone
        *,
        warmup:int=10,       # Epochs of warm-up; 0 for none
        start:float=.01,     # Share of `lr` in the first epoch of the warm-up
        milestones=(40, 70), # Epochs that begin with a drop
        decay:float=.1,      # What a drop multiplies the rate by
    ):
        "A ValueError for what is no schedule"
        milestones = tuple(milestones)
        if lr <= 0: raise ValueError(f'lr={lr}: a rate is positive')
        if warmup < 0 or not 0 < start <= 1: raise ValueError(f'warmup={warmup}, start={start}: give 0 or more epochs, from a share above 0 and up to 1')
        if list(milestones) != sorted(milestones): raise ValueError(f'milestones={milestones}: give them in order')
        self.lr, self.how = lr, dict(warmup=warmup, start=start, milestones=milestones, decay=decay)
        super().__init__({'lr': self.rate})

    def rate(self,
        epoch:int, # Counted from 0
    ) -> float:    # Rate of that epoch
        "The formula with this schedule's numbers"
        return warmup_milestones(epoch, self.lr, **self.how)

    def __str__(self):
        warmup, start, milestones, decay = self.how.values()
        drops = f'x {decay:g} at epoch{"s"[:len(milestones) > 1]} {" and ".join(str(m) for m in milestones)}' if milestones else ''
        return ', '.join(filter(None, [f'linear warm-up from {start:g} of it over {warmup} epoch{"s"[:warmup > 1]}' if warmup else '', drops])) or 'constant'

    def before_batch(self):
        "By the epoch itself: fastai's share of the training done adds up rounding, and a milestone could come a batch late"
        self.opt.set_hyper('lr', self.rate(self.epoch))
