"The thorough check: every problem of a data set in one table, files opened"

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from magnifier.data.catalog import SPLITS, check_columns, is_missing, lost_queries, whole_numbers
from magnifier.data.images import UnreadableImage, opened_image, read_image
from magnifier.data.masks import read_mask

__all__ = ['check_catalog']

EXIF_ORIENTATION = 0x0112
DEEP = ('I', 'F')  # Modes of more than 8 bits, and I;16 and its kin


def check_catalog(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
    decode: bool = True,  # Open and decode every image and mask; False looks at the table and at which files exist
    *,
    workers: int | None = None,  # Threads; default: as many as there are cores
) -> pd.DataFrame:  # Columns `path`, `problem`, `advice`; no rows where all is well
    """All problems of a catalog and its files, found in parallel; `validate_catalog` stops at the first one.

    Files: missing, empty, truncated, no image, CMYK, 16 bits, EXIF rotation; masks: missing, unreadable, of another
    size, with labels beyond 7, all background; rows: duplicate paths, negative identities, unknown splits, identities
    in training and test, the same image of two identities or in two splits, training identities with one image, queries
    without a match. ValueError where columns are missing."""
    check_columns(catalog)
    for c in ('pid', 'camid'): whole_numbers(catalog, c)
    problems = [*_row_problems(catalog)]
    def look(row): return _file_problems(*row, decode)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        looked = list(pool.map(look, zip(catalog['path'], catalog['mask'])))
    problems += [p for found, _ in looked for p in found]
    if decode: problems += _same_image(catalog, [digest for _, digest in looked])
    return pd.DataFrame(problems, columns=['path', 'problem', 'advice'])


def _row_problems(catalog):
    "(path, problem, advice) from the table alone"
    train = catalog[catalog['split'] == 'train']
    test = catalog[catalog['split'].isin(SPLITS[1:])]
    maskless = catalog['mask'].map(is_missing)
    unknown = catalog[~catalog['split'].isin(SPLITS)]
    both = test[test['pid'].isin(train['pid'])].drop_duplicates('pid')
    return [
        *_each(unknown, lambda r: f'split {r.split!r}', f'use {", ".join(SPLITS)}'),
        *_each(catalog[catalog['pid'] < 0], lambda r: f'identity {r.pid}: junk',
               'leave it out: catalog[catalog.pid >= 0]'),
        *_each(catalog[catalog['path'].duplicated()], lambda r: 'the path is in the catalog more than once',
               'drop_duplicates("path")'),
        *_each(catalog[maskless & (not maskless.all())], lambda r: 'no part mask, and others have one',
               'it trains the global branch only; make one, or name the folder with find_masks'),
        *_each(both, lambda r: f'identity {r.pid} is in training too',
               'split by identity; renumber it if it is another person'),
        *_each(train[~train['pid'].duplicated(keep=False)], lambda r: f'identity {r.pid} trains with one image',
               'add images of the person, or leave it out'),
        *_each(lost_queries(catalog), lambda r: f'query without a match: {r.why}',
               'give images the camera they were taken by, or leave it out: '
               'catalog.drop(lost_queries(catalog).index)'),
    ]


def _each(rows, problem, advice): return [(str(row.path), problem(row), advice) for row in rows.itertuples()]


def _file_problems(path, mask, decode):
    "Problems of an image and its mask, and the digest of the image's bytes (None if it cannot be read)"
    found, digest, size = [], None, None
    if not os.path.exists(path):
        found.append((str(path), 'the file does not exist', 'correct the path, or drop the row'))
    elif not os.path.isfile(path): found.append((str(path), 'no regular file', 'drop the row'))
    elif decode:
        data = Path(path).read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest() if data else None
        problems, size = _image_problems(data)
        found += [(str(path), problem, advice) for problem, advice in problems]
    if is_missing(mask): return found, digest
    if not os.path.isfile(mask):
        found.append((str(mask), 'the mask does not exist', 'correct the path, or set it to None'))
    elif decode: found += [(str(mask), problem, advice) for problem, advice in _mask_problems(mask, size)]
    return found, digest


def _image_problems(data):
    "[(problem, advice)] and the (w, h) of an image file, given its bytes; no size if it does not decode"
    if not data: return [('the file is empty (0 bytes)', 'copy it again, or drop the row')], None
    found = []
    try:
        with opened_image(data) as image:
            if image.mode == 'CMYK': found.append(('CMYK colours', 'convert it to RGB: colours may come out inverted'))
            if image.mode in DEEP or image.mode.startswith('I;'):
                found.append((f'more than 8 bits a pixel (mode {image.mode})',
                              'scale it to 8 bits: other tools clip it to white'))
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                found.append(('rotated by its EXIF tag',
                              'it is turned when read, other tools may not turn it: save it upright'))
        return found, read_image(data).size
    except UnreadableImage as e:
        return [*found, (str(e).partition(': ')[2].partition('; mend')[0], 'copy it again, or drop the row')], None


def _mask_problems(mask, size):
    "[(problem, advice)] of a mask file, given the (w, h) of its image if that is known"
    try: labels = read_mask(mask)
    except (OSError, ValueError, SyntaxError) as e:
        return [(str(e).removeprefix(f'{mask}: '), 'convert it with convert_masks, or set the mask to None')]
    found = []
    if size is not None and labels.shape != size[::-1]:
        found.append((f'{labels.shape[1]} x {labels.shape[0]} pixels, its image {size[0]} x {size[1]} (w x h)',
                      'is it another image\'s? else resize it, nearest neighbour'))
    if not labels.any():
        found.append(('all background', 'a mask without a body region teaches nothing: set it to None'))
    return found


def _same_image(catalog, digests):
    """Files with the same bytes as a file of another identity or another split: a wrong label, or a test image in
    training"""
    seen = defaultdict(list)  # digest -> rows with these bytes
    for row, digest in zip(catalog.itertuples(), digests):
        if digest is None: continue
        twin = next((r for r in seen[digest] if (r.pid, r.split) != (row.pid, row.split)), None)
        seen[digest].append(row)
        if twin is None: continue
        what = f'{twin.split} and {row.split}' if twin.split != row.split else f'identities {twin.pid} and {row.pid}'
        problem = f'the same image as {twin.path} ({what})'
        yield str(row.path), problem, 'drop one of the two: figures would be too good or too bad'
