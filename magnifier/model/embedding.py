"The part of the network that embeds: same result as `MagnifierNet` in evaluation, faster, and simple enough to export"

import torch
from torch import Tensor, nn

from magnifier.model.branches import FoldedBranch, join_branches
from magnifier.model.heads import FoldedHead, at_least_float32, fold_norms
from magnifier.model.resize import predicted_masks

__all__ = ['EmbeddingNet']


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
        if masks and model.segmentation is None:
            raise ValueError('this model has no segmentation head: pass masks=False')
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
