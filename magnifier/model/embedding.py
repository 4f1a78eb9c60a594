"The network that an embedding needs, and no more: what `MagnifierNet` computes in evaluation, faster, and simple enough to export"

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from magnifier.model.backbone import Backbone
from magnifier.model.heads import at_least_float32
from magnifier.model.resize import predicted_masks

__all__ = ['EmbeddingNet', 'fold_norms', 'transposed_convolution']


class EmbeddingNet(nn.Module):
    """Images to embeddings, and part labels where asked for. A copy of a `MagnifierNet` without classifiers and region necks, its batch norms
    folded into the convolutions before them, in channels-last order: equal to the model's own to rounding, and for evaluation alone"""

    def __init__(
        self,
        model: nn.Module,  # A MagnifierNet, left as it is; its later training does not reach this copy
        *,
        masks: bool = False,  # Returns the part labels beside the embedding
    ):
        "A ValueError where part labels are wanted of a model without a segmentation head"
        super().__init__()
        if masks and model.segmentation is None: raise ValueError('this model has no segmentation head: pass masks=False')
        self.with_masks, self.region_stage, self.mask_resize, self.soft_masks = masks, model.region_stage, model.mask_resize, model.soft_masks
        needs_masks = masks or len(model.branches) > 1
        self.backbone = fold_norms(model.backbone)
        self.segmentation = _fold_head(model.segmentation) if needs_masks else None
        parts = {name: branch for name, branch in model.branches.items() if name != 'global'}
        self.maps = nn.ModuleDict({name: fold_norms(branch.map) for name, branch in parts.items()})
        self.reduce = deepcopy(model.sab.reduce) if 'sab' in parts else None
        self.fuse = deepcopy(model.sfb.fuse) if 'sfb' in parts else None
        scale, shift = zip(*(_affine(branch.neck.bn) for branch in model.branches.values()))
        self.register_buffer('scale', torch.cat(scale))
        self.register_buffer('shift', torch.cat(shift))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W, sides multiples of 16, normalised
    ) -> Tensor | tuple[Tensor, Tensor]:  # n x d float32, L2-normalised; with masks also n x 2h x 2w uint8 part labels
        "METHOD: the batch-normed features of the branches, one after the other, normalised; parts by the model's own parsing"
        stage3, stage4 = self.backbone(images.contiguous(memory_format=torch.channels_last))
        shared = stage3 if self.region_stage == 3 else stage4
        maps = {name: to_map(shared) for name, to_map in self.maps.items()}
        logits = None if self.segmentation is None else at_least_float32(self.segmentation(stage4))
        with torch.autocast(images.device.type, enabled=False): embedding = self._embed(stage4, maps, logits)
        return (embedding, logits.argmax(1).to(torch.uint8)) if self.with_masks else embedding

    def _embed(self, stage4, maps, logits):
        features = [at_least_float32(stage4).mean((2, 3))]
        if maps:
            masks = predicted_masks(logits, next(iter(maps.values())).shape[-2:], self.mask_resize, soft=self.soft_masks)
        if 'sab' in maps: features.append(self.reduce(_pool(maps['sab'], masks.sum(1, keepdim=True))[:, 0]))
        if 'sfb' in maps: features.append(self.fuse(_pool(maps['sfb'], masks)))
        return F.normalize(torch.cat(features, 1) * self.scale + self.shift)


def _pool(feature_map, masks):
    # Eq. 1 without the positions that a gradient would ask for, region by region: the n x k x c x h x w product is never made
    feature_map = at_least_float32(feature_map)
    return torch.stack([(feature_map * masks[:, k, None]).amax((2, 3)) for k in range(masks.shape[1])], 1)


def _affine(bn):
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return scale.detach(), (bn.bias - bn.running_mean * scale).detach()


def fold_norms(
    module: nn.Module,  # Residual blocks of torchvision, in whatever they are
) -> nn.Module:  # A copy in evaluation mode; what is no residual block of torchvision is copied as it is
    "Batch norms folded into the convolutions before them: in evaluation both are one linear map"
    module = deepcopy(module).eval()
    for block in list(module.modules()):
        if not isinstance(block, (BasicBlock, Bottleneck, Backbone)): continue
        for number in '123': _fold(block, f'conv{number}', f'bn{number}')
        if getattr(block, 'downsample', None) is not None: _fold(block.downsample, '0', '1')
    return module


def _fold(block, conv, bn):
    conv_module, norm = getattr(block, conv, None), getattr(block, bn, None)
    if type(conv_module) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d: return
    setattr(block, conv, fuse_conv_bn_eval(conv_module, norm))
    setattr(block, bn, nn.Identity())


class _FoldedHead(nn.Module):
    "SegmentationHead in evaluation: deconvolution with its batch norm folded in, ReLU, 1x1 convolution"

    def __init__(self, deconv, conv):
        super().__init__()
        self.deconv, self.conv = deconv, conv

    def forward(self, feature_map):
        plain = feature_map.device.type != 'cpu' or torch.compiler.is_compiling() or torch.is_autocast_enabled(feature_map.device.type)
        upsampled = self.deconv(feature_map) if plain else transposed_convolution(feature_map, self.deconv.weight, self.deconv.bias)
        return self.conv(upsampled.relu_())


def _fold_head(head):
    head = deepcopy(head).eval()
    return _FoldedHead(fuse_conv_bn_eval(head.deconv, head.bn, transpose=True), head.conv)


def transposed_convolution(
    feature_map: Tensor,  # n x c x h x w
    weight: Tensor,  # c x d x 3 x 3, as `nn.ConvTranspose2d` keeps it
    bias: Tensor,  # d
) -> Tensor:  # n x d x 2h x 2w, channels last
    """`F.conv_transpose2d(feature_map, weight, bias, stride=2, padding=1, output_padding=1)` as one matrix product for the nine taps, and sums of
    shifted taps: on a CPU in two thirds of its time"""
    (n, c, h, w), d = feature_map.shape, weight.shape[1]
    rows = feature_map.permute(0, 2, 3, 1).reshape(n * h * w, c)
    taps = (rows @ weight.permute(0, 2, 3, 1).reshape(c, 9 * d)).view(n, h, w, 3, 3, d)
    out = bias.expand(n, h, 2, w, 2, d).contiguous()  # output pixel 2i takes tap 1 of i; 2i + 1 takes tap 2 of i and tap 0 of i + 1
    for y, tap_y, down in ((0, 1, 0), (1, 2, 0), (1, 0, 1)):
        for x, tap_x, across in ((0, 1, 0), (1, 2, 0), (1, 0, 1)):
            out[:, :h - down, y, :w - across, x] += taps[:, down:, across:, tap_y, tap_x]
    return out.view(n, 2 * h, 2 * w, d).permute(0, 3, 1, 2)
