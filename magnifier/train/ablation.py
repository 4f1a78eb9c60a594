"The paper's ablations: Table 2, Figures 4 and 5, and three choices its text and code disagree on; run by run, over seeds"
import gc
import logging
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from fastai.vision.all import save_model
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.files import aside
from magnifier.train.learner import ReIDLearner, recipe_learner
from magnifier.train.recipes import recipe as named
from magnifier.train.records import describe_data, differing, environment, read_json, write_json
from magnifier.train.state import seeded

__all__ = ['FIGURES', 'PAPER', 'STUDIES', 'Setting', 'SETTINGS', 'settings_of', 'ablate', 'setting_learner', 'read_runs', 'summary']

log = logging.getLogger(__name__)
FIGURES = ['R1', 'R5', 'R10', 'mAP', 'mINP']


class Setting(NamedTuple):
    "What one line of an ablation trains"
    model: dict             # Arguments of `magnifier_learner`, before a recipe's own: which parts there are, and what else differs
    diversity: bool = False # Whether the second phase has the semantic diversity loss


def _parts(mask=True, sab=False, sfb=False, **kwargs): return dict(mask=mask, sab=sab, sfb=sfb, **kwargs)

def _sab(**kwargs): return Setting(_parts(sab=True, **kwargs))

def _sfb(sfb=True, **kwargs): return Setting(_parts(sfb=sfb, **kwargs))


SETTINGS = {
    'G': Setting(_parts(mask=False)),
    'G+M': Setting(_parts()),
    'G+M+SAB': _sab(),  # keeps 4 by torso, the paper's choice
    'G+M+SFB': _sfb(),
    'G+M+SAB+SFB': _sab(sfb=True),
    'G+M+SAB+SFB+SD': Setting(_parts(sab=True, sfb=True), diversity=True),
    'G+M+AB': _sfb(sfb='ab'),
    'torso 2': _sab(keep=2), 'torso 6': _sab(keep=6),
    **{f'random {keep}': _sab(strategy='random', keep=keep) for keep in (2, 4, 6)},
    'lstm': _sfb(cell='lstm'),
    'no background': _sab(keep_background=False),
    'stage 4': _sab(sfb=True, region_stage=4),
}

# Study -> line -> setting. A setting that several studies show is trained once
STUDIES = {
    'Table 2': {name: name for name in ('G', 'G+M', 'G+M+SAB', 'G+M+SFB', 'G+M+SAB+SFB', 'G+M+SAB+SFB+SD')},
    'Figure 4': {'AB': 'G+M+AB', 'SFB': 'G+M+SFB'},
    'Figure 5': {f'{strategy} {keep}': 'G+M+SAB' if (strategy, keep) == ('torso', 4) else f'{strategy} {keep}'
                 for strategy in ('torso', 'random') for keep in (2, 4, 6)},
    'cell': {'gru': 'G+M+SFB', 'lstm': 'lstm'},
    'background': {'kept': 'G+M+SAB', 'occluded': 'no background'},
    'region stage': {'3': 'G+M+SAB+SFB', '4': 'stage 4'},
}

# R1 / mAP in % of Table 2, with real data and ImageNet weights
PAPER = pd.DataFrame(
    [(69.8, 67.4, 82.7, 70.8), (71.3, 69.0, 83.9, 72.9), (76.6, 74.6, 87.1, 76.7), (77.4, 75.9, 86.7, 75.2), (81.2, 78.5, 88.6, 79.6), (82.4, 79.6, 90.0, 80.7)],
    index=list(STUDIES['Table 2']), columns=['CUHK03-L R1', 'CUHK03-L mAP', 'DukeMTMC R1', 'DukeMTMC mAP'])


def settings_of(
    studies=None,  # Names of `STUDIES`; None for all
) -> list:  # The settings that they show, each once
    "Which settings to train; a ValueError for an unknown study lists the known"
    studies = list(STUDIES) if studies is None else list(studies)
    unknown = [s for s in studies if s not in STUDIES]
    if unknown: raise ValueError(f'unknown study {unknown[0]!r}: use one of {", ".join(STUDIES)}')
    return list(dict.fromkeys(setting for study in studies for setting in STUDIES[study].values()))


def ablate(
    catalog,  # Catalog with training, query and gallery images, and part masks
    out,  # Folder of the runs: `runs/SETTING-SEED.json`, a file a run
    *,
    recipe: str = 'quick',  # How each is trained (`magnifier.train.recipes`)
    studies=None,  # Names of `STUDIES`; None for all
    settings=None,  # Names of `SETTINGS` instead, where a study is too much
    seeds=(0,),  # Seeds of weights, batches and occlusions; one seed after the other
    epochs: int | None = None,  # Epochs of a run; None for the recipe's
    arch: str | None = None,  # Backbone; None for the recipe's
    workers: int | None = None,  # Loader processes; None for fastai's choice
    weights: bool = False,  # Whether each run's weights are kept too, in `models/SETTING-SEED.pth`, for `setting_learner`
) -> pd.DataFrame:  # `read_runs`
    """Trains and evaluates every setting with every seed. A run that is there already is not repeated, so that a stopped ablation goes on
    where it was; one made otherwise (other recipe, epochs, data) is refused."""
    plan, out = named(recipe), Path(out)
    epochs = plan.epochs if epochs is None else epochs
    if epochs < 1: raise ValueError(f'epochs={epochs}: train one or more')
    made = dict(recipe=recipe, epochs=epochs, arch=arch or plan.model['arch'], **{split: int(n) for split, n in catalog.split.value_counts().items()},
                data=describe_data(catalog)['digest'])
    wanted = [(seed, _known(name)) for seed in seeds for name in (settings or settings_of(studies))]
    for i, (seed, name) in enumerate(wanted):
        file = out/'runs'/f'{_stem(name, seed)}.json'
        if file.exists():
            _check_same(file, made)
            if not weights or _weights(out, name, seed).exists(): continue
        log.info('%s, seed %s (%s of %s)', name, seed, i + 1, len(wanted))
        with seeded(seed):
            learn = _built(catalog, out, name, seed, recipe, arch, workers)
            run = _run(learn, recipe, SETTINGS[name], epochs)
        if weights:
            with aside(_weights(out, name, seed)) as part: save_model(part, learn.model, None, with_opt=False)
        write_json(file, dict(setting=name, seed=seed, **made, **run, **environment()))
        del learn
        gc.collect()  # a learner refers to itself: without this, dozens of them wait for the next collection
    return read_runs(out)


def _known(name):
    if name not in SETTINGS: raise ValueError(f'unknown setting {name!r}: use one of {", ".join(SETTINGS)}')
    return name


def _stem(name, seed): return f'{name.replace(" ", "_")}-{seed}'

def _weights(out, name, seed): return Path(out)/'models'/f'{_stem(name, seed)}.pth'


def _built(catalog, out, name, seed, recipe, arch, workers):
    "The learner that a run starts from"
    plan = named(recipe)
    dls = ReIDDataLoaders.from_df(catalog, path=out, seed=seed, num_workers=workers, **plan.loading)
    return recipe_learner(dls, recipe, **{'arch': arch or plan.model['arch'], 'seed': seed, **SETTINGS[name].model})


def _run(learn, recipe, setting, epochs):
    "Figures of one training"
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(recipe, epochs, diversity=setting.diversity)
    seconds = time.perf_counter() - start
    with learn.no_bar(): figures = learn.evaluate().loc['plain', FIGURES]
    return dict(figures.astype(float), seconds=round(seconds, 1))


def setting_learner(
    catalog,  # Catalog that the runs were made with
    out,  # Folder of the runs
    name: str,  # One of `SETTINGS`
    seed: int = 0,  # Its seed
    *,
    recipe: str = 'quick',  # As for `ablate`
    arch: str | None = None,  # As for `ablate`
    workers: int | None = None,  # As for `ablate`
) -> ReIDLearner:  # The learner of one run
    "One run's learner, to look into what a setting learnt. A ValueError for an unknown setting, or where its weights were not kept"
    file = _weights(out, _known(name), seed)
    if not file.exists(): raise ValueError(f'{file} is not there: ablate(..., weights=True) trains that setting and keeps its weights')
    with seeded(seed): return _built(catalog, out, name, seed, recipe, arch, workers).load(file.stem, with_opt=False)


def _check_same(file, made):
    there = read_json(file)
    other = differing({key: there.get(key) for key in made}, made)
    if other:
        key, value, now = other[0]
        raise ValueError(f'{file} was made with {key}={value}, and {key}={now} is asked for: take another folder, or remove that one')


def read_runs(
    out,  # Folder that `ablate` wrote
) -> pd.DataFrame:  # A row a run: setting, seed, recipe, epochs, arch, images a split, digest of the data, R1 R5 R10 mAP mINP in [0,1], seconds, commit
    "Runs that are finished, in the order of `SETTINGS` and of the seeds"
    runs = [{k: v for k, v in read_json(f).items() if not isinstance(v, dict)} for f in sorted((Path(out)/'runs').glob('*.json'))]
    if not runs: raise ValueError(f'{out}: no finished run there; `magnifier_ablate --out {out}` makes them')
    order = {name: i for i, name in enumerate(SETTINGS)}
    return pd.DataFrame(sorted(runs, key=lambda r: (order[r['setting']], r['seed'])))


def summary(
    runs: pd.DataFrame,  # Of `ablate` or `read_runs`, or its CSV
) -> pd.DataFrame:  # Index study and line; columns setting, runs, R1 mAP mINP in % (means), and '± ' of each: standard deviation over seeds
    "Means and spreads, study by study; of one seed alone the spread is unknown (NaN)"
    rows = []
    for study, lines in STUDIES.items():
        for line, setting in lines.items():
            some = runs[runs.setting == setting]
            if not len(some): continue
            figures = {name: 100*some[name].mean() for name in ('R1', 'mAP', 'mINP')}
            spreads = {f'± {name}': 100*some[name].std(ddof=1) for name in figures}
            rows.append(dict(study=study, line=line, setting=setting, runs=len(some), **figures, **spreads))
    return pd.DataFrame(rows).set_index(['study', 'line'])
