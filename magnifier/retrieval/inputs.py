"Checks and conversion of a caller's features, distances, ids and numbers"

import operator
import warnings
import numpy as np
import torch
from torch import Tensor

__all__ = ['as_tensor', 'as_features', 'as_matrix', 'as_ids', 'as_count', 'check_pair', 'choose']

WITHOUT_FLOAT64 = ('mps',)  # Devices that cannot sum in float64: Apple's GPUs
NUMBER_THEM = 'For names, number queries and gallery together: `pd.factorize(names)[0]`'


def choose(
    value: str,  # What the caller gave
    allowed,  # What there is
    name: str,  # The argument's name
):
    "Checks that `value` is one of the choices; a ValueError lists them"
    if value not in allowed: raise ValueError(f'{name}={value!r}: use one of {", ".join(allowed)}')


def as_count(
    value,  # What the caller gave: an integer of any kind
    name: str,  # The argument's name
    hint: str = '',  # What else to say in an error
) -> int:  # 1 or more
    "A count; a ValueError if it is not an integer or less than 1"
    try: count = operator.index(value)
    except TypeError: count = 0
    if count < 1: raise ValueError(f'{name}={value!r}: a whole number of 1 or more wanted{hint}')
    return count


def as_tensor(
    x,  # Array, tensor or nested list of real numbers
    name: str,  # What to call it in an error
) -> Tensor:  # Detached, on its own device (the CPU if that has no float64), sharing memory wherever that is possible
    "`x` as a floating-point tensor; a TypeError if it does not hold real numbers"
    if isinstance(x, Tensor): real = not x.is_complex() and x.dtype != torch.bool
    else:
        x = np.asarray(x)
        real = x.dtype.kind in 'fiu'
    if not real: raise TypeError(f'{name}: real numbers wanted, got dtype {x.dtype}. Pass a float array or tensor')
    x = x.detach().as_subclass(Tensor) if isinstance(x, Tensor) else from_array(x)
    if x.device.type in WITHOUT_FLOAT64: x = x.cpu()
    return x if x.is_floating_point() else x.double()


def from_array(
    x: np.ndarray,  # Real numbers
) -> Tensor:  # The same memory wherever torch can read it; float64 where it has no such type
    "An array as a tensor that is only read"
    wanted = x.dtype.newbyteorder('=') if x.dtype in (np.float16, np.float32) else np.dtype(np.float64)
    if x.dtype != wanted or any(s < 0 for s in x.strides): x = x.astype(wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The given NumPy array is not writ', UserWarning)
        return torch.from_numpy(x)


def as_features(
    x,  # (n, d) features
    name: str = 'features',  # What to call them in an error
) -> Tensor:  # (n, d) floating point, on their own device
    "Features as a tensor; an error if they are not a matrix of real numbers, or have no rows or columns"
    x = as_tensor(x, name)
    if x.ndim != 2:
        raise ValueError(f'{name}: a matrix (images, dimensions) wanted, got shape {tuple(x.shape)}. '
                         'Use `feats[None]` for a single image')
    if 0 in x.shape:
        raise ValueError(f'{name}: empty, shape {tuple(x.shape)}. At least one image and one dimension are needed')
    return x


def as_matrix(
    x,  # (q, g) distances
    name: str = 'dist',  # What to call them in an error
) -> Tensor:  # (q, g) floating point, on their own device
    "Distances as a tensor; an error if they are not a matrix of real numbers, or one side is empty"
    x = as_tensor(x, name)
    if x.ndim != 2: raise ValueError(f'{name}: a matrix (queries, gallery) wanted, got shape {tuple(x.shape)}')
    if 0 in x.shape:
        raise ValueError(f'{name}: empty query or gallery, shape {tuple(x.shape)}. Both need at least one image')
    return x


def as_ids(
    x,  # (n,) integer ids: array, tensor, Series or list
    n: int,  # How many there must be
    name: str,  # What to call them in an error
) -> np.ndarray:  # (n,) int64, read-only, not the caller's memory
    """Identities or cameras as int64; a TypeError if they are not integers, a ValueError for a wrong number of them or
    too large ones"""
    x = np.array(x.detach().cpu().numpy() if isinstance(x, Tensor) else x)
    if x.ndim != 1: raise ValueError(f'{name}: one id per image wanted, shape ({n},), got shape {x.shape}')
    if len(x) != n:
        raise ValueError(f'{name}: {len(x)} ids for {n} images. One id per row of features, or per side of the matrix, '
                         'is needed')
    if x.dtype.kind not in 'iu':
        raise TypeError(f'{name}: integers below 2**63 wanted, got dtype {x.dtype}. {NUMBER_THEM}')
    if x.dtype.kind == 'u' and n and x.max() > np.iinfo(np.int64).max:
        raise ValueError(f'{name}: integers below 2**63 wanted, got {x.max()}. {NUMBER_THEM}')
    x = x.astype(np.int64)
    x.setflags(write=False)
    return x


def check_pair(
    query_feats,  # (q, d) features
    gallery_feats,  # (g, d) features
) -> tuple[Tensor, Tensor]:  # Both as tensors
    "Query and gallery features as tensors; a ValueError if their dimensions or devices differ"
    q, g = as_features(query_feats, 'query_feats'), as_features(gallery_feats, 'gallery_feats')
    if q.shape[1] != g.shape[1]:
        raise ValueError(f'query_feats have {q.shape[1]} dimensions and gallery_feats {g.shape[1]}: '
                         'both must come from the same model')
    if q.device != g.device:
        raise ValueError(f'query_feats are on {q.device} and gallery_feats on {g.device}: move one with `.to()`')
    return q, g
