"Train from a shell: a recipe over a data set, evaluated before and after, and taken up again where it was ended"
from magnifier.cli.common import EMBEDDED, command, percent, read_catalog, say

__all__ = ['magnifier_train']

BRANCHES = {'global': dict(mask=False, sab=False, sfb=False), 'all': dict(mask=True, sab=True, sfb=True)}
CACHES = {'ram': 'ram', 'disk': 'disk', 'none': None}


@command('data', 'path')
def magnifier_train(
    data:str='walkers',     # Data set: walkers (embedded), market1501, dukemtmc, cuhk03_np, ...
    path:str=None,          # Its folder; the embedded set is drawn if it is not there yet
    recipe:str='quick',     # How to train: quick (two CPU cores, minutes); one_cycle, baseline or paper (a GPU)
    out:str=None,           # Folder of the run; runs/RECIPE, or runs/DATA-RECIPE where the data are not walkers
    epochs:int=None,        # Epochs; the recipe's where not given. Its stages, warm-up and milestones follow
    arch:str=None,          # Backbone, as resnet18 or resnet50; the recipe's where not given
    weights:str=None,       # File of weights to start from, or none for random ones; the recipe's where not given (ImageNet's, downloaded)
    branches:str=None,      # global (no part masks needed) or all; the recipe's where not given
    size:str=None,          # Height x width in pixels, as 256x128; the recipe's where not given
    bs:int=None,            # Images a batch; the recipe's where not given
    cache:str=None,         # Originals decoded once: ram, disk or none; the recipe's where not given
    masks:str=None,         # Folder of part masks; found beside the data where not given
    seed:int=0,             # Seed of weights, batches, augmentation and occlusions
    workers:int=None,       # Loader processes; fastai's choice where not given
    rerank:bool=False,      # Adds rows after k-reciprocal re-ranking
    fast:bool=False,        # bfloat16 where the hardware has it, channels last, and a compiled network (minutes at the start)
    resume:bool=False,      # Goes on with a run that was ended, given the same arguments
    debug:bool=False,       # Shows the traceback of an error
):
    """Trains MagnifierNet, evaluates it before and after, and writes learner, figures, pictures and a record of what was done.

    Examples: `magnifier_train` (the embedded set, a few minutes on two cores) ·
    `magnifier_train market1501 /data/Market-1501 --recipe paper` (the row of the paper's table) · the same with `--resume` after a crash or
    Ctrl-C · `torchrun --nproc_per_node 4 --no-python magnifier_train ...` (four GPUs, or processes) ·
    `magnifier_train dukemtmc /data/DukeMTMC-reID --recipe baseline --branches all`"""
    given = dict(data=data, path=path, recipe=recipe, out=out, epochs=epochs, arch=arch, weights=weights, branches=branches, size=size, bs=bs, cache=cache, masks=masks,
                 seed=seed, workers=workers, rerank=rerank, fast=fast)
    loading, model = _loading(size, bs, cache), _model(arch, weights, branches)
    from pathlib import Path
    from fastai.vision.all import rank_distrib
    import magnifier.look  # noqa: F401, figures become methods of loaders and learners
    from magnifier.train.distributed import join_ranks, rank0_first
    from magnifier.train.recipes import recipe as named
    from magnifier.train.runs import train_run
    named(recipe)  # an unknown one is said before anything is read
    out = Path(out or (f'runs/{recipe}' if data == EMBEDDED else f'runs/{data}-{recipe}'))
    join_ranks()
    with rank0_first(): catalog = read_catalog(data, path, masks)  # of several processes one draws or unpacks, the others find it
    try: run = train_run(catalog, recipe, out, epochs=epochs, seed=seed, workers=workers, loading=loading, model=model, rerank=rerank, fast=fast, resume=resume,
                         then=lambda learn: _pictures(learn, out, seed), say=say)
    except KeyboardInterrupt as e:
        say(f'magnifier_train: {e or "stopped by the keyboard"}; go on with: {_again(given)}')
        raise SystemExit(130) from None  # what a shell expects of a command that SIGINT ended
    if rank_distrib(): return
    say(f'query against gallery, in %:\n{percent([run.table])}\nwritten to {out.resolve()}: ' + ', '.join(sorted(p.name for p in out.iterdir() if p.is_file())))


def _loading(size, bs, cache):
    "Arguments of the loaders that are not the recipe's"
    import re
    if size and not re.fullmatch(r'\d+x\d+', size): raise ValueError(f'size {size!r}: give height x width in pixels, as 256x128')
    if bs is not None and bs < 1: raise ValueError(f'bs {bs}: give 1 or more images a batch')
    if cache and cache not in CACHES: raise ValueError(f'unknown cache {cache!r}: use one of {", ".join(CACHES)}')
    return {**({'size': tuple(map(int, size.split('x')))} if size else {}), **({'bs': bs} if bs else {}), **({'cache': CACHES[cache]} if cache else {})}


def _model(arch, weights, branches):
    "Arguments of the learner that are not the recipe's"
    if branches and branches not in BRANCHES: raise ValueError(f'unknown branches {branches!r}: use one of {", ".join(BRANCHES)}')
    start = {} if weights is None else {'pretrained': False} if weights == 'none' else {'weights': weights}
    return {**BRANCHES.get(branches, {}), **start, **({'arch': arch} if arch else {})}


def _again(given):
    "The command that goes on"
    import shlex
    positional = [given['data'], *([given['path']] if given['path'] else [])]
    defaults = dict(data=None, path=None, recipe='quick', seed=0, rerank=False, fast=False)
    for name, value in given.items():
        if name in ('data', 'path') or value == defaults.get(name): continue
        positional += [f'--{name}'] + ([] if value is True else [str(value)])
    return ' '.join(map(shlex.quote, ['magnifier_train', *positional, '--resume']))


def _pictures(learn, out, seed):
    "What the data, the results and the rankings look like"
    import matplotlib
    matplotlib.use('Agg')  # a command draws to files, with or without a screen
    learn.dls.show_batch(max_n=8, save=out/'show_batch.png')
    learn.show_results(max_n=4, seed=seed, save=out/'show_results.png')
    learn.show_ranking(seed=seed, save=out/'show_ranking.png')
