"Query expansion and camera centring: features changed before they are compared"

import numpy as np
import torch
from torch import Tensor

from magnifier.checks import as_count
from magnifier.retrieval.distance import FeatureDistances, full_precision, like
from magnifier.retrieval.features import FEATURES, as_ids, as_tensor, check_pair, unit, working_dtype

__all__ = ['average_query_expansion', 'alpha_query_expansion', 'camera_centre']


def expand(
    query_feats,  # (q, d) features
    gallery_feats,  # (g, d) features
    k: int,  # Gallery images that join each query; all of them where there are fewer
    weigh,  # From (b, k) cosine similarities to (b, k) weights; the query's own weight is 1
) -> Tensor:  # (q, d) rows of length 1
    "Each query plus its weighted nearest gallery images, normalised"
    k = as_count(k, 'k')
    q, g = check_pair(query_feats, gallery_feats)
    dtype = working_dtype(q, g)
    result = []
    for rows, band in FeatureDistances(q, g, 'cosine', dtype).bands():
        dist, index = band.topk(min(k, band.shape[1]), dim=1, largest=False)
        with full_precision(q.device):
            query = unit(q[rows], 'query_feats', dtype)
            near = unit(g[index.flatten()], 'gallery_feats', dtype).view(*index.shape, -1)  # (b, k, d)
            added = torch.einsum('bk,bkd->bd', weigh(1 - dist), near)
            result.append(unit(query + added, 'expanded queries', dtype))
    return like(torch.cat(result), query_feats, gallery_feats)


def average_query_expansion(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
    k: int = 10,  # Gallery images that join each query; all of them where there are fewer
):  # (q, d) new query features, L2-normalised, float32 (float64 if given), array or tensor as given
    """Average query expansion (Chum et al., ICCV 2007): the mean of a query and its first k gallery images takes its
    place. It uses the gallery: report it beside the plain figures. ValueError for zero, NaN or infinite features"""
    return expand(query_feats, gallery_feats, k, torch.ones_like)


def alpha_query_expansion(
    query_feats,  # (q, d) features, array or tensor on any device
    gallery_feats,  # (g, d) features of the same model, on the same device
    k: int = 10,  # Gallery images that join each query; all of them where there are fewer
    *,
    alpha: float = 3.,  # Power of the cosine similarity that weighs each, 0 or more; 0 averages, 3 is the paper's
):  # (q, d) new query features, L2-normalised, float32 (float64 if given), array or tensor as given
    """Alpha query expansion (Radenovic et al., TPAMI 2018): as `average_query_expansion`, each image weighted by
    similarity ** alpha, and not at all where the similarity is negative"""
    if alpha < 0: raise ValueError(f'alpha={alpha}: a power of 0 or more wanted; the paper uses 3')
    return expand(query_feats, gallery_feats, k, lambda similarity: similarity.clamp(min=0) ** alpha)


def camera_centre(
    feats,  # (n, d) features, array or tensor on any device
    camids,  # (n,) the camera of each, integers
    *,
    reference=None,  # (m, d) features whose means are subtracted, say the gallery's; None for `feats` itself
    reference_camids=None,  # (m,) their cameras
):  # (n, d) centred features, not normalised, float32 (float64 if given), array or tensor as given
    """Subtracts each camera's mean, which removes the effect of its light and background on every image. Normalise the
    features before; `rank` normalises them again. A ValueError names cameras that the reference does not have"""
    if (reference is None) != (reference_camids is None):
        raise ValueError('camera_centre: give `reference` and `reference_camids` together, or neither')
    x = as_tensor(feats, 'features', FEATURES)
    cams = as_ids(camids, len(x), 'camids')
    if reference is None: ref, ref_cams = x, cams
    else:
        _, ref = check_pair(feats, reference)
        ref_cams = as_ids(reference_camids, len(ref), 'reference_camids')
    missing = sorted(set(cams.tolist()) - set(ref_cams.tolist()))
    if missing:
        raise ValueError(f'camera_centre: the reference has no images of camera {", ".join(map(str, missing))}, '
                         f'only of {", ".join(map(str, np.unique(ref_cams)))}')
    dtype = working_dtype(x, ref)
    centred = x.to(dtype, copy=True)
    for cam in np.unique(cams):
        mean = ref[torch.from_numpy(ref_cams == cam).to(ref.device)].to(torch.float64).mean(0)
        if not mean.isfinite().all():
            raise ValueError(f'camera_centre: features of camera {cam} hold NaN or infinite values. Drop them first')
        centred[torch.from_numpy(cams == cam).to(x.device)] -= mean.to(dtype)
    return like(centred, feats, reference)
