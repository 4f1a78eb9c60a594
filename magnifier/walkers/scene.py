"One camera of the streams: the ground that it sees, the things that stand there, people's visits, and its frames"

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from magnifier.walkers.cameras import CAMERAS, background, developed, noise, response
from magnifier.walkers.canvas import SUPERSAMPLE, Canvas, between, pick, stream
from magnifier.walkers.pedestrian import Body, shadowed, where
from magnifier.walkers.person import Appearance, Pose, Projection, random_arms, skeleton

__all__ = ['things_of', 'visits_of', 'Person', 'Seen', 'Frame', 'Stage']

EYE = 1.9  # Height of the cameras in body heights
SKYLINE = .05  # Row at which flat ground would vanish, share of the frame's height
NEAR, FAR = .95, .64  # Rows of the nearest and the farthest feet, shares of the frame's height
CYCLE = .86  # Body heights walked in one cycle of the gait


@dataclass(frozen=True)
class View:
    "How a camera sees flat ground, whose coordinates are in body heights: x to the right, d away from the camera"
    height: int  # Of the frame in pixels
    width: int

    def scale(self, d: float) -> float:
        "Pixels of one body height at distance `d`"
        return self.width / d

    def foot(self, x: float, d: float) -> tuple[float, float]:
        "Where a point of the ground is in the frame: x, y in pixels"
        return self.width * (.5 + x / d), self.height * SKYLINE + EYE * self.scale(d)

    def depth(self, row: float) -> float:
        "Distance of the ground at a row of the frame, given as a share of its height"
        return EYE * self.width / ((row - SKYLINE) * self.height)

    def edge(self, d: float) -> float:
        "Sideways distance from the middle at which a person at distance `d` is just outside the frame"
        return d / 2 + .5


@dataclass(frozen=True)
class Thing:
    "A thing that stands on the ground and hides people behind it"
    kind: str    # booth, planter or pole
    x: float     # Where it stands
    d: float
    wide: float  # Its size in body heights
    tall: float
    colour: tuple


@dataclass(frozen=True)
class Place:
    "A person's position at one moment, and how they walk"
    x: float
    d: float
    yaw: float     # Degrees from facing the camera, turning towards the frame's right
    phase: float   # Of the gait, 0 to 1
    stride: float  # 0 stands, 1 walks


@dataclass(frozen=True)
class Visit:
    "A person's path past one camera"
    person: int   # From 1
    camera: int   # From 1
    arms: str     # One of ARMS
    knots: tuple  # (seconds, x, d) in order; the same place twice in succession is a stop

    @property
    def start(self) -> float: return self.knots[0][0]

    @property
    def end(self) -> float: return self.knots[-1][0]

    def at(self, seconds: float) -> Place:
        "The person's place at a time from `start` to `end`; a standing person faces the direction of the walk"
        walked = 0.
        yaw = 0.
        for (t0, x0, d0), (t1, x1, d1) in zip(self.knots, self.knots[1:]):
            length = math.hypot(x1 - x0, d1 - d0)
            if length: yaw = math.degrees(math.atan2(x1 - x0, d0 - d1))
            if seconds <= t1: break
            walked += length
        share = (seconds - t0) / (t1 - t0)
        x = x0 + share * (x1 - x0)
        d = d0 + share * (d1 - d0)
        seen = yaw + math.degrees(math.atan2(x, d))  # turned towards the camera's own place
        return Place(x, d, seen % 360, (walked + share * length) / CYCLE % 1, 1. if length else 0.)


# Who and what is in a camera's view

_COLOURS = dict(
    booth=((96, 104, 118), (150, 62, 52), (176, 164, 140), (60, 92, 84)),
    planter=((74, 104, 58), (96, 116, 74), (84, 112, 84)),
    pole=((120, 122, 126), (66, 70, 74), (196, 170, 60)))


def things_of(
    view: View,  # What the cameras see of their ground
    camera: int,  # From 1
    seed: int,  # Seed of the streams
) -> list[Thing]:  # Farthest first
    "The things in a camera's view: a booth as high as a person, a planter that hides legs, a pole"
    rng = stream(seed, 'things', camera)
    side = 1 if rng.random() < .5 else -1
    def thing(kind, across, back, wide, tall):
        "`across` of the frame's width from its middle, `back` of the way from near to far"
        d = view.depth(NEAR) + back * (view.depth(FAR) - view.depth(NEAR))
        return Thing(kind, across * d, d, wide, tall, pick(rng, _COLOURS[kind]))
    return [
        thing('pole', -side * between(rng, .25, .4), .7, .07, 2.4),
        thing('booth', side * between(rng, .15, .3), .55, between(rng, .75, 1.05), between(rng, 1.12, 1.35)),
        thing('planter', -side * between(rng, .1, .25), .3, between(rng, 1., 1.5), between(rng, .35, .45))]


def _across(rng, view, side, things):
    "In on one side, out on the other"
    first, last = (view.depth(between(rng, FAR, NEAR)) for _ in range(2))
    return [(side * view.edge(first), first, 0.), (-side * view.edge(last), last, 0.)]


def _behind(rng, view, side, things):
    "Behind the booth, with a stop there for half of the people, and on"
    booth = next(t for t in things if t.kind == 'booth')
    d = booth.d + between(rng, .25, .5)
    wait = between(rng, 1.5, 4.) if rng.random() < .5 else 0.
    return [(side * view.edge(d), d, 0.), (booth.x * d / booth.d, d, wait), (-side * view.edge(d), d, 0.)]


def _and_back(rng, view, side, things):
    "In, a stop somewhere, and out on the same side"
    d, out = (view.depth(between(rng, FAR, NEAR)) for _ in range(2))
    turn = (-side * between(rng, -.2, .3) * d, d, between(rng, .5, 2.))
    return [(side * view.edge(d), d, 0.), turn, (side * view.edge(out), out, 0.)]


def _towards(rng, view, side, things):
    "From far to near or from near to far, mostly along the view"
    rows = (FAR, NEAR) if rng.random() < .5 else (NEAR, FAR)
    first, last = (view.depth(row) for row in rows)
    inside = side * between(rng, .05, .3)
    return [(side * view.edge(first), first, 0.), (inside * first, first, 0.),
            (-inside * last, last, 0.), (-side * view.edge(last), last, 0.)]


_WAYS = (_across, _across, _behind, _behind, _and_back, _towards)


def _walk(rng, points, start):
    "Points of a path, with the seconds to wait at each, as times and positions"
    speed = between(rng, .7, .95)
    t = start
    knots = []
    for i, (x, d, wait) in enumerate(points):
        if i: t += math.hypot(x - points[i-1][0], d - points[i-1][1]) / speed
        knots.append((t, x, d))
        if wait:
            t += wait
            knots.append((t, x, d))
    return tuple(knots)


def visits_of(
    view: View,  # What the cameras see of their ground
    person: int,  # From 1
    cameras: list,  # What `things_of` found for each camera
    seconds: float,  # Length of the streams
    seed: int,  # Seed of the streams
) -> list[Visit]:  # In time; the last may go on beyond the end
    "A person's visits: never at two cameras at once, never twice in succession at the same one where there are several"
    rng = stream(seed, 'visits', person)
    visits = []
    last = 0
    t = between(rng, -4., min(20., .4 * seconds))
    while t < seconds:
        others = [c for c in range(1, len(cameras) + 1) if c != last]
        camera = pick(rng, others or [last])
        arms = random_arms(rng)
        side = 1 if rng.random() < .5 else -1
        points = pick(rng, _WAYS)(rng, view, side, cameras[camera-1])
        visits.append(Visit(person, camera, arms, _walk(rng, points, t)))
        last = camera
        t = visits[-1].end + between(rng, 3., 9.)
    return visits


# Frames: people and things are drawn each by itself, and laid over the ground, the farthest first

_SHARPER = .7  # Share of a camera's noise that is left: compression would take the rest
_SHIFT = 32    # Pixels by which the noise of one frame may lie elsewhere than that of another


class Person(NamedTuple):
    "A person in a frame"
    number: int  # From 1
    appearance: Appearance
    place: Place
    arms: str  # One of ARMS


class Seen(NamedTuple):
    "The truth about a person in a frame"
    person: int
    whole: tuple       # Box of the body inside the frame, hidden or not: x, y, w, h
    shown: tuple       # Box of what is seen of it; None where nothing is
    visibility: float  # Share of the person's pixels that is seen


class Frame(NamedTuple):
    "A frame and the truth about it"
    image: np.ndarray  # (h, w, 3) uint8
    mask: np.ndarray   # (h, w) uint16: 8 * person + region, 0 where nobody is
    seen: list         # A Seen for everybody whose body reaches into the frame


class _Layer(NamedTuple):
    "A person or a thing, drawn by itself"
    d: float        # Distance from the camera
    canvas: Canvas
    box: tuple      # Where the canvas lies in the frame: top, left, bottom, right
    number: int = 0  # Of a person; 0 for a thing
    shadow: tuple = None  # A person's projection and joints


class Stage:
    "Draws a camera's frames"
    def __init__(self,
        camera: int,  # From 1
        view: View,  # What the camera sees of its ground
        seed: int,  # Seed of the streams
    ):
        "Draws what is the same for all frames: ground, things, colours, and noise"
        rng = stream(seed, 'stage', camera)
        self.camera = CAMERAS[camera-1]
        self.view = view
        self.empty = background(self.camera, (view.height, view.width), rng)
        self.things = [self._thing(thing, rng) for thing in things_of(view, camera, seed)]
        for thing in self.things: _lay(thing, self.empty)
        self.levels = response(self.camera, rng)
        grain = view.height + _SHIFT, view.width + _SHIFT, 3
        self.noise = noise(rng, grain, self.camera.noise * _SHARPER)

    def frame(self,
        people: list,  # Of Person
        rng,  # numpy Generator of the noise
    ) -> Frame:
        "Draws all people, the farthest first, and applies the camera"
        image = self.empty.copy()
        mask = np.zeros(image.shape[:2], np.uint16)
        bodies = {}
        for layer in sorted(self.things + [self._figure(p) for p in people], key=lambda layer: -layer.d):
            if not layer.number and not bodies: continue  # nobody is behind it, and the empty place shows it
            here = _lay(layer, image, mask)
            if layer.number: bodies[layer.number] = int(layer.canvas.front.sum()), here
        return Frame(self._exposed(image, rng), mask, _seen(mask, bodies))

    def _exposed(self, image, rng):
        "The frame as the camera delivers it; its noise is a random piece of one large sheet"
        out = developed(image, self.camera, self.levels)
        h, w = image.shape[:2]
        y, x = (int(v) for v in rng.integers(0, _SHIFT + 1, 2))
        return np.clip(out + self.noise[y:y+h, x:x+w], 0, 255).astype(np.uint8)

    def _canvas(self, top, left, bottom, right):
        "A canvas for a part of the frame, and that part in whole pixels"
        box = math.floor(top), math.floor(left), math.ceil(bottom), math.ceil(right)
        height, width = (box[2] - box[0]) * SUPERSAMPLE, (box[3] - box[1]) * SUPERSAMPLE
        return Canvas(height, width, self.camera.light, self.camera.ambient), box

    def _figure(self, person):
        "The layer of a person"
        place = person.place
        x, y = self.view.foot(place.x, place.d)
        scale = self.view.scale(place.d)
        canvas, box = self._canvas(y - 1.15 * scale, x - .6 * scale, y + .15 * scale, x + .6 * scale)
        pose = Pose(place.yaw, place.phase, place.stride, person.arms)
        joints = skeleton(person.appearance, pose)
        projection = self._standing(place.yaw, x - box[1], y - box[0], scale)
        Body(canvas, person.appearance, joints, projection).draw()
        return _Layer(place.d, canvas, box, person.number, (projection, joints))

    def _standing(self, yaw, x, y, scale):
        "The projection that puts the ground under a body at `x`, `y` of its canvas"
        camera, small = self.camera, scale * SUPERSAMPLE
        ground = Projection(yaw, camera.pitch, camera.roll)((0., 0., 0.))
        centre = x * SUPERSAMPLE - ground[0] * small, y * SUPERSAMPLE - ground[1] * small
        return Projection(yaw, camera.pitch, camera.roll, small, centre)

    def _thing(self, thing, rng):
        "The layer of a thing: an upright tube"
        x, y = self.view.foot(thing.x, thing.d)
        scale = self.view.scale(thing.d)
        half = thing.wide * scale / 2
        top = y - thing.tall * scale
        canvas, box = self._canvas(top - 2, x - half - 2, y + 2, x + half + 2)
        across = (x - box[1]) * SUPERSAMPLE
        foot, head = ((across, (row - box[0]) * SUPERSAMPLE, 0) for row in (y, top))
        canvas.tube(foot, head, [half * SUPERSAMPLE], 0, _paint(thing, rng), caps=(False, False), flat=.2)
        return _Layer(thing.d, canvas, box)


def _paint(thing, rng):
    "Boards of a booth, leaves above a planter's box, a plain pole"
    colour = np.array(thing.colour, np.float32)
    def booth(s): return where(np.floor(s.t * 12) % 4 == 0, colour * np.float32(.75), thing.colour)
    def planter(s):
        leaves = rng.integers(70, 120, (len(s.t), 1)).astype(np.float32) / 100
        return where(s.t < .3, (120, 104, 92), colour * leaves)
    return dict(booth=booth, planter=planter, pole=thing.colour)[thing.kind]


def _lay(layer, image, mask=None):
    "Puts a layer over image and mask, in place; returns the box of its part inside the frame, or None"
    inner, outer = _overlap(layer.box, *image.shape[:2])
    if inner is None: return None
    top, left, bottom, right = layer.box
    ground = np.zeros((bottom - top, right - left, 3), np.uint8)
    ground[inner] = image[outer]
    if layer.number: ground = shadowed(ground, *layer.shadow)
    image[outer] = layer.canvas.reduced(ground)[inner]
    front = layer.canvas.front[inner]
    if mask is not None:
        label = layer.canvas.mask[inner].astype(np.uint16) + 8 * layer.number
        mask[outer] = np.where(front, label, mask[outer])
    return _extent(front, outer[0].start, outer[1].start)


def _overlap(box, h, w):
    "Slices of a box inside the frame, in the box's and in the frame's coordinates; None, None if there are none"
    top = max(box[0], 0)
    left = max(box[1], 0)
    bottom = min(box[2], h)
    right = min(box[3], w)
    if top >= bottom or left >= right: return None, None
    return np.s_[top-box[0]:bottom-box[0], left-box[1]:right-box[1]], np.s_[top:bottom, left:right]


def _extent(there, top=0, left=0):
    "Box x, y, w, h around the true pixels of an array at position `top`, `left`; None without any"
    rows = np.flatnonzero(there.any(1))
    columns = np.flatnonzero(there.any(0))
    if not len(rows): return None
    x, y = int(columns[0]), int(rows[0])
    return left + x, top + y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _seen(mask, bodies):
    "The visible part of each person; `bodies` has their pixels and boxes"
    seen = []
    for number, (pixels, box) in sorted(bodies.items()):
        if box is None: continue
        shown = mask >> 3 == number
        seen.append(Seen(number, box, _extent(shown), round(int(shown.sum()) / pixels, 4)))
    return seen
