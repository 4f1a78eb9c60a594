"Resizing with integer arithmetic, because versions of image libraries round differently"

from functools import lru_cache
import numpy as np

__all__ = ['shrink', 'enlarge']


def shrink(
    image,  # (h, w) or (h, w, c), integers
    size,  # Height and width, none larger than the image's
) -> np.ndarray:  # (height, width, ...) int32
    "Mean over the area that each new pixel covers"
    return _both(image, [_area(new, old) for new, old in zip(size, image.shape)])


def enlarge(
    image,  # (h, w) or (h, w, c), integers
    size,  # Height and width
) -> np.ndarray:  # (height, width, ...) int32
    "Bilinear between the centres of the old pixels, edges repeated"
    return _both(image, [_linear(new, old) for new, old in zip(size, image.shape)])


def _both(image, weights):
    "Weigh rows, then columns; sums of whole numbers are exact in float64, in any order"
    (rows, unit_r), (columns, unit_c) = weights
    flat = image.reshape(image.shape[0], -1).astype(np.float64)  # (h, w * c)
    tall = (rows @ flat).reshape(len(rows), image.shape[1], -1)  # (height, w, c)
    out = columns @ tall  # (height, width, c)
    unit = unit_r * unit_c
    rounded = np.floor((2 * out + unit) / (2 * unit)).astype(np.int32)
    return rounded.reshape(len(rows), len(columns), *image.shape[2:])


@lru_cache(maxsize=64)
def _area(new, old):
    "How much of each old pixel lies in each new one, (new, old), in units that add up to `old`"
    i, j = np.arange(old)[None], np.arange(new)[:, None]
    overlap = np.minimum((i + 1) * new, (j + 1) * old) - np.maximum(i * new, j * old)
    return np.maximum(overlap, 0).astype(np.float64), old


@lru_cache(maxsize=64)
def _linear(new, old):
    "Bilinear weights, (new, old), in units that add up to `2 * new`"
    place = (2 * np.arange(new) + 1) * old - new
    low, part = place // (2 * new), place % (2 * new)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), np.clip(low, 0, old - 1)), 2 * new - part)
    np.add.at(weights, (np.arange(new), np.clip(low + 1, 0, old - 1)), part)
    return weights, 2 * new
