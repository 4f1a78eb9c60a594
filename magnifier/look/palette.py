"Colours that people with any colour vision can distinguish, each with one meaning"
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from magnifier.regions import BODY_REGIONS, REGIONS

__all__ = ['REGION_COLOURS', 'HEAT', 'TRUE_COLOUR', 'FALSE_COLOUR', 'NEUTRAL_COLOUR', 'region_name']

# Okabe and Ito's palette, one colour a region, the background first. Regions that touch are the furthest apart
# (24 units of CIELAB or more), for normal sight and for protanopia, deuteranopia and tritanopia
REGION_COLOURS = np.array([[128, 128, 128], [204, 121, 167], [213, 94, 0], [240, 228, 66],
                           [86, 180, 233], [0, 114, 178], [230, 159, 0], [0, 158, 115]]) / 255  # (k,3) in [0,1]
# Frames of right, wrong and removed hits; their line style and mark differ as well
TRUE_COLOUR = '#008f5f'
FALSE_COLOUR = '#d04a00'
NEUTRAL_COLOUR = '#8a8a8a'
# Violet is no region's colour. The higher the darker, so that a map over a pale image reads in grey too
HEAT = LinearSegmentedColormap.from_list('heat', ['#d9c2ff', '#9a4dff', '#5a00c8', '#2b0060'])


def region_name(
    region: int | str,  # Index 0..7, or a name of `REGIONS`; other names are kept
    *,
    stripes: bool = False,  # Masks are horizontal stripes, not body parts: 'stripe 3', from the top
) -> str:  # As people write it
    "A region's name for a legend: 'upper arm' for index 3"
    name = region if isinstance(region, str) else REGIONS[region]
    if stripes and name in BODY_REGIONS: return f'stripe {REGIONS.index(name)}'
    return name.replace('_', ' ')
