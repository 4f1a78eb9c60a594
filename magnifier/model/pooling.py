"Region max pooling (Eq. 1) and kept-region pooling (Eq. 2)"

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ['region_max_pool', 'kept_region_pool']


def region_max_pool(
    feature_map: Tensor,  # n x c x h x w; after ReLU in the model, any sign allowed
    region_masks: Tensor,  # n x k x h x w, any real weights (0 or 1 where one-hot); used in the map's dtype
) -> Tensor:  # n x k x c, the map's dtype
    """Eq. 1: the maximum over h x w of `feature_map * region_masks[:, k]`, for every k, without the n x k x c x h x w product.
    The gradient goes to the first maximum of each, in row-major order; `region_masks` are constants and get none.
    With a non-negative map, a region that is absent pools to 0. A ValueError where the shapes do not agree"""
    _check_shapes(feature_map, region_masks)
    return _RegionMax.apply(feature_map, region_masks.detach().to(feature_map.dtype))


def kept_region_pool(
    feature_map: Tensor,  # n x c x h x w
    region_masks: Tensor,  # n x k x h x w
    kept_regions: Tensor | None = None,  # k booleans, the same for the whole batch; None keeps all
) -> Tensor:  # n x c
    "Eq. 2: GMP of the sum of the kept regions' maps; the sum over k is of masks alone, so that it is one pooling"
    if kept_regions is not None: region_masks = region_masks * kept_regions.to(region_masks)[:, None, None]
    return region_max_pool(feature_map, region_masks.sum(1, keepdim=True))[:, 0]


def _check_shapes(feature_map, region_masks):
    if feature_map.ndim != 4 or region_masks.ndim != 4:
        raise ValueError(f'feature map {tuple(feature_map.shape)} and region masks {tuple(region_masks.shape)}: '
                         'n x c x h x w and n x k x h x w are wanted')
    if feature_map.shape[0] != region_masks.shape[0] or feature_map.shape[2:] != region_masks.shape[2:]:
        raise ValueError(f'feature map {tuple(feature_map.shape)} and region masks {tuple(region_masks.shape)} differ in n, h or w: '
                         'resize the masks to the map (magnifier.model.resize)')


class _RegionMax(torch.autograd.Function):
    "Keeps the positions of the maxima and the weights there: n x k x c each, whatever h x w"

    @staticmethod
    def forward(ctx, feature_map, region_masks):
        masks = region_masks.flatten(2)  # n x k x hw
        values, index = _max_by_region(feature_map.flatten(2), masks)
        ctx.save_for_backward(index, masks)
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


def _max_by_region(maps, masks):  # n x c x hw, n x k x hw -> values and positions, n x k x c each
    found = [(maps * masks[:, k, None]).max(-1) for k in range(masks.shape[1])]
    return torch.stack([f.values for f in found], 1), torch.stack([f.indices for f in found], 1)
