"MagnifierNet, the branches over one backbone; what it returns; and its faster form that only embeds"

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path

import torch
from fastcore.meta import delegates
from torch import Tensor, nn

from magnifier.checks import refuse
from magnifier.model.backbone import arch_name, create_backbone
from magnifier.model.branches import BRANCHES, FoldedBranch, create_branches, join_branches
from magnifier.model.heads import (BNNeck, FoldedHead, RegionNecks, SegmentationHead, at_least_float32,
                                   fold_norms)
from magnifier.model.pooling import (MASK_RESIZES, has_mask, labels_to_masks, predicted_masks, resize_labels,
                                     resize_masks)
from magnifier.model.weights import load_weights
from magnifier.regions import NO_MASK

__all__ = ['MagnifierOutput', 'MagnifierNet', 'EmbeddingNet', 'create_magnifier']

ALONE = ('region_features', 'region_logits', 'mask_logits', 'kept_share')  # Outputs of the whole model, not by branch


class MagnifierOutput(tuple):
    """A tuple of tensors of n rows each, which fastai can gather, reorder, detach and cast: the embedding, the features
    and logits of every view of `BRANCHES`, and the other outputs. An output that a model or a mode does not have is of
    shape (n, 0), and the properties leave it out"""

    @classmethod
    def build(
        cls,
        embedding: Tensor,  # n x d
        *,
        features: dict[str, Tensor],  # By view, n x c_branch
        logits: dict[str, Tensor],  # By view, n x n_classes
        **alone: Tensor | None,  # By name, what the properties of that name give
    ) -> 'MagnifierOutput':  # With (n, 0) for what is not given
        "The output from its parts"
        views = _views()
        slots = [embedding, *map(features.get, views), *map(logits.get, views), *map(alone.get, ALONE)]
        return cls([embedding.new_zeros(len(embedding), 0) if s is None else s for s in slots])

    @property
    def embedding(self) -> Tensor:  # n x d float32, L2-normalised: what is compared by cosine in retrieval
        "The embedding"
        return self[0]

    @property
    def features(self) -> dict[str, Tensor]:  # By view ('global', 'sab', 'sfb', ...), n x c, those present
        "f of each branch, before its batch norm: what the triplet loss takes"
        return self._by_view(1)

    @property
    def logits(self) -> dict[str, Tensor]:  # By view, n x n_classes, those present
        "Classifier outputs over the training identities"
        return self._by_view(1 + len(_views()))

    @property
    def region_features(self) -> Tensor | None:  # n x k x c; None without SFB
        "p(x_k), pooled from SFB's map: what the semantic diversity loss takes"
        return self._alone('region_features')

    @property
    def region_logits(self) -> Tensor | None:  # n x k x n_classes; None without SFB, and in evaluation
        "Each region's own classifier, which serves training alone"
        return self._alone('region_logits')

    @property
    def mask_logits(self) -> Tensor | None:  # n x k x 2h x 2w, h x w being stage 4's map; None without the mask module
        "The segmentation head's output"
        return self._alone('mask_logits')

    @property
    def kept_share(self) -> Tensor | None:  # n x 1 in [0, 1]; None without an occlusion
        "Share of the regions that the adversarial branch was given"
        return self._alone('kept_share')

    def _by_view(self, first):
        return {view: self[first + i] for i, view in enumerate(_views()) if self[first + i].shape[-1]}

    def _alone(self, name):
        slot = self[ALONE.index(name) - len(ALONE)]
        return slot if slot.shape[1] else None


def _views():
    return [view for branch in BRANCHES.values() for view in branch.views]


STRIDE = 16


class MagnifierNet(nn.Module):
    "Branches over one backbone, with a segmentation head that predicts part masks where none are given"

    arguments: dict | None = None  # What `create_magnifier` was given, values that JSON takes; None if built by hand

    def __init__(
        self,
        backbone: nn.Module,  # Images -> a map for each stage of its `.widths`, 3 and 4 among them
        branches: dict[str, nn.Module],  # By name in `BRANCHES`: 'global', 'sab', 'sfb', ...
        segmentation: nn.Module | None = None,  # Stage 4 map -> region logits; None without the mask module
        *,
        mask_resize: str = 'bilinear',  # How region masks come to the map's size
        soft_masks: bool = False,  # Predicted masks are the softmax instead of the one-hot argmax
        normalise_branches: bool = False,  # Whether each branch has length 1 in the embedding, before its weight
        branch_weights: dict[str, float] | None = None,  # By branch, 0 or more; 1 where not named
    ):
        "Takes built parts; `create_magnifier` builds them"
        super().__init__()
        self.backbone = backbone
        self.segmentation = segmentation
        self.branches = nn.ModuleDict({name: branches[name] for name in BRANCHES if name in branches})
        self.mask_resize = mask_resize
        self.soft_masks = soft_masks
        self.normalise_branches = normalise_branches
        self.branch_weights = [float((branch_weights or {}).get(name, 1.)) for name in self.branches]

    @property
    def embedding_dim(self) -> int:  # d
        "Channels of the embedding"
        return sum(branch.width for branch in self.branches.values())

    @property
    def branch_slices(self) -> dict[str, slice]:  # By branch
        "The position of each branch in the embedding"
        slices = {}
        start = 0
        for name, branch in self.branches.items():
            slices[name] = slice(start, start + branch.width)
            start += branch.width
        return slices

    @property
    def masked_branch(self) -> str | None:  # Its name; None where there is none
        "A branch that pools by region masks (all such branches have maps of one size)"
        return next((name for name, branch in self.branches.items() if branch.needs_masks), None)

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
        kept_regions: Sequence[bool] | Tensor | None = None,  # k booleans for SAB, of the whole batch; None keeps all
    ) -> MagnifierOutput:  # All float32; region logits in training alone, which is where they mean something
        """Images -> embedding, and the outputs for losses and figures. A ValueError for sides that are not multiples of
        16, masks that do not fit, or a single image in training mode"""
        if self.training and len(images) < 2:
            raise ValueError('a batch of one image in training mode: batch norm needs two or more, so use a batch size '
                             'of at least 2 with drop_last=True, or model.eval() to embed')
        maps = self.feature_maps(images, region_masks)
        with torch.autocast(images.device.type, enabled=False): return self._heads(maps, kept_regions)

    def feature_maps(
        self,
        images: Tensor,  # n x 3 x H x W
        region_masks: Tensor | None = None,  # n x H' x W' integer labels, or n x k x H' x W' floats; None parses
    ) -> dict[str, Tensor]:  # n x c x h x w by 'stage3', 'stage4' and branch; 'mask_logits', 'masks' n x k x h x w
        """The shared maps, each branch's own map, and the region masks at the size of the part branches' maps. Images
        with the label `NO_MASK`, and all images without `region_masks`, use the model's own part masks"""
        images = _plain(images)
        _check_sides(images)
        stages = dict(zip(self.backbone.widths, self.backbone(images)))
        maps = {f'stage{stage}': shared for stage, shared in stages.items()}
        maps.update({name: branch.own_map(stages[branch.stage]) for name, branch in self.branches.items()})
        if self.segmentation is not None: maps['mask_logits'] = at_least_float32(self.segmentation(stages[4]))
        if self.masked_branch:
            size = maps[self.masked_branch].shape[-2:]
            maps['masks'] = self._masks(maps['mask_logits'], region_masks, size)
        return maps

    def _masks(self, mask_logits, region_masks, size):
        # Given masks go the way of predicted ones: to the head's size, one-hot there, and from there to the map's
        if region_masks is not None: region_masks = _check_masks(_plain(region_masks), mask_logits)
        head_size = mask_logits.shape[-2:]
        if region_masks is not None and region_masks.is_floating_point():
            return resize_masks(resize_masks(region_masks, head_size, 'nearest'), size, self.mask_resize)
        predicted = predicted_masks(mask_logits, size, self.mask_resize, soft=self.soft_masks)
        if region_masks is None: return predicted
        # An image without a mask is pooled by the model's own parsing, so that batch norms see sensible features
        given = labels_to_masks(resize_labels(region_masks, head_size), size, self.mask_resize, mask_logits.shape[1])
        return torch.where(has_mask(region_masks)[:, None, None, None], given, predicted)

    def _heads(self, maps, kept_regions):
        masks = maps.get('masks')
        kept = None if masks is None else _check_kept(kept_regions, masks)
        outputs = [branch(maps[name], masks, kept) for name, branch in self.branches.items()]
        embedding = join_branches([o.normed for o in outputs], self.branch_weights, self.normalise_branches)
        by_region = next((o for o in outputs if o.region_features is not None), outputs[0])
        return MagnifierOutput.build(
            embedding,
            features=_merged(o.features for o in outputs),
            logits=_merged(o.logits for o in outputs),
            region_features=by_region.region_features,
            region_logits=by_region.region_logits,
            mask_logits=maps.get('mask_logits'),
            kept_share=None if kept is None else kept.to(embedding.dtype).mean().expand(len(embedding), 1))


def _merged(dicts): return {view: value for one in dicts for view, value in one.items()}


def _plain(x):
    # fastai's tensor subclasses carry a dispatch that the model has no use for
    return x if type(x) is Tensor else x.as_subclass(Tensor)


def _check_sides(images):
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'images {tuple(images.shape)}: n x 3 x H x W is wanted')
    height, width = images.shape[-2:]
    if height % STRIDE or width % STRIDE or not height or not width:
        up = tuple(max(STRIDE, -(-s // STRIDE) * STRIDE) for s in (height, width))
        raise ValueError(f'images of {height} x {width}: both sides must be multiples of {STRIDE}; '
                         f'resize or pad them to {up[0]} x {up[1]}')


def _check_masks(region_masks, mask_logits):
    n, k = mask_logits.shape[:2]
    shape = tuple(region_masks.shape)
    if region_masks.is_floating_point():
        if len(shape) != 4 or shape[:2] != (n, k):
            raise ValueError(f'float region masks {shape}: {n} x {k} x H x W is wanted')
        return region_masks.detach()
    if len(shape) != 3 or shape[0] != n or region_masks.dtype == torch.bool:
        raise ValueError(f'{region_masks.dtype} region masks {shape}: '
                         f'integer labels {n} x H x W or floats {n} x {k} x H x W are wanted')
    # Looking at the values of a GPU's tensor would make every step wait for it; readers check labels in any case
    if region_masks.device.type == 'cpu' and not torch.compiler.is_compiling():
        wrong = region_masks[((region_masks < 0) | (region_masks >= k)) & (region_masks != NO_MASK)]
        if len(wrong):
            raise ValueError(f'part label {int(wrong[0])}: labels are 0 to {k-1}, or {NO_MASK} everywhere in an image '
                             'without a mask')
    return region_masks


def _check_kept(kept_regions, masks):
    if kept_regions is None: return None
    kept = torch.as_tensor(kept_regions, dtype=torch.bool)
    if kept.shape != masks.shape[1:2]:
        raise ValueError(f'kept_regions of shape {tuple(kept.shape)}: {masks.shape[1]} booleans are wanted')
    return kept.to(masks.device, non_blocking=True)


# The length of f_bn grows with its channels. As it is (paper), SAB and SFB have 0.7 of the global branch's weight in
# ResNet-50 (1024 channels beside 2048), and 1.4 in ResNet-18 (1024 beside 512). With length 1 for each branch, half a
# weight for these two ranks best on photographs (tests/bench/README.md)
PART_WEIGHTS = {'sab': 0.5, 'sfb': 0.5}


@delegates(create_branches)
def create_magnifier(
    arch: str | Callable = 'resnet50',  # torchvision's function or a name, see `create_backbone`
    n_classes: int = 751,  # Training identities (751: Market-1501)
    pretrained: bool | str = True,  # ImageNet weights; a string names torchvision's version
    *,
    mask: bool = True,  # The mask module: segmentation head and its loss
    soft_masks: bool = False,  # Predicted masks as softmax instead of one-hot argmax
    mask_resize: str = 'bilinear',  # Masks to the map's size: 'bilinear' (paper) or 'nearest' (code)
    last_stride: int = 1,  # Stride of stage 4: 1 (paper) or 2
    stage3_stride: int = 2,  # Stride of stage 3: 2 (paper), or 1 for maps of twice the size
    last_convolution: bool = True,  # Whether a network that ends in a convolution (MobileNetV2) keeps it
    normalise_branches: bool = True,  # Whether each branch has length 1 in the embedding; False (paper): f_bn as it is
    branch_weights: dict | None = PART_WEIGHTS,  # Of the branches in the embedding, 0 or more; None: all 1
    weights: str | Path | None = None,  # A file in place of ImageNet's (`load_weights`); see `.weights_report`
    **kwargs,  # Passed to `create_branches`
) -> MagnifierNet:  # In training mode
    """The paper's network, or a row of its Table 2: `sab=False, sfb=False` is G + M, and with `mask=False` too it is G.
    The arguments are kept in `.arguments`, so that the network can be built again. A ValueError for arguments that do
    not go together"""
    of_branches = _defaults(create_branches) | kwargs
    of_net = dict(soft_masks=soft_masks, mask_resize=mask_resize, normalise_branches=normalise_branches,
                  branch_weights=branch_weights)
    of_backbone = dict(last_stride=last_stride, stage3_stride=stage3_stride, last_convolution=last_convolution)
    arguments = dict(arch=arch_name(arch), n_classes=n_classes, mask=mask, **of_net, **of_backbone, **of_branches)
    _check_arguments(arguments)
    backbone = create_backbone(arch, pretrained and weights is None, **of_backbone)
    branches = create_branches(backbone.widths, n_classes, **kwargs)
    segmentation = SegmentationHead(backbone.widths[4], of_branches['n_regions']) if mask else None
    model = MagnifierNet(backbone, branches, segmentation, **of_net)
    model.arguments = arguments
    if weights is not None: model.weights_report = load_weights(model, weights)
    return model


def _defaults(function):
    parameters = signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _check_arguments(given):
    n_classes = given['n_classes']
    hidden = given['hidden']
    n_regions = given['n_regions']
    weights = given['branch_weights'] or {}
    refuse({
        f'n_classes={n_classes!r}: the number of training identities is wanted':
            not isinstance(n_classes, int) or n_classes < 1,
        f'hidden={hidden}: 1 or more is wanted': hidden < 1,
        f'n_regions={n_regions}: 1 or more is wanted': n_regions < 1,
        'sab and sfb pool by region masks, which mask=False leaves out: pass mask=True, or sab=False and sfb=False too':
            (given['sab'] or given['sfb']) and not given['mask'],
        f'mask_resize={given["mask_resize"]!r}: use one of {", ".join(MASK_RESIZES)}':
            given['mask_resize'] not in MASK_RESIZES,
        f'branch_weights={weights!r}: zero or positive weights by branch are wanted, of {", ".join(BRANCHES)}':
            not _are_branch_weights(weights),
    })


def _are_branch_weights(weights):
    if not isinstance(weights, dict) or set(weights) - set(BRANCHES): return False
    return all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights.values())


def model_splitter(
    model: MagnifierNet,  # The model to train in two groups
) -> list[list[nn.Parameter]]:  # Parameters of the backbone, and of all the rest
    """fastai's `splitter`: `freeze` leaves only the heads to train. The biases of BNNecks are in no group, because
    fastai's `unfreeze` would make them trainable"""
    frozen = {id(m.bn.bias) for m in model.modules() if isinstance(m, (BNNeck, RegionNecks))}
    backbone = list(model.backbone.parameters())
    known = {id(p) for p in backbone} | frozen
    return [backbone, [p for p in model.parameters() if id(p) not in known]]


class EmbeddingNet(nn.Module):
    """Images to embeddings and, if asked for, part labels. A copy of a `MagnifierNet` for evaluation only, with the
    same result up to rounding: without classifiers and region necks, with batch norms folded into the convolutions
    before them, channels last"""

    def __init__(
        self,
        model: nn.Module,  # A MagnifierNet, left as it is; its later training does not reach this copy
        *,
        masks: bool = False,  # Returns the part labels beside the embedding
    ):
        "A ValueError if part labels are asked for and the model has no segmentation head"
        super().__init__()
        refuse({'this model has no segmentation head: pass masks=False': masks and model.segmentation is None})
        self.with_masks = masks
        self.mask_resize = model.mask_resize
        self.soft_masks = model.soft_masks
        self.branch_weights = model.branch_weights
        self.normalise_branches = model.normalise_branches
        self.stages = tuple(model.backbone.widths)
        self.backbone = fold_norms(model.backbone)
        self.segmentation = FoldedHead(model.segmentation) if masks or model.masked_branch else None
        # By place and not by name, since exporters write code of names, and `global` is a word of Python's
        self.branches = nn.ModuleList(FoldedBranch(branch) for branch in model.branches.values())
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W, sides multiples of 16, normalised
    ) -> Tensor | tuple[Tensor, Tensor]:  # n x d float32, L2-normalised; with masks also n x 2h x 2w uint8 part labels
        "The embedding; regions come from the model's own part masks"
        stages = dict(zip(self.stages, self.backbone(images.contiguous(memory_format=torch.channels_last))))
        maps = [branch.own_map(stages[branch.stage]) for branch in self.branches]
        logits = None if self.segmentation is None else at_least_float32(self.segmentation(stages[4]))
        with torch.autocast(images.device.type, enabled=False): embedding = self._embed(maps, logits)
        return (embedding, logits.argmax(1).to(torch.uint8)) if self.with_masks else embedding

    def _embed(self, maps, logits):
        size = next((own.shape[-2:] for own, branch in zip(maps, self.branches) if branch.needs_masks), None)
        masks = None if size is None else predicted_masks(logits, size, self.mask_resize, soft=self.soft_masks)
        normed = [branch(own, masks) for own, branch in zip(maps, self.branches)]
        return join_branches(normed, self.branch_weights, self.normalise_branches)
