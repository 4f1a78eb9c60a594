"Colours that everybody can tell apart, and what pictures mean by them"
import numpy as np
from magnifier.model.branches import BRANCHES
from magnifier.regions import N_REGIONS, REGIONS

__all__ = ['REGION_COLOURS', 'BRANCH_NAMES', 'TRUE_COLOUR', 'FALSE_COLOUR', 'NEUTRAL_COLOUR', 'HEAT', 'region_name']

# Okabe and Ito's palette, dealt so that regions that touch stay furthest apart (24 units of CIELAB or more) for normal sight and for
# protanopia, deuteranopia and tritanopia alike; the background has no colour of its own
REGION_COLOURS = np.array([[128, 128, 128], [204, 121, 167], [213, 94, 0], [240, 228, 66], [86, 180, 233], [0, 114, 178],
                           [230, 159, 0], [0, 158, 115]]) / 255  # (k,3) in [0,1]
TRUE_COLOUR, FALSE_COLOUR, NEUTRAL_COLOUR = '#008f5f', '#d04a00', '#8a8a8a'  # frames; line style and mark differ as well
HEAT = 'inferno'  # even in lightness, so that it reads in grey too
BRANCH_NAMES = {name: branch.title for name, branch in BRANCHES.items()}

assert len(REGION_COLOURS) == N_REGIONS


def region_name(
    region:int, # Index, 0..7
) -> str:  # As people write it
    "A region's name for a legend: 'upper arm' for index 3"
    return REGIONS[region].replace('_', ' ')
