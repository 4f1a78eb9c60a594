"Six surveillance cameras, each with its own background, colours, sharpness and noise"

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from magnifier.walkers.canvas import enlarge, pick, shrink, stream

__all__ = ['Camera', 'CAMERAS', 'NEUTRAL', 'background', 'noise', 'response', 'developed', 'expose']


@dataclass(frozen=True)
class Camera:
    "The properties of a camera that affect each of its images"
    camid: int             # 1 to 6 in file names; 0 is a studio
    gains: tuple           # White balance: red, green, blue
    exposure: float = 1.   # Brightness
    gamma: float = 1.      # Contrast of the middle tones; above 1 darkens
    blur: int = 0          # Passes of a 1-2-1 blur
    noise: float = 0.      # Standard deviation in grey levels
    resolution: float = 1. # Share of the picture's size that the sensor resolves
    pitch: float = 0.      # Degrees it looks down
    roll: float = 0.       # Degrees it hangs askew
    light: tuple = (-.4, -.55, .73)  # Where the light comes from: right, down, towards the viewer
    ambient: float = .6    # Share of the light that comes from everywhere
    horizon: float = .4    # Height at which wall meets ground, share of the picture from its top
    walls: tuple = ()      # Kinds of wall in its view, side by side
    floors: tuple = ()     # Kinds of ground


NEUTRAL = Camera(0, (1., 1., 1.))
CAMERAS = (
    Camera(1, (1.01, 1., .98), exposure=1.05, gamma=.97, noise=3., pitch=6., roll=-1.5, light=(-.5, -.5, .7),
           horizon=.36, walls=('bricks', 'windows'), floors=('tiles', 'paving')),
    Camera(2, (1.06, 1., .92), exposure=.96, gamma=1.03, blur=1, noise=4., pitch=14., roll=2.,
           light=(.55, -.5, .67), ambient=.55, horizon=.22, walls=('hall', 'shutters', 'plain'), floors=('tiles',)),
    Camera(3, (.94, 1., 1.06), exposure=.98, noise=6., resolution=.8, pitch=10., light=(-.2, -.8, .56), ambient=.66,
           horizon=.3, walls=('windows', 'hall', 'hedge'), floors=('asphalt', 'paving')),
    Camera(4, (.98, 1.03, .97), gamma=.95, blur=1, noise=3., resolution=.9, pitch=4., roll=3.,
           light=(.3, -.6, .74), ambient=.62, horizon=.45, walls=('hedge', 'bricks', 'hedge'),
           floors=('grass', 'asphalt', 'paving')),
    Camera(5, (1.02, .98, 1.02), exposure=.86, gamma=1.05, noise=7., pitch=8., roll=-3., light=(.6, -.3, .74),
           ambient=.5, horizon=.34, walls=('shutters', 'bricks', 'windows'), floors=('asphalt', 'tiles')),
    Camera(6, (.99, 1.01, 1.01), exposure=1.1, gamma=.95, blur=1, noise=5., resolution=.72, pitch=18., roll=1.,
           light=(0., -.7, .71), ambient=.72, horizon=.14, walls=('plain', 'hedge'),
           floors=('paving', 'grass', 'tiles')))

# Colours of wall and ground, the same at all cameras: a background tells little of its camera
_WALLS = dict(
    bricks=((150, 106, 90), (176, 150, 122), (128, 118, 112)),
    hall=((188, 172, 140), (168, 170, 172), (120, 112, 104)),
    windows=((120, 130, 142), (150, 142, 130), (92, 98, 110)),
    hedge=((74, 104, 58), (96, 116, 74), (62, 84, 56)),
    shutters=((96, 98, 108), (142, 128, 116), (108, 122, 118)),
    plain=((196, 198, 196), (184, 172, 152), (138, 140, 146)))
_FLOORS = dict(
    tiles=((168, 162, 150), (142, 138, 134), (150, 134, 112)),
    asphalt=((104, 106, 112), (88, 86, 86), (122, 118, 112)),
    grass=((118, 138, 84), (134, 136, 96)),
    paving=((186, 182, 172), (150, 148, 146), (166, 148, 132)))


def _cells(rng, h, w, size, spread):
    "Smooth blotches about `size` pixels across, integers within +-spread"
    return (enlarge(rng.integers(0, 256, (h // size + 3, w // size + 3)), (h, w)) - 128) * spread // 128


def _grain(rng, h, w, spread): return rng.integers(-spread, spread + 1, (h, w)).astype(np.int32)


def _wall(kind, rng, h, w):
    "Brightness of a wall, added to its colour"
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    out = _cells(rng, h, w, 24, 18) + _grain(rng, h, w, 4)
    if kind == 'bricks': out = out - 26 * ((y % 6 == 0) | ((x + 7 * (y // 6 % 2)) % 14 == 0))
    if kind == 'hall': out = out + 30 * ((x % 90) < 40) * (y % 60 > 8) - 40 * (x % 90 == 42)
    if kind == 'windows': out = out + np.where(((x % 34) < 24) & ((y % 30) > 7), _cells(rng, h, w, 34, 40) - 35, 12)
    if kind == 'hedge': out = out + _cells(rng, h, w, 5, 42) + _cells(rng, h, w, 2, 22)
    if kind == 'shutters': out = out + 14 * (y % 5 < 2) - 34 * (x % 70 < 3) + 16 * ((x // 70) % 2)
    return out


def _floor(kind, rng, h, w):
    "Brightness of the ground, drawn in perspective from its far edge"
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    far = 900 // (y + 18)                              # shrinks towards the viewer
    across = (x - w // 2) * 60 // (y + 40)
    out = _cells(rng, h, w, 30, 12) + _grain(rng, h, w, 5) - 14 * (y < 2)
    if kind == 'tiles':
        joints = (np.diff(far, axis=0, prepend=far[:1]) != 0) & (far % 2 == 0)
        out = out - 22 * (joints | (across % 18 == 0))
    if kind == 'paving': out = out + np.where((far // 3 + across // 16) % 2 == 0, 9, -9)
    if kind == 'asphalt': out = out + _grain(rng, h, w, 8) + 70 * ((y > 10) & (y < 15) & ((x // 30) % 3 > 0))
    if kind == 'grass': out = out + _cells(rng, h, w, 3, 26)
    return out


def _pieces(rng, kinds, colours, paint, h, w):
    "Walls or grounds side by side, each with its own kind and colour"
    out, x = np.empty((h, w, 3), np.int32), 0
    while x < w:
        kind = pick(rng, kinds if rng.random() < .5 else tuple(colours))  # half a camera's view looks like any other's
        wide = min(w - x, int(rng.integers(h // 3 + 16, h + 48)))
        colour = pick(rng, colours[kind])
        out[:, x:x+wide] = paint(kind, rng, h, wide)[..., None] + np.array(colour)
        x += wide
    return out


@lru_cache(maxsize=32)
def _plate(camera, height, width):
    "The camera's whole view without its colours; backgrounds are cut from it"
    rng = stream('plate', camera.camid)
    h, w = height + height // 4, max(1024, 2 * width)
    top = int(h * camera.horizon)
    wall = _pieces(rng, camera.walls, _WALLS, _wall, top, w)
    floor = _pieces(rng, camera.floors, _FLOORS, _floor, h - top, w)
    view = np.concatenate([wall, floor])
    light = 100 + _cells(rng, h, w, 60, 22)[..., None]  # per cent: sun and shade
    return np.clip(view * light // 100, 0, 255).astype(np.uint8)


def background(
    camera: Camera,  # Whose place
    size,  # Height and width of the image
    rng,  # numpy Generator: where in the place
) -> np.ndarray:  # (h, w, 3) uint8
    "A piece of the camera's own background"
    h, w = size
    if not camera.camid: return np.full((h, w, 3), 150, np.uint8)
    plate = _plate(camera, h, w)
    y = int(rng.integers(plate.shape[0] - h + 1))
    x = int(rng.integers(plate.shape[1] - w + 1))
    light = int(rng.integers(78, 121))  # per cent
    return np.minimum(plate[y:y+h, x:x+w].astype(np.int32) * light // 100, 255).astype(np.uint8)


def noise(
    rng,  # numpy Generator
    shape,  # Of the result
    spread,  # Standard deviation in grey levels
) -> np.ndarray:  # int32
    """Bell-shaped random integers, each the sum of four bytes; a normal distribution needs logarithms, whose last bit
    differs between machines"""
    n = math.prod(shape)
    four = np.frombuffer(rng.bytes(4 * n), np.uint8).reshape(4, *shape).astype(np.int32).sum(0)
    return ((four - 510) * round(spread * 1024 / 147.8) + 512) >> 10


def response(
    camera: Camera,  # Whose colours
    rng,  # numpy Generator: the hour's light
) -> np.ndarray:  # (3, 256) int32
    "The output level of each channel's 256 levels"
    exposure = camera.exposure * (.82 + .36 * float(rng.random()))
    gains = [round(g * exposure * (.965 + .07 * float(rng.random())), 3) for g in camera.gains]
    level = [[255 * min(1., i / 255 * gain) ** camera.gamma for i in range(256)] for gain in gains]
    return np.array([[int(v + .5) for v in row] for row in level], np.int32)


def expose(
    image,  # (h, w, 3) uint8
    camera: Camera,  # What it goes through
    rng,  # numpy Generator for noise and for the exposure's small changes
) -> np.ndarray:  # (h, w, 3) uint8
    "The image as this camera delivers it: colours, blur, resolution, noise"
    if not camera.camid: return image
    out = developed(image, camera, response(camera, rng))
    if camera.resolution < 1:
        size = image.shape[:2]
        out = enlarge(shrink(out, [round(s * camera.resolution) for s in size]), size)
    return np.clip(out + noise(rng, out.shape, camera.noise), 0, 255).astype(np.uint8)


def developed(
    image,  # (h, w, 3) uint8
    camera: Camera,  # Whose blur
    levels,  # (3, 256), from `response`
) -> np.ndarray:  # (h, w, 3) int32
    "The image in the camera's colours, with its blur"
    out = np.stack([levels[c][image[..., c]] for c in range(3)], -1)
    for _ in range(camera.blur): out = _blurred(out)
    return out


def _blurred(image):
    "One pass of 1-2-1 along both axes, edges repeated"
    wide = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode='edge')
    image = (wide[:-2] + 2 * wide[1:-1] + wide[2:] + 2) >> 2
    wide = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode='edge')
    return (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:] + 2) >> 2
