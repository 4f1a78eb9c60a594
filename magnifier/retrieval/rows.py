"Rows of features: their lengths, rows of length 1, and rows that hold the same bytes"

import hashlib

import numpy as np
import torch
from torch import Tensor

__all__ = ['working_dtype', 'unit', 'copies']

ROW_BLOCK = 4096  # Rows converted and checked at once
LARGEST = {torch.float32: 1e18, torch.float64: 1e150}  # Lengths up to this, and down to its inverse, can be squared


def working_dtype(
    *feats: Tensor,  # Features that will meet in a product
) -> torch.dtype:  # float64 if one of them is, float32 otherwise
    "The dtype for computations: at least float32, since half precision is for storage only"
    return torch.float64 if any(f.dtype == torch.float64 for f in feats) else torch.float32


def row_slices(
    n: int,  # Number of rows
    size: int,  # Rows a slice
) -> list[slice]:  # Slices that cover 0..n in order
    "Consecutive slices of at most `size` rows"
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def squared_sums(
    feats: Tensor,  # (n, d) features
) -> Tensor:  # (n,) float64
    "Squared Euclidean norms, summed in float64 in one pass over the features"
    if feats.device.type != 'cpu': return torch.cat([f.double().square().sum(1) for f in feats.split(ROW_BLOCK)])
    blocks = [f.to(working_dtype(f)).numpy() for f in feats.split(ROW_BLOCK)]
    with np.errstate(over='ignore', invalid='ignore'):
        return torch.from_numpy(np.concatenate([np.einsum('nd,nd->n', f, f, dtype=np.float64) for f in blocks]))


def row_norms(
    feats: Tensor,  # (n, d) features
) -> Tensor:  # (n,) Euclidean norms, float64; NaN or infinite where a row is
    "Norms of rows of any size"
    norms = squared_sums(feats).sqrt_()
    if feats.dtype != torch.float64: return norms  # squares of anything shorter are numbers of float64
    squared_badly = ~((norms > 1e-150) & (norms < 1e150))
    far = squared_badly.nonzero()[:, 0]
    largest = feats[far].double().abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    norms[far] = largest * (feats[far].double() / largest[:, None]).norm(dim=1)
    return norms


def finite_norms(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
) -> Tensor:  # (n,) Euclidean norms, float64
    "Norms of the rows; a ValueError that names the first NaN or infinite row"
    norms = row_norms(feats)
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f'{name}: {len(bad)} of {len(feats)} rows hold NaN or infinite values, the first is row '
                         f'{int(bad[0])}. Drop them, or check the model that gave them')
    return norms


def positive_norms(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
) -> Tensor:  # (n,) Euclidean norms above 0, float64
    "Norms of non-zero rows; a ValueError names the first zero, NaN or infinite row"
    norms = finite_norms(feats, name)
    zero = (norms == 0).nonzero()
    if len(zero):
        raise ValueError(f'{name}: {len(zero)} of {len(feats)} rows are zero, the first is row {int(zero[0])}. '
                         "Zero has no direction: drop them, or use metric='euclidean'")
    return norms


def can_be_squared(
    norms: Tensor,  # (n,) norms
    dtype: torch.dtype = torch.float32,  # float32 or float64
) -> bool:
    "Whether the squares and inverses of all norms above 0 are representable in a dtype, neither 0 nor infinite"
    norms = norms[norms > 0]
    return not len(norms) or bool(norms.min() > 1 / LARGEST[dtype] and norms.max() < LARGEST[dtype])


def divided(
    feats: Tensor,  # (n, d) features
    norms: Tensor,  # (n,) their norms, above 0
    dtype: torch.dtype,  # Of the result
) -> Tensor:  # (n, d) new tensor, rows of length 1
    "Features divided by their norms, block by block"
    result = torch.empty(feats.shape, dtype=dtype, device=feats.device)
    if can_be_squared(norms): norms = norms.to(dtype)  # a division by float64 is a slow one
    for rows in row_slices(len(feats), ROW_BLOCK): torch.div(feats[rows], norms[rows, None], out=result[rows])
    return result


def unit(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
    dtype: torch.dtype | None = None,  # Of the result; float32 or float64 by default
) -> Tensor:  # (n, d) rows of length 1
    "L2-normalised copy; a ValueError for zero, NaN or infinite rows"
    return divided(feats, positive_norms(feats, name), dtype or working_dtype(feats))


SEEN_FIRST = 8  # Columns of each part that are compared before whole rows are
BLOCK = 1024    # Whole rows looked at together


def copies(
    *parts: Tensor,  # (n, d_i) each; rows are copies where they agree in all parts
) -> tuple[np.ndarray, np.ndarray]:  # (m,) rows that repeat an earlier one, and (m,) the first of their kind
    """A matrix product sums in an order that depends on the row's position, so distances of copies may differ by
    rounding. A few columns exclude most rows; the rest are compared by their bytes"""
    few = row_bytes([p[:, ::-(-p.shape[1] // SEEN_FIRST)] for p in parts])
    _, kind, count = np.unique(few.view(f'V{few.shape[1]}').ravel(), return_inverse=True, return_counts=True)
    seen, later, first = {}, [], []
    for rows in torch.from_numpy(np.flatnonzero(count[kind] > 1)).split(BLOCK):
        for row, content in zip(rows.tolist(), row_bytes([p[rows.to(p.device)] for p in parts])):
            original = seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), row)
            if original == row: continue
            later.append(row)
            first.append(original)
    return np.array(later, dtype=np.int64), np.array(first, dtype=np.int64)


def row_bytes(
    parts: list[Tensor],  # (n, d_i) each
) -> np.ndarray:  # (n, bytes of a row)
    "The bytes of rows, block by block"
    return torch.cat([p.contiguous().view(torch.uint8) for p in parts], 1).cpu().numpy()
