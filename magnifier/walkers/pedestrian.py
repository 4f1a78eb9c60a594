"The image of a drawn pedestrian: the painted body, an occluder in front, the camera, and the exact part mask"

import math
from typing import NamedTuple

import numpy as np

from magnifier.checks import refuse
from magnifier.regions import region_indices
from magnifier.walkers.cameras import CAMERAS, NEUTRAL, Camera, background, expose
from magnifier.walkers.canvas import SUPERSAMPLE, Canvas, grid, pick, stream
from magnifier.walkers.person import (ARMS, COCO_JOINTS, Appearance, Box, Pose, fit, random_appearance, random_box,
                                      random_pose, skeleton)

__all__ = ['draw_walker', 'WalkerPicture', 'OCCLUDERS', 'Pose', 'random_pose', 'Box', 'random_box']

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
    "Draws the person; returns the ground with their shadow, and the joints in pixels"
    joints, projection = _figure(canvas, appearance, pose, box, camera)
    points = np.array([projection(joints[name])[:2] for name in COCO_JOINTS], np.float32) / SUPERSAMPLE
    return shadowed(ground, projection, joints), points


def _figure(canvas, appearance, pose, box, camera, labels=True):
    "Draws a body where the box puts it; returns its joints and their projection"
    joints = skeleton(appearance, pose)
    projection = fit(joints, pose.yaw, box, canvas.label.shape, pitch=camera.pitch, roll=camera.roll)
    Body(canvas, appearance, joints, projection, labels).draw()
    return joints, projection


def shadowed(
    ground,  # (h, w, 3) uint8
    projection,  # To canvas pixels
    joints,  # From `skeleton`
) -> np.ndarray:  # (h, w, 3) uint8
    "The ground, darker in an ellipse under the feet; in integers, 64ths of a pixel"
    feet = [projection(joints[f'{side}_{sole}']) for side in ('left', 'right') for sole in ('toe', 'heel')]
    x = sum(f[0] for f in feet) / 4
    y = (sum(f[1] for f in feet) / 4 + max(f[1] for f in feet)) / 2
    x, y, r = (int(64 * grid(v) / SUPERSAMPLE) for v in (x, y, projection.size(.13)))
    h, w = ground.shape[:2]
    dx = np.arange(w)[None] * 64 + 32 - x
    dy = (np.arange(h)[:, None] * 64 + 32 - y) * 4
    near = np.minimum((dx * dx + dy * dy) * 100 // max(1, r * r), 100)[..., None]   # 100 at the rim
    return (ground.astype(np.int64) * (55 + near * 45 // 100) // 100).astype(np.uint8)


def _occlude(canvas, kind, rng, camera):
    "Draws an occluder in front of everything; returns the pixels that it covers"
    canvas.push_back()
    if kind == 'pole': _pole(canvas, rng)
    if kind == 'bag': _luggage(canvas, rng)
    if kind == 'walker': _passer_by(canvas, rng, camera)
    return canvas.front


def _pole(canvas, rng):
    "A lamp post or a signpost, from top to bottom"
    h, w = canvas.label.shape
    x = w * (.33 + .34 * float(rng.random()))
    r = w * (.06 + .06 * float(rng.random()))
    lean = w * (-.02 + .04 * float(rng.random()))
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
    handle = (left, top), (left, up), (right, up), (right, top)
    for a, b in zip(handle, handle[1:]): canvas.tube((*a, 0), (*b, 0), [r * .09], 0, (50, 50, 52))


def _passer_by(canvas, rng, camera):
    "Another walker, nearer to the camera, who covers one side"
    appearance = random_appearance(rng)
    pose = random_pose(rng)
    side = 1 if rng.random() < .5 else -1
    zoom = 1.1 + .2 * float(rng.random())
    box = Box(zoom, side * (.22 + .18 * float(rng.random())), .02 + .1 * float(rng.random()))
    _figure(canvas, appearance, pose, box, camera, labels=False)


def _seen(joints, hidden):
    "Which joints lie inside the image and not behind an occluder"
    h, w = hidden.shape
    seen = (joints >= 0).all(1) & (joints[:, 0] < w) & (joints[:, 1] < h)
    x, y = joints[seen].astype(int).T
    seen[seen] = ~hidden[y, x]
    return seen


# The body, part by part

HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = region_indices(range(1, 8))

# How far a garment reaches along the upper and the lower half of a limb, shares of its length
ALL, NOTHING = 9, -1  # Beyond a limb's round ends
LEG_REACH = dict(trousers=(ALL, ALL), cropped=(ALL, .5), shorts=(.82, NOTHING), skirt=(NOTHING, NOTHING))
SLEEVE_REACH = dict(none=(NOTHING, NOTHING), short=(.62, NOTHING), elbow=(ALL, .3), long=(ALL, .96))

# Half-widths and half-depths of the trunk from hem to neck, in body heights; the upper half goes with the shoulders
TRUNK_WIDE = (.122, .118, .108, .102, .104, .11), (.116, .121, .12, .108, .06)
TRUNK_DEEP = (.09, .086, .08, .077, .077, .079, .08, .077, .07, .062, .048)
HEAD_RADIUS = .054  # Before the size of the person's own head
BACKPACK = .074, .086, .088, .088, .084, .07
BRIM = .5, .8, .95, 1., 1., 1., .95, .8, .5  # A disc seen from its edge
SKIRT_WIDE, SKIRT_DEEP = (.108, .12, .132, .142), (.084, .1, .116, .13)


class Body:
    "One pedestrian, to be drawn on a canvas"
    def __init__(self,
        canvas: Canvas,  # To draw on
        appearance: Appearance,  # Who
        joints: dict,  # From `skeleton`
        projection,  # Projection from body to canvas coordinates
        labels: bool = True,  # False: the mask is background where this body is seen, as it is an occluder
    ):
        "Draws nothing yet"
        self.canvas = canvas
        self.appearance = appearance
        self.joints = joints
        self.projection = projection
        self.labels = labels

    def draw(self):
        "Draws all parts"
        for side in ('left', 'right'):
            self._leg(side)
            self._arm(side)
        self._trunk()
        if self.appearance.lower == 'skirt': self._skirt()
        self._head()
        if self.appearance.hair_style != 'short': self._long_hair()
        if self.appearance.hat != 'none': self._hat()
        if self.appearance.bag != 'none': self._bag()

    def _tube(self, start, end, radii, label, paint, **kwargs):
        "A tube between two joints (names or points), radii in body heights"
        a, b = (self.joints[v] if isinstance(v, str) else v for v in (start, end))
        projected = [self.projection.size(r, a if 2 * i < len(radii) else b) for i, r in enumerate(radii)]
        self._raw(a, b, projected, label, paint, **kwargs)

    def _raw(self, a, b, radii, label, paint, **kwargs):
        "A tube between two points, radii in canvas pixels"
        if not self.labels: label = 0
        self.canvas.tube(self.projection(a), self.projection(b), radii, label, paint, **kwargs)

    def _leg(self, side):
        "The knee, like the elbow, belongs to the lower part only, because two round ends would overlap"
        a = self.appearance
        g = a.girth
        thigh, calf = LEG_REACH[a.lower]
        self._tube(f'{side}_hip', f'{side}_knee', _sleeved(.063 * g, .046 * g, 1.12, thigh), UPPER_LEG,
                   _limb_paint(thigh, a.lower_colour, a.skin), caps=(False, False))
        self._tube(f'{side}_knee', f'{side}_ankle', _sleeved(.044 * g, .028 * g, 1.2, calf), LOWER_LEG,
                   _limb_paint(calf, a.lower_colour, a.skin))
        self._tube(f'{side}_heel', f'{side}_toe', (.037, .036, .03), FOOT, _shoe_paint(a.shoe_colour))
        self._tube(f'{side}_ankle', f'{side}_heel', (.032, .036), FOOT, _shoe_paint(a.shoe_colour))

    def _arm(self, side):
        a = self.appearance
        g = a.girth
        upper, fore = SLEEVE_REACH[a.sleeve]
        self._tube(f'{side}_shoulder', f'{side}_elbow', _sleeved(.04 * g, .034 * g, 1.17, upper), UPPER_ARM,
                   _limb_paint(upper, a.top_colour, a.skin), caps=(True, False))
        self._tube(f'{side}_elbow', f'{side}_wrist', _sleeved(.033 * g, .024 * g, 1.2, fore), LOWER_ARM,
                   _limb_paint(fore, a.top_colour, a.skin))
        self._tube(f'{side}_wrist', f'{side}_hand', (.024, .028, .02), LOWER_ARM, a.skin)

    def _trunk(self):
        a = self.appearance
        p = self.projection
        x, y, z = self.joints['pelvis']
        wide = [w * a.girth for w in TRUNK_WIDE[0]] + [w * a.shoulders for w in TRUNK_WIDE[1]]
        radii = [p.span(w, d * a.girth) for w, d in zip(wide, TRUNK_DEEP)]
        self._raw((x, y - .035, z), self.joints['neck'], radii, CHEST, _top_paint(a, p.yaw), caps=(False, False),
                  flat=p.span(.08, .118) / p.span(.118, .08), lift=p.size(.035))

    def _skirt(self):
        a = self.appearance
        p = self.projection
        x, y, z = self.joints['pelvis']
        kx, ky, kz = ((u + v) / 2 for u, v in zip(self.joints['left_knee'], self.joints['right_knee']))
        radii = [p.span(w * a.girth, d * a.girth) for w, d in zip(SKIRT_WIDE, SKIRT_DEEP)]
        self._raw((x, y + .01, z), (kx, ky + .03, kz * .6), radii, UPPER_LEG, _limb_paint(ALL, a.lower_colour, a.skin),
                  caps=(False, False), flat=p.span(.1, .13) / p.span(.13, .1), lift=p.size(.02))

    def _head(self):
        a = self.appearance
        r = HEAD_RADIUS * a.head
        x, y, z = self.joints['crown']
        cx, cy, cz = self.joints['chin']
        nx, ny, nz = self.joints['nose']
        bottom = cy + .95 * r
        self._tube('neck', (cx, cy + .03, cz - .01), (.043, .038), HEAD, a.skin)
        face = _head_paint(a, self.projection.yaw, (y - r - bottom) / r)
        self._tube((cx, bottom, cz), (x, y - r, z), (r * .88, r * .98, r), HEAD, face)
        self._tube((nx, ny + .008, nz - .014), (nx, ny, nz - .006), (.007, .009), HEAD, a.skin)

    def _long_hair(self):
        "Long hair or a bun; below a hat it begins lower"
        a = self.appearance
        r = HEAD_RADIUS * a.head
        x, y, z = self.joints['crown']
        covered = a.hat != 'none'
        if a.hair_style == 'long':
            high = .105 if covered else .07
            self._tube((x, y - high, z - .02), (x, y - .19, z - .045), (r, r * 1.04, r * .95), HEAD, a.hair_colour)
        else:
            high = .09 if covered else .03
            self._tube((x, y - high, z - .05), (x, y - high - .005, z - .06), [.03], HEAD, a.hair_colour)

    def _hat(self):
        hat = self.appearance.hat
        colour = self.appearance.hat_colour
        r = HEAD_RADIUS * self.appearance.head
        x, y, z = self.joints['crown']
        if hat == 'cap':
            for dx in (-.024, 0, .024):
                peak = x + dx, y - r * .8, z + .1 - abs(dx)
                self._tube((x + dx, y - r * .72, z + .03), peak, [.014], HEAD, colour)
        if hat == 'beanie':
            radii = r * 1.12, r * 1.08, r * .8
            self._tube((x, y - r, z - .004), (x, y - r * .3, z - .008), radii, HEAD, colour, caps=(False, True))
        if hat == 'brim':
            self._tube((x, y - r * .85, z), (x, y - r * .5, z), (r * 1.1, r), HEAD, colour, caps=(False, True))
            yaw = self.projection.yaw
            dx = .1 * math.cos(yaw)
            dz = .1 * math.sin(yaw)
            thick = .014 + .06 * abs(math.sin(self.projection.pitch))
            radii = [thick * v for v in BRIM]
            self._tube((x - dx, y - r * .8, z - dz), (x + dx, y - r * .8, z + dz), radii, HEAD, colour,
                       flat=.08 / thick)

    def _bag(self):
        "A bag has no label: in front of the body the mask keeps the body's label, elsewhere it is background"
        a = self.appearance
        p = self.projection
        g = a.girth
        x, y, z = self.joints['pelvis']
        if a.bag == 'backpack':
            low = x, y + .07, z - .09 * g
            high = x, y + .3, z - .085 * g
            radii = [p.span(w, .055) for w in BACKPACK]
        elif a.bag == 'shoulder':
            low = x + .115 * g, y - .075, z
            high = x + .115 * g, y + .04, z
            radii = [p.span(.04, .085)]
        else:
            x, y, z = self.joints['left_hand']
            low = x, y - .13, z
            high = x, y - .015, z
            radii = [p.span(.04, .08)] * 4 + [p.span(.012, .05)]
        self._raw(low, high, radii, None, _bag_paint(a.bag_colour), caps=(a.bag == 'backpack',) * 2, flat=.6)


def _sleeved(start, end, wider, reach, n=12):
    "Radii of a limb with a wider garment as far as `reach`"
    radii = [start + (end - start) * i / n for i in range(n + 1)]
    return [r * (wider if i / n <= reach else 1) for i, r in enumerate(radii)]


# Paints: the colour at each point of a surface


def _limb_paint(end, colour, skin):
    "A sleeve or a leg of trousers on the share `end` of the limb, then skin"
    def paint(s): return where(s.t <= end, _solid(colour) * _folds(s), skin)
    return paint


def _shoe_paint(colour):
    "A shoe with a darker sole"
    sole = tuple(.4 * c + 25 for c in colour)
    def paint(s): return where(s.down > .75, sole, colour)
    return paint


def _bag_paint(colour):
    "A bag with a seam"
    seam = tuple(.55 * c for c in colour)
    def paint(s): return where((np.abs(s.t - .62) < .03) & (s.facing > .4), seam, colour)
    return paint


def _top_paint(a, yaw):
    "The upper garment of an appearance on the trunk, turned by `yaw` radians: logo, straps of a bag, and neckline"
    def paint(s):
        left, forward = _turned(s, yaw)
        colour = where(_logo(a, s.t, left), a.logo_colour, _pattern(a, s.t, left)) * _folds(s, .07)
        if a.bag == 'backpack':
            strap = (forward > 0) & (np.abs(np.abs(left) - .56) < .11) & (s.t > .3)
            colour = where(strap, a.bag_colour, colour)
        if a.bag == 'shoulder':
            strap = np.abs(left * np.float32(.5) + s.t - np.float32(.52)) < .05
            colour = where(strap, a.bag_colour, colour)
        neckline = (s.t > .9) & (forward > .1) & (np.abs(left) < (s.t - np.float32(.9)) * 9)
        return where(neckline, a.skin, colour)
    return paint


def _pattern(a, t, left):
    "The upper garment's two colours, at height `t` and side `left`"
    rows = np.floor(t * np.float32(6.5)) % 2 == 0
    columns = np.floor(left * np.float32(2.6) + np.float32(8.5)) % 2 == 0
    accented = dict(plain=_nowhere(t), stripes=rows, columns=columns, checks=rows ^ columns, halves=t < .5)
    return where(accented[a.top_pattern], a.top_accent, a.top_colour)


def _logo(a, t, left):
    "Where the logo is, on chest and back alike"
    if a.logo == 'none': return _nowhere(t)
    x = left / np.float32(.5)
    y = (t - np.float32(.64)) / np.float32(.2)
    inside = (np.abs(x) < 1) & (np.abs(y) < 1)
    if a.logo == 'disc': inside &= x * x + y * y < 1
    if a.logo == 'cross': inside &= (np.abs(x) < .36) | (np.abs(y) < .36)
    return inside


def _nowhere(t): return np.zeros(len(t), bool)


def _head_paint(a, yaw, length):
    """Face, hair, and a cap that hugs the head, of an appearance turned by `yaw` radians; `length` of the head's axis
    in radii of the head"""
    side = .2 if a.hair_style == 'short' else -.5
    lips = tuple(.5 * c for c in a.skin)
    def paint(s):
        left, forward = _turned(s, yaw)
        up = s.t * np.float32(length)  # from -1 at the chin to length + 1 at the crown
        hair = (up > .85) | (forward < -.25) | ((forward < .35) & (up > side))
        if a.hair_style == 'short': hair &= (forward >= 0) | (up >= -.3)
        eyes = (np.abs(np.abs(left) - .38) < .14) & (np.abs(up - .3) < .12) & (forward > 0)
        mouth = (np.abs(left) < .28) & (np.abs(up + .42) < .08) & (forward > 0)
        face = where(eyes, (40, 30, 30), where(mouth, lips, a.skin))
        return where((up > .72) & (a.hat == 'cap'), a.hat_colour, where(hair, a.hair_colour, face))
    return paint


def _turned(s, yaw):
    "Directions of the surface in the body's own frame: how far it faces the body's left, how far forward"
    c = np.float32(round(math.cos(yaw), 4))
    f = np.float32(round(math.sin(yaw), 4))
    return s.across * c - s.facing * f, s.across * f + s.facing * c


def _folds(s, deep=.05):
    "Brightness of cloth in folds: a slow triangle wave along and over the tube"
    wave = s.t * np.float32(5.3) + s.across * np.float32(1.9)
    fold = np.abs(wave - np.floor(wave) - np.float32(.5))
    return (np.float32(1 - deep) + np.float32(2 * deep) * fold)[:, None]


def where(condition, a, b) -> np.ndarray:
    "(n, 3) float32: colour `a` at the points where the condition (n,) holds, `b` at the others; RGB, or (n, 3)"
    return np.where(condition[:, None], _solid(a), _solid(b))


def _solid(colour): return colour if isinstance(colour, np.ndarray) else np.array([colour], np.float32)
