"What the readers share: finding a set's root, listing its images, parsing Market-style names, expected counts"

import logging
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.data.catalog import IMAGE_ENDINGS, SPLITS, CatalogWarning, find_masks, make_catalog
from magnifier.files import aside

__all__ = []

MARKET_FOLDERS = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
MARKET_NAME = re.compile(r'(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?_')
log = logging.getLogger(__name__)


def find_root(path, folders, names, title) -> Path:
    "`path`, or the folder with a usual name in it (two levels deep), that holds all of `folders`; else FileNotFoundError"
    path = existing(path)
    found = [r for r in _roots(path, {plain(n) for n in names}) if all((r / f).is_dir() for f in folders)]
    if len(found) == 1 or found[:1] == [path]: return found[0]
    if found: raise ValueError(f'{path} holds {" and ".join(r.name for r in found)}: give the path of one of them')
    below = f' and in folders of it named {", ".join(names)}' if names else ''
    raise FileNotFoundError(f'no {title} in {path}: looked for the folders {", ".join(folders)} in it{below}; it holds {_some(path)}')


def existing(path) -> Path:
    "Absolute, so that a catalog survives a change of the working directory; FileNotFoundError where it is no folder"
    path = Path(path).expanduser().absolute()
    if not path.is_dir(): raise FileNotFoundError(f'{path} is not a folder')
    return path


def save_png(image, path):
    "A PIL image or array as PNG, written aside and renamed, so that a killed run leaves no half file"
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    with aside(path, synced=False) as part: image.save(part, format='PNG')


def plain(name) -> str: return re.sub('[^a-z0-9]', '', str(name).lower())


def _roots(path, names, depth=2):
    yield path
    if depth == 0: return
    for d in sorted(path.iterdir()):
        if d.is_dir() and plain(d.name) in names: yield from _roots(d, names, depth - 1)


def _some(path):
    names = sorted(os.listdir(path))
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') if names else 'nothing'


def images(folder, recursive=False) -> list[Path]:
    "Image files of a folder, sorted, without hidden ones, part masks and copies with a second ending; ValueError for none"
    found, copies = [], 0
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if recursive and not f.startswith('.') and not f.endswith('_ps_label')]
        names = {f for f in files if f.lower().endswith(IMAGE_ENDINGS) and not f.startswith('.')}
        second = {n for n in names if os.path.splitext(n)[0] in names}  # x.jpg.jpg beside x.jpg
        found += [os.path.join(place, n) for n in names - second]
        copies += len(second)
    if copies: log.info('%s: %d copies with a second ending left out', folder, copies)
    if not found: raise ValueError(f'{folder} holds no image ({", ".join(IMAGE_ENDINGS)})')
    return [Path(p) for p in sorted(found)]


def market_rows(folder, split) -> list[dict]:
    "Rows of a folder with Market-1501's names; junk (-1) is left out, a distractor (0000) outside the gallery is a ValueError"
    rows, junk = [], 0
    for p in images(folder):
        name = MARKET_NAME.match(p.name)
        if not name: raise ValueError(f'{p}: the name does not begin with <identity>_c<camera>_ or <identity>_c<camera>s<sequence>_, '
                                      'as 0002_c1s1_000451_03.jpg does')
        pid, camid = int(name['pid']), int(name['camid'])
        if pid == 0 and split != 'gallery': raise ValueError(f'{p}: identity 0000 marks distractors, which belong in the gallery '
                                                             f'alone, not in {split}; number this person differently')
        if pid == -1: junk += 1
        else: rows.append(dict(path=str(p), pid=pid, camid=camid, split=split))
    if junk: log.info('%s: %d junk images (identity -1) left out', folder, junk)
    return rows


def market_style(root, title, counts, *, masks, expected) -> pd.DataFrame:
    "Catalog of a root with Market-1501's three folders"
    rows = [row for split, folder in MARKET_FOLDERS.items() for row in market_rows(root / folder, split)]
    return finish(rows, title, counts, masks=masks, expected=expected)


def finish(rows, title, counts, *, masks, expected) -> pd.DataFrame:
    "Rows to catalog: masks found, and where `expected` the counts compared"
    catalog = find_masks(make_catalog(rows), masks)
    if expected: check_counts(catalog, title, counts)
    return catalog


def expects(expected, root, names) -> bool:
    "Whether to compare counts: 'auto' where the root has one of the real set's names"
    if expected not in (True, False, 'auto'): raise ValueError(f"expected={expected!r}: use True, False or 'auto'")
    return plain(root.name) in {plain(n) for n in names} if expected == 'auto' else expected


def check_counts(catalog, title, counts):
    "One warning for the splits whose images or identities are not those of the published set"
    wrong = []
    for split in SPLITS:
        c = catalog[catalog['split'] == split]
        seen = (len(c), c['pid'].nunique())
        if split in counts and seen != counts[split]:
            images, people = counts[split]
            wrong.append(f'{split} has {seen[0]:,} images of {seen[1]:,} identities, expected {images:,} of {people:,}')
    if wrong: warnings.warn(f'{title}: {"; ".join(wrong)}. The copy may be incomplete; expected=False if it is meant so',
                            CatalogWarning, stacklevel=2)
