"Stages of torchvision's networks"
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models.resnet import Bottleneck

from magnifier.model import backbone as backbone_module
from magnifier.model.backbone import backbone_names, create_backbone


def bottlenecks(weights=None):
    "A ResNet-50 of one narrow block a stage"
    return torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8)


def slow(*values): return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize('arch, widths', [
    ('resnet18', (256, 512)), (bottlenecks, (1024, 2048)), slow(torchvision.models.resnet34, (256, 512)),
    slow('resnet50', (1024, 2048)), slow('resnext50_32x4d', (1024, 2048))])
@pytest.mark.parametrize('last_stride', [1, 2])
def test_stages(arch, widths, last_stride):
    backbone = create_backbone(arch, False, last_stride).eval()
    with torch.no_grad(): stage3, stage4 = backbone(torch.randn(2, 3, 64, 48))
    assert tuple(backbone.widths.values()) == widths
    assert stage3.shape == (2, widths[0], 4, 3)
    assert stage4.shape == ((2, widths[1], 4, 3) if last_stride == 1 else (2, widths[1], 2, 2))
    assert stage3.min() >= 0
    assert stage4.min() >= 0


@pytest.mark.parametrize('arch', [torchvision.models.resnet18, bottlenecks, slow(torchvision.models.resnet50)])
def test_is_torchvisions_network_with_another_last_stride(arch):
    torch.manual_seed(0)
    net = arch().eval()
    backbone = create_backbone(arch, False, last_stride=2).eval()
    # its own names, none left
    backbone.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith('fc.')})
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad(): torch.testing.assert_close(net.fc(backbone(images)[1].mean((2, 3))), net(images))


@pytest.mark.parametrize('kwargs, said', [
    (dict(arch='resnet51'), "unknown arch 'resnet51': use one of .*resnet50"), (dict(arch='vgg99'), 'unknown arch'),
    (dict(arch=torchvision.models.mobilenet_v3_small), 'MobileNetV3 has no `conv1`: use one of .*resnet50'),
    (dict(last_stride=3), 'last_stride=3: it is 1 or 2')])
def test_what_it_cannot_build(kwargs, said):
    with pytest.raises(ValueError, match=said): create_backbone(pretrained=False, **kwargs)


def test_names_are_residual_networks_and_osnets():
    assert {'resnet18', 'resnet34', 'resnet50', 'resnet101'} <= set(backbone_names())
    for name in backbone_names(): assert 'resne' in name or name.startswith('osnet')


def test_failed_download_says_what_to_pass(monkeypatch):
    def offline(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setattr(torchvision.models.WeightsEnum, 'get_state_dict', offline)
    with pytest.raises(OSError,
                       match=r'resnet18 could not be downloaded \(Name or .*pass pretrained=False, or weights=FILE'):
        create_backbone('resnet18', True)


# --- timm, which is optional: a stand-in tells the rules, the real one is used where it is installed

class FakeTimm:
    KNOWN = {'cnn': (16, 32), 'vit': (16, 16), 'dino': (14, 14), 'rigid': (16, 32), 'gone': (16, 32), 'swin': (16, 32),
             'fine': (8, 8)}

    def __init__(self): self.calls = []

    def is_model(self, name): return name in self.KNOWN

    def create_model(self, name, pretrained=False, **options):
        self.calls.append((name, pretrained, options))
        if name == 'rigid' and 'output_stride' in options: raise NotImplementedError
        if name == 'gone' and pretrained: raise OSError('offline')
        net = torch.nn.Identity()
        net.feature_info = SimpleNamespace(reduction=lambda: list(self.KNOWN[name]), channels=lambda: [4, 8])
        net.output_fmt = 'Format.NHWC' if name == 'swin' else 'Format.NCHW'
        net.forward = lambda x: [x[:, :1], x[:, 1:]]
        return net


@pytest.fixture
def fake_timm(monkeypatch):
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, 'timm', fake)
    monkeypatch.setattr(backbone_module, 'find_spec', lambda name: True)
    return fake


@pytest.mark.parametrize('name, last_stride, option', [
    ('cnn', 1, {'output_stride': 16}), ('cnn', 2, {}), ('rigid', 2, {}), ('timm/cnn', 2, {}),
    ('vit', 1, {'dynamic_img_size': True}), ('dino', 1, {'dynamic_img_size': True, 'patch_size': 16}),
    ('swin', 2, {'strict_img_size': False, 'feature_cls': 'getter'})])
def test_timm_stages_by_stride(fake_timm, name, last_stride, option):
    backbone = create_backbone(name, False, last_stride)
    assert backbone.widths == {3: 4, 4: 8}
    assert [tuple(m.shape) for m in backbone(torch.ones(2, 3, 16, 16))] == [(2, 1, 16, 16), (2, 2, 16, 16)]
    assert fake_timm.calls[-1][2] == {'features_only': True, 'out_indices': (-2, -1), **option}


def test_what_timm_cannot_build(fake_timm):
    with pytest.raises(ValueError, match='fine: its last two maps have strides 8 and 8; 16 and 32'):
        create_backbone('fine', False)
    with pytest.raises(ValueError, match="rigid does not take {'output_stride': 16}.*last_stride=2"):
        create_backbone('rigid', False)
    with pytest.raises(ValueError, match="unknown arch 'nobody': use one of"): create_backbone('nobody', False)
    with pytest.raises(OSError, match='weights of gone could not be downloaded'): create_backbone('gone', True)


def test_unknown_name_without_timm_mentions_it(monkeypatch):
    monkeypatch.setattr(backbone_module, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'install timm for more'): create_backbone('convnext_tiny', False)


def test_part_branches_may_hang_on_the_convolution_that_ends_a_network():
    pytest.importorskip('timm')
    from magnifier.model.net import create_magnifier
    model = create_magnifier('test_efficientnet', 5, False, hidden=16, region_stage=5).eval()
    assert model(torch.randn(2, 3, 64, 32)).region_features.shape == (2, 8, 256)


# A convolutional network with stages, one with squeeze and excitation, windows, patch grids (DINO's too, of 14
# pixels), and their smallest sizes
@pytest.mark.slow
@pytest.mark.parametrize('name, last_stride, widths', [
    ('timm/resnet18', 1, (256, 512)), ('seresnext26t_32x4d', 2, (1024, 2048)), ('test_convnext', 1, (48, 64)),
    ('test_efficientnet', 1, (48, 64, 256)),
    ('swin_tiny_patch4_window7_224', 2, (384, 768)), ('test_vit', 1, (64, 64)), ('vit_tiny_patch16_224', 1, (192, 192)),
    ('vit_small_patch14_dinov2', 1, (384, 384))])
def test_timm_itself_trains_a_step(name, last_stride, widths):
    pytest.importorskip('timm')
    from magnifier.model.net import create_magnifier, model_splitter
    torch.manual_seed(0)
    model = create_magnifier(name, 5, False, hidden=16, last_stride=last_stride)
    assert tuple(model.backbone.widths.values()) == widths
    for h, w in ((64, 32), (96, 48)):  # not the size that its positions were made for
        maps = model.feature_maps(torch.randn(2, 3, h, w))
        assert maps['stage3'].shape == (2, widths[0], h//16, w//16)
        assert maps['stage4'].shape[1] == widths[1]
        patches = 'vit' in name
        assert maps['stage4'].shape[2:] == ((h//16, w//16) if last_stride == 1 or patches else (-(-h//32), -(-w//32)))
    stem = next(model.backbone.parameters())
    before, opt = stem.detach().clone(), torch.optim.SGD([p for group in model_splitter(model) for p in group], .1)
    out = model(torch.randn(4, 3, 64, 32), torch.randint(0, 8, (4, 64, 32)))
    assert out.mask_logits.shape[:2] == (4, 8)
    assert out.embedding.isfinite().all()
    sum((t**2).mean() for t in [*out.features.values(), *out.logits.values(), out.mask_logits]).backward()
    opt.step()
    assert not torch.equal(stem, before)
    assert all(p.isfinite().all() for p in model.parameters())
    model.eval()
    from magnifier.model.net import EmbeddingNet
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad(): assert (EmbeddingNet(model)(images) - model(images).embedding).abs().max() < 1e-5


def test_swin_needs_its_own_last_stride():
    pytest.importorskip('timm')
    with pytest.raises(ValueError, match='swin_tiny_patch4_window7_224 does not take .*pass last_stride=2'):
        create_backbone('swin_tiny_patch4_window7_224', False)


# --- OSNet

def test_osnet_is_the_published_network():
    backbone = create_backbone('osnet_x1_0', False)
    # 2,193,616 as its authors count: with the linear layer that follows the pooling, and the gate at each of
    # its four uses
    after_pooling = 512*512 + 512 + 2*512
    gates = sum(p.numel() for name, p in backbone.named_parameters() if '.gate.' in name)
    assert sum(p.numel() for p in backbone.parameters()) + after_pooling + 3*gates == 2_193_616
    stage3, stage4 = backbone(torch.randn(2, 3, 256, 128))
    assert stage3.shape == (2, 384, 16, 8)
    assert stage4.shape == (2, 512, 16, 8)
    assert min(stage3.min(), stage4.min()) >= 0


def test_an_osnet_block_is_its_four_streams():
    from torch.nn import functional as F
    block = create_backbone('osnet_x0_25', False).eval().conv2[0]
    weights = {k: v for k, v in block.state_dict().items()}
    for name, value in weights.items():
        if 'bn.running' in name or 'bn.weight' in name: value.uniform_(.5, 1.5)

    def norm(x, name):
        return F.batch_norm(x, *(weights[f'{name}.bn.{p}'] for p in ('running_mean', 'running_var', 'weight', 'bias')))

    def light(x, name):
        x = F.conv2d(F.conv2d(x, weights[f'{name}.conv1.weight']), weights[f'{name}.conv2.weight'], padding=1,
                     groups=x.shape[1])
        return norm(x, name).clamp(min=0)

    def gated(x):
        squeezed = F.adaptive_avg_pool2d(x, 1)
        squeezed = F.conv2d(squeezed, weights['gate.fc1.weight'], weights['gate.fc1.bias']).clamp(min=0)
        return x * torch.sigmoid(F.conv2d(squeezed, weights['gate.fc2.weight'], weights['gate.fc2.bias']))

    x = torch.randn(2, 16, 8, 4)
    reduced, mixed = norm(F.conv2d(x, weights['conv1.conv.weight']), 'conv1').clamp(min=0), 0
    for depth, stream in enumerate('abcd', 1):
        y = reduced
        for i in range(depth): y = light(y, 'conv2a' if stream == 'a' else f'conv2{stream}.{i}')
        mixed = mixed + gated(y)
    shortcut = norm(F.conv2d(x, weights['downsample.conv.weight']), 'downsample')
    with torch.no_grad():
        want = (norm(F.conv2d(mixed, weights['conv3.conv.weight']), 'conv3') + shortcut).clamp(min=0)
        torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize('name', ['osnet_x0_25', slow('osnet_x0_5'), slow('osnet_x1_0')])
def test_an_osnet_trains_a_step_and_embeds(name):
    from magnifier.model.net import EmbeddingNet, create_magnifier
    model = create_magnifier(name, 5, False, hidden=16)
    model(torch.randn(2, 3, 64, 32)).embedding.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters())
    net, images = EmbeddingNet(model), torch.randn(2, 3, 64, 32)
    assert not [m for m in net.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # all of them were folded
    with torch.no_grad(): torch.testing.assert_close(net(images), model.eval()(images).embedding, atol=1e-5, rtol=0)


def test_osnet_has_no_weights_to_download():
    with pytest.raises(ValueError,
                       match='osnet_x1_0 has no ImageNet weights to download: pass pretrained=False, or weights=FILE'):
        create_backbone('osnet_x1_0')


# --- strides

@pytest.mark.parametrize('arch', [
    'resnet10_narrow', bottlenecks, 'osnet_x0_25', 'test_efficientnet', slow('resnet18'), slow('resnet50')])
def test_stage_3_without_its_stride(arch):
    if arch == 'test_efficientnet': pytest.importorskip('timm')
    published, larger = (create_backbone(arch, False, stage3_stride=stride) for stride in (2, 1))
    larger.load_state_dict(published.state_dict())
    images = torch.randn(2, 3, 64, 32)
    for a, b in zip(published(images), larger(images)): assert b.shape == (*a.shape[:2], 2*a.shape[2], 2*a.shape[3])
    with pytest.raises(ValueError, match='stage3_stride=3: it is 1 or 2'): create_backbone(arch, False, stage3_stride=3)


def test_the_small_network_is_half_of_resnet18_in_depth_and_width():
    small = create_backbone('resnet10_narrow', pretrained=False)
    resnet18 = create_backbone('resnet18', pretrained=False)
    stage3, stage4 = small(torch.randn(2, 3, 64, 32))
    assert (stage3.shape, stage4.shape) == ((2, 128, 4, 2), (2, 256, 4, 2))
    assert {name: 2*width for name, width in small.widths.items()} == resnet18.widths
    assert set(small.state_dict()) < set(resnet18.state_dict())
    with pytest.raises(ValueError, match='no ImageNet weights'): create_backbone('resnet10_narrow')
