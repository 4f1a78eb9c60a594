"magnifier_train and magnifier_ablate as a shell sees them: what they write, print and refuse; arguments by name"
import json
import os
import signal

import pandas as pd
import pytest
from PIL import Image

from magnifier.cli.train import known_arguments, magnifier_train, parse_arguments
from magnifier.train.checkpoints import Checkpoints
from magnifier.train.recipes import RECIPES


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
def test_pictures_are_pictures(run):
    for picture in run[0].glob('*.png'):
        with Image.open(picture) as image:
            assert image.size[0] > 300
            assert len(image.convert('RGB').getcolors(1 << 24)) > 500


@pytest.mark.slow
def test_a_finished_training_says_so(run, people, capsys):
    out, _ = run
    magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, rerank=True, resume=True)
    said = capsys.readouterr().out
    assert 'nothing is left to do' in said
    assert 'after, re-ranked' in said
    with pytest.raises(SystemExit, match='magnifier_train: .*seed=0, and now it is 1'):
        magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, seed=1, resume=True)


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
    magnifier_train('market1501', str(people), recipe='paper', **SMALL)
    said, losses = capsys.readouterr().out, pd.read_csv('runs/market1501-paper/losses.csv')
    assert {'global_tri', 'sab_cls', 'sfb_tri', 'region_cls', 'mask', 'sd'} <= set(losses.columns)
    assert losses.stage.tolist() == [1, 2]
    assert 'stage 2 of 2: 1 epoch, rate 0.001' in said
    assert 'semantic diversity loss x 0.002' in said


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(people, tmp_path, monkeypatch, capsys, narrow):
    keep, out = Checkpoints.after_epoch, tmp_path/'a run'
    call = dict(recipe='baseline', out=str(out), **SMALL)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(Checkpoints, 'after_epoch', lambda self: (keep(self), os.kill(os.getpid(), signal.SIGINT)))
        magnifier_train('market1501', str(people), **call)
    again = next(line for line in capsys.readouterr().out.splitlines() if 'go on with' in line)
    assert e.value.code == 130
    assert 'after epoch 1 of 2' in again
    assert f"magnifier_train market1501 {people} --recipe baseline --out '{out}' --epochs 2 --arch resnet18" in again
    assert again.endswith('--resume')
    magnifier_train('market1501', str(people), resume=True, **call)
    assert 'continuing after epoch 1 of 2' in capsys.readouterr().out
    assert not (out/'checkpoints').exists()
    parts = {c for c in pd.read_csv(out/'losses.csv').columns if c.endswith(('_cls', '_tri')) or c in ('sd', 'mask')}
    assert parts == {'global_cls', 'global_tri'}


@pytest.mark.slow
def test_an_argument_of_any_part_reaches_the_run(people, tmp_path, narrow):
    magnifier_train('market1501', str(people), recipe='paper', out=str(tmp_path/'run'),
                        set=['keep=2', 'margin=.5', 'pad=3', 'second_lr=0'], **SMALL)
    record = json.loads((tmp_path/'run/run.json').read_text())
    asked = record['arguments']
    assert (asked['model']['keep'], asked['loss']['margin'], asked['loading']['pad'],
            asked['fitting']['second_lr']) == (2, .5, 3, 0)
    assert record['stages'][1]['lr'] == 3.5e-4  # what the first stage of one epoch ended with


def test_each_goes_to_who_takes_it_with_its_type():
    found = parse_arguments(['keep=6', 'strategy=random', 'sfb=ab', 'sab=false', 'cell=lstm', 'keep_background=no',
                             'gamma=1', 'second_lr=0',
                             'milestones=40', 'sab_triplet=plain', 'margin=.5', 'n_per_id=8', 'erase=0'])
    assert found == dict(
        fitting=dict(gamma=1., second_lr=0., milestones=(40,)), loss=dict(sab_triplet='plain', margin=.5),
        model=dict(keep=6, strategy='random', sfb='ab', sab=False, cell='lstm', keep_background=False),
        loading=dict(n_per_id=8, erase=0.))
    assert type(found['fitting']['gamma']) is float
    assert parse_arguments([]) == dict(fitting={}, loss={}, model={}, loading={})


def test_an_optimiser_by_name(): assert parse_arguments(['opt_func=adam'])['model'] == dict(opt_func='adam')


def test_several_numbers(): assert parse_arguments(['milestones=40,70'])['fitting'] == dict(milestones=(40, 70))


def test_an_equals_sign_in_a_value_stays(): assert parse_arguments(['cell=a=b'])['model'] == dict(cell='a=b')


@pytest.mark.parametrize('text, message', [
    ('kep=6', "unknown argument 'kep': use one of .*cell, .*keep, .*second_lr"),
    ('keep=four', 'keep=four: a whole number is wanted'),
    ('keep=4.5', 'keep=4.5: a whole number is wanted'), ('sab=2', 'sab=2: true or false is wanted'),
    ('margin=wide', 'margin=wide: a number is wanted'),
    ('keep', "'keep': give name=value"), ('milestones=soon', 'milestones=soon: numbers with commas between')])
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message): parse_arguments([text])


def test_what_an_ablation_varies_can_be_given():
    from magnifier.train.ablation import SETTINGS
    varied = {name for setting in SETTINGS.values() for name in setting.model}
    assert varied | {'diversity', 'gamma', 'second_lr', 'milestones'} <= set(known_arguments())
