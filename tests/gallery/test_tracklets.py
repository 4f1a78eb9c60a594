"Tracklets and people in a gallery, from frames that a test paints: who was where is known"
import numpy as np
import pandas as pd
import pytest
from gallery_stub import WALKS, Watching, paint, person
from PIL import Image

from magnifier.data.images import read_image
from magnifier.gallery.entries import stored_image
from magnifier.gallery.gallery import Gallery, GalleryWarning
from magnifier.gallery.people import people_boxes, summarise
from magnifier.gallery.video import box_of, crop_address, read_crop, read_mot, write_mot

pytest.importorskip('lance')
START = '2026-01-31T08:00:00'


@pytest.fixture(scope='module')
def cameras(tmp_path_factory):
    "Two cameras, six people in the first and four of them in the second; at most three at once"
    root = tmp_path_factory.mktemp('cameras')
    return root, {1: paint(root/'cam1', WALKS[1]), 2: paint(root/'cam2', WALKS[2], seed=1)}


def filled(place, cameras, embedder=None, **kwargs):
    root, boxes = cameras
    g = Gallery(**place)
    for camera, table in boxes.items():
        g.add_video(embedder or Watching(), root/f'cam{camera}', table, camera=camera, start=START, fps=5,
                    progress=False, **kwargs)
    return g


@pytest.fixture(scope='module')
def followed(shared_place, cameras):
    "A gallery of both cameras that tests only read"
    with filled(shared_place, cameras) as g: yield g


def test_tracks_become_tracklets(followed):
    table, vectors, _ = followed.tracklets()
    assert len(table) == 10
    assert table['images'].tolist() == [8]*10
    assert len(followed) == 80
    first = table.iloc[0]
    assert first.tracklet == '1/cam1/0'
    assert first.start == pd.Timestamp(START, tz='UTC')
    assert first.end == pd.Timestamp(START, tz='UTC') + pd.Timedelta(7/5, 's')
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_a_tracklets_embedding_is_the_weighted_mean_of_its_images(followed):
    table, vectors, _ = followed.tracklets()
    rows = followed.store.read(columns=('tracklet', 'vector', 'visibility'))
    for name, vector in zip(table['tracklet'], vectors):
        mine = [i for i, other in enumerate(rows['tracklet']) if other == name]
        mean = sum(rows['vector'][i] * rows['visibility'][i] for i in mine)
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_the_best_image_shows_the_most():
    columns = dict(tracklet=['a', 'a', 'b'], camid=[1, 1, 2], time=[5., 6., 0.], pid=[None, 7, None],
                   path=['x', 'y', 'z'], key=list('kl') + ['m'],
                   visibility=[.2, .9, None], vector=np.eye(3, dtype=np.float32))
    table, vectors, halves = summarise(columns)
    assert table['tracklet'].tolist() == ['b', 'a']
    assert table['path'].tolist() == ['z', 'y']
    assert table['pid'].tolist() == [pd.NA, 7]
    assert np.allclose(vectors[1], np.array([.2, .9, 0]) / np.hypot(.2, .9))
    assert np.allclose(halves[1], np.eye(3)[:2])  # an image each, the earlier one first
    assert np.allclose(halves[0], [[0, 0, 1], [0, 0, 0]])  # one image has no later half


def test_no_tracklets():
    nothing = dict.fromkeys(('tracklet', 'camid', 'time', 'pid', 'path', 'key', 'visibility'), [])
    assert len(summarise({**nothing, 'vector': np.empty((0, 4), np.float32)})) == 0


def test_added_again_nothing_is_new(followed, cameras):
    root, boxes = cameras
    embedder = Watching()
    added = followed.add_video(embedder, root/'cam1', boxes[1], camera=1, start=START, fps=5, progress=False)
    assert added[:2] == (0, 48)
    assert embedder.n == 0


def test_every_third_box_of_each_track(place, cameras):
    with filled(place, cameras, every=3) as g: assert g.tracklets().table['images'].tolist() == [3]*10


def test_boxes_may_be_a_file(place, cameras, tmp_path):
    root, boxes = cameras
    write_mot(boxes[1], tmp_path/'cam1.txt')
    with Gallery(**place) as g:
        assert g.add_video(Watching(), root/'cam1', tmp_path/'cam1.txt', camera=1, fps=5,
                           progress=False).added == len(read_mot(tmp_path/'cam1.txt'))


def test_boxes_without_a_frame_are_told(place, cameras):
    root, boxes = cameras
    late = pd.concat([boxes[1], pd.DataFrame([(99, 0, 0, 0, 8, 16), (1, 50, 200, 0, 8, 16)], columns=boxes[1].columns)],
                     ignore_index=True)
    with Gallery(**place) as g, pytest.warns(GalleryWarning, match='2 of 50'):
        added = g.add_video(Watching(), root/'cam1', late, camera=1, fps=5, progress=False)
    assert added.skipped['path'].tolist() == [crop_address(root/'cam1', 99, (0, 0, 8, 16)),
                                              crop_address(root/'cam1', 1, (200, 0, 8, 16))]


def test_kept_crops_are_the_people(place, cameras, tmp_path):
    with filled(place, cameras, crops=tmp_path/'crops') as g:
        table = g.tracklets().table
        assert read_image(table['path'][0]).size == (8, 16)
        assert len(list((tmp_path/'crops').rglob('*.png'))) == 80
        check_shown(table.iloc[0], int(table['path'][0][-10:-4]), cameras)


def test_an_address_leads_back_to_the_person(cameras):
    root, boxes = cameras
    box = boxes[1].iloc[0]
    address = crop_address(root/'cam1', box.frame, box[['left', 'top', 'width', 'height']])
    assert box_of(address) == (str(root/'cam1'), 1, [0, 10, 8, 16])
    frame = np.asarray(Image.open(root/'cam1/000001.png'))
    assert np.array_equal(np.asarray(read_crop(address)), frame[10:26, 0:8])
    assert box_of('people/0001.jpg') is None


def test_what_was_stored_can_be_looked_at(followed, cameras):
    best = followed.tracklets().table.iloc[0]
    check_shown(best, box_of(best.path)[1], cameras)


def check_shown(best, frame, cameras):
    assert frame in (4, 5)  # the middle of a track of eight frames that all show as much
    image = stored_image(best.path, best.key)
    assert image.size == (8, 16)
    wanted = read_crop(crop_address(cameras[0]/'cam1', frame, (0, 10, 8, 16)))
    assert np.array_equal(np.asarray(image), np.asarray(wanted))


def test_people_are_who_they_are(place, cameras):
    with filled(place, cameras, every=4) as g:
        people = g.people(threshold=.8, centre=False)
        walks = {1: [100, 101, 102, 103, 104, 105], 2: [103, 100, 105, 101]}
        truth = [walks[row.camid][int(row.tracklet.rsplit('/', 1)[1])] for row in people.itertuples()]
        assert len(set(zip(people['person'], truth))) == people['person'].nunique() == 6
        assert (people['certainty'] >= 0).all()
        assert g.images()['pid'].notna().all()


def test_people_without_a_threshold(followed):
    assert followed.people(centre=False, save=False)['person'].nunique() == 6
    assert followed.images()['pid'].isna().all()


def test_new_tracklets_join_people_that_exist(place, cameras):
    root, boxes = cameras
    with Gallery(**place) as g:
        g.add_video(Watching(), root/'cam1', boxes[1], camera=1, start=START, fps=5, every=4, progress=False)
        before = g.people(threshold=.8, centre=False).set_index('tracklet')['person']
        g.add_video(Watching(), root/'cam2', boxes[2], camera=2, start=START, fps=5, every=4, progress=False)
        after = g.people(threshold=.8, centre=False).set_index('tracklet')['person']
        assert after[before.index].equals(before)
        assert after.nunique() == 6


def test_travel_keeps_apart_who_cannot_have_walked(followed):
    people = followed.people(threshold=.8, centre=False, travel={(1, 2): 3600}, save=False)
    assert people['person'].nunique() == 10


def test_boxes_go_out_with_the_people_as_ids(place, cameras, tmp_path):
    for crops in (None, tmp_path/'crops'):
        with filled(place, cameras, crops=crops) as g:
            g.people(threshold=.8, centre=False)
            boxes = people_boxes(g.store)
            assert set(boxes) == {'cam1_cam1', 'cam2_cam2'}
            assert len(boxes['cam1_cam1']) == 48
            wanted = cameras[1][1].sort_values(['frame', 'left'], ignore_index=True)
            got = boxes['cam1_cam1'].sort_values(['frame', 'left'], ignore_index=True)
            assert np.array_equal(got[['frame', 'left', 'top', 'width', 'height']],
                                  wanted[['frame', 'left', 'top', 'width', 'height']])
            assert got.groupby(wanted['track'])['track'].nunique().tolist() == [1]*6


def test_a_tracklet_finds_the_same_person_elsewhere(followed):
    hits = followed.search_tracklets('1/cam1/0', k=3, not_camera=1)
    assert hits.table['tracklet'][0] == '2/cam2/1'
    assert hits.table['camid'].tolist() == [2, 2, 2]
    assert '1/cam1/0' not in followed.search_tracklets('1/cam1/0', k=20).table['tracklet'].tolist()


def test_an_image_finds_tracklets(followed):
    hits = followed.search_tracklets(person(104), Watching(), k=1)
    assert hits.table['tracklet'].tolist() == ['1/cam1/4']
    with pytest.raises(ValueError, match='pass embedder='): followed.search_tracklets(person(104))


def test_deleting_a_persons_images_deletes_their_tracklets(place, cameras):
    with filled(place, cameras, every=4) as g:
        people = g.people(threshold=.8, centre=False)
        gone = people['person'].iat[0]
        g.delete(pids=[gone])
        assert set(g.tracklets().table['tracklet']) == set(people['tracklet'][people['person'] != gone])


def test_what_is_no_camera_is_refused(place, cameras):
    root, boxes = cameras
    with Gallery(**place) as g:
        with pytest.raises(ValueError, match='has no tracklets'): g.people()
        with pytest.raises(ValueError, match='give fps'): g.add_video(Watching(), root/'cam1', boxes[1], camera=1)
        with pytest.raises(ValueError, match='every=0: a whole number'):
            g.add_video(Watching(), root/'cam1', boxes[1], camera=1, fps=5, every=0)
        with pytest.raises(ValueError, match='no boxes for'):
            g.add_video(Watching(), root/'cam1', boxes[1].iloc[:0], camera=1, fps=5)
        with pytest.raises(TypeError, match='camera'):
            g.add_video(Watching(), root/'cam1', boxes[1], camera='front', fps=5)
