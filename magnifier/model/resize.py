"Part labels and predicted logits turned into region masks of a feature map's size"

import torch
from torch import Tensor
from torch.nn import functional as F

from magnifier.regions import NO_MASK, N_REGIONS

__all__ = ['has_mask', 'resize_labels', 'labels_to_masks', 'resize_masks', 'predicted_masks', 'MASK_RESIZES']

MASK_RESIZES = ('bilinear', 'nearest')


def has_mask(
    labels: Tensor,  # n x H x W part labels; an image without a mask holds `NO_MASK` everywhere
) -> Tensor:  # n booleans
    "Whether each image has a part mask, that is, no pixel with `NO_MASK`"
    return (labels != NO_MASK).flatten(1).all(1)


def _nearest(n_out, n_in, device):
    # The source pixel under each target pixel's centre, in integers: no rounding differs between devices
    return (2 * torch.arange(n_out, device=device) + 1) * n_in // (2 * n_out)


def _bilinear(n_out, n_in, device):
    # Two neighbours and the second one's weight, as F.interpolate(align_corners=False) places them
    source = ((torch.arange(n_out, device=device, dtype=torch.float32) + 0.5) * n_in / n_out - 0.5).clamp(min=0)
    low = source.long()
    return low, (low + 1).clamp(max=n_in - 1), source - low


def resize_labels(
    labels: Tensor,  # n x H x W integer labels, of any range
    size: tuple[int, int],  # Rows and columns wanted
) -> Tensor:  # n x rows x columns, the same dtype
    "Nearest neighbour by pixel centres, because a mean of two labels would be a third, wrong label"
    if tuple(labels.shape[-2:]) == tuple(size): return labels
    rows, cols = (_nearest(o, i, labels.device) for o, i in zip(size, labels.shape[-2:]))
    return labels[:, rows[:, None], cols]


def _one_hot(labels, n_regions):
    return labels[:, None] == torch.arange(n_regions, device=labels.device)[:, None, None]  # n x k x h x w


def labels_to_masks(
    labels: Tensor,  # n x H x W part labels 0..n_regions-1; `NO_MASK` (or any other) is in no region
    size: tuple[int, int],  # Rows and columns of the feature map
    mode: str = 'bilinear',  # 'bilinear' as in the paper's section 3.1, or 'nearest' as in its code
    n_regions: int = N_REGIONS,  # k
) -> Tensor:  # n x k x rows x columns float32 in [0, 1]; they sum to 1 at each position of a labelled image
    """One-hot masks of `labels`, resized: `F.interpolate(one_hot(labels), size, mode)` without its n x k x H x W
    tensor, since a bilinear value depends on only four labels"""
    if mode == 'nearest' or tuple(labels.shape[-2:]) == tuple(size):
        return _one_hot(resize_labels(labels, size), n_regions).float()
    (y0, y1, dy), (x0, x1, dx) = (_bilinear(o, i, labels.device) for o, i in zip(size, labels.shape[-2:]))
    masks = 0
    for y, wy in ((y0, 1 - dy), (y1, dy)):
        for x, wx in ((x0, 1 - dx), (x1, dx)):
            masks = masks + _one_hot(labels[:, y[:, None], x], n_regions) * (wy[:, None] * wx)
    return masks


def resize_masks(
    masks: Tensor,  # n x k x H x W floats
    size: tuple[int, int],  # Rows and columns of the feature map
    mode: str = 'bilinear',  # 'bilinear' or 'nearest', by pixel centres
) -> Tensor:  # n x k x rows x columns
    "Soft masks at another size"
    if tuple(masks.shape[-2:]) == tuple(size): return masks
    if mode == 'nearest': return F.interpolate(masks, size, mode='nearest-exact')
    return F.interpolate(masks, size, mode='bilinear', align_corners=False)


def predicted_masks(
    mask_logits: Tensor,  # n x k x h' x w' logits of the segmentation head
    size: tuple[int, int],  # Rows and columns of the feature map
    mode: str = 'bilinear',  # 'bilinear' or 'nearest'
    *,
    soft: bool = False,  # The softmax instead of the one-hot argmax
) -> Tensor:  # n x k x rows x columns floats in [0, 1], without gradient
    "R_seg at inference (paper, section 3.1): the model's own part masks, without gradient"
    mask_logits = mask_logits.detach()
    if soft: return resize_masks(mask_logits.float().softmax(1), size, mode)
    return labels_to_masks(mask_logits.argmax(1), size, mode, mask_logits.shape[1])
