"Stages of torchvision's networks"
import pytest
import torch
import torchvision

from magnifier.model.backbone import backbone_names, create_backbone


@pytest.mark.parametrize('arch, widths', [('resnet18', (256, 512)), (torchvision.models.resnet34, (256, 512)),
                                          ('resnet50', (1024, 2048)), ('resnext50_32x4d', (1024, 2048))])
@pytest.mark.parametrize('last_stride', [1, 2])
def test_stages(arch, widths, last_stride):
    backbone = create_backbone(arch, False, last_stride).eval()
    with torch.no_grad(): stage3, stage4 = backbone(torch.randn(2, 3, 64, 48))
    assert tuple(backbone.widths.values()) == widths
    assert stage3.shape == (2, widths[0], 4, 3)
    assert stage4.shape == ((2, widths[1], 4, 3) if last_stride == 1 else (2, widths[1], 2, 2))
    assert stage3.min() >= 0 and stage4.min() >= 0


@pytest.mark.parametrize('arch', ['resnet18', 'resnet50'])
def test_is_torchvisions_network_with_another_last_stride(arch):
    torch.manual_seed(0)
    net = torchvision.models.get_model(arch).eval()
    backbone = create_backbone(arch, False, last_stride=2).eval()
    backbone.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith('fc.')})  # its own names, none left
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad(): torch.testing.assert_close(net.fc(backbone(images)[1].mean((2, 3))), net(images))


@pytest.mark.parametrize('kwargs, said', [
    (dict(arch='resnet51'), "unknown arch 'resnet51': use one of .*resnet50"), (dict(arch='vgg16'), 'unknown arch'),
    (dict(arch=torchvision.models.mobilenet_v3_small), 'MobileNetV3 has no `conv1`: use one of .*resnet50'),
    (dict(last_stride=3), 'last_stride=3: it is 1 or 2')])
def test_what_it_cannot_build(kwargs, said):
    with pytest.raises(ValueError, match=said): create_backbone(pretrained=False, **kwargs)


def test_names_are_all_residual():
    assert {'resnet18', 'resnet34', 'resnet50', 'resnet101'} <= set(backbone_names())
    for name in backbone_names(): assert 'resne' in name


def test_failed_download_says_what_to_pass(monkeypatch):
    def offline(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setattr(torchvision.models.WeightsEnum, 'get_state_dict', offline)
    with pytest.raises(OSError, match=r'resnet18 could not be downloaded \(Name or .*pass pretrained=False, or weights=FILE'):
        create_backbone('resnet18', True)
