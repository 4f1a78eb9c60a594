"The input of a gallery: images and their labels in one table, keys computed from the content, times in one form"

import hashlib
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.data.images import as_images, image_name, read_image
from magnifier.gallery.video import is_address, read_crop

__all__ = ['entries', 'read_entry', 'ReadImage', 'content_key', 'problem', 'stored_image', 'timestamp', 'number',
           'identity', 'is_count', 'fingerprint_of', 'as_array', 'unit_rows']

LARGEST = 2**63 - 1  # Whole number that a store keeps
EXACT = 2**53  # Up to here floats hold every whole number
SPAN = 9.2e9  # Seconds before and after 1970 that pandas' times hold, which hits are shown with


class ReadImage(NamedTuple):
    "An image that was read, or the reason why it could not be read"

    key: str  # Of its content: the same bytes are the same image, whatever the file is called
    image: Image.Image | None  # Decoded, mode RGB; None where that failed
    problem: str = ''  # Why it failed


def entries(
    images,  # Catalog; or one image as `read_image` takes it, or several
    **labels,  # pids, camids, times, paths, tracklets: one an image, or None
) -> pd.DataFrame:  # Columns item, path, pid, camid, time, tracklet; None where unknown
    "Images and labels in one table; a ValueError if their numbers differ, a TypeError for labels that are not numbers"
    table = _of_catalog(images, labels) if isinstance(images, pd.DataFrame) else _of_items(images, labels)
    if not len(table): raise ValueError('no images: give at least one path, image or catalog row')
    forms = dict(pid=identity, camid=lambda c: number(c, 'camids'), time=timestamp, tracklet=_name)
    for name, form in forms.items():
        table[name] = pd.Series([form(value) for value in table[name]], dtype=object)
    own = [os.fspath(item) if isinstance(item, (str, Path)) else None for item in table['item']]
    paths = [file if path is None else str(path) for path, file in zip(table['path'], own)]
    table['path'] = pd.Series(paths, dtype=object)
    return table


def _of_catalog(catalog, labels):
    given = [name for name, label in labels.items() if label is not None]
    if given:
        raise ValueError(f'{", ".join(given)} beside a catalog: put them into its columns pid, camid, time, tracklet')
    if 'path' not in catalog:
        raise ValueError(f'the catalog has no column path, only {", ".join(map(str, catalog.columns))}')
    columns = dict(item='path', path='path', pid='pid', camid='camid', time='time', tracklet='tracklet')
    return pd.DataFrame({name: pd.Series(list(catalog[of]) if of in catalog else [None]*len(catalog), dtype=object)
                         for name, of in columns.items()})


def _of_items(images, labels):
    items = list(as_images(images))
    table = pd.DataFrame({'item': pd.Series(items, dtype=object)})
    for name, column in dict(paths='path', pids='pid', camids='camid', times='time', tracklets='tracklet').items():
        table[column] = _one_each(labels.get(name), len(items), name)
    return table


def _one_each(values, n, name):
    if values is None: return pd.Series([None]*n, dtype=object)
    values = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if len(values) != n:
        raise ValueError(f'{name}: {len(values)} for {n} images; one an image is needed, None where it is unknown')
    return pd.Series(values, dtype=object)


def _missing(x): return x is None or x is pd.NaT or x is pd.NA or isinstance(x, (float, np.floating)) and np.isnan(x)


def _name(x): return None if _missing(x) else str(x)


def number(
    x,  # An id
    name: str,  # What to call it in an error
) -> int | None:  # None where it is missing
    "A whole number; a TypeError for other types, a ValueError for more than 63 bits"
    if _missing(x): return None
    whole = isinstance(x, (int, np.integer)) and not isinstance(x, (bool, np.bool_))
    if not whole and not (isinstance(x, (float, np.floating)) and float(x).is_integer()):
        raise TypeError(f'{name}: whole numbers wanted, got {x!r}. Number names first: `codes, names = '
                        'pd.factorize(names)`')
    if isinstance(x, (float, np.floating)) and abs(x) > EXACT:
        raise ValueError(f'{name}: {x!r} is a float, which keeps whole numbers up to 2**53 alone; give integers')
    if abs(int(x)) > LARGEST:
        raise ValueError(f'{name}: {x} does not fit into 63 bits; number them first, by `pd.factorize`')
    return int(x)  # pandas makes floats of integers beside a missing one


def identity(
    pid,  # An identity, or -1 for junk: a person that nobody named
) -> int | None:  # None where it is junk or missing
    "An identity as a gallery keeps it; a TypeError if it is not a whole number"
    pid = number(pid, 'pids')
    return None if pid == -1 else pid


def is_count(
    n,  # Anything
) -> bool:
    "Whether this is a whole number from 1"
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1


def timestamp(
    t,  # Seconds since 1970 in UTC, an ISO date and time, or a datetime; without a time zone it is UTC
) -> float | None:  # Seconds since 1970 in UTC; None where it is missing
    "A time in seconds; a ValueError for an invalid one"
    seconds = _seconds(t)
    if seconds is None or abs(seconds) < SPAN: return seconds
    raise ValueError(f'time {t}: a time of the years 1679 to 2260 wanted, as a date or as seconds since 1970; divide '
                     'milliseconds by 1000')


def _seconds(t):
    if _missing(t): return None
    if isinstance(t, (int, float, np.integer, np.floating)) and not isinstance(t, bool): return float(t)
    if not isinstance(t, (str, datetime, np.datetime64)):
        raise TypeError(f'time {t!r}: seconds, an ISO text or a datetime wanted')
    try: t = pd.Timestamp(t)
    except ValueError as e:
        raise ValueError(f'time {t!r}: not a date and time; write 2026-01-31T13:45:00 or '
                         '2026-01-31T13:45:00+01:00') from e
    if t is pd.NaT: return None
    return (t.tz_localize('UTC') if t.tzinfo is None else t).timestamp()


def content_key(
    item,  # An image as `read_image` takes it
) -> str:  # 32 hexadecimal digits
    """The key of a file's bytes, or of the pixels of an image in memory: the same content has the same key. Errors as
    in `read_image`"""
    if isinstance(item, (bytes, bytearray)): return _hashed([item])
    if isinstance(item, (str, os.PathLike)):
        if not os.path.isfile(item): read_image(item)  # says what it is instead
        with open(item, 'rb') as file: return _hashed(iter(lambda: file.read(1 << 20), b''))
    image = item if isinstance(item, Image.Image) else read_image(item)
    palette = image.getpalette() or () if image.mode in ('P', 'PA') else ()
    return _hashed([f'{image.mode} {image.size}'.encode(), bytes(palette), image.tobytes()])


def _hashed(parts):
    content = hashlib.sha256()
    for part in parts: content.update(part)
    return content.hexdigest()[:32]


def read_entry(
    item,  # An image as `read_image` takes it
    key: str | None = None,  # Of its content, where that is known already
) -> ReadImage:  # With the image or with what is wrong with it
    "Reads and decodes an image"
    if hasattr(item, 'read'): item = item.read()
    try:
        key = key or content_key(item)
        return ReadImage(key, read_image(item))
    except (OSError, ValueError, TypeError) as e: return ReadImage(key or '', None, problem(e, item))


def problem(
    error,  # Raised by `content_key` or `read_image`
    item,  # For this image
) -> str:
    "What is wrong with an image, without its name"
    if isinstance(error, UnicodeEncodeError): return 'its name is no UTF-8: rename it'
    return str(error).removeprefix(f'{image_name(item)}: ') or type(error).__name__


def stored_image(
    path: str | None,  # As a gallery has it
    key: str,  # The key that it has for that path
) -> Image.Image | None:  # Mode RGB; None where the file is gone, or is another by now
    "The image that was added under a path, if its content has not changed"
    if not path: return None
    if is_address(path): return _cut_again(path, key)
    read = read_entry(path)
    if read.image is None: return None
    if key == read.key: return read.image
    with Image.open(path) as image:
        return read.image if key == content_key(image) else None  # it was added as pixels, and its path told


def _cut_again(address, key):
    try: image = read_crop(address)
    except (OSError, ValueError): return None
    return image if key == content_key(image) else None


def fingerprint_of(
    embedder,  # A learner, an Embedder, or whatever has their two names
) -> str:  # Its fingerprint
    "The fingerprint of an embedder's model; a TypeError if it has none"
    if not hasattr(embedder, 'fingerprint') or not hasattr(embedder, 'embed'):
        raise TypeError(f'{type(embedder).__name__} is not an embedder: a learner or an Embedder is wanted, with '
                        '`.embed` and `.fingerprint`')
    return str(embedder.fingerprint)


def as_array(
    x,  # Array or tensor, of any device and precision
) -> np.ndarray:  # float32
    "Numbers as a NumPy array, without importing torch if they are not a tensor"
    return np.asarray(x.detach().cpu().float() if hasattr(x, 'detach') else x, np.float32)


def unit_rows(
    embeddings,  # What an embedder gave
    n: int,  # How many rows there must be
) -> np.ndarray:  # (n, d) float32, rows of length 1
    "Embeddings of length 1; a ValueError for those that are zero, NaN or infinite"
    x = as_array(embeddings)
    if x.ndim != 2 or len(x) != n: raise ValueError(f'{n} images gave embeddings of shape {x.shape}: ({n}, d) wanted')
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError('the model gives embeddings that are zero, NaN or infinite')
    return x / norms
