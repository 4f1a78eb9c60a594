"Features and ids as a caller gives them, checked; their lengths, rows of length 1, and which rows are copies"

import hashlib
import warnings

import numpy as np
import torch
from torch import Tensor

from magnifier.checks import refuse

__all__ = ['as_tensor', 'as_ids', 'check_pair', 'working_dtype', 'unit', 'copies']

FEATURES = ('images', 'dimensions')  # The axes of features
DISTANCES = ('queries', 'gallery')  # The axes of a matrix of distances
WITHOUT_FLOAT64 = ('mps',)  # Devices that cannot sum in float64: Apple's GPUs
NUMBER_THEM = 'For names, number queries and gallery together: `pd.factorize(names)[0]`'
ROW_BLOCK = 4096  # Rows converted and checked at once
LARGEST = {torch.float32: 1e18, torch.float64: 1e150}  # Lengths up to this, and down to its inverse, can be squared


def as_tensor(
    x,  # Array, tensor or nested list of real numbers
    name: str,  # What to call it in an error
    axes: tuple[str, ...] | None = None,  # What its axes are, none of length 0; None for any shape
) -> Tensor:  # Detached, on its own device (the CPU if that has no float64), sharing memory wherever that is possible
    "`x` as a floating-point tensor; a TypeError if it does not hold real numbers, a ValueError for another shape"
    if isinstance(x, Tensor): real = not x.is_complex() and x.dtype != torch.bool
    else:
        x = np.asarray(x)
        real = x.dtype.kind in 'fiu'
    if not real: raise TypeError(f'{name}: real numbers wanted, got dtype {x.dtype}. Pass a float array or tensor')
    x = x.detach().as_subclass(Tensor) if isinstance(x, Tensor) else _from_array(x)
    if axes is not None:
        hint = f'. Use {name}[None] for a single one' if x.ndim == len(axes) - 1 else ''
        refuse({f'{name}: shape ({", ".join(axes)}) wanted, none of them 0, got {tuple(x.shape)}{hint}':
                x.ndim != len(axes) or 0 in x.shape})
    if x.device.type in WITHOUT_FLOAT64: x = x.cpu()
    return x if x.is_floating_point() else x.double()


def _from_array(x):
    # The same memory wherever torch can read it, float64 where torch has no such type
    wanted = x.dtype.newbyteorder('=') if x.dtype in (np.float16, np.float32) else np.dtype(np.float64)
    if x.dtype != wanted or any(s < 0 for s in x.strides): x = x.astype(wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The given NumPy array is not writ', UserWarning)
        return torch.from_numpy(x)


def check_pair(
    query_feats,  # (q, d) features
    gallery_feats,  # (g, d) features
) -> tuple[Tensor, Tensor]:  # Both as tensors
    "Query and gallery features as tensors; a ValueError if their dimensions or devices differ"
    q = as_tensor(query_feats, 'query_feats', FEATURES)
    g = as_tensor(gallery_feats, 'gallery_feats', FEATURES)
    refuse({
        f'query_feats have {q.shape[1]} dimensions and gallery_feats {g.shape[1]}: both must come from the same model':
            q.shape[1] != g.shape[1],
        f'query_feats are on {q.device} and gallery_feats on {g.device}: move one with `.to()`': q.device != g.device,
    })
    return q, g


def as_ids(
    x,  # (n,) integer ids: array, tensor, Series or list
    n: int,  # How many there must be
    name: str,  # What to call them in an error
) -> np.ndarray:  # (n,) int64, read-only, not the caller's memory
    """Identities or cameras as int64; a TypeError if they are not integers, a ValueError for a wrong number of them or
    too large ones"""
    x = np.array(x.detach().cpu().numpy() if isinstance(x, Tensor) else x)
    refuse({
        f'{name}: one id per image wanted, shape ({n},), got shape {x.shape}': x.ndim != 1,
        f'{name}: {x.size} ids for {n} images. One id per row of features, or per side of the matrix, is needed':
            x.size != n,
    })
    if x.dtype.kind not in 'iu':
        raise TypeError(f'{name}: integers below 2**63 wanted, got dtype {x.dtype}. {NUMBER_THEM}')
    if x.dtype.kind == 'u' and n and x.max() > np.iinfo(np.int64).max:
        raise ValueError(f'{name}: integers below 2**63 wanted, got {x.max()}. {NUMBER_THEM}')
    x = x.astype(np.int64)
    x.setflags(write=False)
    return x


def working_dtype(
    *feats: Tensor,  # Features that will meet in a product
) -> torch.dtype:  # float64 if one of them is, float32 otherwise
    "The dtype for computations: at least float32, since half precision is for storage only"
    return torch.float64 if any(f.dtype == torch.float64 for f in feats) else torch.float32


def row_slices(n: int, size: int) -> list[slice]:
    "Consecutive slices of at most `size` of n rows"
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def squared_sums(feats: Tensor) -> Tensor:
    "Squared Euclidean norms (n,) of (n, d) features, summed in float64 in one pass"
    if feats.device.type != 'cpu': return torch.cat([f.double().square().sum(1) for f in feats.split(ROW_BLOCK)])
    blocks = [f.to(working_dtype(f)).numpy() for f in feats.split(ROW_BLOCK)]
    with np.errstate(over='ignore', invalid='ignore'):
        return torch.from_numpy(np.concatenate([np.einsum('nd,nd->n', f, f, dtype=np.float64) for f in blocks]))


def row_norms(feats: Tensor) -> Tensor:
    "Euclidean norms (n,) in float64 of (n, d) features of any size; NaN or infinite where a row is"
    norms = squared_sums(feats).sqrt_()
    if feats.dtype != torch.float64: return norms  # squares of anything shorter are numbers of float64
    inaccurate = ~((norms > 1e-150) & (norms < 1e150))
    far = inaccurate.nonzero()[:, 0]
    largest = feats[far].double().abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    norms[far] = largest * (feats[far].double() / largest[:, None]).norm(dim=1)
    return norms


def checked_norms(
    feats: Tensor,  # (n, d) features
    name: str,  # What to call them in an error
    *,
    above_zero: bool = False,  # Refuse rows of length 0, which have no direction
) -> Tensor:  # (n,) Euclidean norms, float64
    "Norms of the rows; a ValueError names the first row that is NaN, infinite or, if refused, zero"
    norms = row_norms(feats)
    _refuse_rows(~norms.isfinite(), name, 'hold NaN or infinite values', 'Drop them, or check the model that gave them')
    if above_zero:
        _refuse_rows(norms == 0, name, 'are zero', "Zero has no direction: drop them, or use metric='euclidean'")
    return norms


def _refuse_rows(bad, name, fault, advice):
    rows = bad.nonzero()
    if len(rows):
        raise ValueError(f'{name}: {len(rows)} of {len(bad)} rows {fault}, the first is row {int(rows[0])}. {advice}')


def can_be_squared(norms: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    "Whether the squares and inverses of all norms above 0 are representable in a dtype, neither 0 nor infinite"
    norms = norms[norms > 0]
    return not len(norms) or bool(norms.min() > 1 / LARGEST[dtype] and norms.max() < LARGEST[dtype])


def divided(feats: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
    "(n, d) features divided by their norms (n,), all above 0, block by block into a new tensor of `dtype`"
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
    return divided(feats, checked_norms(feats, name, above_zero=True), dtype or working_dtype(feats))


SEEN_FIRST = 8  # Columns of each part that are compared before whole rows are
BLOCK = 1024  # Whole rows compared together


def copies(
    *parts: Tensor,  # (n, d_i) each; rows are copies where they agree in all parts
) -> tuple[np.ndarray, np.ndarray]:  # (m,) rows that repeat an earlier one, and (m,) the first of their kind
    """A matrix product sums in an order that depends on the row's position, so distances of copies may differ by
    rounding. A few columns exclude most rows; the rest are compared by their bytes"""
    few = _row_bytes([p[:, ::-(-p.shape[1] // SEEN_FIRST)] for p in parts])
    _, kind, count = np.unique(few.view(f'V{few.shape[1]}').ravel(), return_inverse=True, return_counts=True)
    seen = {}
    later = []
    first = []
    for rows in torch.from_numpy(np.flatnonzero(count[kind] > 1)).split(BLOCK):
        for row, content in zip(rows.tolist(), _row_bytes([p[rows.to(p.device)] for p in parts])):
            original = seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), row)
            if original == row: continue
            later.append(row)
            first.append(original)
    return np.array(later, dtype=np.int64), np.array(first, dtype=np.int64)


def _row_bytes(parts):
    # (n, bytes of a row) of parts of (n, d_i) each
    return torch.cat([p.contiguous().view(torch.uint8) for p in parts], 1).cpu().numpy()
