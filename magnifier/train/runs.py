"A training as a run: a recipe over a catalog, into a folder"
import logging
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from fastai.vision.all import set_seed
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.train.learner import magnifier_learner
from magnifier.train.recipes import recipe as named

__all__ = ['Run', 'train_run']

log = logging.getLogger(__name__)


class Run(NamedTuple):
    "What a run leaves"
    learn: object        # The trained learner
    table: pd.DataFrame  # R1 R5 R10 mAP mINP in [0,1]; rows 'before, plain', 'after, plain' and, if asked for, their re-ranked ones


def train_run(
    catalog:pd.DataFrame,   # One row an image, as every reader gives
    recipe:str='quick',     # One of `RECIPES`
    out='runs/quick',       # Folder of the run: learner.pkl, metrics.csv, losses.csv
    *,
    epochs:int|None=None,   # Epochs; the recipe's where not given
    seed:int=0,             # Seed of weights, batches, augmentation and occlusions
    workers:int|None=None,  # Loader processes; fastai's choice where not given
    loading:dict|None=None, # Arguments of `ReIDDataLoaders.from_df` beside or instead of the recipe's, as size, bs
    model:dict|None=None,   # Arguments of `magnifier_learner` beside or instead of the recipe's, as arch, sab, keep
    fitting:dict|None=None, # Further arguments of the recipe's fit function, as diversity
    rerank:bool=False,      # Adds rows after k-reciprocal re-ranking
    say=log.info,           # What is told of the run's progress goes there, line by line
) -> Run:  # Learner and figures
    "Trains a recipe over a catalog, evaluated before and after, and writes learner and figures"
    plan, out = named(recipe), Path(out)
    set_seed(seed)
    dls = ReIDDataLoaders.from_df(catalog, path=out, seed=seed, num_workers=workers, **{**plan.loading, **(loading or {})})
    learn = magnifier_learner(dls, **{**plan.model, 'seed': seed, **(model or {})})
    epochs = plan.epochs if epochs is None else epochs
    say(f'{recipe}: {plan.says}; {epochs} epochs over {len(dls.train_ds)} images of {dls.c} identities')
    out.mkdir(parents=True, exist_ok=True)
    before = learn.evaluate(rerank=rerank)
    plan.fit(learn, epochs, **(fitting or {}))
    table = pd.concat(t.set_axis([f'{when}, {row}' for row in t.index]) for when, t in (('before', before), ('after', learn.evaluate(rerank=rerank))))
    table.rename_axis('model').to_csv(out/'metrics.csv')
    learn.loss_parts.history.rename_axis('epoch').to_csv(out/'losses.csv')
    learn.export('learner.pkl')
    return Run(learn, table)
