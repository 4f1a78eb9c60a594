"A network and data sets so small that whole trainings fit into a test"
import pandas as pd
import pytest
from torch import nn
from torchvision.models.resnet import BasicBlock


def tiny(weights=None):
    "A residual network of four blocks"
    net = nn.Module()
    net.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    net.bn1 = nn.BatchNorm2d(8)
    net.relu = nn.ReLU()
    net.maxpool = nn.MaxPool2d(2)
    for i, (before, after, stride) in enumerate([(8, 8, 1), (8, 16, 2), (16, 16, 2), (16, 32, 2)]):
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False),
                                 nn.BatchNorm2d(after)) if stride > 1 or before != after else None
        setattr(net, f'layer{i + 1}', nn.Sequential(BasicBlock(before, after, stride, shortcut)))
    return net


@pytest.fixture(scope='session')
def catalog(catalog, few):
    "Of each training identity six images; four identities to look for"
    train = catalog[catalog.split == 'train'].groupby('pid').head(6)
    return pd.concat([train, few], ignore_index=True)


@pytest.fixture(scope='session')
def arch():
    "The small network, as the backbone of a learner"
    return tiny


@pytest.fixture(scope='session')
def small(catalog):
    "Four identities to train on, three to look for"
    train, test = catalog[catalog.split == 'train'], catalog[catalog.split != 'train']
    few = [p for p in test.pid[test.split == 'query'].unique() if p > 0][:3]
    rows = [train[train.pid.isin(train.pid.unique()[:4])].groupby('pid').head(4),
            test[test.pid.isin(few)].groupby(['pid', 'split']).head(2)]
    return pd.concat(rows).reset_index(drop=True)


@pytest.fixture(scope='session')
def how():
    "Arguments of a training of four steps an epoch"
    return dict(loading=dict(size=(32, 16), bs=4, n_per_id=2, pad=2, cache=None, erase=.5),
                model=dict(arch=tiny, pretrained=False, hidden=16), workers=0)


@pytest.fixture
def small_learn(small, how, tmp_path):
    "A silent learner of that size"
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(ReIDDataLoaders.from_df(small, path=tmp_path, num_workers=0, **how['loading']),
                              **how['model'])
    with learn.no_bar(), learn.no_logging(): yield learn
