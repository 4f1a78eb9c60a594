"Commands as a shell sees them: what they write, what they print, how they refuse"
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from magnifier.cli import all as cli
from magnifier.train.recipes import RECIPES, recipe


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "A set just large enough for a batch of the quick recipe"
    from magnifier.walkers.dataset import walkers
    return walkers(tmp_path_factory.mktemp('cli')/'people', n_train=16, n_test=4, n_images=4, n_queries=2, n_gallery=3)


@pytest.fixture(scope='module')
def run(people, tmp_path_factory):
    "One short training by the command, and what it printed"
    from contextlib import redirect_stdout
    from io import StringIO
    out, said = tmp_path_factory.mktemp('run'), StringIO()
    with redirect_stdout(said):
        cli.magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, rerank=True)
    return out, said.getvalue()


@pytest.mark.slow
def test_training_writes_learner_figures_and_pictures(run):
    out, said = run
    assert ({p.name for p in out.iterdir()}
            >= {'learner.pkl', 'metrics.csv', 'losses.csv', 'show_batch.png', 'show_results.png', 'show_ranking.png'})
    table = pd.read_csv(out/'metrics.csv', index_col='model')
    assert list(table.index) == ['before, plain', 'before, re-ranked', 'after, plain', 'after, re-ranked']
    assert list(table.columns) == ['R1', 'R5', 'R10', 'mAP', 'mINP']
    assert table.notna().all(axis=None)
    assert (table <= 1).all(axis=None)
    assert str(out) in said
    assert 'after, plain' in said
    assert f'{100*table.loc["after, plain", "mAP"]:.1f}' in said
    losses = pd.read_csv(out/'losses.csv', index_col='epoch')
    assert len(losses) == 2
    assert {'global_cls', 'sab_cls', 'mask', 'sd'} <= set(losses.columns)
    assert '64 images = 16 identities x 4' in said
    assert 'stage 1 of 1: 2 epochs, rate 0.003' in said
    assert json.loads((out/'run.json').read_text())['figures']['after, plain']['R1'] == table.loc['after, plain', 'R1']


@pytest.mark.slow
def test_a_finished_training_says_so(run, people, capsys):
    out, _ = run
    cli.magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, rerank=True, resume=True)
    said = capsys.readouterr().out
    assert 'nothing is left to do' in said
    assert 'after, re-ranked' in said
    with pytest.raises(SystemExit, match='magnifier_train: .*seed=0, and now it is 1'):
        cli.magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, seed=1, resume=True)


SMALL = dict(arch='resnet18', weights='none', size='64x32', bs=16, cache='none', workers=0, epochs=2)


@pytest.fixture
def narrow(monkeypatch):
    "The paper's recipes with narrow heads, and without pictures"
    from magnifier.cli import train
    for name in ('paper', 'baseline'):
        monkeypatch.setitem(RECIPES, name, RECIPES[name]._replace(model={**RECIPES[name].model, 'hidden': 16}))
    monkeypatch.setattr(train, '_figures', lambda *args: None)


@pytest.mark.slow
def test_the_papers_recipe_by_name(people, tmp_path, monkeypatch, capsys, narrow):
    monkeypatch.chdir(tmp_path)
    cli.magnifier_train('market1501', str(people), recipe='paper', **SMALL)
    said, losses = capsys.readouterr().out, pd.read_csv('runs/market1501-paper/losses.csv')
    assert {'global_tri', 'sab_cls', 'sfb_tri', 'region_cls', 'mask', 'sd'} <= set(losses.columns)
    assert losses.stage.tolist() == [1, 2]
    assert 'stage 2 of 2: 1 epoch, rate 0.001' in said
    assert 'semantic diversity loss x 0.002' in said


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(people, tmp_path, monkeypatch, capsys, narrow):
    import os, signal
    from magnifier.train.checkpoints import Checkpoints
    keep, out = Checkpoints.after_epoch, tmp_path/'a run'
    call = dict(recipe='baseline', out=str(out), **SMALL)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(Checkpoints, 'after_epoch', lambda self: (keep(self), os.kill(os.getpid(), signal.SIGINT)))
        cli.magnifier_train('market1501', str(people), **call)
    again = next(line for line in capsys.readouterr().out.splitlines() if 'go on with' in line)
    assert e.value.code == 130
    assert 'after epoch 1 of 2' in again
    assert f"magnifier_train market1501 {people} --recipe baseline --out '{out}' --epochs 2 --arch resnet18" in again
    assert again.endswith('--resume')
    cli.magnifier_train('market1501', str(people), resume=True, **call)
    assert 'continuing after epoch 1 of 2' in capsys.readouterr().out
    assert not (out/'checkpoints').exists()
    parts = {c for c in pd.read_csv(out/'losses.csv').columns if c.endswith(('_cls', '_tri')) or c in ('sd', 'mask')}
    assert parts == {'global_cls', 'global_tri'}


@pytest.mark.slow
def test_pictures_are_pictures(run):
    from PIL import Image
    for picture in run[0].glob('*.png'):
        with Image.open(picture) as image:
            assert image.size[0] > 300
            assert len(image.convert('RGB').getcolors(1 << 24)) > 500


@pytest.mark.slow
def test_evaluation_repeats_the_figures_of_the_training(run, people, capsys):
    out, _ = run
    cli.magnifier_eval(str(out/'learner.pkl'), 'walkers', str(people), rerank=True, json=True)
    printed = capsys.readouterr().out
    table = pd.read_csv(out/'metrics.csv', index_col='model')
    assert json.loads(printed)['plain']['mAP'] == pytest.approx(table.loc['after, plain', 'mAP'], abs=1e-3)
    cli.magnifier_eval(str(out/'learner.pkl'), 'market1501', str(people))
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
    cli.magnifier_eval(with_a_bar, 'walkers', str(people))
    assert '\r' in capsys.readouterr().out  # there is a bar to leave out
    cli.magnifier_eval(with_a_bar, 'walkers', str(people), json=True)
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
        for call in (lambda f: cli.magnifier_eval(f, 'walkers', str(walkers_root)), lambda f: cli.magnifier_export(f),
                     lambda f: cli.magnifier_app(str(tmp_path/'people'), f)):
            with pytest.raises(SystemExit, match=message) as e: call(str(tmp_path/name))
            assert '\n' not in str(e.value)
            assert 'give the learner.pkl of `magnifier_train`' in str(e.value)


def test_walkers_prints_where_they_are(walkers_root, tmp_path, capsys):
    # another set is there
    with pytest.raises(SystemExit, match='magnifier_walkers'): cli.magnifier_walkers(str(walkers_root), n_train=3)
    new = tmp_path/'more'
    cli.magnifier_walkers(str(new), n_train=1, n_test=1)
    assert capsys.readouterr().out.strip() == str(new)
    assert (new/'query').is_dir()


@pytest.mark.parametrize('call, message', [
    (lambda: cli.magnifier_train('marked', 'x'), "unknown data set 'marked': use walkers or one of .*market1501"),
    (lambda: cli.magnifier_train('market1501'), 'magnifier_train market1501 PATH'),
    (lambda: cli.magnifier_train(size='256'), "size '256': give height x width"),
    (lambda: cli.magnifier_train(branches='sab'), "unknown branches 'sab': use one of global, all"),
    (lambda: cli.magnifier_train(cache='tape'), "unknown cache 'tape': use one of ram, disk, none"),
    (lambda: cli.magnifier_train(epochs=0), 'epochs=0: train one or more'),
    (lambda: cli.magnifier_train(recipe='slow'), "unknown recipe 'slow': use one of quick"),
    (lambda: cli.magnifier_train('market1501', '/no/such/folder'), 'no/such/folder'),
    (lambda: cli.magnifier_eval('/no/learner.pkl'), 'no/learner.pkl'),
    (lambda: cli.magnifier_train(set=['keep']), '--set keep: give name=value'),
    (lambda: cli.magnifier_train(set=['kep=6']), "unknown argument 'kep': use one of"),
    (lambda: cli.magnifier_train(weights='/no/weights.pth'), '/no/weights.pth: no such file'),
    (lambda: cli.magnifier_ablate(recipe='slow'), "unknown recipe 'slow'"),
])
def test_mistakes_are_one_line(call, message):
    with pytest.raises(SystemExit, match=message) as e: call()
    assert str(e.value).startswith('magnifier_')
    assert '\n' not in str(e.value)


QUICK_NO = """import sys
from magnifier.cli import all as cli
learner = sys.argv[1]
calls = [
    lambda: cli.magnifier_train('marked', 'x'),
    lambda: cli.magnifier_train('market1501', '/no/such/folder'),
    lambda: cli.magnifier_train(recipe='slow'),
    lambda: cli.magnifier_eval('/no/learner.pkl'),
    lambda: cli.magnifier_eval(learner),
    lambda: cli.magnifier_eval(learner, 'marked', 'x'),
    lambda: cli.magnifier_ablate('marked', 'x'),
    lambda: cli.magnifier_export('/no/learner.pkl'),
]
for i, call in enumerate(calls):
    try: call()
    except SystemExit as e: assert str(e).startswith('magnifier_'), e
    else: sys.exit(f'{i} ran')
    assert not {'torch', 'fastai', 'matplotlib'} & set(sys.modules), i
"""


def test_mistakes_are_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path/'learner.pkl').touch()
    (tmp_path/'quick.py').write_text(QUICK_NO)
    told = subprocess.run([sys.executable, tmp_path/'quick.py', tmp_path/'learner.pkl'], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.slow
def test_an_argument_of_any_part_reaches_the_run(people, tmp_path, narrow):
    cli.magnifier_train('market1501', str(people), recipe='paper', out=str(tmp_path/'run'),
                        set=['keep=2', 'margin=.5', 'pad=3', 'second_lr=0'], **SMALL)
    record = json.loads((tmp_path/'run/run.json').read_text())
    asked = record['arguments']
    assert (asked['model']['keep'], asked['loss']['margin'], asked['loading']['pad'],
            asked['fitting']['second_lr']) == (2, .5, 3, 0)
    assert record['stages'][1]['lr'] == 3.5e-4  # what the first stage of one epoch ended with


@pytest.mark.slow
def test_data_are_asked_for_unless_it_learnt_on_walkers(run, people, tmp_path, capsys, monkeypatch):
    import shutil
    alone = tmp_path/'learner.pkl'
    shutil.copy(run[0]/'learner.pkl', alone)
    with pytest.raises(SystemExit,
                       match=f'name the data to evaluate on, as in `magnifier_eval {alone} market1501 PATH`'):
        cli.magnifier_eval(str(alone))
    monkeypatch.setattr('magnifier.walkers.dataset.walkers', lambda path: people)
    cli.magnifier_eval(str(run[0]/'learner.pkl'))
    assert 'query against gallery, in %, ' in capsys.readouterr().out


@pytest.mark.slow
def test_the_papers_table_beside_ours(run, people, tmp_path, capsys):
    learner, path = str(run[0]/'learner.pkl'), str(people)
    cli.magnifier_eval(learner, 'market1501', path, rerank=True, save=str(tmp_path/'table1.csv'))
    table = pd.read_csv(tmp_path/'table1.csv', index_col=0)
    assert list(table.index) == ['ours, plain', 'ours, re-ranked', 'paper, plain', 'paper, re-ranked']
    assert table.loc['paper, plain'].tolist() == [95.8, 89.6]
    assert table.loc['paper, re-ranked', 'Market-1501 mAP'] == 95.1
    cli.magnifier_eval(learner, 'walkers,market1501', f'{path},{path}', save=str(tmp_path/'table1.md'))
    lines = (tmp_path/'table1.md').read_text().splitlines()
    assert lines[0] == '| % | walkers R1 | walkers mAP | Market-1501 R1 | Market-1501 mAP |'
    assert lines[3].startswith('| paper, plain | nan | nan | 95.8 |')
    with pytest.raises(SystemExit, match='2 data sets and 1 folders'):
        cli.magnifier_eval(learner, 'walkers,market1501', path)


def test_debug_shows_where_it_arose():
    with pytest.raises(ValueError, match='unknown data set'): cli.magnifier_train('marked', 'x', debug=True)


def test_the_keyboard_stops_a_command(monkeypatch, capsys):
    monkeypatch.setattr('magnifier.walkers.dataset.walkers', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as e: cli.magnifier_walkers(n_train=3)
    assert e.value.code == 130
    assert capsys.readouterr().err == 'magnifier_walkers: stopped by the keyboard\n'


HELP = """import sys
from magnifier.cli import all as cli
for name in cli.__all__:
    sys.argv = [name, '--help']
    try: getattr(cli, name)()
    except SystemExit as e: assert not e.code, e.code
    else: sys.exit(f'{name} ran')
    heavy = {'torch', 'fastai', 'pandas', 'matplotlib'} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_help_teaches_by_example_and_imports_nothing_heavy(tmp_path):
    "Every command's own --help, one after the other in one process"
    (tmp_path/'help.py').write_text(HELP)
    told = subprocess.run([sys.executable, tmp_path/'help.py'], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    told = told.stdout.split('usage: ')[1:]
    assert [t.split()[0] for t in told] == cli.__all__
    assert all('Example' in t and '--debug' in t for t in told)


def test_recipes_by_name():
    assert recipe('quick') is RECIPES['quick']
    with pytest.raises(ValueError, match='quick, light, one_cycle'): recipe('fast')
