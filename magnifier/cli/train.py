"Train from a shell: a recipe over a data set, evaluated before and after"
from magnifier.cli.common import command, percent, read_catalog, say

__all__ = ['magnifier_train']


@command('data', 'path')
def magnifier_train(
    data:str='walkers',     # Data set: walkers (embedded), market1501, dukemtmc, cuhk03_np, ...
    path:str=None,          # Its folder; the embedded set is drawn if it is not there yet
    recipe:str='quick',     # How to train: quick (two CPU cores, minutes), one_cycle, baseline or paper (a GPU)
    out:str='runs/quick',   # Folder for the learner, the figures and the pictures
    arch:str=None,          # Backbone, as resnet18 or resnet50; the recipe's where not given
    epochs:int=None,        # Epochs; the recipe's where not given
    masks:str=None,         # Folder of part masks; found beside the data where not given
    seed:int=0,             # Seed of weights, batches and occlusions
    workers:int=None,       # Loader processes; fastai's choice where not given
    rerank:bool=False,      # Adds rows after k-reciprocal re-ranking
    debug:bool=False,       # Shows the traceback of an error
):
    """Trains MagnifierNet, evaluates it before and after, and writes learner, figures and pictures.

    Examples: `magnifier_train` (the embedded set, a few minutes on two cores) ·
    `magnifier_train market1501 /data/Market-1501 --recipe one_cycle --out runs/market`"""
    from pathlib import Path
    import magnifier.look.show  # noqa: F401, its pictures become methods of loaders and learners
    from magnifier.train.recipes import recipe as named
    from magnifier.train.runs import train_run
    named(recipe)  # an unknown one is said before anything is read
    run = train_run(read_catalog(data, path, masks), recipe, out, epochs=epochs, seed=seed, workers=workers,
                    model={'arch': arch} if arch else {}, rerank=rerank, say=say)
    out = Path(out)
    _pictures(run.learn, out, seed)
    say(f'query against gallery, in %:\n{percent([run.table])}\nwritten to {out.resolve()}: ' + ', '.join(sorted(p.name for p in out.iterdir() if p.is_file())))


def _pictures(learn, out, seed):
    "What the data, the results and the rankings look like"
    import matplotlib
    matplotlib.use('Agg')  # a command draws to files, with or without a screen
    learn.dls.show_batch(max_n=8, save=out/'show_batch.png')
    learn.show_results(max_n=4, seed=seed, save=out/'show_results.png')
    learn.show_ranking(seed=seed, save=out/'show_ranking.png')
