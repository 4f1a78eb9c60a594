"What MagnifierNet returns"

from torch import Tensor

from magnifier.model.branches import BRANCHES

__all__ = ['MagnifierOutput']

ALONE = ('region_features', 'region_logits', 'mask_logits', 'kept_share')  # what there is once, not by branch


class MagnifierOutput(tuple):
    """A tuple of tensors of n rows each, which is what fastai can gather, reorder, detach and cast: the embedding,
    features and logits of every view of `BRANCHES`, and what there is once. What a model or a mode does not give is of
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
        "What the branches present say, side by side"
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
