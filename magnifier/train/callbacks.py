"What happens around a batch and an epoch: teacher masks, region occlusion, the semantic diversity phase, losses by part, precision"
import random

import pandas as pd
import torch
from fastai.vision.all import Callback, CancelValidException, L, MixedPrecision, Recorder, rank_distrib
from magnifier.regions import LOWER_TORSO, N_REGIONS, UPPER_TORSO
from magnifier.train.distributed import mean_over_ranks

__all__ = ['draw_kept_regions', 'TeacherMasks', 'RegionOcclusion', 'SemanticDiversityPhase', 'LossParts', 'ValidateEvery', 'CPUBfloat16',
           'bfloat16_pays']


BACKGROUND = 0
# What is drawn from: groups of regions, each of which keeps an equal number
STRATEGIES = {'torso': (UPPER_TORSO, LOWER_TORSO), 'random': (UPPER_TORSO + LOWER_TORSO,), 'random_all': (range(N_REGIONS),)}


def draw_kept_regions(
    strategy: str,  # 'torso': keep/2 of the upper and keep/2 of the lower torso; 'random': any `keep` body regions; 'random_all': of all eight
    keep: int,  # Regions kept, K-hat: 2, 4 or 6 for 'torso', 1 to 7 for 'random', 1 to 8 for 'random_all'
    rng: random.Random,  # The caller's generator
    *,
    keep_background: bool = True,  # Whether the background stays beside the body regions drawn; 'random_all' draws it like any other
) -> torch.Tensor:  # (8,) booleans, True where a region is kept
    "Regions that the adversarial branch sees in a batch (paper, section 3.2: Random-baseline and Random-torso)"
    _check_keep(strategy, keep, keep_background)
    groups = STRATEGIES[strategy]
    kept = torch.zeros(N_REGIONS, dtype=torch.bool)
    kept[BACKGROUND] = keep_background and strategy != 'random_all'
    for group in groups: kept[rng.sample(group, keep//len(groups))] = True
    return kept


def _check_keep(strategy, keep, keep_background):
    if strategy not in STRATEGIES: raise ValueError(f'unknown strategy {strategy!r}: use one of {", ".join(STRATEGIES)}')
    groups = STRATEGIES[strategy]
    allowed = range(len(groups), len(groups)*min(map(len, groups)) + 1, len(groups))
    if keep not in allowed:
        raise ValueError(f'keep={keep} with strategy {strategy!r}: keep one of {", ".join(map(str, allowed))}')
    if strategy == 'random_all' and not keep_background:
        raise ValueError("strategy 'random_all' draws the background among the regions, and keep_background=False never keeps it: use 'random'")


class TeacherMasks(Callback):
    "Gives the model the data set's part masks while it trains; in evaluation it uses its own (METHOD: Mask module)"
    order, run_valid = 7, False  # before CastToTensor (9), MixedPrecision (10), DistributedTrainer (11)
    def before_batch(self):
        "Appends the mask to the input"
        self.learn.xb = (self.xb[0], self.yb[0])


class RegionOcclusion(Callback):
    "Draws, for every training batch, the regions that the adversarial branch may see (paper, section 3.2, Eq. 2)"
    order, run_valid = TeacherMasks.order + 1, False
    def __init__(self,
        strategy:str='torso',      # 'torso' (Random-torso, the paper's best), 'random' (Random-baseline), or 'random_all'
        keep:int=4,                # K-hat, regions kept; the paper's best
        *,
        seed:int=0,                # Seed of the generator that this callback holds
        alike:bool=True,           # Of several processes: the same occlusion for all, as one process draws one for the batch they make together, so
                                   # that pairs across them (`gather_triplets`) show the same regions; False draws for each its own
    ):
        self.strategy, self.keep, self.keep_background, self.alike = strategy, keep, True, alike
        _check_keep(strategy, keep, self.keep_background)
        self.rng = random.Random(seed if alike or not rank_distrib() else f'{seed} {rank_distrib()}')

    def before_fit(self):
        "Asks the adversarial branch whether it has the background"
        sab = getattr(self.learn.model, 'module', self.learn.model).sab
        self.keep_background = sab is None or sab.keep_background
        _check_keep(self.strategy, self.keep, self.keep_background)

    def draw(self) -> torch.Tensor:
        "k booleans, True where a region is kept: one occlusion for a whole batch"
        return draw_kept_regions(self.strategy, self.keep, self.rng, keep_background=self.keep_background)

    def before_batch(self):
        "Appends a drawn occlusion to the input"
        self.kept = self.draw()
        masks = self.xb[1] if len(self.xb) > 1 else None
        self.learn.xb = (self.xb[0], masks, self.kept.to(self.xb[0].device, non_blocking=True))


class SemanticDiversityPhase(Callback):
    "Switches the semantic diversity loss on from an epoch, and back to what it was after the fit (paper, section 3.4)"
    def __init__(self,
        gamma:float=2e-3,   # Weight of the loss in the total (Eq. 4)
        start_epoch:int=0,  # First epoch, counted from 0 in this fit, with the loss
    ):
        if gamma < 0: raise ValueError(f'gamma={gamma}: a weight is zero or positive')
        self.gamma, self.start_epoch = gamma, start_epoch

    def before_fit(self):
        "Remembers the weight; a model without region features has nothing to make diverse"
        if getattr(self.learn.model, 'sfb', True) is None:
            raise ValueError('the semantic diversity loss compares the fusion branch\'s region features: build the learner with sfb=True')
        self.former = self.learn.loss_func.gamma

    def before_epoch(self):
        "The loss is on from `start_epoch`"
        if self.epoch >= self.start_epoch: self.learn.loss_func.gamma = self.gamma

    def after_fit(self):
        "Puts the former weight back"
        if hasattr(self, 'former'): self.learn.loss_func.gamma = self.former

    after_cancel_fit = after_fit


class LossParts(Callback):
    """Training losses by part, averaged over an epoch: columns beside the metrics, all of them in `.history`.

    Columns add the branches up (`id`, `triplet`), beside `mask` and `sd`; the history keeps each part, the regions' own too. Sums stay on the device until the epoch
    ends, so that no step waits for a number; of several processes each then has the mean."""
    order = Recorder.order + 1  # the recorder's row is there, and nobody has shown it yet

    def before_fit(self):
        "Starts a history in a fit's first epoch, and names the columns"
        if not hasattr(self, 'history') or self.learn.epoch == 0: self.history = pd.DataFrame()
        names, loss = self.recorder.metric_names, self.learn.loss_func
        self.columns = list(loss.columns)
        self.at = names.index('valid_loss') + 1 if 'valid_loss' in names else len(names)
        self.recorder.metric_names = names[:self.at] + self.columns + names[self.at:]

    def before_epoch(self):
        "Forgets the last epoch's sums"
        self.sums, self.n = {}, 0

    def after_loss(self):
        "Adds up the parts of a training batch, where they are"
        if not self.training: return
        for key, value in self.learn.loss_func.last.items(): self.sums[key] = self.sums.get(key, 0) + value.detach()
        self.n += 1

    def after_validate(self):
        "Epoch's means into the recorder's row; a validation alone has none"
        if not self.n: return
        sums = torch.stack(list(self.sums.values())) if self.sums else torch.zeros(0)
        means = dict(zip(self.sums, (mean_over_ranks(sums)/self.n).tolist()))
        self.history = pd.concat([self.history, pd.DataFrame([means])], ignore_index=True)
        column_of = self.learn.loss_func.column_of
        shown = [sum(v for key, v in means.items() if column_of[key] == column) for column in self.columns]
        row = list(self.recorder.log)
        row += [None]*(len(self.recorder.metric_names) - len(shown) - self.recorder.add_time - len(row))  # a validation left out
        self.recorder.log = L(row[:self.at] + shown + row[self.at:])


class ValidateEvery(Callback):
    "Ranks every n-th epoch and the last: a gallery costs more than an epoch of a short training"
    def __init__(self,
        n:int=5, # Epochs from one validation to the next
    ):
        if n < 1: raise ValueError(f'n={n}: validate every epoch (1) or less often')
        self.n = n

    def before_validate(self):
        "Skips the others"
        if (self.epoch + 1) % self.n and self.epoch + 1 < self.n_epoch: raise CancelValidException


class CPUBfloat16(Callback):
    """The model's forward pass in bfloat16 on a CPU; fastai's own MixedPrecision knows CUDA alone.

    Weights, heads, losses and distances stay float32 (METHOD's figures are theirs). Worth it where `bfloat16_pays()`."""
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
        "Back to float32 where a batch ends early"
        if hasattr(self, 'autocast'): self.after_pred()


def bfloat16_pays() -> bool:  # True where the CPU multiplies bfloat16 in hardware
    "Whether this CPU has instructions for bfloat16: without them it is slower than float32"
    asks = (getattr(torch.cpu, name, None) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return any(ask is not None and ask() for ask in asks)
