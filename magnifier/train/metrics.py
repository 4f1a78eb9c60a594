"Rankings of test images by their embeddings, or by the regions that both show; and figures of a ranking as metrics"

from typing import NamedTuple

import numpy as np
import torch
from fastai.vision.all import Metric, to_detach
from torch import Tensor, nn
from torch.nn.functional import normalize

from magnifier.checks import refuse
from magnifier.data.block import ROLES
from magnifier.model.pooling import labels_to_masks, predicted_masks, resize_masks
from magnifier.regions import BODY_REGIONS, NO_MASK, N_REGIONS, REGIONS, region_indices
from magnifier.retrieval.ranking import Ranking, evaluate_distances, rank
from magnifier.retrieval.region_distance import region_distance
from magnifier.retrieval.rerank import rerank, rerank_distances
from magnifier.train.distributed import Share, gather_rows

__all__ = ['Parts', 'embed_parts', 'rank_parts', 'reid_metrics', 'R1', 'mAP']

# Least share of an image that a region must cover to count as seen: about 40 pixels of 128 x 64, a distant shoe
VISIBLE = .005
NO_REGIONS = ('the regions are not known: the model has no mask module, and no part masks were given. Build the '
              'learner with mask=True, or pass rows of a catalog that has masks')
NO_OWN_REGIONS = ('the regions are not known: the model has no mask module. Build the learner with mask=True, or pass '
                  'a catalog that has masks, and given_masks=True')


class Sides(NamedTuple):
    "Positions of queries and gallery among n images, and their ids as `rank` takes them"
    query: Tensor  # (n,) booleans
    gallery: Tensor  # (n,) booleans
    ids: list  # Four arrays: identities of queries, of gallery, cameras of queries, of gallery


def by_role(
    identity,  # (n,4) integers, tensor or array: class, pid, camid, role (a `TensorIdentity`)
) -> Sides | None:  # None where there is no query or no gallery
    "Queries and gallery by their role, not by their position, so a shuffled loader gives the same results"
    identity = torch.as_tensor(identity).cpu()
    query, gallery = (identity[:, 3] == ROLES.index(role) for role in ('query', 'gallery'))
    if not query.any() or not gallery.any(): return None
    return Sides(query, gallery, [np.asarray(identity[rows, column]) for column in (1, 2) for rows in (query, gallery)])


def rank_by_role(
    embeddings: Tensor,  # (n,d) features of queries and gallery together, in any order
    identity: Tensor,  # (n,4) integers: class, pid, camid, role (a `TensorIdentity`)
    **kwargs,  # Passed to `magnifier.retrieval.ranking.rank`
):  # Ranking, or None where there is no query or no gallery
    "Ranks the gallery for each query, both selected by their role"
    sides = by_role(identity)
    return None if sides is None else rank(embeddings[sides.query], embeddings[sides.gallery], *sides.ids, **kwargs)


def rank_embeddings(
    embeddings: Tensor,  # (n,d) features of queries and gallery together, in any order
    identity: Tensor,  # (n,4) integers: class, pid, camid, role
    again: dict | None,  # Arguments of `rerank` for a second ranking; None for none
    branches: dict[str, slice],  # Name -> columns of the embeddings to rank by alone; empty for none
    **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
) -> dict[str, Ranking]:  # 'plain', 're-ranked' if asked for, the branches; empty without queries or gallery
    "Ranks by cosine distance, re-ranks, and ranks by each branch alone"
    sides = by_role(identity)
    if sides is None: return {}
    queries, gallery = embeddings[sides.query], embeddings[sides.gallery]
    found = {'plain': rank(queries, gallery, *sides.ids, **kwargs)}
    if again is not None:
        found['re-ranked'] = evaluate_distances(rerank(queries, gallery, **again), *sides.ids, **kwargs)
    for name, at in branches.items(): found[name] = rank(queries[:, at], gallery[:, at], *sides.ids, **kwargs)
    return found


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
    refuse({NO_REGIONS: masks is None})
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
    refuse({NO_REGIONS: labels is None or (labels == NO_MASK).any()})
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
    wanted = region_indices(regions)
    refuse({
        NO_OWN_REGIONS: not own and not given_masks,
        'regions=[]: name one or more regions': not wanted,
    })
    share = Share(learn, learn.loader(images))
    embeddings = []
    areas = []
    identities = []
    with learn.evaluating() as (model, _):
        for x, targets in learn.batches_of(share.dl):
            maps = {name: o.float() for name, o in model.feature_maps(x).items()}
            labels = _given_labels(targets) if given_masks else maps['mask_logits'].argmax(1)
            masks = region_masks(maps) if own else labels_to_masks(labels, maps['global'].shape[-2:])
            embeddings.append(region_embeddings(model, maps, masks)[:, wanted].cpu())
            areas.append(_areas(labels)[:, wanted])
            if targets: identities.append(targets[-1].cpu())
    return Parts(
        share.whole(torch.cat(embeddings)),
        share.whole(torch.from_numpy(np.concatenate(areas))).numpy(),
        share.whole(torch.cat(identities)) if identities else None,
        None if regions is None else tuple(REGIONS[r] for r in wanted))


def _given_labels(targets):
    "The part masks of a batch"
    refuse({'given_masks=True: these images come without part masks. Pass a catalog with path, mask, pid, camid and '
            'split': len(targets) < 2})
    labels = targets[0]
    missing = int((labels == NO_MASK).flatten(1).any(1).sum())
    refuse({f'given_masks=True: {missing} of {len(labels)} images of a batch have no part mask. Give each one, or '
            'leave given_masks out': missing})
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


class _Embeddings:
    "Embeddings and identities of a validation pass, ranked once for all metrics"

    def __init__(self, **kwargs):
        self.kwargs = kwargs
        self.reset()

    def reset(self):
        self.parts = []
        self.ranking = None

    def accumulate(self, learn):
        keep = lambda x: to_detach(x, gather=False)
        self.n = learn.dl.n if hasattr(learn.dl, 'n_padded') else None
        self.parts.append((keep(learn.pred.embedding).float(), keep(learn.yb[-1])))

    def compute(self):
        if self.ranking is None and self.parts:
            embeddings, identity = (self._whole(torch.cat(parts)) for parts in zip(*self.parts))
            self.ranking = rank_by_role(embeddings, identity, **self.kwargs)
            self.parts = []
        return self.ranking

    def _whole(self, x):
        # fastai gives each rank a piece of the data in its order and fills the last one up. Joined and cut they are in
        # the order of a single process, so that ties are broken alike
        return x if self.n is None else gather_rows(x)[:self.n]

    def __getstate__(self):
        return {**self.__dict__, 'parts': [], 'ranking': None}  # an exported learner carries no gallery


class ReIDMetric(Metric):
    "One figure of a ranking; only the first of a group collects embeddings, so several metrics need one ranking"

    def __init__(
        self,
        source: _Embeddings,  # What gathers, shared by a group
        key: str,  # Column: 'mAP', 'mINP' or 'R' and a rank, as 'R1'
        lead: bool = True,  # Whether this one resets and gathers
    ):
        self.source = source
        self.key = key
        self.lead = lead

    def reset(self):
        "Forget the last pass"
        if self.lead: self.source.reset()

    def accumulate(self, learn):
        "Keep a batch's embeddings"
        if self.lead: self.source.accumulate(learn)

    @property
    def value(self):
        "The value in [0,1]; None if nothing was ranked (a prediction, a loader without queries)"
        ranking = self.source.compute()
        if ranking is None: return None
        return float(ranking.cmc(int(self.key[1:])) if self.key[1:].isdigit() else getattr(ranking, self.key))

    @property
    def name(self):
        "Column's name"
        return self.key


def reid_metrics(
    keys=('R1', 'mAP'),  # Columns: 'mAP', 'mINP', 'R1', 'R5', 'R10', or R and any rank
    **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
) -> list:  # One metric a key, sharing one ranking
    "Metrics for a Learner that SaveModelCallback and EarlyStoppingCallback can monitor by name"
    keys = [keys] if isinstance(keys, str) else list(keys)
    refuse({f'unknown metric {key!r}: use mAP, mINP, or R and a rank from 1, as R1':
            key not in ('mAP', 'mINP') and not (key[:1] == 'R' and key[1:].isdigit() and int(key[1:])) for key in keys})
    source = _Embeddings(**kwargs)
    return [ReIDMetric(source, key, lead=i == 0) for i, key in enumerate(keys)]


def R1(
    **kwargs,  # Passed to `rank`
) -> Metric:  # Share of queries whose first hit is right
    "Rank-1 as a metric of its own"
    return reid_metrics('R1', **kwargs)[0]


def mAP(
    **kwargs,  # Passed to `rank`
) -> Metric:  # Mean average precision
    "mAP as a metric of its own"
    return reid_metrics('mAP', **kwargs)[0]
