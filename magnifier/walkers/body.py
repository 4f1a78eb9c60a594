"The body of a drawn pedestrian: its pose, its skeleton, the projection into a box, and the tubes that it is drawn with"

import math
from dataclasses import dataclass

from magnifier.regions import region_indices
from magnifier.walkers.appearance import Appearance, bag_paint, head_paint, limb_paint, shoe_paint, top_paint
from magnifier.walkers.canvas import between, pick

__all__ = ['Pose', 'random_pose', 'skeleton', 'Projection', 'Box', 'random_box', 'fit', 'Body']
COCO_JOINTS = (
    'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
    'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle',
    'right_ankle')
VIEWS = dict(front=0, left=90, back=180, right=270)  # Degrees turned from facing the viewer to the image's right
ARMS = ('swing', 'phone', 'pockets', 'folded')
_SIDES = (('left', 1), ('right', -1))
_FAR = 7.  # Distance of the camera in body heights


@dataclass(frozen=True)
class Pose:
    "A moment of walking"
    yaw: float = 0.       # Degrees from facing the viewer, turning towards the image's right
    phase: float = .25    # Of the gait, 0 to 1
    stride: float = 1.    # 0 stands still, 1 walks
    arms: str = 'swing'   # One of ARMS

    @property
    def view(self) -> str:  # One of VIEWS
        "The nearest of the four views"
        return tuple(VIEWS)[round(self.yaw / 90) % 4]


@dataclass(frozen=True)
class Box:
    "How a detector cropped a person"
    zoom: float = 1.  # Size of the person; 1 fills 0.9 of the height
    dx: float = 0.    # Shift to the right, share of the box's width
    dy: float = 0.    # Shift down, share of the box's height


def random_pose(
    rng,  # numpy Generator to draw from
) -> Pose:  # A moment of walking, seen from anywhere
    """Front, back and both sides with equal probability, turned by up to 25 degrees; one in four stands still; arms
    mostly swing"""
    yaw = pick(rng, tuple(VIEWS.values())) + between(rng, -25, 25)
    stride = between(rng, .55, 1.1) if rng.random() < .75 else between(rng, 0, .25)
    phase = float(rng.random())
    return Pose(round(yaw % 360, 2), round(phase, 3), round(stride, 3), random_arms(rng))


def random_arms(
    rng,  # numpy Generator to draw from
) -> str:  # One of ARMS
    "Mostly swinging"
    return ARMS[max(0, int(rng.integers(-3, len(ARMS))))]


def random_box(
    rng,  # numpy Generator to draw from
    bad: float = .25,  # Share of boxes that are cut badly: too near, too far or shifted
) -> Box:  # Where the person is in the image
    "A random box, usually nearly right, sometimes not"
    if rng.random() >= bad:
        return Box(between(rng, .95, 1.07), between(rng, -.05, .05), between(rng, -.02, .02))
    if rng.random() < .35:
        return Box(between(rng, .7, .85), between(rng, -.15, .15), between(rng, -.06, .06))
    zoom = between(rng, 1.12, 1.36)
    return Box(zoom, between(rng, -.16, .16), between(rng, -.5, .5) * (zoom - .95))


def _limb(start, length, forward, outward):
    "End of a limb that hangs from `start`, raised by `forward` and `outward` degrees"
    f, o = math.radians(forward), math.radians(outward)
    x = math.sin(o) * math.cos(f)
    y = -math.cos(f) * math.cos(o)
    z = math.sin(f)
    return start[0] + length * x, start[1] + length * y, start[2] + length * z


def _leg(joints, side, sign, a, pose):
    swing = 2 * math.pi * (pose.phase + (0 if sign > 0 else .5))
    thigh = 3 + 25 * pose.stride * math.sin(swing)
    bend = 5 + 48 * pose.stride * max(0., math.cos(swing)) ** 2
    hip = joints[f'{side}_hip'] = (.054 * sign * a.girth, .525 * a.legs, 0.)
    knee = joints[f'{side}_knee'] = _limb(hip, .24 * a.legs, thigh, 1.5 * sign)
    ankle = joints[f'{side}_ankle'] = _limb(knee, .24 * a.legs, thigh - bend, 0.)
    pitch = math.radians((thigh - bend) * .55)
    x, y, z = ankle
    c, s = math.cos(pitch), math.sin(pitch)
    joints[f'{side}_toe'] = (x + .014 * sign, y - .026 * c + .1 * s, z + .1 * c)
    joints[f'{side}_heel'] = (x, y - .022 * c, z - .022)


def _arm(joints, side, sign, a, pose):
    swing = 2 * math.pi * (pose.phase + (.5 if sign > 0 else 0))
    shoulder = joints[f'{side}_shoulder'] = (.118 * sign * a.shoulders, .525 * a.legs + .277, 0.)
    upper = 26 * pose.stride * math.sin(swing)
    out = 8 * sign
    turn = 0.
    bend = 16 + 14 * pose.stride * (1 + math.sin(swing)) / 2
    if pose.arms == 'phone' and sign < 0: upper, out, bend, turn = 22, 10 * sign, 118, -6 * sign
    if pose.arms == 'pockets': upper, out, bend, turn = -16, 17 * sign, 34, -20 * sign
    if pose.arms == 'folded': upper, out, bend, turn = 12, 12 * sign, 82, -58 * sign
    elbow = joints[f'{side}_elbow'] = _limb(shoulder, .168, upper, out)
    if pose.arms == 'folded':
        wrist = (elbow[0] - .12 * sign, elbow[1] + .02 + .012 * sign, elbow[2] + .085)
    else:
        wrist = _limb(elbow, .142, upper + bend, out * .4 + turn)
    joints[f'{side}_wrist'] = wrist
    joints[f'{side}_hand'] = tuple(w + .3 * (w - e) for w, e in zip(wrist, elbow))


def skeleton(
    appearance: Appearance,  # Whose proportions
    pose: Pose,  # And how they stand
) -> dict:  # Name -> (x to the body's left, y up, z forward) in body heights, ground at 0; COCO joints and a few more
    "Forward kinematics of a walking body"
    joints = {}
    for side, sign in _SIDES:
        _leg(joints, side, sign, appearance, pose)
        _arm(joints, side, sign, appearance, pose)
    hip, head = .525 * appearance.legs, appearance.head
    chin = hip + .36
    joints['pelvis'] = (0., hip, 0.)
    joints['neck'] = (0., hip + .318, .004)
    joints['chin'] = (0., chin, .016)
    joints['crown'] = (0., chin + .134 * head, .012)
    joints['nose'] = (0., chin + .05 * head, .07 * head)
    for side, sign in _SIDES:
        joints[f'{side}_eye'] = (.021 * sign * head, chin + .068 * head, .06 * head)
        joints[f'{side}_ear'] = (.053 * sign * head, chin + .056 * head, .012)
    ground = min(joints[f'{s}_{p}'][1] for s, _ in _SIDES for p in ('toe', 'heel')) - .024
    return {name: (x, y - ground, z) for name, (x, y, z) in joints.items()}


class Projection:
    "From body coordinates to canvas pixels: the body's turn, the camera's pitch and roll, and a little perspective"
    def __init__(self,
        yaw:float=0.,  # Degrees the body turns from facing the viewer
        pitch:float=0.,  # Degrees the camera looks down
        roll:float=0.,  # Degrees the image is turned clockwise
        scale:float=1.,  # Canvas pixels per body height
        centre=(0., 0.),  # Canvas position of the body's middle, half-way up: x, y
    ):
        "Angles in degrees"
        self.yaw = math.radians(yaw)
        self.scale = scale
        self.centre = centre
        self.pitch, self.roll = math.radians(pitch), math.radians(roll)
        self._turn, self._tilt, self._lean = ((math.cos(v), math.sin(v)) for v in (self.yaw, self.pitch, self.roll))

    def _camera(self, point):
        x = point[0]
        y = point[1] - .5
        z = point[2]
        (cos, sin), (up, over) = self._turn, self._tilt
        x, z = x * cos + z * sin, z * cos - x * sin
        y, z = y * up - z * over, z * up + y * over
        return x, y, z, _FAR / (_FAR - z)

    def __call__(self,
        point,  # x to the body's left, y up, z forward, in body heights
    ) -> tuple:  # x right, y down, z towards the viewer, in canvas pixels
        "Project a point"
        x, y, z, near = self._camera(point)
        x, y = x * near, -y * near
        cos, sin = self._lean
        x, y = x * cos - y * sin, y * cos + x * sin
        return self.centre[0] + x * self.scale, self.centre[1] + y * self.scale, z * self.scale

    def size(self,
        radius,  # In body heights
        point=(0., .5, 0.),  # Where
    ) -> float:  # In canvas pixels
        "Projected length of a radius"
        return radius * self.scale * self._camera(point)[3]

    def span(self,
        wide,  # Half-width of the body there, in body heights
        deep,  # Half-depth
    ) -> float:  # Half-width seen from this side, in canvas pixels
        "Projected half-width of an elliptical trunk"
        return self.scale * math.hypot(wide * self._turn[0], deep * self._turn[1])


def fit(
    joints,  # From `skeleton`
    pose: Pose,  # For the body's turn
    box: Box,  # Where the person shall be
    size,  # Canvas height and width
    *,
    pitch=0.,  # Degrees the camera looks down
    roll=0.,  # Degrees the image is turned
) -> Projection:  # That puts the person there
    "The projection for which crown and soles fill 0.9 of the box, then zoomed and shifted"
    height, width = size
    unit = Projection(pose.yaw, pitch, roll)
    points = [unit(p) for p in joints.values()]
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    top, bottom = min(p[1] for p in points) - .03, max(p[1] for p in points) + .028
    scale = .98 * height / (bottom - top) * box.zoom
    x = width * (.5 + box.dx) - scale * (left + right) / 2
    y = height * (.5 + box.dy) - scale * (top + bottom) / 2
    return Projection(pose.yaw, pitch, roll, scale, (x, y))


HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = region_indices(range(1, 8))

# How far a garment reaches along the upper and the lower half of a limb: 9 is all of it, -1 nothing
LEG_REACH = dict(trousers=(9, 9), cropped=(9, .5), shorts=(.82, -1), skirt=(-1, -1))
SLEEVE_REACH = dict(none=(-1, -1), short=(.62, -1), elbow=(9, .3), long=(9, .96))

# Half-widths and half-depths of the trunk from hem to neck, in body heights; the upper half goes with the shoulders
TRUNK_WIDE = (.122, .118, .108, .102, .104, .11), (.116, .121, .12, .108, .06)
TRUNK_DEEP = (.09, .086, .08, .077, .077, .079, .08, .077, .07, .062, .048)
RADIUS = .054  # Of a head, before its own size
BACKPACK = .074, .086, .088, .088, .084, .07
BRIM = .5, .8, .95, 1., 1., 1., .95, .8, .5  # A disc seen from its edge
SKIRT_WIDE, SKIRT_DEEP = (.108, .12, .132, .142), (.084, .1, .116, .13)


def _sleeved(start, end, wider, reach, n=12):
    "Radii of a limb with a wider garment as far as `reach`"
    radii = [start + (end - start) * i / n for i in range(n + 1)]
    return [r * (wider if i / n <= reach else 1) for i, r in enumerate(radii)]


class Body:
    "One pedestrian, to be drawn on a canvas"
    def __init__(self,
        canvas,  # Canvas
        appearance,  # Appearance
        joints,  # From `skeleton`
        projection,  # Projection from body to canvas coordinates
        labels:bool=True,  # False: the mask has background where this body is seen, an occluder
    ):
        "Draws nothing yet"
        self.canvas = canvas
        self.a = appearance
        self.joints = joints
        self.p = projection
        self.labels = labels

    def draw(self):
        "Draw all of it"
        for side in ('left', 'right'):
            self._leg(side)
            self._arm(side)
        self._trunk()
        if self.a.lower == 'skirt': self._skirt()
        self._head()
        if self.a.hat != 'none': self._hat()
        if self.a.bag != 'none': self._bag()

    def _tube(self, start, end, radii, label, paint, **kwargs):
        "A tube between two joints (names or points), radii in body heights"
        a, b = (self.joints[v] if isinstance(v, str) else v for v in (start, end))
        if isinstance(radii, (int, float)): radii = [radii]
        projected = [self.p.size(r, a if 2 * i < len(radii) else b) for i, r in enumerate(radii)]
        self._raw(a, b, projected, label, paint, **kwargs)

    def _raw(self, a, b, radii, label, paint, **kwargs):
        "A tube between two points, radii in canvas pixels"
        self.canvas.tube(self.p(a), self.p(b), radii, label if self.labels else 0, paint, **kwargs)

    def _leg(self, side):
        "The knee, like the elbow, belongs to the lower part only, because two round ends would overlap"
        a, g = self.a, self.a.girth
        thigh, calf = LEG_REACH[a.lower]
        self._tube(f'{side}_hip', f'{side}_knee', _sleeved(.063 * g, .046 * g, 1.12, thigh), UPPER_LEG,
                   limb_paint(thigh, a.lower_colour, a.skin), caps=(False, False))
        self._tube(f'{side}_knee', f'{side}_ankle', _sleeved(.044 * g, .028 * g, 1.2, calf), LOWER_LEG,
                   limb_paint(calf, a.lower_colour, a.skin))
        self._tube(f'{side}_heel', f'{side}_toe', (.037, .036, .03), FOOT, shoe_paint(a.shoe_colour))
        self._tube(f'{side}_ankle', f'{side}_heel', (.032, .036), FOOT, shoe_paint(a.shoe_colour))

    def _arm(self, side):
        a, g = self.a, self.a.girth
        upper, fore = SLEEVE_REACH[a.sleeve]
        self._tube(f'{side}_shoulder', f'{side}_elbow', _sleeved(.04 * g, .034 * g, 1.17, upper), UPPER_ARM,
                   limb_paint(upper, a.top_colour, a.skin), caps=(True, False))
        self._tube(f'{side}_elbow', f'{side}_wrist', _sleeved(.033 * g, .024 * g, 1.2, fore), LOWER_ARM,
                   limb_paint(fore, a.top_colour, a.skin))
        self._tube(f'{side}_wrist', f'{side}_hand', (.024, .028, .02), LOWER_ARM, a.skin)

    def _trunk(self):
        a, p = self.a, self.p
        x, y, z = self.joints['pelvis']
        wide = [w * a.girth for w in TRUNK_WIDE[0]] + [w * a.shoulders for w in TRUNK_WIDE[1]]
        radii = [p.span(w, d * a.girth) for w, d in zip(wide, TRUNK_DEEP)]
        self._raw((x, y - .035, z), self.joints['neck'], radii, CHEST, top_paint(a, p.yaw), caps=(False, False),
                  flat=p.span(.08, .118) / p.span(.118, .08), lift=p.size(.035))

    def _skirt(self):
        a, p = self.a, self.p
        x, y, z = self.joints['pelvis']
        kx, ky, kz = ((u + v) / 2 for u, v in zip(self.joints['left_knee'], self.joints['right_knee']))
        radii = [p.span(w * a.girth, d * a.girth) for w, d in zip(SKIRT_WIDE, SKIRT_DEEP)]
        self._raw((x, y + .01, z), (kx, ky + .03, kz * .6), radii, UPPER_LEG, limb_paint(9, a.lower_colour, a.skin),
                  caps=(False, False), flat=p.span(.1, .13) / p.span(.13, .1), lift=p.size(.02))

    def _head(self):
        a, r = self.a, RADIUS * self.a.head
        x, y, z = self.joints['crown']
        cx, cy, cz = self.joints['chin']
        nx, ny, nz = self.joints['nose']
        covered, bottom = a.hat != 'none', cy + .95 * r
        self._tube('neck', (cx, cy + .03, cz - .01), (.043, .038), HEAD, a.skin)
        face = head_paint(a, self.p.yaw, (y - r - bottom) / r)
        self._tube((cx, bottom, cz), (x, y - r, z), (r * .88, r * .98, r), HEAD, face)
        self._tube((nx, ny + .008, nz - .014), (nx, ny, nz - .006), (.007, .009), HEAD, a.skin)
        if a.hair_style == 'long':
            high = .105 if covered else .07
            self._tube((x, y - high, z - .02), (x, y - .19, z - .045), (r, r * 1.04, r * .95), HEAD, a.hair_colour)
        if a.hair_style == 'bun':
            high = .09 if covered else .03
            self._tube((x, y - high, z - .05), (x, y - high - .005, z - .06), .03, HEAD, a.hair_colour)

    def _hat(self):
        hat = self.a.hat
        colour = self.a.hat_colour
        r = RADIUS * self.a.head
        x, y, z = self.joints['crown']
        if hat == 'cap':
            for dx in (-.024, 0, .024):
                self._tube((x + dx, y - r * .72, z + .03), (x + dx, y - r * .8, z + .1 - abs(dx)), .014, HEAD, colour)
        if hat == 'beanie':
            radii = r * 1.12, r * 1.08, r * .8
            self._tube((x, y - r, z - .004), (x, y - r * .3, z - .008), radii, HEAD, colour, caps=(False, True))
        if hat == 'brim':
            self._tube((x, y - r * .85, z), (x, y - r * .5, z), (r * 1.1, r), HEAD, colour, caps=(False, True))
            c, f = .1 * math.cos(self.p.yaw), .1 * math.sin(self.p.yaw)
            thick = .014 + .06 * abs(math.sin(self.p.pitch))
            radii = [thick * v for v in BRIM]
            self._tube((x - c, y - r * .8, z - f), (x + c, y - r * .8, z + f), radii, HEAD, colour, flat=.08 / thick)

    def _bag(self):
        "A bag has no label: in front of the body the mask keeps the body's label, elsewhere it is background"
        a = self.a
        p = self.p
        g = self.a.girth
        x, y, z = self.joints['pelvis']
        hx, hy, hz = self.joints['left_hand']
        low, high, radii = dict(
            backpack=((x, y + .07, z - .09 * g), (x, y + .3, z - .085 * g), [p.span(w, .055) for w in BACKPACK]),
            shoulder=((x + .115 * g, y - .075, z), (x + .115 * g, y + .04, z), [p.span(.04, .085)]),
            handbag=((hx, hy - .13, hz), (hx, hy - .015, hz), [p.span(.04, .08)] * 4 + [p.span(.012, .05)]),
        )[a.bag]
        self._raw(low, high, radii, None, bag_paint(a.bag_colour), caps=(a.bag == 'backpack',) * 2, flat=.6)
