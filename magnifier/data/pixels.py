"Decoded originals, in memory or mapped from a file, and loaders that resize, shift and mirror whole batches"

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import DisplayedTransform, IntToFloatTensor, TensorImage, delegates, first
from torch.nn.functional import pad as pad_with_zeros

from magnifier.checks import refuse
from magnifier.data.batches import IdentityBatches
from magnifier.data.block import IdentityCategorize, TensorIdentity, TensorPartMask
from magnifier.data.images import check_same_size, read_image, read_mask
from magnifier.data.preprocess import Preprocessing
from magnifier.data.transforms import OwnGenerator
from magnifier.files import aside, clear_leftovers, fastai_folder
from magnifier.regions import NO_MASK

__all__ = ['read_pixels', 'decode_pixels', 'MappedPixels', 'cache_pixels', 'FitBatch', 'PixelBatches', 'on_one_canvas']

log = logging.getLogger(__name__)

VERSION = 1  # Of the file; raised whenever the same originals give other bytes
AT_ONCE = 256  # Images that threads decode ahead of the one that is stored
TAIL = 8  # Bytes at the end: how long the index before them is


def read_pixels(
    image,  # As `read_image` takes it
    mask: str | None = None,  # Path of its part mask; None for none
) -> np.ndarray:  # (4,h,w) uint8: red, green, blue, and the labels 0..7, or `NO_MASK` everywhere
    """Image and part mask in one array; a ValueError names a file that does not decode, and a mask of another
    size than its image"""
    rgb = np.asarray(read_image(image))
    h, w = rgb.shape[:2]
    out = np.empty((4, h, w), np.uint8)
    out[:3] = rgb.transpose(2, 0, 1)
    if mask is None:
        out[3] = NO_MASK
        return out
    labels = read_mask(mask)
    check_same_size(labels.shape[::-1], (w, h), mask)
    out[3] = labels
    return out


def decode_pixels(
    rows: Iterable,  # (image, mask) pairs, as `read_pixels` takes them
    workers: int | None = None,  # Threads; None for as many as there are cores
):  # Generator of (4,h,w) uint8 arrays, in the order of the rows
    "Images and masks decoded by threads, a few hundred ahead at most"
    rows = list(rows)
    if len(rows) == 1:  # not worth a thread
        yield read_pixels(*rows[0])
        return
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for i in range(0, len(rows), AT_ONCE): yield from pool.map(lambda row: read_pixels(*row), rows[i:i + AT_ONCE])


class MappedPixels(Sequence):
    """The arrays of a memory-mapped cache file: opening takes no time, the system keeps in memory what is used, and
    processes share it"""
    def __init__(self,
        file: str | Path,  # Written by `cache_pixels`
        stamp: str | None = None,  # What the originals are like now; None opens whatever is there
    ):
        "ValueError for an incomplete file, or one made from other originals than `stamp` says"
        self.file = Path(file)
        size = os.path.getsize(file)
        index = _read_index(self.file, size)
        self.sizes = np.reshape(index['sizes'], (-1, 2))
        self.starts = np.concatenate([[0], np.cumsum(4*self.sizes.prod(1))])
        refuse({
            f'{file} is of other originals': index['version'] != VERSION or stamp not in (None, index['stamp']),
            f'{file} is not whole': self.starts[-1] + index['length'] + TAIL != size})
        self.flat = np.memmap(self.file, np.uint8, 'r', shape=(max(int(self.starts[-1]), 1),))

    def __len__(self): return len(self.sizes)

    def __getitem__(self, i): return self.flat[self.starts[i]:self.starts[i + 1]].reshape(4, *self.sizes[i])

    def __reduce__(self): return MappedPixels, (self.file,)  # a worker maps the file itself


def cache_pixels(
    catalog: pd.DataFrame,  # One row an image: `path`, `mask` (path or missing)
    where: str | Path = 'ram',  # 'ram', 'disk' (among fastai's data: `FASTAI_HOME` or ~/.fastai), or a folder as a Path
    *,
    workers: int | None = None,  # Threads; None for as many as there are cores
) -> Sequence:  # (4,h,w) uint8 arrays in the catalog's order; 4 bytes a pixel (Market-1501's training set: 404 MiB)
    """All originals of a catalog, decoded.

    On disk, each list of paths has one file, which a kill never leaves incomplete. It is used again while every image
    and mask has the same size and time; otherwise it is written again. ValueError as in `read_pixels`; OSError if
    nothing can be written."""
    masks = [m if isinstance(m, str) else None for m in catalog['mask']]
    rows = list(zip(catalog['path'], masks))
    if where == 'ram': return list(decode_pixels(rows, workers))
    refuse({f"cache={where!r}: use 'ram', 'disk', a folder as a Path, or None":
            where != 'disk' and not isinstance(where, Path)})
    folder = fastai_folder('pixels') if where == 'disk' else where
    file = folder.expanduser()/f'{_digest(_absolute(rows))}.pixels'
    stamp = _digest(_stamps(rows))
    try: return MappedPixels(file, stamp)
    except (FileNotFoundError, NotADirectoryError): log.info('decoding %d images into %s', len(rows), file)
    except (ValueError, KeyError):
        log.info('the originals have changed: decoding %d images into %s again', len(rows), file)
    clear_leftovers(file.parent, file.name)
    try:
        with aside(file) as part: _write(part, stamp, decode_pixels(rows, workers))
    except OSError as e: raise OSError(f"{e}; or use cache='ram'") from e
    return MappedPixels(file, stamp)


def _write(part, stamp, arrays):
    "Every array and, last, their index"
    with open(part, 'wb') as f:
        sizes = []
        for pixels in arrays:
            f.write(pixels)
            sizes.append(pixels.shape[1:])
        index = json.dumps(dict(version=VERSION, stamp=stamp, sizes=sizes)).encode()
        f.write(index + len(index).to_bytes(TAIL, 'little'))


def _read_index(file, size):
    "The JSON before the last bytes and its `length`; a ValueError for other files"
    with open(file, 'rb') as f:
        f.seek(max(0, size - TAIL))
        length = int.from_bytes(f.read(TAIL), 'little')
        refuse({f'{file} is no cache of pixels': not 0 < length <= size - TAIL})
        f.seek(size - TAIL - length)
        return {**json.loads(f.read(length)), 'length': length}


def _absolute(rows): return [[os.path.abspath(p) if p else None for p in row] for row in rows]


def _stamps(rows):
    "Path, size and time of every file"
    for row in _absolute(rows):
        for path in filter(None, row):
            stat = os.stat(path)
            yield path, stat.st_size, stat.st_mtime_ns


def _digest(values): return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:32]


class FitBatch(OwnGenerator, DisplayedTransform):
    "Decoded originals to (image, part mask, ...): resized; in training also mirrored and shifted, image and mask alike"
    order = -100  # before all others, which change the images that it makes
    def __init__(self,
        preprocessing: Preprocessing,  # Size and fit
        pad: int = 10,  # Largest random shift in pixels; what comes in is black, in the mask background
        flip: float = 0.5,  # Probability of a horizontal flip
        seed: int = 0,  # Seed of the generator that this transform holds
    ):
        self.preprocessing = preprocessing
        self.pad = pad
        self.flip = flip
        self.seed_generator(seed)

    def __call__(self, b, split_idx=None, **kwargs):
        "(pixels, sizes) or (pixels, sizes, identity) to (image,) or (image, mask, identity)"
        pixels, sizes, *identity = b
        down, across = (o.to(pixels.device) for o in self._draw(len(pixels), split_idx == 0))
        heights, widths = sizes.unbind(1)
        fitted_heights, fitted_widths = self.preprocessing.fitted(heights, widths)
        rows = Axis(heights, fitted_heights, down)
        columns = Axis(widths, fitted_widths, across)
        image = TensorImage(resample_images(pixels[:, :3], rows, columns))
        if not identity: return (image,)
        return image, TensorPartMask(resample_labels(pixels[:, 3], rows, columns)), TensorIdentity(identity[0])

    def _draw(self, n, training):
        "Positions of rows and columns, with the same random numbers on every device"
        height, width = self.preprocessing.size
        if not training:
            still = torch.zeros(n, dtype=torch.long)
            return output_positions(height, still), output_positions(width, still)
        shift = torch.randint(-self.pad, self.pad + 1, (2, n), generator=self.generator)
        mirrored = torch.rand(n, generator=self.generator) < self.flip
        return output_positions(height, shift[0]), output_positions(width, shift[1], mirrored)

    def decode(self, b, **kwargs):
        "The image in 0..255, as fastai's loaders give it"
        if isinstance(b, tuple): return tuple(map(self.decode, b))
        return IntToFloatTensor().decode(b) if isinstance(b, TensorImage) else b


@delegates()
class PixelBatches(IdentityBatches):
    """`IdentityBatches` that takes decoded originals instead of one item after the other.

    Same batches of identities for the same seed, same types; `FitBatch` has to be among its `after_batch`. Images that
    are not in `pixels`, such as those of `test_dl`, are decoded when they are needed."""
    def __init__(self,
        dataset=None,  # A fastai Datasets over a catalog, or over images alone
        pixels=None,  # (4,h,w) uint8 arrays, one an item; None decodes the files as they are needed
        **kwargs
    ):
        self.pixels = pixels
        self._identities = None
        super().__init__(dataset, **kwargs)

    def before_iter(self):
        "Computes the identities before the workers start"
        super().before_iter()
        if self.n and self._labelled: self._all_identities()

    def do_item(self, s): return s or 0  # the index itself: items are loaded by the batch

    def do_batch(self, indices):
        "(n,4,h,w) uint8 canvas, (n,2) sizes and, where the dataset has them, (n,4) identities"
        indices = list(indices)
        if self.pixels is None: arrays = list(decode_pixels(map(self._source, indices)))
        else: arrays = [self.pixels[i] for i in indices]
        pixels, sizes = on_one_canvas(arrays)
        if not self._labelled: return pixels, sizes
        return pixels, sizes, self._all_identities()[indices]

    @property
    def _labelled(self): return len(self.dataset.tls) > 1  # else over images alone

    def _source(self, i):
        "(image, path of its mask or None)"
        items = self.dataset.items
        mask = items['mask'].iat[i] if 'mask' in items and self._labelled else None
        return items['path'].iat[i], mask if isinstance(mask, str) else None

    def _all_identities(self):
        "(n,4) identities of the whole dataset, computed once"
        if self._identities is None:
            items = self.dataset.items
            categorize = first(t for t in self.dataset.tls[-1].tfms.fs if isinstance(t, IdentityCategorize))
            rows = [categorize.encodes(o) for o in zip(items['pid'], items['camid'], items['split'])]
            self._identities = torch.stack(rows).as_subclass(torch.Tensor)
        return self._identities

    def new(self, dataset=None, cls=None, **kwargs):
        "A loader like this one; it decodes the images of another dataset when they are needed"
        same = dataset is None or dataset is self.dataset
        return super().new(dataset, cls, **{'pixels': self.pixels if same else None, **kwargs})


def on_one_canvas(
    arrays: list,  # (c,h,w) uint8 arrays of any sizes
) -> tuple:  # (n,c,h,w) uint8 tensor, and (n,2) integers: height and width of each array
    "Arrays of several sizes in one tensor, as large as the largest, each in its upper left corner"
    sizes = np.array([a.shape[1:] for a in arrays])
    if (sizes == sizes[0]).all(): return torch.from_numpy(np.stack(arrays)), torch.from_numpy(sizes)
    canvas = np.zeros((len(arrays), arrays[0].shape[0], *sizes.max(0)), np.uint8)
    for place, a in zip(canvas, arrays): place[:, :a.shape[1], :a.shape[2]] = a
    return torch.from_numpy(canvas), torch.from_numpy(sizes)


# Images and labels of a whole batch resized, padded, shifted and mirrored at once: two matrix products an image


class Axis(NamedTuple):
    "Rows or columns of a batch, from the originals to the output"
    lengths: torch.Tensor  # (n,) integers: pixels of each original
    fitted: torch.Tensor  # (n,) integers: pixels it is resized to, in the middle of the output
    positions: torch.Tensor  # (n, size) `output_positions`


def output_positions(
    size: int,  # Pixels of the output along one axis
    shift: torch.Tensor,  # (n,) integers: output pixel i shows pixel i + shift
    mirrored: torch.Tensor | None = None,  # (n,) booleans: mirrored before it is shifted; None for none
) -> torch.Tensor:  # (n, size) integers: which pixel each output pixel shows, -1 outside
    "Shift and mirror along one axis, as positions"
    at = torch.arange(size, device=shift.device) + shift[:, None]  # (n, size)
    outside = (at < 0) | (at >= size)
    if mirrored is not None: at = torch.where(mirrored[:, None], size - 1 - at, at)
    return at.masked_fill(outside, -1)


def bilinear_weights(
    lengths: torch.Tensor,  # (m,) integers: pixels of originals along one axis
    fitted: torch.Tensor,  # (m,) integers: pixels they are resized to
    longest: int,  # Columns of the result, at least the largest length
    size: int,  # Rows of the result, at least the largest of `fitted`
) -> torch.Tensor:  # (m, size, longest) float32; each of the first `fitted` rows adds up to 1
    """Weights of the original's pixels in each resized one: Pillow's bilinear filter.

    A triangle between pixel centres. If an image shrinks, the triangle widens by the same factor (antialiasing), so no
    pixel is skipped."""
    lengths = lengths[:, None, None].float()  # (m, 1, 1)
    factor = lengths/fitted[:, None, None]
    centre = (torch.arange(size, device=lengths.device)[:, None] + .5)*factor
    pixel = torch.arange(longest, device=lengths.device)
    weights = (1 - (pixel + .5 - centre).abs()/factor.clamp(min=1)).clamp(min=0)*(pixel < lengths)
    return weights/weights.sum(2, keepdim=True).clamp(min=1e-6)


def resample_images(
    pixels: torch.Tensor,  # (n,c,h,w) uint8: each original in its upper left corner
    rows: Axis,  # Of H output pixels
    columns: Axis,  # Of W output pixels
) -> torch.Tensor:  # (n,c,H,W) float32 in [0,1]; black outside of the image
    """Bilinear resize with antialiasing, padding, shift and mirror at once, in float32: within rounding what Pillow
    gives.

    Resampling is linear along each axis: A_rows X A_columns^T."""
    n, c, h, w = pixels.shape
    with torch.autocast(pixels.device.type, enabled=False):
        down = _axis_matrices(rows, h)/255                           # (n,H,h)
        across = _axis_matrices(columns, w).transpose(1, 2)          # (n,w,W)
        tall = down @ pixels.transpose(1, 2).float().flatten(2)      # (n,H,c*w): one product for all channels
        tall = tall.view(n, -1, c, w).transpose(1, 2).flatten(1, 2)  # (n,c*H,w)
        return (tall @ across).view(n, c, down.shape[1], across.shape[2])


def resample_labels(
    labels: torch.Tensor,  # (n,h,w) uint8: each original in its upper left corner
    rows: Axis,  # Of H output pixels
    columns: Axis,  # Of W output pixels
) -> torch.Tensor:  # (n,H,W) int64; background outside of the image, but `NO_MASK` everywhere where there is no mask
    "Nearest-neighbour resize by pixel centres as in Pillow, with padding, shift and mirror: labels are never mixed"
    n, h, w = labels.shape
    missing = labels[:, 0, 0] == NO_MASK
    labels = pad_with_zeros(labels, (0, 1, 0, 1))  # a column and a row of background, for what lies outside
    across = _nearest(columns, w)  # (n,W)
    wide = labels.gather(2, across[:, None].expand(n, h + 1, -1))  # (n,h+1,W)
    down = _nearest(rows, h) + torch.arange(n, device=labels.device)[:, None]*(h + 1)  # (n,H)
    out = wide.flatten(0, 1)[down].long()  # (n,H,W)
    out[missing] = NO_MASK
    return out


def _axis_matrices(axis, longest):
    "(n, size, longest): the weights of `bilinear_weights` at the given positions, 0 outside"
    lengths, fitted, which = _distinct(axis)
    size = axis.positions.shape[1]
    weights = bilinear_weights(lengths, fitted, longest, size).flatten(0, 1)
    table = pad_with_zeros(weights, (0, 0, 0, 1))  # (m*size + 1, longest)
    at = _within(axis)
    return table[torch.where(at < 0, len(table) - 1, which[:, None]*size + at)]


def _nearest(axis, outside):
    "(n, size) index of the original's pixel that holds the centre of each output pixel"
    lengths, fitted, which = _distinct(axis)
    # Where a centre lies on the border of two pixels rounding decides: added up step by step on the CPU, as in Pillow
    steps = (lengths.cpu().double()/fitted.cpu())[:, None].repeat(1, axis.positions.shape[1])
    steps[:, 0] /= 2
    table = steps.cumsum(1).long().to(axis.positions.device)  # (m, size)
    at = _within(axis)
    return torch.where(at < 0, outside, table[which[:, None], at.clamp(min=0)])


def _within(axis):
    "(n, size) positions in the resized image, which lies in the middle of the output; -1 outside of it"
    size, fitted = axis.positions.shape[1], axis.fitted[:, None]
    at = axis.positions - (size - fitted)//2
    return at.masked_fill((axis.positions < 0) | (at < 0) | (at >= fitted), -1)


def _distinct(axis):
    "(m,) pairs of a length and its resized length, each once, and (n,) the pair of each image: most sets have one size"
    base = axis.positions.shape[1] + 1  # above any of `fitted`
    pairs, which = (axis.lengths*base + axis.fitted).unique(return_inverse=True)
    return pairs//base, pairs % base, which
