"The built-in data set: pedestrians drawn in Market-1501's layout, with exact part masks and the truth of every image"

import csv
import json
import logging
import math
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.files import aside_folder
from magnifier.walkers.canvas import stream
from magnifier.walkers.cast import FOLDERS, identities, noisy_mask, plan, take

__all__ = ['walkers', 'walkers_truth']


def mark(
    folder: Path,  # A whole set
    marker: dict,  # version, arguments, files (sub-folder -> number of files)
    name: str,  # Of the marker's file
):
    "Writes the file that describes the folder"
    (folder/name).write_text(json.dumps(marker, indent=1), 'utf-8')


def holds(
    folder: Path,  # Where the set may be
    marker: dict,  # As in `mark`
    name: str,  # Of the marker's file
) -> bool:  # Whether it is there
    "True if the folder holds this set, False if it is missing or empty; a ValueError otherwise"
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()): return False
    try: found = json.loads((folder/name).read_text('utf-8'))
    except (OSError, ValueError): found = None
    if not isinstance(found, dict):
        raise ValueError(
            f'{folder} exists and does not hold drawn walkers: choose another path, or remove it')
    if found != marker:
        had, wanted = (f'{m.get("arguments")} (version {m.get("version")})' for m in (found, marker))
        raise ValueError(
            f'{folder} holds walkers drawn with {had}, wanted are {wanted}: choose another path, or remove that set')
    short = list(_short(folder, marker['files']))
    if short: raise ValueError(f'{folder} lacks files ({", ".join(short)}): remove it, and draw it again')
    return True


def _short(folder, files):
    for sub, n in files.items():
        seen = len(list((folder/sub).glob('*')))
        if seen < n: yield f'{sub} has {seen} of {n} files'


def cached(
    kind: str,  # As 'walkers'
    version: int,  # Of the drawing
    args: dict,  # Every argument
) -> Path:  # Among fastai's data (`FASTAI_HOME` or ~/.fastai)
    "The default folder for these arguments"
    key = '-'.join(f'{k}{v}' for k, v in args.items()).replace('_', '')
    return Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser()/'data'/f'{kind}-v{version}-{key}'


def whole_number(
    name: str,  # Of the argument
    value,  # Given
    low: int,  # Lowest allowed
    high: int,  # Highest allowed
) -> int:
    "The value as an int; a TypeError or ValueError says what is allowed"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f'{name}={value!r}: use a whole number')
    if not low <= value <= high: raise ValueError(f'{name}={value}: use {low} or more, at most {high}')
    return int(value)


def share(
    name: str,  # Of the argument
    value,  # Given
    high: float = 1.,  # Highest allowed
) -> float:
    "The value as a float from 0 to `high`; a ValueError says what is allowed"
    if not isinstance(value, (int, float)) or not 0 <= value <= high or math.isnan(value):
        raise ValueError(f'{name}={value!r}: use a number from 0 to {high:g}')
    return float(value)


log = logging.getLogger(__name__)

VERSION = 2  # Of the drawing: raised whenever the same arguments give other images
MARKER, TRUTH, PEOPLE = 'walkers.json', 'walkers.csv', 'identities.json'
_ALLOWED = dict(  # Names have four digits for the identity, and six for a frame that counts its images
    seed=(0, 2**63), n_train=(1, 9998), n_test=(1, 9998), n_images=(1, 7000), n_queries=(1, 3500), n_gallery=(1, 3500),
    n_distractors=(0, 7000), n_junk=(0, 7000))



def walkers(
    path=None,  # Root folder to write; None: among fastai's data (`FASTAI_HOME` or ~/.fastai), one per set of arguments
    n_train: int = 96,  # Training identities
    n_test: int = 96,  # Other identities, for query and gallery
    seed: int = 0,  # The same seed gives the same images on every machine
    *,
    n_images: int = 12,  # Images of each training identity, over four to six cameras
    n_queries: int = 7,  # Queries of each test identity, over three cameras
    n_gallery: int = 6,  # Gallery images of each test identity, over four cameras, one of them a camera of its queries
    n_distractors: int = None,  # Gallery images of nobody (identity 0000); None: as many as test identities
    n_junk: int = None,  # Junk boxes (identity -1) in the gallery; None: half as many
    occluded: float = .25,  # Share of images in which a pole, a bag or another walker stands in front
    mask_noise: float = 0.,  # 0 to 1: boundary errors and lost limbs of a real parser, in the masks alone
) -> Path:  # The root; the masks lie beside it in `<root>_ps_label`
    """Draw the built-in data set once and return its folder, in Market-1501's layout and names; a later call finds it.

    Of every twelve identities, four are a family who share everything except one detail, such as shoes, hat or bag.
    Part masks (the eight regions of `REGIONS`) are exact and lie in `<root>_ps_label/<same sub-path>.png` for all
    splits; `walkers_truth` reads what is true of each image. The masks are complete before the root appears, so an
    existing root is complete. Raises ValueError or TypeError for arguments out of range, ValueError for a path with
    other contents, OSError if nothing can be written."""
    args = _checked(dict(
        n_train=n_train, n_test=n_test, seed=seed, n_images=n_images, n_queries=n_queries, n_gallery=n_gallery,
        n_distractors=n_distractors, n_junk=n_junk, occluded=occluded, mask_noise=mask_noise))
    root = Path(path).expanduser().absolute() if path is not None else cached('walkers', VERSION, args)
    people = identities(args['n_train'] + args['n_test'], args['seed'])
    numbers = {k: v for k, v in args.items() if k not in ('n_test', 'occluded', 'mask_noise')}
    shots = plan(people, **numbers)
    files = {folder: sum(FOLDERS[shot.split] == folder for shot in shots) for folder in FOLDERS.values()}
    marker = dict(version=VERSION, arguments=args, files=files)
    while missing := [place for place in (root, _labels(root)) if not holds(place, marker, MARKER)]:
        try: _draw(missing, root, people, shots, marker)
        except FileExistsError: continue  # another process drew one of them and was first
    return root


def walkers_truth(
    path,  # Root folder, from `walkers`
) -> pd.DataFrame:  # One row an image
    """What is true of every image.

    Columns: file, split, pid, camid; person (the identity, also of a junk box); view, yaw, phase, arms (the pose);
    zoom, dx, dy (the box); occluder, occluded (share of the body that it hides); family, detail, value (the field in
    which the family differs, and its value here); joints ((17, 3): x, y, visible, COCO order). Fields without a value
    are empty, and joints are None if the image has no person. Raises FileNotFoundError if `path` is not a folder of
    `walkers`."""
    file = Path(path)/TRUTH
    if not file.exists(): raise FileNotFoundError(f'{file} is missing: {path} was not written by walkers()')
    table = pd.read_csv(file, keep_default_na=False, dtype=dict(joints=str))
    table['joints'] = table.joints.map(_joints)
    return table


def _joints(text):
    "The array of a row's joints, None if there are none"
    return np.array([joint.split(',') for joint in text.split()], np.float32) if text else None


def _labels(root): return root.with_name(f'{root.name}_ps_label')


def _draw(missing, root, people, shots, marker):
    "Draws the root and its masks if they are missing; the masks appear first"
    log.info('drawing %d images for %s', len(shots), root)
    with ExitStack() as folders:
        new = {place: folders.enter_context(aside_folder(place)) for place in missing}
        _draw_all(new.get(root), new.get(_labels(root)), shots, marker['arguments'])
        if root in new:
            table = {person.pid: asdict(person) for person in people}
            (new[root]/PEOPLE).write_text(json.dumps(table, indent=1), 'utf-8')
        for folder in new.values(): mark(folder, marker, MARKER)


def _draw_all(root, labels, shots, args):
    "Writes images and truth into `root` and masks into `labels`, two new folders; one that is None exists already"
    rows = []
    for folder in FOLDERS.values():
        for new in filter(None, (root, labels)): (new/folder).mkdir()
    for shot in shots:
        picture, row = take(shot, args['seed'], args['occluded'])
        rows.append(row)
        if root: Image.fromarray(picture.image).save(root/f'{shot.file}.jpg', quality=95, subsampling=0)
        if labels:
            mask = noisy_mask(picture.mask, args['mask_noise'], stream(args['seed'], 'mask', shot.name))
            Image.fromarray(mask).save(labels/f'{shot.file}.png')
    if not root: return
    with open(root/TRUTH, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _checked(args):
    "The arguments with their defaults, or an error that says what is allowed"
    out = dict(args)
    for name, limits in _ALLOWED.items():
        if name == 'n_distractors' and out[name] is None: out[name] = out['n_test']
        if name == 'n_junk' and out[name] is None: out[name] = out['n_distractors'] // 2
        out[name] = whole_number(name, out[name], *limits)
    if out['n_train'] + out['n_test'] > 9999:
        raise ValueError(
            f'{out["n_train"]} + {out["n_test"]} identities: names have four digits, use 9999 or fewer in all')
    return out | {name: share(name, out[name]) for name in ('occluded', 'mask_noise')}
