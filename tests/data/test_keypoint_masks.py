"Masks from a keypoint network: a fake one of torchvision's interface, and the real one's interface untrained"

import os
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.data import keypoint_masks as module
from magnifier.data.catalog import CatalogWarning, find_masks, make_catalog
from magnifier.data.images import read_mask, write_mask
from magnifier.data.keypoint_masks import keypoint_network, largest_person, make_masks, regions_from_joints
from magnifier.regions import BODY_REGIONS
from magnifier.walkers.canvas import stream
from magnifier.walkers.pedestrian import OCCLUDERS, draw_walker, random_box, random_pose
from magnifier.walkers.person import random_appearance


# A person of 128 x 64 pixels, upright and facing us, in COCO's order
UPRIGHT = [(32, 14), (34, 12), (30, 12), (36, 13), (28, 13), (42, 28), (22, 28), (45, 46), (19, 46), (46, 62), (18, 62),
           (38, 64), (26, 64), (38, 92), (26, 92), (38, 116), (26, 116)]


class FakeNetwork(torch.nn.Module):
    "Finds, in an image whose mean red says how many, that many people, each larger and surer than the one before"
    def __init__(self):
        super().__init__()
        self.batches = []
        self.modes = []

    def forward(self, images):
        self.batches.append([tuple(x.shape) for x in images])
        self.modes.append((self.training, torch.is_grad_enabled()))
        assert all(x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 for x in images)
        return [people(round(float(x[0].mean()) * 10)) for x in images]


def people(n):
    side = torch.arange(1, n + 1).float()
    return dict(boxes=torch.stack([side * 0, side * 0, side, side], 1),
                scores=torch.linspace(.75, .95, n) if n else torch.zeros(0),
                keypoints=torch.arange(n).float()[:, None, None].expand(n, 17, 3).clone(),
                keypoints_scores=torch.full((n, 17), 5.))


@pytest.fixture
def drawn(monkeypatch):
    "What the drawing of limbs is asked for; it answers with a mask whose label is the first joint's x"
    calls = []
    def regions_from_joints(joints, size):
        calls.append((joints, size))
        return np.full(size, int(joints[0, 0]), np.uint8)
    monkeypatch.setattr(module, 'regions_from_joints', regions_from_joints)
    return calls


def picture(path, n_people, size=(8, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (round(n_people * 25.5), 0, 0)).save(path, format='PNG')


@pytest.fixture
def folder(tmp_path):
    for name, n, size in [('a/1.jpg', 3, (8, 16)), ('a/2.jpg', 2, (10, 20)), ('b/1.jpg', 2, (8, 16))]:
        picture(tmp_path/'set'/name, n, size)
    return tmp_path/'set'


def test_masks_are_made_where_they_are_looked_for(folder, drawn):
    network = FakeNetwork().train()
    report = make_masks(folder, network=network, bs=2, device='cpu', progress=False)
    assert report['result'].tolist() == ['made'] * 3
    assert [len(b) for b in network.batches] == [2, 1]
    assert network.batches[0] == [(3, 16, 8), (3, 20, 10)]
    assert network.modes == [(False, False)] * 2
    catalog = find_masks(make_catalog([dict(path=p, pid=1, camid=1, split='train') for p in report['path']]))
    assert catalog['mask'].tolist() == report['mask'].tolist()
    assert [int(read_mask(m).max()) for m in report['mask']] == [2, 1, 1]  # the largest of the people
    assert [size for _, size in drawn] == [(16, 8), (20, 10), (16, 8)]
    assert read_mask(report['mask'][1]).shape == (20, 10)
    assert drawn[0][0].shape == (17, 3)
    assert (drawn[0][0][:, 2] == 1).all()


def test_it_is_resumed(folder, drawn):
    write_mask(folder.with_name('set_ps_label')/'a'/'2.png', np.full((20, 10), 7))
    network = FakeNetwork()
    report = make_masks(folder, network=network, device='cpu', progress=False)
    assert report['result'].tolist() == ['made', 'already there', 'made']
    assert network.batches == [[(3, 16, 8)] * 2]
    assert (read_mask(report['mask'][1]) == 7).all()
    assert set(make_masks(folder, weights='never opened', progress=False)['result']) == {'already there'}


def test_no_person_is_no_file(folder, drawn, tmp_path):
    picture(folder/'a'/'1.jpg', 0)
    picture(folder/'b'/'1.jpg', 1)  # the joints of one person are drawn as label 0
    (folder/'b'/'2.jpg').write_bytes(b'')
    with pytest.warns(CatalogWarning, match=r'3 of 4 images have no mask: no person found in 2, .*first: .*a/1.jpg'):
        report = make_masks(folder, tmp_path/'out', network=FakeNetwork(), device='cpu', progress=False)
    assert report['result'].tolist() == ['no person', 'made', 'no person', 'failed']
    assert 'b/2.jpg' in report['problem'][3]
    assert [f for *_, files in os.walk(tmp_path/'out') for f in files] == ['2.png']


def test_a_batch_without_an_image(tmp_path, drawn):
    (tmp_path/'x.jpg').write_bytes(b'')
    network = FakeNetwork()
    with pytest.warns(CatalogWarning): make_masks([tmp_path/'x.jpg'], tmp_path/'out', network=network, progress=False)
    assert network.batches == []


def test_a_killed_run_keeps_what_it_made(folder, drawn):
    class Dies(FakeNetwork):
        def forward(self, images):
            if self.batches: raise KeyboardInterrupt
            return super().forward(images)
    with pytest.raises(KeyboardInterrupt): make_masks(folder, network=Dies(), bs=1, device='cpu', progress=False)
    assert make_masks(folder, network=FakeNetwork(), device='cpu',
                      progress=False)['result'].tolist() == ['already there', 'made', 'made']


def test_with_limbs_really_drawn(tmp_path):
    class Stands(torch.nn.Module):
        def forward(self, images):
            joints = torch.cat([torch.tensor(UPRIGHT).float(), torch.ones(17, 1)], 1)[None]
            return [dict(boxes=torch.tensor([[10., 5., 50., 125.]]), scores=torch.ones(1), keypoints=joints,
                         keypoints_scores=torch.full((1, 17), 9.))] * len(images)
    picture(tmp_path/'set'/'x.jpg', 1, (64, 128))
    report = make_masks(tmp_path/'set', network=Stands(), device='cpu', progress=False)
    mask = read_mask(report['mask'][0])
    assert mask.shape == (128, 64)
    assert set(np.unique(mask)) == set(range(8))
    height = [np.argwhere(mask == k)[:, 0].mean() for k in (1, 2, 5, 6, 7)]
    assert height == sorted(height)
    assert mask[14, 32] == 1
    assert mask[45, 32] == 2
    assert mask[37, 43] == 3
    assert mask[54, 46] == 4
    assert mask[80, 38] == 5
    assert mask[104, 38] == 6


def test_progress_bar(folder, drawn, capsys):
    make_masks(folder, network=FakeNetwork(), bs=1, device='cpu')
    assert '3/3' in capsys.readouterr().out


# --- who is meant

def test_the_largest_who_is_sure_enough():
    found = people(3)
    assert largest_person(found)[0, 0] == 2
    found['scores'][2] = .69
    assert largest_person(found)[0, 0] == 1
    assert largest_person(found, .5)[0, 0] == 2
    found['keypoints_scores'][1, :5] = 1.9
    joints = largest_person(found)
    assert joints.dtype == np.float32
    assert joints[:, 2].tolist() == [0] * 5 + [1] * 12
    assert largest_person(found, .7, 1)[:, 2].all()
    assert largest_person(found, .99) is None
    assert largest_person(people(0)) is None


# --- the network

def test_offline(monkeypatch):
    def offline(**kwargs): raise URLError('no route to host')
    monkeypatch.setattr(module, 'keypointrcnn_resnet50_fpn', offline)
    with pytest.raises(OSError,
                       match=r'could not be downloaded .*no route to host.*fetch https?://.*keypointrcnn.*\.pth where '
                             '.*weights=FILE, or --weights FILE in a shell.*magnifier_masks stripes'):
        keypoint_network()


def test_weights_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'keypointrcnn_resnet50_fpn', lambda **kwargs: torch.nn.Linear(2, 2))
    source = torch.nn.Linear(2, 2)
    torch.save(source.state_dict(), tmp_path/'w.pth')
    network = keypoint_network(tmp_path/'w.pth')
    assert (network.weight == source.weight).all()
    assert not network.training
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path/'other.pth')
    with pytest.raises(ValueError, match='other.pth does not hold the weights of torchvision'):
        keypoint_network(tmp_path/'other.pth')
    torch.save([1], tmp_path/'list.pth')
    with pytest.raises(ValueError, match='list.pth does not hold'): keypoint_network(tmp_path/'list.pth')
    with pytest.raises(FileNotFoundError): keypoint_network(tmp_path/'gone.pth')


@pytest.mark.slow
def test_the_real_network_has_the_interface(monkeypatch, tmp_path, drawn):
    "Untrained, so that what it finds means nothing"
    real = module.keypointrcnn_resnet50_fpn
    with torch.random.fork_rng():
        torch.manual_seed(0)
        few = dict(box_score_thresh=0., box_detections_per_img=3, rpn_post_nms_top_n_test=10)
        monkeypatch.setattr(module, 'keypointrcnn_resnet50_fpn',
                            lambda weights, **kw: real(weights=None, weights_backbone=None, **few, **kw))
        network = keypoint_network(short_side=64)
    picture(tmp_path/'set'/'x.png', 3, (16, 32))
    with pytest.warns(CatalogWarning, match='no person found in 1'):
        make_masks(tmp_path/'set', network=network, device='cpu', min_score=1.1, progress=False)
    with torch.inference_mode(): found, = network([torch.linspace(0, 1, 3 * 32 * 16).reshape(3, 32, 16)])
    assert len(found['scores'])
    assert largest_person(found, 0.).shape == (17, 3)


# --- regions around joints

# Somebody who stands and faces us, 100 pixels tall
STANDING = np.array([
    (32, 20), (33, 18), (31, 18), (35, 19), (29, 19), (42, 32), (22, 32), (43, 49), (21, 49), (43, 64), (21, 64),
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
    assert np.mean(list(found.values())) > .68, found
    assert min(found.values()) > .55, found


@pytest.mark.slow
def test_joints_behind_occluders_are_left_out():
    found = ious(60, occluded=True)
    assert np.mean(list(found.values())) > .45, found


def test_an_obvious_figure():
    mask = regions_from_joints(STANDING, (128, 64))
    assert mask.dtype == np.uint8
    assert mask.shape == (128, 64)
    assert set(np.unique(mask)) == set(range(8))
    expected = {
        1: [(32, 18), (32, 12)], 2: [(32, 35), (32, 50)], 3: [(43, 42), (21, 42)], 4: [(43, 58), (21, 58)],
        5: [(37, 72), (27, 72)], 6: [(37, 97), (27, 97)], 7: [(37, 112), (27, 112)], 0: [(32, 97), (5, 5), (60, 60)]}
    for region, points in expected.items():
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
    assert mask[58, 43] != 4
    assert mask[58, 21] == 4
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
@settings(deadline=None)
def test_any_joints_give_a_mask(joints, h, w):
    mask = regions_from_joints(np.array(joints), (h, w))
    assert mask.shape == (h, w)
    assert mask.dtype == np.uint8
    assert mask.max() <= 7


def test_all_joints_in_one_point(): assert not regions_from_joints(np.full((17, 2), 9.), (128, 64)).any()


@pytest.mark.parametrize('joints,size,message', [
    (np.zeros((16, 2)), (128, 64), r'joints of shape \(16, 2\): use \(17, 2\) or \(17, 3\), COCO order'),
    (np.zeros((17, 4)), (128, 64), r'\(17, 4\)'), (STANDING, (0, 64), r'size=\(0, 64\): use \(height, width\)')])
def test_bad_joints(joints, size, message):
    with pytest.raises(ValueError, match=message): regions_from_joints(joints, size)
