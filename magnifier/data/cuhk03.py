"CUHK03's raw .mat file, written once as the PNG folders of the new protocol"

import logging
import os
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from magnifier.data.folders import save_png

__all__ = ['unpack_cuhk03']

CROP_NAME = re.compile(r'(?P<pair>\d+)_(?P<person>\d+)_(?P<camid>\d+)_(?P<image>\d+)')
log = logging.getLogger(__name__)


def unpack_cuhk03(
    root: Path,  # The folder with the two .mat files, in it or up to two levels below
    kind: str,  # 'labeled' or 'detected'
    out: Path,  # Root of the PNGs, which come into a folder named by the kind
    folders: dict,  # Split -> folder of its images
):
    """Writes every image of the protocol as PNG, into `<kind>.partial` until all are there.

    After a kill, the next call continues. ImportError without h5py; FileNotFoundError or ValueError for missing or
    wrong files."""
    mat = _find(root, 'cuhk-03.mat')
    config = _find(root, f'cuhk03_new_protocol_config_{kind}.mat')
    entries, partial, written = _protocol(config, folders), out / f'{kind}.partial', 0
    h5py = _h5py()
    with _reading(mat): file = h5py.File(mat, 'r')
    with file:
        if kind not in file: raise ValueError(f'{mat} has no {kind!r}: it holds {", ".join(file)}')
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


def _h5py():
    try: import h5py
    except ImportError as e: raise ImportError('the raw CUHK03 file is HDF5: pip install h5py') from e
    return h5py


@contextmanager
def _reading(mat):
    "Turns the errors of the HDF5 library for damaged bytes into a ValueError that names the file"
    try: yield
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError) as e: raise _damaged(mat, e) from e


def _damaged(file, error): return ValueError(f'{file} is damaged, or no such MATLAB file ({error}): copy it again')


def _protocol(config, folders) -> list[tuple]:
    "(path of the PNG below its root, crop's name match) for each image of the split, MATLAB's 1-based indices undone"
    try: table = loadmat(config)
    except MemoryError: raise
    except Exception as e: raise _damaged(config, e) from e  # scipy raises what it likes on damaged bytes
    lacking = [k for k in ('train_idx', 'query_idx', 'gallery_idx', 'labels', 'filelist') if k not in table]
    if lacking: raise ValueError(f'{config} lacks {", ".join(lacking)}: is it the new protocol\'s split?')
    names = [str(np.ravel(n)[0]) for n in np.ravel(table['filelist'])]
    pids = np.ravel(table['labels']).astype(int)
    entries = []
    for split, folder in folders.items():
        for i in np.ravel(table[f'{split}_idx']).astype(int) - 1:
            if not 0 <= i < min(len(names), len(pids)):
                raise ValueError(f'{config}: {split}_idx {i+1}, and it lists {len(names)} images')
            place = CROP_NAME.match(names[i])
            if not place:
                raise ValueError(f'{config}: {names[i]!r} is not <pair>_<person>_<camera>_<image>, as 1_001_1_01.png '
                                 'is')
            entries.append((f'{folder}/{pids[i]:04d}_c{place["camid"]}_{Path(names[i]).stem}.png', place))
    return entries


def _crop(file, pairs, place, mat, config):
    """(h, w, 3) image of a camera pair, person and number; HDF5 holds MATLAB's arrays transposed, and an empty
    cell as its two sizes"""
    pair, person, image = (int(place[k]) - 1 for k in ('pair', 'person', 'image'))
    if pair >= len(pairs) or image >= pairs[pair].shape[0] or person >= pairs[pair].shape[1]:
        raise ValueError(f'{config} names {place.string}, which {mat} does not hold')
    with _reading(mat): crop = file[pairs[pair][image, person]][()]
    if crop.ndim != 3 or crop.shape[0] != 3: raise ValueError(f'{mat}: {place.string} is empty or no RGB image')
    return np.ascontiguousarray(crop.T.astype(np.uint8))  # (3, w, h) -> (h, w, 3)
