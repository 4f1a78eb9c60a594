"The colours of a drawn pedestrian: garments, patterns, logo, straps and face, each a function of the body's surface"

import math
from collections.abc import Callable
import numpy as np

__all__ = ['solid', 'where', 'limb_paint', 'top_paint', 'head_paint', 'bag_paint', 'shoe_paint']


def solid(
    colour,  # RGB
) -> np.ndarray:  # (1, 3) float32
    "One colour for all points"
    return np.array([colour], np.float32)


def where(
    condition,  # (n,) booleans
    a,  # RGB, or (n, 3)
    b,  # RGB, or (n, 3)
) -> np.ndarray:  # (n, 3) float32
    "Colour `a` at some points, `b` at the others"
    a, b = (c if isinstance(c, np.ndarray) else solid(c) for c in (a, b))
    return np.where(condition[:, None], a, b)


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


def limb_paint(
    end,  # Share of the limb that the garment covers
    colour,  # Of the garment
    skin,  # Of what follows
) -> Callable:  # Surface -> (n, 3) RGB
    "A sleeve or a leg of trousers, then skin"
    def paint(s): return where(s.t <= end, solid(colour) * _folds(s), skin)
    return paint


def shoe_paint(
    colour,  # Of the shoe
) -> Callable:  # Surface -> (n, 3) RGB
    "A shoe with a darker sole"
    sole = tuple(.4 * c + 25 for c in colour)
    def paint(s): return where(s.down > .75, sole, colour)
    return paint


def bag_paint(
    colour,  # Of the bag
) -> Callable:  # Surface -> (n, 3) RGB
    "A bag with a seam"
    seam = tuple(.55 * c for c in colour)
    def paint(s): return where((np.abs(s.t - .62) < .03) & (s.facing > .4), seam, colour)
    return paint


def _pattern(a, t, left):
    "The upper garment's two colours, at height `t` and side `left`"
    rows = np.floor(t * np.float32(6.5)) % 2 == 0
    columns = np.floor(left * np.float32(2.6) + np.float32(8.5)) % 2 == 0
    second = dict(plain=t > 9, stripes=rows, columns=columns, checks=rows ^ columns, halves=t < .5)[a.top_pattern]
    return where(second, a.top_accent, a.top_colour)


def _logo(a, t, left):
    "Where the logo is, on chest and back alike"
    if a.logo == 'none': return t > 9
    x = left / np.float32(.5)
    y = (t - np.float32(.64)) / np.float32(.2)
    inside = (np.abs(x) < 1) & (np.abs(y) < 1)
    if a.logo == 'disc': inside &= x * x + y * y < 1
    if a.logo == 'cross': inside &= (np.abs(x) < .36) | (np.abs(y) < .36)
    return inside


def top_paint(
    a,  # Appearance
    yaw,  # Radians by which the body turns from the viewer
) -> Callable:  # Surface -> (n, 3) RGB
    "The upper garment on the trunk, with logo, straps of a bag, and neckline"
    def paint(s):
        left, forward = _turned(s, yaw)
        colour = where(_logo(a, s.t, left), a.logo_colour, _pattern(a, s.t, left)) * _folds(s, .07)
        strap = s.t > 9
        if a.bag == 'backpack': strap = (forward > 0) & (np.abs(np.abs(left) - .56) < .11) & (s.t > .3)
        if a.bag == 'shoulder': strap = np.abs(left * np.float32(.5) + s.t - np.float32(.52)) < .05
        colour = where(strap, a.bag_colour, colour)
        return where((s.t > .9) & (forward > .1) & (np.abs(left) < (s.t - np.float32(.9)) * 9), a.skin, colour)
    return paint


def head_paint(
    a,  # Appearance
    yaw,  # Radians by which the body turns from the viewer
    length,  # Of the head's axis, in radii of the head
) -> Callable:  # Surface -> (n, 3) RGB
    "Face, hair, and a cap that hugs the head"
    side = .2 if a.hair_style == 'short' else -.5
    lips = tuple(.5 * c for c in a.skin)
    def paint(s):
        left, forward = _turned(s, yaw)
        up = s.t * np.float32(length)      # from -1 at the chin to length + 1 at the crown
        hair = (up > .85) | (forward < -.25) | ((forward < .35) & (up > side))
        if a.hair_style == 'short': hair &= (forward >= 0) | (up >= -.3)
        eyes = (np.abs(np.abs(left) - .38) < .14) & (np.abs(up - .3) < .12) & (forward > 0)
        mouth = (np.abs(left) < .28) & (np.abs(up + .42) < .08) & (forward > 0)
        face = where(eyes, (40, 30, 30), where(mouth, lips, a.skin))
        return where((up > .72) & (a.hat == 'cap'), a.hat_colour, where(hair, a.hair_colour, face))
    return paint
