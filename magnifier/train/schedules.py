"Learning rates over epochs: linear warm-up, then a drop at each milestone; and the callbacks of a recipe's stage"
from bisect import bisect_right

from fastai.callback.schedule import ParamScheduler, SchedCos, combined_cos

from magnifier.train.callbacks import CPUBfloat16, SemanticDiversityPhase, ValidateEvery, bfloat16_pays
from magnifier.train.recipes import DROP

__all__ = ['warmup_milestones', 'WarmupMilestones', 'stage_callbacks']


def warmup_milestones(
    epoch: int,  # Epoch, counted from 0
    lr: float,  # Rate between the warm-up and the first milestone
    *,
    warmup: int = 10,  # Epochs of warm-up; 0 for none
    start: float = .01,  # Share of `lr` in the first epoch of the warm-up
    milestones=(40, 70),  # Epochs that begin with a drop, in order
    decay: float = DROP,  # What a drop multiplies the rate by
) -> float:  # Rate of that epoch
    """Factor of the learning rate in an epoch: linearly from `start` to 1 during warm-up, then `decay` to the power of
    the milestones reached (reid-strong-baseline)"""
    share = start + (1 - start)*epoch/warmup if epoch < warmup else 1.
    return lr*share*decay**bisect_right(milestones, epoch)


class WarmupMilestones(ParamScheduler):
    "`warmup_milestones` as a schedule: every batch of an epoch has that epoch's rate; `recorder.plot_sched` shows it"

    def __init__(
        self,
        lr: float,  # Rate between the warm-up and the first milestone
        **kwargs,  # Passed to `warmup_milestones`: warmup, start, milestones, decay
    ):
        self.lr, self.how = lr, kwargs
        super().__init__({'lr': self.rate})

    def rate(
        self,
        epoch: int,  # Counted from 0
    ) -> float:  # Rate of that epoch
        "The formula with this schedule's numbers"
        return warmup_milestones(epoch, self.lr, **self.how)

    def before_batch(self):
        """Uses the epoch's number: fastai's share of the training done adds up rounding errors, so a milestone could be
        a batch late"""
        self.opt.set_hyper('lr', self.rate(self.epoch))


def stage_callbacks(
    stage,  # A `Stage` of a recipe
    learn,  # The ReIDLearner that fits it
) -> list:  # What its fit adds to the learner
    "The callbacks of a stage: schedule, semantic diversity loss, less frequent ranking, low precision"
    cbs = _schedule(stage, learn)
    if stage.rank_every > 1: cbs.append(ValidateEvery(stage.rank_every))
    if stage.diversity_epoch is not None: cbs.append(SemanticDiversityPhase(stage.gamma, stage.diversity_epoch))
    on_cpu = learn.dls.device.type == 'cpu'
    if stage.for_cpu and on_cpu and bfloat16_pays() and not hasattr(learn, 'cpu_bfloat16'): cbs.append(CPUBfloat16())
    return cbs


def _schedule(stage, learn):
    if stage.schedule == 'steps': return [WarmupMilestones(stage.lr, warmup=stage.warmup, milestones=stage.milestones)]
    if stage.schedule == 'annealed': return [ParamScheduler({'lr': SchedCos(stage.lr, 0.)})]
    if stage.schedule == 'constant': return []
    # fastai's one cycle: a quarter upwards, from a 25th of the rate
    return [
        ParamScheduler(
            {'lr': combined_cos(0.25, stage.lr / 25, stage.lr, stage.lr / 1e5), 'mom': combined_cos(0.25, *learn.moms)}
        )
    ]
