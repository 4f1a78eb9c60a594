"Figures of trainings, ablations and catalogs"
import numpy as np
import pandas as pd
import pytest
from magnifier.look.graphs import plot_catalog, plot_history, plot_studies
from magnifier.train.ablation import FIGURES, SETTINGS, STUDIES


@pytest.fixture
def runs():
    return pd.DataFrame([dict(setting=name, seed=s, **{f: (10*i + 5*s + j)/500 for j, f in enumerate(FIGURES)})
                         for i, name in enumerate(SETTINGS) for s in (0, 1)])


@pytest.mark.slow
def test_a_panel_a_study_with_its_figures(runs, tmp_path):
    figure = plot_studies(runs, save=tmp_path/'all.png')
    titles = [ax.get_title() for ax in figure.axes if ax.axison]
    assert titles == [f'{study} (2 seeds)' for study in STUDIES]
    assert (tmp_path/'all.png').stat().st_size > 5000
    dots = figure.axes[0].lines[0].get_xdata()
    of = runs.groupby('setting').R1.mean()
    assert list(dots) == pytest.approx([100*of[name] for name in STUDIES['Table 2'].values()])
    kept = figure.axes[2].lines[0].get_ydata()
    assert list(kept) == pytest.approx([100*runs[runs.setting == s].mAP.mean()
                                        for s in ('torso 2', 'G+M+SAB', 'torso 6')])


def test_one_seed_says_so_and_missing_runs_are_left_out(runs):
    figure = plot_studies(runs[(runs.seed == 0) & runs.setting.isin(['G', 'random 2'])])
    assert [ax.get_title() for ax in figure.axes] == ['Table 2 (one seed)', 'Figure 5 (one seed)']
    uneven = plot_studies(runs[(runs.seed == 0) | (runs.setting == 'lstm')], ['cell'])
    assert uneven.axes[0].get_title() == 'cell (1 to 2 seeds)'
    with pytest.raises(ValueError, match="there is no run of study 'cell', but of Table 2"):
        plot_studies(runs[runs.setting == 'G'], ['cell'])


@pytest.mark.slow
def test_history_of_a_fit(learn):
    with pytest.raises(ValueError, match='no epoch'): learn.plot_training()
    learn.fit(1)
    left, right = ([t.get_text() for t in ax.get_legend().get_texts()] for ax in learn.plot_training().axes)
    assert right == ['R1', 'mAP']
    assert len(left) >= 7
    assert not any('region' in name for name in left)


def test_history_leaves_out_epochs_that_were_not_ranked():
    gaps = pd.DataFrame({'R1': [np.nan, .5, np.nan, .6]})
    figure = plot_history(pd.DataFrame({'a': [100., 1, .1, .01]}), gaps)
    assert list(figure.axes[1].lines[0].get_xdata()) == [2, 4]
    assert figure.axes[0].get_yscale() == 'log'


def test_history_without_metrics():
    figure = plot_history(pd.DataFrame({'sd': [.4, .3]}), unit='step')
    assert [ax.get_xlabel() for ax in figure.axes] == ['step']


def test_a_catalog_in_numbers(catalog, tmp_path):
    figure = plot_catalog(catalog, save=tmp_path/'c.png')
    assert (tmp_path/'c.png').stat().st_size > 5000
    assert [ax.get_title() for ax in figure.axes] == ['images', 'images by camera', 'identities by images']
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [(catalog['split'] == split).sum() for split in ('train', 'query', 'gallery')]
    assert len(plot_catalog(catalog[catalog.split == 'train']).axes[0].patches) == 1


def test_a_catalog_of_many_identities_and_cameras():
    many = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(5000)], mask=None, pid=np.arange(5000)//2 + 1,
                             camid=np.arange(5000) % 40, split='train'))
    figure = plot_catalog(many)
    assert len(figure.axes[1].patches) == 40
    assert len(figure.axes[1].get_xticks()) <= 16
