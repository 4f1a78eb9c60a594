"The embedded data set: drawn pedestrians in Market-1501's layout, with exact part masks and the truth about every picture"

import csv, json, logging, os, shutil, tempfile, time
from dataclasses import asdict, dataclass
from pathlib import Path
import numpy as np
from PIL import Image
from magnifier.data.appearance import Appearance, differing_fields, family, random_appearance
from magnifier.data.canvas import stream
from magnifier.data.cameras import CAMERAS
from magnifier.data.figure import Box, Pose, random_box, random_pose
from magnifier.data.pedestrian import OCCLUDERS, WalkerPicture, draw_walker

__all__ = ['walkers', 'walkers_truth', 'noisy_mask']

log = logging.getLogger(__name__)

VERSION = 1  # Of the drawing: raised whenever the same arguments give other pictures
FOLDERS = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
MARKER, TRUTH, PEOPLE = 'walkers.json', 'walkers.csv', 'identities.json'
_LARGEST = 7000   # Images of one identity: frame numbers have six digits
_STALE = 3600     # Seconds after which a half-drawn folder belongs to nobody: drawing takes less than a minute


@dataclass(frozen=True)
class Identity:
    "Somebody in the data set"
    pid: int
    appearance: Appearance
    family: int  # Four identities share it
    detail: str  # The field in which they differ


@dataclass(frozen=True)
class Shot:
    "One image to draw"
    split: str
    pid: int     # -1 junk, 0 distractor
    camid: int
    name: str    # File name without its ending
    who: Identity = None


def _identities(n, seed):
    "`n` people in families of four, the last one perhaps smaller"
    people = []
    for f in range((n + 3) // 4):
        four = family(stream(seed, 'family', f))
        detail = differing_fields(four)[0]
        people += [Identity(4 * f + i + 1, a, f, detail) for i, a in enumerate(four)]
    return people[:n]


def _shots(split, pid, camids, rng, who=None, start=0):
    "Names in Market-1501's manner: identity, camera, sequence, frame, box"
    pre = '-1' if pid < 0 else f'{pid:04d}'
    for i, camid in enumerate(camids, start):
        name = f'{pre}_c{camid}s{i % 3 + 1}_{125 * i + int(rng.integers(1, 120)):06d}_{int(rng.integers(1, 5)):02d}'
        yield Shot(split, pid, camid, name, who)


def _plan(people, n_train, n_images, n_gallery, n_distractors, n_junk, seed):
    "Every image of the set, in order"
    shots, n_cameras = [], len(CAMERAS)
    for who in people:
        rng = stream(seed, 'plan', who.pid)
        cams = [int(c) + 1 for c in rng.permutation(n_cameras)[:4 + int(rng.integers(3))]]
        if who.pid <= n_train:
            shots += _shots('train', who.pid, [cams[i % len(cams)] for i in range(n_images)], rng, who)
        else:  # both queries find a match in another camera from the first gallery image on
            shots += _shots('query', who.pid, cams[:2], rng, who)
            shots += _shots('gallery', who.pid, [cams[(i + 2) % 4] for i in range(n_gallery)], rng, who, start=2)
    for pid, n in ((0, n_distractors), (-1, n_junk)):
        rng = stream(seed, 'plan', pid)
        for i in range(n):
            who = people[n_train + int(rng.integers(len(people) - n_train))] if pid < 0 else None
            shots += _shots('gallery', pid, [int(rng.integers(n_cameras)) + 1], rng, who, start=i)
    return shots


def _junk_box(rng):
    "A box that caught a piece of somebody"
    zoom = 1.7 + .9 * float(rng.random())
    return Box(zoom, .9 * (float(rng.random()) - .5), (float(rng.random()) - .5) * zoom)


def _take(shot, seed, occluded):
    "Draw one image of the plan; also what it was drawn from"
    rng = stream(seed, 'image', shot.name)
    pose, box, hides = random_pose(rng), random_box(rng), rng.random() < occluded
    occluder = OCCLUDERS[int(rng.integers(len(OCCLUDERS)))] if hides else None
    appearance = shot.who.appearance if shot.who else random_appearance(rng) if rng.random() < .6 else None
    if shot.pid < 0: box = _junk_box(rng)
    if appearance is None and occluder == 'walker': occluder = 'pole'
    picture = draw_walker(appearance, pose, camera=shot.camid, seed=rng, occluder=occluder, box=box)
    return picture, _truth(shot, picture, pose if appearance else None, box, occluder)


def _truth(shot, picture, pose, box, occluder):
    "A row of the table of truths"
    who = shot.who
    value = getattr(who.appearance, who.detail) if who else ''
    joints = ' '.join(f'{x:.2f},{y:.2f},{int(v)}' for (x, y), v in zip(picture.joints, picture.visible)) if pose else ''
    return dict(
        file=f'{FOLDERS[shot.split]}/{shot.name}.jpg', split=shot.split, pid=shot.pid, camid=shot.camid, person=who.pid if who else '',
        view=pose.view if pose else '', yaw=pose.yaw if pose else '', phase=pose.phase if pose else '', arms=pose.arms if pose else '',
        zoom=round(box.zoom, 3), dx=round(box.dx, 3), dy=round(box.dy, 3), occluder=occluder or '', occluded=round(picture.occluded, 4),
        family=who.family if who else '', detail=who.detail if who else '', joints=joints,
        value='#%02x%02x%02x' % value if isinstance(value, tuple) else value)


def noisy_mask(
    mask,  # (h, w) uint8 regions
    strength: float,  # 0 leaves the mask as it is; 1 moves boundaries by up to 5 pixels of 128 and loses a limb in most images
    rng,  # numpy Generator
) -> np.ndarray:  # (h, w) uint8 regions
    "The mask as a real parser would give it: wobbly boundaries, and now and then a limb on one side is lost to what surrounds it"
    if not strength: return mask
    h, w = mask.shape
    reach = max(1, round(10 * strength * h / 128))
    shift = []
    for _ in range(2):
        small = Image.fromarray(rng.integers(0, 256, (h // 12 + 2, w // 12 + 2)).astype(np.uint8))
        smooth = np.asarray(small.resize((w, h), Image.Resampling.BILINEAR)).astype(np.int32)
        shift.append((smooth * reach + 128) // 256 - reach // 2)
    y, x = np.arange(h)[:, None] + shift[0], np.arange(w)[None] + shift[1]
    out = mask[np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)]
    for region in range(1, 8):
        lost, side = rng.random() < .25 * strength, rng.random() < .5
        if lost: out = _without(out, region, side)
    return out


def _without(mask, region, right):
    "The mask without one side of a region, which becomes background"
    columns = np.nonzero(mask == region)[1]
    if not len(columns): return mask
    middle = (int(columns.min()) + int(columns.max())) // 2
    at = np.arange(mask.shape[1])[None] > middle
    return np.where((mask == region) & (at if right else ~at), np.uint8(0), mask)


def _draw_all(root, labels, plan, args):
    "Write every image, mask and row into two new folders"
    for folder in FOLDERS.values():
        (root/folder).mkdir(parents=True)
        (labels/folder).mkdir(parents=True)
    rows = []
    for shot in plan:
        picture, row = _take(shot, args['seed'], args['occluded'])
        mask = noisy_mask(picture.mask, args['mask_noise'], stream(args['seed'], 'mask', shot.name))
        at = f'{FOLDERS[shot.split]}/{shot.name}'
        Image.fromarray(picture.image).save(root/f'{at}.jpg', quality=95, subsampling=0, optimize=False)
        Image.fromarray(mask).save(labels/f'{at}.png', compress_level=6)
        rows.append(row)
    with open(root/TRUTH, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _marker(args, plan):
    "What a complete folder says about itself"
    counts = {folder: sum(FOLDERS[s.split] == folder for s in plan) for folder in FOLDERS.values()}
    return dict(version=VERSION, arguments=args, images=counts)


def _holds(folder, marker):
    "Whether the folder is this very set, whole; a ValueError where it is anything else that must not be touched"
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()): return False
    try: found = json.loads((folder/MARKER).read_text('utf-8'))
    except (OSError, ValueError): found = None
    if found is None: raise ValueError(f'{folder} exists and holds something else than walkers: choose another path, or remove it')
    if found != marker:
        raise ValueError(f'{folder} holds walkers drawn with {found.get("arguments")} (version {found.get("version")}), wanted are '
                         f'{marker["arguments"]} (version {VERSION}): choose another path, or remove it and {folder.name}_ps_label')
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


def _sweep(root):
    "Remove what killed runs left half drawn"
    for part in root.parent.glob(f'.{root.name}-*.part'):
        if time.time() - part.stat().st_mtime > _STALE: shutil.rmtree(part, ignore_errors=True)


def _home(args):
    "The folder for these arguments among fastai's data"
    key = '-'.join(f'{k}{v}' for k, v in args.items()).replace('_', '')
    return Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser()/'data'/f'walkers-v{VERSION}-{key}'


def _checked(args):
    "The arguments, or a ValueError that says what is allowed"
    lowest = dict(n_train=1, n_test=1, seed=0, n_images=1, n_gallery=1, n_distractors=0, n_junk=0)
    for name, low in lowest.items():
        if isinstance(args[name], bool) or not isinstance(args[name], (int, np.integer)): raise TypeError(f'{name}={args[name]!r}: use a whole number')
        if args[name] < low: raise ValueError(f'{name}={args[name]}: use {low} or more')
        if name != 'seed' and args[name] > _LARGEST: raise ValueError(f'{name}={args[name]}: use {_LARGEST} or fewer')
    if args['n_train'] + args['n_test'] > 9999:
        raise ValueError(f'{args["n_train"]} + {args["n_test"]} identities: names have four digits, use 9999 or fewer in all')
    for name in ('occluded', 'mask_noise'):
        if not 0 <= args[name] <= 1: raise ValueError(f'{name}={args[name]}: use a share from 0 to 1')
    return {k: float(v) if k in ('occluded', 'mask_noise') else int(v) for k, v in args.items()}


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

    Identities come in families of four that share everything but one detail. Part masks (METHOD.md's eight regions) are exact and lie in
    `<root>_ps_label/<same sub-path>.png` for all splits; `walkers_truth` reads what is true of each image. Everything is drawn aside
    and renamed, masks first: a root that exists is whole. Raises ValueError for arguments out of range and for a path that holds
    anything else, OSError where nothing can be written.
    """
    n_distractors = n_test if n_distractors is None else n_distractors
    args = dict(n_train=n_train, n_test=n_test, seed=seed, n_images=n_images, n_gallery=n_gallery, n_distractors=n_distractors,
                n_junk=n_distractors // 2 if n_junk is None else n_junk, occluded=occluded, mask_noise=mask_noise)
    args = _checked(args)
    root = Path(path).expanduser().absolute() if path is not None else _home(args)
    labels = root.with_name(root.name + '_ps_label')
    people = _identities(args['n_train'] + args['n_test'], args['seed'])
    plan = _plan(people, *(args[k] for k in ('n_train', 'n_images', 'n_gallery', 'n_distractors', 'n_junk', 'seed')))
    marker = _marker(args, plan)
    if not (_holds(root, marker) & _holds(labels, marker)): _draw(root, labels, people, plan, marker)
    return root


def _draw(root, labels, people, plan, marker):
    "Draw aside, then rename: labels first, so that a root in place always has its masks"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        part = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', suffix='.part', dir=root.parent))
    except OSError as e: raise OSError(f'cannot write walkers to {root}: {e.strerror or e}; pass a path where files may be written') from e
    log.info('drawing %d pedestrians into %s', len(plan), root)
    try:
        new_root, new_labels = part/'root', part/'labels'
        _draw_all(new_root, new_labels, plan, marker['arguments'])
        (new_root/PEOPLE).write_text(json.dumps({p.pid: asdict(p) for p in people}, indent=1), 'utf-8')
        for folder in (new_root, new_labels): (folder/MARKER).write_text(json.dumps(marker, indent=1), 'utf-8')
        _install(new_labels, labels, marker)
        _install(new_root, root, marker)
    finally: shutil.rmtree(part, ignore_errors=True)


def walkers_truth(
    path,  # Root folder, from `walkers`
):  # DataFrame, one row an image: file, split, pid, camid, person, view, pose, box, occluder, occluded, family, detail, value, joints
    """What is true of every image. `person` is the identity also where the name says junk; `joints` is (17, 3): x, y, visible, COCO order.

    Raises FileNotFoundError where `path` is no folder of `walkers`.
    """
    import pandas as pd
    file = Path(path)/TRUTH
    if not file.exists(): raise FileNotFoundError(f'{file} is missing: {path} was not written by walkers()')
    table = pd.read_csv(file, keep_default_na=False, dtype=dict(joints=str))
    table['joints'] = [np.array([j.split(',') for j in row.split()], np.float32) if row else None for row in table.joints]
    return table
