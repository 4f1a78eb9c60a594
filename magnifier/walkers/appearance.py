"Who a drawn pedestrian is: build, hair, garments and what is carried; and families that differ in one detail"

from dataclasses import dataclass, replace, fields

__all__ = ['Appearance', 'random_appearance', 'family', 'DETAILS', 'COLOURS', 'differing_fields']

# Garment colours, apart enough to be told from each other under six white balances
COLOURS = dict(
    black=(38, 38, 42), white=(232, 231, 226), grey=(132, 134, 138), red=(190, 40, 44), maroon=(105, 28, 42), orange=(224, 120, 36),
    yellow=(228, 198, 62), green=(58, 142, 72), forest=(32, 74, 52), teal=(34, 138, 142), sky=(126, 182, 222), blue=(44, 88, 182),
    navy=(34, 44, 88), purple=(112, 62, 142), pink=(226, 140, 166), brown=(112, 76, 50), beige=(206, 186, 148), olive=(112, 116, 62))
_SKIN = ((236, 200, 176), (222, 178, 148), (198, 150, 116), (164, 116, 84), (122, 82, 58), (86, 58, 44))
_HAIR = dict(black=(34, 28, 28), brown=(88, 56, 36), blond=(204, 168, 98), red=(160, 74, 36), grey=(160, 158, 156),
             white=(222, 220, 214))

HAIR_STYLES = ('short', 'long', 'bun')
SLEEVES = ('none', 'short', 'elbow', 'long')
PATTERNS = ('plain', 'stripes', 'columns', 'checks', 'halves')
LOGOS = ('none', 'square', 'disc', 'cross')
LOWERS = ('trousers', 'cropped', 'shorts', 'skirt')
BAGS = ('none', 'backpack', 'shoulder', 'handbag')
HATS = ('none', 'cap', 'beanie', 'brim')

# What a family may differ in, with the values to choose four of; colour fields choose from the palette
DETAILS = dict(
    hair_colour=tuple(_HAIR.values()), sleeve=SLEEVES, top_pattern=PATTERNS, logo_colour=None, lower=LOWERS, lower_colour=None,
    shoe_colour=None, bag=BAGS, bag_colour=None, hat=HATS, hat_colour=None, top_accent=None)


@dataclass(frozen=True)
class Appearance:
    "Everything that belongs to an identity and to no picture; `dataclasses.replace` changes one thing of it. Colours are RGB to 255"
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


def _pick(rng, choices): return choices[int(rng.integers(len(choices)))]

def _spread(rng, low, high): return round(low + (high - low) * float(rng.random()), 3)

def _far(a, b): return sum(abs(x - y) for x, y in zip(a, b)) >= 130

def _other(rng, *colours):
    "A palette colour that stands out from `colours`"
    return _pick(rng, [c for c in COLOURS.values() if all(_far(c, o) for o in colours)])

def _worn(rng, colour):
    "The colour as one particular garment has it"
    return tuple(min(245, max(20, c + int(rng.integers(-9, 10)))) for c in colour)


def random_appearance(
    rng,  # numpy Generator to draw from
) -> Appearance:  # Somebody
    "A person with random build and clothes"
    top = _pick(rng, tuple(COLOURS.values()))
    lower, hair = _other(rng, top), _pick(rng, tuple(_HAIR.values())[:5])
    accent = _other(rng, top)
    return Appearance(
        girth=_spread(rng, .88, 1.2), shoulders=_spread(rng, .9, 1.12), legs=_spread(rng, .94, 1.06), head=_spread(rng, .92, 1.1),
        skin=_pick(rng, _SKIN), hair_colour=hair, hair_style=_pick(rng, HAIR_STYLES), sleeve=_pick(rng, SLEEVES),
        top_colour=_worn(rng, top), top_pattern=_pick(rng, ('plain',) + PATTERNS), top_accent=_worn(rng, accent),
        logo=_pick(rng, LOGOS), logo_colour=_other(rng, top, accent), lower=_pick(rng, ('trousers',) + LOWERS),
        lower_colour=_worn(rng, lower), shoe_colour=_other(rng, lower), bag=_pick(rng, ('none',) + BAGS), bag_colour=_other(rng, top),
        hat=_pick(rng, ('none', 'none') + HATS), hat_colour=_other(rng, hair))


def _values(rng, base, detail):
    "Four values of a detail, colours far from each other and from the garment they lie on"
    if DETAILS[detail] is not None: return [DETAILS[detail][int(i)] for i in rng.permutation(len(DETAILS[detail]))[:4]]
    beside = dict(logo_colour=(base.top_colour,), top_accent=(base.top_colour,), bag_colour=(base.top_colour,),
                  shoe_colour=(base.lower_colour,), hat_colour=(base.hair_colour,)).get(detail, ())
    values = []
    while len(values) < 4: values.append(_other(rng, *beside, *values))
    return values


def _ready(rng, base, detail):
    "The base with whatever the detail needs to be seen"
    if detail == 'logo_colour': return replace(base, logo=_pick(rng, LOGOS[1:]), top_pattern='plain')
    if detail == 'top_accent': return replace(base, top_pattern=_pick(rng, PATTERNS[1:]), logo='none')
    if detail == 'top_pattern': return replace(base, logo='none')
    if detail == 'bag_colour': return replace(base, bag=_pick(rng, BAGS[1:]))
    if detail == 'hat_colour': return replace(base, hat=_pick(rng, HATS[1:]))
    if detail == 'hair_colour': return replace(base, hat='none', hair_style=_pick(rng, ('short', 'long')))
    if detail == 'lower': return replace(base, lower_colour=_other(rng, base.skin))
    if detail == 'sleeve': return replace(base, top_colour=_other(rng, base.skin, base.top_accent))
    return base


def family(
    rng,  # numpy Generator to draw from
    detail=None,  # One of DETAILS; None draws one
) -> list[Appearance]:  # Four people
    "Four appearances that share everything but one field, in which all four differ. Raises ValueError for an unknown detail"
    if detail is None: detail = _pick(rng, tuple(DETAILS))
    if detail not in DETAILS: raise ValueError(f'unknown detail {detail!r}: use one of {", ".join(DETAILS)}')
    base = _ready(rng, random_appearance(rng), detail)
    return [replace(base, **{detail: value}) for value in _values(rng, base, detail)]


def differing_fields(
    appearances,  # Two or more Appearances
) -> list[str]:  # Names of the fields in which they are not all alike
    "What tells these people apart"
    return [f.name for f in fields(Appearance) if len({getattr(a, f.name) for a in appearances}) > 1]
