"Pictures made a model's input by NumPy and Pillow alone, as the loaders make it"

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from magnifier.data.images import read_image

__all__ = ['check_preprocessing', 'as_pictures', 'prepare']

FIXED = dict(resize='squish', interpolation='bilinear', channels='RGB', scale=1/255)  # all that there is, and yet said
OURS = {'size', 'mean', 'std', *FIXED}


def check_preprocessing(
    found: dict,  # What a file says of its preprocessing
) -> dict:  # The same
    "A ValueError for steps that this version does not know"
    if not isinstance(found, dict) or set(found) != OURS:
        raise ValueError(f'preprocessing {found!r}: {", ".join(sorted(OURS))} are wanted, and no more')
    other = {k: v for k, v in FIXED.items() if found[k] != v}
    if other: raise ValueError(f'preprocessing {({k: found[k] for k in other})}: this version knows {other}')
    size, stats = found['size'], [found['mean'], found['std']]
    if len(size) != 2 or not all(isinstance(s, int) and 0 < s <= 2**14 for s in size):
        raise ValueError(f'preprocessing of size {size}: height and width in pixels are wanted')
    if not all(len(s) == 3 and all(isinstance(v, int | float) for v in s) for s in stats) or min(stats[1]) <= 0:
        raise ValueError(f'preprocessing with mean {stats[0]} and std {stats[1]}: three numbers each are wanted, std above 0')
    return found


def as_pictures(
    crops,  # A path, PIL image or (h,w,3) uint8 array; a list or array of these; a catalog
) -> Sequence | Iterable:  # One by one
    "One picture or many, as many"
    if isinstance(crops, (str, Path, Image.Image)) or isinstance(crops, np.ndarray) and crops.ndim == 3: return [crops]
    return crops['path'] if hasattr(crops, 'columns') else crops


def prepare(
    pictures: Sequence,  # Paths, PIL images or (h,w,3) uint8 arrays, of any sizes
    preprocessing: dict,  # See `check_preprocessing`
    *,
    bgr: bool = False,  # Arrays are in OpenCV's order; files and PIL images know their own
) -> np.ndarray:  # n x 3 x H x W float32
    "RGB, upright, squished to the size by Pillow's bilinear filter, scaled and normalised"
    height, width = preprocessing['size']
    pixels = np.empty((len(pictures), height, width, 3), np.uint8)
    for place, picture in zip(pixels, pictures):
        if bgr and isinstance(picture, np.ndarray) and picture.ndim == 3: picture = picture[..., ::-1]
        image = read_image(picture)
        if 0 in image.size: raise ValueError(f'a picture of {image.size[0]} x {image.size[1]} pixels: a crop with an area is wanted')
        place[:] = image.resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (np.array(preprocessing[k], np.float32) for k in ('mean', 'std'))
    out = pixels.transpose(0, 3, 1, 2).astype(np.float32, order='C')
    out *= (np.float32(1) / (255*std))[:, None, None]
    out -= (mean/std)[:, None, None]
    return out
