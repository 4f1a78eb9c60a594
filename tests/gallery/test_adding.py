"Adding videos under attack: killed processes, full disks, videos that end early, names and times that collide"
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gallery_stub import WALKS, Watching, paint

from magnifier.gallery.gallery import Gallery, GalleryWarning
from magnifier.gallery.video import write_mot

pytest.importorskip('lance')
CHILD = Path(__file__).with_name('gallery_child.py')
START = '2026-01-31T08:00:00'


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Two cameras: six people, and four of them later; with files of boxes"
    root = tmp_path_factory.mktemp('videos')
    for camera, walks in WALKS.items():
        write_mot(paint(root/f'cam{camera}', walks, seed=camera), root/f'cam{camera}.txt')
    return root


def follow(g, videos, camera=1, embedder=None, **kwargs):
    kwargs = dict(start=START, fps=5, bs=4, progress=False) | kwargs
    boxes = kwargs.pop('boxes', videos/f'cam{camera}.txt')
    return g.add_video(embedder or Watching(), videos/f'cam{camera}', boxes, camera=camera, **kwargs)


def everything(uri):
    "Tracklets, their embeddings, and people, as a gallery has them"
    with Gallery(uri) as g:
        table, vectors, _ = g.tracklets()
        order = np.argsort(table['tracklet'].to_numpy())
        return table.iloc[order].reset_index(drop=True), vectors[order], g.images()[['path', 'pid', 'camid', 'time']]


def same(found, wanted):
    pd.testing.assert_frame_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-6)
    pd.testing.assert_frame_equal(found[2].sort_values('path', ignore_index=True),
                                  wanted[2].sort_values('path', ignore_index=True))


def start(uri, videos):
    command = [sys.executable, CHILD, str(uri), 'follow', '0', str(videos)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def undisturbed(videos, tmp_path_factory):
    "What is there after a run that nobody killed, and how many seconds it worked"
    uri = tmp_path_factory.mktemp('undisturbed')/'people'
    with start(uri, videos) as child:
        assert child.stdout.readline() == 'begun\n'
        begun = time.perf_counter()
        child.wait(120)
        assert not child.returncode, child.stderr.read()
    return everything(uri), time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(6))
def test_killed_at_any_time_and_run_again_everything_is_as_if_undisturbed(videos, undisturbed, tmp_path, seed):
    uri, (wanted, seconds) = tmp_path/'people', undisturbed
    with start(uri, videos) as child:
        assert child.stdout.readline() == 'begun\n'
        time.sleep(float(np.random.default_rng(seed).uniform(0, seconds)))
        child.send_signal(signal.SIGKILL)
    with start(uri, videos) as child:
        child.wait(120)
        assert not child.returncode, child.stderr.read()
    same(everything(uri), wanted)


def test_a_full_disk_while_crops_are_kept_loses_nothing(videos, tmp_path, monkeypatch):
    from magnifier.gallery import adding
    aside, left = adding.aside, iter(range(10))

    def full(file, **kwargs):
        if next(left, None) is None: raise OSError(errno.ENOSPC, 'No space left on device', str(file))
        return aside(file, **kwargs)
    monkeypatch.setattr(adding, 'aside', full)
    with Gallery(tmp_path/'people') as g:
        with pytest.raises(OSError, match='No space left.*crops'): follow(g, videos, every=2, crops=tmp_path/'crops')
        assert len(g) == 8  # two batches were whole
        assert all(Path(path).is_file() for path in g.images()['path'])
    monkeypatch.setattr(adding, 'aside', aside)
    with Gallery(tmp_path/'people') as g: assert follow(g, videos, every=2, crops=tmp_path/'crops').added == 16
    with Gallery(tmp_path/'other') as g: follow(g, videos, every=2, crops=tmp_path/'crops')
    same(everything(tmp_path/'people'), everything(tmp_path/'other'))


def test_crops_where_nothing_can_be_written(videos, tmp_path):
    (tmp_path/'file').write_text('no folder')
    with Gallery(tmp_path/'people') as g:
        with pytest.raises(OSError, match='cannot write .*file/crops'): follow(g, videos, crops=tmp_path/'file'/'crops')
        assert len(g) == 0


@pytest.mark.skipif(os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='may write everywhere')
def test_a_read_only_folder(videos, tmp_path):
    (tmp_path/'locked').mkdir()
    (tmp_path/'locked').chmod(0o500)
    with Gallery(tmp_path/'locked'/'people') as g, pytest.raises(OSError, match='locked'): follow(g, videos)


def test_people_have_the_address_of_the_video_as_it_was_given(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(videos)
    with Gallery(tmp_path/'people') as g:
        follow(g, Path('.'), boxes='cam1.txt')
        assert g.images()['path'].str.startswith('cam1#frame=').all()
    with Gallery(tmp_path/'others') as g:
        g.add_video(Watching(), './cam1', 'cam1.txt', camera=1, start=START, fps=5, progress=False)
        assert g.images()['path'].str.startswith('./cam1#frame=').all()


def test_a_video_that_ends_in_the_middle_goes_on_when_it_is_whole(tmp_path):
    av = pytest.importorskip('av')
    file, noise = tmp_path/'cam1.avi', np.random.default_rng(0)
    with av.open(str(file), 'w') as container:  # a container that is read without its end
        stream = container.add_stream('mpeg4', rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for _ in range(30):
            frame = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')): container.mux(packet)
        for packet in stream.encode(): container.mux(packet)
    boxes = pd.DataFrame(dict(frame=range(1, 31), track=[1]*15 + [2]*15, left=4, top=4, width=8, height=16))
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole)//2])
    with Gallery(tmp_path/'people') as g:
        add = lambda: g.add_video(Watching(), file, boxes, camera=1, start=START, progress=False)
        with pytest.warns(GalleryWarning, match=r'of 30 files .*no such frame'): first = add()
        assert 0 < first.added < 30
        # The decoder may repair the damaged last frame by the one before, whose content is known
        assert first.added + first.known + len(first.skipped) == 30
        assert first.known <= 1
        file.write_bytes(whole)
        again = add()
        assert first.added + again.added >= 30  # the damaged frame may count twice
        assert not len(again.skipped)
        assert g.tracklets().table['tracklet'].tolist() == ['1/cam1/1', '1/cam1/2']


def test_tracks_of_one_number_in_two_cameras_are_two_tracklets(videos, tmp_path):
    with Gallery(tmp_path/'people') as g:
        for camera in (1, 2): follow(g, videos, camera, every=4)
        names = g.tracklets().table['tracklet']
        assert names.is_unique
        assert {'1/cam1/0', '2/cam2/0'} <= set(names)


def test_videos_of_one_name_on_two_days_are_not_mixed_up(videos, tmp_path):
    paint(tmp_path/'cam1', {200: (1, 8, 0)}, seed=9)
    with Gallery(tmp_path/'people') as g:
        follow(g, videos, every=4)
        before = len(g)
        with pytest.raises(ValueError, match=r'tracklet 1/cam1/0 of another time \(2026-01-31 08:00:00\)'):
            follow(g, tmp_path, boxes=videos/'cam1.txt', start='2026-02-01T08:00:00')
        assert len(g) == before
        assert follow(g, videos, every=8).added == 0  # the same video again, by fewer boxes


def test_two_recordings_of_one_camera_at_one_time_share_nobody(videos, tmp_path):
    "Who is in both at once would be at one place twice: a sign of a wrong clock, so they stay apart"
    (tmp_path/'again').mkdir()
    boxes = paint(tmp_path/'again'/'cam1', {100: (1, 8, 0)}, seed=5)
    with Gallery(tmp_path/'people') as g:
        follow(g, videos, every=4)
        (tmp_path/'again'/'cam1').rename(tmp_path/'again'/'late')
        g.add_video(Watching(), tmp_path/'again'/'late', boxes, camera=1, start=START, fps=5, progress=False)
        people = g.people(threshold=.8, centre=False).set_index('tracklet')['person']
        assert people['1/late/0'] != people['1/cam1/0']


def test_another_models_video_is_refused_whole(videos, tmp_path):
    with Gallery(tmp_path/'people') as g:
        follow(g, videos, every=4)
        with pytest.raises(ValueError, match='was made by the model colours, and this one is other'):
            follow(g, videos, 2, Watching('other'))
        assert g.tracklets().table['camid'].unique().tolist() == [1]
