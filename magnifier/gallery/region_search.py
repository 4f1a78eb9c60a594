"Search by some regions only, for example by the shoes"

from dataclasses import replace

import numpy as np

from magnifier.gallery.entries import as_array
from magnifier.gallery.store import EVERYTHING, Store, Where, joined
from magnifier.regions import N_REGIONS, REGIONS

__all__ = ['described', 'nearest_by_regions']


def described(
    embedder,  # Has `.embed_regions(images) -> ((n,k,c), (n,k) booleans)`, as a learner with a mask module
    images: list,  # n images
) -> tuple[np.ndarray, np.ndarray]:  # (n, k*c) float32, visible regions of length 1 and the others 0; (n,) visible bits
    "Region embeddings as a gallery keeps them; a ValueError for an embedder without regions"
    if not hasattr(embedder, 'embed_regions'):
        raise ValueError(f'this {type(embedder).__name__} has no regions: '
                         'use a learner that was built with mask=True, or a gallery without regions=True')
    embeddings, visible = embedder.embed_regions(images)
    x, visible = as_array(embeddings), as_array(visible) > 0
    norms = np.linalg.norm(x, axis=2, keepdims=True)
    if not np.isfinite(norms[visible]).all():
        raise ValueError('the model gives region embeddings that are NaN or infinite')
    x = np.where(visible[..., None] & (norms > 0), x / np.where(norms > 0, norms, 1), 0)
    return x.reshape(len(x), -1).astype(np.float32), visible @ (1 << np.arange(N_REGIONS))


def nearest_by_regions(
    store: Store,  # With regions
    vector: np.ndarray,  # (k*c,) of the query
    visible: int,  # Its bits
    wanted: list,  # Indices of the regions to compare
    k: int,  # Hits at most
    where: Where = EVERYTHING,  # Which rows
) -> dict:  # Columns with 'similarity', and 'shared': the number of regions it is the mean of
    """Nearest rows by the mean cosine of the given regions that both images show, as in `region_distance`; rows that
    share none are not hits. A ValueError if the query shows none of them"""
    shown = [r for r in wanted if visible >> r & 1]
    if not shown:
        raise ValueError(f'this image shows no {" or ".join(REGIONS[r] for r in wanted)}: search by other regions')
    query = np.zeros((N_REGIONS, len(vector) // N_REGIONS), np.float32)
    query[shown] = vector.reshape(N_REGIONS, -1)[shown]
    mask = sum(1 << r for r in shown)
    parts = []
    # An inner product is a sum: among rows that share equally many regions it orders the means too
    for shared in range(1, len(shown) + 1):
        rows = store.search(query.ravel(), k, replace(where, visible=_sharing(mask, shared)), field='regions')
        rows['similarity'] = [s / shared for s in rows['similarity']]
        parts.append({**rows, 'shared': [shared]*len(rows['similarity'])})
    found = joined(parts, parts[0])
    best = np.argsort(-np.array(found['similarity']), kind='stable')[:k]
    return {name: [values[i] for i in best] for name, values in found.items()}


def _sharing(mask, n) -> tuple:
    "All visible bits that have n regions in common with a mask"
    return tuple(bits for bits in range(1 << N_REGIONS) if (bits & mask).bit_count() == n)
