"The losses: cross-entropy, batch-hard triplet, semantic diversity, region segmentation, and their sum (Eq. 4)"

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magnifier.checks import choose, refuse
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.model.branches import BRANCHES, AdversarialBranch
from magnifier.model.heads import at_least_float32
from magnifier.model.net import MagnifierOutput
from magnifier.model.pooling import has_mask, resize_labels
from magnifier.regions import NO_MASK
from magnifier.train.distributed import gather_own, n_ranks

__all__ = ['identity_loss', 'batch_hard_triplet', 'semantic_diversity_loss', 'region_segmentation_loss',
           'MagnifierLoss']

TRIPLETS = ('none', 'plain', 'normalised')


def _reduce(values, defined, reduction):
    # Static shapes and no look at the values: a GPU never waits. With nothing defined the mean is a zero with gradient
    values = torch.where(defined, values, 0)
    return values if reduction == 'none' else values.sum() / defined.sum().clamp(min=1)


def _float32(x):
    return at_least_float32(x.as_subclass(Tensor))


def identity_loss(
    logits: Tensor,  # n x n_classes, or n x k x n_classes for k classifiers, whose losses are added up
    labels: Tensor,  # n classes; -1 where the identity is none of the training's, which counts for nothing
    *,
    smoothing: float = 0.1,  # Label smoothing, 0 to 1 (reid-strong-baseline: 0.1)
    reduction: str = 'mean',  # 'mean' over the images with a class, or 'none': n values
) -> Tensor:  # A float32 scalar, or n values
    "Cross-entropy with label smoothing; zero, with gradient, if no image has a class"
    n, n_classes = len(logits), logits.shape[-1]
    logits = _float32(logits).reshape(n, -1, n_classes)  # (n, k, n_classes)
    with torch.autocast(logits.device.type, enabled=False):
        targets = labels[:, None].expand(logits.shape[:2])
        values = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, label_smoothing=smoothing,
                                 reduction='none')
        return _reduce(values.view(n, -1).sum(1), labels >= 0, reduction)


def batch_hard_triplet(
    features: Tensor,  # n x c, not normalised
    labels: Tensor,  # n identities; an image with a negative label is neither anchor, positive nor negative
    margin: float = 0.3,  # In units of the distance
    *,
    reduction: str = 'mean',  # 'mean' over the anchors with a positive and a negative, or 'none': n values
) -> Tensor:  # A float32 scalar, or n values
    """max(0, margin + furthest positive - nearest negative), Euclidean (Hermans et al.). An identity may have any
    number of images; without a valid triplet the loss is zero, with gradient"""
    features, labels = _float32(features), labels.as_subclass(Tensor)
    with torch.autocast(features.device.type, enabled=False):
        # Not through a matrix product: |a|^2 + |b|^2 - 2ab loses near pairs to rounding
        dist = torch.cdist(features, features, compute_mode='donot_use_mm_for_euclid_dist')  # (n, n)
        known = (labels >= 0)[:, None] & (labels >= 0)
        same = labels[:, None] == labels
        positive = same & known & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        negative = ~same & known
        furthest = dist.masked_fill(~positive, -torch.inf).max(1).values
        nearest = dist.masked_fill(~negative, torch.inf).min(1).values
        return _reduce(F.relu(margin + furthest - nearest), positive.any(1) & negative.any(1), reduction)


def semantic_diversity_loss(
    region_features: Tensor,  # n x k x c, pooled p(x_k)
    counted: Tensor | None = None,  # n booleans: the images to average over; None takes all
    *,
    eps: float = 1e-8,  # Least product of two norms; an absent region (0) is so at cosine 0 to every other
    reduction: str = 'mean',  # 'mean' over images, or 'none': n values
) -> Tensor:  # A float32 scalar in [0, 1] for non-negative features, or n values
    """Eq. 3: mean cosine over the k(k-1)/2 pairs i < j of an image's regions; its terms with i = j are constants and
    left out"""
    x = _float32(region_features)
    n, k = x.shape[:2]
    if counted is None: counted = torch.ones(n, dtype=torch.bool, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        norms = x.norm(dim=-1)  # (n, k)
        cosines = x @ x.mT / (norms[:, :, None] * norms[:, None]).clamp(min=eps)  # (n, k, k)
        values = cosines.triu(1).sum((1, 2)) / max(k * (k - 1) // 2, 1)
        return _reduce(values, counted, reduction)


def region_segmentation_loss(
    mask_logits: Tensor,  # n x k x h x w
    mask: Tensor,  # n x H x W part labels 0..k-1, any size; images with `NO_MASK` count for nothing
    *,
    reduction: str = 'mean',  # 'mean' over the regions present in the batch, or 'none': n values, over each image's
) -> Tensor:  # A float32 scalar, or n values
    """Cross-entropy per pixel, averaged within each region, then over the regions: small parts count as much as the
    background. Labels are resized to the logits by nearest neighbour. Zero, with gradient, if no image has a mask"""
    logits, mask = _float32(mask_logits), mask.as_subclass(Tensor)
    k, dims = logits.shape[1], (2, 3) if reduction == 'none' else (0, 2, 3)
    target = resize_labels(mask, logits.shape[-2:])
    one_hot = target[:, None] == torch.arange(k, device=target.device)[:, None, None]  # (n, k, h, w)
    one_hot = one_hot & has_mask(mask)[:, None, None, None]
    with torch.autocast(logits.device.type, enabled=False):
        values = torch.where(one_hot, -logits.log_softmax(1), 0).sum(dims)  # (k,) or (n, k)
        pixels = one_hot.sum(dims)
        return (values / pixels.clamp(min=1)).sum(-1) / (pixels > 0).sum(-1).clamp(min=1)


class LossPart(NamedTuple):
    "One term of the total"
    name: str  # In the history of a training, as 'sab_cls'
    column: str | None  # The column that it adds up to in a training's table; None for the history alone
    weight: float  # In the total
    value: Tensor  # A float32 scalar, or n values


class MagnifierLoss:
    """Eq. 4 over a `MagnifierOutput`: L_cls + L_tri of every branch, each region's own cross-entropy, lambda L_mask,
    and gamma L_SD.

    `last` holds the parts of the last call before their weights, detached scalars on their device: 'global_cls',
    'global_tri', 'sab_...', 'sfb_...', 'region_cls' (added up over the regions), 'mask', 'sd'. A part to which no image
    contributes is 0 there. An image without a part mask contributes only to branches that need none. An identity that
    is not in training (class -1) contributes only to the mask loss, so on validation images only that is defined"""

    columns = ('id', 'triplet', 'mask', 'sd')  # Of a training's table, each the sum of its parts

    def __init__(
        self,
        *,
        gamma: float = 0.,  # Weight of the semantic diversity loss; the paper's second stage sets 2e-3
        mask_weight: float = 2.,  # Weight of the mask loss, lambda (paper, section 4.1)
        region_weight: float = 0.0125,  # Weight of each region's own cross-entropy (the authors' code)
        smoothing: float = 0.1,  # Label smoothing
        margin: float = 0.3,  # Of the triplet loss
        sab_triplet: str = 'none',  # SAB's: 'none' (the authors' code), 'plain' on f (Eq. 4), or 'normalised' on f/|f|
        sab_share: bool = False,  # Whether SAB's cross-entropy is weighed by sigmoid(share of regions kept)
        gather_triplets: bool = False,  # Whether pairs are sought among the batches of all processes
        masks: bool = True,  # Whether the targets are (mask, identity), or identity alone
        reduction: str = 'mean',  # 'mean', or 'none' for a loss per image, each segmented as a batch of its own
    ):
        "A ValueError for a negative weight or an unknown triplet"
        weights = dict(gamma=gamma, mask_weight=mask_weight, region_weight=region_weight, margin=margin)
        refuse({f'{name}={value}: zero or positive is wanted': value < 0 for name, value in weights.items()})
        choose(sab_triplet, TRIPLETS, 'sab_triplet')
        self.gamma = gamma
        self.mask_weight = mask_weight
        self.region_weight = region_weight
        self.smoothing = smoothing
        self.margin = margin
        self.sab_triplet = sab_triplet
        self.sab_share = sab_share
        self.gather_triplets = gather_triplets
        self.masks = masks
        self.reduction = reduction
        self.last = {}
        self.column_of = {}  # All parts so far -> one of `columns`, or None

    def __call__(
        self,
        output: MagnifierOutput,  # The model's
        *targets: Tensor,  # Part mask n x H x W and identity n x 4 (class, pid, camid, role), or identity alone
    ) -> Tensor:  # A float32 scalar, or n values with `reduction='none'`
        "The weighted sum; parts that the model does not have are left out"
        parts = self.parts(output, *targets)
        self.last = {part.name: part.value.detach().mean() for part in parts}
        self.column_of |= {part.name: part.column for part in parts}
        return sum(part.weight * part.value for part in parts)

    def parts(
        self,
        output: MagnifierOutput,  # The model's
        *targets: Tensor,  # As for a call
    ) -> list[LossPart]:
        "The terms of the total, one by one, with gradient"
        output = MagnifierOutput(output)
        mask, identity = (None, *targets)[-2:]
        labels = identity.as_subclass(Tensor)[:, 0]
        masked_labels = labels if mask is None else torch.where(has_mask(mask.as_subclass(Tensor)), labels, -1)
        parts = self._of_branches(output, labels, masked_labels) + self._of_regions(output, masked_labels)
        if output.mask_logits is not None and mask is not None:
            value = region_segmentation_loss(output.mask_logits, mask, reduction=self.reduction)
            parts.append(LossPart('mask', 'mask', self.mask_weight, value))
        return parts

    def _of_branches(self, output, labels, masked_labels):
        parts, logits = [], output.logits
        for branch in BRANCHES.values():
            known = masked_labels if branch.needs_masks else labels
            for view in branch.views:
                if view not in logits: continue
                value = self._identity(view, logits[view], known, output.kept_share)
                parts.append(LossPart(f'{view}_cls', 'id', 1., value))
                how = self.sab_triplet if branch is AdversarialBranch else 'plain'
                if how == 'none': continue
                parts.append(LossPart(f'{view}_tri', 'triplet', 1., self._triplet(output.features[view], known, how)))
        return parts

    def _of_regions(self, output, labels):
        parts = []
        if output.region_logits is not None:
            value = identity_loss(output.region_logits, labels, smoothing=self.smoothing, reduction=self.reduction)
            parts.append(LossPart('region_cls', None, self.region_weight, value))
        if output.region_features is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.gamma > 0):
                value = semantic_diversity_loss(output.region_features, labels >= 0, reduction=self.reduction)
            parts.append(LossPart('sd', 'sd', self.gamma, value))
        return parts

    def _identity(self, view, logits, labels, kept_share):
        value = identity_loss(logits, labels, smoothing=self.smoothing, reduction=self.reduction)
        weighed = self.sab_share and view == AdversarialBranch.name and kept_share is not None
        return value * kept_share.mean().sigmoid() if weighed else value  # the share is one for the whole batch

    def _triplet(self, features, labels, how):
        "With several processes, each computes the same value over all images, and the gradient of its own images"
        if how == 'normalised': features = F.normalize(_float32(features))
        gathers = self.gather_triplets and n_ranks() > 1 and torch.is_grad_enabled() and self.reduction == 'mean'
        if not gathers: return batch_hard_triplet(features, labels, self.margin, reduction=self.reduction)
        value = batch_hard_triplet(gather_own(_float32(features)), gather_own(labels), self.margin)
        # Gradients are averaged over the processes afterwards, and this one is a share of a sum
        return n_ranks() * value - (n_ranks() - 1) * value.detach()

    def activation(
        self,
        output: MagnifierOutput,  # The model's
    ) -> MagnifierOutput:  # The same: its embedding is normalised, and logits serve as they are
        "Returns predictions unchanged; fastai calls it"
        return output

    def decodes(
        self,
        output: MagnifierOutput,  # Predictions, as `get_preds` gathers them
    ) -> tuple[TensorPartMask, TensorIdentity] | TensorIdentity:  # One for each target, in their order
        """The predicted part labels n x 2h x 2w (`NO_MASK` without the mask module), and the training identity that the
        branches' logits add up to, n x 4 with -1 for pid, camera and role, which the model does not say"""
        output = MagnifierOutput(output)
        n = len(output.embedding)
        identity = torch.full((n, 4), -1, device=output.embedding.device)
        if output.logits: identity[:, 0] = sum(output.logits.values()).argmax(1)
        if not self.masks: return TensorIdentity(identity)
        labels = torch.full((n, 1, 1), NO_MASK) if output.mask_logits is None else output.mask_logits.argmax(1)
        return TensorPartMask(labels), TensorIdentity(identity)


def gradient_norms(
    parts: list[LossPart],  # Of `MagnifierLoss.parts`, with their gradients
    shared: nn.Module,  # Layers that all parts pull at, as the backbone
) -> dict[str, float]:  # By part, as 'sab_tri'; 0 where it has no gradient there
    "The norm of the gradient of each weighted part on the parameters of `shared`"
    return {part.name: _gradient_norm(part.weight * part.value.mean(), list(shared.parameters())) for part in parts}


def _gradient_norm(loss, parameters):
    wanted = [p for p in parameters if p.requires_grad]
    if not loss.requires_grad or not wanted: return 0.
    gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    squares = [g.square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.
