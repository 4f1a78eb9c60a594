"Ablations: what is trained, how a stopped one goes on, and what the tables say"
import json
import os
import signal
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from magnifier.files import aside
from magnifier.train import ablation, recipes
from magnifier.train.ablation import FIGURES, PAPER, SETTINGS, STUDIES, ablate, read_runs, setting_learner, settings_of, summary
from magnifier.train.learner import magnifier_learner
from magnifier.train.recipes import RECIPES
from magnifier.train.records import write_json


@pytest.fixture
def tiny(monkeypatch):
    "A recipe of one small step or two"
    plan = RECIPES['quick']
    monkeypatch.setitem(recipes.RECIPES, 'quick', plan._replace(loading={**plan.loading, 'size': (64, 32), 'bs': 8, 'n_per_id': 2},
                                                                model={**plan.model, 'hidden': 32}))


def fake_runs(seeds=(0, 1)):
    "A run of each setting whose figures are known"
    rows = [dict(setting=name, seed=s, **{f: (10*i + s + j)/1000 for j, f in enumerate(FIGURES)}) for i, name in enumerate(SETTINGS) for s in seeds]
    return pd.DataFrame(rows)


def test_every_line_of_a_study_names_a_setting_and_none_is_trained_for_nothing():
    shown = {setting for lines in STUDIES.values() for setting in lines.values()}
    assert shown == set(SETTINGS) and settings_of() == list(dict.fromkeys(settings_of())) and set(settings_of()) == shown
    assert list(PAPER.index) == list(STUDIES['Table 2']) and settings_of(['cell']) == ['G+M+SFB', 'lstm']
    with pytest.raises(ValueError, match="unknown study 'Table 3': use one of Table 2, Figure 4"): settings_of(['Table 3'])


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_build_what_their_names_say(name, dls):
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **SETTINGS[name].model)
    model = learn.model
    if name in STUDIES['Table 2']:
        parts = name.split('+')
        assert [model.segmentation is not None, model.sab is not None, model.sfb is not None] == [p in parts for p in ('M', 'SAB', 'SFB')]
        assert SETTINGS[name].diversity == ('SD' in parts)
    else:
        plain = {'torso': 'G+M+SAB', 'random': 'G+M+SAB', 'no': 'G+M+SAB', 'lstm': 'G+M+SFB', 'G+M+AB': 'G+M+SFB', 'stage': 'G+M+SAB+SFB'}[name.split(' ')[0]]
        branches = list(magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, **SETTINGS[plain].model).model.branches)
        assert list(model.branches) == branches  # one choice differs, and no branch
    if name.split()[0] in ('torso', 'random'):
        assert (learn.region_occlusion.strategy, learn.region_occlusion.keep) == (name.split()[0], int(name.split()[1]))
    if name == 'no background': assert not learn.region_occlusion.draw()[0]
    if name == 'lstm': assert 'LSTM' in repr(model.sfb)
    if name == 'stage 4': assert model.sfb.stage == 4


def test_runs_are_written_once_and_gone_on_with(tiny, catalog, tmp_path, monkeypatch):
    runs = ablate(catalog, tmp_path, studies=['cell'], seeds=(3,), epochs=1, workers=0)
    assert list(runs.setting) == ['G+M+SFB', 'lstm'] and (runs.seed == 3).all() and runs[FIGURES].notna().all(axis=None)
    assert runs[FIGURES].max(axis=None) <= 1 and (runs.train == (catalog.split == 'train').sum()).all()
    trained = []
    real = ablation._run
    monkeypatch.setattr(ablation, '_run', lambda *a: trained.append(a[2]) or real(*a))
    lost = tmp_path/'runs'/'lstm-3.json'
    before = json.loads(lost.read_text())
    lost.unlink()
    again = ablate(catalog, tmp_path, studies=['cell'], seeds=(3,), epochs=1, workers=0)
    assert trained == [SETTINGS['lstm']]  # the other one stays
    after = json.loads(lost.read_text())
    assert {**after, 'seconds': 0} == {**before, 'seconds': 0}  # the same seed, the same figures to the last bit
    pd.testing.assert_frame_equal(again.drop(columns='seconds'), runs.drop(columns='seconds'))
    with pytest.raises(ValueError, match='was made with epochs=1, and epochs=2 is asked for: take another folder'):
        ablate(catalog, tmp_path, studies=['cell'], seeds=(3,), epochs=2, workers=0)
    with pytest.raises(ValueError, match='was made with query'):
        ablate(catalog[(catalog.split != 'query') | (catalog.index % 2 == 0)], tmp_path, studies=['cell'], seeds=(3,), epochs=1, workers=0)
    assert len(trained) == 1


def test_weights_are_kept_on_demand_and_make_the_same_figures(tiny, catalog, tmp_path):
    wanted = dict(settings=['G'], seeds=(0,), epochs=1, workers=0)
    with pytest.raises(ValueError, match='weights=True'): setting_learner(catalog, tmp_path, 'G', workers=0)
    with pytest.raises(ValueError, match="unknown setting 'H': use one of G, G"): setting_learner(catalog, tmp_path, 'H')
    runs = ablate(catalog, tmp_path, **wanted)
    assert not (tmp_path/'models').exists()
    pd.testing.assert_frame_equal(ablate(catalog, tmp_path, weights=True, **wanted).drop(columns='seconds'), runs.drop(columns='seconds'))
    learn = setting_learner(catalog, tmp_path, 'G', workers=0)
    with learn.no_bar(): again = learn.evaluate().loc['plain']
    assert again.mAP == pytest.approx(runs.mAP[0], abs=1e-4)


def _die_between(file, record):
    "As a machine that stops after the bytes and before the name"
    with aside(file) as part:
        part.write_text(json.dumps(record)[:40])
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.forks
def test_a_run_killed_while_it_is_written_is_no_run(tmp_path):
    file = tmp_path/'runs'/'G-0.json'
    process = get_context('fork').Process(target=_die_between, args=(file, dict(setting='G', seed=0)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and list(file.parent.iterdir())
    with pytest.raises(ValueError, match='no finished run there'): read_runs(tmp_path)
    write_json(file, dict(setting='G', seed=0, R1=.5))
    assert read_runs(tmp_path).R1.tolist() == [.5]


def test_summary_is_the_mean_and_the_spread_of_the_seeds():
    runs = fake_runs(seeds=(0, 1, 5))
    table = summary(runs)
    assert list(table.index.unique('study')) == list(STUDIES)
    for (study, line), row in table.iterrows():
        values = 100*runs[runs.setting == STUDIES[study][line]].mAP.to_numpy()
        assert row.mAP == pytest.approx(np.mean(values)) and row['± mAP'] == pytest.approx(np.std(values, ddof=1)) and row.runs == 3
    alone = summary(fake_runs(seeds=(0,)))
    assert alone['± R1'].isna().all() and alone.runs.eq(1).all()  # nothing is known about it
    part = summary(runs[runs.setting.isin(['G', 'G+M'])])
    assert list(part.index) == [('Table 2', 'G'), ('Table 2', 'G+M')]


def test_other_data_of_the_same_size_are_refused(catalog, tmp_path):
    write_json(tmp_path/'runs'/'G-0.json', dict(setting='G', seed=0, recipe='quick', epochs=1, arch='resnet18', data='of others',
                                                **{s: int(n) for s, n in catalog.split.value_counts().items()}))
    with pytest.raises(ValueError, match='was made with data=of others'): ablate(catalog, tmp_path, settings=['G'], epochs=1)


def test_no_epochs_are_no_ablation(catalog, tmp_path):
    with pytest.raises(ValueError, match='epochs=0: train one or more'): ablate(catalog, tmp_path, epochs=0)


def test_an_ablation_leaves_the_generators_alone(tiny, catalog, tmp_path):
    before = torch.get_rng_state()
    ablate(catalog, tmp_path, settings=['G'], epochs=1, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
