"The embedded data set: drawn pedestrians in Market-1501's layout, with exact part masks and the truth about every picture"

import csv
import glob
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
import numpy as np
import pandas as pd
from PIL import Image
from magnifier.walkers.canvas import stream
from magnifier.walkers.cast import FOLDERS, identities, noisy_mask, plan, take

__all__ = ['walkers', 'walkers_truth']

log = logging.getLogger(__name__)

VERSION = 1  # Of the drawing: raised whenever the same arguments give other pictures
MARKER, TRUTH, PEOPLE = 'walkers.json', 'walkers.csv', 'identities.json'
_LARGEST = 7000   # Images of one identity: frame numbers have six digits
_STALE = 3600     # Seconds after which a half-drawn folder belongs to nobody: drawing takes less than a minute


def walkers(
    path=None,  # Root folder to write; None: among fastai's data (`FASTAI_HOME` or ~/.fastai), a folder per set of arguments
    n_train: int = 96,  # Training identities
    n_test: int = 96,  # Other identities, for query and gallery
    seed: int = 0,  # The same seed gives the same pictures on every machine
    *,
    n_images: int = 12,  # Images of each training identity, over four to six cameras
    n_gallery: int = 6,  # Gallery images of each test identity; there are also two queries, from different cameras
    n_distractors: int = None,  # Gallery images of nobody (identity 0000); None: as many as test identities
    n_junk: int = None,  # Junk boxes (identity -1) in the gallery; None: half as many
    occluded: float = .33,  # Share of images in which a pole, a bag or another walker stands in front
    mask_noise: float = 0.,  # 0 to 1: boundary errors and lost limbs of a real parser, in the masks alone
) -> Path:  # The root; the masks lie beside it in `<root>_ps_label`
    """Draw the embedded data set once and return its folder, in Market-1501's layout and names; a later call finds it.

    Identities come in families of four that share everything but one detail. Part masks (METHOD.md's eight regions) are exact and
    lie in `<root>_ps_label/<same sub-path>.png` for all splits; `walkers_truth` reads what is true of each image. Everything is
    drawn aside and renamed, masks first: a root that exists is whole. Raises ValueError or TypeError for arguments out of range,
    ValueError for a path that holds anything else, OSError where nothing can be written.
    """
    args = _checked(dict(
        n_train=n_train, n_test=n_test, seed=seed, n_images=n_images, n_gallery=n_gallery, n_distractors=n_distractors, n_junk=n_junk,
        occluded=occluded, mask_noise=mask_noise))
    root = Path(path).expanduser().absolute() if path is not None else _home(args)
    people = identities(args['n_train'] + args['n_test'], args['seed'])
    shots = plan(people, **{k: args[k] for k in ('n_train', 'n_images', 'n_gallery', 'n_distractors', 'n_junk', 'seed')})
    marker = _marker(args, shots)
    if not (_holds(root, marker) & _holds(_labels(root), marker)): _draw(root, people, shots, marker)
    return root


def walkers_truth(
    path,  # Root folder, from `walkers`
) -> pd.DataFrame:  # One row an image
    """What is true of every image.

    Columns: file, split, pid, camid; person (the identity also where the name says junk); view, yaw, phase, arms (the pose); zoom, dx,
    dy (the box); occluder, occluded (share of the body that it hides); family, detail, value (what differs in the family, and what it
    is here); joints ((17, 3): x, y, visible, COCO order). Empty where there is nothing to say, joints None where nobody is.
    Raises FileNotFoundError where `path` is no folder of `walkers`.
    """
    file = Path(path)/TRUTH
    if not file.exists(): raise FileNotFoundError(f'{file} is missing: {path} was not written by walkers()')
    table = pd.read_csv(file, keep_default_na=False, dtype=dict(joints=str))
    table['joints'] = [np.array([j.split(',') for j in row.split()], np.float32) if row else None for row in table.joints]
    return table


def _labels(root): return root.with_name(f'{root.name}_ps_label')


def _draw(root, people, shots, marker):
    "Draw aside, then rename: labels first, so that a root in place always has its masks"
    part = _aside(root)
    log.info('drawing %d pictures into %s', len(shots), root)
    try:
        _draw_all(part/'root', part/'labels', shots, marker['arguments'])
        (part/'root'/PEOPLE).write_text(json.dumps({p.pid: asdict(p) for p in people}, indent=1), 'utf-8')
        for new, place in (('labels', _labels(root)), ('root', root)):
            (part/new/MARKER).write_text(json.dumps(marker, indent=1), 'utf-8')
            _install(part/new, place, marker)
    finally: shutil.rmtree(part, ignore_errors=True)


def _aside(root):
    "A new hidden folder beside the root; what killed runs left there is removed"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for part in root.parent.glob(f'.{glob.escape(root.name)}-*.part'):
            if time.time() - part.stat().st_mtime > _STALE: shutil.rmtree(part, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f'.{root.name}-', suffix='.part', dir=root.parent))
    except OSError as e:
        raise OSError(f'cannot write walkers to {root}: {e.strerror or e}; pass a path where files may be written') from e


def _draw_all(root, labels, shots, args):
    "Write every image, mask and row into two new folders"
    for folder in FOLDERS.values():
        for new in (root, labels): (new/folder).mkdir(parents=True)
    rows = []
    for shot in shots:
        picture, row = take(shot, args['seed'], args['occluded'])
        mask = noisy_mask(picture.mask, args['mask_noise'], stream(args['seed'], 'mask', shot.name))
        Image.fromarray(picture.image).save(root/f'{shot.file}.jpg', quality=95, subsampling=0)
        Image.fromarray(mask).save(labels/f'{shot.file}.png')
        rows.append(row)
    with open(root/TRUTH, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _marker(args, shots):
    "What a complete folder says about itself"
    counts = {f: sum(FOLDERS[s.split] == f for s in shots) for f in FOLDERS.values()}
    return dict(version=VERSION, arguments=args, images=counts)


def _holds(folder, marker):
    "Whether the folder is this very set, whole; a ValueError where it is anything else that must not be touched"
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()): return False
    try: found = json.loads((folder/MARKER).read_text('utf-8'))
    except (OSError, ValueError): found = None
    if found is None: raise ValueError(f'{folder} exists and holds something else than walkers: choose another path, or remove it')
    if found != marker:
        had, wanted = (f'{m.get("arguments")} (version {m.get("version")})' for m in (found, marker))
        raise ValueError(f'{folder} holds walkers drawn with {had}, wanted are {wanted}: choose another path, or remove that set '
                         'and its _ps_label folder')
    seen = {f: len(os.listdir(folder/f)) if (folder/f).is_dir() else 0 for f in marker['images']}
    short = [f'{f} has {seen[f]} of {n} files' for f, n in marker['images'].items() if seen[f] < n]
    if short: raise ValueError(f'{folder} has lost files ({", ".join(short)}): remove it, and call walkers again')
    return True


def _install(made, place, marker):
    "Put a whole folder in its place; whoever else drew the same set at the same time may have been first"
    if _holds(place, marker): return
    try:
        if place.exists(): place.rmdir()
        os.rename(made, place)
    except OSError:
        if not _holds(place, marker): raise


def _home(args):
    "The folder for these arguments among fastai's data"
    key = '-'.join(f'{k}{v}' for k, v in args.items()).replace('_', '')
    return Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser()/'data'/f'walkers-v{VERSION}-{key}'


def _checked(args):
    "The arguments with their defaults, or an error that says what is allowed"
    lowest = dict(n_train=1, n_test=1, seed=0, n_images=1, n_gallery=1, n_distractors=0, n_junk=0)
    out = dict(args)
    for name, low in lowest.items():
        value = out[name]
        if value is None and name == 'n_distractors': value = out['n_test']
        if value is None and name == 'n_junk': value = out['n_distractors'] // 2
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f'{name}={value!r}: use a whole number')
        if not low <= value <= (2**63 if name == 'seed' else _LARGEST):
            raise ValueError(f'{name}={value}: use {low} or more' + ('' if name == 'seed' else f', at most {_LARGEST}'))
        out[name] = int(value)
    if out['n_train'] + out['n_test'] > 9999:
        raise ValueError(f'{out["n_train"]} + {out["n_test"]} identities: names have four digits, use 9999 or fewer in all')
    for name in ('occluded', 'mask_noise'):
        if not isinstance(out[name], (int, float)) or not 0 <= out[name] <= 1:
            raise ValueError(f'{name}={out[name]!r}: use a share from 0 to 1')
        out[name] = float(out[name])
    return out
