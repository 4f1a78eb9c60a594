"Whole trainings by name: what to load, which model, and how to fit it"
from functools import partial
from typing import NamedTuple

import torch
from fastai.vision.all import Adam
from magnifier.train.callbacks import CPUBfloat16, SemanticDiversityPhase, ValidateEvery, bfloat16_pays
from magnifier.train.losses import MagnifierLoss
from magnifier.train.schedules import WarmupMilestones

__all__ = ['Recipe', 'RECIPES', 'recipe', 'fit_quick', 'fit_one_cycle', 'fit_baseline', 'fit_paper']


class Recipe(NamedTuple):
    "A training: arguments of the loaders and of the learner, and the function that fits"
    loading: dict   # Arguments of `ReIDDataLoaders.from_df`
    model: dict     # Arguments of `magnifier_learner`
    fit: object     # (learn, epochs, diversity=True) -> None; without diversity no semantic diversity loss
    epochs: int     # Epochs where none are asked for
    says: str       # What it does, in one sentence


def fit_quick(
    learn,          # A ReIDLearner
    epochs:int=16,  # Epochs in all
    *,
    diversity:bool=True, # Whether the last fifth has the semantic diversity loss
):
    "The CPU demonstration: one cycle from random weights, in bfloat16 where that pays, ranked every fifth epoch"
    learn.model.to(memory_format=torch.channels_last)
    cbs = [ValidateEvery(5), *([CPUBfloat16()] if _on_cpu(learn) and bfloat16_pays() and not hasattr(learn, 'cpu_bfloat16') else [])]
    learn.fit_one_cycle(epochs, 3e-3, cbs=cbs + _second_phase(learn, epochs - epochs//5, diversity))


def fit_one_cycle(
    learn,          # A ReIDLearner
    epochs:int=60,  # Epochs in all
    *,
    diversity:bool=True, # Whether the last sixth has the semantic diversity loss
):
    "A short modern schedule: one cycle at the baseline's rate"
    learn.fit_one_cycle(epochs, 3.5e-4, cbs=_second_phase(learn, epochs - epochs//6, diversity))


def fit_baseline(
    learn,          # A ReIDLearner
    epochs:int=120, # Epochs in all
    *,
    lr:float=3.5e-4,         # Rate between the warm-up and the first milestone
    warmup:int=10,           # Epochs of warm-up, of 120; of other `epochs` as large a share
    milestones=(40, 70),     # Epochs that begin with a tenth of the rate, of 120; of other `epochs` as large shares
    diversity:bool=False,    # The baseline has no semantic diversity loss; True adds it from the last milestone on, where the model has SFB
):
    "reid-strong-baseline's schedule (METHOD: Training), ranked every tenth epoch"
    schedule = _schedule(lr, warmup, milestones, epochs/120)
    learn.fit(epochs, lr, cbs=[schedule, ValidateEvery(10), *_second_phase(learn, max(schedule.how['milestones'], default=0), diversity)])


def fit_paper(
    learn,          # A ReIDLearner
    epochs:int=500, # Epochs of both stages, 460 + 40; of another number as large shares
    *,
    lr:float=3.5e-4,         # First stage: rate between the warm-up and the first milestone, the baseline's
    warmup:int=10,           # First stage: epochs of warm-up
    milestones=(40, 70),     # First stage: epochs that begin with a tenth of the rate (reading: the baseline's; the authors' code: (40,) for CUHK03)
    second_lr:float=1e-3,    # Second stage: its constant rate (paper, section 4.1; the authors' code goes on at the decayed rate)
    diversity:bool=True,     # Whether the second stage has the semantic diversity loss; a model without SFB has none
):
    """The paper's two stages (section 4.1; METHOD: Training), ranked every twentieth epoch: the semantic diversity loss is in the second alone.

    Warm-up and milestones stay where they are as long as the first stage has the baseline's 120 epochs; in a shorter one they are drawn together."""
    second = max(round(epochs*40/500), int(epochs > 1))
    first = epochs - second
    learn.fit(first, lr, cbs=[_schedule(lr, warmup, milestones, min(1, first/120)), ValidateEvery(20)])
    if second: learn.fit(second, second_lr, cbs=[ValidateEvery(20), *_second_phase(learn, 0, diversity)])


def _schedule(lr, warmup, milestones, share):
    "Warm-up and milestones at a share of their epochs; the first epochs are before any milestone"
    return WarmupMilestones(lr, warmup=round(warmup*share), milestones=[max(1, round(m*share)) for m in milestones])


def _second_phase(learn, start_epoch, diversity):
    return [SemanticDiversityPhase(start_epoch=start_epoch)] if diversity and learn.model.sfb is not None else []

def _on_cpu(learn): return learn.dls.device.type == 'cpu'


# Adam as the papers mean it: fastai's own has eps 1e-5 and averages the squared gradient over 100 steps
ADAM = partial(Adam, decouple_wd=False, mom=.9, sqr_mom=.999, eps=1e-8)

RECIPES = {
    # From random weights in few steps: weight decay apart from the gradient and nothing erased learn faster than the baseline's ways, and
    # with the paper's weight of 2 the masks stay at what the place in the picture says (measured: mask loss 0.84 after 6 epochs, with 20 it is 0.45)
    'quick': Recipe(dict(size=(128, 64), bs=64, pad=4, erase=0., cache='ram'),
                    dict(arch='resnet18', pretrained=False, hidden=256, opt_func=Adam, wd=.01, wd_bn_bias=False,
                         loss_func=partial(MagnifierLoss, mask_weight=20.)), fit_quick, 16,
                    'ResNet-18 from random weights at 128 x 64: a demonstration sized for two CPU cores'),
    'one_cycle': Recipe(dict(size=(384, 192), bs=64), dict(arch='resnet50', pretrained=True), fit_one_cycle, 60,
                        'ResNet-50 from ImageNet weights at 384 x 192, one cycle of 60 epochs'),
    'baseline': Recipe(dict(size=(384, 192), bs=64, n_per_id=4, cache='disk'),
                       dict(arch='resnet50', pretrained=True, mask=False, sab=False, sfb=False, opt_func=ADAM), fit_baseline, 120,
                       "reid-strong-baseline's 120 epochs at the paper's size, the global branch alone (row G of the paper's Table 2)"),
    'paper': Recipe(dict(size=(384, 192), bs=64, n_per_id=4, cache='disk'), dict(arch='resnet50', pretrained=True, opt_func=ADAM),
                    fit_paper, 500, "the paper's two stages: all branches, then the semantic diversity loss too"),
}


def recipe(
    name:str, # One of `RECIPES`
) -> Recipe:  # The recipe of that name
    "Recipe by name; a ValueError for an unknown one lists the known"
    if name not in RECIPES: raise ValueError(f'unknown recipe {name!r}: use one of {", ".join(RECIPES)}')
    return RECIPES[name]
