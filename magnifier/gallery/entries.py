"What comes into a gallery: pictures with their labels in one table, keys from content, times and filters in one form"
import hashlib
from collections.abc import Iterable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError

__all__ = ['entries', 'read_entry', 'ReadImage', 'read_part', 'pictures', 'timestamp', 'expression', 'number', 'identity', 'is_count', 'fingerprint_of', 'unit_rows']


class ReadImage(NamedTuple):
    "A picture that was read"
    key: str  # Of its content: the same bytes are the same picture, whatever the file is called
    image: Image.Image | None  # Decoded; None where that failed
    problem: str = ''  # Why it failed


def entries(
    images,  # Catalog; or a path, PIL image or (h,w,3) uint8 array, or several
    **labels  # pids, camids, times, paths: one an image, or None
) -> pd.DataFrame:  # Columns item, path, pid, camid, time; None where unknown
    "Pictures and labels in one table; a ValueError where their numbers differ, a TypeError for labels that are no numbers"
    if isinstance(images, pd.DataFrame): table = _of_catalog(images, labels)
    else:
        items = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        table = pd.DataFrame({'item': pd.Series(items, dtype=object)})
        for name, column in (('paths', 'path'), ('pids', 'pid'), ('camids', 'camid'), ('times', 'time')):
            table[column] = _one_each(labels.get(name), len(items), name)
    if not len(table): raise ValueError('no images: give at least one path, picture or catalog row')
    own = [str(i) if isinstance(i, (str, Path)) else None for i in table['item']]
    table['path'] = pd.Series([str(p) if p is not None else o for p, o in zip(table['path'], own)], dtype=object)
    table['pid'] = pd.Series([identity(p) for p in table['pid']], dtype=object)
    table['camid'] = pd.Series([number(c, 'camids') for c in table['camid']], dtype=object)
    table['time'] = pd.Series([timestamp(t) for t in table['time']], dtype=object)
    return table


def _of_catalog(catalog, labels):
    given = [name for name, label in labels.items() if label is not None]
    if given: raise ValueError(f'{", ".join(given)} beside a catalog: put them into its columns pid, camid, time')
    if 'path' not in catalog: raise ValueError(f'the catalog has no column path, only {", ".join(map(str, catalog.columns))}')
    column = lambda name: list(catalog[name]) if name in catalog else [None]*len(catalog)
    return pd.DataFrame({name: pd.Series(column(of), dtype=object) for name, of in
                         (('item', 'path'), ('path', 'path'), ('pid', 'pid'), ('camid', 'camid'), ('time', 'time'))})


def _one_each(values, n, name):
    if values is None: return pd.Series([None]*n, dtype=object)
    values = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if len(values) != n: raise ValueError(f'{name}: {len(values)} for {n} images; one an image is needed, None where it is unknown')
    return pd.Series(values, dtype=object)


def _missing(x): return x is None or x is pd.NaT or x is pd.NA or isinstance(x, (float, np.floating)) and np.isnan(x)


def number(
    x,  # An id
    name: str,  # What to call it in an error
) -> int | None:  # None where it is missing
    "A whole number, or a TypeError that says what to do"
    if _missing(x): return None
    if isinstance(x, (int, np.integer)) and not isinstance(x, bool): return int(x)
    if isinstance(x, (float, np.floating)) and x == int(x): return int(x)  # pandas makes floats of integers beside a missing one
    raise TypeError(f'{name}: whole numbers wanted, got {x!r}. Number names first: `codes, names = pd.factorize(names)`')


def identity(
    pid,  # An identity, or -1 for junk: a person that nobody named
) -> int | None:  # None where it is junk or missing
    "An identity as a gallery keeps it; a TypeError for what is no whole number"
    return None if (pid := number(pid, 'pids')) == -1 else pid


def is_count(
    n,  # Anything
) -> bool:
    "Whether this is a whole number from 1"
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1


def timestamp(
    t,  # Seconds since 1970 in UTC, an ISO date and time, or a datetime; without a time zone it is UTC
) -> float | None:  # Seconds since 1970 in UTC; None where it is missing
    "A time in one form; a ValueError for what is none"
    if _missing(t): return None
    if isinstance(t, (int, float, np.integer, np.floating)) and not isinstance(t, bool):
        if abs(t) < 1e11: return float(t)
        raise ValueError(f'time {t}: seconds since 1970 wanted, and these lie beyond the year 5000; divide milliseconds by 1000')
    if not isinstance(t, (str, datetime, np.datetime64)): raise TypeError(f'time {t!r}: seconds, an ISO text or a datetime wanted')
    try: t = pd.Timestamp(t)
    except ValueError as e: raise ValueError(f'time {t!r}: not a date and time; write 2026-01-31T13:45:00 or 2026-01-31T13:45:00+01:00') from e
    if t is pd.NaT: return None
    return (t.tz_localize('UTC') if t.tzinfo is None else t).timestamp()


def read_entry(
    item,  # A path, PIL image or (h,w,3) uint8 array
) -> ReadImage:  # With the picture or with what is wrong with it
    "Reads and decodes a picture once: its key comes from the same bytes"
    try:
        if isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
                return ReadImage('', None, f'array of shape {item.shape} and type {item.dtype}: an image is (h,w,3) uint8, in RGB order')
            item = Image.fromarray(item)
        if isinstance(item, Image.Image):
            palette = item.getpalette() or () if item.mode in ('P', 'PA') else ()
            return ReadImage(_key(f'{item.mode} {item.size}'.encode(), bytes(palette), item.tobytes()), item)
        data = Path(item).read_bytes()
        return ReadImage(_key(data), _decoded(data))
    except UnidentifiedImageError: return ReadImage('', None, 'not an image')
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        return ReadImage('', None, f'{type(e).__name__}: {e}')


def read_part(
    part: pd.DataFrame,  # Rows of `entries`
    pool,  # An executor whose threads decode
) -> tuple:  # The rows that are pictures, with a column picture; and (path, problem) of the others
    "Reads the pictures of some rows"
    part = part.assign(picture=pd.Series(list(pool.map(read_entry, part['item'])), index=part.index, dtype=object))
    good = np.array([p.image is not None for p in part['picture']])
    return part[good], [(str(r.path), r.picture.problem) for r in part[~good].itertuples()]


def pictures(
    part: pd.DataFrame,  # Rows of `read_part`
) -> list:  # PIL images
    "What to embed"
    return [p.image for p in part['picture']]


def _decoded(data):
    image = Image.open(BytesIO(data))
    if Image.MAX_IMAGE_PIXELS and image.width*image.height > Image.MAX_IMAGE_PIXELS:  # of which Pillow warns; filters of warnings are all threads'
        raise Image.DecompressionBombError(f'{image.width} x {image.height} pixels, and Pillow allows {Image.MAX_IMAGE_PIXELS}')
    image.load()
    return image


def _key(*parts): return hashlib.sha256(b''.join(parts)).hexdigest()[:32]


def expression(
    *,
    not_camera=None,  # Camera or cameras whose images are left out; images of unknown cameras stay
    cameras=None,  # Camera or cameras to search in
    since=None,  # Earliest time; images without a time are left out
    until=None,  # Latest time; the same
    pids=None,  # Identity or identities
    paths=None,  # Path or paths
) -> str:  # A Milvus expression; empty where nothing is asked for
    "Conditions of a search as the store reads them"
    parts = []
    if cameras is not None: parts.append(f'camid in {_several(cameras, "cameras")}')
    if not_camera is not None: parts.append(f'(camid is null or camid not in {_several(not_camera, "not_camera")})')
    if pids is not None: parts.append(f'pid in {_several(pids, "pids")}')
    if paths is not None:
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        parts.append('path in [' + ', '.join(_quoted(str(p)) for p in paths) + ']')
    since, until = timestamp(since), timestamp(until)
    if since is not None and until is not None and since > until: raise ValueError(f'since={since} lies after until={until}: no time is both')
    if since is not None: parts.append(f'time >= {since!r}')
    if until is not None: parts.append(f'time <= {until!r}')
    return ' and '.join(parts)


def _several(x, name):
    x = [number(i, name) for i in (x if isinstance(x, Iterable) and not isinstance(x, str) else [x])]
    if not x or None in x: raise ValueError(f'{name}: at least one number wanted, and none of them missing')
    return sorted(set(x))


def _quoted(text): return '"' + text.replace('\\', '\\\\').replace('"', '\\"') + '"'


def fingerprint_of(
    embedder,  # A learner, an Embedder, or whatever has their two names
) -> str:  # Its fingerprint
    "Which model an embedder is; a TypeError for what is none"
    if not hasattr(embedder, 'fingerprint') or not hasattr(embedder, 'embed'):
        raise TypeError(f'{type(embedder).__name__} is no embedder: a learner or an Embedder is wanted, with `.embed` and `.fingerprint`')
    return str(embedder.fingerprint)


def unit_rows(
    embeddings,  # What an embedder gave
    n: int,  # How many rows there must be
) -> np.ndarray:  # (n, d) float32, rows of length 1
    "Embeddings as a gallery takes them; a ValueError for those that have no direction"
    x = torch.as_tensor(embeddings).detach().cpu().float().numpy()
    if x.ndim != 2 or len(x) != n: raise ValueError(f'{n} images gave embeddings of shape {x.shape}: ({n}, d) wanted')
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all(): raise ValueError('the model gives embeddings that are zero, NaN or infinite')
    return x/norms
