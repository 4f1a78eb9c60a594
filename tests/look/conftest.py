"Learners that pictures are drawn of: made once, only looked through"
import pytest
import torch


@pytest.fixture(scope='session')
def few(catalog):
    "A dozen test images: four identities that can be found, and their masks"
    test = catalog[catalog.split != 'train']
    ids = [p for p in test.pid[test.split == 'query'].unique() if p][:4]
    rows = test[test.pid.isin(ids)]
    return rows.groupby(['split', 'pid'], group_keys=False).head(3).reset_index(drop=True)


def make_learner(catalog, few, path, **kwargs):
    "A silent learner on a few images, its batch norms filled as if it had been trained"
    import pandas as pd
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    rows = pd.concat([catalog[catalog.split == 'train'], few], ignore_index=True)
    dls = ReIDDataLoaders.from_df(rows, path=path, size=(64, 32), bs=8, n_per_id=2, pad=2, num_workers=0)
    torch.manual_seed(0)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **kwargs)
    fill_norms(learn)
    return learn


def fill_norms(learn, batches=2):
    "Running means of the region necks and BNNecks as training leaves them"
    x, m, _ = learn.dls.train.new(shuffle=False, bs=16).one_batch()
    learn.model.train()
    with torch.no_grad():
        for _ in range(30): learn.model(x, m if learn.model.segmentation is not None else None)
    learn.model.eval()


@pytest.fixture(scope='session')
def seer(catalog, few, tmp_path_factory):
    "The full model"
    learn = make_learner(catalog, few, tmp_path_factory.mktemp('seer'))
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def blind(catalog, few, tmp_path_factory):
    "Global branch alone, on a catalog without masks"
    learn = make_learner(catalog.assign(mask=None), few.assign(mask=None), tmp_path_factory.mktemp('blind'),
                         mask=False, sab=False, sfb=False)
    with learn.no_bar(), learn.no_logging(): yield learn


@pytest.fixture(scope='session')
def people(seer, few, tmp_path_factory):
    "A gallery of the dozen, an hour apart, made by the full model"
    pytest.importorskip('lance')
    from magnifier.gallery.gallery import Gallery
    with Gallery(tmp_path_factory.mktemp('people')/'people', regions=True) as gallery:
        gallery.add(seer, few.assign(time=[1_760_000_000 + 3600*i for i in range(len(few))]), progress=False)
        yield gallery


@pytest.fixture
def finder(seer, people):
    "What a page asks"
    from magnifier.app.search import Finder
    return Finder(seer, people)
