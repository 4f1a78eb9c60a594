"Lengths of features, whatever their size, and features of length 1: in blocks, summed in float64"
import numpy as np
import torch
from torch import Tensor

__all__ = []

ROW_BLOCK = 4096  # Rows converted and checked at once


def working_dtype(
    *feats: Tensor,  # Features that will meet in a product
) -> torch.dtype:  # float64 if one of them is, float32 otherwise
    "What to compute in: half precision is only a way of storing"
    return torch.float64 if any(f.dtype == torch.float64 for f in feats) else torch.float32


def squared_sums(
    feats: Tensor,  # (n, d) features
) -> Tensor:  # (n,) float64
    "Squared Euclidean norms, summed in float64 in one pass over the features"
    if feats.device.type != 'cpu': return torch.cat([f.double().square().sum(1) for f in feats.split(ROW_BLOCK)])
    blocks = [f.to(working_dtype(f)).numpy() for f in feats.split(ROW_BLOCK)]
    with np.errstate(over='ignore', invalid='ignore'):
        return torch.from_numpy(np.concatenate([np.einsum('nd,nd->n', f, f, dtype=np.float64) for f in blocks]))


def any_norms(
    feats: Tensor,  # (n, d) features
) -> Tensor:  # (n,) Euclidean norms, float64; NaN or infinite where a row is
    "Norms of rows of any size"
    norms = squared_sums(feats).sqrt_()
    if feats.dtype != torch.float64: return norms  # squares of anything shorter are numbers in float64
    far = (~((norms > 1e-150) & (norms < 1e150))).nonzero()[:, 0]  # zero, NaN, or of squares that float64 cannot hold
    largest = feats[far].double().abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    norms[far] = largest * (feats[far].double() / largest[:, None]).norm(dim=1)
    return norms


def row_norms(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
) -> Tensor:  # (n,) Euclidean norms, float64
    "Norms of the rows; a ValueError that names the first NaN or infinite row"
    norms = any_norms(feats)
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f'{name}: {len(bad)} of {len(feats)} rows hold NaN or infinite values, the first is row {int(bad[0])}. '
                         'Drop them, or look at what made them')
    return norms


def direction_norms(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
) -> Tensor:  # (n,) Euclidean norms above 0, float64
    "Norms of rows that have a direction; a ValueError that names the first zero, NaN or infinite row"
    norms = row_norms(feats, name)
    zero = (norms == 0).nonzero()
    if len(zero):
        raise ValueError(f"{name}: {len(zero)} of {len(feats)} rows are zero, the first is row {int(zero[0])}. Zero has no direction: "
                         "drop them, or use metric='euclidean'")
    return norms


def handy(norms: Tensor) -> bool: return bool(norms.min() > 1e-18 and norms.max() < 1e18)  # squares and inverses are numbers in float32 too


def unit_rows(
    feats: Tensor,  # (n, d) features
    norms: Tensor,  # (n,) their norms
    dtype: torch.dtype,  # Of the result
) -> Tensor:  # (n, d) new tensor, rows of length 1
    "L2-normalised copy, block by block"
    unit = torch.empty(feats.shape, dtype=dtype, device=feats.device)
    if handy(norms): norms = norms.to(dtype)  # a division by float64 is a slow one
    for rows in row_slices(len(feats), ROW_BLOCK): torch.div(feats[rows], norms[rows, None], out=unit[rows])
    return unit


def unit(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
    dtype: torch.dtype | None = None,  # Of the result; float32 or float64 by default
) -> Tensor:  # (n, d) rows of length 1
    "L2-normalised copy; a ValueError for rows without a direction"
    return unit_rows(feats, direction_norms(feats, name), dtype or working_dtype(feats))


def row_slices(
    n: int,  # Number of rows
    size: int,  # Rows a slice
) -> list[slice]:  # Slices that cover 0..n in order
    "Consecutive slices of at most `size` rows"
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
