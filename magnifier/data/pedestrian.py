"Drawing a pedestrian: a dressed, shaded body of tubes, what stands before it, and the exact part mask of both"

from typing import NamedTuple
import numpy as np
from magnifier.regions import REGIONS
from magnifier.data.canvas import Canvas, SUPERSAMPLE, stream
from magnifier.data.appearance import Appearance, random_appearance
from magnifier.data.figure import Pose, Box, Projection, skeleton, fit, random_pose, COCO_JOINTS
from magnifier.data.cameras import Camera, CAMERAS, NEUTRAL, background, expose

__all__ = ['draw_walker', 'WalkerPicture', 'OCCLUDERS']

OCCLUDERS = ('pole', 'bag', 'walker')
HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = range(1, len(REGIONS))


class WalkerPicture(NamedTuple):
    "A drawn pedestrian and everything that is true of it"
    image: np.ndarray    # (h, w, 3) uint8
    mask: np.ndarray     # (h, w) uint8 regions; whatever stands in front is 0
    joints: np.ndarray   # (17, 2) float32, COCO order, x and y in pixels; may lie outside the picture
    visible: np.ndarray  # (17,) bool: inside the picture and behind no occluder; the own body does not count
    occluded: float      # Share of the body's pixels that an occluder hides


def _rgb(colour): return np.array([colour], np.float32)

def _where(condition, a, b): return np.where(condition[:, None], _rgb(a), b if isinstance(b, np.ndarray) else _rgb(b))


def _turned(surface, yaw):
    "Surface directions in the body's own frame: to its left, forward"
    c, s = np.float32(round(np.cos(yaw), 4)), np.float32(round(np.sin(yaw), 4))
    return surface.across * c - surface.facing * s, surface.across * s + surface.facing * c


def _folds(t, across, deep=.07):
    "Cloth hangs in folds: a slow triangle wave along and over the tube"
    wave = t * np.float32(5.3) + across * np.float32(1.9)
    return np.float32(1 - deep) + np.float32(2 * deep) * np.abs(wave - np.floor(wave) - np.float32(.5))


def _pattern(a, t, left):
    "Upper garment's two colours at height `t` and side `left`"
    rows, columns = np.floor(t * np.float32(6.5)) % 2 == 0, np.floor(left * np.float32(2.6) + np.float32(8.5)) % 2 == 0
    second = dict(plain=t > 9, stripes=rows, columns=columns, checks=rows ^ columns, halves=t < .5)[a.top_pattern]
    return _where(second, a.top_accent, a.top_colour)


def _logo(a, t, left):
    "Where the logo is, on chest and back alike"
    x, y = left / np.float32(.5), (t - np.float32(.64)) / np.float32(.2)
    inside = (np.abs(x) < 1) & (np.abs(y) < 1)
    if a.logo == 'disc': inside &= x * x + y * y < 1
    if a.logo == 'cross': inside &= (np.abs(x) < .36) | (np.abs(y) < .36)
    return inside if a.logo != 'none' else np.zeros_like(inside)


def _top_paint(a, yaw):
    def paint(s):
        left, forward = _turned(s, yaw)
        colour = _where(_logo(a, s.t, left), a.logo_colour, _pattern(a, s.t, left)) * _folds(s.t, s.across)[:, None]
        if a.bag == 'backpack': colour = _where((forward > 0) & (np.abs(np.abs(left) - .56) < .11) & (s.t > .3), a.bag_colour, colour)
        if a.bag == 'shoulder': colour = _where(np.abs(left * np.float32(.5) + s.t - np.float32(.52)) < .05, a.bag_colour, colour)
        neckline = (s.t > .9) & (forward > .1) & (np.abs(left) < (s.t - np.float32(.9)) * 9)
        return _where(neckline, a.skin, colour)
    return paint


def _head_paint(a, yaw):
    shadow, hairline = tuple(c * .45 for c in a.skin), .98 if a.hair_style == 'short' else .9
    def paint(s):
        left, forward = _turned(s, yaw)
        hair = (s.t > hairline) | (forward < -.25) | ((forward < .3) & (s.t > (.3 if a.hair_style == 'short' else -.2)))
        if a.hair_style == 'short': hair &= ~((forward < 0) & (s.t < -.25))
        eyes = (np.abs(np.abs(left) - .38) < .13) & (np.abs(s.t - .5) < .11) & (forward > 0)
        mouth = (np.abs(left) < .25) & (np.abs(s.t + .12) < .06) & (forward > 0)
        colour = _where(eyes, (40, 30, 30), _where(mouth, shadow, a.skin))
        colour = _where(hair, a.hair_colour, colour)
        if a.hat in ('cap', 'beanie'): colour = _where(s.t > (.78 if a.hat == 'cap' else .68), a.hat_colour, colour)
        return colour
    return paint


def _cloth(end, colour, skin):
    "Paint of a limb that a garment covers as far as `end`"
    def paint(s): return np.where((s.t <= end)[:, None], _rgb(colour) * _folds(s.t, s.across, .05)[:, None], _rgb(skin))
    return paint


def _sleeved(skin_radii, cloth_extra, end):
    "Radii of a limb whose garment is wider than it, down to share `end`"
    n = 12
    low, high = skin_radii
    radii = [low + (high - low) * i / n for i in range(n + 1)]
    return [r * (cloth_extra if i / n <= end else 1) for i, r in enumerate(radii)]


class _Figure:
    "One pedestrian on a canvas; `labels=False` writes background wherever it is seen"
    def __init__(self, canvas, appearance, joints, projection, labels=True):
        self.canvas, self.a, self.joints, self.p, self.labels = canvas, appearance, joints, projection, labels

    def tube(self, start, end, radii, label, paint, **kwargs):
        "A tube between two joints (names or points), radii in body heights"
        a, b = (self.joints[v] if isinstance(v, str) else v for v in (start, end))
        if isinstance(radii, (int, float)): radii = [radii]
        sizes = [self.p.size(r, a if 2 * i < len(radii) else b) for i, r in enumerate(radii)]
        self.canvas.tube(self.p(a), self.p(b), sizes, label if self.labels else 0, paint, **kwargs)

    def draw(self):
        for side in ('left', 'right'):
            self.leg(side)
            self.arm(side)
        self.trunk()
        self.head()
        if self.a.bag != 'none': self.bag()

    def leg(self, side):
        a, g, lower = self.a, self.a.girth, self.a.lower
        thigh, calf = dict(trousers=(9, 9), cropped=(9, .5), shorts=(.82, -1), skirt=(-1, -1))[lower]
        self.tube(f'{side}_hip', f'{side}_knee', _sleeved((.063 * g, .046 * g), 1.12, thigh), UPPER_LEG, _cloth(thigh, a.lower_colour, a.skin), caps=(False, True))
        self.tube(f'{side}_knee', f'{side}_ankle', _sleeved((.044 * g, .028 * g), 1.2, calf), LOWER_LEG, _cloth(calf, a.lower_colour, a.skin), caps=(False, True))
        sole = tuple(.4 * c + 25 for c in a.shoe_colour)
        def shoe(s): return _where(s.down > .75, sole, a.shoe_colour)
        self.tube(f'{side}_heel', f'{side}_toe', (.037, .036, .03), FOOT, shoe)
        self.tube(f'{side}_ankle', f'{side}_heel', (.032, .036), FOOT, shoe)

    def arm(self, side):
        a, g = self.a, self.a.girth
        upper, fore = dict(none=(-1, -1), short=(.62, -1), elbow=(9, .3), long=(9, .96))[a.sleeve]
        self.tube(f'{side}_shoulder', f'{side}_elbow', _sleeved((.04 * g, .034 * g), 1.17, upper), UPPER_ARM, _cloth(upper, a.top_colour, a.skin))
        self.tube(f'{side}_elbow', f'{side}_wrist', _sleeved((.033 * g, .024 * g), 1.2, fore), LOWER_ARM, _cloth(fore, a.top_colour, a.skin), caps=(False, True))
        self.tube(f'{side}_wrist', f'{side}_hand', (.024, .028, .02), LOWER_ARM, a.skin)

    def trunk(self):
        a, g, b, p, yaw = self.a, self.a.girth, self.a.shoulders, self.p, self.p.yaw
        x, y, z = self.joints['pelvis']
        foot, top = (x, y - .035, z), self.joints['neck']
        wide = [.122 * g, .118 * g, .108 * g, .102 * g, .104 * g, .11 * g, .116 * b, .121 * b, .12 * b, .108 * b, .06]
        deep = [.09 * g, .086 * g, .08 * g, .077 * g, .077 * g, .079 * g, .08 * g, .077 * g, .07 * g, .062 * g, .048]
        radii = [p.span(w, d) for w, d in zip(wide, deep)]
        self.canvas.tube(p(foot), p(top), radii, CHEST if self.labels else 0, _top_paint(a, yaw), caps=(False, False), flat=p.span(.08, .118) / p.span(.118, .08), lift=p.size(.035))
        if a.lower == 'skirt':
            knees = [(u + v) / 2 for u, v in zip(self.joints['left_knee'], self.joints['right_knee'])]
            hem = (knees[0], knees[1] + .03, knees[2] * .6)
            radii = [p.span(w, d) for w, d in zip((.108 * g, .12 * g, .132 * g, .142 * g), (.084 * g, .1 * g, .116 * g, .13 * g))]
            paint = _cloth(9, a.lower_colour, a.skin)
            self.canvas.tube(p((x, y + .01, z)), p(hem), radii, UPPER_LEG if self.labels else 0, paint, caps=(False, False), flat=p.span(.1, .13) / p.span(.13, .1), lift=p.size(.02))

    def head(self):
        a, yaw, r = self.a, self.p.yaw, .057 * self.a.head
        x, y, z = self.joints['crown']
        top, chin = (x, y - r, z), self.joints['chin']
        bottom = (chin[0], chin[1] + r * .75, chin[2])
        self.tube('neck', bottom, (.042, .038), HEAD, a.skin)
        self.tube(bottom, top, (r * .82, r * .98, r * 1.02), HEAD, _head_paint(a, yaw))
        self.tube(self.joints['nose'], tuple(n - d for n, d in zip(self.joints['nose'], (0, .012, .01))), (.009, .011), HEAD, a.skin)
        if a.hair_style == 'long': self.tube((x, y - .04, z - .022), (x, y - .16, z - .05), (r, r * 1.02, r * .9), HEAD, a.hair_colour)
        if a.hair_style == 'bun' and a.hat != 'beanie': self.tube((x, y - .03, z - .05), (x, y - .035, z - .06), .03, HEAD, a.hair_colour)
        self.hat(x, y, z, r)

    def hat(self, x, y, z, r):
        a, colour = self.a, self.a.hat_colour
        if a.hat == 'cap': self.tube((x, y - r * .75, z + .03), (x, y - r * .85, z + .085), (.036, .03), HEAD, colour)
        if a.hat == 'beanie': self.tube((x, y - r * .8, z - .004), (x, y - r * .3, z - .004), (r * 1.1, r * .95, r * .7), HEAD, colour)
        if a.hat == 'brim':
            self.tube((x, y - r * .8, z), (x, y - r * .1, z), (r * 1.06, r * .98, r * .86), HEAD, colour)
            for dx, dz in ((.1, 0), (0, .1), (.07, .07), (.07, -.07)):
                self.tube((x - dx, y - r * .85, z - dz), (x + dx, y - r * .85, z + dz), .016, HEAD, colour)

    def bag(self):
        "What is carried hides the body and is no part of it: where it covers the body, the mask stays the body's"
        a, p, (x, y, z) = self.a, self.p, self.joints['pelvis']
        def paint(s): return _where((np.abs(s.t - .62) < .03) & (s.facing > .4), tuple(c * .55 for c in a.bag_colour), a.bag_colour)
        if a.bag == 'backpack':
            radii = [p.span(w, .055) for w in (.074, .086, .088, .088, .084, .07)]
            low, high = (x, y + .07, z - .09 * a.girth), (x, y + .3, z - .085 * a.girth)
        if a.bag == 'shoulder':
            low, high, radii = (x + .115 * a.girth, y - .075, z), (x + .115 * a.girth, y + .04, z), [p.span(.04, .085)] * 2
        if a.bag == 'handbag':
            hx, hy, hz = self.joints['left_hand']
            low, high, radii = (hx, hy - .13, hz), (hx, hy - .015, hz), [p.span(.04, .08)] * 4 + [p.span(.012, .05)]
        self.canvas.tube(p(low), p(high), radii, None if self.labels else 0, paint, caps=(a.bag == 'backpack', a.bag == 'backpack'), flat=.6)


def _shadow(image, projection, joints):
    "A dark patch on the ground under the feet"
    feet = [projection(joints[f'{s}_{p}']) for s in ('left', 'right') for p in ('toe', 'heel')]
    x, y = (sum(f[i] for f in feet) / 4 / SUPERSAMPLE for i in (0, 1))
    r, bottom = projection.size(.13) / SUPERSAMPLE, max(f[1] for f in feet) / SUPERSAMPLE
    h, w = image.shape[:2]
    dx = (np.arange(w) * 64 + 32 - int(x * 64))[None].astype(np.int64)
    dy = (np.arange(h) * 64 + 32 - int((y + bottom) * 32))[:, None].astype(np.int64) * 4
    near = np.minimum((dx * dx + dy * dy) // max(1, int(r * r * 41)), 100)[..., None]   # 100 at the rim
    return (image.astype(np.int64) * (55 + near * 45 // 100) // 100).astype(np.uint8)


def _pole(canvas, rng, w, h):
    "A lamp post or signpost from top to bottom"
    x, r = w * (.5 + .34 * (float(rng.random()) - .5)), w * (.06 + .06 * float(rng.random()))
    colour = ((120, 122, 126), (66, 70, 74), (196, 170, 60), (70, 100, 84), (160, 150, 138))[int(rng.integers(5))]
    lean = w * .04 * (float(rng.random()) - .5)
    canvas.tube((x - lean, -r, 1e5), (x + lean, h + r, 1e5), [r], 0, colour)


def _luggage(canvas, rng, w, h):
    "Somebody's suitcase or sack in front of the legs"
    x, r = w * (.5 + .5 * (float(rng.random()) - .5)), w * (.2 + .1 * float(rng.random()))
    top = h * (.5 + .22 * float(rng.random()))
    colour = ((60, 62, 70), (128, 48, 52), (52, 78, 120), (150, 128, 96), (74, 92, 70))[int(rng.integers(5))]
    def paint(s): return _where((np.floor(s.t * 9) % 3 == 0) & (s.facing > .3), tuple(c * .7 for c in colour), colour)
    canvas.tube((x, top, 1e5), (x, h * 1.1, 1e5), [r * .8, r, r, r, r], 0, paint, caps=(True, True), flat=.3)
    canvas.tube((x - r * .4, top - r * .9, 1e5), (x + r * .4, top - r * .9, 1e5), [r * .09], 0, (50, 50, 52))
    for side in (-.4, .4): canvas.tube((x + r * side, top - r * .9, 1e5), (x + r * side, top, 1e5), [r * .08], 0, (50, 50, 52))


def _passer_by(canvas, rng, w, h, camera):
    "Another walker, nearer to the camera, who covers one side"
    appearance, pose = random_appearance(rng), random_pose(rng)
    side = 1 if rng.random() < .5 else -1
    box = Box(1.1 + .2 * float(rng.random()), side * (.22 + .18 * float(rng.random())), .02 + .1 * float(rng.random()))
    joints = skeleton(appearance, pose)
    projection = fit(joints, pose, box, (h, w), pitch=camera.pitch, roll=camera.roll)
    far = canvas.depth
    canvas.depth = np.where(far > -1e8, np.float32(-1e7), far)   # everything that is there lies behind
    _Figure(canvas, appearance, joints, projection, labels=False).draw()


def _occlude(canvas, kind, rng, camera):
    "Draw an occluder in front; returns where it is"
    h, w = canvas.label.shape
    before = canvas.depth.copy()
    if kind == 'pole': _pole(canvas, rng, w, h)
    elif kind == 'bag': _luggage(canvas, rng, w, h)
    else:
        _passer_by(canvas, rng, w, h, camera)
        return canvas.depth > -9e6
    return canvas.depth > before


def _seen(joints, hidden):
    "Which joints lie inside the picture and behind no occluder"
    h, w = hidden.shape
    inside = (joints >= 0).all(1) & (joints[:, 0] < w) & (joints[:, 1] < h)
    x, y = joints[inside].astype(int).T
    inside[inside] = ~hidden[y, x]
    return inside


def _camera(camera):
    if camera is None: return NEUTRAL
    if isinstance(camera, Camera): return camera
    if camera not in range(1, len(CAMERAS) + 1): raise ValueError(f'camera {camera!r}: use 1 to {len(CAMERAS)}, a Camera, or None for a studio')
    return CAMERAS[camera - 1]


def draw_walker(
    appearance: Appearance,  # Who; None draws an empty place
    pose: Pose = Pose(),  # How they stand
    *,
    camera=None,  # 1 to 6, a Camera, or None: a studio, with a grey background and no change of colours
    seed=0,  # An int, or a numpy Generator: background, exposure, noise and the occluder's looks
    occluder=None,  # One of OCCLUDERS, or None
    box: Box = Box(),  # How the detector cut the figure out
    size=(128, 64),  # Height and width of the picture
) -> WalkerPicture:  # image, mask, joints, visible, occluded
    "Draw one picture. The same arguments give the same bytes everywhere; changing the appearance changes nothing else"
    if occluder is not None and occluder not in OCCLUDERS: raise ValueError(f'unknown occluder {occluder!r}: use {", ".join(OCCLUDERS)} or None')
    camera, rng = _camera(camera), seed if isinstance(seed, np.random.Generator) else stream(seed, 'walker')
    h, w = (s * SUPERSAMPLE for s in size)
    canvas, ground = Canvas(h, w, camera.light, camera.ambient), background(camera, size, rng)
    joints, points = {}, np.full((len(COCO_JOINTS), 2), -1., np.float32)
    if appearance is not None:
        joints = skeleton(appearance, pose)
        projection = fit(joints, pose, box, (h, w), pitch=camera.pitch, roll=camera.roll)
        ground = _shadow(ground, projection, joints)
        _Figure(canvas, appearance, joints, projection).draw()
        points = np.array([projection(joints[name])[:2] for name in COCO_JOINTS], np.float32) / SUPERSAMPLE
    body = canvas.mask > 0
    hidden = _occlude(canvas, occluder, rng, camera) if occluder else np.zeros((h, w), bool)
    hidden = hidden[SUPERSAMPLE//2::SUPERSAMPLE, SUPERSAMPLE//2::SUPERSAMPLE]
    occluded = float((body & hidden).sum()) / max(1, int(body.sum()))
    return WalkerPicture(expose(canvas.reduced(ground), camera, rng), canvas.mask, points, _seen(points, hidden), occluded)
