"How the similarity of two images is made up: shares by branch, region and position that add up to the score"
from typing import NamedTuple

import torch
from torch import Tensor
from magnifier.model.branches import branch_scales
from magnifier.model.resize import resize_masks
from magnifier.train.parts import region_masks

__all__ = ['Contributions', 'contributions', 'branch_embeddings', 'branch_weights']


def branch_embeddings(
    model,  # A MagnifierNet in evaluation mode
    maps: dict,  # Of `feature_maps`
) -> dict:  # branch -> n x c: f_bn, which the embedding joins
    "The embedding of each branch"
    return {name: branch(maps[name], maps.get('masks')).normed for name, branch in model.branches.items()}


def branch_weights(
    model,  # A MagnifierNet
    ours: dict,  # Of `branch_embeddings`, of n images
    others: dict,  # Of the n they are compared with
) -> dict:  # branch -> n x c
    "The factor of each branch's f_bn in the score, with the lengths of the branches held constant"
    scales = [branch_scales(list(o.values()), model.branch_weights, model.normalise_branches).split(1, 1)
              for o in (ours, others)]
    return {name: others[name]*own*theirs for name, own, theirs in zip(ours, *scales)}


class Contributions(NamedTuple):
    """Shares of the similarity by branch, region and position of ONE image of a pair; with `rest` they add up to the
    score"""
    parts: dict  # branch -> n x k x h x w; k = 1 where nobody knows the regions
    rest: Tensor  # (n,) what an average person would earn in SFB, which belongs to no place
    score: Tensor  # (n,) cosine similarity, as the ranking has it

    def map(self) -> Tensor:  # n x h x w
        "Shares by place, summed over branches and regions"
        size = next(iter(self.parts.values())).shape[-2:]
        return sum(_same_sum(p.sum(1), size) for p in self.parts.values())

    def shares(self) -> Tensor:  # n x k
        "Shares by region, summed over branches and places"
        return sum(p.sum((2, 3)) for p in self.parts.values())


def _same_sum(heat, size):  # n x h x w -> n x size, the sum over places kept
    if heat.shape[-2:] == tuple(size): return heat
    return resize_masks(heat[:, None], size)[:, 0]*(heat.shape[-2]*heat.shape[-1]/(size[0]*size[1]))


def contributions(
    model,  # A MagnifierNet in evaluation mode
    maps: dict,  # `feature_maps` of n images, without gradient
    others: dict,  # `feature_maps` of the n they are compared with
    masks=None,  # n x k x h x w region masks for a model that makes none; None for the model's own
) -> Contributions:  # Of the FIRST images
    """Splits the cosine of two embeddings over the first image's branches, regions and positions.

    The split is an Aumann-Shapley value (integrated gradients; Sundararajan et al. 2017), whose parts add up to the
    score. The score is <z, e> of the two embeddings. The share of a position is the change of <z, e> as the features go
    from those of an AVERAGE person (the running means of the BNNecks) to the image's own, with the lengths held
    constant. Each branch computes it (`Branch.contribution`): exactly if it is linear in what it pools; for SFB by
    integrating the gradient as the regions go from the average to the image's. SFB's value for an average person and
    the rounding are `rest`."""
    # In float32 even for a learner in half precision, whose heads are computed in float32 too
    with torch.autocast(maps['stage4'].device.type, enabled=False): return _contributions(model, maps, others, masks)


def _contributions(model, maps, others, masks):
    with torch.no_grad(): ours, theirs = branch_embeddings(model, maps), branch_embeddings(model, others)
    weights = branch_weights(model, ours, theirs)
    known = region_masks(maps) if masks is None else masks
    if known is None: known = torch.ones_like(maps['stage4'][:, :1])
    parts = {}
    for name, branch in model.branches.items():
        parts[name] = branch.contribution(maps[name], maps['masks'] if branch.needs_masks else known, weights[name])
    score = sum((f*weights[name]).sum(1) for name, f in ours.items())
    return Contributions(parts, score - sum(p.sum((1, 2, 3)) for p in parts.values()), score)
