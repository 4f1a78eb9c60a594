"The gallery's commands as a shell sees them"
import json

import pytest
from magnifier.cli import all as cli

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


def test_index_search_delete(exported, crops, tmp_path, capsys):
    db, image = str(tmp_path/'people'), str(sorted(crops.iterdir())[4])
    def told(command, *args, **kwargs):
        command(*args, gallery=db, **kwargs) if command is not cli.magnifier_delete else command(db, *args, **kwargs)
        return capsys.readouterr().out
    (crops/'bad.png').write_text('x')
    first = told(cli.magnifier_index, str(crops), learner=exported, regions=True)
    assert '12 images added, 0 known; 1 unreadable (first: ' in first
    assert json.loads(told(cli.magnifier_index, str(crops), learner=exported, json=True)) == dict(
        gallery=db, added=0, known=12, unreadable=[str(crops/'bad.png')], images=12)
    drawn = str(tmp_path/'hits.png')
    hits = json.loads(told(cli.magnifier_search, image, learner=exported, k=3, json=True, save=drawn))
    assert hits[0]['path'] == image
    assert hits[0]['similarity'] == pytest.approx(1, abs=1e-4)
    assert hits[0]['time'] is None
    assert (tmp_path/'hits.png').exists()
    camera, pid = hits[0]['camid'], hits[0]['pid']
    others = json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True, not_camera=str(camera)))
    assert others
    assert camera not in {h['camid'] for h in others}
    assert told(cli.magnifier_search, image, learner=exported, cameras='77').strip() == 'no hits'
    people = json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True, by_identity=True))
    assert len({p['pid'] for p in people}) == len(people)
    assert sum(p['images'] for p in people) == 12
    assert 'similarity' in told(cli.magnifier_search, image, learner=exported, rerank=True)
    assert 'images deleted' in told(cli.magnifier_delete, pids=str(pid))
    with pytest.raises(SystemExit, match=f'no image of {db} matches'):
        told(cli.magnifier_delete, pids=str(pid))
    left = json.loads(told(cli.magnifier_search, image, learner=exported, k=12, json=True))
    assert pid not in {hit['pid'] for hit in left}


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
    with pytest.raises(SystemExit, match=message) as e: call(str(tmp_path/'people'), str(crops))
    assert str(e.value).startswith('magnifier_')
    assert '\n' not in str(e.value)
    assert not (tmp_path/'people').exists()


@pytest.mark.slow
def test_mistakes_in_a_search(exported, crops, tmp_path):
    db, image = str(tmp_path/'people'), str(sorted(crops.iterdir())[0])
    cli.magnifier_index(str(crops), gallery=db, learner=exported)
    for kwargs, message in ((dict(not_camera='three'), '--not-camera three: whole numbers'),
                            (dict(regions='foot'), 'keeps no regions'),
                            (dict(since='soon'), "time 'soon'"), (dict(k=0), 'k=0'),
                            (dict(regions='foot,foot'), "region 'foot' is named twice")):
        with pytest.raises(SystemExit, match=message):
            cli.magnifier_search(image, gallery=db, learner=exported, **kwargs)
    with pytest.raises(SystemExit, match='name what to delete'): cli.magnifier_delete(db)


@pytest.mark.slow
def test_the_keyboard_leaves_a_gallery_whole(exported, crops, tmp_path, monkeypatch, capsys):
    from magnifier.gallery.gallery import Gallery
    db, embedded, calls = str(tmp_path/'people'), Gallery._embedded, []
    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return embedded(self, *args)
    monkeypatch.setattr(Gallery, '_embedded', stopped)
    with pytest.raises(SystemExit) as e: cli.magnifier_index(str(crops), gallery=db, learner=exported, bs=4)
    assert e.value.code == 130
    assert 'stopped by the keyboard' in capsys.readouterr().err
    monkeypatch.undo()
    cli.magnifier_index(str(crops), gallery=db, learner=exported)
    assert '4 images added, 8 known' in capsys.readouterr().out


@pytest.mark.slow
def test_a_delete_that_was_stopped_is_ended_by_the_next(exported, crops, tmp_path, monkeypatch):
    from magnifier.gallery.gallery import Gallery
    db, gone = tmp_path/'people', sorted(crops.iterdir())[0]
    holds = lambda: any(gone.name.encode() in f.read_bytes() for f in db.rglob('*') if f.is_file())
    cli.magnifier_index(str(crops), gallery=str(db), learner=exported)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(Gallery, 'compact', lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        cli.magnifier_delete(str(db), paths=str(gone))
    assert e.value.code == 130
    assert holds()
    with pytest.raises(SystemExit, match='or no longer; .* It holds 11'):
        cli.magnifier_delete(str(db), paths=str(gone))
    assert not holds()


def test_files_are_deleted_by_their_names_as_typed(exported, crops, tmp_path, monkeypatch, capsys):
    db, names = str(tmp_path/'people'), sorted(p.name for p in crops.iterdir())
    cli.magnifier_index(str(crops), gallery=db, learner=exported)
    monkeypatch.chdir(tmp_path)
    cli.magnifier_delete(db, paths=f'crops/{names[0]}, {crops/names[1]}')
    assert '2 images deleted; it holds 10' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='no image of .* matches') as e:
        cli.magnifier_delete(db, paths='crops/nobody.jpg')
    assert e.value.code != 0
    cli.magnifier_delete(db, until='1999-01-01')  # nothing is as old as that: no mistake, since nobody was named
    assert '0 images deleted; it holds 10' in capsys.readouterr().out
