"The eight regions that every part mask, branch and picture speaks of: names, indices, torso groups"

__all__ = ['REGIONS', 'BODY_REGIONS', 'N_REGIONS', 'NO_MASK', 'UPPER_TORSO', 'LOWER_TORSO', 'region_indices']

# Order of EANet's `ps_label` files. Left and right share a label, so a horizontal flip never renames a region.
REGIONS = ('background', 'head', 'chest', 'upper_arm', 'lower_arm', 'upper_leg', 'lower_leg', 'foot')
BODY_REGIONS = REGIONS[1:]
N_REGIONS = len(REGIONS)

# Paper, section 4.1: the two groups that `Random-torso` draws from independently
UPPER_TORSO = (1, 2, 3, 4)
LOWER_TORSO = (5, 6, 7)

# Fills the mask of an image that has none. No file may hold it: an image is either wholly labelled or not at all.
NO_MASK = 255


def region_indices(
    regions,  # Names (`'foot'`) or indices (0..7), one or several; None for all eight
) -> list[int]:  # Their indices, in the order given
    "Indices of `regions`; a ValueError for an unknown name or index lists the known ones"
    if regions is None: return list(range(N_REGIONS))
    if isinstance(regions, (str, int)): regions = [regions]
    known = {**{r: i for i, r in enumerate(REGIONS)}, **{i: i for i in range(N_REGIONS)}}
    unknown = [r for r in regions if r not in known]
    if unknown: raise ValueError(f'unknown region {unknown[0]!r}: use names {", ".join(REGIONS)} or indices 0 to {N_REGIONS-1}')
    return [known[r] for r in regions]
