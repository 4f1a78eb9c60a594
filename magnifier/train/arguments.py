"Arguments of a training by name, as text from a shell, checked against the signatures of the functions that take them"
import ast
from inspect import Parameter, signature
from types import NoneType
from typing import NamedTuple, get_args, get_origin

from magnifier.data.loaders import ReIDDataLoaders
from magnifier.train.learner import magnifier_learner
from magnifier.train.losses import MagnifierLoss
from magnifier.train.recipes import Recipe

__all__ = ['Argument', 'known_arguments', 'parse_arguments']

# By the argument of `train_run` that they belong to; the first one that knows a name has it
TAKERS = dict(fitting=Recipe.plan, loss=MagnifierLoss, model=magnifier_learner, loading=ReIDDataLoaders.from_df)
# What a run says itself, or what no word can say
OTHERWISE = {
    'self',
    'epochs',
    'seed',
    'num_workers',
    'path',
    'model_dir',
    'device',
    'n_classes',
    'masks',
    'reduction',
    'vocab',
    'loss_func',
}
WORDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a word',
    tuple: 'numbers with commas between',
    NoneType: 'none',
}
SAID = dict(true=True, yes=True, false=False, no=False, none=None)


class Argument(NamedTuple):
    "One argument that can be given as text"

    group: str  # Which argument of `train_run` it belongs to: fitting, loss, model or loading
    types: tuple  # Types that it takes


def known_arguments() -> dict[str, Argument]:
    "Every argument of the fit, the loss, the learner and the loaders that takes numbers or text, by name"
    known = {}
    for group, taker in TAKERS.items():
        for name, parameter in signature(taker).parameters.items():
            types = _types(parameter)
            if types and name not in OTHERWISE: known.setdefault(name, Argument(group, types))
    return known


def _types(parameter):
    if parameter.annotation is Parameter.empty: return ()
    options = get_args(parameter.annotation) if get_origin(parameter.annotation) is not tuple else ()
    found = [get_origin(o) or o for o in options or (parameter.annotation,)]
    return tuple(t for t in (tuple if t is tuple else t for t in found) if t in WORDS)


def parse_arguments(
    texts,  # Each as 'name=value': 'keep=6', 'milestones=40,70', 'sfb=ab'
) -> dict[str, dict]:  # Arguments of `train_run`: fitting, loss, model, loading
    "The values, converted to their types. A ValueError lists the known names, or says which type is wanted"
    known, found = known_arguments(), {group: {} for group in TAKERS}
    for text in texts:
        name, equals, word = text.partition('=')
        if not equals: raise ValueError(f'{text!r}: give name=value, as keep=6')
        if name not in known: raise ValueError(f'unknown argument {name!r}: use one of {", ".join(sorted(known))}')
        group, types = known[name]
        found[group][name] = _value(name, word, types)
    return found


def _said(word):
    if word.lower() in SAID: return SAID[word.lower()]
    try: return ast.literal_eval(word)
    except (ValueError, SyntaxError): return word


def _value(name, word, types):
    said = _said(word)
    if tuple in types and isinstance(said, (int, float)) and not isinstance(said, bool): said = (said,)
    if float in types and type(said) is int: said = float(said)
    if type(said) in types: return said
    if str in types: return word
    raise ValueError(f'{name}={word}: {" or ".join(WORDS[t] for t in types)} is wanted')
