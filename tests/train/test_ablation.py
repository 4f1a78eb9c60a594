"Ablations: what is trained, how a stopped one goes on, and what the tables say"
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from magnifier.train import recipes
from magnifier.train.ablation import FIGURES, PAPER, SETTINGS, STUDIES, ablate, setting_learner, settings_of, summary
from magnifier.train.checkpoints import Checkpoints
from magnifier.train.learner import ReIDLearner, magnifier_learner
from magnifier.train.recipes import RECIPES


@pytest.fixture
def tiny(monkeypatch):
    "A recipe of one small step or two"
    plan = RECIPES['quick']
    monkeypatch.setitem(recipes.RECIPES, 'quick',
                        plan._replace(loading={**plan.loading, 'size': (64, 32), 'bs': 8, 'n_per_id': 2},
                                                                model={**plan.model, 'hidden': 32}))


def fake_runs(seeds=(0, 1)):
    "A run of each setting whose figures are known"
    rows = [dict(setting=name, seed=s, **{f: (10*i + s + j)/1000 for j, f in enumerate(FIGURES)})
            for i, name in enumerate(SETTINGS) for s in seeds]
    return pd.DataFrame(rows)


def test_every_line_of_a_study_names_a_setting_and_none_is_trained_for_nothing():
    shown = {setting for lines in STUDIES.values() for setting in lines.values()}
    assert shown == set(SETTINGS)
    assert settings_of() == list(dict.fromkeys(settings_of()))
    assert set(settings_of()) == shown
    assert list(PAPER.index) == list(STUDIES['Table 2'])
    assert settings_of(['cell']) == ['G+M+SFB', 'lstm']
    with pytest.raises(ValueError, match="unknown study 'Table 3': use one of Table 2, Figure 4"):
        settings_of(['Table 3'])


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_build_what_their_names_say(name, dls, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, hidden=32, **SETTINGS[name].model)
    model = learn.model
    if name in STUDIES['Table 2']:
        parts = name.split('+')
        there = [part is not None for part in (model.segmentation, model.sab, model.sfb)]
        assert there == [p in parts for p in ('M', 'SAB', 'SFB')]
        assert SETTINGS[name].diversity == ('SD' in parts)
    else:
        plain = {'torso': 'G+M+SAB', 'random': 'G+M+SAB', 'no': 'G+M+SAB', 'lstm': 'G+M+SFB', 'G+M+AB': 'G+M+SFB',
                 'stage': 'G+M+SAB+SFB', 'whole': 'G+M+SAB+SFB'}[name.split(' ')[0]]
        branches = list(magnifier_learner(dls, arch, pretrained=False, hidden=32,
                                          **SETTINGS[plain].model).model.branches)
        assert list(model.branches) == branches  # one choice differs, and no branch
    occlusion = name.removeprefix('whole ').split()
    if occlusion[0] in ('torso', 'random'):
        assert (learn.region_occlusion.strategy, learn.region_occlusion.keep) == (occlusion[0], int(occlusion[1]))
    if name == 'no background':
        learn.region_occlusion.before_fit()
        assert not learn.region_occlusion.draw()[0]
    if name == 'lstm': assert 'LSTM' in repr(model.sfb)
    if name == 'stage 4': assert model.sfb.stage == 4


@pytest.mark.slow
def test_runs_are_written_once_and_gone_on_with(tiny, catalog, tmp_path, monkeypatch):
    how = dict(studies=['cell'], seeds=(3,), epochs=1, workers=0)
    runs = ablate(catalog, tmp_path, **how)
    assert list(runs.setting) == ['G+M+SFB', 'lstm']
    assert (runs.seed == 3).all()
    assert runs[FIGURES].notna().all(axis=None)
    assert runs[FIGURES].max(axis=None) <= 1
    assert (runs.images == (catalog.split == 'train').sum()).all()
    trained, fit = [], ReIDLearner.fit_stages
    monkeypatch.setattr(ReIDLearner, 'fit_stages',
                        lambda self, *args, **kwargs: trained.append(self) or fit(self, *args, **kwargs))
    shutil.rmtree(tmp_path/'runs'/'lstm-3')
    again = ablate(catalog, tmp_path, **how)
    assert len(trained) == 1  # the other one stays
    # the same figures to the last bit
    pd.testing.assert_frame_equal(again.drop(columns='seconds'), runs.drop(columns='seconds'))
    with pytest.raises(ValueError, match='holds a run with epochs=1, and now it is 2'):
        ablate(catalog, tmp_path, **{**how, 'epochs': 2})
    with pytest.raises(ValueError, match='holds a run with data.queries'):
        ablate(catalog[(catalog.split != 'query') | (catalog.index % 2 == 0)], tmp_path, **how)
    assert len(trained) == 1


@pytest.mark.slow
def test_a_stopped_run_goes_on_after_its_last_epoch(tiny, catalog, tmp_path, monkeypatch):
    how = dict(settings=['G'], epochs=3, workers=0)
    straight = ablate(catalog, tmp_path/'straight', **how)
    epochs, keep = [], Checkpoints.after_epoch

    def stop_after_two(self):
        keep(self)
        epochs.append(self.done)
        if len(epochs) == 2: raise KeyboardInterrupt('stop')

    monkeypatch.setattr(Checkpoints, 'after_epoch', stop_after_two)
    with pytest.raises(KeyboardInterrupt): ablate(catalog, tmp_path/'stopped', **how)
    stopped = ablate(catalog, tmp_path/'stopped', **how)
    assert epochs[:2] == [1, 2]
    assert epochs[-1] == 3
    assert epochs.count(1) == 1
    pd.testing.assert_frame_equal(stopped[FIGURES], straight[FIGURES])


@pytest.mark.slow
def test_learners_are_kept_on_demand_and_make_the_same_figures(tiny, catalog, tmp_path):
    wanted = dict(settings=['G'], seeds=(0,), epochs=1, workers=0)
    with pytest.raises(ValueError, match='learners=True'): setting_learner(catalog, tmp_path, 'G', workers=0)
    with pytest.raises(ValueError, match="unknown setting 'H': use one of G, G"):
        setting_learner(catalog, tmp_path, 'H')
    runs = ablate(catalog, tmp_path, **wanted)
    assert not list(tmp_path.rglob('*.pkl'))
    kept = ablate(catalog, tmp_path, learners=True, **wanted)
    pd.testing.assert_frame_equal(kept.drop(columns='seconds'), runs.drop(columns='seconds'))
    learn = setting_learner(catalog, tmp_path, 'G', workers=0)
    with learn.no_bar(): assert learn.evaluate().loc['plain', 'mAP'] == pytest.approx(runs.mAP[0], abs=1e-4)


@pytest.mark.slow
def test_what_holds_for_every_run_reaches_it(tiny, catalog, tmp_path):
    ablate(catalog, tmp_path, settings=['G'], epochs=1, workers=0, loading=dict(bs=4), model=dict(hidden=16),
           loss=dict(margin=.5))
    asked = json.loads((tmp_path/'runs/G-0/run.json').read_text())['arguments']
    assert asked['loading']['bs'] == 4
    assert asked['model']['hidden'] == 16
    assert asked['loss']['margin'] == .5
    assert asked['model']['mask'] is False


def test_summary_is_the_mean_and_the_spread_of_the_seeds():
    runs = fake_runs(seeds=(0, 1, 5))
    table = summary(runs)
    assert list(table.index.unique('study')) == list(STUDIES)
    for (study, line), row in table.iterrows():
        values = 100*runs[runs.setting == STUDIES[study][line]].mAP.to_numpy()
        assert row.mAP == pytest.approx(np.mean(values))
        assert row['± mAP'] == pytest.approx(np.std(values, ddof=1))
        assert row.runs == 3
    alone = summary(fake_runs(seeds=(0,)))
    assert alone['± R1'].isna().all()
    assert alone.runs.eq(1).all()  # nothing is known about it
    part = summary(runs[runs.setting.isin(['G', 'G+M'])])
    assert list(part.index) == [('Table 2', 'G'), ('Table 2', 'G+M')]


def test_no_epochs_are_no_ablation(catalog, tmp_path):
    with pytest.raises(ValueError, match='epochs=0: train one or more'): ablate(catalog, tmp_path, epochs=0)


@pytest.mark.slow
def test_an_ablation_leaves_the_generators_alone(tiny, catalog, tmp_path):
    before = torch.get_rng_state()
    ablate(catalog, tmp_path, settings=['G'], epochs=1, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
