"Loader processes that are not forked: everything in a loader pickles"
import pickle
from multiprocessing import get_all_start_methods

import pytest
import torch
from torch import multiprocessing

from magnifier.data.loaders import ReIDDataLoaders

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, erase=.5)


def loaders(catalog, **kwargs):
    "Every kind of loader by its name, with a cache and without"
    found = {}
    for cache in (None, 'ram'):
        dls = ReIDDataLoaders.from_df(catalog, cache=cache, **SMALL, **kwargs)
        found |= {f'train {cache}': dls.train, f'valid {cache}': dls.valid,
                  f'test {cache}': dls.test_dl(catalog.path[:20].tolist()),
                  f'labelled {cache}': dls.test_dl(catalog[:20], with_labels=True)}
    return found


def test_loaders_pickle(catalog):
    for name, loader in loaders(catalog, num_workers=0).items():
        again = pickle.loads(pickle.dumps(loader.fake_l)).d  # what a process is given
        assert len(again) == len(loader), name
        if 'valid' in name: assert torch.equal(again.one_batch()[0], loader.one_batch()[0]), name


@pytest.fixture(params=['spawn', 'forkserver'])
def start_method(request):
    "Processes start in this way"
    if request.param not in get_all_start_methods(): pytest.skip('not on this system')
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['train None', 'test None', 'labelled ram'])
def test_processes_that_are_not_forked_load_the_same(catalog, start_method, kind):
    here, there = loaders(catalog, num_workers=0)[kind], loaders(catalog, num_workers=1)[kind]
    batches = list(there)
    assert len(batches) == len(here)
    if kind.startswith('train'):  # moved at random, each in its own way: the same people in the same order
        here.epoch = there.epoch - 1
        assert torch.equal(torch.cat([b[2] for b in batches]), torch.cat([b[2] for b in here]))
    else:
        for a, b in zip(batches, here, strict=True): assert torch.equal(a[0], b[0])
