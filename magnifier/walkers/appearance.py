"The appearance of a drawn pedestrian: build, hair, garments, bag and hat; families who differ in one detail; paints"

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

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


def _spread(rng, low, high): return round(between(rng, low, high), 3)


def _far(a, b): return sum(abs(x - y) for x, y in zip(a, b)) >= 130


def _other(rng, *colours):
    "A colour of the palette that differs clearly from `colours`"
    return pick(rng, [c for c in COLOURS.values() if all(_far(c, o) for o in colours)])


def _worn(rng, colour):
    "The colour with a small random change, as one particular garment has it"
    return tuple(min(245, max(20, c + int(rng.integers(-9, 10)))) for c in colour)


def random_appearance(
    rng,  # numpy Generator to draw from
) -> Appearance:  # Somebody
    "A person with random build and clothes"
    top = pick(rng, tuple(COLOURS.values()))
    lower, hair = _other(rng, top), pick(rng, tuple(_HAIR.values())[:5])
    accent = _other(rng, top)
    return Appearance(
        girth=_spread(rng, .88, 1.2), shoulders=_spread(rng, .9, 1.12), legs=_spread(rng, .94, 1.06),
        head=_spread(rng, .92, 1.1), skin=pick(rng, _SKIN), hair_colour=hair, hair_style=pick(rng, HAIR_STYLES),
        sleeve=pick(rng, SLEEVES), top_colour=_worn(rng, top), top_pattern=pick(rng, ('plain',) + PATTERNS),
        top_accent=_worn(rng, accent), logo=pick(rng, LOGOS), logo_colour=_other(rng, top, accent),
        lower=pick(rng, ('trousers',) + LOWERS), lower_colour=_worn(rng, lower), shoe_colour=_other(rng, lower),
        bag=pick(rng, ('none',) + BAGS), bag_colour=_other(rng, top), hat=pick(rng, ('none', 'none') + HATS),
        hat_colour=_other(rng, hair))


def _values(rng, base, field):
    """Four values of a field: kinds in random order, or colours that differ clearly from each other and from the
    colours around them"""
    if field in _KINDS:
        kinds = _KINDS[field]
        order = rng.permutation(len(kinds))
        return [kinds[int(order[i % len(kinds)])] for i in range(4)]
    if field == 'hair_colour': return [tuple(_HAIR.values())[int(i)] for i in rng.permutation(len(_HAIR))[:4]]
    beside, values = [getattr(base, name) for name in _BESIDE[field]], []
    while len(values) < 4: values.append(_other(rng, *beside, *values))
    return values


def _ready(rng, base, detail):
    "The base person with everything that makes the detail visible"
    if detail == 'hair': return replace(base, hat='none')
    if detail == 'pattern': return replace(base, logo='none')
    if detail == 'logo': return replace(base, top_pattern='plain')
    if detail == 'sleeves': return replace(base, top_colour=_other(rng, base.skin, base.top_accent))
    return base


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
