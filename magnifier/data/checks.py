"Every problem of a data set in one table: the thorough check, which opens the files"

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from magnifier.data.catalog import SPLITS, _check_columns, _integers, _missing, lost_queries
from magnifier.data.masks import read_mask

__all__ = ['check_catalog']

EXIF_ORIENTATION = 0x0112
SIXTEEN_BIT = ('I', 'F')  # and I;16 and its kin


def check_catalog(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
    decode: bool = True,  # Open and decode every image and mask; False looks at the table and at which files exist
    *,
    workers: int | None = None,  # Threads; default: as many as there are cores
) -> pd.DataFrame:  # Columns `path`, `problem`, `advice`; no rows where all is well
    """All problems of a catalog and its files in one go, in parallel, where `validate_catalog` stops at the first.

    Files: missing, empty, truncated, no image, CMYK, 16 bits, EXIF rotation; masks: missing, unreadable, of another size, with labels
    beyond 7, all background; rows: duplicate paths, negative identities, unknown splits, identities in training and test, the same
    image in two splits, training identities with one image, queries without a match. ValueError where columns are missing.
    """
    _check_columns(catalog)
    for c in ('pid', 'camid'): _integers(catalog, c)
    problems = [*_row_problems(catalog)]
    def look(row): return _file_problems(*row, decode)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool: looked = list(pool.map(look, zip(catalog['path'], catalog['mask'])))
    problems += [p for found, _ in looked for p in found]
    if decode: problems += _same_image(catalog, [digest for _, digest in looked])
    return pd.DataFrame(problems, columns=['path', 'problem', 'advice'])


def _row_problems(catalog):
    "(path, problem, advice) from the table alone"
    def report(rows, problem, advice):
        for row in rows.itertuples(): yield str(row.path), problem(row) if callable(problem) else problem, advice
    yield from report(catalog[~catalog['split'].isin(SPLITS)], lambda r: f'split {r.split!r}', f'use {", ".join(SPLITS)}')
    yield from report(catalog[catalog['pid'] < 0], lambda r: f'identity {r.pid}: junk', 'leave it out: catalog[catalog.pid >= 0]')
    yield from report(catalog[catalog['path'].duplicated()], 'the path is in the catalog more than once', 'drop_duplicates("path")')
    some = catalog['mask'].map(_missing)
    if not some.all(): yield from report(catalog[some], 'no part mask, and others have one',
                                         'it trains the global branch only; make one, or name the folder with find_masks')
    train, test = catalog[catalog['split'] == 'train'], catalog[catalog['split'].isin(SPLITS[1:])]
    both = test[test['pid'].isin(train['pid'])].drop_duplicates('pid')
    yield from report(both, lambda r: f'identity {r.pid} is in training too',
                      'split by identity; renumber it if it is another person')
    alone = train[~train['pid'].duplicated(keep=False)]
    yield from report(alone, lambda r: f'identity {r.pid} trains with one image', 'add images of the person, or leave it out')
    yield from report(lost_queries(catalog), lambda r: f'query without a match: {r.why}',
                      'give images the camera they were taken by, or leave it out: catalog.drop(lost_queries(catalog).index)')


def _file_problems(path, mask, decode):
    "Problems of an image and its mask, and the digest of the image's bytes (None unread)"
    found, digest, size = [], None, None
    if not os.path.isfile(path): found.append((str(path), 'the file does not exist', 'correct the path, or drop the row'))
    elif decode:
        data = Path(path).read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest() if data else None
        problems, size = _image_problems(data)
        found += [(str(path), problem, advice) for problem, advice in problems]
    if _missing(mask): return found, digest
    if not os.path.isfile(mask): found.append((str(mask), 'the mask does not exist', 'correct the path, or set it to None'))
    elif decode: found += [(str(mask), problem, advice) for problem, advice in _mask_problems(mask, size)]
    return found, digest


def _image_problems(data):
    "[(problem, advice)] and the (w, h) of an image file's bytes, None where it does not decode"
    if not data: return [('the file is empty (0 bytes)', 'copy it again, or drop the row')], None
    try: image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, Image.DecompressionBombError): return [('no image that Pillow can read', 'drop the row')], None
    found = []
    if image.mode == 'CMYK': found.append(('CMYK colours', 'convert it to RGB: colours may come out inverted'))
    if image.mode in SIXTEEN_BIT or image.mode.startswith('I;'):
        found.append((f'more than 8 bits a pixel (mode {image.mode})', 'scale it to 8 bits: other tools clip it to white'))
    try: image.load()
    except (OSError, ValueError, SyntaxError) as e:
        return [*found, (f'truncated or damaged ({e})', 'copy it again, or drop the row')], None
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        found.append(('rotated by its EXIF tag', 'it is turned when read, other tools may not turn it: save it upright'))
    return found, ImageOps.exif_transpose(image).size


def _mask_problems(mask, size):
    "[(problem, advice)] of a mask file, given the (w, h) of its image where that is known"
    try: labels = read_mask(mask)
    except (OSError, ValueError, SyntaxError) as e:
        return [(str(e).removeprefix(f'{mask}: '), 'convert it with convert_masks, or set the mask to None')]
    found = []
    if size is not None and labels.shape != size[::-1]:
        found.append((f'{labels.shape[1]} x {labels.shape[0]} pixels, its image {size[0]} x {size[1]} (w x h)',
                      'is it another image\'s? else resize it, nearest neighbour'))
    if not labels.any(): found.append(('all background', 'a mask without a body region teaches nothing: set it to None'))
    return found


def _same_image(catalog, digests):
    "Rows whose bytes are those of an image in another split: a query's answer in the gallery, or a test image trained on"
    first = {}
    for path, split, digest in zip(catalog['path'], catalog['split'], digests):
        twin, role = first.setdefault(digest, (path, split))
        if digest is not None and role != split:
            yield str(path), f'the same image as {twin} ({role} and {split})', 'drop one of the two: figures measured on it flatter'
