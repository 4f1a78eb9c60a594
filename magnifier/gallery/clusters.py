"Clusters of unlabelled images that may show the same person, as a starting point for labels"
import warnings
import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from magnifier.retrieval.distance import full_precision, normalise
from magnifier.retrieval.neighbours import FeaturePairs
from magnifier.retrieval.features import as_features, working_dtype
from magnifier.retrieval.rerank import check_settings, encode, jaccard_similarity

__all__ = ['identity_clusters']


def jaccard_neighbours(
    features,  # (n, d) features, array or tensor; compared by cosine
    k1: int = 10,  # Neighbours that must be mutual; at most a quarter of the pictures
    k2: int = 2,  # Neighbours whose encodings are averaged; more make people larger, and strangers join them
) -> csr_array:  # (n, n) 1 - Jaccard distance of the k-reciprocal encodings, stored where pictures share a neighbour
    """Overlap of two images' neighbourhoods (Zhong et al., CVPR 2017, without the original distance), for all pairs of
    one set"""
    check_settings(k1, k2, 0)
    k1 = min(k1, max(1, len(features)//4))  # or all of a few images would be each other's neighbours
    k2 = min(k2, max(1, len(features)//12))
    x = torch.as_tensor(normalise(as_features(features).cpu()))
    with full_precision(x.device):
        pairs = FeaturePairs(x[:1], x[1:], working_dtype(x))
        v = encode(pairs, pairs.nearest(max(k1 + 1, k2)), k1, k2)
    return jaccard_similarity(vstack([v, v], format='csr'), len(x))


def identity_clusters(
    features,  # (n, d) features, array or tensor; compared by cosine
    eps: float = .5,  # Largest Jaccard distance of neighbours, 0 to 1: lower splits people, higher merges them
    min_images: int = 2,  # A picture with fewer neighbours than this, itself included, starts no cluster
    k1: int = 10,  # Neighbours that must be mutual: fewer than a person has images, or strangers join
    k2: int = 2,  # Neighbours whose encodings are averaged; more make people larger, and strangers join them
) -> np.ndarray:  # (n,) cluster numbers from 0, the largest first; -1 for pictures in none
    """DBSCAN on k-reciprocal distances. They are proposals: people who look alike can share a cluster, and one person
    can have several. ValueError for invalid settings, ImportError without scikit-learn"""
    try: from sklearn.cluster import DBSCAN
    except ImportError as e:
        raise ImportError("clusters need scikit-learn: pip install 'magnifier-reid[gallery]'") from e
    if not 0 < eps < 1: raise ValueError(f'eps={eps}: a Jaccard distance above 0 and below 1 wanted')
    if min_images < 1: raise ValueError(f'min_images={min_images}: at least 1 wanted')
    if len(features) < 2: return np.full(len(features), -1) if min_images > 1 else np.zeros(len(features), int)
    near = jaccard_neighbours(features, k1, k2)
    near.data = np.clip(1 - near.data, 0, None)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Precomputed sparse input was not sorted')
        labels = DBSCAN(eps=eps, min_samples=min_images, metric='precomputed').fit(near).labels_
    return _by_size(labels)


def _by_size(labels):
    "Clusters renumbered by size, the largest first"
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    number = {old: new for new, old in enumerate(found[np.argsort(-counts, kind='stable')])}
    return np.array([number.get(label, -1) for label in labels], dtype=int)
