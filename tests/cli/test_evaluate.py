"magnifier_eval and magnifier_export as a shell sees them"
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from magnifier.cli.evaluate import magnifier_eval, magnifier_export
from magnifier.cli.gallery import magnifier_app
from magnifier.model.embedder import Embedder


@pytest.mark.slow
def test_evaluation_repeats_the_figures_of_the_training(run, people, capsys):
    out, _ = run
    magnifier_eval(str(out/'learner.pkl'), 'walkers', str(people), rerank=True, json=True)
    printed = capsys.readouterr().out
    table = pd.read_csv(out/'metrics.csv', index_col='model')
    assert json.loads(printed)['plain']['mAP'] == pytest.approx(table.loc['after, plain', 'mAP'], abs=1e-3)
    magnifier_eval(str(out/'learner.pkl'), 'market1501', str(people))
    assert 'mINP' in capsys.readouterr().out


@pytest.fixture
def with_a_bar(dls):
    "A learner's file, its batches small, as whoever trains in a notebook exports it"
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32)
    learn.export('bar.pkl')
    return str(learn.path/'bar.pkl')


@pytest.mark.slow
def test_json_of_many_batches_is_json_alone(with_a_bar, people, capsys):
    magnifier_eval(with_a_bar, 'walkers', str(people))
    assert '\r' in capsys.readouterr().out  # there is a bar to leave out
    magnifier_eval(with_a_bar, 'walkers', str(people), json=True)
    assert json.loads(capsys.readouterr().out)['plain']['mAP'] > 0


def test_what_is_no_learner_is_one_sentence(with_a_bar, walkers_root, tmp_path):
    import pickle
    import torch
    from fastai.vision.all import Learner, load_learner
    learner = load_learner(with_a_bar)
    (tmp_path/'README.md').write_text('# people\n')
    (tmp_path/'empty.pkl').touch()
    (tmp_path/'people.onnx').write_text('no model')
    (tmp_path/'people').mkdir()
    (tmp_path/'cut.pkl').write_bytes(Path(with_a_bar).read_bytes()[:100_000])
    (tmp_path/'plain.pkl').write_bytes(pickle.dumps(dict(a=1)))
    torch.save(learner.model.state_dict(), tmp_path/'weights.pth')
    Learner(learner.dls, torch.nn.Linear(2, 2), loss_func=torch.nn.MSELoss(), path=tmp_path).export('other.pkl')
    for name, message in (('README.md', 'cannot be read as a learner'), ('empty.pkl', 'EOFError'),
                          ('cut.pkl', 'cannot be read'), ('plain.pkl', 'cannot be read'),
                          ('weights.pth', "no attribute 'dls'"), ('other.pkl', 'holds a Learner'),
                          ('people.onnx', 'is an .onnx file')):
        for call in (lambda f: magnifier_eval(f, 'walkers', str(walkers_root)), lambda f: magnifier_export(f),
                     lambda f: magnifier_app(str(tmp_path/'people'), f)):
            with pytest.raises(SystemExit, match=message) as e: call(str(tmp_path/name))
            assert '\n' not in str(e.value)
            assert 'give the learner.pkl of `magnifier_train`' in str(e.value)


@pytest.mark.slow
def test_data_are_asked_for_unless_it_learnt_on_walkers(run, people, tmp_path, capsys, monkeypatch):
    alone = tmp_path/'learner.pkl'
    shutil.copy(run[0]/'learner.pkl', alone)
    with pytest.raises(SystemExit,
                       match=f'name the data to evaluate on, as in `magnifier_eval {alone} market1501 PATH`'):
        magnifier_eval(str(alone))
    monkeypatch.setattr('magnifier.walkers.dataset.walkers', lambda path: people)
    magnifier_eval(str(run[0]/'learner.pkl'))
    assert 'query against gallery, in %, ' in capsys.readouterr().out


@pytest.mark.slow
def test_the_papers_table_beside_ours(run, people, tmp_path, capsys):
    learner, path = str(run[0]/'learner.pkl'), str(people)
    magnifier_eval(learner, 'market1501', path, rerank=True, save=str(tmp_path/'table1.csv'))
    table = pd.read_csv(tmp_path/'table1.csv', index_col=0)
    assert list(table.index) == ['ours, plain', 'ours, re-ranked', 'paper, plain', 'paper, re-ranked']
    assert table.loc['paper, plain'].tolist() == [95.8, 89.6]
    assert table.loc['paper, re-ranked', 'Market-1501 mAP'] == 95.1
    magnifier_eval(learner, 'walkers,market1501', f'{path},{path}', save=str(tmp_path/'table1.md'))
    lines = (tmp_path/'table1.md').read_text().splitlines()
    assert lines[0] == '| % | walkers R1 | walkers mAP | Market-1501 R1 | Market-1501 mAP |'
    assert lines[3].startswith('| paper, plain | nan | nan | 95.8 |')
    with pytest.raises(SystemExit, match='2 data sets and 1 folders'):
        magnifier_eval(learner, 'walkers,market1501', path)


@pytest.fixture
def pickled(learn):
    learn.export('learner.pkl')
    return learn.path/'learner.pkl'


@pytest.mark.slow
def test_pickle_to_folder_to_file(pickled, catalog, capsys):
    magnifier_export(str(pickled), format='pretrained')
    folder = pickled.with_name('pretrained')
    embedder = Embedder(folder)
    said = capsys.readouterr().out
    assert str(folder) in said
    assert embedder.fingerprint in said
    assert '64 x 32' in said
    pytest.importorskip('onnxscript')
    magnifier_export(str(folder), str(pickled.with_name('p.onnx')), json=True)
    about = json.loads(capsys.readouterr().out)
    assert about['fingerprint'] == embedder.fingerprint
    assert about['dimensions'] == embedder.dim
    assert about['size'] == [64, 32]
    assert about['bytes'] == pickled.with_name('p.onnx').stat().st_size
    assert about['format'] == 'onnx'
    paths = catalog.path.tolist()[:5]
    assert np.abs(Embedder(about['file'])(paths) - embedder(paths)).max() < 1e-4


@pytest.mark.parametrize('args, kwargs, message', [
    (['l.pkl'], dict(format='tflite'), "unknown format 'tflite': use onnx or pretrained"),
    (['/no/l.pkl'], {}, 'no/l.pkl'),
    (['l.pkl'], dict(format='pretrained', masks=True), '--masks goes with --format onnx')])
def test_mistakes_of_an_export_are_one_line(args, kwargs, message):
    with pytest.raises(SystemExit, match=message): magnifier_export(*args, **kwargs)
