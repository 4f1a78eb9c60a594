"A small gallery, and the learners that made it: made once, only looked through"
import pandas as pd
import pytest
import torch


@pytest.fixture(scope='session')
def few(catalog):
    "Images of four identities that can be found, three in each of the splits query and gallery"
    test = catalog[catalog.split != 'train']
    ids = [pid for pid in test.pid[test.split == 'query'].unique() if pid][:4]
    return test[test.pid.isin(ids)].groupby(['split', 'pid'], group_keys=False).head(3).reset_index(drop=True)


def make_learner(catalog, few, path, **kwargs):
    "A silent learner on a few images, its batch norms filled as if it had been trained"
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    rows = pd.concat([catalog[catalog.split == 'train'], few], ignore_index=True)
    dls = ReIDDataLoaders.from_df(rows, path=path, size=(64, 32), bs=8, n_per_id=2, pad=2, num_workers=0)
    torch.manual_seed(0)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **kwargs)
    images, masks, _ = learn.dls.train.new(shuffle=False, bs=16).one_batch()
    learn.model.train()
    with torch.no_grad():
        for _ in range(30): learn.model(images, masks if learn.model.segmentation is not None else None)
    learn.model.eval()
    return learn


@pytest.fixture(scope='session')
def seer(catalog, few, tmp_path_factory):
    "The full model"
    learn = make_learner(catalog, few, tmp_path_factory.mktemp('seer'))
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def blind(catalog, few, tmp_path_factory):
    "The global branch alone, on a catalog without masks"
    learn = make_learner(catalog.assign(mask=None), few.assign(mask=None), tmp_path_factory.mktemp('blind'), mask=False, sab=False, sfb=False)
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def people(seer, few, tmp_path_factory):
    "A gallery of those images, an hour apart, made by the full model"
    from magnifier.gallery.gallery import Gallery
    with Gallery(tmp_path_factory.mktemp('people')/'people', regions=True) as gallery:
        gallery.add(seer, few.assign(time=[1_760_000_000 + 3600*i for i in range(len(few))]), progress=False)
        yield gallery


@pytest.fixture
def finder(seer, people):
    "What a page asks"
    from magnifier.app.search import Finder
    return Finder(seer, people)
