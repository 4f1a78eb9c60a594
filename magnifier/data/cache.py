"Originals decoded once: picture and part mask as uint8 arrays at their own size, in memory or mapped from a file"
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from magnifier.data.images import read_image
from magnifier.data.masks import check_same_size, read_mask
from magnifier.regions import NO_MASK

__all__ = ['read_pixels', 'decode_pixels', 'MappedPixels', 'cache_pixels']

log = logging.getLogger(__name__)

VERSION = 1       # Of the file; raised whenever the same originals give other bytes
_AT_ONCE = 256    # Pictures that threads decode before the first of them is stored
_STALE = 3600     # Seconds after which a half-written file belongs to nobody
_TAIL = 8         # Bytes at the end: how long the index before them is


def read_pixels(
    image,     # A path, PIL image or (h,w,3) uint8 array
    mask=None, # Path of its part mask; None for none
) -> np.ndarray:  # (4,h,w) uint8: red, green, blue, and the labels 0..7, or `NO_MASK` everywhere
    "Picture and part mask in one array; a ValueError names a file that does not decode, and a mask of another size than its image"
    rgb = np.asarray(read_image(image))
    h, w = rgb.shape[:2]
    out = np.empty((4, h, w), np.uint8)
    out[:3], out[3] = rgb.transpose(2, 0, 1), NO_MASK
    if mask is None: return out
    labels = read_mask(mask)
    check_same_size(labels.shape[::-1], (w, h), mask)
    out[3] = labels
    return out


def decode_pixels(
    rows:Iterable,          # (image, mask) pairs, as `read_pixels` takes them
    workers:int|None=None,  # Threads; None for as many as there are cores
):  # Generator of (4,h,w) uint8 arrays, in the order of the rows
    "Pictures and masks decoded by threads, a few hundred ahead at most"
    rows = list(rows)
    if len(rows) < 2: yield from (read_pixels(*row) for row in rows); return  # noqa: E702
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for i in range(0, len(rows), _AT_ONCE): yield from pool.map(lambda row: read_pixels(*row), rows[i:i + _AT_ONCE])


class MappedPixels(Sequence):
    "The arrays of a cache file, mapped: opening is instant, the system keeps in memory what is used, and processes share it"
    def __init__(self,
        file:str|Path,        # Written by `cache_pixels`
        stamp:str|None=None,  # What the originals are like now; None opens whatever is there
    ):
        "ValueError for a file that is not whole, or made from other originals than `stamp` says"
        self.file, size = Path(file), os.path.getsize(file)
        index = _read_index(self.file, size)
        if index.get('version') != VERSION or stamp not in (None, index['stamp']): raise ValueError(f'{file} is of other originals')
        self.sizes = np.reshape(index['sizes'], (-1, 2))
        self.starts = np.concatenate([[0], np.cumsum(4*self.sizes.prod(1))])
        if self.starts[-1] + index['length'] + _TAIL != size: raise ValueError(f'{file} is not whole')
        self.flat = np.memmap(self.file, np.uint8, 'r', shape=(max(int(self.starts[-1]), 1),))

    def __len__(self): return len(self.sizes)

    def __getitem__(self, i): return self.flat[self.starts[i]:self.starts[i + 1]].reshape(4, *self.sizes[i])

    def __reduce__(self): return MappedPixels, (self.file,)  # a worker maps the file itself


def cache_pixels(
    catalog:pd.DataFrame,  # One row an image: `path`, `mask` (path or missing)
    where='ram',           # 'ram', 'disk' (among fastai's data: `FASTAI_HOME` or ~/.fastai), or a folder as a Path
    *,
    workers:int|None=None, # Threads; None for as many as there are cores
) -> Sequence:  # (4,h,w) uint8 arrays in the catalog's order; 4 bytes a pixel (Market-1501's training set: 404 MiB)
    """All originals of a catalog, decoded.

    On disk they are one file for each list of paths, written aside and renamed, and used again as long as every image and mask has the
    size and time it had; else it is written anew. ValueError as `read_pixels`; OSError where nothing can be written.
    """
    rows = list(zip(catalog['path'], [m if isinstance(m, str) else None for m in catalog['mask']]))
    if where == 'ram': return list(decode_pixels(rows, workers))
    if where != 'disk' and not isinstance(where, Path): raise ValueError(f"cache={where!r}: use 'ram', 'disk', a folder as a Path, or None")
    folder = Path(os.environ.get('FASTAI_HOME', '~/.fastai'))/'pixels' if where == 'disk' else where
    file, stamp = folder.expanduser()/f'{_digest(_absolute(rows))}.pixels', _digest(_stamps(rows))
    try: return MappedPixels(file, stamp)
    except (FileNotFoundError, NotADirectoryError): log.info('decoding %d images into %s', len(rows), file)
    except (ValueError, KeyError): log.info('the originals have changed: decoding %d images into %s again', len(rows), file)
    _write(file, stamp, rows, workers)
    return MappedPixels(file, stamp)


def _write(file, stamp, rows, workers):
    "The file with every array and, last, its index; aside, then renamed: a file in place is whole"
    part = _aside(file)
    try:
        with open(part, 'wb') as f:
            sizes = []
            for pixels in decode_pixels(rows, workers):
                f.write(pixels)
                sizes.append(pixels.shape[1:])
            index = json.dumps(dict(version=VERSION, stamp=stamp, sizes=sizes)).encode()
            f.write(index + len(index).to_bytes(_TAIL, 'little'))
        os.replace(part, file)
    except OSError as e: raise OSError(f'cannot write the cache {file}: {e.strerror or e}; make room, name another folder as '
                                       "cache=Path(...), or use cache='ram'") from e
    finally: part.unlink(missing_ok=True)


def _aside(file):
    "A new hidden file beside the cache; what killed runs left there is removed"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f'.{file.stem}-*.part'):
            if time.time() - old.stat().st_mtime > _STALE: old.unlink(missing_ok=True)
        handle, part = tempfile.mkstemp(prefix=f'.{file.stem}-', suffix='.part', dir=file.parent)
    except OSError as e: raise OSError(f'cannot write the cache to {file.parent}: {e.strerror or e}; name another folder as '
                                       "cache=Path(...), or use cache='ram'") from e
    os.close(handle)
    return Path(part)


def _read_index(file, size):
    "The JSON before the last bytes, with its `length`; a ValueError for anything else"
    with open(file, 'rb') as f:
        f.seek(max(0, size - _TAIL))
        length = int.from_bytes(f.read(_TAIL), 'little')
        if not 0 < length <= size - _TAIL: raise ValueError(f'{file} is no cache of pixels')
        f.seek(size - _TAIL - length)
        return {**json.loads(f.read(length)), 'length': length}


def _absolute(rows): return [[os.path.abspath(p) if p else None for p in row] for row in rows]


def _stamps(rows):
    "Path, size and time of every file"
    for path in (p for row in _absolute(rows) for p in row if p):
        stat = os.stat(path)
        yield path, stat.st_size, stat.st_mtime_ns


def _digest(values): return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:32]
