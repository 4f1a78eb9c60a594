"How an image is prepared for a model: for loaders, for cached batches, and for programs without torch"

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from PIL import Image

from magnifier.checks import refuse
from magnifier.data.images import read_image

__all__ = ['Preprocessing']

FITS = ('squish', 'pad')
FIXED = dict(interpolation='bilinear', channels='RGB', scale=1/255)  # the same for every model
KEYS = {'size', 'resize', 'mean', 'std', *FIXED}
LARGEST = 2**14  # pixels a side


@dataclass(frozen=True)
class Preprocessing:
    """Size, fit and normalisation of a model's input; a ValueError says what is allowed.

    Called with images it prepares them by NumPy and Pillow alone. Loaders ask it for the geometry: `fit_image`
    for one image, `fitted` for a batch.
    """
    size: tuple[int, int] = (384, 192)  # Height and width of the model's input, in pixels
    fit: str = 'squish'  # 'squish' changes the aspect ratio; 'pad' keeps it, centred on black
    mean: tuple[float, float, float] = (.485, .456, .406)  # Subtracted from red, green, blue in 0..1; ImageNet's
    std: tuple[float, float, float] = (.229, .224, .225)  # Divides them afterwards; ImageNet's

    def __post_init__(self):
        for name in ('size', 'mean', 'std'):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, Sequence) else (value,))
        refuse({
            f'preprocessing of size {self.size}: height and width in pixels are wanted':
                len(self.size) != 2 or not all(isinstance(s, int) and 0 < s <= LARGEST for s in self.size),
            f'fit={self.fit!r}: use {" or ".join(map(repr, FITS))}': self.fit not in FITS,
            f'preprocessing with mean {self.mean} and std {self.std}: three numbers each are wanted, std above 0':
                not (_three_numbers(self.mean) and _three_numbers(self.std) and min(self.std) > 0)})

    def __call__(self,
        images: Sequence,  # As `read_image` takes them, of any sizes
        *,
        bgr: bool = False,  # Arrays are in OpenCV's order, blue first
    ) -> np.ndarray:  # n x 3 x H x W float32
        "The model's input: RGB, upright, resized, scaled to 0..1 and normalised"
        pixels = np.empty((len(images), *self.size, 3), np.uint8)
        for place, image in zip(pixels, images): place[:] = self.fit_image(read_image(image, bgr=bgr))
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        out = pixels.transpose(0, 3, 1, 2).astype(np.float32, order='C')
        out *= (np.float32(1) / (255*std))[:, None, None]
        out -= (mean/std)[:, None, None]
        return out

    def fitted(self,
        height,  # Heights of images: a NumPy integer, an integer array or tensor
        width,  # Their widths
    ) -> tuple:  # Heights and widths that the images are resized to, of the same kind
        "The size that an image takes in the middle of the input: all of it, or as much as its aspect ratio allows"
        rows, columns = self.size
        if self.fit == 'squish': return height*0 + rows, width*0 + columns
        # Half a pixel is rounded up; the side that limits the image comes out as the input's own
        fitted_height = (2*height*columns + width)//(2*width)
        fitted_width = (2*width*rows + height)//(2*height)
        return fitted_height.clip(1, rows), fitted_width.clip(1, columns)

    def fit_image(self,
        image: Image.Image,  # An image or a part mask, of any size
        *,
        labels: bool = False,  # It is a part mask: its values are names, so the nearest is taken and none is mixed
        fill: int = 0,  # Value of what is padded
    ) -> Image.Image:  # Of this preprocessing's size
        "One image resized, and padded where `fit` says so"
        rows, columns = self.size
        height, width = map(int, self.fitted(np.int64(image.height), np.int64(image.width)))
        how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
        resized = image.resize((width, height), how)
        if (height, width) == self.size: return resized
        frame = Image.new(image.mode, (columns, rows), fill)
        frame.paste(resized, ((columns - width)//2, (rows - height)//2))
        return frame

    def to_json(self) -> dict:  # Values that JSON takes
        "The preparation as JSON values, for a file"
        return dict(size=list(self.size), resize=self.fit, mean=list(self.mean), std=list(self.std), **FIXED)

    @classmethod
    def from_json(cls,
        found: dict,  # What a file says, as `to_json` wrote it
    ) -> 'Preprocessing':
        "The preparation that a file describes; a ValueError for steps that this version does not know"
        refuse({f'preprocessing {found!r}: {", ".join(sorted(KEYS))} are needed, and nothing else':
                not isinstance(found, dict) or set(found) != KEYS})
        other = {k: v for k, v in FIXED.items() if found[k] != v}
        refuse({f'preprocessing {({k: found[k] for k in other})}: this version knows {other}': other})
        return cls(found['size'], found['resize'], found['mean'], found['std'])


def _three_numbers(values): return len(values) == 3 and all(isinstance(v, int | float) and isfinite(v) for v in values)
