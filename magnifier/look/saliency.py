"""Where a model looks in an image: maps by pixels, by shares of the embedding and by channel energy; and the part of
them that lies on people"""
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import TensorImage, patch, to_device, tuplify
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from magnifier.checks import choose, refuse
from magnifier.data.images import read_mask
from magnifier.look.drawing import all_stripes, are_stripes, resized_heat
from magnifier.model.branches import branch_scales
from magnifier.regions import BODY_REGIONS, NO_MASK, region_indices
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import region_masks

__all__ = ['Sight', 'activation_map', 'pixel_shares', 'saliency_maps', 'saliency_inside']


def branch_embeddings(model, maps: dict) -> dict:
    "branch -> f_bn, n x c, which the embedding joins; from the maps that `model.feature_maps` returns"
    return {name: branch(maps[name], maps.get('masks')).normed for name, branch in model.branches.items()}


def branch_weights(model, ours: dict, others: dict) -> dict:
    """branch -> n x c: the factors of each branch's f_bn in the score, with the lengths of the branches held constant.

    Both arguments are `branch_embeddings`, of n images and of the n that they are compared with"""
    def scales(embeddings):
        return branch_scales(list(embeddings.values()), model.branch_weights, model.normalise_branches).split(1, 1)

    return {name: others[name]*own*theirs for name, own, theirs in zip(ours, scales(ours), scales(others))}


class Contributions(NamedTuple):
    "Shares of a similarity by branch, region and position of the first image of a pair"
    parts: dict  # branch -> n x k x h x w; k = 1 where nobody knows the regions
    score: Tensor  # (n,) cosine similarity, as the ranking has it


def contributions(
    model,  # A MagnifierNet in evaluation mode
    maps: dict,  # `feature_maps` of n images, without gradient
    others: dict,  # `feature_maps` of the n they are compared with
    masks=None,  # n x k x h x w region masks for a model that makes none; None for the model's own
) -> Contributions:  # Of the FIRST images
    """Splits the cosine of two embeddings over the first image's branches, regions and positions.

    The split is an Aumann-Shapley value (integrated gradients; Sundararajan et al. 2017). The score is <z, e> of the
    two embeddings. The share of a position is the change of <z, e> as the features go from those of an AVERAGE person
    (the running means of the BNNecks) to the image's own, with the lengths held constant. Each branch computes it
    (`Branch.contribution`): exactly if it is linear in what it pools; for SFB by integrating the gradient as the
    regions go from the average to the image's. The score minus the sum of all parts is SFB's value for an average
    person, which belongs to no position."""
    known = region_masks(maps) if masks is None else masks
    if known is None: known = torch.ones_like(maps['stage4'][:, :1])
    parts = {}
    # In float32 even for a learner in half precision, whose heads are computed in float32 too
    with torch.autocast(maps['stage4'].device.type, enabled=False):
        with torch.no_grad(): ours, theirs = branch_embeddings(model, maps), branch_embeddings(model, others)
        weights = branch_weights(model, ours, theirs)
        for name, branch in model.branches.items():
            branch_masks = maps['masks'] if branch.needs_masks else known
            parts[name] = branch.contribution(maps[name], branch_masks, weights[name])
    return Contributions(parts, sum((f*weights[name]).sum(1) for name, f in ours.items()))


STAGES = ('stage3', 'stage4')
KINDS = ('pixels', 'share', 'energy')
STEPS = 8  # Of the integration in `pixel_shares`


def activation_map(
    feature_map: Tensor,  # n x c x h x w: a stage's map, or a branch's own
) -> Tensor:  # n x h x w in [0,1]
    """Channel energy: the root mean square over the channels at each position, stretched to 0..1 for each image.

    This is the activation map of the re-identification literature (Zagoruyko and Komodakis 2017, attention transfer),
    and how we read the paper's Figure 2. A constant map becomes 0 everywhere."""
    energy = feature_map.float().square().mean(1).sqrt()  # n x h x w
    low, high = energy.amin((1, 2), keepdim=True), energy.amax((1, 2), keepdim=True)
    return (energy - low)/(high - low).clamp(min=1e-12)


def positive(heat: np.ndarray) -> np.ndarray:
    "The positive part of a map, (n,h,w), scaled to 1 at its maximum in each image"
    heat = heat.clip(min=0)
    return heat/heat.max((-2, -1), keepdims=True).clip(min=1e-12)


def decode_images(images: Tensor, dl) -> np.ndarray:
    "A batch of a loader, n x 3 x H x W, as (n,H,W,3) in [0,1], with the normalisation undone"
    decoded = dl.after_batch.decode(TensorImage(images))
    return decoded.as_subclass(Tensor).float().div(255).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def images_of(learn: ReIDLearner, images) -> np.ndarray:
    "(n,H,W,3) in [0,1] of whatever `learn.loader` takes, as the model gets it; the model is not run"
    dl = learn.loader(images)
    return np.concatenate([decode_images(tuplify(batch)[0], dl) for batch in dl])


class Sight(NamedTuple):
    "A few images, with the data set's and the model's part masks, in the order given"
    images: np.ndarray  # (n,H,W,3) in [0,1]
    inputs: Tensor  # n x 3 x H x W, the same as the model takes them, on its device
    maps: dict  # `MagnifierNet.feature_maps`: n x c x h x w each, on the model's device, without gradient
    labels: np.ndarray | None  # (n,H,W) true part labels, 255 where an image has none; None where nothing was given

    @classmethod
    def of(cls,
        learn: ReIDLearner,  # Whose model looks
        images,  # Whatever `learn.loader` takes; few, since all their maps are held
    ) -> 'Sight':
        "Runs the model on images once, in evaluation mode"
        dl = learn.loader(images)
        shown = []
        inputs = []
        maps = []
        labels = []
        with learn.evaluating() as (model, device):
            for batch in dl:
                x, *targets = tuplify(to_device(batch, device))
                shown.append(decode_images(x, dl))
                inputs.append(x.as_subclass(Tensor))
                maps.append({name: o.float() for name, o in model.feature_maps(x).items()})
                if targets: labels.append(targets[0].as_subclass(Tensor).cpu().numpy())
        joined = {name: torch.cat([of_batch[name] for of_batch in maps]) for name in maps[0]}
        return cls(np.concatenate(shown), torch.cat(inputs), joined, np.concatenate(labels) if labels else None)

    @property
    def parsed(self) -> np.ndarray | None:  # (n,H,W) part labels; None where the model has no mask module
        "The model's own part masks, from its logits enlarged to the image"
        logits = self.maps.get('mask_logits')
        if logits is None: return None
        return interpolate(logits, self.images.shape[1:3], mode='bilinear', align_corners=False).argmax(1).cpu().numpy()

    @property
    def true(self) -> list:  # (H,W) part labels, or None, for each image
        "Part masks of the data set"
        if self.labels is None: return [None]*len(self.images)
        return [None if (labels == NO_MASK).any() else labels for labels in self.labels]

    @property
    def seen(self) -> list:  # (H,W) part labels, or None, for each image
        "Part masks of each image: the model's own if it has a mask module, else the data set's"
        return self.true if 'mask_logits' not in self.maps else list(self.parsed)

    @property
    def stripes(self) -> bool:  # False where no image has a mask
        "Whether the data set's masks of these images are horizontal stripes instead of body parts"
        return all_stripes(self.true)


def learnt_stripes(learn: ReIDLearner) -> bool:
    """Whether a model was trained with horizontal stripes as part masks: its own masks are then not body parts either.
    False where the learner carries no training data"""
    items = learn.dls.train_ds.items
    masks = items['mask'].dropna() if 'mask' in items else []
    return len(masks) > 0 and are_stripes(read_mask(masks.iloc[0]))


def pixel_shares(
    model,  # A MagnifierNet in evaluation mode
    inputs: Tensor,  # n x 3 x H x W as the model takes them
    others: Tensor | None = None,  # n x 3 x H x W, what they are compared with; None for themselves
    *,
    by_branch: bool = True,  # False adds the branches up, under the name 'all', in less time
    steps: int = STEPS,  # Points of the integration
) -> dict:  # branch -> n x H x W
    """Shares of the similarity of two images by branch and pixel of the FIRST.

    These are integrated gradients (Sundararajan et al. 2017) along the way from a grey image, the mean colour of the
    normalisation, to the image. Up to the error of the integration they add up to the similarity minus its value for
    the grey image (with the lengths of the image's own features). `contributions` is the same split at the size of the
    feature maps."""
    inputs = inputs.detach()
    with torch.no_grad():
        own = branch_embeddings(model, model.feature_maps(inputs))  # branch -> n x c
        theirs = own if others is None else branch_embeddings(model, model.feature_maps(others))
    weights = branch_weights(model, own, theirs)
    gradients = {name: torch.zeros_like(inputs) for name in (own if by_branch else ['all'])}
    # In float32; and cuDNN's recurrent nets have no gradient in evaluation mode
    no_half, no_cudnn = torch.autocast(inputs.device.type, enabled=False), torch.backends.cudnn.flags(enabled=False)
    with no_half, no_cudnn, torch.enable_grad():
        for step in range(steps):
            point = (inputs*(step + .5)/steps).requires_grad_()
            there = branch_embeddings(model, model.feature_maps(point))
            scores = {name: (f*weights[name]).sum() for name, f in there.items()}
            if not by_branch: scores = {'all': sum(scores.values())}
            for name, score in scores.items():
                gradients[name] += torch.autograd.grad(score, point, retain_graph=True)[0]/steps
    return {name: (gradient*inputs).sum(1) for name, gradient in gradients.items()}


def smoothed(shares: Tensor) -> Tensor:
    """`pixel_shares`, n x H x W, averaged twice over windows of about a fourteenth of the height, because single pixels
    are noisy"""
    side = 2*(shares.shape[1]//28) + 1
    pool = partial(avg_pool2d, kernel_size=side, stride=1, padding=side//2, count_include_pad=False)
    return pool(pool(shares[:, None]))[:, 0]


def saliency_maps(
    learn: ReIDLearner,  # Whose model looked
    sight: Sight,  # What it looked at
    branches=None,  # Names of branches, and of kind 'energy' also 'stage3' and 'stage4'; None for all branches
    *,
    kind: str = 'pixels',  # One of `KINDS`
) -> dict:  # name -> (n,h,w) in [0,1]
    """Maps by name, each scaled to a maximum of 1; a ValueError for an unknown name lists those of this model.

    - 'pixels': which pixels the embedding is made of (`pixel_shares`, smoothed), at the image's size. It takes some
      seconds.
    - 'share': the split of `learn.explain` over the branches' feature maps, for the image with itself.
    - 'energy': channel energy (`activation_map`), how we read the paper's Figure 2. It shows where channels are active,
      whether or not the embedding uses them.

    `saliency_inside` measures which of them lies on the person."""
    names = _names(learn, branches, kind)
    if not names: return {}
    if kind == 'energy': return {b: activation_map(sight.maps[b]).cpu().numpy() for b in names}
    with learn.evaluating() as (model, _):
        if kind == 'pixels': shares = {b: smoothed(o) for b, o in pixel_shares(model, sight.inputs).items()}
        else: shares = {b: o.sum(1) for b, o in contributions(model, sight.maps, sight.maps).parts.items()}
    return {b: positive(shares[b].cpu().numpy()) for b in names}


def _names(learn, branches, kind):
    "Maps that are asked for, all of which the model has"
    choose(kind, KINDS, 'kind')
    own = list(learn.net.branches)
    known = [*own, *(STAGES if kind == 'energy' else ())]
    names = own if branches is None else tuplify(branches)
    refuse({f'no map {name!r} of kind {kind!r} in this model: it has {", ".join(known)}': name not in known
            for name in names})
    return names


@patch
def saliency(self: ReIDLearner,
    images,  # A path, PIL image, array, a list of these, or a catalog's rows; few
    branches=None,  # Names of branches, and of kind 'energy' also 'stage3' and 'stage4'; None for all branches
    *,
    kind: str = 'pixels',  # 'pixels', 'share' or 'energy' (paper, Figure 2), see `saliency_maps`
) -> dict:  # name -> (n,h,w) in [0,1]
    "Maps of where each branch looks (`saliency_maps`)"
    return saliency_maps(self, Sight.of(self, images), branches, kind=kind)


def saliency_inside(
    learn: ReIDLearner,  # Whose model looks
    catalog: pd.DataFrame,  # Rows with part masks
    *,
    regions=BODY_REGIONS,  # Names or indices of the regions that count as inside: the body, or where two people differ
    kinds=KINDS,  # Kinds of `saliency_maps`
    bs: int = 64,  # Images at a time
) -> pd.DataFrame:  # Index kind and branch; columns `inside`, `chance`, `ratio`
    """The share of the maps that lies on the true person or on some regions, compared with chance.

    `inside` is the share of the enlarged map's sum that lies inside; `chance` is the share of the image that these
    regions cover, which is also the `inside` of a constant map; `ratio` is inside over chance. All are means over the
    images that show any of the regions. A ValueError if no image has a mask that does."""
    wanted = region_indices(regions)
    found = {(kind, branch): [] for kind in kinds for branch in learn.model.branches}
    chance = []
    for start in range(0, len(catalog), bs):
        sight = Sight.of(learn, catalog.iloc[start:start + bs])
        inside = _inside(sight.true, wanted)
        chance += [mask.mean() for mask in inside.values()]
        for kind in kinds:
            for branch, maps in saliency_maps(learn, sight, kind=kind).items():
                found[kind, branch] += [_share_inside(maps[i], mask) for i, mask in inside.items()]
    if not chance:
        raise ValueError('no image has a part mask that shows these regions: pass rows of a catalog with masks')
    means = pd.Series({key: np.mean(shares) for key, shares in found.items()})
    table = pd.DataFrame({'inside': means, 'chance': np.mean(chance)})
    return table.assign(ratio=table['inside']/table['chance']).rename_axis(['kind', 'branch'])


def _inside(labels, wanted):
    "Place -> booleans of the wanted regions, for images that show a part of them"
    masks = {i: np.isin(of_one, wanted) for i, of_one in enumerate(labels) if of_one is not None}
    return {i: mask for i, mask in masks.items() if mask.any()}


def _share_inside(heat, mask):
    "Share of a map's sum that lies inside a mask; for a map of zeros, the mask's area"
    heat = resized_heat(heat, mask.shape).clip(min=0).astype(float)
    return heat[mask].sum()/heat.sum() if heat.any() else mask.mean()
