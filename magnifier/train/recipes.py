"Whole trainings by name: what to load, which model, and how to fit it"
from functools import partial
from typing import NamedTuple

import torch
from fastai.vision.all import Adam
from magnifier.train.callbacks import CPUBfloat16, SemanticDiversityPhase, ValidateEvery, bfloat16_pays
from magnifier.train.losses import MagnifierLoss

__all__ = ['Recipe', 'RECIPES', 'recipe', 'fit_quick', 'fit_one_cycle']


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
    cbs = [ValidateEvery(5), *([CPUBfloat16()] if _on_cpu(learn) and bfloat16_pays() else [])]
    learn.fit_one_cycle(epochs, 3e-3, cbs=cbs + _second_phase(learn, epochs - epochs//5, diversity))


def fit_one_cycle(
    learn,          # A ReIDLearner
    epochs:int=60,  # Epochs in all
    *,
    diversity:bool=True, # Whether the last sixth has the semantic diversity loss
):
    "A short modern schedule: one cycle at the baseline's rate"
    learn.fit_one_cycle(epochs, 3.5e-4, cbs=_second_phase(learn, epochs - epochs//6, diversity))


def _second_phase(learn, start_epoch, diversity):
    return [SemanticDiversityPhase(start_epoch=start_epoch)] if diversity and learn.model.sfb is not None else []

def _on_cpu(learn): return learn.dls.device.type == 'cpu'


RECIPES = {
    # From random weights in few steps: weight decay apart from the gradient and nothing erased learn faster than the baseline's ways, and
    # with the paper's weight of 2 the masks stay at what the place in the picture says (measured: mask loss 0.84 after 6 epochs, with 20 it is 0.45)
    'quick': Recipe(dict(size=(128, 64), bs=64, pad=4, erase=0., cache='ram'),
                    dict(arch='resnet18', pretrained=False, hidden=256, opt_func=Adam, wd=.01, wd_bn_bias=False,
                         loss_func=partial(MagnifierLoss, mask_weight=20.)), fit_quick, 16,
                    'ResNet-18 from random weights at 128 x 64: a demonstration sized for two CPU cores'),
    'one_cycle': Recipe(dict(size=(384, 192), bs=64), dict(arch='resnet50', pretrained=True), fit_one_cycle, 60,
                        'ResNet-50 from ImageNet weights at 384 x 192, one cycle of 60 epochs'),
}


def recipe(
    name:str, # One of `RECIPES`
) -> Recipe:  # The recipe of that name
    "Recipe by name; a ValueError for an unknown one lists the known"
    if name not in RECIPES: raise ValueError(f'unknown recipe {name!r}: use one of {", ".join(RECIPES)}')
    return RECIPES[name]
