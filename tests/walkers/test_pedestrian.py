import hashlib
from dataclasses import replace
import numpy as np
import pytest
from magnifier.walkers.cameras import CAMERAS
from magnifier.walkers.canvas import stream
from magnifier.walkers.pedestrian import OCCLUDERS, draw_walker
from magnifier.walkers.person import (COCO_JOINTS, COLOURS, DETAILS, VIEWS, Appearance, Box, Pose, family,
                                      random_appearance, random_box, random_pose)

PLAIN = Appearance(
    girth=1., shoulders=1., legs=1., head=1., skin=(222, 178, 148), hair_colour=(34, 28, 28), hair_style='short',
    sleeve='long', top_colour=COLOURS['red'], top_pattern='plain', top_accent=COLOURS['white'], logo='none',
    logo_colour=COLOURS['yellow'], lower='trousers', lower_colour=COLOURS['blue'], shoe_colour=COLOURS['green'],
    bag='none', bag_colour=COLOURS['orange'], hat='none', hat_colour=COLOURS['pink'])
# What each detail may change: regions; bags are left out, since they also hang beside the body
WHERE = dict(hair={1}, hat={1}, sleeves={3, 4}, pattern={2}, logo={2}, legs={5, 6}, shoes={7})


def studio(appearance=PLAIN, pose=Pose(), **kwargs): return draw_walker(appearance, pose, **kwargs)


def chroma(image): return image / np.maximum(image.sum(-1, keepdims=True), 1)


def test_pixels_are_the_same_on_every_machine():
    "A digest of arrays, not of files: encoders differ between builds"
    images, masks = hashlib.sha256(), hashlib.sha256()
    for i in range(12):
        rng = stream(7, i)
        picture = draw_walker(random_appearance(rng), random_pose(rng), camera=i % 6 + 1, seed=rng, box=random_box(rng),
                              occluder=(None, *OCCLUDERS)[i % 4])
        images.update(picture.image.tobytes())
        masks.update(picture.mask.tobytes())
    assert masks.hexdigest()[:16] == 'ca63000825cf34fc'
    assert images.hexdigest()[:16] == 'c98389b2ccc40970'


def test_shapes_types_and_labels():
    picture = studio(camera=3, seed=5)
    assert picture.image.shape == (128, 64, 3)
    assert picture.image.dtype == np.uint8
    assert picture.mask.shape == (128, 64)
    assert picture.mask.dtype == np.uint8
    assert set(np.unique(picture.mask)) == set(range(8))
    assert picture.joints.shape == (17, 2)
    assert picture.visible.all()
    assert picture.occluded == 0
    assert studio(size=(384, 192), camera=1).image.shape == (384, 192, 3)


def test_masks_lie_on_the_garments():
    "Each region's median colour in the studio is its garment's; shading changes brightness alone"
    picture = studio()
    top, lower = PLAIN.top_colour, PLAIN.lower_colour
    expected = {2: top, 3: top, 5: lower, 6: lower, 7: PLAIN.shoe_colour}
    for region, colour in expected.items():
        seen = np.median(chroma(picture.image[picture.mask == region].astype(float)), axis=0)
        np.testing.assert_allclose(seen, chroma(np.array(colour, float)), atol=.03)


def test_background_is_unlabelled_and_nothing_else_is():
    "In the studio the grey wall is background; the body is none of it, except for mixed pixels at its outline"
    picture = studio()
    wall = (picture.image == 150).all(-1)
    assert (picture.mask[wall] == 0).all()
    assert (picture.mask[~wall] > 0).mean() > .75   # the rest: outline and shadow


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('detail', WHERE)
def test_a_detail_changes_its_own_region_alone(view, detail):
    rng = stream('detail', detail)
    one, other, *_ = family(rng, detail)
    one, other = (replace(a, bag='none') for a in (one, other))
    pose = Pose(yaw=VIEWS[view], stride=.6)
    a, b = (draw_walker(p, pose) for p in (one, other))
    changed = (a.image != b.image).any(-1)
    if not changed.any(): assert detail in ('logo', 'pattern')  # may be out of sight
    allowed = np.isin(a.mask, list(WHERE[detail])) | np.isin(b.mask, list(WHERE[detail]))
    grown = np.zeros_like(allowed)   # a mixed pixel at the outline belongs to its neighbour
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1): grown |= np.roll(allowed, (dy, dx), (0, 1))
    assert (changed & ~grown).sum() <= .03 * changed.sum()   # slivers that no pixel's centre falls on


def test_shoes_change_with_the_same_camera_noise():
    "Nothing random hangs on the appearance"
    a, b = (studio(p, camera=1, seed=9) for p in (PLAIN, replace(PLAIN, shoe_colour=COLOURS['white'])))
    changed = (a.image != b.image).any(-1)
    assert changed.any()
    assert changed[:100].sum() == 0
    np.testing.assert_array_equal(a.mask, b.mask)


@pytest.mark.slow
@pytest.mark.parametrize('detail', DETAILS)
def test_details_are_seen_at_this_size(detail):
    "From front, back and sides together, every two of a family differ in many pixels, by much"
    for seed in range(3):
        four = family(stream('seen', seed, detail), detail)
        views = [[draw_walker(a, Pose(yaw=y)).image.astype(int) for y in VIEWS.values()] for a in four]
        for i in range(4):
            for j in range(i):
                most = max((np.abs(a - b).sum(-1) > 60).sum() for a, b in zip(views[i], views[j]))
                assert most >= 20, f'{detail}: {four[i]} against {four[j]} shows in {most} pixels'


def test_every_choice_can_be_drawn():
    for seed in range(40):
        rng = stream('any', seed)
        picture = draw_walker(random_appearance(rng), random_pose(rng), camera=seed % 6 + 1, seed=rng,
                              size=(64, 32))
        assert (picture.mask > 0).mean() > .1


@pytest.mark.parametrize('occluder', OCCLUDERS)
def test_occluders_are_background_and_hide(occluder):
    free = studio(camera=2, seed=3)
    shares = []
    for seed in range(12):
        covered = studio(camera=2, seed=seed, occluder=occluder)
        gone = (free.mask > 0) & (covered.mask == 0)
        kept = covered.mask > 0
        np.testing.assert_array_equal(covered.mask[kept], free.mask[kept])
        assert covered.occluded == pytest.approx(gone.sum() / (free.mask > 0).sum())
        x, y = covered.joints[~covered.visible].astype(int).T
        assert (covered.mask[y, x] == 0).all()
        shares.append(covered.occluded)
    assert .1 < np.mean(shares) < .6
    assert max(shares) < 1


def test_joints_lie_in_their_regions():
    "Seen from the front: ankles, knees and hips on legs, shoulders and elbows on arms, the nose on the head"
    picture = studio(pose=Pose(stride=0))
    x, y = picture.joints.astype(int).T
    found = dict(zip(COCO_JOINTS, picture.mask[y, x]))
    assert found['nose'] == found['left_eye'] == 1
    assert {found['left_elbow'], found['left_shoulder']} <= {2, 3, 4}
    assert found['left_wrist'] == 4
    assert found['left_knee'] in (5, 6)
    assert found['right_ankle'] in (6, 7)
    assert found['left_hip'] in (2, 5)
    assert picture.joints[5, 0] > picture.joints[6, 0]       # facing us, the left shoulder is on our right
    assert studio(pose=Pose(yaw=180)).joints[5, 0] < studio(pose=Pose(yaw=180)).joints[6, 0]


def test_the_left_view_walks_to_the_right_of_the_picture():
    picture = studio(pose=Pose(yaw=90))
    assert picture.joints[0, 0] > picture.joints[3, 0]
    assert [Pose(yaw=y).view for y in (350, 80, 190, 260)] == ['front', 'left', 'back', 'right']


def test_boxes_zoom_and_shift():
    joints = [studio(box=b).joints for b in (Box(), Box(zoom=1.5), Box(dx=.25, dy=-.1))]
    np.testing.assert_allclose(np.ptp(joints[1], axis=0), 1.5 * np.ptp(joints[0], axis=0), atol=.1)
    np.testing.assert_allclose(joints[2] - joints[0], np.tile([16, -12.8], (17, 1)), atol=.05)
    assert not studio(box=Box(zoom=1.5)).visible.all()


def test_an_empty_place():
    picture = draw_walker(None, camera=4, seed=1, occluder='pole')
    assert not picture.mask.any()
    assert not picture.visible.any()
    assert (picture.joints == -1).all()
    assert picture.occluded == 0


def test_cameras_differ_and_a_generator_moves_on():
    pictures = [studio(camera=c, seed=1).image.astype(int) for c in range(1, 7)]
    for i in range(6):
        for j in range(i): assert np.abs(pictures[i] - pictures[j]).mean() > 4
    rng = stream('moves')
    assert (studio(camera=1, seed=rng).image != studio(camera=1, seed=rng).image).any()
    np.testing.assert_array_equal(studio(camera=1, seed=4).image, studio(camera=CAMERAS[0], seed=4).image)


@pytest.mark.parametrize('kwargs,message', [
    (dict(camera=7), 'camera 7: use 1 to 6'),
    (dict(camera='a'), "camera 'a'"),
    (dict(occluder='tree'), "unknown occluder 'tree': use pole, bag, walker"),
    (dict(size=(8, 64)), r'size=\(8, 64\)'),
    (dict(pose=Pose(arms='wave')), "unknown arms 'wave': use one of swing")])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message): studio(**kwargs)
