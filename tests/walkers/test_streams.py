import csv
import json
from datetime import datetime
import numpy as np
import pytest
from PIL import Image
from magnifier.walkers.canvas import stream
from magnifier.walkers.scene import Seen
from magnifier.walkers.streams import _Tracker, walkers_streams

SMALL = dict(people=3, cameras=2, minutes=.1, fps=5, size=(144, 256))


@pytest.fixture(scope='module')
def streams(tmp_path_factory): return walkers_streams(tmp_path_factory.mktemp('streams')/'small', video=False, **SMALL)


def rows(file):
    with open(file, newline='') as f: return list(csv.DictReader(f))


def lines(file): return [counted_from_0(line) for line in file.read_text().splitlines()]


def counted_from_0(line):
    "A line's numbers, with its pixels as arrays count them"
    frame, person, x, y, *others = map(float, line.split(','))
    return [frame, person, x - 1, y - 1, *others]


def test_the_layout(streams):
    found = {p.name for p in streams.iterdir()}
    of_cameras = {f'cam{c}{ending}' for c in (1, 2) for ending in ('', '.gt.txt', '.txt', '_masks')}
    assert found == of_cameras | {'cameras.csv', 'truth.csv', 'people.json', 'streams.json'}
    assert [row['file'] for row in rows(streams/'cameras.csv')] == ['cam1', 'cam2']
    assert len(list((streams/'cam1').iterdir())) == len(list((streams/'cam1_masks').iterdir())) == 30
    assert len(json.loads((streams/'people.json').read_text())) == 3


@pytest.mark.parametrize('camera', [1, 2])
def test_boxes_hold_what_is_seen_of_each_person(streams, camera):
    "Against the masks: every pixel of a person lies in the box, which it touches on all sides where nothing hides it"
    gt = lines(streams/f'cam{camera}.gt.txt')
    assert gt
    for frame in range(1, 31):
        mask = np.array(Image.open(streams/f'cam{camera}_masks'/f'{frame:06d}.png'))
        present = {int(line[1]): line for line in gt if line[0] == frame}
        assert set(np.unique(mask >> 3)) - {0} <= set(present)
        for person, (_, _, x, y, w, h, conf, kind, visibility) in present.items():
            there = (mask >> 3) == person
            assert (visibility > 0) == there.any()
            rows, columns = np.nonzero(there)
            assert ((x <= columns) & (columns < x + w)).all()
            assert ((y <= rows) & (rows < y + h)).all()
            if visibility == 1:
                assert (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == (x, y, w, h)
            assert 0 <= x < x + w <= 256
            assert 0 <= y < y + h <= 144
            assert (conf, kind) == (1, 1)


@pytest.mark.parametrize('camera', [1, 2])
def test_boxes_read_back_cut_out_exactly_who_they_name(streams, camera):
    """By `read_mot`, which counts pixels from 0, against the masks: the box of who is seen whole is the extent
    of their pixels"""
    from magnifier.gallery.video import read_mot
    boxes = read_mot(streams/f'cam{camera}.gt.txt')
    gt = {tuple(line[:2]): line for line in lines(streams/f'cam{camera}.gt.txt')}
    whole = 0
    for box in boxes.itertuples():
        if gt[box.frame, box.track][8] < 1: continue
        mask = np.array(Image.open(streams/f'cam{camera}_masks'/f'{box.frame:06d}.png')) >> 3
        left, top, right, bottom = int(box.left), int(box.top), int(box.left + box.width), int(box.top + box.height)
        columns, rows = (mask == box.track).any(0), (mask == box.track).any(1)
        assert columns[left:right].sum() == columns.sum() > 0
        assert rows[top:bottom].sum() == rows.sum() > 0
        assert columns[[left, right - 1]].all()
        assert rows[[top, bottom - 1]].all()
        whole += 1
    assert whole


def test_truth_says_who_each_track_is(streams):
    cameras = {row['camera']: row for row in rows(streams/'cameras.csv')}
    truth = rows(streams/'truth.csv')
    assert truth
    for row in truth:
        gt, tracks = lines(streams/f'cam{row["camera"]}.gt.txt'), lines(streams/f'cam{row["camera"]}.txt')
        frames = [line for line in tracks if line[1] == int(row['track'])]
        start = datetime.fromisoformat(cameras[row['camera']]['start'])
        first, last = ((datetime.fromisoformat(row[k]) - start).total_seconds() * 5 + 1 for k in ('from', 'to'))
        assert frames[0][0] == pytest.approx(first, abs=.01)
        assert frames[-1][0] == pytest.approx(last, abs=.01)
        for frame, _, x, y, w, h, *_ in frames:
            whole = next(line for line in gt if line[:2] == [frame, float(row['person'])])
            assert abs(x + w / 2 - whole[2] - whole[4] / 2) < whole[4]


def test_a_track_breaks_where_somebody_was_hidden_for_more_than_a_second():
    tracker = _Tracker(5, stream('tracker'))
    box = (10, 10, 20, 60)
    frames = [1, 2, 3, 8, 9, 15, 16]  # gaps of five frames, a second, and of six
    found = []
    for frame in range(1, 20):
        seen = Seen(7, box, box, 1.) if frame in frames else Seen(7, box, None, 0.)
        found += [counted_from_0(line) for line in tracker.lines(frame, [seen])]
    assert [(f, t) for f, t, *_ in found] == [(1, 1), (2, 1), (3, 1), (8, 1), (9, 1), (15, 2), (16, 2)]
    assert tracker.spans == {1: (7, 1, 9), 2: (7, 15, 16)}
    assert all(np.abs(np.subtract(line[2:6], box)).max() <= .03 * 60 + .05 for line in found)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_frames(streams, tmp_path):
    again = walkers_streams(tmp_path/'again', video=False, **SMALL)
    for file in sorted(p.relative_to(streams) for p in streams.rglob('*') if p.is_file()):
        assert (again/file).read_bytes() == (streams/file).read_bytes(), file
    other = walkers_streams(tmp_path/'other', video=False, masks=False, seed=1, **SMALL)
    assert (other/'cam1'/'000001.jpg').read_bytes() != (streams/'cam1'/'000001.jpg').read_bytes()
    assert not (other/'cam1_masks').exists()


def test_a_second_call_finds_them(streams, monkeypatch):
    monkeypatch.setattr('magnifier.walkers.streams._draw', None)
    assert walkers_streams(str(streams), video=False, **SMALL) == streams
    with pytest.raises(ValueError, match='holds walkers drawn with .*choose another path'):
        walkers_streams(streams, video=False, seed=5, **SMALL)


def test_video_shows_the_frames(tmp_path):
    av = pytest.importorskip('av')
    short = dict(people=3, cameras=1, minutes=.02, size=(144, 256), masks=False)
    root = walkers_streams(tmp_path/'video', **short)
    frames = walkers_streams(tmp_path/'frames', video=False, **short)
    with av.open(str(root/'cam1.mp4')) as video:
        assert video.streams.video[0].average_rate == 5
        images = [frame.to_ndarray(format='rgb24') for frame in video.decode(video=0)]
    assert len(images) == 6
    for number, image in enumerate(images, 1):
        still = np.array(Image.open(frames/'cam1'/f'{number:06d}.jpg'), int)
        assert np.abs(image.astype(int) - still).mean() < 6


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('magnifier.walkers.scene.Stage.frame', full)
    with pytest.raises(OSError, match='No space left'): walkers_streams(tmp_path/'set', video=False, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('kwargs,error,message', [
    (dict(people=0), ValueError, 'people=0: use 1 or more, at most 999'),
    (dict(cameras=7), ValueError, 'cameras=7: use 1 or more, at most 6'),
    (dict(cameras=1.5), TypeError, 'cameras=1.5: use a whole number'),
    (dict(minutes=-1), ValueError, 'minutes=-1: use a number from 0'),
    (dict(minutes=0), ValueError, 'minutes=0: too short for a frame'),
    (dict(fps=0), ValueError, 'fps=0'),
    (dict(size=(100, 101)), ValueError, r'size=\(100, 101\): use \(height, width\), even'),
    (dict(start='noon'), ValueError, "start='noon': use a date")])
def test_bad_arguments(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message): walkers_streams(tmp_path/'set', **kwargs)
    assert list(tmp_path.iterdir()) == []
