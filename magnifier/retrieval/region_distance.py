"Distances between images by the regions that both show"

import numpy as np
import torch
from torch import Tensor

from magnifier.checks import refuse
from magnifier.regions import region_indices
from magnifier.retrieval.distance import band_slices, full_precision, like
from magnifier.retrieval.features import as_tensor, can_be_squared, copies, row_norms, working_dtype

__all__ = ['region_distance']

REGION_FEATURES = ('images', 'regions', 'channels')  # The axes of features by region
NOTHING_SHARED = 2.  # The largest cosine distance: what cannot be compared at all comes after everything that can


def region_distance(
    query_regions,  # (q, k, c) features of each region of the queries, array or tensor on any device
    gallery_regions,  # (g, k, c) the same of the gallery, on the same device
    query_visible,  # (q, k) booleans: which regions their masks show, None for all; hidden ones may hold anything
    gallery_visible,  # (g, k) booleans of the gallery, or None
    *,
    regions=None,  # Compare these alone: names or indices, one or several; all k by default
):  # (q, g) distances 0 to 2, float32 (float64 if given), array or tensor as given
    """Mean over the regions visible in BOTH images of their cosine distances; 2 if they share none, so that such pairs
    come last. A visible region with a zero feature has distance 1 to every other. `evaluate_distances` takes the
    result; TypeError or ValueError for shapes that do not fit"""
    q = as_tensor(query_regions, 'query_regions', REGION_FEATURES)
    g = as_tensor(gallery_regions, 'gallery_regions', REGION_FEATURES)
    wanted = region_indices(regions, q.shape[1])
    refuse({
        f'query_regions have (regions, channels) {tuple(q.shape[1:])} and gallery_regions {tuple(g.shape[1:])}: '
        'both must come from the same model': q.shape[1:] != g.shape[1:],
        f'query_regions are on {q.device} and gallery_regions on {g.device}: move one with `.to()`':
            q.device != g.device,
        'regions is empty: name one or more, or leave `regions` out to compare all': not wanted,
    })
    q_seen = as_visible(query_visible, q, 'query_visible')
    g_seen = as_visible(gallery_visible, g, 'gallery_visible')
    dtype = working_dtype(q, g)
    q, q_seen = unit_regions(q[:, wanted].to(dtype), q_seen[:, wanted], 'query_regions')
    g, g_seen = unit_regions(g[:, wanted].to(dtype), g_seen[:, wanted], 'gallery_regions')
    dist = torch.empty(len(q), len(g), dtype=dtype, device=q.device)
    with full_precision(q.device):
        for rows in band_slices(len(q), len(g), dist.element_size()):
            shared = q_seen[rows] @ g_seen.T  # (b, g) how many regions both show
            similarity = (q[rows] @ g.T).div_(shared.clamp(min=1))
            dist[rows] = (1 - similarity).masked_fill_(shared == 0, NOTHING_SHARED)
    later, first = copies(g, g_seen)
    dist[:, later] = dist[:, first]
    later, first = copies(q, q_seen)
    dist[later] = dist[first]
    return like(dist, query_regions, gallery_regions)


def as_visible(
    visible,  # (n, k) booleans, or numbers 0 and 1; None for all
    feats: Tensor,  # (n, k, c) the features they belong to
    name: str,  # What to call them in an error
) -> Tensor:  # (n, k) booleans on the features' device
    "Visibility as booleans; a ValueError for another shape or other values"
    if visible is None: return torch.ones(feats.shape[:2], dtype=torch.bool, device=feats.device)
    v = visible if isinstance(visible, Tensor) else torch.from_numpy(np.array(visible))
    refuse({
        f'{name}: shape {tuple(feats.shape[:2])} (images, regions) wanted, got {tuple(v.shape)}':
            v.shape != feats.shape[:2],
        f'{name}: booleans wanted, or 0 and 1; got {v.dtype} with other values. Compare shares of visible pixels with '
        'a threshold first': not ((v == 0) | (v == 1)).all(),
    })
    return v.bool().to(feats.device)


def unit_regions(
    feats: Tensor,  # (n, k, c) features
    visible: Tensor,  # (n, k) booleans
    name: str,  # What to call them in an error
) -> tuple[Tensor, Tensor]:  # (n, k*c) visible regions of length 1 and hidden ones 0, and (n, k) visibility as numbers
    "Regions laid side by side, so that one product sums the cosines of those that both images show"
    n, k, c = feats.shape
    feats = feats.masked_fill(~visible[..., None], 0)
    norms = row_norms(feats.reshape(n * k, c)).view(n, k)
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        image, region = bad[0].tolist()
        raise ValueError(f'{name}: region {region} of image {image} is visible and holds NaN or infinite values')
    norms = norms.masked_fill_(norms == 0, 1)
    if can_be_squared(norms): norms = norms.to(feats.dtype)  # a division by float64 is a slow one
    return feats.div_(norms[..., None]).reshape(n, k * c), visible.to(feats.dtype)
