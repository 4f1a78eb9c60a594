"Losses over pairs and centres that may stand beside or for the triplet: circle loss, center loss"
import torch
from torch import Tensor
from torch.nn import functional as F

from magnifier.model.heads import at_least_float32
from magnifier.train.distributed import gather_own

__all__ = ['circle_loss', 'center_loss', 'move_centers', 'Centers']

NONE = -1e30  # stands for no pair in a sum of exponentials; -inf would make its gradient nan where a row has none at all


def circle_loss(
    features: Tensor,  # n x c, compared by cosine
    labels: Tensor,  # n identities; an image with a negative label is in no pair
    margin: float = 0.25,  # m, 0 to 1: positives are drawn to a cosine of 1 - m and above, negatives to m and below
    scale: float = 128.,  # gamma, at least 0: how sharply
    *,
    reduction: str = 'mean',  # 'mean' over the anchors with a positive and a negative, or 'none': n values, 0 for other anchors
) -> Tensor:  # A float32 scalar, or n values
    """Sun et al. 2020, equation 6, in its pairwise form: softplus(lse_n gamma a_n (s_n - m) + lse_p -gamma a_p (s_p - 1 + m)) of an anchor, with weights
    a_n = [s_n + m]+ and a_p = [1 + m - s_p]+ that carry no gradient. Without a valid anchor it is zero, with gradient"""
    features, labels = at_least_float32(features.as_subclass(Tensor)), labels.as_subclass(Tensor)
    with torch.autocast(features.device.type, enabled=False):
        cosine = F.normalize(features)
        cosine = cosine @ cosine.mT  # (n, n)
        known = (labels >= 0)[:, None] & (labels >= 0)
        same = labels[:, None] == labels
        positive = same & known & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        negative = ~same & known
        a_p, a_n = F.relu(1 + margin - cosine.detach()), F.relu(cosine.detach() + margin)
        of_p = (-scale * a_p * (cosine - 1 + margin)).masked_fill(~positive, NONE).logsumexp(1)
        of_n = (scale * a_n * (cosine - margin)).masked_fill(~negative, NONE).logsumexp(1)
        valid = positive.any(1) & negative.any(1)
        values = torch.where(valid, F.softplus(of_p + of_n), 0)
        return values if reduction == 'none' else values.sum() / valid.sum().clamp(min=1)


def center_loss(
    features: Tensor,  # n x c
    labels: Tensor,  # n classes; a negative one counts for nothing
    centers: Tensor,  # n_classes x c; they get no gradient
    *,
    reduction: str = 'mean',  # 'mean' over the images with a class, or 'none': n values
) -> Tensor:  # A float32 scalar, or n values
    "Squared distance of each image to its class's centre (Wen et al. 2016), as reid-strong-baseline scales it: a mean, without the half"
    features, labels = at_least_float32(features.as_subclass(Tensor)), labels.as_subclass(Tensor)
    with torch.autocast(features.device.type, enabled=False):
        values = (features - centers.to(features.dtype)[labels.clamp(min=0)]).square().sum(1)
        values = torch.where(labels >= 0, values, 0)
        return values if reduction == 'none' else values.sum() / (labels >= 0).sum().clamp(min=1)


def move_centers(
    centers: Tensor,  # n_classes x c; changed in place
    features: Tensor,  # n x c
    labels: Tensor,  # n classes; a negative one counts for nothing
    rate: float = 0.5,  # alpha, 0 to 1
):
    "c_j -= alpha sum_i (c_j - x_i) / (1 + n_j) over the n_j images of class j (Wen et al. 2016, equation 4)"
    with torch.no_grad(), torch.autocast(centers.device.type, enabled=False):
        x, labels = features.detach().as_subclass(Tensor).to(centers.dtype), labels.as_subclass(Tensor)
        # By a product: its order is fixed, an index_add's on a GPU is not; (n_classes, n)
        member = (labels == torch.arange(len(centers), device=labels.device)[:, None]).to(centers.dtype)
        n = member.sum(1, keepdim=True)
        centers -= rate * (n * centers - member @ x) / (1 + n)


class Centers:
    """Class centres of one feature, made when first seen (at zero) and moved by the published rule with each training batch.

    They are no parameters: no optimiser needs to know them. With several processes each sees all ranks' batches, so that centres stay alike"""

    def __init__(
        self,
        rate: float = 0.5,  # How far they move, alpha
        values: Tensor | None = None,  # n_classes x c to go on from; None starts at zero
    ):
        self.rate, self.values = rate, values

    def __call__(
        self,
        features: Tensor,  # n x c
        labels: Tensor,  # n classes; a negative one counts for nothing
        n_classes: int,  # Rows of the centres
        **kwargs,  # Passed to `center_loss`
    ) -> Tensor:  # The loss against the centres as they were before they move
        "Loss, then, where gradients are computed, the move"
        if self.values is None: self.values = torch.zeros(n_classes, features.shape[1], device=features.device)
        self.values = self.values.to(features.device)
        loss = center_loss(features, labels, self.values, **kwargs)
        if torch.is_grad_enabled(): move_centers(self.values, gather_own(features.detach()), gather_own(labels), self.rate)
        return loss
