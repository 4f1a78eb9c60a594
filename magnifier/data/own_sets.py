"Your own data: one folder for each identity, or a table; and the split into training, queries and gallery"

import csv
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from magnifier.checks import refuse
from magnifier.data.catalog import LARGEST, SPLITS, CatalogWarning, find_masks, make_catalog
from magnifier.data.images import existing, image_files

__all__ = ['identity_folders', 'catalog_csv', 'split_queries']

# How programs write that a value is not known
MISSING = ('', 'nan', 'none', 'null', 'na', 'n/a', '<na>', 'inf', '-inf')
SPLIT_FOLDER = re.compile(r'(?i)^(train|val|test|query|probe|gallery|bounding_box|all)')
log = logging.getLogger(__name__)


def identity_folders(
    path: str | Path,  # A folder that holds a folder for each identity, at any depth
    camera: str | Callable | None = None,  # Regex with one group, or function, of the path below `path`; None: unknown
    split: str | Callable | None = None,  # The same, giving train, query, gallery or test; None: identities are drawn
    *,
    include: str | None = None,  # A regex, searched in the path below `path`: only these images
    exclude: str | None = None,  # The same: but not these
    train: float = 0.5,  # Share of the identities that train, where `split` is None; in [0, 1]
    n_query: int = 1,  # Queries drawn for each test identity and camera, where the split does not say
    seed: int = 0,  # Of both draws; the same on every machine
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<path>_ps_label`
) -> pd.DataFrame:  # Catalog, with the folder's name in a column `identity`
    r"""A folder for each identity: `identity_folders('people', camera=r'cam(\d+)_')` reads `people/ann/cam2_0001.jpg`.

    If all identities are named by numbers, these are their pids; otherwise they are numbered in sorted order. The same
    holds for cameras. If cameras are not known, an image is compared with all others of its person: queries get camera
    0 and the gallery camera 1 (training 0), as in test sets without cameras. If you drop rows later, draw the queries
    again with `split_queries`. ValueError for a pattern that does not match, naming the file."""
    root = existing(path)
    files = image_files(root, recursive=True, include=include, exclude=exclude)
    loose = next((p for p in files if p.parent == root), None)
    refuse({f"{loose} does not lie in an identity's folder": loose})
    below = [p.relative_to(root).as_posix() for p in files]
    if split is None: _notice_layouts(root, below)
    names = [p.parent.name for p in files]
    table = pd.DataFrame(dict(path=[str(p) for p in files], identity=names, pid=_numbered(names, apart=True), camid=0,
                              split='test'))
    if camera is None: log.info('%s: cameras not known; queries are camera 0, the gallery camera 1', root)
    else: table['camid'] = _numbered([_ask(camera, b, 'camera') for b in below])
    if split is not None: table['split'] = [_role(split, b) for b in below]
    table = _split(table, train if split is None else None, n_query, seed, cameras=camera is not None)
    return find_masks(make_catalog(table), masks)


def split_queries(
    catalog: pd.DataFrame,  # One row an image: `path, mask, pid, camid, split`
    train: float | None = None,  # Share of the identities that train, drawn anew, in [0, 1]; None: those that train now
    *,
    n_query: int = 1,  # Queries drawn for each test identity and camera
    cameras: bool = True,  # Whether cameras are known; False: queries become camera 0, the gallery 1
    seed: int = 0,  # Of both draws; the same on every machine
) -> pd.DataFrame:  # The catalog with its splits drawn anew
    """Draws training identities and queries again, after rows were dropped or added.

    As in Market-1501, `n_query` images of each test identity and camera are queries. Images that cannot have a match
    stay in the gallery: a person's only image, and a person seen by one camera if there are several cameras."""
    table = make_catalog(catalog)
    if train is None: table['split'] = table['split'].where(table['split'] == 'train', 'test')
    return make_catalog(_split(table, train, n_query, seed, cameras=cameras))


def catalog_csv(
    file: str | Path,  # A CSV file, one row an image
    columns: dict[str, str] | None = None,  # Catalog's column -> the file's, where they differ: `{'pid': 'person'}`
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: the column mask
    *,
    root: str | Path | None = None,  # Folder that relative paths start from; default: the file's own
) -> pd.DataFrame:  # Catalog, with the file's further columns
    """Your own table, with the columns `path, pid, camid, split` and, if you have masks, `mask`.

    Names of identities and cameras are numbered in sorted order. A ValueError for missing columns names the existing
    ones. A catalog written with `to_csv(index=False)` reads back the same."""
    file = Path(file).expanduser().absolute()
    table = read_table(file)
    needed = ['path', 'pid', 'camid', 'split'] + (['mask'] if 'mask' in table else [])
    columns = {c: c for c in needed} | (columns or {})
    table = _renamed(table, columns, file)
    base = file.parent if root is None else existing(root)
    table['path'] = [str(base / p) for p in table['path']]
    if 'mask' in table: table['mask'] = pd.Series([str(base / p) if p else None for p in table['mask']], dtype=object)
    table['pid'] = _numbered(table['pid'])
    table['camid'] = _numbered(table['camid'])
    catalog = make_catalog(table)
    return catalog if masks is None and catalog['mask'].notna().any() else find_masks(catalog, masks)


def _renamed(table, columns, file):
    "The table with the catalog's names for its columns, all of which are there and filled"
    lacking = [f'{theirs!r} (for {ours})' for ours, theirs in columns.items() if theirs not in table]
    refuse({f'{file} has no column {", ".join(lacking)}: it has {", ".join(table)}; name them with columns=': lacking})
    others = [c for c in table if c not in columns and c not in columns.values()]
    table = pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()}).join(table[others])
    _check_filled(table, file)
    return table


def _check_filled(table, file):
    for i, row in enumerate(table[['path', 'pid', 'camid']].itertuples(index=False), 2):
        empty = [name for name, value in zip(row._fields, row) if value.strip().lower() in MISSING]
        if empty: raise ValueError(f'{file}, line {i}: {empty[0]} is empty')


def read_table(
    file: str | Path,  # A CSV file in UTF-8, with a header
) -> pd.DataFrame:  # All columns as text
    "A CSV file; a ValueError names the file and the wrong line, a FileNotFoundError a missing file"
    if not Path(file).is_file(): raise FileNotFoundError(f'{file}: no such file')
    rows = _numbered_rows(file)
    refuse({f'{file} is empty: a CSV table with a header is needed': not rows})
    (_, header), *rows = rows
    twice = next((c for i, c in enumerate(header) if c in header[:i]), None)
    refuse({f'{file} has two columns {twice!r}: name them differently': twice is not None})
    for number, row in rows:
        refuse({f'{file}, line {number}: {len(row)} fields, and the header has {len(header)}': len(row) != len(header)})
    return pd.DataFrame([row for _, row in rows], columns=header, dtype=object)


def _numbered_rows(file):
    "(number of its line, fields) for each row that is not empty"
    try:
        with open(file, encoding='utf-8-sig', newline='') as text:
            lines = csv.reader(text)
            return [(lines.line_num, row) for row in lines if row]
    except UnicodeDecodeError as e:
        raise ValueError(f'{file} is not in UTF-8 ({e.reason} at byte {e.start}): save it as CSV in UTF-8') from e
    except csv.Error as e: raise ValueError(f'{file}, line {lines.line_num}: {e}; a CSV table is wanted') from e


def _notice_layouts(root, below):
    "Warns if the folders of several splits are read as one set"
    places = sorted({b.rsplit('/', 2)[0] if b.count('/') > 1 else '.' for b in below})
    parts = {part for place in places for part in place.split('/')}
    if len(places) < 2 or not any(SPLIT_FOLDER.match(part) for part in parts): return
    warnings.warn(f'{root}: identities lie in {", ".join(places[:6])}{", ..." if len(places) > 6 else ""}, and all '
                  "are read as one set. Say which is which by split=r'^(train|test)/' or a function, or leave some out "
                  'by exclude= or include=', CatalogWarning, stacklevel=3)


def _numbered(names, apart=False) -> list[int]:
    """The names as numbers if all are whole numbers of 64 bits, else their positions in sorted order. With `apart`, 1
    and 001 are two names, so that neither is taken as a number"""
    distinct = sorted(set(map(str, names)))
    numbers = [int(n.split('.')[0]) for n in distinct if re.fullmatch(r'-?\d+(\.0+)?', n)]
    exact = len(numbers) == len(distinct) and all(abs(n) <= LARGEST for n in numbers)
    if not exact or apart and len(set(numbers)) < len(distinct): numbers = range(len(distinct))
    number = dict(zip(distinct, numbers))
    return [number[str(n)] for n in names]


def _ask(how, below, what) -> str:
    "The result of a function, or of a regular expression's group, for the path below the root"
    if callable(how): return str(how(below))
    found = re.search(how, below)
    refuse({f'{below}: the {what} pattern {how!r} finds nothing; it needs one group (...) that matches every image':
            not found or not found.groups() or found[1] is None})
    return found[1]


def _role(split, below):
    role = _ask(split, below, 'split')
    refuse({f'{below}: split {role!r}, use {", ".join(SPLITS)}, or test to have queries drawn':
            role not in (*SPLITS, 'test')})
    return role


def _split(table, train, n_query, seed, *, cameras):
    "The table with 'test' divided into query and gallery; with a share `train` all identities are divided first"
    refuse({f'train={train}: a share of the identities, 0 to 1': train is not None and not 0 <= train <= 1,
            f'n_query={n_query}: at least 1 query for each identity and camera': n_query < 1})
    rng = np.random.default_rng(seed)
    table = table.sort_values('path', ignore_index=True)  # the draw does not depend on the order of rows
    if not cameras: table = table.assign(camid=0)
    if train is not None: table = table.assign(split=_draw_train(table['pid'], train, rng))
    table = table.assign(split=_draw_queries(table, n_query, rng))
    return table if cameras else table.assign(camid=(table['split'] == 'gallery').astype(int))


def _draw_train(pids, share, rng) -> list[str]:
    "'train' or 'test' for each image: identities are shuffled, the first share of them trains"
    people = sorted(set(pids))
    chosen = set(rng.permutation(people)[:round(share * len(people))].tolist())
    return ['train' if p in chosen else 'test' for p in pids]


def _draw_queries(table, n_query, rng) -> list[str]:
    "Splits with 'test' divided, as `split_queries` says"
    split = table['split'].to_numpy(dtype=object, copy=True)
    several = table['camid'].nunique() > 1
    for _, person in table[table['split'] == 'test'].groupby('pid'):
        split[person.index] = 'gallery'
        by_camera = [group.index.to_numpy() for _, group in person.groupby('camid')]
        for group in _asking(by_camera, n_query, several, rng):
            chosen = rng.permutation(len(group))[:n_query]
            split[group[chosen]] = 'query'
    return split.tolist()


def _asking(groups, n_query, several, rng):
    "A person's images that queries are drawn from, by camera"
    large = [g for g in groups if len(g) > n_query]
    if len(groups) == 1 and several: return []  # no other camera has a match
    if large: return large
    if len(groups) == 1: return [groups[0][:-1]]
    return [groups[rng.integers(len(groups))]]  # few images in each: all queries are of one camera
