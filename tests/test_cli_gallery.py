"The gallery's commands as a shell sees them"
import json

import pytest
from magnifier.cli import all as cli

pytest.importorskip('milvus_lite')


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


def test_index_search_delete(exported, crops, tmp_path, capsys):
    db, image = str(tmp_path/'people.db'), str(sorted(crops.iterdir())[4])
    def told(command, *args, **kwargs):
        command(*args, gallery=db, **kwargs) if command is not cli.magnifier_delete else command(db, *args, **kwargs)
        return capsys.readouterr().out
    (crops/'bad.png').write_text('x')
    assert '12 images added, 0 known; 1 unreadable (first: ' in told(cli.magnifier_index, str(crops), learner=exported, regions=True)
    assert json.loads(told(cli.magnifier_index, str(crops), learner=exported, json=True)) == dict(
        gallery=db, added=0, known=12, unreadable=[str(crops/'bad.png')], images=12)
    hits = json.loads(told(cli.magnifier_search, image, learner=exported, k=3, json=True, save=str(tmp_path/'hits.png')))
    assert hits[0]['path'] == image and hits[0]['similarity'] == pytest.approx(1, abs=1e-4) and hits[0]['time'] is None and (tmp_path/'hits.png').exists()
    camera, pid = hits[0]['camid'], hits[0]['pid']
    others = json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True, not_camera=str(camera)))
    assert others and camera not in {h['camid'] for h in others}
    assert told(cli.magnifier_search, image, learner=exported, cameras='77').strip() == 'no hits'
    people = json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True, by_identity=True))
    assert len({p['pid'] for p in people}) == len(people) and sum(p['images'] for p in people) == 12
    assert 'similarity' in told(cli.magnifier_search, image, learner=exported, rerank=True)
    assert 'images deleted' in told(cli.magnifier_delete, pids=str(pid))
    assert pid not in {h['pid'] for h in json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True))}


@pytest.mark.parametrize('call, message', [
    (lambda db, crops: cli.magnifier_search('x.png', gallery=db), 'no such gallery; make one with'),
    (lambda db, crops: cli.magnifier_delete(db, pids='3'), 'no such gallery'),
    (lambda db, crops: cli.magnifier_index('/no/crops', gallery=db), 'is not a folder'),
    (lambda db, crops: cli.magnifier_index('/no/crops.csv', gallery=db), 'no such file'),
    (lambda db, crops: cli.magnifier_index(crops, gallery=db, learner='/no/learner.pkl'), 'no such learner; train one'),
    (lambda db, crops: cli.magnifier_index(crops, gallery=db, learner='/no/model.onnx'), 'no such file'),
    (lambda db, crops: cli.magnifier_index(crops, gallery=db, pattern='x'), 'named groups'),
])
def test_mistakes_are_one_line_and_make_no_gallery(crops, tmp_path, call, message):
    with pytest.raises(SystemExit, match=message) as e: call(str(tmp_path/'people.db'), str(crops))
    assert str(e.value).startswith('magnifier_') and '\n' not in str(e.value) and not (tmp_path/'people.db').exists()


def test_mistakes_in_a_search(exported, crops, tmp_path):
    db, image = str(tmp_path/'people.db'), str(sorted(crops.iterdir())[0])
    cli.magnifier_index(str(crops), gallery=db, learner=exported)
    for kwargs, message in ((dict(not_camera='three'), '--not-camera three: whole numbers'), (dict(regions='foot'), 'keeps no regions'),
                            (dict(since='soon'), "time 'soon'"), (dict(k=0), 'k=0')):
        with pytest.raises(SystemExit, match=message): cli.magnifier_search(image, gallery=db, learner=exported, **kwargs)
    with pytest.raises(SystemExit, match='name what to delete'): cli.magnifier_delete(db)


def test_the_keyboard_leaves_a_gallery_whole(exported, crops, tmp_path, monkeypatch, capsys):
    from magnifier.retrieval.gallery import Gallery
    db, write, calls = str(tmp_path/'people.db'), Gallery._write, []
    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        write(self, *args)
    monkeypatch.setattr(Gallery, '_write', stopped)
    with pytest.raises(SystemExit, match='stopped by the keyboard'): cli.magnifier_index(str(crops), gallery=db, learner=exported, bs=4)
    monkeypatch.undo()
    cli.magnifier_index(str(crops), gallery=db, learner=exported)
    assert '4 images added, 8 known' in capsys.readouterr().out
