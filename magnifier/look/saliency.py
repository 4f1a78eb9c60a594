"""Where a model looks: activation maps of the shared map and of each branch, and maps of what made two pictures similar"""
from typing import NamedTuple

import numpy as np
import torch
from fastai.vision.all import TensorImage, patch, to_device, tuplify
from torch import Tensor
from torch.nn.functional import interpolate
from magnifier.model.branches import BRANCHES, branch_scales
from magnifier.model.resize import resize_masks
from magnifier.regions import NO_MASK
from magnifier.train.learner import ReIDLearner
from magnifier.train.parts import region_masks

__all__ = ['MAPS', 'Sight', 'activation_map', 'decode_pictures', 'pictures_of', 'contributions', 'similarity_maps', 'saliency_maps',
           'branch_embeddings', 'Contributions']

MAPS = ('stage3', 'stage4', *BRANCHES)


def activation_map(
    feature_map:Tensor, # n x c x h x w: a stage's map, or a branch's own after its bottleneck
) -> Tensor:  # n x h x w in [0,1]
    """Channel energy: the root mean square over the channels at each position, then stretched to 0..1 for each image of its own.

    As in the re-identification literature's activation maps (Zagoruyko and Komodakis 2017, attention transfer), and the reading
    taken of the paper's Figure 2. A map without any relief is 0 everywhere."""
    energy = feature_map.float().square().mean(1).sqrt()  # n x h x w
    low, high = energy.amin((1, 2), keepdim=True), energy.amax((1, 2), keepdim=True)
    return (energy - low)/(high - low).clamp(min=1e-12)


def decode_pictures(
    images:Tensor, # n x 3 x H x W as the model takes them
    dl,            # The loader they come from: its normalisation is undone
) -> np.ndarray:  # (n,H,W,3) in [0,1]
    "Batch of pictures as people see them"
    decoded = dl.after_batch.decode(TensorImage(images))
    return decoded.as_subclass(Tensor).float().div(255).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def pictures_of(
    learn:ReIDLearner, # For its loaders
    images,            # Whatever `learn.loader` takes
) -> np.ndarray:  # (n,H,W,3) in [0,1]
    "Pictures alone, as they are fed; the model is not asked"
    dl = learn.loader(images)
    return np.concatenate([decode_pictures(tuplify(batch)[0], dl) for batch in dl])


class Sight(NamedTuple):
    "A few pictures as people and the model see them, in the order given"
    pictures: np.ndarray            # (n,H,W,3) in [0,1]
    maps: dict                      # `MagnifierNet.feature_maps`: n x c x h x w each, on the model's device, without gradient
    labels: np.ndarray|None         # (n,H,W) true part labels, 255 where an image has none; None where nothing was given
    identity: np.ndarray|None       # (n,4) class, pid, camid, role; None where nothing was given

    @classmethod
    def of(cls,
        learn:ReIDLearner, # Whose model looks
        images,            # Whatever `learn.loader` takes; few, since all their maps are held
    ):
        "Looks at pictures once, in evaluation mode"
        dl, batches = learn.loader(images), []
        with learn.evaluating() as (model, device):
            for batch in dl:
                x, *targets = tuplify(to_device(batch, device))
                maps = {name: o.float() for name, o in model.feature_maps(x).items()}
                batches.append((decode_pictures(x, dl), maps, *(t.as_subclass(Tensor).cpu().numpy() for t in targets)))
        pictures, maps, *targets = zip(*batches)
        maps = {name: torch.cat([m[name] for m in maps]) for name in maps[0]}
        labels, identity = [np.concatenate(t) for t in targets] if targets else (None, None)
        return cls(np.concatenate(pictures), maps, labels, identity)

    @property
    def parsed(self) -> np.ndarray|None:
        "(n,H,W) part labels as the model sees them, its logits enlarged to the picture; None where it has no mask module"
        logits = self.maps.get('mask_logits')
        if logits is None: return None
        return interpolate(logits, self.pictures.shape[1:3], mode='bilinear', align_corners=False).argmax(1).cpu().numpy()

    @property
    def true(self) -> list:
        "(H,W) part labels of the data set, or None, for each picture"
        if self.labels is None: return [None]*len(self.pictures)
        return [None if (labels == NO_MASK).any() else labels for labels in self.labels]

    @property
    def seen(self) -> list:
        "(H,W) part labels that stand for each picture: the model's, where it has a mask module, else the data set's, or None"
        return self.true if 'mask_logits' not in self.maps else list(self.parsed)

    def rows(self,
        which, # Indices of pictures
    ) -> dict:  # Their maps
        "Maps of some of the pictures"
        return {name: o[which] for name, o in self.maps.items()}


def saliency_maps(
    sight:Sight,   # What was looked at
    branches=None, # Names in `MAPS`; None for the branches the model has
) -> dict:  # name -> (n,h,w) in [0,1]
    "Activation maps by name; a ValueError for one that this model does not have lists those it has"
    has = [b for b in MAPS if b in sight.maps]
    names = [b for b in has if b not in ('stage3', 'stage4')] if branches is None else tuplify(branches)
    unknown = [b for b in names if b not in has]
    if unknown: raise ValueError(f'no map {unknown[0]!r} in this model: it has {", ".join(has)}')
    return {b: activation_map(sight.maps[b]).cpu().numpy() for b in names}


@patch
def saliency(self:ReIDLearner,
    images,        # A path, PIL image, array, a list of these, or a catalog's rows; few
    branches=None, # 'global', 'sab', 'sfb', 'stage3', 'stage4', or several; None for the branches the model has
) -> dict:  # name -> (n,h,w) in [0,1], at the map's size
    "Activation maps (`activation_map`) of pictures, by branch"
    return saliency_maps(Sight.of(self, images), branches)


def branch_embeddings(
    model,     # A MagnifierNet in evaluation mode
    maps:dict, # Of `feature_maps`
) -> dict:  # branch -> n x c: f_bn, which the embedding joins
    "What each branch says of the pictures"
    return {name: branch(maps[name], maps.get('masks')).normed for name, branch in model.branches.items()}


class Contributions(NamedTuple):
    "Who earned the score: of each branch, by region and place of ONE side of a pair; with `rest` they add up to it"
    parts: dict   # branch -> n x k x h x w; k = 1 where nobody knows the regions
    rest: Tensor  # (n,) what an average person earns in SFB, the same for whoever stands there
    score: Tensor # (n,) cosine similarity, as the ranking has it

    def map(self) -> Tensor:
        "n x h x w: over branches and regions, each in units of the score"
        size = next(iter(self.parts.values())).shape[-2:]
        return sum(_same_sum(p.sum(1), size) for p in self.parts.values())

    def shares(self) -> Tensor:
        "n x k: over branches and places"
        return sum(p.sum((2, 3)) for p in self.parts.values())


def _same_sum(heat, size):  # n x h x w -> n x size, the sum over places kept
    if heat.shape[-2:] == tuple(size): return heat
    return resize_masks(heat[:, None], size)[:, 0]*(heat.shape[-2]*heat.shape[-1]/(size[0]*size[1]))


def contributions(
    model,        # A MagnifierNet in evaluation mode
    maps:dict,    # `feature_maps` of n pictures, without gradient
    others:dict,  # `feature_maps` of the n they are compared with
    masks=None,   # n x k x h x w region masks for a model that makes none; None for the model's own
) -> Contributions:  # What earned the score, by place and region of the FIRST pictures
    """Splits the cosine of two embeddings over the first picture's branches, regions and places: an Aumann-Shapley value
    (integrated gradients; Sundararajan et al. 2017), whose parts add up to the score.

    The score is <z, e>, z the picture's f_bn of all branches over its own norm, e the other's embedding. What a place counts for is how
    much <z, e> changes as the features go from those of an AVERAGE person (the running means of the BNNecks, from training) to the
    picture's own, the norm held. Global branch and SAB are linear in what they pool, so this is exact there: a place's own product with
    e, minus its part of the average (global: an equal part; SAB: in proportion to the maxima it holds). In SFB the pooled p(x_k) move
    together from the average regions to the picture's, and the integral of the gradient over that way is taken by Gauss-Legendre
    quadrature; a channel counts where its maximum lies. What SFB gives for an average person is `rest`, and the quadrature's
    rounding with it."""
    # In float32 even for a learner in half precision, whose heads are computed so as well
    with torch.autocast(maps['global'].device.type, enabled=False): return _contributions(model, maps, others, masks)


def _contributions(model, maps, others, masks):
    with torch.no_grad(): z, e = branch_embeddings(model, maps), branch_embeddings(model, others)
    scales = [branch_scales(list(o.values()), model.branch_weights, model.normalise_branches).split(1, 1) for o in (z, e)]
    # branch -> n x c: what f_bn is multiplied with to give its part of the score, the lengths held
    weight = {name: e[name]*theirs*own for name, own, theirs in zip(z, *scales)}
    known = region_masks(maps) if masks is None else masks
    if known is None: known = torch.ones_like(maps['stage4'][:, :1])
    parts = {name: branch.contribution(maps[name], maps['masks'] if branch.needs_masks else known, weight[name])
             for name, branch in model.branches.items()}
    score = sum((z[name]*weight[name]).sum(1) for name in z)
    return Contributions(parts, score - sum(p.sum((1, 2, 3)) for p in parts.values()), score)


def similarity_maps(
    model,       # A MagnifierNet in evaluation mode
    maps:dict,   # `feature_maps` of n pictures
    others:dict, # `feature_maps` of the n they are compared with
) -> tuple:  # Two n x h x w: what of the first, and what of the second, earned the similarity, in units of the score
    "Maps of the SIMILARITY between two pictures, both ways (`contributions`, which a Grad-CAM of the cosine becomes where it adds up)"
    return contributions(model, maps, others).map(), contributions(model, others, maps).map()
