"The branches: global, semantic adversarial (SAB), semantic fusion (SFB) and its ablation twin (AB)"

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from magnifier.model.heads import BNNeck, RegionNecks, at_least_float32
from magnifier.model.pooling import kept_region_pool, region_max_pool
from magnifier.regions import N_REGIONS

__all__ = ['GlobalBranch', 'AdversarialBranch', 'FusionBranch', 'RecurrentFusion', 'ConcatFusion', 'branch_map', 'CELLS']

CELLS = {'gru': nn.GRU, 'lstm': nn.LSTM}


def branch_map(
    width: int,  # c, channels of the shared map
    bottleneck: bool = True,  # c -> c/4 -> c with a residual, as the authors' code has; False shares the map as it is
) -> nn.Module:  # n x c x h x w -> the same shape, non-negative
    "What a part branch does to the shared map before it pools"
    if not bottleneck: return nn.Identity()
    block = Bottleneck(width, width // 4)
    for m in block.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
    return block


class GlobalBranch(nn.Module):
    "Global average pooling of stage 4, then a BNNeck"

    def __init__(
        self,
        width: int,  # c4
        n_classes: int,  # Training identities
    ):
        "reid-strong-baseline's only branch"
        super().__init__()
        self.width, self.map, self.neck = width, nn.Identity(), BNNeck(width, n_classes)

    def forward(
        self,
        feature_map: Tensor,  # n x c4 x h x w
    ) -> Tensor:  # n x c4
        "f_global"
        return at_least_float32(feature_map).mean((2, 3))


class AdversarialBranch(nn.Module):
    "SAB (Eq. 2): max pooling over the regions that an occlusion left, a linear layer, a BNNeck"

    def __init__(
        self,
        width: int,  # c, channels of the shared map
        n_classes: int,  # Training identities
        hidden: int = 1024,  # Channels of f_sab
        *,
        bottleneck: bool = True,  # See `branch_map`
    ):
        "The 1x1 convolution of a pooled feature is a linear layer; no bias, since a batch norm follows"
        super().__init__()
        self.width, self.map = hidden, branch_map(width, bottleneck)
        self.reduce = nn.Linear(width, hidden, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight, mode='fan_out')
        self.neck = BNNeck(hidden, n_classes)

    def forward(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor,  # n x k x h x w
        kept_regions: Tensor | None = None,  # k booleans; None keeps all
    ) -> Tensor:  # n x hidden
        "f_sab"
        return self.reduce(at_least_float32(kept_region_pool(feature_map, region_masks, kept_regions)))


class RecurrentFusion(nn.Module):
    "One recurrent layer reads the regions in index order; its last output is the fusion (paper, section 3.3)"

    def __init__(
        self,
        width: int,  # c, channels of a region's feature
        hidden: int = 1024,  # Channels of the fusion
        cell: str = 'gru',  # 'gru' as in the paper, 'lstm' as in its code
    ):
        "A ValueError for an unknown `cell`"
        super().__init__()
        if cell not in CELLS: raise ValueError(f'unknown cell {cell!r}: use one of {", ".join(CELLS)}')
        self.rnn = CELLS[cell](width, hidden, batch_first=True)

    def forward(
        self,
        region_features: Tensor,  # n x k x c, background first
    ) -> Tensor:  # n x hidden
        "Regions in order -> last output"
        return self.rnn(region_features)[0][:, -1]


class ConcatFusion(nn.Module):
    "AB, the twin of Figure 4: a linear layer per region to hidden/k channels, concatenated"

    def __init__(
        self,
        width: int,  # c, channels of a region's feature
        hidden: int = 1024,  # Channels of the concatenation, a multiple of k
        n_regions: int = N_REGIONS,  # k
    ):
        "The same width as SFB, without its gates"
        super().__init__()
        if hidden % n_regions: raise ValueError(f'hidden={hidden}: the ablation twin needs a multiple of {n_regions} regions')
        self.weight = nn.Parameter(torch.empty(n_regions, width, hidden // n_regions))
        nn.init.normal_(self.weight, std=(2 * n_regions / hidden) ** 0.5)  # kaiming, fan out of hidden/k

    def forward(
        self,
        region_features: Tensor,  # n x k x c
    ) -> Tensor:  # n x hidden
        "Regions reduced one by one, side by side"
        return torch.einsum('nkc,kcd->nkd', region_features, self.weight).flatten(1)  # (n, k*d)


class FusionBranch(nn.Module):
    "SFB, or AB by its `fuse`: region max pooling (Eq. 1), a fusion of the k features, a BNNeck, and a neck for each region"

    def __init__(
        self,
        width: int,  # c, channels of the shared map
        n_classes: int,  # Training identities
        fuse: nn.Module,  # n x k x c -> n x hidden: `RecurrentFusion` or `ConcatFusion`
        *,
        hidden: int = 1024,  # Channels of f_sfb
        n_regions: int = N_REGIONS,  # k
        bottleneck: bool = True,  # See `branch_map`
    ):
        "Logits of the region necks serve training alone; their norms also describe regions one by one"
        super().__init__()
        self.width, self.map, self.fuse = hidden, branch_map(width, bottleneck), fuse
        self.neck, self.region_necks = BNNeck(hidden, n_classes), RegionNecks(width, n_classes, n_regions)

    def forward(
        self,
        feature_map: Tensor,  # n x c x h x w, this branch's own
        region_masks: Tensor,  # n x k x h x w
    ) -> tuple[Tensor, Tensor]:  # f_sfb n x hidden, and the region features p(x_k) n x k x c
        "f_sfb and what it was fused from"
        region_features = at_least_float32(region_max_pool(feature_map, region_masks))
        return self.fuse(region_features), region_features
