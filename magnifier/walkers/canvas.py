"A small z-buffer that draws pedestrians from shaded tubes, and random streams that are the same on every machine"

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ['Canvas', 'Surface', 'SUPERSAMPLE', 'stream', 'shrink', 'enlarge']

# Small pixels along the side of an image's pixel. Odd, so that one lies at its centre: the mask takes that one's label
SUPERSAMPLE = 3
_NOTHING, _BACK = -1e9, -1e8  # Depths of an empty pixel, and of what has been pushed back
_STEPS = 48  # radii along a tube are looked up in a table of so many steps


def stream(
    *key,  # Anything printable: a seed and names, such as `(0, 'image', '0002_c1s1_000451_03.jpg')`
) -> np.random.Generator:  # A generator of its own for this key, the same on every machine
    "An independent PCG64 stream per key, so that an image does not depend on the images drawn before it"
    return np.random.Generator(np.random.PCG64([b for b in '/'.join(map(str, key)).encode()]))


def pick(rng, choices):
    "A random choice with equal probabilities"
    return choices[int(rng.integers(len(choices)))]


def between(rng, low: float, high: float) -> float:
    "A random number from `low` to `high`"
    return low + (high - low) * float(rng.random())


def grid(value: float) -> float:
    "The nearest multiple of 1/64, because sines differ in their last bit between machines, and images must not"
    return math.floor(value * 64 + .5) / 64


class Surface(NamedTuple):
    "The visible points of a tube, as flat arrays, for its paint"
    t: np.ndarray       # Position on the axis, 0 at its start and 1 at its end; beyond in a round cap
    across: np.ndarray  # -1 to 1 over the width; for an axis that points up, 1 is the image's right
    facing: np.ndarray  # 1 where the surface faces the viewer, 0 at the outline
    down: np.ndarray    # 1 where the surface faces the ground


class Canvas:
    "Colour, depth and label of every small pixel; tubes are tested against the depth and shaded as they are drawn"
    def __init__(self,
        height:int,  # Height in small pixels
        width:int,  # Width in small pixels
        light=(-.4, -.55, .73),  # Where the light comes from: right, down, towards the viewer; unit length
        ambient:float=.55,  # Share of the light that comes from everywhere
    ):
        "An empty canvas"
        self.colour = np.zeros((height, width, 3), np.uint8)
        self.depth = np.full((height, width), _NOTHING, np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.light, self.ambient = light, ambient

    @property
    def covered(self) -> np.ndarray:  # (h, w) booleans
        "Where anything has been drawn"
        return self.depth > _NOTHING

    @property
    def front(self) -> np.ndarray:  # (h, w) booleans at the image's size
        "Where anything was drawn since `push_back`"
        return _centres(self.depth > _BACK / 10)

    def push_back(self):
        "Puts everything drawn so far behind what is drawn from now on"
        self.depth[self.covered] = _BACK

    def tube(self,
        a,  # Start of the axis: x, y (down), z (towards the viewer) in small pixels
        b,  # End of the axis
        radii,  # Radii from start to end, evenly spaced, in small pixels
        label,  # Region written where the tube is seen; None leaves what is there
        paint,  # RGB, or a function Surface -> (n, 3) RGB
        caps=(True, True),  # Round the start, round the end; a flat end stops at the axis' point
        flat:float=1.,  # Depth of the cross-section over its width
        lift:float=0.,  # Small pixels by which the tube counts as nearer than it is: cloth that hangs over limbs
    ):
        "Draw a tube with a straight axis and a round (or flattened) cross-section"
        a = [grid(v) for v in a]
        b = [grid(v) for v in b]
        box = self._box(a, b, max(radii))
        if box is None: return
        rows, cols = box
        # Position of each pixel along the axis and beside it, and which pixels lie inside
        length, ux, uy = _axis(a, b)
        x = np.arange(cols.start, cols.stop, dtype=np.float32)[None] + np.float32(.5 - a[0])
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(.5 - a[1])
        along = x * ux + y * uy  # (h, w) of the box
        side = y * ux - x * uy
        core = np.minimum(np.maximum(along, np.float32(0)), np.float32(length))
        r = _table(radii)[(core * np.float32(_STEPS / length)).astype(np.int32)]
        over = along - core
        q = (side * side + over * over) / (r * r)
        inside = q < 1
        if not caps[0]: inside &= along >= 0
        if not caps[1]: inside &= along <= np.float32(length)
        # Those of them that lie before what has been drawn there
        at = np.flatnonzero(inside)  # (n,) in the box
        core = core.take(at)
        r = r.take(at)
        q = q.take(at)
        facing = np.sqrt(np.maximum(1 - q, np.float32(0)))
        z = np.float32(a[2] + grid(lift)) + core * np.float32((b[2] - a[2]) / length) + facing * r * np.float32(flat)
        place = (at // x.size + rows.start) * self.label.shape[1] + at % x.size + cols.start  # (n,) in the canvas
        seen = np.flatnonzero(z > self.depth.take(place))
        at = at[seen]
        place = place[seen]
        r = r[seen]
        facing = facing[seen]
        # Depth, label and colour
        self.depth.reshape(-1)[place] = z[seen]
        if label is not None: self.label.reshape(-1)[place] = label
        n_side = side.take(at) / r
        n_along = over.take(at) / r
        down = n_side * ux + n_along * uy
        surface = Surface(along.take(at) / np.float32(length), n_side, facing, down)
        colour = paint(surface) if callable(paint) else np.array([paint], np.float32)
        shaded = colour * self._shade(n_along * ux - n_side * uy, down, facing)[:, None]
        self.colour.reshape(-1, 3)[place] = np.minimum(np.rint(shaded), 255)

    def _box(self, a, b, r):
        "Slices that hold the tube, or None outside the canvas"
        h, w = self.label.shape
        x0 = max(0, math.floor(min(a[0], b[0]) - r))
        x1 = min(w, math.ceil(max(a[0], b[0]) + r) + 1)
        y0 = max(0, math.floor(min(a[1], b[1]) - r))
        y1 = min(h, math.ceil(max(a[1], b[1]) + r) + 1)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def _shade(self, right, down, facing):
        "Lambert's law with ambient light, darker towards the outline"
        lx, ly, lz = (np.float32(v) for v in self.light)
        direct = np.maximum(right * lx + down * ly + facing * lz, np.float32(0))
        light = np.float32(self.ambient) + np.float32(1.12 - self.ambient) * direct
        return light * (np.float32(.86) + np.float32(.14) * facing)

    def reduced(self,
        background,  # (h, w, 3) uint8 at the image's size, seen where nothing was drawn
    ) -> np.ndarray:  # (h, w, 3) uint8, each pixel the mean of its small pixels
        "The anti-aliased image over a background"
        step = SUPERSAMPLE
        covered = self.covered
        total = np.zeros(background.shape, np.uint16)
        count = np.zeros(background.shape[:2], np.uint16)
        for i in range(step):
            for j in range(step):
                total += self.colour[i::step, j::step]
                count += covered[i::step, j::step]
        n = step * step
        mixed = total + (n - count)[..., None] * background
        return ((mixed + n // 2) // n).astype(np.uint8)

    @property
    def mask(self) -> np.ndarray:  # (h, w) uint8 at the image's size
        "The label at the centre of each pixel, never mixed"
        return _centres(self.label).copy()


def _axis(a, b):
    "Length in the image, 1 or more, and the direction as float32 numbers; a point's axis points up"
    length = math.sqrt((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2)  # hypot is not exact everywhere
    if length <= 1: return 1., np.float32(0), np.float32(-1)
    return length, np.float32((b[0] - a[0]) / length), np.float32((b[1] - a[1]) / length)


def _table(radii):
    "Radii at `_STEPS` + 1 points of the axis, linear between those given"
    last = len(radii) - 1
    k, part = np.divmod(np.arange(_STEPS + 1) * last, _STEPS)
    radii = np.array(radii, np.float64)
    low = radii[k]
    high = radii[np.minimum(k + 1, last)]
    exact = np.maximum(low + (high - low) * part / _STEPS, .5)
    return (np.floor(exact * 64 + .5) / 64).astype(np.float32)


def _centres(small): return small[SUPERSAMPLE//2::SUPERSAMPLE, SUPERSAMPLE//2::SUPERSAMPLE]


def shrink(
    image,  # (h, w) or (h, w, c), integers
    size,  # Height and width, none larger than the image's
) -> np.ndarray:  # (height, width, ...) int32
    "Mean over the area that each new pixel covers"
    return _both(image, [_area(new, old) for new, old in zip(size, image.shape)])


def enlarge(
    image,  # (h, w) or (h, w, c), integers
    size,  # Height and width
) -> np.ndarray:  # (height, width, ...) int32
    "Bilinear between the centres of the old pixels, edges repeated"
    return _both(image, [_linear(new, old) for new, old in zip(size, image.shape)])


def _both(image, weights):
    "Weigh rows, then columns; sums of whole numbers are exact in float64, in any order"
    (rows, unit_r), (columns, unit_c) = weights
    flat = image.reshape(image.shape[0], -1).astype(np.float64)  # (h, w * c)
    tall = (rows @ flat).reshape(len(rows), image.shape[1], -1)  # (height, w, c)
    out = columns @ tall  # (height, width, c)
    unit = unit_r * unit_c
    rounded = np.floor((2 * out + unit) / (2 * unit)).astype(np.int32)
    return rounded.reshape(len(rows), len(columns), *image.shape[2:])


@lru_cache(maxsize=64)
def _area(new, old):
    "How much of each old pixel lies in each new one, (new, old), in units that add up to `old`"
    i, j = np.arange(old)[None], np.arange(new)[:, None]
    overlap = np.minimum((i + 1) * new, (j + 1) * old) - np.maximum(i * new, j * old)
    return np.maximum(overlap, 0).astype(np.float64), old


@lru_cache(maxsize=64)
def _linear(new, old):
    "Bilinear weights, (new, old), in units that add up to `2 * new`"
    low, part = np.divmod((2 * np.arange(new) + 1) * old - new, 2 * new)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), np.clip(low, 0, old - 1)), 2 * new - part)
    np.add.at(weights, (np.arange(new), np.clip(low + 1, 0, old - 1)), part)
    return weights, 2 * new
