"The appearance of a drawn pedestrian: build, hair, garments, bag and hat; and families who differ in one detail"

from dataclasses import dataclass, replace
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
    if detail not in DETAILS: raise ValueError(f'unknown detail {detail!r}: use one of {", ".join(DETAILS)}')
    base = _ready(rng, random_appearance(rng), detail)
    values = [_values(rng, base, field) for field in DETAILS[detail]]
    return [replace(base, **dict(zip(DETAILS[detail], chosen))) for chosen in zip(*values)]
