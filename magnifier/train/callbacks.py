"""Callbacks that change a training: part masks as input, region occlusion, the semantic diversity phase, less frequent
validation, lower precision, and learning rates by epoch; `stage_callbacks` picks those of a recipe's stage"""

import random
from bisect import bisect_right
from contextlib import contextmanager

import torch
from fastai.callback.schedule import ParamScheduler, SchedCos, combined_cos
from fastai.vision.all import AMPMode, Callback, CancelValidException, MixedPrecision, rank_distrib

from magnifier.checks import refuse
from magnifier.regions import LOWER_TORSO, N_REGIONS, UPPER_TORSO
from magnifier.train.recipes import DROP

__all__ = ['TeacherMasks', 'RegionOcclusion', 'SemanticDiversityPhase', 'ValidateEvery', 'WarmupMilestones',
           'fast_training']

BACKGROUND = 0
# Groups of regions; each group keeps an equal number
STRATEGIES = {
    'torso': (UPPER_TORSO, LOWER_TORSO),
    'random': (UPPER_TORSO + LOWER_TORSO,),
    'random_all': (range(N_REGIONS),),
}


def draw_kept_regions(
    strategy: str,  # 'torso': half of each torso group; 'random': of the body; 'random_all': of all eight
    keep: int,  # Regions kept, K-hat: 2, 4 or 6 for 'torso', 1 to 7 for 'random', 1 to 8 for 'random_all'
    rng: random.Random,  # The caller's generator
    *,
    keep_background: bool = True,  # Whether the background stays beside them; 'random_all' draws it like any other
) -> torch.Tensor:  # (8,) booleans, True where a region is kept
    "Regions that the adversarial branch sees in a batch (paper, section 3.2: Random-baseline and Random-torso)"
    _check_keep(strategy, keep, keep_background)
    groups = STRATEGIES[strategy]
    kept = torch.zeros(N_REGIONS, dtype=torch.bool)
    kept[BACKGROUND] = keep_background and strategy != 'random_all'
    for group in groups: kept[rng.sample(group, keep//len(groups))] = True
    return kept


def _check_keep(strategy, keep, keep_background):
    refuse({f'unknown strategy {strategy!r}: use one of {", ".join(STRATEGIES)}': strategy not in STRATEGIES})
    groups = STRATEGIES[strategy]
    allowed = range(len(groups), len(groups)*min(map(len, groups)) + 1, len(groups))
    refuse({
        f'keep={keep} with strategy {strategy!r}: keep one of {", ".join(map(str, allowed))}': keep not in allowed,
        "strategy 'random_all' draws the background among the regions, and keep_background=False never keeps it: use "
        "'random'": strategy == 'random_all' and not keep_background,
    })


class TeacherMasks(Callback):
    "Gives the data set's part masks to the model in training; in evaluation the model uses its own"

    order, run_valid = 7, False  # before CastToTensor (9), MixedPrecision (10), DistributedTrainer (11)

    def before_batch(self):
        "Appends the mask to the input"
        self.learn.xb = (self.xb[0], self.yb[0])


class RegionOcclusion(Callback):
    "Draws, for every training batch, the regions that the adversarial branch may see (paper, section 3.2, Eq. 2)"

    order, run_valid = TeacherMasks.order + 1, False

    def __init__(
        self,
        strategy: str = 'torso',  # 'torso' (Random-torso, the paper's), 'random' (Random-baseline), or 'random_all'
        keep: int = 4,  # K-hat, regions kept; the paper's best
        *,
        seed: int = 0,  # Seed of the generator that this callback holds
        alike: bool = True,  # In training on several GPUs, whether all draw the same occlusion; False: each its own
    ):
        self.strategy = strategy
        self.keep = keep
        self.alike = alike
        _check_keep(strategy, keep, self.keep_background)
        self.rng = random.Random(seed if alike or not rank_distrib() else f'{seed} {rank_distrib()}')

    @property
    def keep_background(self) -> bool:
        "Whether the learner's adversarial branch has the background; without a learner it has, as in the paper"
        sab = None if self.learn is None else self.learn.net.sab
        return sab is None or sab.keep_background

    def before_fit(self):
        "Refuses what the adversarial branch cannot be given"
        _check_keep(self.strategy, self.keep, self.keep_background)

    def draw(
        self,
        rng: random.Random | None = None,  # Another generator, for a look; None for the training's own
    ) -> torch.Tensor:
        "Draws k booleans for a whole batch, True for kept regions"
        return draw_kept_regions(self.strategy, self.keep, rng or self.rng, keep_background=self.keep_background)

    def before_batch(self):
        "Appends a drawn occlusion to the input"
        self.kept = self.draw()
        masks = self.xb[1] if len(self.xb) > 1 else None
        self.learn.xb = (self.xb[0], masks, self.kept.to(self.xb[0].device, non_blocking=True))


class SemanticDiversityPhase(Callback):
    "Switches the semantic diversity loss on from an epoch, and back to what it was after the fit (paper, section 3.4)"

    def __init__(
        self,
        gamma: float = 2e-3,  # Weight of the loss in the total (Eq. 4)
        start_epoch: int = 0,  # First epoch, counted from 0 in this fit, with the loss
    ):
        refuse({f'gamma={gamma}: a weight is zero or positive': gamma < 0})
        self.gamma = gamma
        self.start_epoch = start_epoch

    def before_fit(self):
        "Stores the former weight; a ValueError for a model without region features"
        refuse({"the semantic diversity loss compares the fusion branch's region features: build the learner with "
                'sfb=True': self.learn.net.sfb is None})
        self.former = self.learn.loss_func.gamma

    def before_epoch(self):
        "The loss is on from `start_epoch`"
        if self.epoch >= self.start_epoch: self.learn.loss_func.gamma = self.gamma

    def after_fit(self):
        "Puts the former weight back"
        if hasattr(self, 'former'): self.learn.loss_func.gamma = self.former

    after_cancel_fit = after_fit


class ValidateEvery(Callback):
    "Validates every n-th epoch and the last, because ranking a gallery can take longer than a training epoch"

    def __init__(
        self,
        n: int = 5,  # Epochs from one validation to the next
    ):
        refuse({f'n={n}: validate every epoch (1) or less often': n < 1})
        self.n = n

    def before_validate(self):
        "Cancels the validation of other epochs"
        if (self.epoch + 1) % self.n and self.epoch + 1 < self.n_epoch: raise CancelValidException


class CPUBfloat16(Callback):
    """The model's forward pass in bfloat16 on a CPU; fastai's own MixedPrecision supports CUDA only.

    Weights, heads, losses and distances stay float32. Use it if `bfloat16_pays()`"""

    order = MixedPrecision.order

    def before_batch(self):
        "Lowers the precision for the forward pass"
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self):
        "Back to float32 before the loss"
        self.autocast.__exit__(None, None, None)
        del self.autocast

    def after_cancel_batch(self):
        "Back to float32 if a batch ends early"
        if hasattr(self, 'autocast'): self.after_pred()


def bfloat16_pays() -> bool:  # True where the CPU multiplies bfloat16 in hardware
    "Whether this CPU has instructions for bfloat16; without them, bfloat16 is slower than float32"
    asks = (getattr(torch.cpu, name, None) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return any(ask is not None and ask() for ask in asks)


def autocast_of(
    learn,  # A Learner
    device: str,  # Type of the device that its model is on: cpu, cuda, ...
):  # torch's autocast, to be entered
    "An autocast context with the precision of the learner's callbacks, for computations outside of a fit"
    if device == 'cpu': return torch.autocast('cpu', torch.bfloat16, enabled=hasattr(learn, 'cpu_bfloat16'))
    half = getattr(learn, 'mixed_precision', None)
    dtype = torch.bfloat16 if half and half.amp_mode == AMPMode.BF16 else torch.float16
    return torch.autocast(device, dtype, enabled=half is not None)


@contextmanager
def fast_training(
    learn,  # A ReIDLearner
    *,
    compile: bool = True,  # Whether the network is compiled too, which takes a minute or two and a C++ compiler
):
    """Fits inside run in bfloat16 if the hardware supports it, in channels-last order, and compiled. Weights, heads,
    losses and distances stay float32, so losses differ only in their last digits. Afterwards only the memory order of
    the learner differs"""
    on_gpu = learn.dls.device.type == 'cuda'
    precision = []
    if on_gpu: precision = [MixedPrecision(AMPMode.BF16)]
    elif bfloat16_pays(): precision = [CPUBfloat16()]
    learn.model.to(memory_format=torch.channels_last)
    if compile: learn.model.compile()  # in place: the names of its tensors stay as they are
    try:
        with learn.added_cbs([cb for cb in precision if not hasattr(learn, cb.name)]): yield learn
    finally:
        # As torch's own copies and pickles have it; else every other size would be compiled too
        learn.model._compiled_call_impl = None


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
        self.lr = lr
        self.how = kwargs
        super().__init__({'lr': self.rate})

    def rate(
        self,
        epoch: int,  # Counted from 0
    ) -> float:  # Rate of that epoch
        "The formula with this schedule's numbers"
        return warmup_milestones(epoch, self.lr, **self.how)

    def before_batch(self):
        """Sets the rate by the epoch's number; by fastai's share of the training done, which adds up rounding errors, a
        milestone could come a batch late"""
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
    if stage.bfloat16 and on_cpu and bfloat16_pays() and not hasattr(learn, 'cpu_bfloat16'): cbs.append(CPUBfloat16())
    return cbs


def _schedule(stage, learn):
    if stage.schedule == 'steps': return [WarmupMilestones(stage.lr, warmup=stage.warmup, milestones=stage.milestones)]
    if stage.schedule == 'annealed': return [ParamScheduler({'lr': SchedCos(stage.lr, 0.)})]
    if stage.schedule == 'constant': return []
    # fastai's one cycle: a quarter upwards, from a 25th of the rate
    rate = combined_cos(0.25, stage.lr / 25, stage.lr, stage.lr / 1e5)
    return [ParamScheduler({'lr': rate, 'mom': combined_cos(0.25, *learn.moms)})]
