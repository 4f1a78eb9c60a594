"""The paper's ablations: Table 2, Figures 4 and 5, and three choices in which its text and code differ; each with
several seeds"""

import gc
import logging
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from fastai.vision.all import load_learner

from magnifier.checks import refuse
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.train.learner import ReIDLearner
from magnifier.train.recipes import recipe as named
from magnifier.train.runs import read_json, train_run

__all__ = ['TABLE_1', 'STUDIES', 'SETTINGS', 'ablate', 'setting_learner', 'read_runs', 'summary']

log = logging.getLogger(__name__)
FIGURES = ['R1', 'R5', 'R10', 'mAP', 'mINP']


class Setting(NamedTuple):
    "The training of one line of an ablation"
    model: dict  # Arguments of `magnifier_learner`: which parts there are, and what else differs
    diversity: bool = False  # Whether the second phase has the semantic diversity loss


def _setting(*, mask=True, sab=False, sfb=False, diversity=False, **model):
    return Setting(dict(mask=mask, sab=sab, sfb=sfb, **model), diversity)


# The lines of Figure 5, by regions kept, and the occlusions that they train beside the paper's own choice (torso, 4)
FIGURE_5 = [f'{strategy} {keep}' for strategy in ('torso', 'random') for keep in (2, 4, 6)]
OCCLUSIONS = {name: dict(strategy=name.split()[0], keep=int(name.split()[1])) for name in FIGURE_5 if name != 'torso 4'}

SETTINGS = {
    'G': _setting(mask=False),
    'G+M': _setting(),
    'G+M+SAB': _setting(sab=True),  # keeps 4 by torso, the paper's choice
    'G+M+SFB': _setting(sfb=True),
    'G+M+SAB+SFB': _setting(sab=True, sfb=True),
    'G+M+SAB+SFB+SD': _setting(sab=True, sfb=True, diversity=True),
    'G+M+AB': _setting(sfb='ab'),
    **{name: _setting(sab=True, **occlusion) for name, occlusion in OCCLUSIONS.items()},
    'lstm': _setting(sfb=True, cell='lstm'),
    'no background': _setting(sab=True, keep_background=False),
    'stage 4': _setting(sab=True, sfb=True, region_stage=4),
    'whole AB': _setting(sab=True, sfb='ab'),
    **{f'whole {name}': _setting(sab=True, sfb=True, **occlusion) for name, occlusion in OCCLUSIONS.items()},
}

# Study -> line -> setting. A setting that several studies show is trained once
STUDIES = {
    'Table 2': {name: name for name in ('G', 'G+M', 'G+M+SAB', 'G+M+SFB', 'G+M+SAB+SFB', 'G+M+SAB+SFB+SD')},
    'Figure 4': {'AB': 'G+M+AB', 'SFB': 'G+M+SFB'},
    'Figure 5': {name: name if name in OCCLUSIONS else 'G+M+SAB' for name in FIGURE_5},
    'Figure 4 (whole network)': {'AB': 'whole AB', 'SFB': 'G+M+SAB+SFB'},
    'Figure 5 (whole network)': {name: f'whole {name}' if name in OCCLUSIONS else 'G+M+SAB+SFB' for name in FIGURE_5},
    'cell': {'gru': 'G+M+SFB', 'lstm': 'lstm'},
    'background': {'kept': 'G+M+SAB', 'occluded': 'no background'},
    'region stage': {'3': 'G+M+SAB+SFB', '4': 'stage 4'},
}

# R1 / mAP in % of Table 2, with real data and ImageNet weights
PAPER = pd.DataFrame(
    [
        (69.8, 67.4, 82.7, 70.8),
        (71.3, 69.0, 83.9, 72.9),
        (76.6, 74.6, 87.1, 76.7),
        (77.4, 75.9, 86.7, 75.2),
        (81.2, 78.5, 88.6, 79.6),
        (82.4, 79.6, 90.0, 80.7),
    ],
    index=list(STUDIES['Table 2']),
    columns=['CUHK03-L R1', 'CUHK03-L mAP', 'DukeMTMC R1', 'DukeMTMC mAP'],
)

# R1 / mAP in % of Table 1, plain and re-ranked
TABLE_1 = pd.DataFrame(
    [(82.4, 79.6, 80.2, 77.1, 90.0, 80.7, 95.8, 89.6), (87.3, 89.1, 86.3, 87.5, 91.8, 90.6, 96.5, 95.1)],
    index=['plain', 're-ranked'],
    columns=[
        f'{name} {figure}' for name in ('CUHK03-L', 'CUHK03-D', 'DukeMTMC', 'Market-1501') for figure in ('R1', 'mAP')
    ],
)


def settings_of(
    studies=None,  # Names of `STUDIES`; None for all
) -> list:  # The settings that they show, each once
    "The settings to train; a ValueError for an unknown study lists the known ones"
    studies = list(STUDIES) if studies is None else list(studies)
    for study in studies: refuse({f'unknown study {study!r}: use one of {", ".join(STUDIES)}': study not in STUDIES})
    return list(dict.fromkeys(setting for study in studies for setting in STUDIES[study].values()))


def ablate(
    catalog,  # Catalog with training, query and gallery images, and part masks
    out,  # Folder of the runs: `runs/SETTING-SEED`, a folder a run
    *,
    recipe: str = 'quick',  # How each is trained (`magnifier.train.recipes`)
    studies=None,  # Names of `STUDIES`; None for all
    settings=None,  # Names of `SETTINGS` instead, where a study is too much
    seeds=(0,),  # Seeds of weights, batches and occlusions; one seed after the other
    epochs: int | None = None,  # Epochs of a run; None for the recipe's
    workers: int | None = None,  # Loader processes; None for fastai's choice
    loading: dict | None = None,  # As for `train_run`; the same for every run
    model: dict | None = None,  # As for `train_run`: arch, weights, ...; what a setting varies comes after it
    loss: dict | None = None,  # As for `train_run`
    fitting: dict | None = None,  # As for `train_run`
    fast: bool = False,  # As for `train_run`
    learners: bool = False,  # Whether each run's learner is kept, for `setting_learner`
) -> pd.DataFrame:  # `read_runs`
    """Trains and evaluates every setting with every seed. Finished runs are not repeated, and a stopped run continues
    after its last epoch; a run with another recipe, epochs or data is refused"""
    named(recipe).plan(epochs, **(fitting or {}))  # a mistake is said before anything is trained
    wanted = [(seed, _known(name)) for seed in seeds for name in (settings or settings_of(studies))]
    for i, (seed, name) in enumerate(wanted):
        folder = _folder(out, name, seed)
        if learners: _remove_without_learner(folder)
        log.info('%s, seed %s (%s of %s)', name, seed, i + 1, len(wanted))
        setting = SETTINGS[name]
        train_run(catalog, recipe, folder, epochs=epochs, seed=seed, workers=workers, loading=loading,
                  model={**(model or {}), **setting.model}, loss=loss,
                  fitting={'diversity': setting.diversity, **(fitting or {})},
                  fast=fast, resume=True, before=False, quiet=True)
        if not learners: (folder/'learner.pkl').unlink(missing_ok=True)
        gc.collect()  # a learner refers to itself: without this, dozens of them wait for the next collection
    return read_runs(out)


def _known(name):
    refuse({f'unknown setting {name!r}: use one of {", ".join(SETTINGS)}': name not in SETTINGS})
    return name


def _folder(out, name, seed): return Path(out)/'runs'/f'{name.replace(" ", "_")}-{seed}'


def _remove_without_learner(folder):
    if _is_finished(folder) and not (folder/'learner.pkl').exists(): shutil.rmtree(folder)


def _is_finished(folder):
    record = read_json(folder/'run.json')
    return record is not None and record['finished'] is not None


def setting_learner(
    catalog,  # Catalog that the runs were made with
    out,  # Folder of the runs
    name: str,  # One of `SETTINGS`
    seed: int = 0,  # Its seed
    *,
    workers: int | None = None,  # Loader processes; None for fastai's choice
) -> ReIDLearner:  # The learner of one run, with its images
    "The learner of one run. A ValueError for an unknown setting, or if its learner was not kept"
    folder = _folder(out, _known(name), seed)
    refuse({f'{folder} keeps no learner: ablate(..., learners=True) trains that setting and keeps its learner':
            not (folder/'learner.pkl').exists()})
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*insecure pickle.*')  # this folder's own
        learn = load_learner(folder/'learner.pkl')
    arguments = read_json(folder/'run.json')['arguments']['loading']
    arguments['size'] = tuple(arguments['size'])
    learn.dls = ReIDDataLoaders.from_df(catalog, path=folder, seed=seed, num_workers=workers, **arguments)
    return learn


def read_runs(
    out,  # Folder that `ablate` wrote
) -> pd.DataFrame:  # A row a run: setting, seed, how it was made, `FIGURES` in [0,1], seconds, commit
    "The finished runs, in the order of `SETTINGS` and of the seeds"
    folders = sorted(file.parent for file in (Path(out)/'runs').glob('*/run.json'))
    rows = [_row(folder) for folder in folders if _is_finished(folder)]
    refuse({f'{out}: no finished run; `magnifier_ablate --out {out}` makes them': not rows})
    order = {name: i for i, name in enumerate(SETTINGS)}
    return pd.DataFrame(sorted(rows, key=lambda row: (order[row['setting']], row['seed'])))


def _row(folder):
    "One run's record as one row"
    record = read_json(folder/'run.json')
    asked, data = record['arguments'], record['data']
    setting = next(name for name in SETTINGS if _folder('', name, asked['seed']).name == folder.name)
    about = {key: data[key] for key in ('images', 'queries', 'gallery', 'digest')}
    figures = {name: record['figures']['after, plain'][name] for name in FIGURES}
    return dict(setting=setting, seed=asked['seed'], recipe=asked['recipe'], epochs=asked['epochs'],
                arch=asked['model']['arch'], **about, **figures, seconds=record['seconds'], commit=record['commit'])


def summary(
    runs: pd.DataFrame,  # Of `ablate` or `read_runs`, or its CSV
) -> pd.DataFrame:  # Index study and line; setting, runs, R1 mAP mINP in % (means), '± ' of each (standard deviation)
    "Means and standard deviations by study; with one seed the deviation is NaN"
    rows = []
    for study, lines in STUDIES.items():
        for line, setting in lines.items():
            some = runs[runs.setting == setting]
            if not len(some): continue
            figures = {name: 100*some[name].mean() for name in ('R1', 'mAP', 'mINP')}
            spreads = {f'± {name}': 100*some[name].std(ddof=1) for name in figures}
            rows.append(dict(study=study, line=line, setting=setting, runs=len(some), **figures, **spreads))
    return pd.DataFrame(rows).set_index(['study', 'line'])
