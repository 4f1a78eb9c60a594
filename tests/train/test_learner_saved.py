"A learner's fingerprint, and learners saved so that loading runs nothing"
import shutil
import sys

import pandas as pd
import pytest
import torch
from fastai.vision.all import Contrast, Resize, TensorImage, Transform, load_learner
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.preprocess import Preprocessing
from magnifier.data.transforms import batch_transforms
from magnifier.model.embedder import Embedder
from magnifier.train.learner import ReIDLearner, magnifier_learner

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)


class Grey(Transform):
    "A step of one's own"
    order = 50
    def encodes(self, x: TensorImage): return x.mean(1, keepdim=True).expand_as(x).clone()


def build(dls, arch='resnet18', seed=0, **kwargs):
    torch.manual_seed(seed)
    return magnifier_learner(dls, arch, pretrained=False, hidden=32, **kwargs)


@pytest.mark.parametrize('cache', [None, 'ram'])
def test_preprocessing_in_words(catalog, cache):
    dls = ReIDDataLoaders.from_df(catalog, cache=cache, **SMALL)
    assert dls.preprocessing.to_json() == dict(size=[64, 32], resize='squish', interpolation='bilinear', channels='RGB',
                                               scale=1/255, mean=[.485, .456, .406], std=[.229, .224, .225])


def test_what_acts_in_training_alone_is_left_out(catalog):
    dls = ReIDDataLoaders.from_df(catalog, batch_tfms=[*batch_transforms(Preprocessing((64, 32))), Contrast()], **SMALL)
    assert dls.preprocessing == ReIDDataLoaders.from_df(catalog, **SMALL).preprocessing


@pytest.mark.parametrize('kwargs, message', [
    (dict(item_tfms=Resize((64, 32))), 'Resize is a custom transform, which another program cannot repeat'),
    (dict(batch_tfms=[]), 'do not resize'),
    (dict(batch_tfms=[*batch_transforms(Preprocessing((64, 32))), Grey()]), 'Grey is a custom transform')])
def test_preprocessing_without_words(catalog, kwargs, message, arch):
    dls = ReIDDataLoaders.from_df(catalog, **SMALL, **kwargs)
    with pytest.raises(ValueError, match=message): dls.preprocessing
    learn = build(dls, arch)
    assert learn.fingerprint == learn.fingerprint
    assert len(learn.fingerprint) == 16


def test_fingerprint_says_which_model(dls, catalog, tmp_path, arch):
    learn = build(dls, arch)
    first = learn.fingerprint
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert build(dls, arch).fingerprint == first
    assert build(dls, arch, seed=1).fingerprint != first
    # the same pictures, made another way
    assert build(ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL), arch).fingerprint == first
    assert build(ReIDDataLoaders.from_df(catalog, **{**SMALL, 'size': (64, 48)}), arch).fingerprint != first
    assert build(dls, arch, soft_masks=True).fingerprint != first  # no weight shows it
    learn.model.to(memory_format=torch.channels_last)
    assert learn.fingerprint == first
    learn.export(tmp_path/'l.pkl')
    assert load_learner(tmp_path/'l.pkl').fingerprint == first


def test_a_folder_from_before_an_argument_keeps_its_fingerprint(dls, tmp_path):
    learn = build(dls, 'resnet10_narrow')
    del learn.model.arguments['last_convolution']
    learn.save_pretrained(tmp_path/'old')
    for again in (ReIDLearner.from_pretrained(tmp_path/'old'), Embedder(tmp_path/'old')):
        assert again.fingerprint == learn.fingerprint


def test_what_an_embedding_does_not_use_leaves_the_fingerprint(dls, arch):
    learn = build(dls, arch)
    first = learn.fingerprint
    with torch.no_grad():
        learn.model.sab.neck.classifier.weight.add_(1)
        learn.model.sfb.region_necks.weight.add_(1)
        assert learn.fingerprint == first
        learn.model.branches['global'].neck.bn.running_mean[0] += .1
        assert learn.fingerprint != first


@pytest.fixture
def silent(dls):
    "A learner whose batch norms have seen a batch, without bars"
    learn = build(dls)
    with torch.no_grad(): learn.model(torch.randn(8, 3, 64, 32))
    with learn.no_bar(), learn.no_logging(): yield learn


def quiet(learn):
    "Without a progress bar"
    learn.remove_cb(learn.progress)
    return learn


@pytest.mark.slow
def test_saved_and_loaded_without_loaders(silent, catalog, tmp_path):
    folder = silent.save_pretrained(tmp_path/'people')
    again = quiet(ReIDLearner.from_pretrained(folder))
    test = catalog[catalog.split != 'train']
    assert again.fingerprint == silent.fingerprint
    assert list(again.dls.vocab) == list(silent.dls.vocab)
    assert again.dls.c == silent.dls.c
    torch.testing.assert_close(again.embed(test), silent.embed(test), atol=1e-5, rtol=0)
    pd.testing.assert_frame_equal(again.evaluate(test), silent.evaluate(test))
    one = test.path.iat[0]
    assert (again.predict(one)[1][0] == silent.predict(one)[1][0]).all()  # the same part mask
    assert again.save_pretrained(tmp_path/'twice')
    assert (tmp_path/'twice/config.json').read_text() == (folder/'config.json').read_text()
    again.export(tmp_path/'again.pkl')
    assert load_learner(tmp_path/'again.pkl').fingerprint == silent.fingerprint


@pytest.mark.slow
def test_loaded_to_train_on(silent, dls, tmp_path):
    folder = silent.save_pretrained(str(tmp_path/'people'))
    again = ReIDLearner.from_pretrained(folder, dls, keep=2, lr=1e-3)
    assert again.region_occlusion.keep == 2
    assert again.lr == 1e-3
    assert again.fingerprint == silent.fingerprint
    with again.no_bar(), again.no_logging(): again.fit(1)
    assert again.fingerprint != silent.fingerprint


def test_loaders_of_others_are_refused(silent, catalog, tmp_path):
    folder = silent.save_pretrained(tmp_path/'people')
    others = ReIDDataLoaders.from_df(catalog[(catalog.split != 'train') | (catalog.pid != silent.dls.vocab[0])],
                                     **SMALL)
    with pytest.raises(ValueError,
                       match='8 identities, and dls has 7 others.*magnifier_learner.dls, weights=.*model.safetensors'):
        ReIDLearner.from_pretrained(folder, others)
    magnifier_learner(others, 'resnet18', hidden=32, weights=folder/'model.safetensors')  # as the message says


def test_what_no_folder_can_hold_is_refused(catalog, tmp_path, arch):
    learn = build(ReIDDataLoaders.from_df(catalog, item_tfms=Resize((64, 32)), **SMALL), arch)
    with pytest.raises(ValueError, match='another program cannot repeat'):
        learn.save_pretrained(tmp_path/'people')
    assert not (tmp_path/'people').exists()


@pytest.mark.slow
def test_the_hub_gets_the_two_files(silent, tmp_path, monkeypatch):
    import huggingface_hub
    shelf, calls = tmp_path/'hub', []

    class Api:
        "A hub that is a folder"
        def __init__(self, token=None): calls.append(token)

        def create_repo(self, name, private, exist_ok):
            calls.append((name, private))
            (shelf/name).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
            for name in allow_patterns: shutil.copy(f'{folder_path}/{name}', shelf/repo_id/name)
            return commit_message

    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **kw: str(shelf/name))
    assert silent.push_to_hub('ann/people', private=True, token='t', message='First') == 'First'
    assert calls == ['t', ('ann/people', True)]
    assert ReIDLearner.from_pretrained('ann/people', hub=dict(revision='main')).fingerprint == silent.fingerprint
    assert Embedder('ann/people').fingerprint == silent.fingerprint
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match=r'magnifier-reid\[hub\]'): silent.push_to_hub('ann/people')
