"Readers: the folder of a published data set in, its catalog out"

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from magnifier.data.cuhk03 import cuhk03, cuhk03_np
from magnifier.data.layouts import MARKET_FOLDERS, existing, expects, find_root, finish, images, market_style
from magnifier.data.own_sets import catalog_csv, identity_folders

__all__ = ['market1501', 'dukemtmc', 'occluded_duke', 'cuhk03_np', 'cuhk03', 'msmt17', 'partial_reid', 'occluded_reid',
           'identity_folders', 'catalog_csv']

MARKET_NAMES = ('Market-1501-v15.09.15', 'Market-1501', 'market1501')
MARKET_COUNTS = dict(train=(12936, 751), query=(3368, 750), gallery=(15913, 751))  # the gallery: 750 and the distractors' 0000
DUKE_NAMES = ('DukeMTMC-reID', 'DukeMTMC', 'Duke')
DUKE_COUNTS = dict(train=(16522, 702), query=(2228, 702), gallery=(17661, 1110))
OCCLUDED_DUKE_NAMES = ('Occluded_Duke', 'Occluded-DukeMTMC', 'Occluded-DukeMTMC-reID')
OCCLUDED_DUKE_COUNTS = dict(train=(15618, 702), query=(2210, 519), gallery=(17661, 1110))
MSMT17_VERSIONS = (('train', 'test'), ('mask_train_v2', 'mask_test_v2'))
MSMT17_NAMES = ('MSMT17_V1', 'MSMT17_V2', 'MSMT17')
MSMT17_COUNTS = dict(train=(32621, 1041), query=(11659, 3060), gallery=(82161, 3060))
PARTIAL_NAMES = ('Partial-REID_Dataset', 'Partial_REID')
OCCLUDED_NAMES = ('Occluded_REID',)
log = logging.getLogger(__name__)


def market1501(
    path: str | Path,  # The root with `bounding_box_train`, `query`, `bounding_box_test`, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog
    """Market-1501 (Zheng et al. 2015), or any set with its layout and names, `0002_c1s1_000451_03.jpg`.

    Junk (-1) is left out and counted in the log; distractors (0000) stay in the gallery. Cameras keep the numbers of the names.
    FileNotFoundError where the folders are not there; ValueError for an empty one or an image whose name does not parse.
    """
    root = find_root(path, MARKET_FOLDERS.values(), MARKET_NAMES, 'Market-1501')
    return market_style(root, 'Market-1501', MARKET_COUNTS, masks=masks, expected=expects(expected, root, MARKET_NAMES))


def dukemtmc(
    path: str | Path,  # The root with Market-1501's three folders, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog
    "DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017), `0002_c1_f0044158.jpg`; errors as `market1501`"
    root = find_root(path, MARKET_FOLDERS.values(), DUKE_NAMES, 'DukeMTMC-reID')
    return market_style(root, 'DukeMTMC-reID', DUKE_COUNTS, masks=masks, expected=expects(expected, root, DUKE_NAMES))


def occluded_duke(
    path: str | Path,  # The root with Market-1501's three folders, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog
    "Occluded-Duke (Miao et al. 2019), with DukeMTMC-reID's folders and names; errors as `market1501`"
    root = find_root(path, MARKET_FOLDERS.values(), OCCLUDED_DUKE_NAMES, 'Occluded-Duke')
    expected = expects(expected, root, OCCLUDED_DUKE_NAMES)
    return market_style(root, 'Occluded-Duke', OCCLUDED_DUKE_COUNTS, masks=masks, expected=expected)


def msmt17(
    path: str | Path,  # The root with `train`, `test` (V1) or `mask_train_v2`, `mask_test_v2` (V2) and the four lists
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
    *,
    val_in_train: bool = True,  # `list_val.txt` is trained on, as in most published figures; False leaves those images out
) -> pd.DataFrame:  # Catalog
    """MSMT17 (Wei et al. 2018), V1 or V2, by its lists of "path identity"; the camera is the third field of a file's name.

    Training and test identities are numbered from 0 each and are other people: test identities are moved up past the training's.
    FileNotFoundError where a list, or an image in it, is not there; ValueError, with the line, where one does not parse.
    """
    root, (train, test) = _msmt17_root(path)
    lists = {name: _read_list(root / f'list_{name}.txt', root / (train if name in ('train', 'val') else test))
             for name in ('train', 'val', 'query', 'gallery')}
    shift = 1 + max(pid for name in ('train', 'val') for _, pid, _ in lists[name])
    training = lists['train'] + (lists['val'] if val_in_train else [])
    rows = [dict(path=p, pid=pid, camid=cam, split='train') for p, pid, cam in training]
    rows += [dict(path=p, pid=pid + shift, camid=cam, split=name) for name in ('query', 'gallery') for p, pid, cam in lists[name]]
    log.info('MSMT17: %d validation images %s', len(lists['val']), 'are part of training' if val_in_train else 'are left out')
    counts = MSMT17_COUNTS if val_in_train else {**MSMT17_COUNTS, 'train': (30248, 1041)}
    return finish(rows, 'MSMT17', counts, masks=masks, expected=expects(expected, root, MSMT17_NAMES))


def partial_reid(
    path: str | Path,  # The root with `partial_body_images`, `whole_body_images`, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
    *,
    queries: str = 'partial',  # 'partial' or 'occluded': which images ask
) -> pd.DataFrame:  # Catalog with query and gallery, no training images
    "Partial-REID (Zheng et al. 2015), test only: partial images (camera 0) against whole ones (camera 1), since no cameras are given"
    if queries not in ('partial', 'occluded'): raise ValueError(f"queries={queries!r}: use 'partial' or 'occluded'")
    counts = dict(query=(300, 60), gallery=(300, 60))
    return _body_images(path, queries, 'Partial-REID', PARTIAL_NAMES, counts, masks=masks, expected=expected)


def occluded_reid(
    path: str | Path,  # The root with `occluded_body_images`, `whole_body_images`, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog with query and gallery, no training images
    "Occluded-REID (Zhuo et al. 2018), test only: occluded images (camera 0) against whole ones (camera 1), as no cameras are given"
    counts = dict(query=(1000, 200), gallery=(1000, 200))
    return _body_images(path, 'occluded', 'Occluded-REID', OCCLUDED_NAMES, counts, masks=masks, expected=expected)


def _msmt17_root(path):
    "Root and its two image folders, V1's or V2's"
    found, path = [], existing(path)
    for folders in MSMT17_VERSIONS:
        try: found.append((find_root(path, folders, MSMT17_NAMES, 'MSMT17'), folders))
        except FileNotFoundError as e: problem = e
    if not found: raise FileNotFoundError(f'{problem} (V1 has {" and ".join(MSMT17_VERSIONS[0])})')
    if len(found) > 1: raise ValueError(f'{path} holds V1 ({found[0][0]}) and V2 ({found[1][0]}): give the path of one of them')
    return found[0]


def _read_list(file, folder) -> list[tuple]:
    "(path, identity, camera) for each line of a list"
    if not file.is_file():
        raise FileNotFoundError(f'{file} is not there: MSMT17 has list_train, list_val, list_query, list_gallery .txt')
    found = []
    for i, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip(): continue
        parts = re.fullmatch(r'(?P<name>\S.*?)\s+(?P<pid>\d+)\s*', line)
        fields = parts['name'].rsplit('/', 1)[-1].split('_') if parts else ()
        if len(fields) < 4 or not fields[2].isdigit():
            raise ValueError(f'{file}, line {i}: {line!r} is not "path identity" with the camera as third field of the file\'s name, '
                             'as in "0000/0000_000_01_0303morning_0008_0.jpg 0"')
        found.append((str(folder / parts['name']), int(parts['pid']), int(fields[2])))
    if not found: raise ValueError(f'{file} is empty')
    return found


def _body_images(path, queries, title, names, counts, *, masks, expected):
    "Catalog of a test-only set: a folder of whole, one of incomplete images. Identity: the sub-folder, else the name's first number"
    folders = dict(query=f'{queries}_body_images', gallery='whole_body_images')
    root, rows = find_root(path, folders.values(), names, title), []
    for camid, (split, folder) in enumerate(folders.items()):
        for p in images(root / folder, recursive=True):
            name = p.parent.name if p.parent != root / folder else re.split('[_.]', p.name)[0]
            if not name.isdigit():
                raise ValueError(f'{p}: no identity in the name; expected <identity>_<number>, or a folder an identity')
            rows.append(dict(path=str(p), pid=int(name), camid=camid, split=split))
    return finish(rows, title, counts, masks=masks, expected=expects(expected, root, names))
