"Stages 3 and 4 of an ImageNet network"

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torchvision
from torch import Tensor, nn

__all__ = ['Backbone', 'TimmBackbone', 'create_backbone', 'backbone_names', 'arch_name']


def backbone_names() -> list[str]:  # Names that `arch` takes, sorted
    "torchvision's residual networks: those whose stages are `layer1` to `layer4`"
    return sorted(name for name in torchvision.models.list_models(module=torchvision.models) if 'resne' in name)


def arch_name(
    arch: str | Callable,  # What `create_backbone` takes
) -> str | None:  # The name that builds the same network again; None for a function that only the caller knows
    "torchvision's or timm's name of `arch`"
    if isinstance(arch, str): return arch
    name = getattr(arch, '__name__', None)
    return name if name in backbone_names() and torchvision.models.get_model_builder(name) is arch else None


class Backbone(nn.Module):
    "The stem and stages 1 to 4 of a residual network, under torchvision's own parameter names"

    norm_pairs = (('conv1', 'bn1'),)  # See `fold_norms`

    def __init__(
        self,
        net: nn.Module,  # A torchvision ResNet, ResNeXt or wide ResNet; its pooling and classifier are left behind
        last_stride: int = 1,  # Stride of stage 4: 1 keeps stage 3's size, 2 is the network as published
        stage3_stride: int = 2,  # Stride of stage 3: 2 is the network as published, 1 keeps stage 2's size
    ):
        "As published but for its strides: with stage 4 at stride 1 both maps are 1/16 of the image (paper, section 4.1)"
        super().__init__()
        missing = [name for name in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer4') if not hasattr(net, name)]
        if missing: raise ValueError(f'{type(net).__name__} has no `{missing[0]}`: use one of {", ".join(backbone_names())}')
        for name in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'): setattr(self, name, getattr(net, name))
        _set_stride(self.layer3[0], stage3_stride)
        _set_stride(self.layer4[0], last_stride)
        self.widths = {3: _out_channels(self.layer3[-1]), 4: _out_channels(self.layer4[-1])}

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W, normalised as the pretrained weights ask for
    ) -> tuple[Tensor, Tensor]:  # Stage 3 n x c3 x H/16 x W/16, stage 4 n x c4 x H/16 x W/16 (H/32 with `last_stride=2`)
        "Both stages' maps, after ReLU and so non-negative"
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
    "The last two feature maps of a timm network, the first of them of stride 16 (a ViT's are the patch grid after its last two blocks)"

    def __init__(
        self,
        name: str,  # timm's name, as 'convnext_tiny', 'efficientnet_b0', 'vit_small_patch16_224'
        pretrained: bool = False,  # timm's default weights for it
        last_stride: int = 1,  # 1 keeps stage 3's size in stage 4 (timm dilates), 2 is the network as published
    ):
        "Stages by stride; a ValueError where there is no map of stride 16, or where stage 4 cannot keep its size"
        super().__init__()
        import timm
        build = partial(timm.create_model, name, features_only=True, out_indices=(-2, -1))
        options = _timm_options(name, build(), last_stride)
        try: self.net = build(pretrained=pretrained, **options)
        except (NotImplementedError, TypeError, AssertionError) as e:
            raise ValueError(f'{name} does not take {options}, which it needs here: pass last_stride=2, or another arch') from e
        self.widths = dict(zip((3, 4), self.net.feature_info.channels()))

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W
    ) -> tuple[Tensor, Tensor]:  # Stage 3 n x c3 x H/16 x W/16, stage 4 n x c4 x H/16 x W/16 (H/32 with `last_stride=2`)
        "Both maps; not all of timm's networks end a stage in a ReLU, which the part branches' own bottlenecks do"
        return tuple(self.net(images))


def _timm_options(name, net, last_stride):
    # What makes a network's maps ours: of stride 16, for images of any size, channels first
    strides = tuple(net.feature_info.reduction())
    if strides == (16, 16): return dict(dynamic_img_size=True)  # a ViT: position embeddings are resized to the image
    if strides == (14, 14): return dict(dynamic_img_size=True, patch_size=16)  # the same; timm resamples the patches of its weights
    if strides != (16, 32):
        raise ValueError(f'{name}: its last two maps have strides {strides[0]} and {strides[1]}; 16 and 32, or 16 and 16, are wanted')
    options = dict(output_stride=16) if last_stride == 1 else {}
    if str(getattr(net, 'output_fmt', '')).endswith('NHWC'): options |= dict(strict_img_size=False, feature_cls='getter')  # Swin
    return options


def create_backbone(
    arch: str | Callable = 'resnet50',  # torchvision's function or its name, one of `backbone_names()`; or timm's name, if installed
    pretrained: bool | str = True,  # ImageNet weights; a string names torchvision's version, as 'IMAGENET1K_V2'
    last_stride: int = 1,  # Stride of stage 4, 1 or 2
    stage3_stride: int = 2,  # Stride of stage 3, 2 as published or 1; torchvision's networks alone
) -> nn.Module:  # Images -> a map for each stage of its `.widths`: the channels of stages 3 and 4
    """A network cut after stage 4. torchvision's comes first where both have a name ('timm/resnet50' is timm's). An OSError where weights
    cannot be had, a ValueError for an unknown `arch`"""
    for what, stride in dict(last_stride=last_stride, stage3_stride=stage3_stride).items():
        if stride not in (1, 2): raise ValueError(f'{what}={stride!r}: it is 1 or 2')
    name = arch if isinstance(arch, str) else getattr(arch, '__name__', repr(arch))
    build = _builder(arch, name, pretrained, last_stride, stage3_stride)
    try: return build()
    except OSError as e:  # no network, or no room
        raise OSError(f'the ImageNet weights of {name} could not be downloaded ({e}): '
                      'pass pretrained=False, or weights=FILE with a file that holds them') from e


def _builder(arch, name, pretrained, last_stride, stage3_stride):
    if isinstance(arch, str) and name not in backbone_names():
        if not _timm_has(name.removeprefix('timm/')):
            hint = '' if find_spec('timm') else ' (or install timm for more)'
            raise ValueError(f'unknown arch {name!r}: use one of {", ".join(backbone_names())}{hint}')
        if stage3_stride != 2: raise ValueError(f'{name}: stage3_stride=1 is for torchvision\'s networks')
        return lambda: TimmBackbone(name.removeprefix('timm/'), bool(pretrained), last_stride)
    make = torchvision.models.get_model_builder(name) if isinstance(arch, str) else arch
    # Version 1 by default: the weights of the paper's time, and all that resnet18 and 34 have
    weights = 'IMAGENET1K_V1' if pretrained is True else pretrained or None
    return lambda: Backbone(make(weights=weights), last_stride, stage3_stride)


def _timm_has(name):
    if not find_spec('timm'): return False
    import timm
    return timm.is_model(name)
