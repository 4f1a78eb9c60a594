"BNNeck, the segmentation head, and batch norms of evaluation folded into the convolutions before them"

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from magnifier.regions import N_REGIONS

__all__ = ['BNNeck', 'RegionNecks', 'SegmentationHead', 'FoldedHead', 'at_least_float32', 'neck_bn',
           'transposed_convolution', 'fold_norms', 'affine_of']


def at_least_float32(
    x: Tensor,  # Any floating tensor
) -> Tensor:  # float32 in place of half precision, anything wider as it is
    "Casts half-precision tensors to float32, in which heads, losses and distances are computed"
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def neck_bn(
    width: int,  # Channels
) -> nn.BatchNorm1d:  # Its bias is 0 and takes no gradient
    "BNNeck's batch norm: without a shift, so that the cosine compares the features as the classifier does"
    bn = nn.BatchNorm1d(width)
    bn.bias.requires_grad_(False)
    return bn


class BNNeck(nn.Module):
    "Batch norm and a linear classifier without bias on top of a branch's feature (Luo et al., reid-strong-baseline)"

    def __init__(
        self,
        width: int,  # c, channels of the feature
        n_classes: int,  # Training identities
    ):
        "The classifier starts from N(0, 0.001)"
        super().__init__()
        self.bn = neck_bn(width)
        self.classifier = nn.Linear(width, n_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature):  # f, n x c -> f_bn, n x c, for retrieval; logits, n x n_classes, for the cross-entropy
        normed = self.bn(feature)
        return normed, self.classifier(normed)


class RegionNecks(nn.Module):
    "A separate BNNeck for each p(x_k), the ReID supervision of regions (paper, section 3.3), computed together"

    def __init__(
        self,
        width: int,  # c, channels of a region's feature
        n_classes: int,  # Training identities
        n_regions: int = N_REGIONS,  # k
    ):
        "One batch norm over k x c channels is k batch norms over c"
        super().__init__()
        self.bn = neck_bn(n_regions * width)
        self.weight = nn.Parameter(torch.empty(n_regions, n_classes, width).normal_(std=0.001))

    def forward(self, region_features):  # n x k x c -> logits, n x k x n_classes
        normed = self.bn(region_features.flatten(1)).view_as(region_features)
        return torch.einsum('nkc,kyc->nky', normed, self.weight)


class SegmentationHead(nn.Module):
    "Deconvolution to twice the map's size, then a 1x1 convolution to the regions, as in EANet"

    def __init__(
        self,
        width: int,  # Channels of the map
        n_regions: int = N_REGIONS,  # k
        hidden: int = 256,  # Channels between
    ):
        "Both convolutions start from N(0, 0.001), bias 0"
        super().__init__()
        self.deconv = nn.ConvTranspose2d(width, hidden, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(hidden, n_regions, 1)
        for conv in (self.deconv, self.conv): nn.init.normal_(conv.weight, std=0.001)
        nn.init.zeros_(self.conv.bias)

    def forward(self, feature_map):  # n x c x h x w -> region logits, n x k x 2h x 2w
        return self.conv(self.relu(self.bn(self.deconv(feature_map))))


class FoldedHead(nn.Module):
    "A segmentation head for inference: its batch norm is folded into the deconvolution"

    def __init__(
        self,
        head: SegmentationHead,  # Copied, and left as it is
    ):
        super().__init__()
        head = deepcopy(head).eval()
        self.deconv = fuse_conv_bn_eval(head.deconv, head.bn, transpose=True)
        self.conv = head.conv

    def forward(self, feature_map):  # n x c x h x w -> region logits, n x k x 2h x 2w
        return self.conv(self._deconvolved(feature_map).relu_())

    def _deconvolved(self, feature_map):
        device = feature_map.device.type
        if device != 'cpu' or torch.compiler.is_compiling() or torch.is_autocast_enabled(device):
            return self.deconv(feature_map)
        return transposed_convolution(feature_map, self.deconv.weight, self.deconv.bias)


def transposed_convolution(
    feature_map: Tensor,  # n x c x h x w
    weight: Tensor,  # c x d x 3 x 3, as `nn.ConvTranspose2d` keeps it
    bias: Tensor,  # d
) -> Tensor:  # n x d x 2h x 2w, channels last
    """`F.conv_transpose2d(feature_map, weight, bias, stride=2, padding=1, output_padding=1)` as one matrix product for
    the nine weights of the kernel, and sums of its shifted parts. On a CPU this takes two thirds of the time"""
    n, c, h, w = feature_map.shape
    d = weight.shape[1]
    rows = feature_map.permute(0, 2, 3, 1).reshape(n * h * w, c)
    taps = (rows @ weight.permute(0, 2, 3, 1).reshape(c, 9 * d)).view(n, h, w, 3, 3, d)
    out = bias.expand(n, h, 2, w, 2, d).contiguous()
    # Output pixel 2i takes tap 1 of i; 2i + 1 takes tap 2 of i and tap 0 of i + 1
    for y, tap_y, down in ((0, 1, 0), (1, 2, 0), (1, 0, 1)):
        for x, tap_x, across in ((0, 1, 0), (1, 2, 0), (1, 0, 1)):
            out[:, :h - down, y, :w - across, x] += taps[:, down:, across:, tap_y, tap_x]
    return out.view(n, 2 * h, 2 * w, d).permute(0, 3, 1, 2)


RESIDUAL = (('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'))
PAIRS = {BasicBlock: RESIDUAL, Bottleneck: RESIDUAL}  # a convolution and the norm of its output, by their names


def fold_norms(
    module: nn.Module,  # Any; torchvision's residual blocks in it and modules with `norm_pairs` are folded
) -> nn.Module:  # A copy in evaluation mode; the rest of it is copied as it is
    "Folds batch norms into their convolutions: in evaluation, both are one linear map"
    module = deepcopy(module).eval()
    for block in list(module.modules()):
        for conv, bn in getattr(block, 'norm_pairs', PAIRS.get(type(block), ())): _fold(block, conv, bn)
        if type(block) in PAIRS and block.downsample is not None: _fold(block.downsample, '0', '1')
    return module


def _fold(block, conv, bn):
    conv_module, norm = getattr(block, conv, None), getattr(block, bn, None)
    if type(conv_module) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d: return
    setattr(block, conv, fuse_conv_bn_eval(conv_module, norm))
    setattr(block, bn, nn.Identity())


def affine_of(
    bn: nn.BatchNorm1d,  # A batch norm over c channels
) -> tuple[Tensor, Tensor]:  # c scales and c shifts, without gradient
    "A batch norm in evaluation as x * scale + shift"
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return scale.detach(), (bn.bias - bn.running_mean * scale).detach()
