"Names, indices and the tables of other parsers"

import numpy as np
import pytest

from magnifier.regions import (BODY_REGIONS, LABEL_TABLES, LOWER_TORSO, N_REGIONS, NO_MASK, REGIONS, UPPER_TORSO,
                               label_table, region_indices)


def test_regions_are_the_paper_s():
    assert REGIONS == ('background', 'head', 'chest', 'upper_arm', 'lower_arm', 'upper_leg', 'lower_leg', 'foot')
    assert N_REGIONS == 8
    assert BODY_REGIONS == REGIONS[1:]
    assert NO_MASK not in range(N_REGIONS)
    assert sorted(UPPER_TORSO + LOWER_TORSO) == list(range(1, 8))


@pytest.mark.parametrize('regions, indices', [
    (None, list(range(8))), ('foot', [7]), (3, [3]), (np.int64(3), [3]), (np.array([2, 0]), [2, 0]),
    (['foot', 'head', 2], [7, 1, 2]), ([], [])])
def test_region_indices(regions, indices): assert region_indices(regions) == indices


def test_region_indices_of_another_number_of_regions():
    assert region_indices(None, 3) == [0, 1, 2]
    assert region_indices([9, 'head'], 10) == [9, 1]
    with pytest.raises(ValueError, match="unknown region 'foot': use names background, head, chest or indices 0 to 2"):
        region_indices('foot', 3)
    with pytest.raises(ValueError, match='region 9 is named twice'): region_indices([9, 9], 10)


@pytest.mark.parametrize('regions', ['leg', 8, -1, ['head', 'tail'], 2.5, [None]])
def test_unknown_region_lists_the_known(regions):
    with pytest.raises(ValueError, match='unknown region .*background, head, .*0 to 7'): region_indices(regions)


@pytest.mark.parametrize('regions', [['foot', 'foot'], [2, 7, 'foot'], [7, 7]])
def test_a_region_named_twice_is_refused(regions):
    with pytest.raises(ValueError, match="region 'foot' is named twice: name different regions"):
        region_indices(regions)


# Oracle: the lists of the labels' documentation, written out once more, label by label
COARSE = [0, 2, 4, 4, 7, 7, 5, 5, 6, 6, 3, 3, 4, 4, 1]
FINE = [0, 2, 2, 4, 4, 7, 7, 5, 5, 5, 5, 6, 6, 6, 6, 3, 3, 3, 3, 4, 4, 4, 4, 1, 1]


def test_densepose_tables():
    assert list(LABEL_TABLES['densepose14'].regions) == COARSE
    assert list(LABEL_TABLES['densepose24'].regions) == FINE


NAMES = {  # the parsers' own lists of names, in order, with the region each must become
    'lip': 'background:0 hat:1 hair:1 glove:4 sunglasses:1 upperclothes:2 dress:2 coat:2 socks:6 pants:5 '
           'jumpsuits:2 scarf:2 skirt:5 face:1 larm:3 rarm:3 lleg:5 rleg:5 lshoe:7 rshoe:7',
    'cihp': 'background:0 hat:1 hair:1 glove:4 sunglasses:1 upperclothes:2 dress:2 coat:2 socks:6 pants:5 '
            'torsoskin:2 scarf:2 skirt:5 face:1 larm:3 rarm:3 lleg:5 rleg:5 lshoe:7 rshoe:7',
    'atr': 'background:0 hat:1 hair:1 sunglasses:1 upperclothes:2 skirt:5 pants:5 dress:2 belt:2 lshoe:7 rshoe:7 '
           'face:1 lleg:5 rleg:5 larm:3 rarm:3 bag:0 scarf:2',
    'pascal': 'background:0 head:1 torso:2 upperarms:3 lowerarms:4 upperlegs:5 lowerlegs:6',
    'sapiens': 'background:0 apparel:0 face_neck:1 hair:1 lfoot:7 lhand:4 llowerarm:4 llowerleg:6 lshoe:7 lsock:6 '
               'lupperarm:3 lupperleg:5 lowerclothing:5 rfoot:7 rhand:4 rlowerarm:4 rlowerleg:6 rshoe:7 rsock:6 '
               'rupperarm:3 rupperleg:5 torso:2 upperclothing:2 lowerlip:1 upperlip:1 lowerteeth:1 upperteeth:1 '
               'tongue:1'}


@pytest.mark.parametrize('name', NAMES)
def test_parser_tables(name):
    table, names = LABEL_TABLES[name], NAMES[name].split()
    assert list(table.regions) == [int(n.split(':')[1]) for n in names]
    # what is divided has its upper region in the table, is part of the limb, and goes one region down
    for split in table.splits:
        assert set(split.labels) <= set(split.limb)
        assert {table.regions[label] for label in split.labels} == {split.lower - 1}
        assert {'arm' in names[i] for i in split.labels} == {not split.upright}


@pytest.mark.parametrize('name', LABEL_TABLES)
def test_every_table_has_its_source_and_reaches_the_body(name):
    table = LABEL_TABLES[name]
    assert table.source
    assert table.regions[0] == 0
    reached = set(table.regions) | {s.lower for s in table.splits}
    assert reached == set(range(8)) - ({7} if name == 'pascal' else set())


def test_label_table():
    assert label_table('lip') is LABEL_TABLES['lip']
    assert label_table(LABEL_TABLES['atr']) is LABEL_TABLES['atr']
    assert label_table([0, 7, 'head']).regions == (0, 7, 1)
    assert label_table([0, 'foot', 7]).regions == (0, 7, 7)
    assert label_table(np.array([0, 2])).regions == (0, 2)
    with pytest.raises(ValueError, match="unknown labels 'coco'.*densepose14.*lip.*sapiens"): label_table('coco')
    with pytest.raises(ValueError, match='unknown region 9'): label_table([0, 9])
