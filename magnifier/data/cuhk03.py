"CUHK03 under the new protocol: the published PNG folders, or the raw .mat written as those once"

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from magnifier.data.layouts import MARKET_FOLDERS, existing, expects, find_root, market_style, save_png

__all__ = ['cuhk03_np', 'cuhk03']

NP_NAMES = ('cuhk03-np', 'CUHK03')
RAW_NAMES = ('cuhk03_release', 'cuhk03', 'cuhk-03')
COUNTS = dict(labeled=dict(train=(7368, 767), query=(1400, 700), gallery=(5328, 700)),
              detected=dict(train=(7365, 767), query=(1400, 700), gallery=(5332, 700)))
CROP_NAME = re.compile(r'(?P<pair>\d+)_(?P<person>\d+)_(?P<camid>\d+)_(?P<image>\d+)')
log = logging.getLogger(__name__)


def cuhk03_np(
    path: str | Path,  # The root with `labeled` and `detected`, one of the two, or a folder that holds the root by a usual name
    kind: str = 'labeled',  # 'labeled' (boxes by hand) or 'detected'
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog
    "CUHK03-NP (Zhong et al. 2017), `0001_c1_...png`, evaluated as Market-1501 is; errors as `market1501`"
    counts, path = _counts(kind), existing(path)
    root = path.parent if path.name == kind else find_root(path, [kind], NP_NAMES, 'CUHK03-NP')
    find_root(root / kind, MARKET_FOLDERS.values(), (), f'CUHK03-NP ({kind})')
    return market_style(root / kind, f'CUHK03-NP ({kind})', counts, masks=masks, expected=expects(expected, root, NP_NAMES))


def cuhk03(
    path: str | Path,  # The folder with `cuhk-03.mat` and `cuhk03_new_protocol_config_<kind>.mat`, in it or up to two levels below
    kind: str = 'labeled',  # 'labeled' (boxes by hand) or 'detected'
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<out>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the folder has the release's name
    *,
    out: str | Path | None = None,  # Root of the PNGs; default: `cuhk03-np` in `path`
) -> pd.DataFrame:  # Catalog
    """CUHK03 (Li et al. 2014) from its raw .mat, with the new protocol's split (Zhong et al. 2017).

    The first call writes the images as PNGs in CUHK03-NP's layout, into a folder that gets its name when it is complete, so that a
    killed run is taken up again; later calls read those. ImportError without h5py; ValueError where a file is not what it should be.
    """
    _counts(kind)
    root = existing(path)
    out = root / 'cuhk03-np' if out is None else Path(out).expanduser().absolute()
    if not (out / kind).is_dir(): _write_pngs(root, kind, out)
    return cuhk03_np(out, kind, masks, expects(expected, root, RAW_NAMES))


def _counts(kind):
    if kind not in COUNTS: raise ValueError(f'kind={kind!r}: use {" or ".join(map(repr, COUNTS))}')
    return COUNTS[kind]


def _write_pngs(root, kind, out):
    "Every image of the protocol as PNG, in `<kind>.partial` until the last is there"
    mat, config = (_find(root, name) for name in ('cuhk-03.mat', f'cuhk03_new_protocol_config_{kind}.mat'))
    entries, aside, written = _protocol(config), out / f'{kind}.partial', 0
    with _h5py().File(mat, 'r') as file:
        if kind not in file: raise ValueError(f'{mat} has no {kind!r}: it holds {", ".join(file)}')
        pairs = [file[ref] for ref in np.ravel(file[kind][()])]
        for target, place in entries:
            if (aside / target).exists(): continue
            save_png(_crop(file, pairs, place, mat, config), aside / target)
            written += 1
    os.replace(aside, out / kind)
    log.info('%s: %d images written, %d were there', out / kind, written, len(entries) - written)


def _find(root, name):
    found = [p for depth in ('', '*/', '*/*/') for p in sorted(root.glob(depth + name))]
    if not found: raise FileNotFoundError(f'no {name} in {root} or two levels below')
    return found[0]


def _h5py():
    try: import h5py
    except ImportError as e: raise ImportError('the raw CUHK03 file is HDF5: pip install h5py') from e
    return h5py


def _protocol(config) -> list[tuple]:
    "(path of the PNG below its root, crop's name match) for each image of the split, MATLAB's 1-based indices undone"
    table = loadmat(config)
    lacking = [k for k in ('train_idx', 'query_idx', 'gallery_idx', 'labels', 'filelist') if k not in table]
    if lacking: raise ValueError(f'{config} lacks {", ".join(lacking)}: is it the new protocol\'s split?')
    names, pids = [str(np.ravel(n)[0]) for n in np.ravel(table['filelist'])], np.ravel(table['labels']).astype(int)
    entries = []
    for split, folder in MARKET_FOLDERS.items():
        for i in np.ravel(table[f'{split}_idx']).astype(int) - 1:
            if not 0 <= i < min(len(names), len(pids)):
                raise ValueError(f'{config}: {split}_idx {i+1}, and it lists {len(names)} images')
            place = CROP_NAME.match(names[i])
            if not place: raise ValueError(f'{config}: {names[i]!r} is not <pair>_<person>_<camera>_<image>, as 1_001_1_01.png is')
            entries.append((f'{folder}/{pids[i]:04d}_c{place["camid"]}_{Path(names[i]).stem}.png', place))
    return entries


def _crop(file, pairs, place, mat, config):
    "(h, w, 3) image of a camera pair, person and number; HDF5 holds MATLAB's arrays transposed, and an empty cell as its two sizes"
    pair, person, image = (int(place[k]) - 1 for k in ('pair', 'person', 'image'))
    if pair >= len(pairs) or image >= pairs[pair].shape[0] or person >= pairs[pair].shape[1]:
        raise ValueError(f'{config} names {place.string}, which {mat} does not hold')
    crop = file[pairs[pair][image, person]][()]
    if crop.ndim != 3 or crop.shape[0] != 3: raise ValueError(f'{mat}: {place.string} is empty or no RGB image')
    return np.ascontiguousarray(crop.T.astype(np.uint8))  # (3, w, h) -> (h, w, 3)
