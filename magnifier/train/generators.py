"Every generator that a training step draws from: found, read and put back"
import random
from contextlib import contextmanager

import numpy as np
import torch
from fastai.vision.all import set_seed

__all__ = ['generator_state', 'set_generator_state', 'learner_generators', 'global_states', 'set_global_states', 'seeded', 'plain_loaders']


def generator_state(
    generator, # random.Random, torch.Generator or numpy.random.Generator
):             # Its state in plain values and tensors, which torch reads without running anything
    "State of a generator"
    if isinstance(generator, random.Random): return generator.getstate()
    return generator.get_state() if isinstance(generator, torch.Generator) else _plain(generator.bit_generator.state)


def set_generator_state(
    generator, # As `generator_state` takes it
    state,     # What that gave
):
    "Puts a generator back; from here on it draws what it drew then"
    if isinstance(generator, random.Random): generator.setstate(state)
    elif isinstance(generator, torch.Generator): generator.set_state(state)
    else: generator.bit_generator.state = _numpy(state)


def plain_loaders(
    learn, # A Learner
) -> list: # Its loaders; where several processes share them, those beneath
    "The loaders that hold the generators and the stream of identities"
    return [getattr(dl, 'dl', dl) for dl in learn.dls.loaders]


def learner_generators(
    learn, # A Learner
) -> dict: # name -> generator: those that its callbacks, loaders, transforms and loss hold as attributes
    """Generators that belong to a training.

    What a loader's workers draw from is not among them: their seeds are drawn anew each epoch from torch's global generator."""
    owners = {f'callback {cb.name}': cb for cb in learn.cbs} | {'loss': learn.loss_func}
    for i, dl in enumerate(plain_loaders(learn)):
        owners[f'loader {i}'] = dl
        for pipeline in ('after_item', 'before_batch', 'after_batch'):
            tfms = getattr(getattr(dl, pipeline, None), 'fs', ())
            owners |= {f'loader {i} {pipeline} {j} {type(t).__name__}': t for j, t in enumerate(tfms)}
    kinds = random.Random, torch.Generator, np.random.Generator
    return {f'{name}.{attr}': value for name, owner in owners.items() for attr, value in getattr(owner, '__dict__', {}).items()
            if isinstance(value, kinds)}


def global_states() -> dict:  # By library; those of every GPU too
    "States of the generators that a process has one of: transforms of single pictures and torch's layers draw from them"
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return dict(python=random.getstate(), numpy=_plain(np.random.get_state()), torch=torch.get_rng_state(), cuda=cuda)


def set_global_states(
    states:dict, # What `global_states` gave
):
    "Puts them back; states of GPUs that are not here are left out"
    random.setstate(states['python'])
    np.random.set_state(_numpy(states['numpy']))
    torch.set_rng_state(states['torch'])
    for i, state in enumerate(states['cuda'][:torch.cuda.device_count()]): torch.cuda.set_rng_state(state, i)


@contextmanager
def seeded(
    seed:int, # Of Python's, NumPy's and torch's global generators
):
    "Inside, the global generators start from `seed`; afterwards they are where they were, for whoever called"
    before = global_states()
    try:
        set_seed(seed)
        yield
    finally: set_global_states(before)


def _plain(value):
    "NumPy's states without NumPy: arrays become tensors"
    if isinstance(value, dict): return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)): return tuple(map(_plain, value))
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def _numpy(value):
    "Back from `_plain`"
    if isinstance(value, dict): return {k: _numpy(v) for k, v in value.items()}
    if isinstance(value, tuple): return tuple(map(_numpy, value))
    return value.numpy().astype(np.uint32) if isinstance(value, torch.Tensor) else value
