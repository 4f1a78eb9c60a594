"Search by region: the same shoes, whatever the coat"
import numpy as np
import torch
from magnifier.regions import N_REGIONS, REGIONS

__all__ = ['described', 'nearest_by_regions']


def described(
    embedder,  # Has `.embed_regions(images) -> ((n,k,c), (n,k) booleans)`, as a learner with a mask module
    images: list,  # n pictures
) -> tuple[np.ndarray, np.ndarray]:  # (n, k*c) float32, each visible region of length 1 and the others 0; (n,) bits of those visible
    "Regions of pictures as a gallery keeps them; a ValueError for an embedder that knows none"
    if not hasattr(embedder, 'embed_regions'):
        raise ValueError(f'this {type(embedder).__name__} knows no regions: use a learner that was built with mask=True, '
                         'or a gallery without regions=True')
    embeddings, visible = embedder.embed_regions(images)
    x, visible = torch.as_tensor(embeddings).detach().cpu().float().numpy(), np.asarray(visible, bool)
    norms = np.linalg.norm(x, axis=2, keepdims=True)
    if not np.isfinite(norms[visible]).all(): raise ValueError('the model gives region embeddings that are NaN or infinite')
    x = np.where(visible[..., None] & (norms > 0), x/np.where(norms > 0, norms, 1), 0)
    return x.reshape(len(x), -1).astype(np.float32), visible @ (1 << np.arange(N_REGIONS))


def nearest_by_regions(
    store,  # A MilvusStore with regions
    vector: np.ndarray,  # (k*c,) of the query
    visible: int,  # Its bits
    wanted: list,  # Indices of the regions to compare
    k: int,  # Hits at most
    filter: str = '',  # A Milvus expression
) -> list:  # Rows with 'similarity', and 'shared': the number of regions it is the mean of
    """Nearest rows by the mean cosine of the wanted regions that both pictures show, as `region_distance` has it; rows that share
    none are no hits. A ValueError where the query shows none of them"""
    shown = [r for r in wanted if visible >> r & 1]
    if not shown: raise ValueError(f'this picture shows no {" or ".join(REGIONS[r] for r in wanted)}: search by other regions')
    parts = np.zeros((N_REGIONS, len(vector)//N_REGIONS), np.float32)
    parts[shown] = vector.reshape(N_REGIONS, -1)[shown]
    mask, found = sum(1 << r for r in shown), []
    for shared in range(1, len(shown) + 1):  # an inner product is a sum: of rows that share equally many it orders the means too
        bits = [v for v in range(1 << N_REGIONS) if (v & mask).bit_count() == shared]
        where = f'visible in {bits}' + (f' and {filter}' if filter else '')
        rows = store.search(parts.ravel(), k, filter=where, field='regions')
        found += [{**row, 'similarity': row['similarity']/shared, 'shared': shared} for row in rows]
    return sorted(found, key=lambda row: -row['similarity'])[:k]
