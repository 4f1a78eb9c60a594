"From frames and boxes to who was where, by commands"
import re

import numpy as np
import pandas as pd
import pytest

from magnifier.cli.gallery import magnifier_delete, magnifier_index, magnifier_people
from magnifier.gallery.video import read_mot

pytest.importorskip('lance')
pytest.importorskip('av')


class Bands:
    "Embeds an image by the colours of three bands, from top to bottom"
    fingerprint = 'bands'
    def embed(self, images): return np.stack([np.asarray(i.resize((1, 3)), np.float32).ravel() - 110 for i in images])


@pytest.fixture(scope='module')
def streams(tmp_path_factory):
    from magnifier.walkers.streams import walkers_streams
    return walkers_streams(tmp_path_factory.mktemp('streams')/'s', people=3, cameras=2, minutes=.3, size=(144, 256),
                           masks=False)


@pytest.fixture
def gallery(streams, tmp_path, monkeypatch, capsys):
    "Both cameras, added by the command"
    monkeypatch.setattr('magnifier.cli.gallery.open_embedder', lambda learner: Bands())
    for camera in pd.read_csv(streams/'cameras.csv').itertuples():
        magnifier_index(video=str(streams/f'cam{camera.camera}.mp4'), boxes=str(streams/f'cam{camera.camera}.txt'),
                        camera=camera.camera, start=camera.start, gallery=str(tmp_path/'people'))
    assert re.search(r'[1-9]\d* images added', capsys.readouterr().out)
    return tmp_path/'people'


def test_who_was_where(gallery, streams, tmp_path, capsys):
    magnifier_people(str(gallery), threshold=.5, csv=str(tmp_path/'people.csv'), mot=str(tmp_path/'mot'),
                     save=str(tmp_path/'people.png'))
    table = pd.read_csv(tmp_path/'people.csv')
    assert list(table) == ['person', 'camera', 'from', 'to', 'tracklet', 'certainty', 'images']
    assert len(capsys.readouterr().out.splitlines()) == 1 + table['person'].nunique()
    assert (tmp_path/'people.png').stat().st_size > 5000
    boxes = {file.stem: read_mot(file) for file in (tmp_path/'mot').iterdir()}
    assert set(boxes) == {'cam1_cam1', 'cam2_cam2'}
    assert sum(map(len, boxes.values())) == table['images'].sum()
    assert set(boxes['cam1_cam1']['track']) == set(table['person'][table['camera'] == 1])


@pytest.mark.parametrize('kwargs, said', [
    (dict(video='cam1.mp4', camera=1), 'cam1.mp4: no such video'),
    (dict(video='cam1.mp4', src='crops'), 'name one of'),
    (dict(video='cam1.mp4'), 'name the camera that took it, as --camera 1'),
])
def test_a_mistake_is_one_line(kwargs, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said): magnifier_index(**kwargs)
    assert not list(tmp_path.iterdir())


def test_travel_is_read_or_refused(gallery, capsys):
    magnifier_people(str(gallery), threshold=.5, travel='1-2:3600')
    assert all(',' not in line.split('  ')[-4] for line in capsys.readouterr().out.splitlines()[1:])
    with pytest.raises(SystemExit, match='as 1-2:30'): magnifier_people(str(gallery), travel='1:2')
    with pytest.raises(SystemExit, match='no such gallery'): magnifier_people(str(gallery) + '2')


def test_who_is_deleted_has_no_tracklets(gallery, capsys):
    from magnifier.gallery.gallery import Gallery
    magnifier_people(str(gallery), threshold=.5)
    with Gallery(gallery) as g:
        before = g.tracklets().table
        person = int(before['pid'].iat[0])
        magnifier_delete(str(gallery), pids=str(person))
        left = g.tracklets().table
        assert set(left['tracklet']) == set(before['tracklet'][before['pid'] != person])
        magnifier_delete(str(gallery), older_than='30d')  # the streams are of January 2026
        assert not len(g.tracklets())
