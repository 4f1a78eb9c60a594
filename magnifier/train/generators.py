"Generators of random numbers: which a training has, their states in plain values, and seeds for a block of code"

import random
from contextlib import contextmanager

import numpy as np
import torch
from fastai.vision.all import set_seed

__all__ = ['seeded']

KINDS = (random.Random, torch.Generator, np.random.Generator)


@contextmanager
def seeded(
    seed: int,  # Of Python's, NumPy's and torch's global generators
):
    "Inside, the global generators start from `seed`; afterwards their former state is restored"
    before = global_states()
    try:
        set_seed(seed)
        yield
    finally: set_global_states(before)


def learner_generators(
    learn,  # A Learner
) -> dict:  # name -> generator: those that its callbacks, loaders, transforms and loss hold as attributes
    "Generators of a training. Those of a loader's processes are seeded by torch's global generator in each epoch"
    owners = {f'callback {cb.name}': cb for cb in learn.cbs} | {'loss': learn.loss_func}
    for i, dl in enumerate(plain_loaders(learn)):
        owners[f'loader {i}'] = dl
        for pipeline in ('after_item', 'before_batch', 'after_batch'):
            tfms = getattr(getattr(dl, pipeline, None), 'fs', ())
            owners |= {f'loader {i} {pipeline} {j} {type(t).__name__}': t for j, t in enumerate(tfms)}
    found = {}
    for name, owner in owners.items():
        for attribute, value in getattr(owner, '__dict__', {}).items():
            if isinstance(value, KINDS): found[f'{name}.{attribute}'] = value
    return found


def plain_loaders(
    learn,  # A Learner
) -> list:  # Training, validation
    "The loaders that hold the generators and the stream of identities; with several processes, inside the wrappers"
    return [getattr(dl, 'dl', dl) for dl in learn.dls.loaders]


def generator_state(
    generator,  # random.Random, torch.Generator or numpy.random.Generator
):  # Its state in plain values and tensors, which torch reads without running anything
    "State of a generator"
    if isinstance(generator, random.Random): return generator.getstate()
    return generator.get_state() if isinstance(generator, torch.Generator) else _plain(generator.bit_generator.state)


def set_generator_state(
    generator,  # As `generator_state` takes it
    state,  # What that gave
):
    "Restores a generator's state"
    if isinstance(generator, random.Random): generator.setstate(state)
    elif isinstance(generator, torch.Generator): generator.set_state(state)
    else: generator.bit_generator.state = _numpy(state)


def global_states() -> dict:  # By library; those of every GPU too
    "States of the global generators, which transforms of single images and torch's layers use"
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return dict(python=random.getstate(), numpy=_plain(np.random.get_state()), torch=torch.get_rng_state(), cuda=cuda)


def set_global_states(
    states: dict,  # What `global_states` gave
):
    "Restores the states; states of missing GPUs are ignored"
    random.setstate(states['python'])
    np.random.set_state(_numpy(states['numpy']))
    torch.set_rng_state(states['torch'])
    for i, state in enumerate(states['cuda'][:torch.cuda.device_count()]): torch.cuda.set_rng_state(state, i)


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
