"The gallery's commands as a shell sees them; from frames and boxes to who was where; the page before it serves"
import json
import re

import numpy as np
import pandas as pd
import pytest

from magnifier.cli.gallery import (magnifier_app, magnifier_delete, magnifier_index, magnifier_people,
                                   magnifier_search)
from magnifier.gallery import gallery
from magnifier.gallery.gallery import Gallery
from magnifier.gallery.video import read_mot

pytest.importorskip('lance')


@pytest.fixture
def exported(learn, tmp_path):
    learn.path = tmp_path
    learn.export('learner.pkl')
    return str(tmp_path/'learner.pkl')


@pytest.fixture
def crops(catalog, tmp_path):
    from shutil import copy
    folder = tmp_path/'crops'
    folder.mkdir()
    for path in catalog[catalog.split == 'gallery']['path'].iloc[:12]: copy(path, folder)
    return folder


@pytest.mark.slow
def test_index_search_delete(exported, crops, tmp_path, capsys):
    db, image = str(tmp_path/'people'), str(sorted(crops.iterdir())[4])
    def told(command, *args, **kwargs):
        command(*args, gallery=db, **kwargs) if command is not magnifier_delete else command(db, *args, **kwargs)
        return capsys.readouterr().out
    (crops/'bad.png').write_text('x')
    first = told(magnifier_index, str(crops), learner=exported, regions=True)
    assert '12 images added, 0 known; 1 unreadable (first: ' in first
    assert json.loads(told(magnifier_index, str(crops), learner=exported, json=True)) == dict(
        gallery=db, added=0, known=12, unreadable=[str(crops/'bad.png')], images=12)
    drawn = str(tmp_path/'hits.png')
    hits = json.loads(told(magnifier_search, image, learner=exported, k=3, json=True, save=drawn))
    assert hits[0]['path'] == image
    assert hits[0]['similarity'] == pytest.approx(1, abs=1e-4)
    assert hits[0]['time'] is None
    assert (tmp_path/'hits.png').exists()
    camera, pid = hits[0]['camid'], hits[0]['pid']
    others = json.loads(told(magnifier_search, image, learner=exported, k=12, json=True, not_camera=str(camera)))
    assert others
    assert camera not in {h['camid'] for h in others}
    assert told(magnifier_search, image, learner=exported, cameras='77').strip() == 'no hits'
    people = json.loads(told(magnifier_search, image, learner=exported, k=12, json=True, by_identity=True))
    assert len({p['pid'] for p in people}) == len(people)
    assert sum(p['images'] for p in people) == 12
    assert 'similarity' in told(magnifier_search, image, learner=exported, rerank=True)
    assert 'images deleted' in told(magnifier_delete, pids=str(pid))
    with pytest.raises(SystemExit, match=f'no image of {db} matches'):
        told(magnifier_delete, pids=str(pid))
    left = json.loads(told(magnifier_search, image, learner=exported, k=12, json=True))
    assert pid not in {hit['pid'] for hit in left}


@pytest.mark.parametrize('call, message', [
    (lambda db, crops: magnifier_search('x.png', gallery=db), 'no such gallery; make one with'),
    (lambda db, crops: magnifier_delete(db, pids='3'), 'no such gallery'),
    (lambda db, crops: magnifier_index('/no/crops', gallery=db), 'is not a folder'),
    (lambda db, crops: magnifier_index('/no/crops.csv', gallery=db), 'no such file'),
    (lambda db, crops: magnifier_index(crops, gallery=db, learner='/no/learner.pkl'), 'no such learner; train one'),
    (lambda db, crops: magnifier_index(crops, gallery=db, learner='/no/model.onnx'), 'no such file'),
    (lambda db, crops: magnifier_index(crops, gallery=db, pattern='x'), 'named groups'),
])
def test_mistakes_are_one_line_and_make_no_gallery(crops, tmp_path, call, message):
    with pytest.raises(SystemExit, match=message) as e: call(str(tmp_path/'people'), str(crops))
    assert str(e.value).startswith('magnifier_')
    assert '\n' not in str(e.value)
    assert not (tmp_path/'people').exists()


@pytest.mark.slow
def test_mistakes_in_a_search(exported, crops, tmp_path):
    db, image = str(tmp_path/'people'), str(sorted(crops.iterdir())[0])
    magnifier_index(str(crops), gallery=db, learner=exported)
    for kwargs, message in ((dict(not_camera='three'), '--not-camera three: whole numbers'),
                            (dict(regions='foot'), 'keeps no regions'),
                            (dict(since='soon'), "time 'soon'"), (dict(k=0), 'k=0'),
                            (dict(regions='foot,foot'), "region 'foot' is named twice")):
        with pytest.raises(SystemExit, match=message):
            magnifier_search(image, gallery=db, learner=exported, **kwargs)
    with pytest.raises(SystemExit, match='name what to delete'): magnifier_delete(db)


@pytest.mark.slow
def test_the_keyboard_leaves_a_gallery_whole(exported, crops, tmp_path, monkeypatch, capsys):
    db = str(tmp_path/'people')
    embedded = gallery.embedded
    calls = []
    def stopped(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return embedded(*args)
    monkeypatch.setattr(gallery, 'embedded', stopped)
    with pytest.raises(SystemExit) as e: magnifier_index(str(crops), gallery=db, learner=exported, bs=4)
    assert e.value.code == 130
    assert 'stopped by the keyboard' in capsys.readouterr().err
    monkeypatch.undo()
    magnifier_index(str(crops), gallery=db, learner=exported)
    assert '4 images added, 8 known' in capsys.readouterr().out


@pytest.mark.slow
def test_a_delete_that_was_stopped_is_ended_by_the_next(exported, crops, tmp_path, monkeypatch):
    db, gone = tmp_path/'people', sorted(crops.iterdir())[0]
    holds = lambda: any(gone.name.encode() in f.read_bytes() for f in db.rglob('*') if f.is_file())
    magnifier_index(str(crops), gallery=str(db), learner=exported)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(Gallery, 'compact', lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        magnifier_delete(str(db), paths=str(gone))
    assert e.value.code == 130
    assert holds()
    with pytest.raises(SystemExit, match='or no longer; .* It holds 11'):
        magnifier_delete(str(db), paths=str(gone))
    assert not holds()


def test_files_are_deleted_by_their_names_as_typed(exported, crops, tmp_path, monkeypatch, capsys):
    db, names = str(tmp_path/'people'), sorted(p.name for p in crops.iterdir())
    magnifier_index(str(crops), gallery=db, learner=exported)
    monkeypatch.chdir(tmp_path)
    magnifier_delete(db, paths=f'crops/{names[0]}, {crops/names[1]}')
    assert '2 images deleted; it holds 10' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='no image of .* matches') as e:
        magnifier_delete(db, paths='crops/nobody.jpg')
    assert e.value.code != 0
    magnifier_delete(db, until='1999-01-01')  # nothing is as old as that: no mistake, since nobody was named
    assert '0 images deleted; it holds 10' in capsys.readouterr().out


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
def filmed(streams, tmp_path, monkeypatch, capsys):
    "Both cameras, added by the command"
    monkeypatch.setattr('magnifier.cli.gallery.open_embedder', lambda learner: Bands())
    for camera in pd.read_csv(streams/'cameras.csv').itertuples():
        magnifier_index(video=str(streams/f'cam{camera.camera}.mp4'), boxes=str(streams/f'cam{camera.camera}.txt'),
                        camera=camera.camera, start=camera.start, gallery=str(tmp_path/'people'))
    assert re.search(r'[1-9]\d* images added', capsys.readouterr().out)
    return tmp_path/'people'


def test_who_was_where(filmed, streams, tmp_path, capsys):
    magnifier_people(str(filmed), threshold=.5, csv=str(tmp_path/'people.csv'), mot=str(tmp_path/'mot'),
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
def test_mistakes_about_a_video_are_one_line(kwargs, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said): magnifier_index(**kwargs)
    assert not list(tmp_path.iterdir())


def test_travel_is_read_or_refused(filmed, capsys):
    magnifier_people(str(filmed), threshold=.5, travel='1-2:3600')
    assert all(',' not in line.split('  ')[-4] for line in capsys.readouterr().out.splitlines()[1:])
    with pytest.raises(SystemExit, match='as 1-2:30'): magnifier_people(str(filmed), travel='1:2')
    with pytest.raises(SystemExit, match='no such gallery'): magnifier_people(str(filmed) + '2')


def test_who_is_deleted_has_no_tracklets(filmed, capsys):
    magnifier_people(str(filmed), threshold=.5)
    with Gallery(filmed) as g:
        before = g.tracklets().table
        person = int(before['pid'].iat[0])
        magnifier_delete(str(filmed), pids=str(person))
        left = g.tracklets().table
        assert set(left['tracklet']) == set(before['tracklet'][before['pid'] != person])
        magnifier_delete(str(filmed), older_than='30d')  # the streams are of January 2026
        assert not len(g.tracklets())


def test_a_gallery_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(SystemExit) as e: magnifier_app(gallery=str(tmp_path/'people'))
    assert 'no such gallery; make one with `magnifier_index' in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_learner_that_is_not_there(tmp_path):
    (tmp_path/'people').mkdir()
    wrong = ((tmp_path, 'holds no model.safetensors'), (tmp_path/'learner.pkl', 'no such learner; train one'))
    for learner, message in wrong:
        with pytest.raises(SystemExit, match=message):
            magnifier_app(gallery=str(tmp_path/'people'), learner=str(learner))
