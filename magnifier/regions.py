"The eight regions of a part mask: their names, indices and torso groups, and tables from other parsers' labels"

import operator
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ['REGIONS', 'BODY_REGIONS', 'N_REGIONS', 'LABEL_TABLES', 'region_indices']

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
    regions,  # Names (`'foot'`) or indices from 0, one or several, each once; None for all
    n: int = N_REGIONS,  # How many regions there are
) -> list[int]:  # Their indices, in the order given
    "Indices of `regions`; a ValueError for an unknown name or index lists the known ones, and for a repeat says which"
    if regions is None: return list(range(n))
    several = isinstance(regions, Iterable) and not isinstance(regions, str)
    regions = list(regions) if several else [regions]
    indices = [_region_index(r, n) for r in regions]
    for index in indices:
        name = REGIONS[index] if index < N_REGIONS else index
        if indices.count(index) > 1: raise ValueError(f'region {name!r} is named twice: name different regions')
    return indices


def _region_index(region, n):
    try: index = REGIONS.index(region) if isinstance(region, str) else operator.index(region)
    except (ValueError, TypeError): index = -1
    if not 0 <= index < n:
        raise ValueError(f'unknown region {region!r}: use names {", ".join(REGIONS[:n])} or indices 0 to {n-1}')
    return index


class LimbSplit(NamedTuple):
    """How to divide a limb that a parser labels as one: its far end is the lower part.

    The lower part is a quarter of the person's height (shank 0.246, forearm and hand 0.254 of the stature in Drillis &
    Contini's body proportions, 1966), or half the limb where that is more. So a whole leg is divided at the knee, a
    bare arm below a short sleeve at the elbow, and the hand below a long sleeve is lower arm."""
    labels: tuple[int, ...]  # Labels that are divided; the table gives them their upper region
    limb: tuple[int, ...]  # Labels that together are the limb, and measure its length
    lower: int  # Region of the far end
    upright: bool  # Length is measured downwards (legs); else along the limb, away from the head (arms)


class LabelTable(NamedTuple):
    "The region of each label of a parser"
    regions: tuple[int, ...]  # Region of each label 0, 1, ...
    splits: tuple[LimbSplit, ...]  # Limbs to divide, if any
    source: str  # Who numbers them so


def _table(n, source, *splits, **labels_of):
    "Table of `n` labels from region name -> labels; labels that are not named are background"
    regions = [0] * n
    for region, labels in labels_of.items():
        for label in labels: regions[label] = REGIONS.index(region)
    return LabelTable(tuple(regions), splits, source)


# Of LIP, CIHP and ATR, which label an arm as one
ARMS = tuple(LimbSplit((arm,), (arm,), lower=REGIONS.index('lower_arm'), upright=False) for arm in (14, 15))

# Arms, and trousers, skirt and bare legs as one limb, are divided by length; socks are lower leg, gloves lower arm
LIP = _table(
    20, 'Look into Person (Gong et al. 2017)',
    *ARMS, LimbSplit((9, 12, 16, 17), (8, 9, 12, 16, 17), lower=REGIONS.index('lower_leg'), upright=True),
    head=(1, 2, 4, 13), chest=(5, 6, 7, 10, 11), lower_arm=(3,), upper_arm=(14, 15), upper_leg=(9, 12, 16, 17),
    lower_leg=(8,), foot=(18, 19))

# Parsers of clothing label a sleeve as garment: a clothed arm is chest, and only its bare part is arm. A dress, coat or
# jumpsuit is chest down to its hem. Bags, where they have a label, are background.
LABEL_TABLES = {
    'ps_label': LabelTable(tuple(range(N_REGIONS)), (), 'EANet part labels (Huang et al. 2018): the regions'),
    # Hands belong to the lower arm, as in EANet's labels
    'densepose14': _table(
        15, 'DensePose-COCO coarse parts (Guler et al. 2018)',
        chest=(1,), lower_arm=(2, 3, 12, 13), foot=(4, 5), upper_leg=(6, 7), lower_leg=(8, 9), upper_arm=(10, 11),
        head=(14,)),
    'densepose24': _table(
        25, 'DensePose fine parts, the I of IUV (Guler et al. 2018)',
        chest=(1, 2), lower_arm=(3, 4, 19, 20, 21, 22), foot=(5, 6), upper_leg=(7, 8, 9, 10),
        lower_leg=(11, 12, 13, 14), upper_arm=(15, 16, 17, 18), head=(23, 24)),
    'lip': LIP,
    # Feet are part of the lower legs: region 7 never occurs
    'pascal': _table(
        7, 'Pascal-Person-Part (Chen et al. 2014), as the human parsers number it',
        head=(1,), chest=(2,), upper_arm=(3,), lower_arm=(4,), upper_leg=(5,), lower_leg=(6,)),
    # Divided as LIP is
    'atr': _table(
        18, 'ATR (Liang et al. 2015)',
        *ARMS, LimbSplit((5, 6, 12, 13), (5, 6, 12, 13), lower=REGIONS.index('lower_leg'), upright=True),
        head=(1, 2, 3, 11), chest=(4, 7, 8, 17), upper_arm=(14, 15), upper_leg=(5, 6, 12, 13), foot=(9, 10)),
    # As LIP: label 10 is the torso's bare skin here and a jumpsuit there
    'cihp': LIP._replace(source='Crowd Instance-level Human Parsing (Gong et al. 2018)'),
    # Bare limbs come divided; lower clothing (trousers, shorts, skirt) is divided by the length of its legs
    'sapiens': _table(
        28, 'Sapiens body parts, 28 Goliath classes (Khirodkar et al. 2024)',
        LimbSplit((12,), (7, 9, 11, 12, 16, 18, 20), lower=REGIONS.index('lower_leg'), upright=True),
        head=(2, 3, 23, 24, 25, 26, 27), chest=(21, 22), upper_arm=(10, 19), lower_arm=(5, 6, 14, 15),
        upper_leg=(11, 12, 20), lower_leg=(7, 9, 16, 18), foot=(4, 8, 13, 17)),
}


def label_table(
    labels,  # A name of LABEL_TABLES, a LabelTable, or a sequence: the region of each label 0, 1, ...
) -> LabelTable:  # The table
    "The table for a parser's labels; a ValueError for an unknown name or region lists the known ones"
    if isinstance(labels, LabelTable): return labels
    if isinstance(labels, str):
        if labels not in LABEL_TABLES:
            raise ValueError(f'unknown labels {labels!r}: use one of {", ".join(LABEL_TABLES)}')
        return LABEL_TABLES[labels]
    return LabelTable(tuple(i for region in labels for i in region_indices([region])), (), 'given by the caller')
