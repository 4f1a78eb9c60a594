"Part-mask files: one-channel PNGs with the labels 0..7, read, written, converted and measured"

import os
from pathlib import Path

import numpy as np
from PIL import Image

from magnifier.regions import N_REGIONS

__all__ = ['read_mask', 'write_mask']


def read_mask(
    path: str | Path,  # A grey or palette PNG, the labels 0..7 as its values
) -> np.ndarray:  # (h, w) uint8
    """Labels of a part-mask file; of a palette PNG the indices, never the colours.

    A ValueError names the file where it has colour channels or labels beyond 7; OSError where it does not decode.
    """
    labels = read_labels(path)
    seen = np.unique(labels)
    if seen[-1] >= N_REGIONS or seen[0] < 0:
        raise ValueError(f'{path}: labels {_few(seen)}, and a part mask holds 0 to {N_REGIONS-1}; if they are another parser\'s, '
                         'convert them with convert_masks')
    return labels.astype(np.uint8)


def write_mask(
    path: str | Path,  # Where to; missing folders are made
    labels: np.ndarray,  # (h, w) integers 0..7
):
    "Write a part mask as a grey PNG, aside and renamed, so that a killed run leaves no half file; ValueError for other labels"
    labels, path = np.asarray(labels), Path(path)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in 'iub':
        raise ValueError(f'{path}: a part mask is (h, w) integers, not {labels.shape} {labels.dtype}')
    if labels.min() < 0 or labels.max() >= N_REGIONS:
        raise ValueError(f'{path}: labels {_few(np.unique(labels))}, and a part mask holds 0 to {N_REGIONS-1}')
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    Image.fromarray(labels.astype(np.uint8)).save(aside, format='PNG')
    os.replace(aside, path)


def read_labels(path) -> np.ndarray:
    "Values of a one-channel image of any labelling: (h, w); a ValueError names a file with colours"
    with Image.open(path) as image: labels = np.asarray(image)
    if labels.ndim != 2: raise ValueError(f'{path}: {labels.shape[2]} channels ({image.mode}), and a label file is grey or palette')
    return labels


def _few(values) -> str: return ', '.join(map(str, values[:12])) + (', ...' if len(values) > 12 else '')
