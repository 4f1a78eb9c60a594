"The built-in data set: pedestrians drawn in Market-1501's layout, with exact part masks and the truth of every image"

import json
import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.checks import refuse
from magnifier.data.images import mask_folder
from magnifier.data.readers import MARKET_FOLDERS
from magnifier.files import aside_folder, fastai_folder
from magnifier.regions import region_indices
from magnifier.walkers.cameras import CAMERAS
from magnifier.walkers.canvas import enlarge, pick, stream
from magnifier.walkers.pedestrian import OCCLUDERS, draw_walker
from magnifier.walkers.person import DETAILS, Appearance, Box, family, random_appearance, random_box, random_pose

__all__ = ['walkers', 'walkers_truth']

log = logging.getLogger(__name__)

VERSION = 2  # Of the drawing: raised whenever the same arguments give other images
MARKER = 'walkers.json'
TRUTH = 'walkers.csv'
PEOPLE = 'identities.json'
LIMBS = ('upper_arm', 'lower_arm', 'upper_leg', 'lower_leg', 'foot')
# Least and most. A file's name has four digits for the identity, and six for a frame that counts the person's images
ALLOWED = dict(
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
    n_distractors: int | None = None,  # Gallery images of nobody (identity 0000); None: as many as test identities
    n_junk: int | None = None,  # Junk boxes (identity -1) in the gallery; None: half as many
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
    files = {folder: sum(MARKET_FOLDERS[shot.split] == folder for shot in shots) for folder in MARKET_FOLDERS.values()}
    marker = dict(version=VERSION, arguments=args, files=files)
    while missing := [place for place in (root, mask_folder(root)) if not holds(place, marker, MARKER)]:
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


def _checked(args):
    "The arguments with their defaults, or an error that says what is allowed"
    out = dict(args)
    for name, limits in ALLOWED.items():  # in this order, since the last two may follow from those before them
        if name == 'n_distractors' and out[name] is None: out[name] = out['n_test']
        if name == 'n_junk' and out[name] is None: out[name] = out['n_distractors'] // 2
        out[name] = whole_number(name, out[name], *limits)
    refuse({f'{out["n_train"]} + {out["n_test"]} identities: names have four digits, use 9999 or fewer in all':
            out['n_train'] + out['n_test'] > 9999})
    return out | {name: share(name, out[name]) for name in ('occluded', 'mask_noise')}


def _draw(missing, root, people, shots, marker):
    "Draws the root and its masks if they are missing; the masks appear first"
    log.info('drawing %d images for %s', len(shots), root)
    with ExitStack() as folders:
        new = {place: folders.enter_context(aside_folder(place)) for place in missing}
        _draw_all(new.get(root), new.get(mask_folder(root)), shots, marker['arguments'])
        if root in new: write_json(new[root]/PEOPLE, {person.pid: asdict(person) for person in people})
        for folder in new.values(): write_json(folder/MARKER, marker)


def _draw_all(root, labels, shots, args):
    "Writes images and truth into `root` and masks into `labels`, two new folders; one that is None exists already"
    rows = []
    for folder in MARKET_FOLDERS.values():
        for new in filter(None, (root, labels)): (new/folder).mkdir()
    for shot in shots:
        picture, row = take(shot, args['seed'], args['occluded'])
        rows.append(row)
        if root: Image.fromarray(picture.image).save(root/f'{shot.file}.jpg', quality=95, subsampling=0)
        if labels:
            mask = noisy_mask(picture.mask, args['mask_noise'], stream(args['seed'], 'mask', shot.name))
            Image.fromarray(mask).save(labels/f'{shot.file}.png')
    if root: write_table(root/TRUTH, rows)


# Who is in the set, and which images of them


@dataclass(frozen=True)
class Identity:
    "A person in the data set"
    pid: int
    appearance: Appearance
    family: int = None  # Four identities share it; None for somebody without relatives
    detail: str = ''    # One of DETAILS, in which they differ

    @property
    def value(self) -> str:
        "What the detail is here: words and colours"
        fields = [getattr(self.appearance, name) for name in DETAILS.get(self.detail, ())]
        return ' '.join(v if isinstance(v, str) else '#%02x%02x%02x' % v for v in fields)


@dataclass(frozen=True)
class Shot:
    "One image to draw"
    split: str
    pid: int     # -1 junk, 0 distractor
    camid: int
    name: str    # File name without its ending
    who: Identity = None  # None for distractors and their boxes

    @property
    def file(self) -> str:  # Path below the root, without its ending
        "Where the image lies"
        return f'{MARKET_FOLDERS[self.split]}/{self.name}'


def identities(
    n: int,  # How many
    seed: int,  # Of the set
) -> list[Identity]:  # With pids from 1
    "The people of the set: of every twelve, four are a family, and eight have no family"
    people = []
    for first in range(1, n + 1, 12):
        rng = stream(seed, 'family', first)
        detail = pick(rng, tuple(DETAILS))
        people += [Identity(first + i, a, first, detail) for i, a in enumerate(family(rng, detail))]
        others = range(first + 4, first + 12)
        people += [Identity(pid, random_appearance(stream(seed, 'person', pid))) for pid in others]
    return people[:n]


def plan(
    people: list,  # From `identities`
    *,
    n_train: int,  # The first so many are for training
    n_images: int,  # Images of each of them
    n_queries: int,  # Queries of each of the others
    n_gallery: int,  # Gallery images of each of the others
    n_distractors: int,  # Gallery images of nobody
    n_junk: int,  # Junk boxes, of test identities
    seed: int,  # Of the set
) -> list[Shot]:  # In order
    "All images of the set; each query has a match in another camera even with a single gallery image"
    shots = []
    for who in people:
        rng = stream(seed, 'plan', who.pid)
        if who.pid <= n_train:
            cams = _cameras(rng)[:4 + int(rng.integers(3))]
            shots += _shots('train', who, cams, n_images, rng)
        else:
            # One camera in common: relatives look alike, and seldom pass the camera of the query
            cams = _cameras(stream(seed, 'cameras', who.family or who.pid))
            shots += _shots('query', who, cams[:3], n_queries, rng)
            shots += _shots('gallery', who, cams[5:1:-1], n_gallery, rng, start=n_queries)
    for i in range(n_distractors):
        rng = stream(seed, 'plan', 0, i)
        shots.append(_shot('gallery', 0, pick(rng, CAMERAS).camid, i, rng, None))
    for i in range(n_junk):
        rng = stream(seed, 'plan', -1, i)
        who = pick(rng, people[n_train:])
        shots.append(_shot('gallery', -1, pick(rng, CAMERAS).camid, i, rng, who))
    return shots


def _cameras(rng): return [int(c) + 1 for c in rng.permutation(len(CAMERAS))]


def _shots(split, who, cams, n, rng, start=0):
    "Images of a person, from each camera in turn"
    return [_shot(split, who.pid, cams[i % len(cams)], start + i, rng, who) for i in range(n)]


def _shot(split, pid, camid, i, rng, who):
    "An image named in Market-1501's manner: identity, camera, sequence, frame, box"
    pre = '-1' if pid < 0 else f'{pid:04d}'
    frame = 125 * i + int(rng.integers(1, 120))
    box = int(rng.integers(1, 5))
    return Shot(split, pid, camid, f'{pre}_c{camid}s{i % 3 + 1}_{frame:06d}_{box:02d}', who)


# One image, and what is true of it


def take(
    shot: Shot,  # From `plan`
    seed: int,  # Of the set
    occluded: float,  # Share of images with an occluder
) -> tuple:  # WalkerPicture, and its row of the table of truths
    "Draw one image of the plan"
    rng = stream(seed, 'image', shot.name)
    pose = random_pose(rng)
    box = random_box(rng)
    occluder = pick(rng, OCCLUDERS) if rng.random() < occluded else None
    appearance = _appearance(shot, rng)
    if shot.pid < 0: box = _junk_box(rng)
    if appearance is None and occluder == 'walker': occluder = 'pole'
    picture = draw_walker(appearance, pose, camera=shot.camid, seed=rng, occluder=occluder, box=box)
    return picture, _truth(shot, picture, pose if appearance else None, box, occluder)


def _appearance(shot, rng):
    "The appearance in a distractor: a person outside of the set, or nobody"
    if shot.who: return shot.who.appearance
    return random_appearance(rng) if rng.random() < .6 else None


def _junk_box(rng):
    "A box that contains only a part of a person"
    zoom = 1.7 + .9 * float(rng.random())
    return Box(zoom, .9 * (float(rng.random()) - .5), (float(rng.random()) - .5) * zoom)


def _truth(shot, picture, pose, box, occluder):
    "A row of the table of truths"
    who = shot.who
    joints = zip(picture.joints, picture.visible) if pose else ()
    return dict(
        file=f'{shot.file}.jpg', split=shot.split, pid=shot.pid, camid=shot.camid, person=who.pid if who else '',
        **_fields(pose, 'view', 'yaw', 'phase', 'arms'),
        zoom=round(box.zoom, 3), dx=round(box.dx, 3), dy=round(box.dy, 3),
        occluder=occluder or '', occluded=round(picture.occluded, 4),
        **_fields(who, 'family', 'detail', 'value'),
        joints=' '.join(f'{x:.2f},{y:.2f},{int(seen)}' for (x, y), seen in joints))


def _fields(thing, *names):
    "Fields of an object; empty texts for those without a value, or without an object"
    values = {name: getattr(thing, name, None) for name in names}
    return {name: '' if value is None else value for name, value in values.items()}


def noisy_mask(
    mask,  # (h, w) uint8 regions
    strength: float,  # 0 changes nothing; 1 moves boundaries by up to 5 pixels of 128 and loses a limb in most images
    rng,  # numpy Generator
) -> np.ndarray:  # (h, w) uint8 regions
    "The mask with errors like those of a real parser: shifted boundaries, and sometimes a missing limb"
    if not strength: return mask
    h, w = mask.shape
    reach = max(1, round(10 * strength * h / 128))
    shift = []
    for _ in range(2):
        smooth = enlarge(rng.integers(0, 256, (h // 12 + 2, w // 12 + 2)), (h, w))
        shift.append((smooth * reach + 128) // 256 - reach // 2)
    y = np.clip(np.arange(h)[:, None] + shift[0], 0, h - 1)
    x = np.clip(np.arange(w)[None] + shift[1], 0, w - 1)
    out = mask[y, x]
    for region in region_indices(LIMBS):
        lost = rng.random() < .25 * strength
        right = rng.random() < .5
        if lost: out = _without(out, region, right)
    return out


def _without(mask, region, right):
    "The mask without one side of a region, which becomes background"
    columns = np.nonzero(mask == region)[1]
    if not len(columns): return mask
    middle = (int(columns.min()) + int(columns.max())) // 2
    at = np.arange(mask.shape[1])[None] > middle
    return np.where((mask == region) & (at if right else ~at), np.uint8(0), mask)


# What every drawn set has: arguments in range, its own folder with a marker in it, tables


def whole_number(name: str, value, low: int, high: int) -> int:
    "The argument's value as an int; a TypeError or ValueError says what is allowed"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f'{name}={value!r}: use a whole number')
    refuse({f'{name}={value}: use {low} or more, at most {high}': not low <= value <= high})
    return int(value)


def share(name: str, value, high: float = 1.) -> float:
    "The argument's value as a float from 0 to `high`; a ValueError says what is allowed"
    is_number = isinstance(value, (int, float))
    refuse({f'{name}={value!r}: use a number from 0 to {high:g}': not is_number or not 0 <= value <= high})
    return float(value)


def cached(
    kind: str,  # As 'walkers'
    version: int,  # Of the drawing
    args: dict,  # Every argument
) -> Path:  # Among fastai's data (`FASTAI_HOME` or ~/.fastai)
    "The default folder for these arguments"
    key = '-'.join(f'{k}{v}' for k, v in args.items()).replace('_', '')
    return fastai_folder('data')/f'{kind}-v{version}-{key}'


def holds(
    folder: Path,  # Where the set may be
    marker: dict,  # version, arguments, files (sub-folder -> number of files)
    name: str,  # Of the marker's file
) -> bool:
    "True if the folder holds this set, False if it is missing or empty; a ValueError otherwise"
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()): return False
    try: found = dict(json.loads((folder/name).read_text('utf-8')))
    except (OSError, ValueError, TypeError): found = {}
    had, wanted = (f'{m.get("arguments")} (version {m.get("version")})' for m in (found, marker))
    counts = {sub: len(list((folder/sub).glob('*'))) for sub in marker['files']}
    short = [f'{sub} has {counts[sub]} of {n} files' for sub, n in marker['files'].items() if counts[sub] < n]
    refuse({
        f'{folder} exists and does not hold drawn walkers: choose another path, or remove it': not found,
        f'{folder} holds walkers drawn with {had}, wanted are {wanted}: choose another path, or remove that set':
            found != marker,
        f'{folder} lacks files ({", ".join(short)}): remove it, and draw it again': short})
    return True


def write_json(file: Path, content): file.write_text(json.dumps(content, indent=1), 'utf-8')


def write_table(file: Path, rows: list[dict]):
    "Writes rows with the same keys as a CSV file, with Unix's line ends on every system"
    pd.DataFrame(rows).to_csv(file, index=False, lineterminator='\n')
