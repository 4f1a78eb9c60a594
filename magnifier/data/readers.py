"Readers of published data sets: a folder in, its catalog out"

import logging
import os
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from fastcore.meta import delegates
from scipy.io import loadmat

from magnifier.checks import choose, needs, refuse
from magnifier.data.catalog import SPLITS, CatalogWarning, find_masks, make_catalog
from magnifier.data.images import existing, image_files, save_png
from magnifier.data.own_sets import catalog_csv, identity_folders

__all__ = ['market1501', 'dukemtmc', 'occluded_duke', 'cuhk03_np', 'cuhk03', 'msmt17', 'partial_reid', 'occluded_reid']

log = logging.getLogger(__name__)


class PublishedSet(NamedTuple):
    "A data set's title, and its published numbers of images and identities"
    title: str
    names: tuple[str, ...]  # Usual names of its root
    counts: dict[str, tuple[int, int]]  # Split -> images, identities


CUHK03_NAMES = ('cuhk03-np', 'CUHK03')
MSMT17_NAMES = ('MSMT17_V1', 'MSMT17_V2', 'MSMT17')
PUBLISHED = {
    'market1501': PublishedSet(  # the gallery's identities: 750 and the distractors' 0000
        'Market-1501', ('Market-1501-v15.09.15', 'Market-1501', 'market1501'),
        dict(train=(12936, 751), query=(3368, 750), gallery=(15913, 751))),
    'dukemtmc': PublishedSet(
        'DukeMTMC-reID', ('DukeMTMC-reID', 'DukeMTMC', 'Duke'),
        dict(train=(16522, 702), query=(2228, 702), gallery=(17661, 1110))),
    'occluded_duke': PublishedSet(
        'Occluded-Duke', ('Occluded_Duke', 'Occluded-DukeMTMC', 'Occluded-DukeMTMC-reID'),
        dict(train=(15618, 702), query=(2210, 519), gallery=(17661, 1110))),
    'cuhk03_np labeled': PublishedSet(
        'CUHK03-NP (labeled)', CUHK03_NAMES, dict(train=(7368, 767), query=(1400, 700), gallery=(5328, 700))),
    'cuhk03_np detected': PublishedSet(
        'CUHK03-NP (detected)', CUHK03_NAMES, dict(train=(7365, 767), query=(1400, 700), gallery=(5332, 700))),
    'msmt17': PublishedSet(
        'MSMT17', MSMT17_NAMES, dict(train=(32621, 1041), query=(11659, 3060), gallery=(82161, 3060))),
    'msmt17 without val': PublishedSet(
        'MSMT17', MSMT17_NAMES, dict(train=(30248, 1041), query=(11659, 3060), gallery=(82161, 3060))),
    'partial_reid': PublishedSet(
        'Partial-REID', ('Partial-REID_Dataset', 'Partial_REID'), dict(query=(300, 60), gallery=(300, 60))),
    'occluded_reid': PublishedSet(
        'Occluded-REID', ('Occluded_REID',), dict(query=(1000, 200), gallery=(1000, 200))),
}
KINDS = ('labeled', 'detected')
CUHK03_RELEASE = ('cuhk03_release', 'cuhk03', 'cuhk-03')
MARKET_FOLDERS = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
CROP_NAME = re.compile(r'(?P<pair>\d+)_(?P<person>\d+)_(?P<camid>\d+)_(?P<image>\d+)')
MARKET_NAME = re.compile(r'(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?_')
MSMT17_VERSIONS = (('train', 'test'), ('mask_train_v2', 'mask_test_v2'))  # Image folders of V1, of V2
MSMT17_LINE = re.compile(r'(?P<path>(?=\S)(?:.*/)?[^/_]*_[^/_]*_(?P<camid>\d+)_[^/]*?)\s+(?P<pid>\d+)\s*')


def market1501(
    path: str | Path,  # The root with `bounding_box_train`, `query`, `bounding_box_test`, or a folder that holds it
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
) -> pd.DataFrame:  # Catalog
    """Market-1501 (Zheng et al. 2015), or any set with its layout and names, `0002_c1s1_000451_03.jpg`.

    Junk (-1) is left out and counted in the log; distractors (0000) stay in the gallery. Cameras keep the numbers of
    the names. FileNotFoundError for missing folders; ValueError for an empty folder or an image name of another
    form."""
    return _market_style('market1501', path, masks, expected)


@delegates(market1501)
def dukemtmc(
    path: str | Path,  # The root with Market-1501's three folders, or a folder that holds it by a usual name
    **kwargs  # As `market1501`
) -> pd.DataFrame:  # Catalog
    "DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017), `0002_c1_f0044158.jpg`; errors as `market1501`"
    return _market_style('dukemtmc', path, **kwargs)


@delegates(market1501)
def occluded_duke(
    path: str | Path,  # The root with Market-1501's three folders, or a folder that holds it by a usual name
    **kwargs  # As `market1501`
) -> pd.DataFrame:  # Catalog
    "Occluded-Duke (Miao et al. 2019), with DukeMTMC-reID's folders and names; errors as `market1501`"
    return _market_style('occluded_duke', path, **kwargs)


def cuhk03_np(
    path: str | Path,  # The root with `labeled` and `detected`, one of the two, or a folder that holds the root
    kind: str = 'labeled',  # 'labeled' (boxes by hand) or 'detected'
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
) -> pd.DataFrame:  # Catalog
    "CUHK03-NP (Zhong et al. 2017), `0001_c1_...png`, evaluated as Market-1501 is; errors as `market1501`"
    choose(kind, KINDS, 'kind')
    path = existing(path)
    root = path.parent if path.name == kind else find_root(path, [kind], CUHK03_NAMES, 'CUHK03-NP')
    return _market_style(f'cuhk03_np {kind}', root / kind, masks, expected, named=root)


def cuhk03(
    path: str | Path,  # The folder with `cuhk-03.mat` and `cuhk03_new_protocol_config_<kind>.mat`, or above it
    kind: str = 'labeled',  # 'labeled' (boxes by hand) or 'detected'
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<out>_ps_label`
    *,
    out: str | Path | None = None,  # Root of the PNGs; default: `cuhk03-np` in `path`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
) -> pd.DataFrame:  # Catalog
    """CUHK03 (Li et al. 2014) from its raw .mat, with the new protocol's split (Zhong et al. 2017).

    The first call writes the images as PNGs in CUHK03-NP's layout, into a folder that gets its name when it is
    complete, so a killed call is continued by the next; later calls read the PNGs. ImportError without h5py; ValueError
    for a wrong file."""
    choose(kind, KINDS, 'kind')
    root = existing(path)
    out = root / 'cuhk03-np' if out is None else Path(out).expanduser().absolute()
    if not (out / kind).is_dir(): _unpack_cuhk03(root, kind, out)
    return cuhk03_np(out, kind, masks, expected=_expects(expected, root, CUHK03_RELEASE))


def msmt17(
    path: str | Path,  # The root with `train`, `test` (V1) or `mask_train_v2`, `mask_test_v2` (V2) and the four lists
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
    *,
    val_in_train: bool = True,  # `list_val.txt` is trained on, as in most published figures; False: left out
) -> pd.DataFrame:  # Catalog
    """MSMT17 (Wei et al. 2018), V1 or V2, by its lists of "path identity"; the camera is the third field of a file's
    name.

    Both training and test identities are numbered from 0 but are different people, so test identities are numbered
    after the training's. FileNotFoundError for a missing list or image; ValueError, with the line, for a line of
    another form."""
    root, (train, test) = _msmt17_root(path)
    rows = _read_list(root, 'train', train, split='train')
    val = _read_list(root, 'val', train, split='train')
    shift = 1 + max(row['pid'] for row in rows + val)
    if val_in_train: rows += val
    for split in ('query', 'gallery'):
        for row in _read_list(root, split, test, split): rows.append(row | dict(pid=row['pid'] + shift))
    log.info('MSMT17: %d validation images %s', len(val), 'are part of training' if val_in_train else 'are left out')
    return _finished(rows, PUBLISHED['msmt17' if val_in_train else 'msmt17 without val'], root, masks, expected)


def partial_reid(
    path: str | Path,  # The root with `partial_body_images`, `whole_body_images`, or a folder that holds it
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
    *,
    queries: str = 'partial',  # 'partial' or 'occluded': which images are queries
) -> pd.DataFrame:  # Catalog with query and gallery, no training images
    """Partial-REID (Zheng et al. 2015), test only: partial images (camera 0) against whole ones (camera 1), as
    no cameras are given"""
    choose(queries, ('partial', 'occluded'), 'queries')
    return _body_images('partial_reid', path, queries, masks, expected)


def occluded_reid(
    path: str | Path,  # The root with `occluded_body_images`, `whole_body_images`, or a folder that holds it
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts are not the published ones; 'auto': by the root's name
) -> pd.DataFrame:  # Catalog with query and gallery, no training images
    """Occluded-REID (Zhuo et al. 2018), test only: occluded images (camera 0) against whole ones (camera 1), as
    no cameras are given"""
    return _body_images('occluded_reid', path, 'occluded', masks, expected)


def _market_style(key, path, masks=None, expected='auto', named=None):
    """Catalog of a set with Market-1501's three folders; `named`: the folder with the name that says whether this is
    the real set"""
    published = PUBLISHED[key]
    root = find_root(path, MARKET_FOLDERS.values(), published.names if named is None else (), published.title)
    rows = [row for split, folder in MARKET_FOLDERS.items() for row in _market_rows(root / folder, split)]
    return _finished(rows, published, named or root, masks, expected)


def _market_rows(folder, split) -> list[dict]:
    "Rows of a folder with Market-1501's names; junk (-1) is left out"
    rows = []
    junk = 0
    for p in image_files(folder):
        name = MARKET_NAME.match(p.name)
        refuse({f'{p}: the name does not begin with <identity>_c<camera>_ or <identity>_c<camera>s<sequence>_, as '
                '0002_c1s1_000451_03.jpg does': not name})
        pid, camid = int(name['pid']), int(name['camid'])
        refuse({f'{p}: identity 0000 marks distractors, which belong in the gallery alone, not in {split}; number this '
                'person differently': pid == 0 and split != 'gallery'})
        if pid == -1: junk += 1
        else: rows.append(dict(path=str(p), pid=pid, camid=camid, split=split))
    if junk: log.info('%s: %d junk images (identity -1) left out', folder, junk)
    return rows


def _finished(rows, published, root, masks, expected):
    "Rows to catalog: masks found, and where `expected` says so the counts compared"
    catalog = find_masks(make_catalog(rows), masks)
    if _expects(expected, root, published.names): _check_counts(catalog, published)
    return catalog


def _expects(expected, root, names) -> bool:
    "Whether to compare counts: with 'auto', if the root has one of the real set's names"
    refuse({f"expected={expected!r}: use True, False or 'auto'": expected not in (True, False, 'auto')})
    if expected == 'auto': return plain(root.name) in {plain(n) for n in names}
    return expected


def _check_counts(catalog, published):
    "One warning for the splits with other numbers of images or identities than the published set"
    wrong = []
    for split in SPLITS:
        c = catalog[catalog['split'] == split]
        seen = (len(c), c['pid'].nunique())
        if split in published.counts and seen != published.counts[split]:
            images, people = published.counts[split]
            wrong.append(f'{split} has {seen[0]:,} images of {seen[1]:,} identities, expected {images:,} of {people:,}')
    if wrong:
        warnings.warn(f'{published.title}: {"; ".join(wrong)}. The copy may be incomplete; pass expected=False if '
                      'this is intended', CatalogWarning, stacklevel=2)


def _msmt17_root(path):
    "Root and its two image folders, V1's or V2's"
    path = existing(path)
    found = []
    for folders in MSMT17_VERSIONS:
        try: found.append((find_root(path, folders, MSMT17_NAMES, 'MSMT17'), folders))
        except FileNotFoundError as e: problem = e
    if not found: raise FileNotFoundError(f'{problem} (V1 has {" and ".join(MSMT17_VERSIONS[0])})')
    if len(found) > 1:
        raise ValueError(f'{path} holds V1 ({found[0][0]}) and V2 ({found[1][0]}): give the path of one of them')
    return found[0]


def _read_list(root, name, folder, split) -> list[dict]:
    "A row for each line of a list"
    file = root / f'list_{name}.txt'
    if not file.is_file():
        raise FileNotFoundError(f'{file} is not there: MSMT17 has list_train, list_val, list_query, list_gallery .txt')
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip(): continue
        parts = MSMT17_LINE.fullmatch(line)
        refuse({f'{file}, line {number}: {line!r} is not "path identity" with the camera as third field of the file\'s '
                'name, as in "0000/0000_000_01_0303morning_0008_0.jpg 0"': not parts})
        path = str(root / folder / parts['path'])
        rows.append(dict(path=path, pid=int(parts['pid']), camid=int(parts['camid']), split=split))
    refuse({f'{file} is empty': not rows})
    return rows


def _body_images(key, path, queries, masks, expected):
    """Catalog of a test-only set: a folder of whole, one of incomplete images. The identity is the sub-folder, else
    the first number of the name"""
    published = PUBLISHED[key]
    folders = dict(query=f'{queries}_body_images', gallery='whole_body_images')
    root = find_root(path, folders.values(), published.names, published.title)
    rows = []
    for camid, (split, folder) in enumerate(folders.items()):
        for p in image_files(root / folder, recursive=True):
            name = p.parent.name if p.parent != root / folder else re.split('[_.]', p.name)[0]
            refuse({f'{p}: no identity in the name; expected <identity>_<number>, or a folder an identity':
                    not name.isdigit()})
            rows.append(dict(path=str(p), pid=int(name), camid=camid, split=split))
    return _finished(rows, published, root, masks, expected)


def find_root(path, folders, names, title) -> Path:
    """The root of a data set: the path itself, or a folder with one of the usual names up to two levels below it.

    FileNotFoundError if no such folder holds all of `folders`, ValueError if several do."""
    path = existing(path)
    folders = list(folders)
    usual = {plain(n) for n in names}
    found = [root for root in _roots(path, usual) if all((root / f).is_dir() for f in folders)]
    if len(found) == 1 or found[:1] == [path]: return found[0]
    refuse({f'{path} holds {" and ".join(r.name for r in found)}: give the path of one of them': found})
    below = f' and in folders of it named {", ".join(names)}' if names else ''
    raise FileNotFoundError(f'no {title} in {path}: looked for the folders {", ".join(folders)} in it{below}; it '
                            f'holds {_some(path)}')


def _roots(path, names, depth=2):
    yield path
    if depth == 0: return
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and plain(folder.name) in names: yield from _roots(folder, names, depth - 1)


def _some(path):
    names = sorted(os.listdir(path))
    if not names: return 'nothing'
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')


def plain(name) -> str:
    "A folder's name by letters and digits alone"
    return re.sub('[^a-z0-9]', '', name.lower())


# CUHK03's raw .mat file, written once as the PNG folders of the new protocol


def _unpack_cuhk03(root, kind, out):
    """Writes every image of the protocol as PNG, into `<kind>.partial` until all are there.

    After a kill, the next call continues. ImportError without h5py; FileNotFoundError or ValueError for missing or
    wrong files."""
    mat = _find(root, 'cuhk-03.mat')
    config = _find(root, f'cuhk03_new_protocol_config_{kind}.mat')
    entries = _protocol(config)
    partial = out / f'{kind}.partial'
    written = 0
    with needs('the raw CUHK03 file is HDF5: pip install h5py'): import h5py
    with _reading(mat): file = h5py.File(mat, 'r')
    with file:
        refuse({f'{mat} has no {kind!r}: it holds {", ".join(file)}': kind not in file})
        with _reading(mat): pairs = [file[ref] for ref in np.ravel(file[kind][()])]
        for target, place in entries:
            if (partial / target).exists(): continue
            save_png(_crop(file, pairs, place, mat, config), partial / target)
            written += 1
    os.replace(partial, out / kind)
    log.info('%s: %d images written, %d were there', out / kind, written, len(entries) - written)


def _find(root, name):
    found = [p for depth in ('', '*/', '*/*/') for p in sorted(root.glob(depth + name))]
    if not found: raise FileNotFoundError(f'no {name} in {root} or two levels below')
    return found[0]


@contextmanager
def _reading(file):
    "What h5py and scipy raise on damaged bytes, which may be anything, becomes a ValueError that names the file"
    try: yield
    except MemoryError: raise
    except Exception as e:
        raise ValueError(f'{file} is damaged, or no such MATLAB file ({e}): copy it again') from e


def _protocol(config) -> list[tuple]:
    "(path of the PNG below its root, crop's name match) for each image of the split, MATLAB's 1-based indices undone"
    with _reading(config): table = loadmat(config)
    lacking = [k for k in ('train_idx', 'query_idx', 'gallery_idx', 'labels', 'filelist') if k not in table]
    refuse({f"{config} lacks {', '.join(lacking)}: is it the new protocol's split?": lacking})
    names = [str(np.ravel(n)[0]) for n in np.ravel(table['filelist'])]
    pids = np.ravel(table['labels']).astype(int)
    entries = []
    for split, folder in MARKET_FOLDERS.items():
        for i in np.ravel(table[f'{split}_idx']).astype(int) - 1:
            refuse({f'{config}: {split}_idx {i+1}, and it lists {len(names)} images':
                    not 0 <= i < min(len(names), len(pids))})
            place = CROP_NAME.match(names[i])
            refuse({f'{config}: {names[i]!r} is not <pair>_<person>_<camera>_<image>, as 1_001_1_01.png is': not place})
            entries.append((f'{folder}/{pids[i]:04d}_c{place["camid"]}_{Path(names[i]).stem}.png', place))
    return entries


def _crop(file, pairs, place, mat, config):
    """(h, w, 3) image of a camera pair, person and number; HDF5 holds MATLAB's arrays transposed, and an empty
    cell as its two sizes"""
    pair, person, image = (int(place[k]) - 1 for k in ('pair', 'person', 'image'))
    refuse({f'{config} names {place.string}, which {mat} does not hold':
            pair >= len(pairs) or image >= pairs[pair].shape[0] or person >= pairs[pair].shape[1]})
    with _reading(mat): crop = file[pairs[pair][image, person]][()]
    refuse({f'{mat}: {place.string} is empty or no RGB image': crop.ndim != 3 or crop.shape[0] != 3})
    return np.ascontiguousarray(crop.T.astype(np.uint8))  # (3, w, h) -> (h, w, 3)


# By name, for shells
READERS = {reader.__name__: reader for reader in (
    market1501, dukemtmc, occluded_duke, cuhk03_np, cuhk03, msmt17, partial_reid, occluded_reid,
    identity_folders, catalog_csv)}
