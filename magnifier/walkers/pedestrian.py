"One image of a drawn pedestrian: the body, an occluder in front, the camera, and the exact part mask"

from typing import NamedTuple

import numpy as np

from magnifier.checks import refuse
from magnifier.walkers.appearance import Appearance, random_appearance, where
from magnifier.walkers.body import ARMS, COCO_JOINTS, Body, Box, Pose, fit, random_pose, skeleton
from magnifier.walkers.cameras import CAMERAS, NEUTRAL, Camera, background, expose
from magnifier.walkers.canvas import SUPERSAMPLE, Canvas, grid, pick, stream

__all__ = ['draw_walker', 'WalkerPicture', 'shadowed', 'OCCLUDERS']

OCCLUDERS = ('pole', 'bag', 'walker')
_POLES = ((120, 122, 126), (66, 70, 74), (196, 170, 60), (70, 100, 84), (160, 150, 138))
_LUGGAGE = ((60, 62, 70), (128, 48, 52), (52, 78, 120), (150, 128, 96), (74, 92, 70))


class WalkerPicture(NamedTuple):
    "An image of a drawn pedestrian, and the truth about it"
    image: np.ndarray    # (h, w, 3) uint8
    mask: np.ndarray     # (h, w) uint8 regions; whatever stands in front is 0
    joints: np.ndarray   # (17, 2) float32, COCO order, x and y in pixels; may lie outside, -1 where nobody is
    visible: np.ndarray  # (17,) bool: inside the image and behind no occluder; the person's own body hides nothing
    occluded: float      # Share of the body's pixels that an occluder hides


def draw_walker(
    appearance: Appearance,  # Who; None draws an empty place
    pose: Pose = Pose(),  # How they stand
    *,
    camera=None,  # 1 to 6, a Camera, or None: a studio, with a grey background and no change of colours
    seed=0,  # An int, or a numpy Generator: background, exposure, noise and the occluder's looks
    occluder=None,  # One of OCCLUDERS, or None
    box: Box = Box(),  # How the detector cut the person out
    size=(128, 64),  # Height and width of the image, 16 or more each
) -> WalkerPicture:  # image, mask, joints, visible, occluded
    """Draw one image. The same arguments give the same pixels on every machine; another appearance changes nothing
    else.

    Raises ValueError for an unknown camera, occluder or arms, or a size too small to see anything in."""
    refuse({
        f'unknown occluder {occluder!r}: use {", ".join(OCCLUDERS)} or None': occluder not in (None, *OCCLUDERS),
        f'size={size}: use (height, width), 16 or more each': len(size) != 2 or min(size) < 16,
        f'unknown arms {pose.arms!r}: use one of {", ".join(ARMS)}': pose.arms not in ARMS,
        f'camera {camera!r}: use 1 to {len(CAMERAS)}, a Camera, or None for a studio':
            not isinstance(camera, Camera) and camera not in (None, *range(1, len(CAMERAS) + 1))})
    if camera is None: camera = NEUTRAL
    if not isinstance(camera, Camera): camera = CAMERAS[camera - 1]
    rng = seed if isinstance(seed, np.random.Generator) else stream(seed, 'walker')
    canvas = Canvas(size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE, camera.light, camera.ambient)
    ground = background(camera, size, rng)
    points = np.full((len(COCO_JOINTS), 2), -1., np.float32)
    if appearance is not None: ground, points = _person(canvas, ground, appearance, pose, box, camera)
    body = canvas.mask > 0
    hidden = _occlude(canvas, occluder, rng, camera) if occluder else np.zeros(size, bool)
    occluded = float((body & hidden).sum()) / max(1, int(body.sum()))
    image = expose(canvas.reduced(ground), camera, rng)
    return WalkerPicture(image, canvas.mask, points, _seen(points, hidden), occluded)


def _person(canvas, ground, appearance, pose, box, camera):
    "Draw the person; returns the ground with their shadow, and the joints in pixels"
    joints = skeleton(appearance, pose)
    projection = fit(joints, pose, box, canvas.label.shape, pitch=camera.pitch, roll=camera.roll)
    Body(canvas, appearance, joints, projection).draw()
    points = np.array([projection(joints[name])[:2] for name in COCO_JOINTS], np.float32) / SUPERSAMPLE
    return shadowed(ground, projection, joints), points


def shadowed(
    ground,  # (h, w, 3) uint8
    projection,  # To canvas pixels
    joints,  # From `skeleton`
) -> np.ndarray:  # (h, w, 3) uint8
    "The ground, darker in an ellipse under the feet; in integers, 64ths of a pixel"
    feet = [projection(joints[f'{s}_{p}']) for s in ('left', 'right') for p in ('toe', 'heel')]
    x = sum(f[0] for f in feet) / 4
    y = (sum(f[1] for f in feet) / 4 + max(f[1] for f in feet)) / 2
    x, y, r = (int(64 * grid(v) / SUPERSAMPLE) for v in (x, y, projection.size(.13)))
    h, w = ground.shape[:2]
    dx = np.arange(w)[None] * 64 + 32 - x
    dy = (np.arange(h)[:, None] * 64 + 32 - y) * 4
    near = np.minimum((dx * dx + dy * dy) * 100 // max(1, r * r), 100)[..., None]   # 100 at the rim
    return (ground.astype(np.int64) * (55 + near * 45 // 100) // 100).astype(np.uint8)


def _occlude(canvas, kind, rng, camera):
    "Draw an occluder in front of everything; returns the pixels it covers"
    canvas.push_back()
    if kind == 'walker': _passer_by(canvas, rng, camera)
    else: dict(pole=_pole, bag=_luggage)[kind](canvas, rng)
    return canvas.front


def _pole(canvas, rng):
    "A lamp post or a signpost, from top to bottom"
    h, w = canvas.label.shape
    x, r, lean = (w * (low + wide * float(rng.random())) for low, wide in ((.33, .34), (.06, .06), (-.02, .04)))
    canvas.tube((x - lean, -r, 0), (x + lean, h + r, 0), [r], 0, pick(rng, _POLES))


def _luggage(canvas, rng):
    "A suitcase or a sack with a handle, in front of the legs"
    h, w = canvas.label.shape
    x = w * (.25 + .5 * float(rng.random()))
    r = w * (.2 + .1 * float(rng.random()))
    top = h * (.5 + .22 * float(rng.random()))
    colour = pick(rng, _LUGGAGE)
    def paint(s): return where((np.floor(s.t * 9) % 3 == 0) & (s.facing > .3), tuple(c * .7 for c in colour), colour)
    canvas.tube((x, top, 0), (x, h * 1.1, 0), [r * .8, r, r, r, r], 0, paint, flat=.3)
    left = x - r * .4
    right = x + r * .4
    up = top - r * .9
    for a, b in (((left, up), (right, up)), ((left, up), (left, top)), ((right, up), (right, top))):
        canvas.tube((*a, 0), (*b, 0), [r * .09], 0, (50, 50, 52))


def _passer_by(canvas, rng, camera):
    "Another walker, nearer to the camera, who covers one side"
    appearance = random_appearance(rng)
    pose = random_pose(rng)
    side = 1 if rng.random() < .5 else -1
    zoom = 1.1 + .2 * float(rng.random())
    box = Box(zoom, side * (.22 + .18 * float(rng.random())), .02 + .1 * float(rng.random()))
    joints = skeleton(appearance, pose)
    projection = fit(joints, pose, box, canvas.label.shape, pitch=camera.pitch, roll=camera.roll)
    Body(canvas, appearance, joints, projection, labels=False).draw()


def _seen(joints, hidden):
    "Which joints lie inside the image and not behind an occluder"
    h, w = hidden.shape
    seen = (joints >= 0).all(1) & (joints[:, 0] < w) & (joints[:, 1] < h)
    x, y = joints[seen].astype(int).T
    seen[seen] = ~hidden[y, x]
    return seen
