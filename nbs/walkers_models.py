"""What several notebooks look at: the walkers, and a model of each setting of the paper's Table 2, trained on
them by the quick recipe.

The first notebook that asks for a setting trains it, in about three minutes on two cores, and keeps it beside
the walkers for the others. `MAGNIFIER_QUICK=1`, which the test command sets, takes a set, a size and one epoch
that take seconds, and show nothing but that the code runs."""
import os
import tempfile
from pathlib import Path

from magnifier.all import ProgressCallback, RECIPES, ablate, market1501, setting_learner, walkers

QUICK = bool(os.environ.get('MAGNIFIER_QUICK'))
if QUICK: RECIPES['quick'] = RECIPES['quick']._replace(loading={**RECIPES['quick'].loading, 'size': (64, 32), 'bs': 16})

path = walkers(n_train=8, n_test=6) if QUICK else walkers()
catalog = market1501(path)
runs = Path(tempfile.mkdtemp()) if QUICK else path.parent/'ablation'/path.name


def model_of(*settings):
    """The learners of these settings (one alone where one is named), as `magnifier_ablate --keep-learners
    --seeds 0` leaves them"""
    ablate(catalog, runs, settings=settings, seeds=(0,), epochs=1 if QUICK else None, learners=True, workers=0)
    learners = [setting_learner(catalog, runs, name, workers=0) for name in settings]
    for learn in learners: learn.remove_cb(ProgressCallback)  # its bars would stay in the page
    return learners if len(settings) > 1 else learners[0]
