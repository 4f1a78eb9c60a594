"Region features of images, which can be compared one by one, and the visible area of each region"

from typing import NamedTuple

import numpy as np
import torch
from fastai.vision.all import to_device, tuplify
from torch import Tensor, nn
from torch.nn.functional import normalize

from magnifier.model.pooling import labels_to_masks, predicted_masks, resize_masks
from magnifier.regions import BODY_REGIONS, NO_MASK, N_REGIONS, REGIONS, region_indices
from magnifier.retrieval.ranking import Ranking, evaluate_distances
from magnifier.retrieval.region_distance import region_distance
from magnifier.retrieval.rerank import rerank_distances
from magnifier.train.distributed import Share
from magnifier.train.metrics import by_role

__all__ = ['Parts', 'embed_parts', 'rank_parts']

# Least share of an image that a region must cover to count as seen: about 40 pixels of 128 x 64, a distant shoe
VISIBLE = .005
NO_REGIONS = ('the regions are not known: the model has no mask module, and no part masks were given. Build the '
              'learner with mask=True, or pass rows of a catalog that has masks')
NO_OWN_REGIONS = ('the regions are not known: the model has no mask module. Build the learner with mask=True, or pass '
                  'a catalog that has masks, and given_masks=True')


class Parts(NamedTuple):
    "Regions of n images"
    embeddings: Tensor  # (n, k, c) L2-normalised, on the CPU
    areas: np.ndarray  # (n, k) share of the image that each covers
    identity: Tensor | None = None  # (n, 4) class, pid, camid, role, where the loader has them
    regions: tuple | None = None  # Names of the k that were chosen; None for all eight where none was

    @property
    def visible(self) -> np.ndarray:  # (n, k) booleans
        "Which regions are visible"
        return self.areas >= VISIBLE


def region_masks(
    maps: dict[str, Tensor],  # Of `feature_maps`
) -> Tensor | None:  # n x k x h x w that sum to 1 over k, at the global map's size; None without a mask module
    "The model's own region masks, as its branches pool by them"
    size = maps['global'].shape[-2:]
    if 'masks' in maps: return resize_masks(maps['masks'], size)
    if 'mask_logits' in maps: return predicted_masks(maps['mask_logits'], size)
    return None


def region_embeddings(
    model: nn.Module,  # A MagnifierNet in evaluation mode
    maps: dict[str, Tensor],  # `feature_maps` of n images
    masks: Tensor | None = None,  # n x k x h x w for a model that makes none; None for the model's own
) -> Tensor:  # n x k x c, L2-normalised: the cosine of two is the similarity of a region
    """The description of each region by the model's last branch (`Branch.describe_regions`). With SFB: p(x_k) after the
    BNNeck of its region, which was trained to classify identities by that region. With SAB alone: its feature of the
    region alone. With neither: the mean of the map over the region. A ValueError without masks"""
    masks = region_masks(maps) if masks is None else masks
    if masks is None: raise ValueError(NO_REGIONS)
    name, branch = list(model.branches.items())[-1]
    if branch.needs_masks: masks = maps['masks']
    with torch.no_grad(), torch.autocast(masks.device.type, enabled=False):
        return normalize(branch.describe_regions(maps[name], masks), dim=2)


def region_areas(
    maps: dict[str, Tensor],  # `feature_maps` of n images
    labels: Tensor | None = None,  # n x H x W part labels, for a model without a mask module
) -> np.ndarray:  # (n, k) share of each image that a region covers
    "The visible area of each region, by the model's own masks or else by the labels; a ValueError without either"
    if 'mask_logits' in maps: labels = maps['mask_logits'].argmax(1)
    if labels is None or (labels == NO_MASK).any(): raise ValueError(NO_REGIONS)
    return _areas(labels)


def _areas(labels):  # n x H x W part labels -> (n, k)
    return torch.stack([(labels == k).flatten(1).float().mean(1) for k in range(N_REGIONS)], 1).cpu().numpy()


def embed_parts(
    learn,  # A ReIDLearner, whose model describes
    images,  # Whatever `learn.loader` takes
    regions=None,  # Names or indices of the regions to keep; None for all eight
    *,
    given_masks: bool = False,  # Areas by the part masks that the images come with; the model's own parsing still pools
) -> Parts:  # Of all of them; no image is held
    """Region features of a whole set. A ValueError for a model without regions, and for images without the requested
    masks"""
    own = learn.model.segmentation is not None
    if not own and not given_masks: raise ValueError(NO_OWN_REGIONS)
    wanted = region_indices(regions)
    if not wanted: raise ValueError('regions=[]: name one or more regions')
    share = Share(learn, learn.loader(images))
    embeddings, areas, identities = [], [], []
    with learn.evaluating() as (model, device):
        for batch in learn.with_progress(share.dl):
            x, *targets = tuplify(to_device(batch, device))
            labels = _given_labels(targets) if given_masks else None
            maps = {name: o.float() for name, o in model.feature_maps(x).items()}
            masks = region_masks(maps) if own else labels_to_masks(labels, maps['global'].shape[-2:])
            embeddings.append(region_embeddings(model, maps, masks)[:, wanted].cpu())
            areas.append((_areas(labels) if given_masks else region_areas(maps))[:, wanted])
            if targets: identities.append(targets[-1].cpu().as_subclass(Tensor))
    names = tuple(REGIONS[r] for r in wanted)
    return Parts(
        share.whole(torch.cat(embeddings)),
        share.whole(torch.from_numpy(np.concatenate(areas))).numpy(),
        share.whole(torch.cat(identities)) if identities else None,
        None if regions is None else names)


def _given_labels(targets):
    # Part masks of a batch
    if len(targets) < 2:
        raise ValueError('given_masks=True: these images come without part masks. Pass a catalog with path, mask, pid, '
                         'camid and split')
    labels = targets[0].as_subclass(Tensor)
    missing = int((labels == NO_MASK).flatten(1).any(1).sum())
    if missing:
        raise ValueError(f'given_masks=True: {missing} of {len(labels)} images of a batch have no part mask. Give each '
                         'one, or leave given_masks out')
    return labels


def rank_parts(
    parts: Parts,  # Of queries and gallery together, with their identities
    rerank: dict | None = None,  # Arguments of `rerank_distances` for a second ranking; None for none
    **kwargs,  # Passed to `evaluate_distances`: ap, no_match, separate_cameras
) -> dict[str, Ranking]:  # 'regions' and, if asked for, 're-ranked'; empty where there is no query or no gallery
    """Ranks by the mean similarity of the body regions that both images show, so an occluded query is compared by its
    visible regions. The background is left out: it depends on the place, and objects in front of a person count as
    background"""
    sides = by_role(parts.identity)
    if sides is None: return {}
    query, gallery, ids = sides
    regions = BODY_REGIONS if parts.regions is None else None

    def distances(a, b):
        seen_a, seen_b = parts.visible[a.numpy()], parts.visible[b.numpy()]
        return region_distance(parts.embeddings[a], parts.embeddings[b], seen_a, seen_b, regions=regions)

    q_g = distances(query, gallery)
    found = {'regions': evaluate_distances(q_g, *ids, **kwargs)}
    if rerank is not None:  # squared Euclidean is twice the cosine distance
        again = rerank_distances(2*q_g, 2*distances(query, query), 2*distances(gallery, gallery), **rerank)
        found['re-ranked'] = evaluate_distances(again, *ids, **kwargs)
    return found
