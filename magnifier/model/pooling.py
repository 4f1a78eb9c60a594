"Region max pooling (Eq. 1), kept-region pooling (Eq. 2), and the region masks at a feature map's size that they take"

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from magnifier.regions import NO_MASK, N_REGIONS

__all__ = ['region_max_pool', 'region_max', 'kept_region_pool']

SPARSE = 3  # On a CPU, masks with fewer than 1/3 of their values non-zero are pooled by position
CHUNK = 2**20  # Values of a map worked on at once on a CPU: 4 MB, about a core's cache
EMBEDDING_BAG_MAX = 2  # torch's code for mode='max'


def region_max_pool(
    feature_map: Tensor,  # n x c x h x w, finite; after ReLU in the model, any sign allowed
    region_masks: Tensor,  # n x k x h x w, any real weights (0 or 1 where one-hot); used in the map's dtype
) -> Tensor:  # n x k x c, the map's dtype
    """Eq. 1: the maximum over h x w of `feature_map * region_masks[:, k]`, for every k, without the n x k x c x h x w
    product. The gradient goes to the first maximum of each region and channel, in row-major order; `region_masks` are
    constants and get none. With a non-negative map, an absent region pools to 0. A ValueError if the shapes do not
    agree"""
    _check_shapes(feature_map, region_masks)
    return _RegionMax.apply(feature_map, region_masks.detach().to(feature_map.dtype))


def region_max(
    feature_map: Tensor,  # n x c x h x w
    region_masks: Tensor,  # n x k x h x w
) -> Tensor:  # n x k x c, at least float32
    "`region_max_pool` for inference and export: region by region, without the positions that a gradient needs"
    feature_map = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    return torch.stack([(feature_map * region_masks[:, k, None]).amax((2, 3)) for k in range(region_masks.shape[1])], 1)


def kept_region_pool(
    feature_map: Tensor,  # n x c x h x w
    region_masks: Tensor,  # n x k x h x w
    kept_regions: Tensor | None = None,  # k booleans, the same for the whole batch; None keeps all
    *,
    pool: Callable = region_max_pool,  # Or `region_max`
) -> Tensor:  # n x c
    "Eq. 2: GMP of the sum of the kept regions' maps, as one pooling with the sum of their masks"
    if kept_regions is not None: region_masks = region_masks * kept_regions.to(region_masks)[:, None, None]
    return pool(feature_map, region_masks.sum(1, keepdim=True))[:, 0]


def _check_shapes(feature_map, region_masks):
    there, wanted = tuple(region_masks.shape), tuple(feature_map.shape)
    if len(there) == len(wanted) == 4 and there[0] == wanted[0] and there[2:] == wanted[2:]: return
    raise ValueError(f'feature map {wanted} and region masks {there}: n x c x h x w and n x k x h x w of one '
                     'n, h and w are wanted; `labels_to_masks` and `resize_masks` bring masks to the size of a map')


class _RegionMax(torch.autograd.Function):
    "Keeps only the positions of the maxima and the mask values there, n x k x c each, for the gradient"

    @staticmethod
    def forward(ctx, feature_map, region_masks):
        values, index = max_by_region(feature_map, region_masks)
        ctx.save_for_backward(index, region_masks.flatten(2))
        ctx.map_like = torch.empty_like(feature_map, device='meta')  # shape, dtype and memory format alone
        ctx.device = feature_map.device
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        index, masks = ctx.saved_tensors
        grad = (grad * masks.gather(2, index)).transpose(1, 2)  # n x c x k
        grad_map = torch.zeros_like(ctx.map_like, device=ctx.device)
        grad_map.flatten(2).scatter_add_(2, index.transpose(1, 2), grad)
        return grad_map, None


def max_by_region(
    feature_map: Tensor,  # n x c x h x w
    region_masks: Tensor,  # n x k x h x w, of the map's dtype
) -> tuple[Tensor, Tensor]:  # The maxima of Eq. 1, and their positions in h*w (the first of equal ones): n x k x c each
    "`region_max_pool` without gradient, and where the maxima are"
    maps = feature_map.flatten(2)  # n x c x hw
    masks = region_masks.flatten(2)  # n x k x hw
    # Looking at how sparse the masks are would make a GPU wait, and cut a compiled graph in two
    if masks.device.type != 'cpu' or torch.compiler.is_compiling() or not len(maps): return _max_dense(maps, masks)
    way = _max_sparse if masks.count_nonzero() * SPARSE < masks.numel() else _max_dense
    n = max(1, CHUNK // maps[0].numel())
    found = [way(m, r) for m, r in zip(maps.split(n), masks.split(n))]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def _max_dense(maps, masks):  # n x c x hw, n x k x hw -> values and positions, n x k x c each
    # One region's product at a time
    found = [(maps * mask[:, None]).max(-1) for mask in masks.unbind(1)]
    return torch.stack([f.values for f in found], 1), torch.stack([f.indices for f in found], 1)


def _max_sparse(maps, masks):
    # One-hot masks leave a region few positions. The channels of a position are a row; the rows are sorted by region,
    # and each run of rows gives a region's maxima
    n, c, hw = maps.shape
    k = masks.shape[1]
    image, region, position = masks.nonzero().unbind(1)  # sorted by image, region and position
    if not len(image): return maps.new_zeros(n, k, c), image.new_zeros(n, k, c)
    weights = masks[image, region, position, None]
    rows = maps.transpose(1, 2).reshape(n * hw, c).index_select(0, image * hw + position) * weights
    if rows.dtype in (torch.float16, torch.bfloat16): rows = rows.float()
    lengths = (masks != 0).sum(-1).flatten()  # (n*k,)
    starts = lengths.cumsum(0) - lengths
    values, _, _, row = torch.embedding_bag(rows, torch.arange(len(rows)), starts, False, EMBEDDING_BAG_MAX)
    return _with_zeros(values.view(n, k, c), position[row.clamp(min=0)].view(n, k, c), masks)


def _with_zeros(values, index, masks):
    # Outside its positions a region's product is 0, which is the maximum where all inside are negative, and the first
    # of equal maxima where its position comes first
    outside = masks == 0
    zero_at = torch.where(outside.any(-1), outside.byte().argmax(-1), masks.shape[-1])[..., None]  # (n, k, 1)
    empty = outside.all(-1)[..., None]
    has_zero = zero_at < masks.shape[-1]
    index = torch.where(values == 0, index.minimum(zero_at), index)
    index = torch.where((values < 0) & has_zero | empty, zero_at, index)
    return torch.where(has_zero, values.clamp(min=0), values).to(masks.dtype), index


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
    rows = _nearest(size[0], labels.shape[1], labels.device)
    cols = _nearest(size[1], labels.shape[2], labels.device)
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
    y0, y1, dy = _bilinear(size[0], labels.shape[1], labels.device)
    x0, x1, dx = _bilinear(size[1], labels.shape[2], labels.device)
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
