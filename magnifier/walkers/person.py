"A pedestrian as numbers, before anything is drawn: appearance, pose, skeleton, and the projection into an image"

import math
from dataclasses import dataclass, replace

from magnifier.checks import refuse
from magnifier.walkers.canvas import between, pick

__all__ = ['Appearance', 'random_appearance', 'family']

# Garment colours, apart enough to be told from each other under six white balances
COLOURS = dict(
    black=(38, 38, 42), white=(232, 231, 226), grey=(132, 134, 138), red=(190, 40, 44), maroon=(105, 28, 42),
    orange=(224, 120, 36), yellow=(228, 198, 62), green=(58, 142, 72), forest=(32, 74, 52), teal=(34, 138, 142),
    sky=(126, 182, 222), blue=(44, 88, 182), navy=(34, 44, 88), purple=(112, 62, 142), pink=(226, 140, 166),
    brown=(112, 76, 50), beige=(206, 186, 148), olive=(112, 116, 62))
_SKIN = ((236, 200, 176), (222, 178, 148), (198, 150, 116), (164, 116, 84), (122, 82, 58), (86, 58, 44))
_HAIR = dict(
    black=(34, 28, 28), brown=(88, 56, 36), blond=(204, 168, 98), red=(160, 74, 36), grey=(160, 158, 156),
    white=(222, 220, 214))

HAIR_STYLES = ('short', 'long', 'bun')
SLEEVES = ('none', 'short', 'elbow', 'long')
PATTERNS = ('plain', 'stripes', 'columns', 'checks', 'halves')
LOGOS = ('none', 'square', 'disc', 'cross')
LOWERS = ('trousers', 'cropped', 'shorts', 'skirt')
BAGS = ('none', 'backpack', 'shoulder', 'handbag')
HATS = ('none', 'cap', 'beanie', 'brim')

# What a family may differ in: the fields of each detail, which change together
DETAILS = dict(
    hair=('hair_style', 'hair_colour'), hat=('hat', 'hat_colour'), sleeves=('sleeve',),
    pattern=('top_pattern', 'top_accent'), logo=('logo', 'logo_colour'), legs=('lower', 'lower_colour'),
    shoes=('shoe_colour',), bag=('bag', 'bag_colour'))
_KINDS = dict(
    hair_style=HAIR_STYLES, sleeve=SLEEVES, top_pattern=PATTERNS, logo=LOGOS, lower=LOWERS, bag=BAGS, hat=HATS)
# What a colour lies on or beside, from which it must stand out
_BESIDE = dict(
    top_accent=('top_colour',), logo_colour=('top_colour',), lower_colour=('top_colour', 'skin'),
    shoe_colour=('lower_colour',), bag_colour=('top_colour',), hat_colour=('hair_colour',))


@dataclass(frozen=True)
class Appearance:
    """The appearance of a person, the same in all images; `dataclasses.replace` changes single fields. Colours are RGB,
    0 to 255"""
    girth: float          # Thickness of trunk and limbs, 0.88 to 1.2
    shoulders: float      # Width of the shoulders, 0.9 to 1.12
    legs: float           # Length of the legs, 0.94 to 1.06
    head: float           # Size of the head, 0.92 to 1.1
    skin: tuple           # Colour
    hair_colour: tuple    # Colour
    hair_style: str       # One of HAIR_STYLES
    sleeve: str           # One of SLEEVES: where the upper garment's sleeves end
    top_colour: tuple     # Colour of the upper garment
    top_pattern: str      # One of PATTERNS
    top_accent: tuple     # The pattern's second colour
    logo: str             # One of LOGOS, on chest and back
    logo_colour: tuple    # Colour
    lower: str            # One of LOWERS
    lower_colour: tuple   # Colour of the lower garment
    shoe_colour: tuple    # Colour
    bag: str              # One of BAGS
    bag_colour: tuple     # Colour
    hat: str              # One of HATS
    hat_colour: tuple     # Colour


def random_appearance(
    rng,  # numpy Generator to draw from
) -> Appearance:  # Somebody
    "A person with random build and clothes"
    top = pick(rng, tuple(COLOURS.values()))
    lower = _other(rng, top)
    hair = pick(rng, tuple(_HAIR.values())[:5])
    accent = _other(rng, top)
    return Appearance(
        girth=_spread(rng, .88, 1.2), shoulders=_spread(rng, .9, 1.12), legs=_spread(rng, .94, 1.06),
        head=_spread(rng, .92, 1.1), skin=pick(rng, _SKIN), hair_colour=hair, hair_style=pick(rng, HAIR_STYLES),
        sleeve=pick(rng, SLEEVES), top_colour=_worn(rng, top), top_pattern=pick(rng, ('plain',) + PATTERNS),
        top_accent=_worn(rng, accent), logo=pick(rng, LOGOS), logo_colour=_other(rng, top, accent),
        lower=pick(rng, ('trousers',) + LOWERS), lower_colour=_worn(rng, lower), shoe_colour=_other(rng, lower),
        bag=pick(rng, ('none',) + BAGS), bag_colour=_other(rng, top), hat=pick(rng, ('none', 'none') + HATS),
        hat_colour=_other(rng, hair))


def family(
    rng,  # numpy Generator to draw from
    detail=None,  # One of DETAILS; None draws one
) -> list[Appearance]:  # Four people
    "Four people who share everything but one detail, in which all differ. Raises ValueError for an unknown detail"
    if detail is None: detail = pick(rng, tuple(DETAILS))
    refuse({f'unknown detail {detail!r}: use one of {", ".join(DETAILS)}': detail not in DETAILS})
    base = _ready(rng, random_appearance(rng), detail)
    values = [_values(rng, base, field) for field in DETAILS[detail]]
    return [replace(base, **dict(zip(DETAILS[detail], chosen))) for chosen in zip(*values)]


def _spread(rng, low, high): return round(between(rng, low, high), 3)


def _worn(rng, colour):
    "The colour with a small random change, as one particular garment has it"
    return tuple(min(245, max(20, c + int(rng.integers(-9, 10)))) for c in colour)


def _other(rng, *colours):
    "A colour of the palette that differs clearly from `colours`"
    return pick(rng, [c for c in COLOURS.values() if all(_differ(c, o) for o in colours)])


def _differ(a, b): return sum(abs(x - y) for x, y in zip(a, b)) >= 130


def _values(rng, base, field):
    """Four values of a field: kinds in random order, or colours that differ clearly from each other and from the
    colours around them"""
    if field in _KINDS:
        kinds = _KINDS[field]
        order = rng.permutation(len(kinds))
        return [kinds[int(order[i % len(kinds)])] for i in range(4)]
    if field == 'hair_colour': return [tuple(_HAIR.values())[int(i)] for i in rng.permutation(len(_HAIR))[:4]]
    beside = [getattr(base, name) for name in _BESIDE[field]]
    values = []
    while len(values) < 4: values.append(_other(rng, *beside, *values))
    return values


def _ready(rng, base, detail):
    "The base person with everything that makes the detail visible"
    if detail == 'hair': return replace(base, hat='none')
    if detail == 'pattern': return replace(base, logo='none')
    if detail == 'logo': return replace(base, top_pattern='plain')
    if detail == 'sleeves': return replace(base, top_colour=_other(rng, base.skin, base.top_accent))
    return base


# The body: joints of the pose that a person takes

COCO_JOINTS = (
    'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
    'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle',
    'right_ankle')
VIEWS = dict(front=0, left=90, back=180, right=270)  # Degrees turned from facing the viewer to the image's right
ARMS = ('swing', 'phone', 'pockets', 'folded')
# Arms that do not swing, in degrees: upper arm forward and outward, elbow bent, forearm turned outward
HELD_ARMS = dict(phone=(22, 10, 118, -6), pockets=(-16, 17, 34, -20), folded=(12, 12, 82, -58))


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


def random_pose(
    rng,  # numpy Generator to draw from
) -> Pose:  # A moment of walking, seen from anywhere
    """Front, back and both sides with equal probability, turned by up to 25 degrees; one in four stands still; arms
    mostly swing"""
    yaw = pick(rng, tuple(VIEWS.values())) + between(rng, -25, 25)
    stride = between(rng, .55, 1.1) if rng.random() < .75 else between(rng, 0, .25)
    phase = float(rng.random())
    return Pose(round(yaw % 360, 2), round(phase, 3), round(stride, 3), random_arms(rng))


def random_arms(rng) -> str:
    "One of ARMS; four times in seven they swing"
    return ARMS[max(0, int(rng.integers(-3, len(ARMS))))]


def skeleton(
    appearance: Appearance,  # Whose proportions
    pose: Pose,  # How the person stands
) -> dict:  # Name -> (x to the body's left, y up, z forward) in body heights, ground at 0; COCO joints and a few more
    "Forward kinematics of a walking body"
    hip = .525 * appearance.legs
    head = appearance.head
    chin = hip + .36
    joints = dict(
        pelvis=(0., hip, 0.), neck=(0., hip + .318, .004), chin=(0., chin, .016),
        crown=(0., chin + .134 * head, .012), nose=(0., chin + .05 * head, .07 * head))
    for side, sign in (('left', 1), ('right', -1)):
        half = _leg(appearance, pose, sign) | _arm(appearance, pose, sign) | dict(
            eye=(.021 * sign * head, chin + .068 * head, .06 * head),
            ear=(.053 * sign * head, chin + .056 * head, .012))
        joints |= {f'{side}_{name}': point for name, point in half.items()}
    ground = min(joints[f'{side}_{sole}'][1] for side in ('left', 'right') for sole in ('toe', 'heel')) - .024
    return {name: (x, y - ground, z) for name, (x, y, z) in joints.items()}


def _leg(appearance, pose, sign):
    "Joints of a leg; `sign`: 1 for the left one, -1 for the right one"
    swing = 2 * math.pi * (pose.phase + (0 if sign > 0 else .5))
    thigh = 3 + 25 * pose.stride * math.sin(swing)
    bend = 5 + 48 * pose.stride * max(0., math.cos(swing)) ** 2
    hip = (.054 * sign * appearance.girth, .525 * appearance.legs, 0.)
    knee = _limb(hip, .24 * appearance.legs, thigh, 1.5 * sign)
    ankle = _limb(knee, .24 * appearance.legs, thigh - bend, 0.)
    pitch = math.radians((thigh - bend) * .55)
    cos = math.cos(pitch)
    sin = math.sin(pitch)
    x, y, z = ankle
    toe = (x + .014 * sign, y - .026 * cos + .1 * sin, z + .1 * cos)
    heel = (x, y - .022 * cos, z - .022)
    return dict(hip=hip, knee=knee, ankle=ankle, toe=toe, heel=heel)


def _arm(appearance, pose, sign):
    "Joints of an arm; `sign`: 1 for the left one, -1 for the right one, which holds the phone"
    swing = 2 * math.pi * (pose.phase + (.5 if sign > 0 else 0))
    if pose.arms == 'swing' or pose.arms == 'phone' and sign > 0:
        upper = 26 * pose.stride * math.sin(swing)
        outward = 8
        bend = 16 + 14 * pose.stride * (1 + math.sin(swing)) / 2
        turn = 0
    else: upper, outward, bend, turn = HELD_ARMS[pose.arms]
    shoulder = (.118 * sign * appearance.shoulders, .525 * appearance.legs + .277, 0.)
    elbow = _limb(shoulder, .168, upper, outward * sign)
    if pose.arms == 'folded': wrist = (elbow[0] - .12 * sign, elbow[1] + .02 + .012 * sign, elbow[2] + .085)
    else: wrist = _limb(elbow, .142, upper + bend, outward * sign * .4 + turn * sign)
    hand = tuple(w + .3 * (w - e) for w, e in zip(wrist, elbow))
    return dict(shoulder=shoulder, elbow=elbow, wrist=wrist, hand=hand)


def _limb(start, length, forward, outward):
    "End of a limb that hangs from `start`, raised by `forward` and `outward` degrees"
    f = math.radians(forward)
    o = math.radians(outward)
    x = math.sin(o) * math.cos(f)
    y = -math.cos(f) * math.cos(o)
    z = math.sin(f)
    return start[0] + length * x, start[1] + length * y, start[2] + length * z


# Where the body is in the image

_DISTANCE = 7.  # Of the camera, in body heights


@dataclass(frozen=True)
class Box:
    "How a detector cropped a person"
    zoom: float = 1.  # Size of the person; 1 fills 0.9 of the height
    dx: float = 0.    # Shift to the right, share of the box's width
    dy: float = 0.    # Shift down, share of the box's height


def random_box(
    rng,  # numpy Generator to draw from
) -> Box:  # Where the person is in the image
    "A box, in three of four draws nearly right, else cut badly: too near, too far or shifted"
    if rng.random() >= .25:
        return Box(between(rng, .95, 1.07), between(rng, -.05, .05), between(rng, -.02, .02))
    if rng.random() < .35:
        return Box(between(rng, .7, .85), between(rng, -.15, .15), between(rng, -.06, .06))
    zoom = between(rng, 1.12, 1.36)
    return Box(zoom, between(rng, -.16, .16), between(rng, -.5, .5) * (zoom - .95))


class Projection:
    "From body coordinates to canvas pixels: the body's turn, the camera's pitch and roll, and a little perspective"
    def __init__(self,
        yaw:float=0.,  # Degrees the body turns from facing the viewer
        pitch:float=0.,  # Degrees the camera looks down
        roll:float=0.,  # Degrees the image is turned clockwise
        scale:float=1.,  # Canvas pixels per body height
        centre=(0., 0.),  # Canvas position of the body's middle, half-way up: x, y
    ):
        "Keeps the angles in radians, and their cosines and sines"
        self.yaw, self.pitch, self.roll = (math.radians(angle) for angle in (yaw, pitch, roll))
        self.scale = scale
        self.centre = centre
        self._turn, self._tilt, self._lean = (
            (math.cos(angle), math.sin(angle)) for angle in (self.yaw, self.pitch, self.roll))

    def __call__(self,
        point,  # x to the body's left, y up, z forward, in body heights
    ) -> tuple:  # x right, y down, z towards the viewer, in canvas pixels
        "Project a point"
        x, y, z, near = self._camera(point)
        x, y = x * near, -y * near
        cos, sin = self._lean
        x, y = x * cos - y * sin, y * cos + x * sin
        return self.centre[0] + x * self.scale, self.centre[1] + y * self.scale, z * self.scale

    def _camera(self, point):
        "The point in the camera's coordinates, and its magnification by perspective"
        x, y, z = point
        y -= .5
        cos, sin = self._turn
        x, z = x * cos + z * sin, z * cos - x * sin
        cos, sin = self._tilt
        y, z = y * cos - z * sin, z * cos + y * sin
        return x, y, z, _DISTANCE / (_DISTANCE - z)

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
    yaw: float,  # Degrees the body turns from facing the viewer
    box: Box,  # Where the person is in the image
    size,  # Canvas height and width
    *,
    pitch=0.,  # Degrees the camera looks down
    roll=0.,  # Degrees the image is turned clockwise
) -> Projection:
    "The projection for which crown and soles fill 0.9 of the box, then zoomed and shifted"
    height, width = size
    unit = Projection(yaw, pitch, roll)
    points = [unit(p) for p in joints.values()]
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    top, bottom = min(p[1] for p in points) - .03, max(p[1] for p in points) + .028
    scale = .98 * height / (bottom - top) * box.zoom
    x = width * (.5 + box.dx) - scale * (left + right) / 2
    y = height * (.5 + box.dy) - scale * (top + bottom) / 2
    return Projection(yaw, pitch, roll, scale, (x, y))
