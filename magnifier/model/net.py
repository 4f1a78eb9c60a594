"MagnifierNet: the three branches over one backbone"

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magnifier.model.backbone import arch_name, create_backbone
from magnifier.model.branches import AdversarialBranch, ConcatFusion, FusionBranch, GlobalBranch, RecurrentFusion
from magnifier.model.heads import BNNeck, RegionNecks, SegmentationHead, at_least_float32
from magnifier.model.output import BRANCHES, MagnifierOutput
from magnifier.model.resize import MASK_RESIZES, has_mask, labels_to_masks, predicted_masks, resize_masks
from magnifier.model.weights import load_weights
from magnifier.regions import NO_MASK, N_REGIONS

__all__ = ['MagnifierNet', 'create_magnifier', 'model_splitter']

STRIDE = 16


class MagnifierNet(nn.Module):
    "Global, semantic adversarial and semantic fusion branches, with a segmentation head that parses where no mask is given"

    arguments: dict | None = None  # What `create_magnifier` was given, by name, as values that JSON takes; None for a net built by hand

    def __init__(
        self,
        backbone: nn.Module,  # Images -> stage 3 and stage 4 maps; `.widths` by stage
        branches: dict[str, nn.Module],  # 'global', and any of 'sab' and 'sfb'
        segmentation: nn.Module | None = None,  # Stage 4 map -> region logits; None without the mask module
        *,
        region_stage: int = 3,  # The stage that SAB and SFB hang on
        mask_resize: str = 'bilinear',  # How region masks come to the map's size
        soft_masks: bool = False,  # Predicted masks are the softmax instead of the one-hot argmax
    ):
        "Takes built parts; `create_magnifier` knows the numbers"
        super().__init__()
        self.backbone, self.segmentation = backbone, segmentation
        self.branches = nn.ModuleDict({b: branches[b] for b in BRANCHES if b in branches})
        self.region_stage, self.mask_resize, self.soft_masks = region_stage, mask_resize, soft_masks

    @property
    def embedding_dim(self) -> int:  # d
        "Channels of the embedding"
        return sum(branch.width for branch in self.branches.values())

    @property
    def sab(self) -> nn.Module | None:  # None where the model has none
        "The semantic adversarial branch"
        return self.branches['sab'] if 'sab' in self.branches else None

    @property
    def sfb(self) -> nn.Module | None:  # None where the model has none
        "The semantic fusion branch, or its ablation twin"
        return self.branches['sfb'] if 'sfb' in self.branches else None

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W, H and W multiples of 16, normalised
        region_masks: Tensor | None = None,  # See `feature_maps`
        kept_regions: Sequence[bool] | Tensor | None = None,  # k booleans for SAB, the same for the whole batch; None keeps all
    ) -> MagnifierOutput:  # All float32; region logits in training alone, which is where they mean something
        """Images -> embedding, and what the losses and pictures need. A ValueError for sides that are no multiples of 16, masks
        that do not fit, or a single image in training mode"""
        if self.training and len(images) < 2:
            raise ValueError('a batch of one image in training mode: batch norm needs two or more, so use a batch size of at least 2 '
                             'with drop_last=True, or model.eval() to embed')
        maps = self.feature_maps(images, region_masks)
        with torch.autocast(images.device.type, enabled=False): return self._heads(maps, kept_regions)

    def feature_maps(
        self,
        images: Tensor,  # n x 3 x H x W
        region_masks: Tensor | None = None,  # n x H' x W' integer labels of any size, or n x k x H' x W' floats; None parses
    ) -> dict[str, Tensor]:  # 'stage3', 'stage4', 'global' (= stage 4), 'sab', 'sfb' n x c x h x w; 'mask_logits', 'masks' n x k x h x w
        """The shared maps, each branch's own map (after its bottleneck), and the region masks at its size: what there is to look at.
        An image whose labels are `NO_MASK`, and every image without `region_masks`, is pooled by the model's own parsing"""
        images = _plain(images)
        _check_sides(images)
        stage3, stage4 = self.backbone(images)
        maps = {'stage3': stage3, 'stage4': stage4, 'global': stage4}
        shared = stage3 if self.region_stage == 3 else stage4
        maps.update({name: branch.map(shared) for name, branch in self.branches.items() if name != 'global'})
        if self.segmentation is not None: maps['mask_logits'] = at_least_float32(self.segmentation(stage4))
        if len(self.branches) > 1: maps['masks'] = self._masks(maps['mask_logits'], region_masks, shared)
        return maps

    def _masks(self, mask_logits, region_masks, shared):
        size = shared.shape[-2:]
        if region_masks is not None: region_masks = _check_masks(_plain(region_masks), mask_logits)
        if region_masks is not None and region_masks.is_floating_point(): return resize_masks(region_masks, size, self.mask_resize)
        predicted = predicted_masks(mask_logits, size, self.mask_resize, soft=self.soft_masks)
        if region_masks is None: return predicted
        # An image without a mask is pooled by the model's own parsing, so that batch norms see sensible features
        given = labels_to_masks(region_masks, size, self.mask_resize, mask_logits.shape[1])
        return torch.where(has_mask(region_masks)[:, None, None, None], given, predicted)

    def _heads(self, maps, kept_regions):
        features, region_features = {'global': self.branches['global'](maps['global'])}, None
        if self.sab is not None:
            features['sab'] = self.sab(maps['sab'], maps['masks'], _check_kept(kept_regions, maps['masks']))
        if self.sfb is not None: features['sfb'], region_features = self.sfb(maps['sfb'], maps['masks'])
        necks = {name: self.branches[name].neck(f) for name, f in features.items()}
        wants_regions = self.training and region_features is not None
        return MagnifierOutput.build(
            F.normalize(torch.cat([normed for normed, _ in necks.values()], 1)), features=features,
            logits={name: logits for name, (_, logits) in necks.items()}, region_features=region_features,
            region_logits=self.sfb.region_necks(region_features) if wants_regions else None,
            mask_logits=maps.get('mask_logits'))


def _plain(x):
    # fastai's tensor subclasses carry a dispatch that the model has no use for
    return x if type(x) is Tensor else x.as_subclass(Tensor)


def _check_sides(images):
    if images.ndim != 4 or images.shape[1] != 3: raise ValueError(f'images {tuple(images.shape)}: n x 3 x H x W is wanted')
    height, width = images.shape[-2:]
    if height % STRIDE or width % STRIDE or not height or not width:
        up = tuple(max(STRIDE, -(-s // STRIDE) * STRIDE) for s in (height, width))
        raise ValueError(f'images of {height} x {width}: both sides must be multiples of {STRIDE}; resize or pad them to {up[0]} x {up[1]}')


def _check_masks(region_masks, mask_logits):
    n, k = mask_logits.shape[:2]
    shape = tuple(region_masks.shape)
    if region_masks.is_floating_point():
        if len(shape) != 4 or shape[:2] != (n, k): raise ValueError(f'float region masks {shape}: {n} x {k} x H x W is wanted')
        return region_masks.detach()
    if len(shape) != 3 or shape[0] != n or region_masks.dtype == torch.bool:
        raise ValueError(f'{region_masks.dtype} region masks {shape}: integer labels {n} x H x W or floats {n} x {k} x H x W are wanted')
    # Looking at the values of a GPU's tensor would make every step wait for it; the data's readers check labels in any case
    if region_masks.device.type == 'cpu' and not torch.compiler.is_compiling():
        wrong = region_masks[((region_masks < 0) | (region_masks >= k)) & (region_masks != NO_MASK)]
        if len(wrong): raise ValueError(f'part label {int(wrong[0])}: labels are 0 to {k-1}, or {NO_MASK} everywhere where there is no mask')
    return region_masks


def _check_kept(kept_regions, masks):
    if kept_regions is None: return None
    kept = torch.as_tensor(kept_regions, dtype=torch.bool)
    if kept.shape != masks.shape[1:2]: raise ValueError(f'kept_regions of shape {tuple(kept.shape)}: {masks.shape[1]} booleans are wanted')
    return kept.to(masks.device, non_blocking=True)


def create_magnifier(
    arch: str | Callable = 'resnet50',  # torchvision's function or its name: resnet18, resnet34, resnet50, resnet101, ...
    n_classes: int = 751,  # Training identities (751: Market-1501)
    pretrained: bool | str = True,  # ImageNet weights; a string names torchvision's version
    *,
    mask: bool = True,  # The mask module: segmentation head and its loss
    sab: bool = True,  # Semantic adversarial branch
    sfb: bool | str = True,  # Semantic fusion branch; 'ab' is its ablation twin
    cell: str = 'gru',  # SFB's recurrent cell: 'gru' as in the paper, 'lstm' as in its code
    region_stage: int = 3,  # The stage that SAB and SFB hang on: 3 (paper), or 4
    branch_bottleneck: bool = True,  # A bottleneck of its own for each part branch, as in the authors' code
    soft_masks: bool = False,  # Predicted masks as softmax instead of one-hot argmax
    mask_resize: str = 'bilinear',  # Masks to the map's size: 'bilinear' (paper) or 'nearest' (code)
    last_stride: int = 1,  # Stride of stage 4: 1 (paper) or 2
    hidden: int = 1024,  # Channels of f_sab and f_sfb
    n_regions: int = N_REGIONS,  # k, the number of part labels
    weights: str | Path | None = None,  # A file in place of ImageNet's, see `load_weights`; the report is in `.weights_report`
) -> MagnifierNet:  # In training mode
    """The paper's network, or a row of its Table 2: `sab=False, sfb=False` is G + M, `mask=False` besides is G.
    The arguments are kept in `.arguments`, so that the network can be built again.
    A ValueError for a combination that makes no sense"""
    _check_options(n_classes, mask, sab, sfb, region_stage, mask_resize)
    backbone = create_backbone(arch, pretrained and weights is None, last_stride)
    width = backbone.widths[region_stage]
    branches = {'global': GlobalBranch(backbone.widths[4], n_classes)}
    if sab: branches['sab'] = AdversarialBranch(width, n_classes, hidden, bottleneck=branch_bottleneck)
    if sfb:
        fuse = ConcatFusion(width, hidden, n_regions) if sfb == 'ab' else RecurrentFusion(width, hidden, cell)
        branches['sfb'] = FusionBranch(width, n_classes, fuse, hidden=hidden, n_regions=n_regions, bottleneck=branch_bottleneck)
    segmentation = SegmentationHead(backbone.widths[4], n_regions) if mask else None
    model = MagnifierNet(backbone, branches, segmentation, region_stage=region_stage, mask_resize=mask_resize, soft_masks=soft_masks)
    model.arguments = dict(
        arch=arch_name(arch), n_classes=int(n_classes), mask=bool(mask), sab=bool(sab), sfb=sfb, cell=cell, region_stage=region_stage,
        branch_bottleneck=branch_bottleneck, soft_masks=soft_masks, mask_resize=mask_resize, last_stride=last_stride, hidden=int(hidden),
        n_regions=int(n_regions))
    if weights is not None: model.weights_report = load_weights(model, weights)
    return model


def _check_options(n_classes, mask, sab, sfb, region_stage, mask_resize):
    if not isinstance(n_classes, int) or n_classes < 1:
        raise ValueError(f'n_classes={n_classes!r}: the number of training identities is wanted')
    if sfb not in (True, False, 'ab'): raise ValueError(f"sfb={sfb!r}: it is True, False or 'ab' (the ablation twin)")
    if (sab or sfb) and not mask:
        raise ValueError('sab and sfb pool by region masks, which mask=False leaves out: pass mask=True, or sab=False and sfb=False too')
    if region_stage not in (3, 4): raise ValueError(f'region_stage={region_stage!r}: it is 3 or 4')
    if mask_resize not in MASK_RESIZES: raise ValueError(f'mask_resize={mask_resize!r}: use one of {", ".join(MASK_RESIZES)}')


def model_splitter(
    model: MagnifierNet,  # The model to train in two groups
) -> list[list[nn.Parameter]]:  # Parameters of the backbone, and of all the rest
    """fastai's `splitter`: `freeze` trains the heads alone. BNNecks' biases belong to no group: fastai's `unfreeze` would
    otherwise let them train"""
    frozen = {id(m.bn.bias) for m in model.modules() if isinstance(m, (BNNeck, RegionNecks))}
    backbone = list(model.backbone.parameters())
    known = {id(p) for p in backbone} | frozen
    return [backbone, [p for p in model.parameters() if id(p) not in known]]
