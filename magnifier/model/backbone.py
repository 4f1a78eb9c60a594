"""Stages 3 and 4 of a network: torchvision's or timm's, an OSNet (Zhou et al. 2019), or a small residual network for a
CPU"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from magnifier.checks import refuse

__all__ = ['create_backbone', 'backbone_names']


def create_backbone(
    arch: str | Callable = 'resnet50',  # torchvision's function or name, as resnet18; 'osnet_x1_0'; or timm's name
    pretrained: bool | str = True,  # ImageNet weights; a string names torchvision's version, as 'IMAGENET1K_V2'
    last_stride: int = 1,  # Stride of stage 4: 1, or 2 as ResNets are published
    stage3_stride: int = 2,  # Stride of stage 3: 2 as published, or 1 for maps of twice the size
    last_convolution: bool = True,  # Whether a timm network that ends in a convolution keeps it, as stage 5
) -> nn.Module:  # Images -> a map for each stage of its `.widths`: channels of stages 3 and 4, and 5 where it has one
    """A network cut after its last map. If torchvision and timm have the same name, it is torchvision's
    ('timm/resnet50' is timm's). An OSError if weights cannot be downloaded, a ValueError for an unknown `arch` or
    stride"""
    name = arch if isinstance(arch, str) else getattr(arch, '__name__', repr(arch))
    refuse({
        f'last_stride={last_stride!r}: it is 1 or 2': last_stride not in (1, 2),
        f'stage3_stride={stage3_stride!r}: it is 1 or 2': stage3_stride not in (1, 2),
        f'{name} has no ImageNet weights to download: pass pretrained=False, or weights=FILE':
            pretrained and name in (*OSNETS, *OWN),
    })
    build = _builder(arch, name, pretrained, last_convolution)
    try: return build(last_stride=last_stride, stage3_stride=stage3_stride)
    except OSError as e:  # no network, or no room
        raise OSError(f'the ImageNet weights of {name} could not be downloaded ({e}): '
                      'pass pretrained=False, or weights=FILE with a file that holds them') from e


def _builder(arch, name, pretrained, last_convolution):  # -> a function of last_stride and stage3_stride
    if not isinstance(arch, str): return _residual(arch, pretrained)
    if name in OSNETS: return partial(_osnet, name)
    if name in OWN: return _residual(OWN[name], pretrained)
    if name in _residual_names(): return _residual(torchvision.models.get_model_builder(name), pretrained)
    hint = '' if find_spec('timm') else ' (or install timm for more)'
    refuse({f'unknown arch {name!r}: use one of {", ".join(backbone_names())}{hint}':
            not _timm_has(name.removeprefix('timm/'))})
    return partial(TimmBackbone, name.removeprefix('timm/'), bool(pretrained), last_convolution=last_convolution)


def _residual(make, pretrained):
    # Version 1 by default: the weights of the paper's time, and all that resnet18 and 34 have
    weights = 'IMAGENET1K_V1' if pretrained is True else pretrained or None
    return lambda **strides: Backbone(make(weights=weights), **strides)


def _osnet(name, last_stride, stage3_stride):
    return OSNet(name, stage3_stride)  # its stage 4 has no stride to change


def _timm_has(name):
    if not find_spec('timm'): return False
    import timm
    return timm.is_model(name)


def backbone_names() -> list[str]:  # Names that `arch` takes without timm, sorted
    "torchvision's residual networks with stages `layer1` to `layer4`, OSNets, and a small network for a CPU"
    return sorted([*_residual_names(), *OSNETS, *OWN])


def _residual_names():
    return [name for name in torchvision.models.list_models(module=torchvision.models) if 'resne' in name]


def arch_name(
    arch: str | Callable,  # What `create_backbone` takes
) -> str | None:  # The name that builds the same network again; None for a function that only the caller knows
    "torchvision's or timm's name of `arch`"
    if isinstance(arch, str): return arch
    name = getattr(arch, '__name__', None)
    return name if name in _residual_names() and torchvision.models.get_model_builder(name) is arch else None


class Backbone(nn.Module):
    "The stem and stages 1 to 4 of a residual network, under torchvision's own parameter names"

    norm_pairs = (('conv1', 'bn1'),)  # See `fold_norms`

    def __init__(
        self,
        net: nn.Module,  # A torchvision ResNet, ResNeXt or wide ResNet; its pooling and classifier are left behind
        last_stride: int = 1,  # Stride of stage 4: 1 keeps stage 3's size, 2 is the network as published
        stage3_stride: int = 2,  # Stride of stage 3: 2 is the network as published, 1 keeps stage 2's size
    ):
        """As published except for the strides: with stride 1 in stage 4, as in reid-strong-baseline, both maps are 1/16
        of the image"""
        super().__init__()
        for name in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'):
            if not hasattr(net, name):
                raise ValueError(f'{type(net).__name__} has no `{name}`: use one of {", ".join(backbone_names())}')
            setattr(self, name, getattr(net, name))
        _set_stride(self.layer3[0], stage3_stride)
        _set_stride(self.layer4[0], last_stride)
        self.widths = {3: _out_channels(self.layer3[-1]), 4: _out_channels(self.layer4[-1])}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """n x 3 x H x W -> stage 3, n x c3 x H/16 x W/16, and stage 4, n x c4 of its size (half with `last_stride=2`),
        both after ReLU and so non-negative"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stage3 = self.layer3(self.layer2(self.layer1(x)))
        return stage3, self.layer4(stage3)


def _set_stride(block, stride):
    # A BasicBlock strides in its first convolution, a Bottleneck in its second; the shortcut strides in both
    strided = block.conv2 if hasattr(block, 'conv3') else block.conv1
    strided.stride = block.downsample[0].stride = (stride, stride)


def _out_channels(block):
    return (block.conv3 if hasattr(block, 'conv3') else block.conv2).out_channels


class TimmBackbone(nn.Module):
    """The last two feature maps of a timm network, the first of them of stride 16 (a ViT's are the patch grid after
    its last two blocks). A convolution that ends the network (MobileNetV2, EfficientNet) is stage 5, for the global
    branch"""

    def __init__(
        self,
        name: str,  # timm's name, as 'convnext_tiny', 'mobilenetv2_100', 'vit_small_patch16_224'
        pretrained: bool = False,  # timm's default weights for it
        last_stride: int = 1,  # 1 keeps stage 3's size in stage 4 (timm dilates), 2 is the network as published
        stage3_stride: int = 2,  # 2 is the network as published, 1 keeps stage 2's size
        last_convolution: bool = True,  # Whether there is a stage 5, where the network has one
    ):
        "A ValueError where there is no map of stride 16, or where the network cannot keep a map's size"
        super().__init__()
        import timm
        build = partial(timm.create_model, name, features_only=True, out_indices=(-2, -1))
        with torch.device('meta'):  # only looked at
            options = _timm_options(name, build(), last_stride, stage3_stride)
            has_head = last_convolution and _ends_in_convolution(timm.create_model(name))
        try: self.net = build(pretrained=pretrained, **options)
        except (NotImplementedError, TypeError, AssertionError) as e:
            raise ValueError(f'{name} does not take {options}, which it needs here: '
                             'pass last_stride=2, or another arch') from e
        self.widths = dict(zip((3, 4), self.net.feature_info.channels()))
        if has_head:
            whole = timm.create_model(name, pretrained=pretrained)
            self.conv_head = whole.conv_head
            self.bn2 = whole.bn2  # with its activation
            self.widths[5] = whole.conv_head.out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """n x 3 x H x W -> stage 3, n x c3 x H/16 x W/16; stages 4 and 5 of its size (half with `last_stride=2`). Not
        all of timm's networks end a stage in a ReLU; the bottlenecks of the part branches do"""
        stage3, stage4 = self.net(images)
        if 5 not in self.widths: return stage3, stage4
        return stage3, stage4, self.bn2(self.conv_head(stage4))


def _ends_in_convolution(net):
    head, norm = getattr(net, 'conv_head', None), getattr(net, 'bn2', None)
    return isinstance(head, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)


def _timm_options(name, net, last_stride, stage3_stride):
    # What makes a network's maps ours: of stride 16, for images of any size, channels first
    strides = tuple(net.feature_info.reduction())
    refuse({
        f'{name}: stage3_stride=1 goes with a network of stages and last_stride=1':
            stage3_stride == 1 and (strides != (16, 32) or last_stride == 2),
        f'{name}: its last two maps have strides {strides[0]} and {strides[1]}; 16 and 32, or 16 and 16, are wanted':
            strides not in ((16, 32), (16, 16), (14, 14)),
    })
    if strides == (16, 16): return dict(dynamic_img_size=True)  # a ViT resizes its position embeddings to the image
    if strides == (14, 14): return dict(dynamic_img_size=True, patch_size=16)  # and timm the patches of its weights
    options = dict(output_stride=8 * stage3_stride) if last_stride == 1 else {}
    channels_last = str(getattr(net, 'output_fmt', '')).endswith('NHWC')  # Swin
    return options | dict(strict_img_size=False, feature_cls='getter') if channels_last else options


# Channels after the stem and after stages 2, 3 and 4
OSNETS = {'osnet_x1_0': (64, 256, 384, 512), 'osnet_x0_75': (48, 192, 288, 384), 'osnet_x0_5': (32, 128, 192, 256),
          'osnet_x0_25': (16, 64, 96, 128)}


class ConvNorm(nn.Module):
    "Convolution, batch norm, and optionally a ReLU"

    norm_pairs = (('conv', 'bn'),)  # See `fold_norms`

    def __init__(self, c_in, c_out, size=1, stride=1, *, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class LightConv(nn.Module):
    "A 3x3 convolution as a 1x1 and a depthwise one, batch norm, ReLU"

    norm_pairs = (('conv2', 'bn'),)

    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 1, bias=False)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x):
        return self.bn(self.conv2(self.conv1(x))).relu()


class ChannelGate(nn.Module):
    "Multiplies each channel by a weight computed from the whole map"

    def __init__(self, c, reduction=16):
        super().__init__()
        self.fc1 = nn.Conv2d(c, c // reduction, 1)
        self.fc2 = nn.Conv2d(c // reduction, c, 1)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(pooled).relu()).sigmoid()


class OSBlock(nn.Module):
    "Four streams of one to four light convolutions, weighed by one gate and added up, in a residual bottleneck"

    def __init__(self, c_in, c_out):
        super().__init__()
        c = c_out // 4
        self.conv1 = ConvNorm(c_in, c)
        self.conv2a = LightConv(c)
        self.conv2b = nn.Sequential(*[LightConv(c) for _ in range(2)])
        self.conv2c = nn.Sequential(*[LightConv(c) for _ in range(3)])
        self.conv2d = nn.Sequential(*[LightConv(c) for _ in range(4)])
        self.gate = ChannelGate(c)
        self.conv3 = ConvNorm(c, c_out, relu=False)
        self.downsample = ConvNorm(c_in, c_out, relu=False) if c_in != c_out else None

    def forward(self, x):
        reduced = self.conv1(x)
        streams = [self.gate(stream(reduced)) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d)]
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.conv3(sum(streams)) + shortcut).relu()


class OSNet(nn.Module):
    "The network's stem and stages, under the parameter names of its authors' published weights"

    def __init__(
        self,
        name: str = 'osnet_x1_0',  # One of `OSNETS`
        stage3_stride: int = 2,  # 2 as published, 1 leaves out the pooling that ends stage 3
    ):
        "Random weights, He et al.'s for convolutions"
        super().__init__()
        stem, c2, c3, c4 = OSNETS[name]
        self.conv1 = ConvNorm(3, stem, 7, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, c2, 2)
        self.conv3 = _stage(c2, c3, stage3_stride)
        self.conv4 = nn.Sequential(OSBlock(c3, c4), OSBlock(c4, c4))
        self.conv5 = ConvNorm(c4, c4)
        self.widths = {3: c3, 4: c4}
        for m in self.modules():
            if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """n x 3 x H x W -> stages 3 and 4, n x c x H/16 x W/16 each, after ReLU and so non-negative; as published,
        stage 4 keeps stage 3's size"""
        stage3 = self.conv3(self.conv2(self.maxpool(self.conv1(images))))
        return stage3, self.conv5(self.conv4(stage3))


def _stage(c_in, c_out, stride):
    # The last module is there without pooling too, so that its parameters keep their names
    end = nn.Sequential(ConvNorm(c_out, c_out), nn.AvgPool2d(stride) if stride > 1 else nn.Identity())
    return nn.Sequential(OSBlock(c_in, c_out), OSBlock(c_out, c_out), end)


WIDTHS = (32, 64, 128, 256)  # Channels of the four stages, half of ResNet-18's


def resnet10_narrow(
    weights: None = None,  # As torchvision's builders take it; nobody has trained this network on ImageNet
) -> nn.Module:  # With torchvision's names: conv1, bn1, relu, maxpool, layer1 to layer4
    "ResNet of one basic block a stage, ten layers in all, and half of ResNet-18's channels"
    net = nn.Module()
    channels = WIDTHS[0]
    net.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(channels)
    net.relu = nn.ReLU(inplace=True)
    net.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    net.layer1 = nn.Sequential(BasicBlock(channels, channels))
    for stage, width in enumerate(WIDTHS[1:], 2):
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        setattr(net, f'layer{stage}', nn.Sequential(BasicBlock(channels, width, 2, shortcut)))
        channels = width
    return net


OWN = {'resnet10_narrow': resnet10_narrow}
