"One's own data: a folder an identity, or a table"

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from magnifier.data.catalog import SPLITS, find_masks, make_catalog
from magnifier.data.layouts import existing, images

__all__ = ['identity_folders', 'catalog_csv']

log = logging.getLogger(__name__)


def identity_folders(
    path: str | Path,  # A folder with a folder an identity, at any depth: the identity is the name of the folder an image lies in
    camera: str | Callable | None = None,  # A regex with one group, or a function, of the path below `path`, 'ann/cam2_1.jpg'; None: unknown
    split: str | Callable | None = None,  # The same, giving 'train', 'query', 'gallery' or 'test'; None: identities are drawn
    *,
    train: float = 0.5,  # Share of the identities that train, where `split` is None; in [0, 1]
    n_query: int = 1,  # Queries drawn for each test identity and camera, where the split does not say
    seed: int = 0,  # Of both draws; the same on every machine
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<path>_ps_label`
) -> pd.DataFrame:  # Catalog, with the folder's name in a column `identity`
    """A folder an identity. Names that are all numbers are the identities, else their sorted order is; cameras likewise.

    Where cameras are not known, queries are camera 0 and gallery camera 1 (training 0), as in test sets without cameras: an image is
    compared with all others of its person. ValueError for a pattern that does not match, naming the file.
    """
    if not 0 <= train <= 1: raise ValueError(f'train={train}: a share of the identities, 0 to 1')
    if n_query < 1: raise ValueError(f'n_query={n_query}: at least 1 image of an identity and camera has to ask')
    root = existing(path)
    files, rng = images(root, recursive=True), np.random.default_rng(seed)
    loose = [p for p in files if p.parent == root]
    if loose: raise ValueError(f'{loose[0]} lies in no identity\'s folder')
    table = pd.DataFrame(dict(path=[str(p) for p in files], identity=[p.parent.name for p in files]))
    below = [p.relative_to(root).as_posix() for p in files]
    table['pid'] = _numbered(table['identity'], apart=True)
    table['camid'] = 0 if camera is None else _numbered([_ask(camera, b, 'camera') for b in below])
    table['split'] = _draw_train(table['pid'], train, rng) if split is None else [_role(split, b) for b in below]
    table['split'] = _draw_queries(table, n_query, rng)
    if camera is None:
        table['camid'] = (table['split'] == 'gallery').astype(int)
        log.info('%s: cameras not known; queries are camera 0, the gallery camera 1', root)
    return find_masks(make_catalog(table), masks)


def catalog_csv(
    file: str | Path,  # A CSV file, one row an image
    columns: dict[str, str] | None = None,  # Catalog's column -> the file's, such as `{'pid': 'person'}`, where they differ
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: the file's mask column, else `_ps_label`
    *,
    root: str | Path | None = None,  # Folder that relative paths start from; default: the file's own
) -> pd.DataFrame:  # Catalog, with the file's further columns
    """A table of one's own: `path, pid, camid, split`, optional `mask`; identities and cameras that are names are numbered, sorted.

    ValueError for columns that are not there, naming those that are. A catalog written with `to_csv(index=False)` reads back the same.
    """
    file = Path(file).expanduser().absolute()
    if not file.is_file(): raise FileNotFoundError(f'{file} is not there')
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    columns = {c: c for c in ('path', 'pid', 'camid', 'split')} | ({'mask': 'mask'} if 'mask' in table else {}) | (columns or {})
    lacking = [f'{theirs!r} (for {ours})' for ours, theirs in columns.items() if theirs not in table]
    if lacking: raise ValueError(f'{file} has no column {", ".join(lacking)}: it has {", ".join(table)}; name them with columns=')
    table = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    base = file.parent if root is None else existing(root)
    for i, row in enumerate(table[['path', 'pid', 'camid']].itertuples(index=False), 2):
        if '' in row: raise ValueError(f'{file}, line {i}: {row._fields[row.index("")]} is empty')
    for c in {'path', 'mask'} & set(table): table[c] = [str(base / p) if p else None for p in table[c]]
    for c in ('pid', 'camid'): table[c] = _numbered(table[c])
    catalog = make_catalog(table)
    return catalog if masks is None and catalog['mask'].notna().any() else find_masks(catalog, masks)


def _numbered(names, apart=False) -> list[int]:
    "The numbers where all names are whole numbers, else places in sorted order; `apart`: 1 and 001 are two names, not one number"
    distinct = sorted(set(map(str, names)))
    numbers = [int(float(n)) for n in distinct if re.fullmatch(r'-?\d+(\.0+)?', n)]
    if len(numbers) < len(distinct) or apart and len(set(numbers)) < len(distinct): numbers = range(len(distinct))
    number = dict(zip(distinct, numbers))
    return [number[str(n)] for n in names]


def _ask(how, below, what) -> str:
    "What a function, or a regex's group, says of the path below the root"
    if callable(how): return str(how(below))
    found = re.search(how, below)
    if not found or not found.groups() or found[1] is None:
        raise ValueError(f'{below}: the {what} pattern {how!r} finds nothing; it needs one group (...) that matches every image')
    return found[1]


def _role(split, below):
    role = _ask(split, below, 'split')
    if role not in (*SPLITS, 'test'):
        raise ValueError(f'{below}: split {role!r}, use {", ".join(SPLITS)}, or test to have queries drawn')
    return role


def _draw_train(pids, share, rng) -> list[str]:
    "'train' or 'test' for each image: identities are shuffled, the first share of them trains"
    people = sorted(set(pids))
    chosen = set(rng.permutation(people)[:round(share * len(people))].tolist())
    return ['train' if p in chosen else 'test' for p in pids]


def _draw_queries(table, n_query, rng) -> list[str]:
    """Splits with 'test' divided: `n_query` images of each identity and camera ask, as in Market-1501.

    Who could not be matched stays in the gallery: a lone image, and a person seen by one camera where there are several.
    """
    split, several = table['split'].to_numpy(dtype=object, copy=True), table['camid'].nunique() > 1
    for _, person in table[table['split'] == 'test'].groupby('pid'):
        groups = [g.index.to_numpy() for _, g in person.groupby('camid')]
        asking = [g for g in groups if len(g) > n_query]
        if len(groups) == 1: asking = [] if several else [groups[0][:-1]] if not asking else asking
        elif not asking: asking = [groups[rng.integers(len(groups))]]  # few images in each: one camera asks the others
        split[person.index] = 'gallery'
        for g in asking: split[g[rng.permutation(len(g))[:n_query]]] = 'query'
    return split.tolist()
