"States of generators, read and put back"
import random

import numpy as np
import pytest
import torch
from magnifier.train.generators import (generator_state, global_states, learner_generators, seeded,
                                        set_generator_state, set_global_states)

DRAWS = {
    'python': (lambda: random.Random(1), lambda g: [g.random() for _ in range(3)] + [g.gauss(0, 1)]),
    'torch': (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand(5, generator=g).tolist()),
    'numpy': (lambda: np.random.default_rng(1), lambda g: g.random(5).tolist()),
    'numpy, Mersenne twister': (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.random(5).tolist()),
}


def through_a_file(state, path):
    torch.save(state, path/'state')
    return torch.load(path/'state', weights_only=True)


@pytest.mark.parametrize('kind', DRAWS)
def test_a_generator_put_back_draws_the_same(kind, tmp_path):
    make, draw = DRAWS[kind]
    g = make()
    draw(g)
    state = through_a_file(generator_state(g), tmp_path)
    expected, other = draw(g), make()
    assert draw(g) != expected
    for to in (g, other):
        set_generator_state(to, state)
        assert draw(to) == expected


def draw_globally():
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
            float(torch.rand(1)), float(torch.randn(1))]


def test_the_global_generators_too(tmp_path):
    draw_globally()
    states = through_a_file(global_states(), tmp_path)
    expected = draw_globally()
    assert draw_globally() != expected
    set_global_states(states)
    assert draw_globally() == expected


def test_seeded_puts_back_what_it_found():
    states = global_states()
    expected = draw_globally()
    set_global_states(states)
    with seeded(3): a = draw_globally()
    with pytest.raises(KeyError), seeded(3):
        assert draw_globally() == a
        raise KeyError
    assert draw_globally() == expected != a


def test_all_generators_of_a_training_are_found(small, how, tmp_path):
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    for cache in (None, 'ram'):
        learn = magnifier_learner(ReIDDataLoaders.from_df(small, path=tmp_path, num_workers=0,
                                                          **{**how['loading'], 'cache': cache}), **how['model'])
        names = set(learner_generators(learn))
        assert {'callback region_occlusion.rng', 'loader 0.rng', 'loader 1.rng'} <= names
        assert any('EraseBoxes.generator' in n for n in names)
        assert any('FitBatch.generator' in n for n in names) == (cache == 'ram')
