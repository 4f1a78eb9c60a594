"The catalog: the table that describes a data set, with one row for each image; its masks, its checks, its summary"

import hashlib
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags

from magnifier.checks import refuse
from magnifier.data.images import IMAGE_ENDINGS, UnreadableImage, mask_folder, opened_image, read_image, read_mask

__all__ = ['CatalogWarning', 'make_catalog', 'validate_catalog', 'check_catalog', 'lost_queries', 'find_masks',
           'join_catalogs', 'describe']

COLUMNS = ('path', 'mask', 'pid', 'camid', 'split')
SPLITS = ('train', 'query', 'gallery')
LARGEST = 2**63 - 1  # Whole number of 64 bits
EXACT = 2**53  # Whole numbers above it lose digits as floats
log = logging.getLogger(__name__)


class CatalogWarning(UserWarning):
    "A property of a data set that does not stop a training, but changes the meaning of its results"


def make_catalog(
    rows: Iterable[dict] | pd.DataFrame,  # One row an image: `path, pid, camid, split`, optional `mask` and more
) -> pd.DataFrame:  # Columns `path, mask, pid, camid, split, ...`, rows by split, identity and path, index 0..n-1
    """A catalog in the form and order that every reader returns, the same on every machine; a ValueError says what a
    row lacks"""
    rows = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    refuse({'no images: a catalog needs at least one row': len(rows) == 0})
    if 'mask' not in rows: rows = rows.assign(mask=None)
    check_columns(rows)
    _check_are_paths(rows['path'], 'path')
    # Plain objects, None for a missing mask: the same under every pandas, whose string dtypes differ
    paths = [os.fspath(p) for p in rows['path']]
    masks = [None if is_missing(m) else os.fspath(m) for m in rows['mask']]
    rows = rows.assign(path=pd.Series(paths, index=rows.index, dtype=object),
                       mask=pd.Series(masks, index=rows.index, dtype=object),
                       pid=whole_numbers(rows, 'pid'), camid=whole_numbers(rows, 'camid'),
                       split=rows['split'].astype(object))
    _check_splits(rows)
    keys = list(zip(rows['split'].map(SPLITS.index), rows['pid'], paths))
    order = sorted(range(len(rows)), key=keys.__getitem__)
    return rows[[*COLUMNS, *(c for c in rows if c not in COLUMNS)]].iloc[order].reset_index(drop=True)


def join_catalogs(
    *catalogs: pd.DataFrame,  # Two or more, each complete in itself
    test: int | None = None,  # Position of the one whose query and gallery stay; default: those of all
) -> pd.DataFrame:  # One catalog; the first keeps its numbers, those of the others are moved up past it
    """Several sets as one, with separate identities and cameras: train on several, test on one (`join_catalogs(market,
    duke, test=0)`)"""
    refuse({f'test={test}: the position of one of the {len(catalogs)} catalogs, 0 to {len(catalogs)-1}, or None for '
            'all': test is not None and not 0 <= test < len(catalogs)})
    parts = []
    pids = 0
    cams = 0
    for i, c in enumerate(catalogs):
        check_columns(c)
        c = c.assign(pid=_moved(c, 'pid', pids), camid=_moved(c, 'camid', cams))
        _check_pids(c)
        pids = max(pids, int(c['pid'].max()) + 1)
        cams = max(cams, int(c['camid'].max()) + 1)
        parts.append(c if test in (None, i) else c[c['split'] == 'train'])
    joined = make_catalog(pd.concat(parts, ignore_index=True))
    _check_duplicates(joined)
    return joined


def _moved(catalog, column, by):
    values = whole_numbers(catalog, column)
    refuse({f'{column} up to {values.max()} cannot be moved up by {by} within 64 bits: number the column anew '
            '(pd.factorize) before joining': int(values.max()) + by > LARGEST})
    return values + by


def describe(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
) -> pd.DataFrame:  # A row a split, and one for all: images, identities, cameras, images_per_identity, masks
    "Images, identities, cameras and masks of a catalog, by split"
    check_columns(catalog)
    rows = {}
    for split, c in by_split(catalog):
        people = c['pid'].nunique()
        rows[split] = dict(images=len(c), identities=people, cameras=c['camid'].nunique(),
                           images_per_identity=round(len(c) / people, 1), masks=int(c['mask'].notna().sum()))
    return pd.DataFrame.from_dict(rows, orient='index').rename_axis('split')


def by_split(catalog):
    "(name, rows) of each split that has images, and of all"
    for split in SPLITS:
        rows = catalog[catalog['split'] == split]
        if len(rows): yield split, rows
    if len(catalog): yield 'all', catalog


# Masks of the images, by the names of their files


def find_masks(
    catalog: pd.DataFrame,  # One row an image; its `mask` column is replaced
    where: str | Path | Callable | bool | None = None,  # Folder, function of a path, False; default: `<root>_ps_label`
) -> pd.DataFrame:  # The catalog with `mask` filled where a file was found, None elsewhere
    """Part masks of a catalog's images: files, looked for by name, not opened.

    Default: the nearest folder above the image that has a `<folder>_ps_label` beside it, then the same sub-path as
    `.png`. In a given folder: below the longest end of the image's path that exists there (`where/query/x.png`, else
    `where/x.png`). A ValueError if the folder or function gives no mask at all, or the same mask for two images."""
    if where is False: masks = [None] * len(catalog)
    elif callable(where):
        masks = [None if is_missing(m) or not os.path.exists(m) else os.fspath(m) for m in map(where, catalog['path'])]
    else: masks = _masks_by_name(catalog['path'], where)
    catalog = catalog.assign(mask=pd.Series(masks, index=catalog.index, dtype=object))
    _check_masks(catalog, where)
    log.info('%d of %d images have a part mask', catalog['mask'].notna().sum(), len(catalog))
    return catalog


def _check_masks(catalog, where):
    found = catalog['mask'].dropna()
    if where not in (None, False) and len(catalog) and not len(found):
        raise ValueError(_nothing_found(catalog['path'].iat[0], where))
    twice = found[found.duplicated(keep=False)]
    if len(twice):
        a, b = catalog.loc[twice.index[:2], 'path']
        raise ValueError(f'{a} and {b} have the same mask {twice.iat[0]}: give the masks the sub-folders of the images')
    same = catalog[catalog['mask'] == catalog['path']]
    refuse({f'{_first(same)} is its own mask: put the masks into another folder': len(same)})


def _masks_by_name(paths, where):
    "Mask path or None for each image path; each folder is resolved and listed once"
    folders = {}  # Folder of images -> folder of their masks, or None, and the names in it
    masks = []
    for p in paths:
        folder, name = os.path.split(os.path.abspath(p))
        if folder not in folders:
            place = _beside(Path(folder)) if where is None else _below(Path(folder), Path(where).expanduser())
            folders[folder] = place, _names(place) if place else ()
        place, names = folders[folder]
        masks.append(next((str(place / m) for m in _mask_names(name) if m in names), None))
    return masks


def _mask_names(name):
    "`x.jpg` -> `x.png`; `x.jpg.jpg` -> `x.jpg.png`, then `x.png`"
    stem = os.path.splitext(name)[0]
    yield stem + '.png'
    if stem.lower().endswith(IMAGE_ENDINGS): yield os.path.splitext(stem)[0] + '.png'


def _beside(folder):
    "The folder of masks beside the nearest folder above the images that has one"
    for above in (folder, *folder.parents[:-1]):
        labels = mask_folder(above)
        if labels.is_dir(): return labels / folder.relative_to(above)
    return None


def _below(folder, where):
    "The folder in `where` with the longest end of the images' path"
    if not where.is_dir(): raise FileNotFoundError(f'the mask folder {where} does not exist')
    ends = (where.joinpath(*folder.parts[i:]) for i in range(1, len(folder.parts)))
    return next((e for e in ends if e.is_dir()), where)


def _nothing_found(image, where):
    "The message about a mask folder or function that gives no mask"
    if callable(where): return f'the function gives no existing mask for any image (first: {image})'
    names = sorted(str(p.relative_to(where)) for p in Path(where).expanduser().rglob('*.png'))
    seen = f'it holds {len(names)} PNG files such as {names[0]}' if names else 'it holds no PNG file'
    return (f'no image has its mask in {where}: {seen}, and {image} needs '
            f'{os.path.splitext(os.path.basename(image))[0]}.png in it, or in the sub-folder named as the image\'s; '
            'pass a function image path -> mask path for other names')


# The quick check, which stops at the first problem


def validate_catalog(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
    splits: Iterable[str] = (),  # Splits that must be there, such as `('train',)`; none by default
) -> pd.DataFrame:  # The same catalog, untouched
    """The quick check: columns, types, splits, identities, duplicates, existing files, a match for every query.

    Wrong rows are a ValueError (for missing files a FileNotFoundError) that names the first one. Identities in both
    training and test, and queries without a match under the camera rule, are a `CatalogWarning`; if no query has a
    match, a ValueError. `check_catalog` opens the files too."""
    if not isinstance(catalog, pd.DataFrame):
        raise TypeError(f'a catalog is a pandas DataFrame, not a {type(catalog).__name__}')
    check_columns(catalog)
    refuse({'the catalog has no rows': len(catalog) == 0,
            "the catalog's index has duplicates: use catalog.reset_index(drop=True)": not catalog.index.is_unique})
    _check_splits(catalog)
    found = catalog['split'].value_counts()
    lacking = next((s for s in splits if s not in found), None)
    refuse({f'the catalog has no {lacking} images: found {", ".join(f"{n} {s}" for s, n in found.items())}': lacking})
    for column in ('pid', 'camid'): whole_numbers(catalog, column)  # refuses what is none
    _check_pids(catalog)
    _check_paths(catalog)
    _check_identities(catalog)
    _check_matches(catalog)
    return catalog


def check_columns(catalog):
    missing = [c for c in COLUMNS if c not in catalog]
    refuse({f'the catalog lacks the column(s) {", ".join(missing)}: it has {", ".join(map(str, catalog))}, and needs '
            f'{", ".join(COLUMNS)}': missing})


def _check_splits(catalog):
    unknown = catalog[~catalog['split'].isin(SPLITS)]
    refuse({f'{_first(unknown)}: split {_first(unknown, "split")!r}, use {", ".join(SPLITS)}': len(unknown)})


def _first(rows, column='path'):
    "The value of the first row, for messages; None where there is no row"
    return rows[column].iat[0] if len(rows) else None


def whole_numbers(catalog, column):
    "`column` as int64, exactly; a ValueError names the first row that is not a whole number"
    values = [_whole_number(v) for v in catalog[column].tolist()]
    if None in values:
        row = values.index(None)
        path, value = catalog['path'].iat[row], catalog[column].tolist()[row]
        raise ValueError(f'{path}: {column} {value!r} is not a whole number of at most 64 bits; '
                         f'catalog["{column}"].astype(int) makes numbers of digits, '
                         f'pd.factorize(catalog["{column}"])[0] of names')
    return pd.Series(values, index=catalog.index, dtype='int64')


def _whole_number(value):
    "An int, or None for values that are not whole numbers of 64 bits; a float counts if it is exact"
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() and abs(value) <= EXACT else None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value) if abs(value) <= LARGEST else None
    return None


def _check_pids(catalog):
    junk = catalog[catalog['pid'] < 0]
    refuse({f'{len(junk)} images have a negative identity (first: {_first(junk)}): junk does not belong in a catalog; '
            'use catalog[catalog.pid >= 0]': len(junk)})


def _check_duplicates(catalog):
    twice = catalog.loc[catalog['path'].duplicated(keep=False), 'path']
    if len(twice) == 0: return
    roles = catalog.loc[catalog['path'] == twice.iat[0], 'split']
    raise ValueError(f'{twice.nunique()} paths are in the catalog more than once (first: {twice.iat[0]}, as '
                     f'{" and ".join(roles)}): an image has one row')


def _check_paths(catalog):
    "Every image and mask is a path to a file that exists, and no image occurs twice"
    _check_are_paths(catalog['path'], 'path')
    _check_duplicates(catalog)
    _check_exist(catalog['path'], 'image')
    masks = catalog['mask'].dropna()
    _check_are_paths(masks, 'mask')
    _check_exist(masks, 'mask')


def _check_are_paths(given, column):
    for p in given:
        if not isinstance(p, (str, os.PathLike)) or p == '': raise ValueError(f'{column} {p!r} is not a path')


def _check_exist(paths, kind):
    "Each folder is listed once, since a request for each file is slow on network disks"
    listed = {}
    gone = []
    for p in paths:
        folder, name = os.path.split(p)
        if folder not in listed: listed[folder] = _names(folder or '.')
        if name not in listed[folder] and not os.path.exists(p): gone.append(p)
    if gone:
        raise FileNotFoundError(f'{len(gone)} of {len(paths)} {kind} files do not exist (first: {gone[0]})')


def _names(folder) -> set: return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def _check_identities(catalog):
    train = catalog['split'] == 'train'
    both = sorted(set(catalog['pid'][train]) & set(catalog['pid'][~train]))
    if both:
        warnings.warn(f'{len(both)} identities are in both training and test (first: {both[0]}), so that R1 and mAP '
                      'will be too high. Split by identity, or number the test identities differently if they are '
                      'other people', CatalogWarning, stacklevel=3)


def _check_matches(catalog):
    lost = lost_queries(catalog)
    if len(lost) == 0: return
    message = lost_queries_message(catalog, lost)
    refuse({message: len(lost) == (catalog['split'] == 'query').sum()})
    warnings.warn(message, CatalogWarning, stacklevel=3)


def lost_queries(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
) -> pd.DataFrame:  # Its queries that have no match left, with a column `why`; the index is the catalog's
    """Queries that lose all matches under the camera rule (same identity AND same camera are removed):
    `catalog.drop` them by index"""
    query, gallery = (catalog[catalog['split'] == s] for s in ('query', 'gallery'))
    same_person = query['pid'].map(gallery['pid'].value_counts()).fillna(0).to_numpy()
    pairs = gallery.groupby(['pid', 'camid']).size()
    same_camera = pairs.reindex(pd.MultiIndex.from_frame(query[['pid', 'camid']]), fill_value=0).to_numpy()
    why = np.where(same_person == 0, 'no gallery image of the identity', 'only gallery images of its own camera')
    return query.assign(why=why)[same_person == same_camera]


def lost_queries_message(catalog, lost) -> str:
    "How many queries lose their matches, why, and the two ways out, from the rows of `lost_queries`"
    test = catalog[catalog['split'] != 'train']
    if test['camid'].nunique() == 1: why = f'every query and gallery image has the one camera {test["camid"].iat[0]}'
    else: why = ', '.join(f'{n} with {w}' for w, n in lost['why'].value_counts().items())
    return (f'{len(lost)} of {(catalog["split"] == "query").sum()} queries have no match left, since gallery images '
            f'of the same identity AND camera are removed: {why} (first: {lost["path"].iat[0]}). Two ways out: give '
            'each image the camera it was taken by in `camid` (where cameras are unknown: 0 for queries, 1 for the '
            'gallery), with a gallery image of every query\'s identity from another camera; or leave those queries '
            'out: catalog.drop(lost_queries(catalog).index)')


def is_missing(value) -> bool: return value is None or value is pd.NA or value == '' or value != value


# The thorough check, which opens the files and lists every problem


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
    problems = _row_problems(catalog)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        looked = list(pool.map(partial(_file_problems, decode=decode), catalog['path'], catalog['mask']))
    for found, _ in looked: problems += found
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
    found = []
    digest = None
    size = None
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
    "[(problem, advice)] and the (w, h) of an image file, given its bytes; None for the size if it does not decode"
    if not data: return [('the file is empty (0 bytes)', 'copy it again, or drop the row')], None
    found = []
    try:
        with opened_image(data) as image:
            if image.mode == 'CMYK': found.append(('CMYK colours', 'convert it to RGB: colours may come out inverted'))
            if image.mode.startswith(('I', 'F')):
                found.append((f'more than 8 bits a pixel (mode {image.mode})',
                              'scale it to 8 bits: other tools clip it to white'))
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                found.append(('rotated by its EXIF tag',
                              'it is turned when read, other tools may not turn it: save it upright'))
        return found, read_image(data).size
    except UnreadableImage as e:
        return [*found, (str(e).partition(': ')[2], 'copy it again, or drop the row')], None


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
    "Files whose bytes another identity or split has too: a wrong label, or a test image in training"
    seen = defaultdict(list)  # Digest -> rows with these bytes
    for row, digest in zip(catalog.itertuples(), digests):
        if digest is None: continue
        twin = next((r for r in seen[digest] if (r.pid, r.split) != (row.pid, row.split)), None)
        seen[digest].append(row)
        if twin is None: continue
        what = f'{twin.split} and {row.split}' if twin.split != row.split else f'identities {twin.pid} and {row.pid}'
        problem = f'the same image as {twin.path} ({what})'
        yield str(row.path), problem, 'drop one of the two: figures would be too good or too bad'
