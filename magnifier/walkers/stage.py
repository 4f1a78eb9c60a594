"One camera of the streams: its ground, the things that stand there, and its frames with people"

import math
from typing import NamedTuple
import numpy as np
from magnifier.walkers.appearance import Appearance
from magnifier.walkers.body import Body
from magnifier.walkers.cameras import CAMERAS, background, blurred, noise, response
from magnifier.walkers.canvas import SUPERSAMPLE, Canvas, stream
from magnifier.walkers.clothes import where
from magnifier.walkers.figure import Pose, Projection, skeleton
from magnifier.walkers.pedestrian import shadowed
from magnifier.walkers.scene import Place, View, things_of

__all__ = ['Person', 'Seen', 'Frame', 'Stage']

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
        self.camera, self.view = CAMERAS[camera-1], view
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
        "Applies the camera to a frame"
        out = np.stack([self.levels[c][image[..., c]] for c in range(3)], -1)
        for _ in range(self.camera.blur): out = blurred(out)
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
        half, top = thing.wide * scale / 2, y - thing.tall * scale
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
    top, left, bottom, right = max(box[0], 0), max(box[1], 0), min(box[2], h), min(box[3], w)
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
