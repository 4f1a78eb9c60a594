"The people and images of the built-in data set, and the truth about each image"

from dataclasses import asdict, dataclass
import numpy as np
from magnifier.regions import region_indices
from magnifier.walkers.appearance import DETAILS, Appearance, family, random_appearance
from magnifier.walkers.cameras import CAMERAS
from magnifier.walkers.canvas import enlarge, pick, stream
from magnifier.walkers.figure import Box, random_box, random_pose
from magnifier.walkers.pedestrian import OCCLUDERS, draw_walker

__all__ = ['Identity', 'Shot', 'FOLDERS', 'identities', 'plan', 'take', 'noisy_mask']

FOLDERS = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
LIMBS = ('upper_arm', 'lower_arm', 'upper_leg', 'lower_leg', 'foot')


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
        return f'{FOLDERS[self.split]}/{self.name}'


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
    frame, box = 125 * i + int(rng.integers(1, 120)), int(rng.integers(1, 5))
    return Shot(split, pid, camid, f'{pre}_c{camid}s{i % 3 + 1}_{frame:06d}_{box:02d}', who)


def _junk_box(rng):
    "A box that contains only a part of a person"
    zoom = 1.7 + .9 * float(rng.random())
    return Box(zoom, .9 * (float(rng.random()) - .5), (float(rng.random()) - .5) * zoom)


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


def _truth(shot, picture, pose, box, occluder):
    "A row of the table of truths"
    who = shot.who
    joints = zip(picture.joints, picture.visible) if pose else ()
    return dict(
        file=f'{shot.file}.jpg', split=shot.split, pid=shot.pid, camid=shot.camid,
        person=who.pid if who else '',
        **{name: getattr(pose, name) if pose else '' for name in ('view', 'yaw', 'phase', 'arms')},
        **{name: round(value, 3) for name, value in asdict(box).items()},
        occluder=occluder or '', occluded=round(picture.occluded, 4),
        **{name: getattr(who, name, None) or '' for name in ('family', 'detail', 'value')},
        joints=' '.join(f'{x:.2f},{y:.2f},{int(seen)}' for (x, y), seen in joints))


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
    y = np.arange(h)[:, None] + shift[0]
    x = np.arange(w)[None] + shift[1]
    out = mask[np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)]
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
