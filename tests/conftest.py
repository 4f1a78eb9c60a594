"Shared data: one small walkers set a test process, and learners small enough for a CPU"
import signal

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use('Agg')


def pytest_configure(config):
    # Ctrl-C is tested: a shell that runs this in the background may have it ignored, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests that name no number of drawn cases draw few of them where the slow tests are left out
    settings.register_profile('all', max_examples=300, deadline=None)
    settings.register_profile('loop', max_examples=25, deadline=None)
    settings.load_profile('loop' if 'not slow' in config.option.markexpr else 'all')


def pytest_collection_modifyitems(items):
    "A fork has none of its parent's threads, and libraries that had some crash in it: tests that fork come first"
    items.sort(key=lambda item: 'forks' not in item.keywords)


@pytest.fixture(scope='session', autouse=True)
def _one_thread():
    "Test tensors are so small that threads cost more than they bring"
    import torch
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def walkers_root(tmp_path_factory):
    "A small built-in data set, drawn once"
    from magnifier.walkers.dataset import walkers
    return walkers(tmp_path_factory.mktemp('walkers')/'market', n_train=8, n_test=6, seed=0, n_queries=3)


@pytest.fixture(scope='session')
def catalog(walkers_root):
    "Its catalog, masks included; a copy belongs to each test that changes it"
    from magnifier.data.readers import market1501
    return market1501(walkers_root)


@pytest.fixture
def dls(catalog, tmp_path):
    "Loaders of small batches in the test's own process"
    from magnifier.data.loaders import ReIDDataLoaders
    return ReIDDataLoaders.from_df(catalog, path=tmp_path, size=(64, 32), bs=8, n_per_id=2, pad=2, num_workers=0)


@pytest.fixture(scope='session')
def arch():
    "The backbone of `learn`"
    return 'resnet18'


@pytest.fixture
def learn(dls, arch):
    "An untrained full model, silent"
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(dls, arch, pretrained=False, hidden=32)
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def few(catalog):
    "Images of four identities that can be found: of each at most three queries and three of the gallery"
    test = catalog[catalog.split != 'train']
    ids = [pid for pid in test.pid[test.split == 'query'].unique() if pid][:4]
    return test[test.pid.isin(ids)].groupby(['split', 'pid'], group_keys=False).head(3).reset_index(drop=True)


def make_learner(catalog, few, path, **kwargs):
    "A silent learner on a few images, its batch norms filled as if it had been trained"
    import pandas as pd
    import torch
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    rows = pd.concat([catalog[catalog.split == 'train'], few], ignore_index=True)
    dls = ReIDDataLoaders.from_df(rows, path=path, size=(64, 32), bs=8, n_per_id=2, pad=2, num_workers=0)
    torch.manual_seed(0)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **kwargs)
    images, masks, _ = learn.dls.train.new(shuffle=False, bs=16).one_batch()
    norms = [m for m in learn.model.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))]
    for norm in norms: norm.momentum = 1 - .9**30  # what thirty passes of one batch leave
    learn.model.train()
    with torch.no_grad(): learn.model(images, masks if learn.model.segmentation is not None else None)
    for norm in norms: norm.momentum = .1
    learn.model.eval()
    return learn


@pytest.fixture(scope='session')
def seer(catalog, few, tmp_path_factory):
    "The full model, only looked through"
    learn = make_learner(catalog, few, tmp_path_factory.mktemp('seer'))
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def blind(catalog, few, tmp_path_factory):
    "The global branch alone, on a catalog without masks"
    catalog, few = (table.assign(mask=None) for table in (catalog, few))
    learn = make_learner(catalog, few, tmp_path_factory.mktemp('blind'), mask=False, sab=False, sfb=False)
    with learn.no_bar(), learn.no_logging(): yield learn
