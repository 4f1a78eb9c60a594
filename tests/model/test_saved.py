"A folder of weights and JSON: what comes back, what is refused, and the fingerprint"
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from magnifier.model import saved
from magnifier.model.embedder import Embedder
from magnifier.model.net import MagnifierNet, create_magnifier
from magnifier.model.saved import fingerprint, model_folder, read_model, write_model
from magnifier.train.metrics import region_embeddings

HOW = dict(size=[64, 32], resize='squish', interpolation='bilinear', channels='RGB', scale=1/255,
           mean=[.485, .456, .406], std=[.229, .224, .225])


def build(seed=0, arch='resnet10_narrow', **kwargs):
    torch.manual_seed(seed)
    return create_magnifier(arch, 3, False, **{'hidden': 16, **kwargs})


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    return write_model(build(), tmp_path_factory.mktemp('saved')/'deep'/'people', HOW, [7, 2, np.int64(11)])


@pytest.fixture
def folder(written, tmp_path): return Path(shutil.copytree(written, tmp_path/'deep'/'people'))


def change(folder, **values):
    config = json.loads((folder/'config.json').read_text())
    for key, value in values.items():
        where = config
        *way, last = key.split('__')
        for step in way: where = where[step]
        where.pop(last, None) if value is None else where.__setitem__(last, value)
    (folder/'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('kwargs', [{}, dict(mask=False, sab=False, sfb=False),
                                    dict(sfb='ab', last_stride=2, region_stage=4), dict(cell='lstm', soft_masks=True)])
def test_what_is_written_comes_back(tmp_path, kwargs):
    model = build(**kwargs).to(memory_format=torch.channels_last)
    write_model(model, tmp_path/'m', HOW, ['ann', 'bob', 'eve'])
    again, config = read_model(str(tmp_path/'m'))
    assert again.arguments == model.arguments
    assert config['classes'] == ['ann', 'bob', 'eve']
    assert config['preprocessing'] == HOW
    assert config['fingerprint'] == fingerprint(model, HOW) == fingerprint(again, HOW)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    grads = lambda m: {k: p.requires_grad for k, p in m.named_parameters()}
    assert grads(again) == grads(model)
    assert again.training
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images).embedding, model.eval()(images).embedding, atol=1e-6, rtol=1e-6)


def test_a_timm_backbone(tmp_path):
    pytest.importorskip('timm')
    model = build(arch='timm/test_efficientnet')
    again, _ = read_model(write_model(model, tmp_path/'m', HOW, [1, 2, 3]))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


def test_written_over_what_is_there(folder):
    (folder/'README.md').write_text('mine')
    write_model(build(1), folder, HOW, [1, 2, 3])
    again, config = read_model(folder)
    assert config['classes'] == [1, 2, 3]
    assert config['fingerprint'] == fingerprint(build(1), HOW)
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'model.safetensors']
    assert os.listdir(folder.parent) == ['people']


def test_a_failure_leaves_what_was_there(folder, monkeypatch):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    def full(*args, **kwargs): raise OSError('No space left on device')
    monkeypatch.setattr('safetensors.torch.save_file', full)
    for target in (folder, folder.with_name('new')):
        with pytest.raises(OSError, match='No space'): write_model(build(1), target, HOW, [1, 2, 3])
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ['people']


def test_half_replaced_is_refused(folder, monkeypatch):
    replace, done = os.replace, []
    def once(src, dst):
        if done: raise KeyboardInterrupt
        done.append(replace(src, dst))
    monkeypatch.setattr(os, 'replace', once)
    with pytest.raises(KeyboardInterrupt): write_model(build(1), folder, HOW, [1, 2, 3])
    with pytest.raises(ValueError, match='do not belong together'): read_model(folder)


def test_a_folder_from_before_an_argument_is_the_same_model(tmp_path):
    model = build(3)
    del model.arguments['last_convolution']
    write_model(model, tmp_path/'old', HOW, [1, 2, 3])
    again, config = read_model(tmp_path/'old')
    assert config['fingerprint'] == fingerprint(again, HOW) == fingerprint(model, HOW)
    write_model(again, tmp_path/'new', HOW, [1, 2, 3])
    assert (tmp_path/'new'/'config.json').read_bytes() == (tmp_path/'old'/'config.json').read_bytes()


@pytest.mark.parametrize('values, message', [
    (dict(format=3, version='9.1'), 'format 3, by magnifier 9.1.*reads format 2'),
    (dict(format=None), 'has no "format"'),
    (dict(classes=None), 'missing classes'),
    (dict(model__depth=3), "config.json: .*unexpected keyword argument 'depth'"),
    (dict(model__sfb='abc'), "config.json: sfb='abc'"),
    (dict(model__arch='os.system'), "unknown arch 'os.system'"),
    (dict(model__hidden=8), 'does not fit the network of config.json.*size mismatch for branches.sab'),
    (dict(model__hidden=10**6), 'size mismatch'),  # refused before memory is asked for
    (dict(model__arch='resnet18'), 'Missing key.*layer1.1'),
    (dict(model__sab=False), 'Unexpected key.*branches.sab'),
    (dict(classes=[1]), 'n_classes=3'),
    (dict(classes=[1, 1, 2]), 'config.json: a list of n_classes=3 different classes'),
    (dict(classes=3), 'a list of n_classes=3'),
    (dict(preprocessing__size=[64]), 'height and width'),
    (dict(preprocessing__size=[128, 64]), 'do not belong together'), (dict(fingerprint='0'*16), 'do not belong')])
def test_changed_arguments_are_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(ValueError, match=message): read_model(folder)


def test_damaged_files_are_refused(folder):
    weights = folder/'model.safetensors'
    tensors = load_file(weights)
    save_file({k: v + (k == 'backbone.conv1.weight') for k, v in tensors.items()}, weights)
    with pytest.raises(ValueError, match='do not belong together'): read_model(folder)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, weights)
    with pytest.raises(ValueError, match='do not belong together'): read_model(folder)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match='cut off or not a safetensors file'): read_model(folder)
    weights.write_bytes(pickle.dumps({'a': 1}))
    with pytest.raises(ValueError, match='not a safetensors'): read_model(folder)
    (folder/'config.json').write_text('{"format": 1,')
    save_file(tensors, weights)
    with pytest.raises(ValueError, match='is not JSON'): read_model(folder)
    (folder/'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='holds no config.json'): read_model(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match='holds no model.safetensors.*save_pretrained'): read_model(folder)


@pytest.mark.parametrize('values, message', [
    (dict(model__hidden=10**9), 'config.json: '), (dict(model__hidden=-1), 'hidden=-1: 1 or more'),
    (dict(model__hidden=0), 'hidden=0: 1 or more'),
    (dict(model__n_regions=-8), 'n_regions=-8: 1 or more'),
    (dict(model__branch_weights={'sab': 'much'}), "branch_weights={'sab': 'much'}"),
    (dict(model__branch_weights=[1]), r'branch_weights=\[1\]: zero or positive weights by branch'),
    (dict(model__hidden='16'), 'config.json: '),
    (dict(model__arch=18), 'config.json: '),
    (dict(model=[]), 'config.json: '), (dict(preprocessing=3), 'config.json: ')])
def test_arguments_of_no_network_name_the_file(folder, values, message):
    change(folder, **values)
    with pytest.raises(ValueError, match=message) as e: read_model(folder)
    assert str(folder/'config.json') in str(e.value)


@pytest.mark.slow
def test_a_foreign_arch_is_refused_before_it_is_built(folder, monkeypatch):
    pytest.importorskip('timm')
    change(folder, model__arch='vit_giant_patch14_dinov2')
    made = []
    init = torch.nn.init.trunc_normal_
    monkeypatch.setattr(torch.nn.init, 'trunc_normal_',
                        lambda tensor, **how: made.append(tensor.device.type) or init(tensor, **how))
    with pytest.raises(ValueError, match='does not fit the network of config.json'): read_model(folder)
    assert set(made) <= {'meta'}


def test_deeply_nested_json(folder):
    (folder/'config.json').write_text('[' * 10**5)
    with pytest.raises(ValueError, match='config.json is not JSON'): read_model(folder)


def test_weights_that_are_no_numbers_are_refused_whatever_the_fingerprint(folder):
    weights, config = folder/'model.safetensors', json.loads((folder/'config.json').read_text())
    tensors = load_file(weights)
    tensors['branches.sab.reduce.weight'][0, 0] = torch.nan
    save_file(tensors, weights)
    model = build()
    model.load_state_dict(tensors)
    change(folder, fingerprint=fingerprint(model, config['preprocessing']))
    with pytest.raises(ValueError,
                       match='model.safetensors: branches.sab.reduce.weight holds NaN or infinite values'):
        read_model(folder)


@pytest.mark.slow
def test_a_network_of_timm_comes_back_with_the_buffers_that_no_file_holds(tmp_path):
    pytest.importorskip('timm')
    model = create_magnifier('swin_tiny_patch4_window7_224', 3, False, hidden=16, last_stride=2).eval()
    write_model(model, tmp_path/'m', HOW, [7, 2, 11])
    again, _ = read_model(tmp_path/'m')
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad(): assert torch.equal(again.eval()(images).embedding, model(images).embedding)


def test_what_cannot_be_built_again(tmp_path):
    model = build()
    by_hand = MagnifierNet(model.backbone, dict(model.branches), model.segmentation)
    def mine(weights=None): return __import__('torchvision').models.resnet18(weights=weights)
    for odd in (by_hand, create_magnifier(mine, 3, False, hidden=16)):
        with pytest.raises(ValueError, match='create_magnifier with an arch of torchvision'):
            write_model(odd, tmp_path/'m', HOW, [1, 2, 3])
    assert not os.listdir(tmp_path)


def test_a_function_is_saved_by_its_name(tmp_path):
    from torchvision.models import resnet18
    assert create_magnifier(resnet18, 3, False, hidden=16).arguments['arch'] == 'resnet18'


def test_folders_here_and_repositories_there(folder, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    asked = []
    def download(name, **kwargs):
        asked.append((name, kwargs))
        if name == 'no/body': raise OSError('404 Client Error\nRepository Not Found')
        return str(folder)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert model_folder(folder) == folder
    assert not asked
    assert read_model('some/body', revision='v1')[1]['classes'] == [7, 2, 11]
    assert asked == [('some/body', dict(allow_patterns=['model.safetensors', 'config.json'], revision='v1'))]
    with pytest.raises(FileNotFoundError,
                       match=r'no/body: no such folder here, and it could not be downloaded from the hub '
                             r'\(404 Client Error\)'):
        read_model('no/body')
    for name in ('nowhere', '/no/such/folder', '../x', 'a/b/c'):
        with pytest.raises(FileNotFoundError, match='no such folder$'): read_model(name)
    monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match=r"pip install 'magnifier-reid\[hub\]'"): read_model('some/body')


def test_without_safetensors(folder, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'safetensors', None)
    with pytest.raises(ImportError, match=r"pip install 'magnifier-reid\[safetensors\]'"): saved.read_model(folder)


def test_embedder_over_a_folder(folder):
    embedder = Embedder(folder, bs=2)
    crop = np.random.default_rng(0).integers(0, 256, (50, 20, 3), np.uint8)
    assert embedder.dim == 256 + 16 + 16
    assert embedder.size == (64, 32)
    assert embedder.fingerprint == fingerprint(build(), HOW)
    assert embedder.fingerprint in repr(embedder)
    assert '288 dimensions' in repr(embedder)
    out = embedder(crop for _ in range(5))
    assert out.shape == (5, 288)
    assert out.dtype == np.float32
    assert np.allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    assert np.allclose(out, out[0], atol=1e-6)
    assert embedder([]).shape == (0, 288)
    assert np.allclose(embedder.embed(crop), out[:1], atol=1e-6)
    assert np.allclose(embedder(np.ascontiguousarray(crop[..., ::-1]), bgr=True), out[:1], atol=1e-6)
    with pytest.raises(ValueError, match='bs=0'): Embedder(folder, bs=0)


# The fingerprint moves with every weight that a search compares by, and with no other

@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_magnifier('resnet10_narrow', 5, pretrained=False, hidden=16).eval()


def test_what_regions_are_compared_by_is_in_it(model):
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad(): embed, moved = lambda: region_embeddings(model, model.feature_maps(x)), []
    for name in ('running_mean', 'running_var', 'weight'):
        before, vectors = fingerprint(model, 'x'), embed()
        with torch.no_grad():
            getattr(model.sfb.region_necks.bn, name).add_(torch.rand_like(model.sfb.region_necks.bn.weight))
        moved.append(not torch.allclose(vectors, embed(), atol=1e-4) and before != fingerprint(model, 'x'))
    assert moved == [True]*3


def test_what_trains_alone_is_not(model):
    before = fingerprint(model, 'x')
    with torch.no_grad():
        model.sfb.region_necks.weight.add_(1)
        for name in ('global', 'sab', 'sfb'): model.branches[name].neck.classifier.weight.add_(1)
    model.sfb.region_necks.bn.num_batches_tracked += 1
    assert fingerprint(model, 'x') == before


def test_writing_past_autograd_is_seen(model):
    before = fingerprint(model, 'x')
    next(model.parameters()).data.add_(1)  # as fastai's optimisers do: no version counter tells
    assert fingerprint(model, 'x') != before
