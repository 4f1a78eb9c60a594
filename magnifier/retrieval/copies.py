"Copies of an image: rows that hold the same bytes, so that they can be given the same distance"

import hashlib
import numpy as np
import torch
from torch import Tensor

__all__ = ['copies']

SEEN_FIRST = 8  # Columns of each part that are compared before whole rows are
BLOCK = 1024    # Whole rows looked at together


def copies(
    *parts: Tensor,  # (n, d_i) each; rows are copies where they agree in all parts
) -> tuple[np.ndarray, np.ndarray]:  # (m,) rows that repeat an earlier one, and (m,) the first of their kind
    """A matrix product sums in an order that depends on where a row lies, so that copies come out a rounding apart.
    Few columns rule out most rows; what is left is told by its bytes"""
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
    "What rows hold, part after part"
    return torch.cat([p.contiguous().view(torch.uint8) for p in parts], 1).cpu().numpy()
