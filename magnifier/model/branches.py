"""The branches of MagnifierNet (paper, section 3). Each pools a feature f from a map x, with region masks m_1 ... m_k:

    global   f = mean(x)                                             x: the last stage, as it is
    SAB      f = W max(x * sum of m_k over the kept regions)         Eq. 2; x: stage 3 through a bottleneck of its own
    SFB      f = GRU(p_1, ..., p_k), p_k = max(x * m_k)              Eq. 1; x: as SAB's, another bottleneck
    AB       f = [W_1 p_1, ..., W_k p_k]                             SFB's twin in the ablation (Figure 4)

Mean and max are over all positions. A BNNeck follows: f_bn = BN(f) is the branch's part of the embedding, and a linear
classifier of f_bn trains it. All other code iterates over `MagnifierNet.branches`; to add a branch, write a class here,
add it to `BRANCHES`, and add an argument to `create_branches`"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from magnifier.checks import refuse
from magnifier.model.heads import BNNeck, RegionNecks, affine_of, at_least_float32, fold_norms
from magnifier.model.pooling import kept_region_pool, max_by_region, region_max, region_max_pool
from magnifier.regions import N_REGIONS

__all__ = ['BRANCHES', 'RecurrentFusion', 'ConcatFusion']


class BranchOutput(NamedTuple):
    "The outputs of a branch, for the embedding and the losses"
    normed: Tensor  # n x width: f_bn, for the embedding
    features: dict[str, Tensor]  # By view, n x width: f, before its batch norm
    logits: dict[str, Tensor]  # By view, n x n_classes
    region_features: Tensor | None = None  # n x k x c, of a branch that pools region by region
    region_logits: Tensor | None = None  # n x k x n_classes, in training alone


class Branch(nn.Module, ABC):
    """The base class of all branches: its own map, a feature f pooled from it, and a BNNeck.

    A subclass defines `pool`, `describe_regions` and `contribution`. It pools with `self.region_pool`, which the folded
    form replaces by a faster function without gradients"""

    name: str  # In outputs, tables of losses and saved weights
    title: str  # In figures
    views: tuple[str, ...]  # Names of the features that it gives to the losses; the first is `name`
    needs_masks = True  # Whether it pools by region masks; if so, images without a mask do not train it
    training_only = ('neck',)  # Modules that no embedding needs, but for the neck's batch norm
    region_pool = staticmethod(region_max_pool)  # n x c x h x w, n x k x h x w -> n x k x c (Eq. 1)

    def __init__(
        self,
        own_map: nn.Module,  # Shared map -> this branch's own, of the same size
        width: int,  # Channels of f
        n_classes: int,  # Training identities
        *,
        stage: int,  # The stage of the backbone whose map it takes
        upsample: bool = False,  # Its map at twice the size, where the segmentation head's labels are
    ):
        super().__init__()
        self.map = own_map
        self.width = width
        self.neck = BNNeck(width, n_classes)
        self.stage = stage
        self.upsample = upsample

    def own_map(
        self,
        shared: Tensor,  # n x c x h x w, the stage's map
    ) -> Tensor:  # n x c x h x w, or n x c x 2h x 2w with `upsample`
        "The map that this branch pools"
        own = self.map(shared)
        return F.interpolate(own, scale_factor=2, mode='bilinear', align_corners=False) if self.upsample else own

    def forward(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor | None = None,  # n x k x h x w; None for a branch that needs none
        kept_regions: Tensor | None = None,  # k booleans of an occlusion; None keeps what evaluation keeps
    ) -> BranchOutput:
        "f, f_bn and logits"
        feature = self.pool(feature_map, region_masks, kept_regions)
        normed, logits = self.neck(feature)
        return BranchOutput(normed, {self.name: feature}, {self.name: logits})

    @abstractmethod
    def pool(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor | None = None,  # n x k x h x w
        kept_regions: Tensor | None = None,  # k booleans
    ) -> Tensor:  # n x width
        "The branch's feature f"

    @abstractmethod
    def describe_regions(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor,  # n x k x h x w
    ) -> Tensor:  # n x k x c
        "The branch's description of each region, after a batch norm that removes what all people have in common"

    @abstractmethod
    def contribution(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor,  # n x k x h x w
        weight: Tensor,  # n x width: what f_bn is multiplied with
    ) -> Tensor:  # n x k x h x w
        """The part of each region and position in <f_bn, weight>, minus its value for an average person's features: the
        Aumann-Shapley value (integrated gradients; Sundararajan et al. 2017) along the way from the running means of
        the batch norms to this image"""

    def slope(
        self,
        weight: Tensor,  # n x width
    ) -> Tensor:  # n x width
        "The gradient of <f_bn, weight> with respect to f: in evaluation, batch norm is linear"
        return weight * affine_of(self.neck.bn)[0]


class GlobalBranch(Branch):
    "Global average pooling of the last stage, then a BNNeck, as in reid-strong-baseline: f = mean(x)"

    name = 'global'
    title = 'global'
    views = ('global',)
    needs_masks = False

    def __init__(
        self,
        width: int,  # Channels of the stage's map, and of f
        n_classes: int,  # Training identities
        *,
        stage: int = 4,  # The last stage of the backbone
    ):
        super().__init__(nn.Identity(), width, n_classes, stage=stage)

    def pool(self, feature_map, region_masks=None, kept_regions=None):
        "f_global"
        return at_least_float32(feature_map).mean((2, 3))

    def describe_regions(self, feature_map, region_masks):
        "The mean of the map over the region"
        means = torch.einsum('nchw,nkhw->nkc', feature_map, region_masks)
        means = means / region_masks.sum((2, 3)).clamp(min=1e-6)[..., None]
        return self.neck.bn(means.flatten(0, 1)).view_as(means)

    def contribution(self, feature_map, region_masks, weight):
        "Exact: the product of each position with the weight, minus an equal part of the average person's value"
        slope = self.slope(weight)
        earned = torch.einsum('nchw,nc->nhw', feature_map, slope) - (slope @ self.neck.bn.running_mean)[:, None, None]
        return region_masks * earned[:, None] / feature_map[0, 0].numel()


class AdversarialBranch(Branch):
    "SAB: max pooling over the kept regions (Eq. 2), a linear layer W, a BNNeck"

    name = 'sab'
    title = 'SAB'
    views = ('sab', 'sab_original')

    def __init__(
        self,
        width: int,  # c, channels of the shared map
        n_classes: int,  # Training identities
        hidden: int = 1024,  # Channels of f_sab
        *,
        keep_background: bool = True,  # Whether the background is pooled where nothing is occluded, as in evaluation
        original: bool = False,  # Whether it trains on the features without occlusion too
        stage: int = 3,  # See `Branch`
        bottleneck: bool = True,  # See `branch_map`
        upsample: bool = False,  # See `Branch`
    ):
        "The 1x1 convolution of a pooled feature is a linear layer; no bias, since a batch norm follows"
        super().__init__(branch_map(width, bottleneck), hidden, n_classes, stage=stage, upsample=upsample)
        self.reduce = nn.Linear(width, hidden, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight, mode='fan_out')
        self.keep_background = keep_background
        self.original = original

    def forward(self, feature_map, region_masks=None, kept_regions=None):
        "With `original`, in training, also the features of the same images with all regions kept"
        occluded = super().forward(feature_map, region_masks, kept_regions)
        if not self.original or not self.training or kept_regions is None: return occluded
        original = super().forward(feature_map, region_masks)
        occluded.features['sab_original'] = original.features['sab']
        occluded.logits['sab_original'] = original.logits['sab']
        return occluded

    def pool(self, feature_map, region_masks=None, kept_regions=None):
        "f_sab"
        if kept_regions is None and not self.keep_background: region_masks = region_masks[:, 1:]
        pooled = kept_region_pool(feature_map, region_masks, kept_regions, pool=self.region_pool)
        return self.reduce(at_least_float32(pooled))

    def describe_regions(self, feature_map, region_masks):
        "The branch's feature of the region alone"
        alone = self.reduce(region_max_pool(feature_map, region_masks))
        return self.neck.bn(alone.flatten(0, 1)).view_as(alone)

    def contribution(self, feature_map, region_masks, weight):
        """Exact: each channel counts at the position of its maximum, minus the average person's value in proportion to
        the maxima"""
        if not self.keep_background: region_masks = F.pad(region_masks[:, 1:], (0, 0, 0, 0, 1, 0))  # its mask is 0
        kept = region_masks.sum(1, keepdim=True)  # n x 1 x h x w
        maxima, places = max_by_region(feature_map, kept)  # n x 1 x c each
        slope = self.slope(weight)
        average = (slope @ self.neck.bn.running_mean)[:, None, None]
        earned = maxima * (slope @ self.reduce.weight.detach())[:, None]
        earned = earned - average * maxima / maxima.sum(-1, keepdim=True).clamp(min=1e-12)
        return _at_places(earned, places, feature_map.shape[-2:]) * region_masks / kept.clamp(min=1e-12)


class FusionBranch(Branch):
    """SFB, or AB, depending on `fuse`: region max pooling (Eq. 1), a fusion of the k features, a BNNeck, and a neck for
    each region"""

    name = 'sfb'
    title = 'SFB'
    views = ('sfb',)
    training_only = ('neck', 'region_necks')

    def __init__(
        self,
        width: int,  # c, channels of the shared map
        n_classes: int,  # Training identities
        fuse: nn.Module,  # n x k x c -> n x hidden: `RecurrentFusion` or `ConcatFusion`
        hidden: int = 1024,  # Channels of f_sfb
        *,
        n_regions: int = N_REGIONS,  # k
        stage: int = 3,  # See `Branch`
        bottleneck: bool = True,  # See `branch_map`
        upsample: bool = False,  # See `Branch`
    ):
        "The logits of the region necks are used in training only; their batch norms also describe single regions"
        super().__init__(branch_map(width, bottleneck), hidden, n_classes, stage=stage, upsample=upsample)
        self.fuse = fuse
        self.region_necks = RegionNecks(width, n_classes, n_regions)

    def forward(self, feature_map, region_masks=None, kept_regions=None):
        "Also the region features p(x_k), and in training their logits"
        region_features = self.region_features(feature_map, region_masks)
        feature = self.fuse(region_features)
        normed, logits = self.neck(feature)
        region_logits = self.region_necks(region_features) if self.training else None
        return BranchOutput(normed, {self.name: feature}, {self.name: logits}, region_features, region_logits)

    def region_features(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor,  # n x k x h x w
    ) -> Tensor:  # n x k x c
        "p(x_k), the inputs of the fusion"
        return at_least_float32(self.region_pool(feature_map, region_masks))

    def pool(self, feature_map, region_masks=None, kept_regions=None):
        "f_sfb"
        return self.fuse(self.region_features(feature_map, region_masks))

    def describe_regions(self, feature_map, region_masks):
        "p(x_k) after the BNNeck of its region, which was trained to classify identities by that region"
        pooled = region_max_pool(feature_map, region_masks)
        return self.region_necks.bn(pooled.flatten(1)).view_as(pooled)

    def contribution(self, feature_map, region_masks, weight):
        """The gradient of the fusion is integrated as the p(x_k) go from the average person's to the image's; each
        channel counts at the position of its maximum"""
        pooled, places = max_by_region(feature_map, region_masks)  # n x k x c each
        average = self.region_necks.bn.running_mean.view(1, *pooled.shape[1:])
        slope = self.slope(weight)
        gradient = _mean_gradient(lambda features: (self.fuse(features) * slope).sum(), average, pooled)
        return _at_places(gradient * (pooled - average), places, feature_map.shape[-2:])


def branch_map(
    width: int,  # c, channels of the shared map
    bottleneck: bool = True,  # c -> c/4 -> c with a residual, as the authors' code has; False shares the map as it is
) -> nn.Module:  # n x c x h x w -> the same shape, non-negative
    "The layers between the shared map and the pooling of a part branch"
    if not bottleneck: return nn.Identity()
    block = Bottleneck(width, width // 4)
    for m in block.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
    return block


def _at_places(values, places, size):  # n x k x c values at positions in h*w -> their sums, n x k x h x w
    sums = values.new_zeros(*values.shape[:2], size[0] * size[1])
    return sums.scatter_add_(2, places, values).unflatten(2, size)


NODES = 12  # Of the quadrature: with these, its error on a recurrent net is below float32's


def _mean_gradient(
    function: Callable,  # Tensor -> scalar
    start: Tensor,  # Where the straight way begins; broadcast to `end`
    end: Tensor,  # Where it ends
) -> Tensor:  # Of the shape of `end`
    "The mean gradient of `function` along the way, by Gauss-Legendre quadrature"
    gradient = torch.zeros_like(end)
    nodes, shares = np.polynomial.legendre.leggauss(NODES)
    for node, share in zip((nodes + 1) / 2, shares / 2):
        point = (start + float(node) * (end - start)).detach().requires_grad_()
        # cuDNN's recurrent nets have no gradient in evaluation mode, and the sums of TF32 would not add up
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False): value = function(point)
        gradient += float(share) * torch.autograd.grad(value, point)[0]
    return gradient


CELLS = {'gru': nn.GRU, 'lstm': nn.LSTM}


class RecurrentFusion(nn.Module):
    "One recurrent layer reads the regions in index order; its last output is the fusion (paper, section 3.3)"

    def __init__(
        self,
        width: int,  # c, channels of a region's feature
        hidden: int = 1024,  # Channels of the fusion
        cell: str = 'gru',  # 'gru' as in the paper, 'lstm' as in its code
    ):
        super().__init__()
        self.rnn = CELLS[cell](width, hidden, batch_first=True)

    def forward(self, region_features):  # n x k x c, background first -> n x hidden
        outputs, _ = self.rnn(region_features)
        return outputs[:, -1]


class ConcatFusion(nn.Module):
    "AB, the ablation twin of Figure 4: a linear layer per region to hidden/k channels, concatenated"

    def __init__(
        self,
        width: int,  # c, channels of a region's feature
        hidden: int = 1024,  # Channels of the concatenation, a multiple of k
        n_regions: int = N_REGIONS,  # k
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_regions, width, hidden // n_regions))
        nn.init.normal_(self.weight, std=(2 * n_regions / hidden) ** 0.5)  # kaiming, fan out of hidden/k

    def forward(self, region_features):  # n x k x c -> n x hidden
        return torch.einsum('nkc,kcd->nkd', region_features, self.weight).flatten(1)  # (n, k*d)


# In the order in which they stand in the embedding
BRANCHES: dict[str, type[Branch]] = {cls.name: cls for cls in (GlobalBranch, AdversarialBranch, FusionBranch)}


def create_branches(
    widths: dict[int, int],  # Channels of the backbone's maps by stage
    n_classes: int,  # Training identities
    *,
    sab: bool = True,  # Semantic adversarial branch
    sfb: bool | str = True,  # Semantic fusion branch; 'ab' is its ablation twin
    cell: str = 'gru',  # SFB's recurrent cell: 'gru' as in the paper, 'lstm' as in its code
    region_stage: int = 3,  # The stage whose map SAB and SFB take: 3 (paper), 4, or 5 where the backbone has one
    branch_bottleneck: bool = True,  # A bottleneck of its own for each part branch, as in the authors' code
    upsample_maps: bool = False,  # Part branches pool maps of twice the size, where the segmentation head's labels are
    keep_background: bool = True,  # Whether SAB pools the background: False leaves it out in training and in evaluation
    sab_original: bool = False,  # Whether SAB trains on the features without occlusion too
    hidden: int = 1024,  # Channels of f_sab and f_sfb
    n_regions: int = N_REGIONS,  # k, part labels; another number only for a network alone: all else knows these eight
) -> dict[str, Branch]:  # By name
    "Builds the branches. A ValueError for an unknown `sfb`, `cell` or `region_stage`"
    refuse({
        f"sfb={sfb!r}: it is True, False or 'ab' (the ablation twin)": sfb not in (True, False, 'ab'),
        f'unknown cell {cell!r}: use one of {", ".join(CELLS)}': cell not in CELLS,
        f'region_stage={region_stage!r}: with this backbone use one of {", ".join(map(str, widths))}':
            region_stage not in widths,
        f'hidden={hidden}: the ablation twin needs a multiple of {n_regions} regions':
            sfb == 'ab' and hidden % n_regions,
    })
    width = widths[region_stage]
    last = max(widths)
    of_parts = dict(stage=region_stage, bottleneck=branch_bottleneck, upsample=upsample_maps)
    branches = {'global': GlobalBranch(widths[last], n_classes, stage=last)}
    if sab:
        branches['sab'] = AdversarialBranch(
            width, n_classes, hidden, keep_background=keep_background, original=sab_original, **of_parts)
    if sfb:
        fuse = ConcatFusion(width, hidden, n_regions) if sfb == 'ab' else RecurrentFusion(width, hidden, cell)
        branches['sfb'] = FusionBranch(width, n_classes, fuse, hidden, n_regions=n_regions, **of_parts)
    return branches


def branch_scales(
    normed: list[Tensor],  # f_bn of each branch, n x c_branch
    weights: list[float],  # Of each branch, 0 or more
    normalise: bool,  # Whether each has length 1 before its weight; False leaves it its batch norm's scale
) -> Tensor:  # n x b: what each f_bn is multiplied with in an embedding of length 1
    "The factor of each branch in the embedding of each image"
    lengths = torch.stack([f.norm(dim=1) for f in normed], 1)  # n x b
    scales = lengths.new_tensor(weights).expand_as(lengths)
    if normalise: scales = scales / lengths.clamp(min=1e-12)
    return scales / (scales * lengths).norm(dim=1, keepdim=True).clamp(min=1e-12)


def join_branches(
    normed: list[Tensor],  # See `branch_scales`
    weights: list[float],  # See `branch_scales`
    normalise: bool,  # See `branch_scales`
) -> Tensor:  # n x d, L2-normalised
    "The embedding: the branches' features, scaled and concatenated"
    scales = branch_scales(normed, weights, normalise)
    return torch.cat([f * scales[:, i:i+1] for i, f in enumerate(normed)], 1)


class FoldedBranch(nn.Module):
    "A branch for inference: norms folded into the convolutions before them, no classifiers, pooling without gradients"

    def __init__(self, branch: Branch):  # Copied, and left as it is
        super().__init__()
        scale, shift = affine_of(branch.neck.bn)
        self.stage = branch.stage
        self.needs_masks = branch.needs_masks
        self.branch = deepcopy(branch).eval()
        self.branch.map = fold_norms(branch.map)
        self.branch.region_pool = region_max
        for name in branch.training_only: delattr(self.branch, name)
        self.register_buffer('scale', scale)
        self.register_buffer('shift', shift)

    def own_map(self, shared):  # See `Branch.own_map`
        return self.branch.own_map(shared)

    def forward(self, feature_map, region_masks=None):  # As `Branch.forward` -> f_bn, n x width
        return self.branch.pool(feature_map, region_masks) * self.scale + self.shift
