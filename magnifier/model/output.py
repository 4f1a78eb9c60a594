"What MagnifierNet returns"

from torch import Tensor

__all__ = ['MagnifierOutput', 'BRANCHES']

BRANCHES = ('global', 'sab', 'sfb')


class MagnifierOutput(tuple):
    """Ten tensors, always: embedding, features of the three branches, logits of the three, region features, region logits,
    mask logits. What a model or a mode does not give is of shape (n, 0), and the properties leave it out.
    A plain tuple of tensors of n rows each is what fastai can gather, reorder, detach and cast (see `build`)"""

    @classmethod
    def build(
        cls,
        embedding: Tensor,  # n x d
        *,
        features: dict[str, Tensor],  # By branch, n x c_branch
        logits: dict[str, Tensor],  # By branch, n x n_classes
        region_features: Tensor | None = None,  # n x k x c
        region_logits: Tensor | None = None,  # n x k x n_classes
        mask_logits: Tensor | None = None,  # n x k x 2h x 2w
    ) -> 'MagnifierOutput':  # With (n, 0) for what is not given
        "The output from its parts"
        slots = [embedding, *(features.get(b) for b in BRANCHES), *(logits.get(b) for b in BRANCHES),
                 region_features, region_logits, mask_logits]
        return cls([embedding.new_zeros(len(embedding), 0) if s is None else s for s in slots])

    @property
    def embedding(self) -> Tensor:  # n x d float32, L2-normalised: what is compared by cosine in retrieval
        "f_bn of the branches present, concatenated and normalised"
        return self[0]

    @property
    def features(self) -> dict[str, Tensor]:  # By branch ('global', 'sab', 'sfb'), n x c, those present
        "f of each branch, before its batch norm: what the triplet loss takes"
        return self._by_branch(1)

    @property
    def logits(self) -> dict[str, Tensor]:  # By branch, n x n_classes, those present
        "Classifier outputs over the training identities"
        return self._by_branch(4)

    @property
    def region_features(self) -> Tensor | None:  # n x k x c; None without SFB
        "p(x_k), pooled from SFB's map: what the semantic diversity loss takes"
        return self[7] if self[7].ndim == 3 else None

    @property
    def region_logits(self) -> Tensor | None:  # n x k x n_classes; None without SFB, and in evaluation
        "Each region's own classifier, which serves training alone"
        return self[8] if self[8].ndim == 3 else None

    @property
    def mask_logits(self) -> Tensor | None:  # n x k x 2h x 2w, h x w being stage 4's map; None without the mask module
        "The segmentation head's output"
        return self[9] if self[9].ndim == 4 else None

    def _by_branch(self, first):
        return {b: self[first + i] for i, b in enumerate(BRANCHES) if self[first + i].shape[-1]}
