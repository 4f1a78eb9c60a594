"The scene of a camera's stream: the ground that it sees, the things that stand there, and people's visits"

import math
from dataclasses import dataclass
from magnifier.walkers.canvas import between, pick, stream
from magnifier.walkers.figure import random_arms

__all__ = ['View', 'Thing', 'Place', 'Visit', 'things_of', 'visits_of']

EYE = 1.9  # Height of the cameras in body heights
SKYLINE = .05  # Row at which flat ground would vanish, share of the frame's height
NEAR, FAR = .95, .64  # Rows of the nearest and the farthest feet, shares of the frame's height
CYCLE = .86  # Body heights walked in one cycle of the gait


@dataclass(frozen=True)
class View:
    "How a camera sees flat ground, whose coordinates are in body heights: x to the right, d away from the camera"
    height: int  # Of the frame in pixels
    width: int

    def scale(self,
        d: float,  # Distance from the camera
    ) -> float:
        "Pixels of one body height at distance `d`"
        return self.width / d

    def foot(self,
        x: float,  # To the right of the camera's middle, in body heights
        d: float,  # Distance from the camera
    ) -> tuple[float, float]:
        "Where a point of the ground is in the frame: x, y in pixels"
        return self.width * (.5 + x / d), self.height * SKYLINE + EYE * self.scale(d)

    def depth(self,
        row: float,  # Share of the frame's height, from above
    ) -> float:
        "Distance of the ground at a row of the frame, given as a share of its height"
        return EYE * self.width / ((row - SKYLINE) * self.height)

    def edge(self,
        d: float,  # Distance from the camera
    ) -> float:
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

    def at(self,
        seconds: float,  # From `start` to `end`
    ) -> Place:
        "The person's place at a time; a standing person faces the direction of the walk"
        walked, yaw = 0., 0.
        for (t0, x0, d0), (t1, x1, d1) in zip(self.knots, self.knots[1:]):
            length = math.hypot(x1 - x0, d1 - d0)
            if length: yaw = math.degrees(math.atan2(x1 - x0, d0 - d1))
            if seconds <= t1: break
            walked += length
        share = (seconds - t0) / (t1 - t0)
        x, d = x0 + share * (x1 - x0), d0 + share * (d1 - d0)
        seen = yaw + math.degrees(math.atan2(x, d))  # turned towards the camera's own place
        return Place(x, d, seen % 360, (walked + share * length) / CYCLE % 1, 1. if length else 0.)


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
    speed, t, knots = between(rng, .7, .95), start, []
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
    visits, last = [], 0
    t = between(rng, -4., min(20., .4 * seconds))
    while t < seconds:
        others = [c for c in range(1, len(cameras) + 1) if c != last]
        camera = pick(rng, others or [last])
        arms = random_arms(rng)
        side = 1 if rng.random() < .5 else -1
        points = pick(rng, _WAYS)(rng, view, side, cameras[camera-1])
        visits.append(Visit(person, camera, arms, _walk(rng, points, t)))
        t, last = visits[-1].end + between(rng, 3., 9.), camera
    return visits
