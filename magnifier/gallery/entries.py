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
from magnifier.gallery.video import is_address, read_crop
from magnifier.regions import N_REGIONS

__all__ = ['crops_folder', 'crops_csv']

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
    refuse({
        f'{", ".join(given)} beside a catalog: put them into its columns pid, camid, time, tracklet': bool(given),
        f'the catalog has no column path, only {", ".join(map(str, catalog.columns))}': 'path' not in catalog,
    })
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
    refuse({
        f'{name}: {x!r} is a float, which keeps whole numbers up to 2**53 alone; give integers':
            isinstance(x, (float, np.floating)) and abs(x) > EXACT,
        f'{name}: {x} does not fit into 63 bits; number them first, by `pd.factorize`': abs(int(x)) > LARGEST,
    })
    return int(x)  # pandas makes floats of integers beside a missing one


def identity(
    pid,  # An identity, or -1 for junk: a person that nobody named
) -> int | None:  # None where it is junk or missing
    "An identity as a gallery keeps it; a TypeError if it is not a whole number"
    pid = number(pid, 'pids')
    return None if pid == -1 else pid


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


class ReadImage(NamedTuple):
    "An image that was read, or the reason why it could not be read"

    key: str  # Of its content: the same bytes are the same image, whatever the file is called
    image: Image.Image | None  # Decoded, mode RGB; None where that failed
    problem: str = ''  # Why it failed


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
    d: int | None = None,  # How many dimensions; None for any
) -> np.ndarray:  # (n, d) float32, rows of length 1
    "Embeddings of length 1; a ValueError for those that are zero, NaN or infinite, or of another shape"
    x = as_array(embeddings)
    norms = np.linalg.norm(np.atleast_2d(x), axis=1, keepdims=True)
    refuse({
        f'{n} images gave embeddings of shape {x.shape}: ({n}, {d or "d"}) wanted':
            x.ndim != 2 or len(x) != n or d not in (None, x.shape[1]),
        'the model gives embeddings that are zero, NaN or infinite': not (np.isfinite(norms) & (norms > 0)).all(),
    })
    return x / norms


def embedded_regions(
    embedder,  # Has `.embed_regions(images) -> ((n,k,c), (n,k) booleans)`, as a learner with a mask module
    images: list,  # n images
) -> tuple[np.ndarray, np.ndarray]:  # (n, k*c) float32, visible regions of length 1 and the others 0; (n,) visible bits
    "Region embeddings as a gallery keeps them; a ValueError for an embedder without regions"
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
    name, said = file.relative_to(root).as_posix(), {}
    for pattern in patterns:
        found = re.search(pattern, name, re.I)
        if found: said |= {group: text for group, text in found.groupdict().items() if text is not None}
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
