"A learner's fingerprint, and learners saved so that loading runs nothing"
import pytest
import torch
from fastai.vision.all import Contrast, Resize, TensorImage, Transform, load_learner
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.transforms import batch_transforms
from magnifier.train.learner import magnifier_learner
from magnifier.train.pretrained import describe_preprocessing

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)


class Grey(Transform):
    "A step of one's own"
    order = 50
    def encodes(self, x: TensorImage): return x.mean(1, keepdim=True).expand_as(x).clone()


def build(dls, seed=0, **kwargs):
    torch.manual_seed(seed)
    return magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **kwargs)


@pytest.mark.parametrize('cache', [None, 'ram'])
def test_preprocessing_in_words(catalog, cache):
    dls = ReIDDataLoaders.from_df(catalog, cache=cache, **SMALL)
    assert describe_preprocessing(dls) == dict(size=[64, 32], resize='squish', interpolation='bilinear', channels='RGB', scale=1/255,
                                               mean=[.485, .456, .406], std=[.229, .224, .225])


def test_what_acts_in_training_alone_is_left_out(catalog):
    dls = ReIDDataLoaders.from_df(catalog, batch_tfms=[*batch_transforms(), Contrast()], **SMALL)
    assert describe_preprocessing(dls) == describe_preprocessing(ReIDDataLoaders.from_df(catalog, **SMALL))


@pytest.mark.parametrize('kwargs, message', [
    (dict(item_tfms=Resize((64, 32))), 'Resize is no step that another program could repeat'),
    (dict(batch_tfms=[]), 'do not resize'), (dict(batch_tfms=[*batch_transforms(), Grey()]), 'Grey is no step')])
def test_preprocessing_without_words(catalog, kwargs, message):
    dls = ReIDDataLoaders.from_df(catalog, **SMALL, **kwargs)
    with pytest.raises(ValueError, match=message): describe_preprocessing(dls)
    learn = build(dls)
    assert learn.fingerprint == learn.fingerprint and len(learn.fingerprint) == 16


def test_fingerprint_says_which_model(dls, catalog, tmp_path):
    learn = build(dls)
    first = learn.fingerprint
    assert len(first) == 16 and int(first, 16) >= 0
    assert build(dls).fingerprint == first and build(dls, seed=1).fingerprint != first
    assert build(ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL)).fingerprint == first  # the same pictures, made another way
    assert build(ReIDDataLoaders.from_df(catalog, **{**SMALL, 'size': (64, 48)})).fingerprint != first
    assert build(dls, soft_masks=True).fingerprint != first  # no weight shows it
    learn.model.to(memory_format=torch.channels_last)
    assert learn.fingerprint == first
    learn.export(tmp_path/'l.pkl')
    assert load_learner(tmp_path/'l.pkl').fingerprint == first


def test_what_an_embedding_does_not_use_leaves_the_fingerprint(dls):
    learn = build(dls)
    first = learn.fingerprint
    with torch.no_grad():
        learn.model.sab.neck.classifier.weight.add_(1)
        learn.model.sfb.region_necks.weight.add_(1)
        assert learn.fingerprint == first
        learn.model.branches['global'].neck.bn.running_mean[0] += .1
        assert learn.fingerprint != first
