import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from magnifier.walkers.appearance import random_appearance
from magnifier.walkers.canvas import stream
from magnifier.walkers.body import random_box, random_pose
from magnifier.data.keypoint_masks import regions_from_joints
from magnifier.data.masks import regions_from_fields, stripe_masks
from magnifier.walkers.pedestrian import OCCLUDERS, draw_walker
from magnifier.regions import BODY_REGIONS

# Somebody who stands and faces us, 100 pixels tall
STANDING = np.array([(32, 20), (33, 18), (31, 18), (35, 19), (29, 19), (42, 32), (22, 32), (43, 49), (21, 49),
                     (43, 64), (21, 64),
                     (37, 60), (27, 60), (37, 84), (27, 84), (37, 109), (27, 109)], float)


def ious(n, occluded=False):
    "Intersection over union of each body region over n drawn pedestrians"
    both, either = np.zeros(8), np.zeros(8)
    for i in range(n):
        rng = stream('iou', i)
        picture = draw_walker(random_appearance(rng), random_pose(rng), seed=rng, camera=i % 6 + 1, box=random_box(rng),
                              occluder=OCCLUDERS[i % 3] if occluded else None)
        joints = np.column_stack([picture.joints, picture.visible]) if occluded else picture.joints
        drawn = regions_from_joints(joints, picture.mask.shape)
        for k in range(1, 8):
            both[k] += ((drawn == k) & (picture.mask == k)).sum()
            either[k] += ((drawn == k) | (picture.mask == k)).sum()
    return dict(zip(BODY_REGIONS, both[1:] / either[1:]))


@pytest.mark.slow
def test_agrees_with_exact_masks():
    found = ious(120)
    assert np.mean(list(found.values())) > .68 and min(found.values()) > .55, found


@pytest.mark.slow
def test_joints_behind_occluders_are_left_out():
    found = ious(60, occluded=True)
    assert np.mean(list(found.values())) > .45, found


def test_an_obvious_figure():
    mask = regions_from_joints(STANDING, (128, 64))
    assert mask.dtype == np.uint8 and mask.shape == (128, 64) and set(np.unique(mask)) == set(range(8))
    for region, points in {1: [(32, 18), (32, 12)], 2: [(32, 35), (32, 50)], 3: [(43, 42), (21, 42)],
                           4: [(43, 58), (21, 58)],
                           5: [(37, 72), (27, 72)], 6: [(37, 97), (27, 97)], 7: [(37, 112), (27, 112)],
                           0: [(32, 97), (5, 5), (60, 60)]}.items():
        for x, y in points: assert mask[y, x] == region, (x, y, region)


def test_moves_flips_and_scales_with_the_joints():
    mask = regions_from_joints(STANDING, (128, 64))
    np.testing.assert_array_equal(regions_from_joints(STANDING + [7, 3], (131, 71))[3:, 7:], mask)
    left_right = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    mirrored = np.column_stack([64 - STANDING[:, 0], STANDING[:, 1]])[left_right]
    assert (regions_from_joints(mirrored, (128, 64)) != mask[:, ::-1]).mean() < .005
    large = regions_from_joints(3 * STANDING, (384, 192))
    assert (large[1::3, 1::3] != mask).mean() < .01


def test_scores_and_missing_joints():
    scored = np.column_stack([STANDING, np.full(17, .9)])
    np.testing.assert_array_equal(regions_from_joints(scored, (128, 64)), regions_from_joints(STANDING, (128, 64)))
    scored[9, 2] = .1                                        # the left wrist
    mask = regions_from_joints(scored, (128, 64), threshold=.5)
    assert mask[58, 43] != 4 and mask[58, 21] == 4
    scored[:, 2] = .1
    assert not regions_from_joints(scored, (128, 64), threshold=.5).any()
    legs = np.where(np.arange(17)[:, None] >= 11, STANDING, np.nan)
    assert set(np.unique(regions_from_joints(legs, (128, 64)))) == {0, 5, 6, 7}
    head = np.where(np.arange(17)[:, None] < 7, STANDING, np.nan)    # no length to take the measure from
    assert not regions_from_joints(head, (128, 64)).any()
    blind = np.where((np.arange(17) == 0)[:, None] | (np.arange(17) > 4)[:, None], STANDING, np.nan)
    assert regions_from_joints(blind, (128, 64))[18, 32] == 1


def test_one_stray_joint_does_not_blow_up_the_rest():
    stray = STANDING.copy()
    stray[10] = 500, 900
    usual, mask = (regions_from_joints(j, (128, 64)) for j in (STANDING, stray))
    keep = (usual != 4) & (mask != 4)
    assert (usual[keep] != mask[keep]).mean() < .02


def test_arms_go_behind_a_back_and_before_a_chest():
    front = STANDING.copy()
    front[9], front[10] = (30, 52), (34, 52)
    back = np.column_stack([64 - front[:, 0], front[:, 1]])
    assert (regions_from_joints(front, (128, 64)) == 4).sum() > 1.5 * (regions_from_joints(back, (128, 64)) == 4).sum()


@given(joints=st.lists(st.tuples(*[st.floats(-200, 400) | st.just(float('nan'))] * 2), min_size=17, max_size=17),
       h=st.integers(1, 90), w=st.integers(1, 50))
@settings(deadline=None, max_examples=150)
def test_any_joints_give_a_mask(joints, h, w):
    mask = regions_from_joints(np.array(joints), (h, w))
    assert mask.shape == (h, w) and mask.dtype == np.uint8 and mask.max() <= 7


def test_all_joints_in_one_point(): assert not regions_from_joints(np.full((17, 2), 9.), (128, 64)).any()


@pytest.mark.parametrize('joints,size,message', [
    (np.zeros((16, 2)), (128, 64), r'joints of shape \(16, 2\): use \(17, 2\) or \(17, 3\), COCO order'),
    (np.zeros((17, 4)), (128, 64), r'\(17, 4\)'), (STANDING, (0, 64), r'size=\(0, 64\): use \(height, width\)')])
def test_bad_joints(joints, size, message):
    with pytest.raises(ValueError, match=message): regions_from_joints(joints, size)


@pytest.mark.parametrize('size', [(128, 64), (384, 192), (7, 1), (100, 3)])
def test_stripes_are_stripes(size):
    mask = stripe_masks(size)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert (mask == mask[:, :1]).all()
    assert (np.diff(mask[:, 0].astype(int)) >= 0).all()
    if size[0] >= 100: assert set(np.unique(mask)) == set(range(1, 8))
    equal = stripe_masks((70, 2), [i / 7 for i in range(7)])
    assert (np.bincount(equal[:, 0])[1:] == 10).all()


@pytest.mark.parametrize('kwargs,message', [
    (dict(size=(10, 0)), 'size='), (dict(size=(9, 9), edges=(0, .5)), 'use seven rising shares'),
    (dict(size=(9, 9), edges=(0, .1, .2, .2, .4, .5, .6)), 'rising'),
    (dict(size=(9, 9), edges=(0, .1, .2, .3, .4, .5, 1)), 'all below 1')])
def test_bad_stripes(kwargs, message):
    with pytest.raises(ValueError, match=message): stripe_masks(**kwargs)


def test_fields_of_confidence_are_regions():
    "A field a corner: the most confident wins, and what is below .3 is background"
    fields = np.zeros((36, 4, 2), np.float32)
    fields[0, 0] = .9  # nose
    fields[24, 1] = .8  # between the shoulders
    fields[18, 2] = .5  # left knee to hip
    fields[17, 2] = .4  # left ankle to knee
    fields[15, 3] = .29  # left ankle
    assert regions_from_fields(fields, (4, 2)).tolist() == [[1, 1], [2, 2], [5, 5], [0, 0]]
    large = regions_from_fields(fields, (64, 32))
    assert large.shape == (64, 32)
    assert large[2].tolist() == [1]*32
    assert large[40].tolist() == [5]*32
    for wrong in (fields[:35], fields[0], fields.astype(int), fields[:, :0]):
        with pytest.raises(ValueError, match=r'\(36, h, w\) floats'): regions_from_fields(wrong, (4, 2))
