"Weights from files of several makers"
import logging
import sys

import pytest
import torch
import torchvision
from torch import nn

from magnifier.model.backbone import OSNet, resnet10_narrow
from magnifier.model.net import create_magnifier
from magnifier.model.weights import WeightsReport, load_weights, read_weights


def build(seed=0, n_classes=5, **kwargs):
    torch.manual_seed(seed)
    return create_magnifier('resnet10_narrow', n_classes, False, hidden=16, **kwargs)


@pytest.fixture(scope='module')
def imagenet():
    "A network's file as torchvision publishes them, classifier included"
    torch.manual_seed(7)
    classifier = {'fc.weight': torch.ones(1000, 256), 'fc.bias': torch.ones(1000)}
    return {k: v + 1 for k, v in resnet10_narrow().state_dict().items()} | classifier


def check_backbone(model, tensors, prefix=''):
    for name, value in model.backbone.state_dict().items(): assert torch.equal(value, tensors[prefix + name])


@pytest.mark.parametrize('prefix', ['', '_orig_mod.module.encoder.net.', *(
    pytest.param(prefix, marks=pytest.mark.slow) for prefix in ('base.', 'module.base.', 'backbone.'))])
@pytest.mark.parametrize('wrapper', [None, *(pytest.param(w, marks=pytest.mark.slow) for w in ('state_dict', 'model'))])
def test_backbone_under_any_prefix(tmp_path, imagenet, prefix, wrapper, caplog):
    tensors = {prefix + k: v for k, v in imagenet.items()}
    torch.save({wrapper: tensors, 'epoch': 3} if wrapper else tensors, tmp_path/'w.pth')
    with caplog.at_level(logging.INFO):
        model = build(weights=tmp_path/'w.pth')
    check_backbone(model, imagenet)
    report = model.weights_report
    assert isinstance(report, WeightsReport)
    assert len(report.loaded) == len(model.backbone.state_dict())
    assert not report.reshaped
    assert [name.split('.')[-2] for name in report.unused] == ['fc', 'fc']
    assert [r.levelname for r in caplog.records] == ['INFO']
    assert 'tensors loaded' in caplog.text
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    assert set(report.missing) == set(heads)
    for name, value in build().state_dict().items():
        if name in heads: assert torch.equal(value, heads[name])


def test_reid_strong_baseline(tmp_path, imagenet):
    neck = {f'bottleneck.{k}': v + 2 for k, v in nn.BatchNorm1d(256).state_dict().items()}
    tensors = {**{f'base.{k}': v for k, v in imagenet.items() if not k.startswith('fc.')}, **neck,
               'classifier.weight': torch.ones(751, 256)}
    torch.save(tensors, tmp_path/'baseline.pth')
    model = build(n_classes=751, weights=tmp_path/'baseline.pth')
    check_backbone(model, imagenet)
    for name, value in model.branches['global'].neck.bn.state_dict().items():
        assert torch.equal(value, neck[f'bottleneck.{name}'])
    assert model.branches['global'].neck.classifier.weight.eq(1).all()
    assert not model.weights_report.unused
    model = build(n_classes=5, weights=tmp_path/'baseline.pth')  # other identities: the classifier stays as it was made
    assert model.weights_report.reshaped == ['branches.global.neck.classifier.weight']
    assert model.weights_report.unused == ['classifier.weight']


def test_a_whole_magnifier(tmp_path):
    was = build(1)
    torch.save(was.state_dict(), tmp_path/'all.pth')
    model = build(2, weights=str(tmp_path/'all.pth'))
    assert all(torch.equal(v, was.state_dict()[k]) for k, v in model.state_dict().items())
    n = len(was.state_dict())
    assert str(model.weights_report) == f'{tmp_path/"all.pth"}: {n} of {n} tensors loaded'
    row = build(3, sfb=False, weights=tmp_path/'all.pth')  # a smaller model takes what it has
    assert not row.weights_report.missing
    assert all(k.startswith('branches.sfb') for k in row.weights_report.unused)


def test_an_incomplete_backbone_is_refused(tmp_path, imagenet):
    torch.save({k: v for k, v in imagenet.items() if not k.startswith('layer4')}, tmp_path/'w.pth')
    with pytest.raises(ValueError, match='w.pth: it has no layer4.0.conv1.weight; it is of another arch'):
        build(weights=tmp_path/'w.pth')


def test_nothing_fits(tmp_path, imagenet):
    torch.save({'a.weight': torch.ones(2)}, tmp_path/'w.pth')
    with pytest.raises(ValueError, match=r'none of its 1 tensors \(a.weight, ...\) fits the model .*another arch'):
        build(weights=tmp_path/'w.pth')
    torch.save({k: torch.zeros(3, 3, 3) for k in imagenet}, tmp_path/'w.pth')
    with pytest.raises(ValueError, match='another arch'): build(weights=tmp_path/'w.pth')


def test_files_without_plain_tensors(tmp_path):
    file = tmp_path/'w.pth'
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match='save a state dict'): read_weights(file)
    file.write_bytes(b'')
    with pytest.raises(ValueError, match='not a file of plain tensors'): read_weights(file)
    file.write_bytes(b'hello, world')
    with pytest.raises(ValueError, match='not a file of plain tensors'): read_weights(file)
    for empty in ({}, [torch.ones(1)], {'epoch': 3}):
        torch.save(empty, file)
        with pytest.raises(ValueError, match='holds no named tensors'): read_weights(file)
    with pytest.raises(FileNotFoundError, match='gone.pth'): read_weights(tmp_path/'gone.pth')


def test_safetensors(tmp_path, imagenet):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file({f'module.base.{k}': v for k, v in imagenet.items()}, tmp_path/'w.safetensors')
    check_backbone(build(weights=tmp_path/'w.safetensors'), imagenet)


def test_safetensors_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match='pip install .magnifier-reid.safetensors'):
        read_weights(tmp_path/'w.safetensors')


def test_weights_take_the_place_of_the_download(tmp_path, monkeypatch):
    tensors = torchvision.models.resnet18().state_dict()
    def download(*args, **kwargs): raise AssertionError('no download wanted')
    monkeypatch.setattr(torchvision.models.WeightsEnum, 'get_state_dict', download)
    torch.save(tensors, tmp_path/'w.pth')
    check_backbone(create_magnifier('resnet18', 5, hidden=16, weights=tmp_path/'w.pth'), tensors)


def test_load_weights_onto_a_model(tmp_path, imagenet):
    torch.save(imagenet, tmp_path/'w.pth')
    model = build()
    assert len(load_weights(model, tmp_path/'w.pth').loaded) == len(model.backbone.state_dict())
    check_backbone(model, imagenet)


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['test_convnext', 'test_vit', 'test_efficientnet', 'timm/resnet18',
                                  'swin_tiny_patch4_window7_224'])
@pytest.mark.parametrize('prefix', ['', 'module.base.'])
def test_a_file_of_timms_network(tmp_path, arch, prefix):
    timm = pytest.importorskip('timm')
    torch.manual_seed(3)
    net = timm.create_model(arch.removeprefix('timm/'), num_classes=2)
    torch.save({prefix + k: v + 1 for k, v in net.state_dict().items()}, tmp_path/'w.pth')
    model = create_magnifier(arch, 5, False, hidden=16, last_stride=2, weights=tmp_path/'w.pth')
    report, names = model.weights_report, [f'backbone.{k}' for k in model.backbone.state_dict()]
    assert set(names) == set(report.loaded)
    assert all(k.split('.')[-2].startswith(('fc', 'head', 'norm', 'conv_head', 'bn2', 'classifier'))
               for k in report.unused), report.unused
    filled, values = model.backbone.state_dict(), {k.replace('_', '.'): v + 1 for k, v in net.state_dict().items()}
    for name in filled:
        assert torch.equal(filled[name], values[name.removeprefix('net.').removeprefix('model.').replace('_', '.')])


@pytest.mark.slow
def test_a_file_of_patches_of_14(tmp_path):
    timm = pytest.importorskip('timm')
    arch = 'vit_small_patch14_dinov2'
    net = timm.create_model(arch, num_classes=0, img_size=(56, 28))
    torch.save(net.state_dict(), tmp_path/'dino.pth')
    model = create_magnifier(arch, 5, False, hidden=16, weights=tmp_path/'dino.pth')
    kernel, = [p for name, p in model.backbone.named_parameters() if name.endswith('patch_embed.proj.weight')]
    flat = torch.ones(1, 3, 14, 14), torch.ones(1, 3, 16, 16)  # one colour is one token, whatever the patch's size
    sums = [torch.nn.functional.conv2d(x, w).flatten() for x, w in zip(flat, (net.patch_embed.proj.weight, kernel))]
    assert kernel.shape[-2:] == (16, 16)
    assert torch.allclose(*sums, atol=1e-4)
    assert not [n for n in model.weights_report.reshaped if 'patch_embed' in n]


def test_a_pickled_model_says_what_to_save(tmp_path):
    # as reid-strong-baseline writes: the module, not its tensors
    torch.save(resnet10_narrow(), tmp_path/'resnet50_model_120.pth')
    with pytest.raises(ValueError, match='not a file of plain tensors: save a state dict'):
        build(weights=tmp_path/'resnet50_model_120.pth')


@pytest.mark.slow
def test_a_backbone_of_another_arch_is_refused(tmp_path):
    other, model = create_magnifier('resnet34', 5, False, hidden=16), create_magnifier('resnet50', 5, False, hidden=16)
    torch.save(other.backbone.state_dict(), tmp_path/'other.pth')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError,
                       match=r'other.pth: layer1.0.conv1.weight is \(64, 64, 3, 3\) there and \(64, 64, 1, 1\) in '
                             r'this backbone; it is of another arch'):
        load_weights(model, tmp_path/'other.pth')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('there, here, said', [('resnet18', 'resnet34', 'it has no layer1.2.conv1.weight'),
                                               ('resnet34', 'resnet18', 'its .*layer1.2.conv1.weight is no part'),
                                               pytest.param('resnet50', 'resnet101', 'it has no layer3.6.conv1.weight',
                                                            marks=pytest.mark.slow)])
@pytest.mark.parametrize('prefix', ['', pytest.param('module.base.', marks=pytest.mark.slow),
                                    pytest.param('backbone.', marks=pytest.mark.slow)])
def test_a_backbone_with_fewer_or_more_blocks_is_refused(tmp_path, there, here, said, prefix):
    tensors = torchvision.models.get_model(there).state_dict()
    torch.save({prefix + k: v for k, v in tensors.items()}, tmp_path/'w.pth')
    with torch.device('meta'): model = create_magnifier(here, 5, False, hidden=16)
    with pytest.raises(ValueError, match=f'w.pth: {said}.*; it is of another arch'):
        load_weights(model, tmp_path/'w.pth')


@pytest.mark.parametrize('style', [
    '', 'model.module.', pytest.param('module.', marks=pytest.mark.slow),
    pytest.param('backbone.', marks=pytest.mark.slow)])
def test_osnet_files_of_several_styles(tmp_path, style):
    torch.manual_seed(1)
    tensors = {f'{style}{k}': v + 1 for k, v in OSNet('osnet_x0_25').state_dict().items()}
    others = {f'{style}fc.0.weight': torch.ones(512, 512), f'{style}classifier.weight': torch.ones(1000, 512)}
    torch.save({'state_dict': tensors | others, 'epoch': 3}, tmp_path/'w.pth.tar')
    model = create_magnifier('osnet_x0_25', 5, hidden=16, weights=tmp_path/'w.pth.tar')
    for name, value in model.backbone.state_dict().items(): assert torch.equal(value, tensors[style + name])
    assert len(model.weights_report.unused) == 2
    instance_norms = {f'{style}conv2.0.IN.weight': torch.ones(64)}
    torch.save(tensors | instance_norms, tmp_path/'ibn.pth')
    with pytest.raises(ValueError, match='conv2.0.IN.weight is no part of this backbone'):
        create_magnifier('osnet_x0_25', 5, hidden=16, weights=tmp_path/'ibn.pth')


def test_the_last_convolution_comes_from_the_file(tmp_path):
    timm = pytest.importorskip('timm')
    net = timm.create_model('test_efficientnet')
    torch.save(net.state_dict(), tmp_path/'w.pth')
    model = create_magnifier('test_efficientnet', 5, hidden=16, weights=tmp_path/'w.pth').eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert model(images).features['global'].shape == (2, 256)
        published = create_magnifier('test_efficientnet', 5, hidden=16, weights=tmp_path/'w.pth', last_stride=2).eval()
        torch.testing.assert_close(published(images).features['global'],
                                   net.eval().forward_features(images).mean((2, 3)))
        assert model.segmentation.deconv.in_channels == 64  # the head parses stage 4


def test_the_last_convolution_can_be_left_out(tmp_path):
    timm = pytest.importorskip('timm')
    torch.save(timm.create_model('test_efficientnet').state_dict(), tmp_path/'w.pth')
    model = create_magnifier('test_efficientnet', 5, hidden=16, weights=tmp_path/'w.pth', last_convolution=False).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        _, stage4 = model.backbone(images)
        torch.testing.assert_close(model(images).features['global'], stage4.mean((2, 3)))
    assert any('conv_head' in name for name in model.weights_report.unused)


def test_names_that_are_no_words_are_left_out(tmp_path, imagenet):
    torch.save({**imagenet, 3: torch.ones(1)}, tmp_path/'w.pth')
    check_backbone(build(weights=tmp_path/'w.pth'), imagenet)
    torch.save({3: torch.ones(1)}, tmp_path/'w.pth')
    with pytest.raises(ValueError, match='holds no named tensors'): build(weights=tmp_path/'w.pth')


def test_damaged_safetensors(tmp_path, imagenet):
    safetensors = pytest.importorskip('safetensors.torch')
    file = tmp_path/'w.safetensors'
    safetensors.save_file(imagenet, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match='w.safetensors is cut off or not a safetensors file'): build(weights=file)
