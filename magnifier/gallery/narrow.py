"Narrower embeddings: the directions in which a gallery's pictures differ, and no others"
import numpy as np
from scipy.linalg import eigh
from magnifier.retrieval.inputs import as_features

__all__ = ['principal_axes', 'narrowed']


def principal_axes(
    features,  # (n, D) unit rows, n at least `width`; array or tensor
    width: int,  # Directions to keep
) -> np.ndarray:  # (width, D) float32, orthonormal, the most telling first
    """Principal axes about zero, not about the mean: those that keep most of the inner products, which are the similarities.
    ValueError for fewer images than axes"""
    x = as_features(features).double().cpu().numpy()
    n, d = x.shape
    if not 1 <= width <= min(n, d): raise ValueError(f'width={width}: from {n} images of {d} dimensions 1 to {min(n, d)} axes can be learned')
    if n >= d: return np.ascontiguousarray(eigh(x.T @ x, subset_by_index=(d - width, d - 1))[1].T[::-1], dtype=np.float32)
    power, left = eigh(x @ x.T, subset_by_index=(n - width, n - 1))
    if power[0] <= 1e-10*power[-1]: raise ValueError(f'width={width}: these {n} images differ in fewer directions than that')
    return np.ascontiguousarray((left/np.sqrt(power)).T[::-1] @ x, dtype=np.float32)


def narrowed(
    features: np.ndarray,  # (n, D) unit rows
    axes: np.ndarray,  # (d, D) of `principal_axes`
) -> np.ndarray:  # (n, d) unit rows
    "Embeddings along the axes, of length 1 again; a ValueError for one that has nothing along them"
    x = features @ axes.T
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (norms > 1e-6).all(): raise ValueError('an embedding has nothing in common with the images that the axes were learned from')
    return x/norms
