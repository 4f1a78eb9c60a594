"What is minimised: cross-entropy, batch-hard triplet, semantic diversity, region segmentation, and their sum (Eq. 4)"
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.model.heads import at_least_float32
from magnifier.model.output import MagnifierOutput
from magnifier.model.resize import has_mask, resize_labels
from magnifier.regions import NO_MASK
from magnifier.train.distributed import gather_own, n_ranks
from magnifier.train.metric_losses import Centers, circle_loss

__all__ = ['identity_loss', 'batch_hard_triplet', 'semantic_diversity_loss', 'region_segmentation_loss', 'MagnifierLoss']

PAIR_LOSSES = {'triplet': 'tri', 'circle': 'circle'}  # how `last` names them


def _reduce(values, defined, reduction):
    # Static shapes and no look at the values: a GPU never waits. With nothing defined the mean is a zero that carries gradient
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
    "Cross-entropy with label smoothing; zero, with gradient, where no image has a class"
    n, n_classes = len(logits), logits.shape[-1]
    logits = _float32(logits).reshape(n, -1, n_classes)  # (n, k, n_classes)
    with torch.autocast(logits.device.type, enabled=False):
        targets = labels[:, None].expand(logits.shape[:2])
        values = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, label_smoothing=smoothing, reduction='none')
        return _reduce(values.view(n, -1).sum(1), labels >= 0, reduction)


def batch_hard_triplet(
    features: Tensor,  # n x c, not normalised
    labels: Tensor,  # n identities; an image with a negative label is neither anchor, positive nor negative
    margin: float = 0.3,  # In units of the distance
    *,
    reduction: str = 'mean',  # 'mean' over the anchors with a positive and a negative, or 'none': n values, 0 for other anchors
) -> Tensor:  # A float32 scalar, or n values
    """max(0, margin + furthest positive - nearest negative), Euclidean (Hermans et al.). Pairs are found by masks, so that an
    identity may have any number of images; without a valid triplet it is zero, with gradient"""
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
    "Eq. 3: mean cosine over the k(k-1)/2 pairs i < j of an image's regions (METHOD: the terms i = j are constants)"
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
    reduction: str = 'mean',  # 'mean' over the regions present in the batch, or 'none': n values, over those of each image
) -> Tensor:  # A float32 scalar, or n values
    """Cross-entropy per pixel, averaged within each region, then over the regions: small parts count as much as the background.
    Labels come to the logits' size by nearest neighbour. Zero, with gradient, where no image has a mask"""
    logits, mask = _float32(mask_logits), mask.as_subclass(Tensor)
    k, dims = logits.shape[1], (2, 3) if reduction == 'none' else (0, 2, 3)
    target = resize_labels(mask, logits.shape[-2:])
    one_hot = target[:, None] == torch.arange(k, device=target.device)[:, None, None]  # (n, k, h, w)
    one_hot = one_hot & has_mask(mask)[:, None, None, None]
    with torch.autocast(logits.device.type, enabled=False):
        values = torch.where(one_hot, -logits.log_softmax(1), 0).sum(dims)  # (k,) or (n, k)
        pixels = one_hot.sum(dims)
        return (values / pixels.clamp(min=1)).sum(-1) / (pixels > 0).sum(-1).clamp(min=1)


class MagnifierLoss:
    """Eq. 4 over a `MagnifierOutput`: L_cls + L_tri of every branch, each region's own cross-entropy, lambda L_mask + gamma L_SD.

    `last` holds the parts of the last call before their weights, detached scalars on their device: 'global_cls', 'global_tri' (or '_circle'),
    'global_center', 'sab_...', 'sfb_...', 'region_cls' (added up over the regions), 'mask', 'sd'. A part without an image to count is 0 there.
    An image without a part mask counts in the global branch alone. An identity that is not of the training (class -1) counts
    in the mask loss alone: of a validation split's loss only that is defined"""

    def __init__(
        self,
        *,
        gamma: float = 0.,  # Weight of the semantic diversity loss; the paper's second stage sets 2e-3
        mask_weight: float = 2.,  # Weight of the mask loss, lambda (paper, section 4.1)
        region_weight: float = 0.0125,  # Weight of each region's own cross-entropy (the authors' code)
        smoothing: float = 0.1,  # Label smoothing
        margin: float = 0.3,  # Of the triplet loss
        sab_triplet: bool = True,  # Whether SAB has a triplet loss (Eq. 4: yes; the authors' code: no)
        pairs: str = 'triplet',  # Loss over pairs: 'triplet' (the paper's), or 'circle' in its place (`circle_loss`)
        center_weight: float = 0.,  # Weight of the center loss on every branch; reid-strong-baseline adds it with 5e-4
        gather_triplets: bool = False,  # Whether pairs are sought among all processes' batches, as one process would with the batch they make together
        masks: bool = True,  # Whether the targets are (mask, identity), or identity alone
        reduction: str = 'mean',  # 'mean', or 'none' for a loss per image, each segmented as a batch of its own
    ):
        "A ValueError for a negative weight or an unknown loss"
        weights = dict(gamma=gamma, mask_weight=mask_weight, region_weight=region_weight, margin=margin, center_weight=center_weight)
        for name, value in weights.items():
            if value < 0: raise ValueError(f'{name}={value}: zero or positive is wanted')
        if pairs not in ('triplet', 'circle'): raise ValueError(f'unknown loss over pairs {pairs!r}: use triplet or circle')
        self.pairs, self.center_weight, self.gather_triplets, self.centers = pairs, center_weight, gather_triplets, {}
        self.gamma, self.mask_weight, self.region_weight, self.margin = gamma, mask_weight, region_weight, margin
        self.smoothing, self.sab_triplet, self.masks, self.reduction, self.last = smoothing, sab_triplet, masks, reduction, {}

    def __call__(
        self,
        output: MagnifierOutput,  # The model's
        *targets: Tensor,  # Part mask n x H x W and identity n x 4 (class, pid, camid, role), or identity alone
    ) -> Tensor:  # A float32 scalar, or n values with `reduction='none'`
        "The weighted sum; parts that the model does not have are left out"
        if len(targets) not in (1, 2): raise TypeError(f'{len(targets)} targets: (mask, identity) or (identity,) are wanted')
        mask, identity = (None, *targets)[-2:]
        labels = identity.as_subclass(Tensor)[:, 0]
        masked = has_mask(mask.as_subclass(Tensor)) if mask is not None else torch.ones_like(labels, dtype=torch.bool)
        parts = self._parts(MagnifierOutput(output), mask, labels, masked)
        self.last = {name: value.detach().mean() if self.reduction == 'none' else value.detach() for name, value in parts.items()}
        return sum(self._weight(name) * value for name, value in parts.items())

    def _parts(self, output, mask, labels, masked):
        parts, how = {}, dict(reduction=self.reduction)
        part_labels = torch.where(masked, labels, -1)  # the part branches learn from parsed images alone
        for name, feature in output.features.items():
            known = labels if name == 'global' else part_labels
            parts[f'{name}_cls'] = identity_loss(output.logits[name], known, smoothing=self.smoothing, **how)
            if name != 'sab' or self.sab_triplet: parts[f'{name}_{PAIR_LOSSES[self.pairs]}'] = self._over_pairs(feature, known)
            if self.center_weight:
                centers = self.centers.setdefault(name, Centers())
                parts[f'{name}_center'] = centers(_float32(feature), known, output.logits[name].shape[1], **how)
        if output.region_logits is not None:
            parts['region_cls'] = identity_loss(output.region_logits, part_labels, smoothing=self.smoothing, **how)
        if output.region_features is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.gamma > 0):
                parts['sd'] = semantic_diversity_loss(output.region_features, part_labels >= 0, **how)
        if output.mask_logits is not None and mask is not None:
            parts['mask'] = region_segmentation_loss(output.mask_logits, mask, **how)
        return parts

    def _over_pairs(self, feature, labels):
        "Triplet or circle loss; over all processes' images each computes the same figure, and has the gradient of its own images alone"
        loss = circle_loss if self.pairs == 'circle' else partial(batch_hard_triplet, margin=self.margin)
        gathers = self.gather_triplets and n_ranks() > 1 and torch.is_grad_enabled() and self.reduction == 'mean'
        if not gathers: return loss(feature, labels, reduction=self.reduction)
        value = loss(gather_own(_float32(feature)), gather_own(labels))
        # Gradients are averaged over the processes afterwards, and this one is a share of a sum
        return n_ranks() * value - (n_ranks() - 1) * value.detach()

    def _weight(self, name):
        if name.endswith('_center'): return self.center_weight
        return {'sd': self.gamma, 'mask': self.mask_weight, 'region_cls': self.region_weight}.get(name, 1.)

    def state_dict(self) -> dict[str, Tensor]:  # By branch, n_classes x c; empty without the center loss
        "The centres: what a checkpoint needs beside the arguments"
        return {name: centers.values for name, centers in self.centers.items()}

    def load_state_dict(
        self,
        state: dict[str, Tensor],  # Of `state_dict`
    ):
        "Centres as they were"
        self.centers = {name: Centers(values=values.clone()) for name, values in state.items()}

    def activation(
        self,
        output: MagnifierOutput,  # The model's
    ) -> MagnifierOutput:  # The same: its embedding is normalised, and logits serve as they are
        "fastai applies it to predictions"
        return output

    def decodes(
        self,
        output: MagnifierOutput,  # Predictions, as `get_preds` gathers them
    ) -> tuple[TensorPartMask, TensorIdentity] | TensorIdentity:  # One for each target, in their order
        """The predicted part labels n x 2h x 2w (`NO_MASK` without the mask module), and the training identity that the branches' logits
        add up to, n x 4 with -1 for pid, camera and role, which the model does not say"""
        output = MagnifierOutput(output)
        n = len(output.embedding)
        identity = torch.full((n, 4), -1, device=output.embedding.device)
        if output.logits: identity[:, 0] = sum(output.logits.values()).argmax(1)
        if not self.masks: return TensorIdentity(identity)
        labels = torch.full((n, 1, 1), NO_MASK) if output.mask_logits is None else output.mask_logits.argmax(1)
        return TensorPartMask(labels), TensorIdentity(identity)
