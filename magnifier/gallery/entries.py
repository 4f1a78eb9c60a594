"""What goes into a gallery: images and their labels in one table, keys of their content, and embeddings in one form.
Tables of crops, from a folder or a CSV file, are such tables too"""

import hashlib
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.checks import refuse
from magnifier.data.images import existing, image_files
from magnifier.data.images import as_images, image_name, read_image
from magnifier.data.own_sets import MISSING, read_table
from magnifier.gallery.video import box_of, read_crop
from magnifier.regions import N_REGIONS

__all__ = ['crops_folder', 'crops_csv']

COLUMNS = dict(paths='path', pids='pid', camids='camid', times='time', tracklets='tracklet')  # Of each kind of label
LARGEST = 2**63 - 1  # Whole number that a store keeps
EXACT = 2**53  # Up to here floats hold every whole number
SPAN = 9.2e9  # Seconds before and after 1970 that pandas' times hold, which hits are shown with
# Looked for anywhere in each path below the folder. A file as Market-1501 names them, 0172_c4s3_000691_03.jpg, gives
# its identity too; c4, cam4, cam_4 or camera-4 the camera; 20260131_134500 or 2026-01-31T13:45:00 the time, in UTC
CROP_PATTERN = (r'(?:^|/)(?P<pid>-1|\d{4,5})_c\d+s\d+_',
                r'(?:^|[^a-z0-9])c(?:am(?:era)?)?[_-]?(?P<camid>\d+)(?=[^0-9]|$)',
                r'(?<!\d)(?P<time>\d{4}-?\d\d-?\d\d[T_ -]\d\d[-:]?\d\d[-:]?\d\d)(?!\d)')


def entries(
    images,  # Catalog; or one image as `read_image` takes it, or several
    **labels,  # pids, camids, times, paths, tracklets: one an image, or None
) -> pd.DataFrame:  # Columns item, path, pid, camid, time, tracklet; None where unknown
    "Images and labels in one table; a ValueError if their numbers differ, a TypeError for labels that are not numbers"
    columns = _of_catalog(images, labels) if isinstance(images, pd.DataFrame) else _of_items(images, labels)
    if not columns['item']: raise ValueError('no images: give at least one path, image or catalog row')
    return pd.DataFrame(dict(
        item=columns['item'],
        path=[_path(path, item) for path, item in zip(columns['path'], columns['item'])],
        pid=[identity(pid) for pid in columns['pid']],
        camid=[number(camera, 'camids') for camera in columns['camid']],
        time=[timestamp(time) for time in columns['time']],
        tracklet=[None if _missing(name) else str(name) for name in columns['tracklet']],
    ), dtype=object)


def _of_catalog(catalog, labels):
    given = [name for name, label in labels.items() if label is not None]
    refuse({
        f'{", ".join(given)} beside a catalog: put them into its columns pid, camid, time, tracklet': bool(given),
        f'the catalog has no column path, only {", ".join(map(str, catalog.columns))}': 'path' not in catalog,
    })
    columns = {name: list(catalog[name]) if name in catalog else [None]*len(catalog) for name in COLUMNS.values()}
    return dict(item=columns['path'], **columns)


def _of_items(images, labels):
    items = [image.read() if hasattr(image, 'read') else image for image in as_images(images)]
    columns = {column: _one_each(labels.get(name), len(items), name) for name, column in COLUMNS.items()}
    return dict(item=items, **columns)


def _one_each(values, n, name):
    if values is None: return [None]*n
    values = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if len(values) != n:
        raise ValueError(f'{name}: {len(values)} for {n} images; one an image is needed, None where it is unknown')
    return values


def _path(path, item):
    if path is not None: return str(path)
    return os.fspath(item) if isinstance(item, (str, Path)) else None


def _missing(x): return x is None or x is pd.NaT or x is pd.NA or isinstance(x, (float, np.floating)) and np.isnan(x)


def number(x, name: str) -> int | None:
    """An id as a whole number, None where it is missing. A TypeError for other types and a ValueError for more than 63
    bits call it by its `name`"""
    if _missing(x): return None
    whole = isinstance(x, (int, np.integer)) and not isinstance(x, (bool, np.bool_))
    if not whole and not (isinstance(x, (float, np.floating)) and float(x).is_integer()):
        raise TypeError(f'{name}: whole numbers wanted, got {x!r}. Number names first: `codes, names = '
                        'pd.factorize(names)`')
    refuse({
        f'{name}: {x!r} is a float, which keeps whole numbers up to 2**53 alone; give integers':
            isinstance(x, (float, np.floating)) and abs(x) > EXACT,
        f'{name}: {x} does not fit into 63 bits; number them first, by `pd.factorize`': abs(int(x)) > LARGEST,
    })
    return int(x)  # pandas makes floats of integers beside a missing one


def identity(pid) -> int | None:
    "An identity as a gallery keeps it: None where it is missing, and for -1, which is junk"
    pid = number(pid, 'pids')
    return None if pid == -1 else pid


def timestamp(t) -> float | None:
    """Seconds since 1970 in UTC of a time: such seconds, an ISO date and time, or a datetime, which are UTC without a
    time zone. None where it is missing; a ValueError for an invalid time"""
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


class ReadImage(NamedTuple):
    "An image that was read, or the reason why it could not be read"

    key: str  # Of its content: the same bytes are the same image, whatever the file is called
    image: Image.Image | None = None  # Decoded, mode RGB; None where that failed or was not asked for
    problem: str = ''  # Why it failed


def content_key(item) -> str:
    """The key, 32 hexadecimal digits, of a file's bytes or of the pixels of an image in memory: the same content has
    the same key. Takes images as `read_image` does, with its errors"""
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


def read_entry(item, key: str | None = None) -> ReadImage:
    "Reads and decodes an image as `read_image` takes it; `key` is that of its content where that is known already"
    if hasattr(item, 'read'): item = item.read()
    try:
        key = key or content_key(item)
        return ReadImage(key, read_image(item))
    except (OSError, ValueError, TypeError) as e: return ReadImage(key or '', None, _problem(e, item))


def keyed(item, path: str | None) -> ReadImage:
    "The key of an image that is not decoded yet, or why a store could not keep it under this path"
    try:
        (path or '').encode()
        return ReadImage(content_key(item))
    except UnicodeEncodeError: return ReadImage('', None, 'its name is no UTF-8: rename it')
    except (OSError, ValueError, TypeError) as e: return ReadImage('', None, _problem(e, item))


def _problem(error, item): return str(error).removeprefix(f'{image_name(item)}: ') or type(error).__name__


def stored_image(path: str | None, key: str) -> Image.Image | None:
    """The image (mode RGB) that a gallery has under a path and a key; None where the file is gone or its content has
    changed"""
    if not path: return None
    if box_of(path): return _cut_again(path, key)
    read = read_entry(path)
    if read.image is None: return None
    if key == read.key: return read.image
    with Image.open(path) as image:
        return read.image if key == content_key(image) else None  # it was added as pixels, and its path told


def _cut_again(address, key):
    try: image = read_crop(address)
    except (OSError, ValueError): return None
    return image if key == content_key(image) else None


def fingerprint_of(embedder) -> str:
    "The fingerprint of a learner, an Embedder, or what else embeds; a TypeError for what does not"
    if not hasattr(embedder, 'fingerprint') or not hasattr(embedder, 'embed'):
        raise TypeError(f'{type(embedder).__name__} is not an embedder: a learner or an Embedder is wanted, with '
                        '`.embed` and `.fingerprint`')
    return str(embedder.fingerprint)


def as_array(x) -> np.ndarray:
    "An array or a tensor, of any device and precision, as a float32 array; does not import torch for it"
    return np.asarray(x.detach().cpu().float() if hasattr(x, 'detach') else x, np.float32)


def unit_rows(embeddings, n: int, d: int | None) -> np.ndarray:
    """An embedder's embeddings as (n, d) float32 of length 1, with any d for None; a ValueError for those that are
    zero, NaN or infinite, or of another shape"""
    x = as_array(embeddings)
    norms = np.linalg.norm(np.atleast_2d(x), axis=1, keepdims=True)
    refuse({
        f'{n} images gave embeddings of shape {x.shape}: ({n}, {d or "d"}) wanted':
            x.ndim != 2 or len(x) != n or d not in (None, x.shape[1]),
        'the model gives embeddings that are zero, NaN or infinite': not (np.isfinite(norms) & (norms > 0)).all(),
    })
    return x / norms


def embedded_regions(embedder, images: list) -> tuple[np.ndarray, np.ndarray]:
    """Region embeddings as a gallery keeps them: (n, k*c) float32, in which a visible region has length 1 and another
    is 0, and (n,) bits that tell the visible ones. A ValueError for an embedder without regions"""
    if not hasattr(embedder, 'embed_regions'):
        raise ValueError(f'this {type(embedder).__name__} has no regions: '
                         'use a learner that was built with mask=True, or a gallery without regions=True')
    embeddings, visible = embedder.embed_regions(images)
    x, visible = as_array(embeddings), as_array(visible) > 0
    norms = np.linalg.norm(x, axis=2, keepdims=True)
    if not np.isfinite(norms[visible]).all():
        raise ValueError('the model gives region embeddings that are NaN or infinite')
    x = np.where(visible[..., None] & (norms > 0), x / np.where(norms > 0, norms, 1), 0)
    return x.reshape(len(x), -1).astype(np.float32), visible @ (1 << np.arange(N_REGIONS))


def crops_folder(
    path: str | Path,  # Folder of images, with folders in it or without
    pattern: str | tuple = CROP_PATTERN,  # Regular expressions with groups pid, camid, time
) -> pd.DataFrame:  # Columns path, pid, camid, time (seconds since 1970 in UTC); None where a name does not say
    """A folder as a table for `Gallery.add`. ValueError for a pattern without groups, an invalid time, a folder without
    images"""
    root, patterns = existing(path), [pattern] if isinstance(pattern, str) else list(pattern)
    for p in patterns: _check_pattern(p)
    return pd.DataFrame([_row(file, root, patterns) for file in image_files(root, recursive=True)], dtype=object)


def crops_csv(
    file: str | Path,  # CSV with a header: path, and where known pid, camid, time
    root: str | Path | None = None,  # Folder that relative paths start from; the file's own by default
) -> pd.DataFrame:  # The table with whole paths, for `Gallery.add`
    """A table for `Gallery.add`. ValueError where it has no column path, no rows, or a label that is no number
    or time; FileNotFoundError where it is not there"""
    table = read_table(file)
    refuse({
        f'{file} has no column path, only {", ".join(map(str, table.columns))}': 'path' not in table,
        f'{file} has no rows': not len(table),
    })
    base = Path(root if root is not None else Path(file).parent).expanduser().absolute()
    labels = {
        column: pd.Series([_label(_known(text), column, file) for text in table[column]], dtype=object)
        for column in ('pid', 'camid', 'time', 'tracklet') if column in table
    }
    return table.assign(path=[str(base/p) for p in table['path']], **labels)


def _known(text): return None if text.strip().lower() in MISSING else text.strip()


def _row(file, root, patterns):
    "Identity, camera and time from a file's name"
    said = {}
    for pattern in patterns:
        found = re.search(pattern, file.relative_to(root).as_posix(), re.I)
        if found: said |= {name: text for name, text in found.groupdict().items() if text is not None}
    return dict(path=str(file)) | {name: _label(said.get(name), name, file) for name in ('pid', 'camid', 'time')}


def _check_pattern(pattern):
    try: groups = set(re.compile(pattern).groupindex)
    except re.error as e: raise ValueError(f'pattern {pattern!r} is not a regular expression: {e}') from e
    if not groups or not groups <= {'pid', 'camid', 'time'}:
        raise ValueError(f'pattern {pattern!r}: named groups pid, camid, time wanted, as in c(?P<camid>\\d+); it has '
                         f'{sorted(groups) or "none"}')


def _label(text, name, file):
    "A label as its column holds it"
    if text is None or name == 'tracklet': return text
    form, what = (_written_time, 'time') if name == 'time' else (_whole, 'whole number')
    try: return form(text)
    except ValueError as e: raise ValueError(f'{file}: {name} {text!r} is no {what}') from e


def _whole(text): return int(re.sub(r'\.0+$', '', text))


def _written_time(text):
    if re.fullmatch(r'\d+(\.\d+)?', text): return timestamp(float(text))
    digits = re.sub(r'\D', '', text)
    if len(digits) == 14: text = re.sub(r'(....)(..)(..)(..)(..)(..)', r'\1-\2-\3T\4:\5:\6', digits)
    return timestamp(text)
