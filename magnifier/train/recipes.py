"Whole trainings by name: what to load, which model, and how to fit it"
from typing import NamedTuple

__all__ = ['Recipe', 'RECIPES', 'recipe', 'fit_quick', 'fit_one_cycle']


class Recipe(NamedTuple):
    "A training: arguments of the loaders and of the learner, and the function that fits"
    loading: dict   # Arguments of `ReIDDataLoaders.from_df`
    model: dict     # Arguments of `magnifier_learner`
    fit: object     # (learn, epochs or None) -> None
    epochs: int     # Epochs where none are asked for
    says: str       # What it does, in one sentence


def fit_quick(
    learn,          # A ReIDLearner
    epochs:int=10,  # Epochs in all; a fifth of them with the semantic diversity loss
):
    "The CPU demonstration: one cycle from random weights, the last fifth with the semantic diversity loss"
    from magnifier.train.callbacks import SemanticDiversityPhase
    learn.fit_one_cycle(epochs, 2e-3, cbs=[SemanticDiversityPhase(start_epoch=epochs - epochs//5)] if learn.model.sfb is not None else None)


def fit_one_cycle(
    learn,          # A ReIDLearner
    epochs:int=60,  # Epochs in all; the last sixth with the semantic diversity loss
):
    "A short modern schedule: one cycle at the baseline's rate"
    from magnifier.train.callbacks import SemanticDiversityPhase
    learn.fit_one_cycle(epochs, 3.5e-4, cbs=[SemanticDiversityPhase(start_epoch=epochs - epochs//6)] if learn.model.sfb is not None else None)


RECIPES = {
    'quick': Recipe(dict(size=(128, 64), bs=64, pad=4), dict(arch='resnet18', pretrained=False, hidden=256), fit_quick, 10,
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
