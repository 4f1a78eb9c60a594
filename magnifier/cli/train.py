"""Train from a shell: a recipe over a data set, evaluated before and after, or the paper's ablations.
`--set NAME=VALUE` gives any argument of the loaders, the learner, the loss and the fit"""

import ast
from inspect import signature
from types import NoneType, UnionType
from typing import Annotated, NamedTuple, get_args, get_origin

from magnifier.checks import refuse
from magnifier.cli.common import EMBEDDED, check_data, command, percent, read_catalog, say, say_imports

__all__ = ['magnifier_train', 'magnifier_ablate']

BRANCHES = {'global': dict(mask=False, sab=False, sfb=False), 'all': dict(mask=True, sab=True, sfb=True)}
CACHES = {'ram': 'ram', 'disk': 'disk', 'none': None}
REPEATED = dict(action='append', default=None)


@command('data', 'path')
def magnifier_train(
    data: str = EMBEDDED,  # Data set: walkers (embedded), market1501, cuhk03_np_detected, identity_folders (own), ...
    path: str = None,  # Its folder; the built-in set is drawn if it is not there yet
    recipe: str = 'quick',  # How to train: quick or light (a CPU, minutes); one_cycle, baseline or paper (a GPU)
    out: str = None,  # Folder of the run; runs/RECIPE, or runs/DATA-RECIPE where the data are not walkers
    epochs: int = None,  # Epochs; the recipe's where not given. Its stages, warm-up and milestones follow
    arch: str = None,  # Backbone, as resnet18 or resnet50; the recipe's where not given
    weights: str = None,  # File of weights to start from, or none for random ones; the recipe's where not given
    branches: str = None,  # global (no part masks needed) or all; the recipe's where not given
    size: str = None,  # Height x width in pixels, as 256x128; the recipe's where not given
    bs: int = None,  # Images a batch; the recipe's where not given
    cache: str = None,  # Originals decoded once: ram, disk or none; the recipe's where not given
    set: Annotated[str, REPEATED] = None,  # Any other argument of a training, as keep=6; may be repeated
    masks: str = None,  # Folder of part masks; found beside the data where not given
    camera: str = None,  # identity_folders: regular expression with one group, the camera, in each image's path
    include: str = None,  # identity_folders: regular expression; only images whose path it is found in
    exclude: str = None,  # identity_folders: the same; but not these
    seed: int = 0,  # Seed of weights, batches, augmentation and occlusions
    workers: int = None,  # Loader processes; fastai's choice where not given
    rerank: bool = False,  # Adds rows after k-reciprocal re-ranking
    fast: bool = False,  # bfloat16 where the hardware has it, and a compiled network (minutes at the start)
    resume: bool = False,  # Goes on with a run that was ended, given the same arguments
    debug: bool = False,  # Shows the traceback of an error
):
    """Trains MagnifierNet, evaluates it before and after, and writes learner, figures and a record of what was done.

    Examples: `magnifier_train` (the built-in set, a few minutes on two cores) ·
    `magnifier_train market1501 /data/Market-1501 --recipe paper` (the row of the paper's table) · the same with
    `--resume` after a crash or Ctrl-C ·
    `magnifier_train cuhk03_np_detected /data/cuhk03-np --recipe paper --set milestones=40 --set second_lr=0` (as the
    authors' code) ·
    `magnifier_train identity_folders /data/own --camera 'cam(\\d+)'` ·
    `torchrun --nproc_per_node 4 --no-python magnifier_train ...` (four GPUs, or processes)"""
    given = {name: value for name, value in locals().items() if name not in ('resume', 'debug')}
    loading = _loading(size, bs, cache)
    model = _model(arch, weights, branches)
    settings = _settings(set)
    from pathlib import Path
    from magnifier.train.recipes import recipe as named
    named(recipe)
    check_data(data, path)
    say_imports()
    from fastai.vision.all import rank_distrib
    import magnifier.look  # noqa: F401, figures become methods of loaders and learners
    from magnifier.train.distributed import join_ranks, rank0_first
    from magnifier.train.runs import train_run
    asked = parse_arguments(settings)
    asked['loading'] |= loading
    asked['model'] |= model
    out = Path(out or (f'runs/{recipe}' if data == EMBEDDED else f'runs/{data}-{recipe}'))
    join_ranks()
    with rank0_first():  # of several processes one draws or unpacks, the others find it
        catalog = read_catalog(data, path, masks, camera=camera, include=include, exclude=exclude)
    try:
        run = train_run(catalog, recipe, out, epochs=epochs, seed=seed, workers=workers, **asked, dataset=data,
                        rerank=rerank, fast=fast, resume=resume, then=lambda learn: _figures(learn, out, seed), say=say)
    except KeyboardInterrupt as e:
        say(f'magnifier_train: {e or "stopped by the keyboard"}; go on with: {_again(given)}')
        raise SystemExit(130) from None  # what a shell expects of a command that SIGINT ended
    if rank_distrib(): return
    files = ', '.join(sorted(p.name for p in out.iterdir() if p.is_file()))
    say(f'query against gallery, in %:\n{percent([run.table])}\nwritten to {out.resolve()}: {files}')


def _again(given):
    "The command that continues the run"
    import shlex
    words = ['magnifier_train', given['data'], *([given['path']] if given['path'] else [])]
    defaults = dict(recipe='quick', seed=0, rerank=False, fast=False)
    for name in signature(magnifier_train).parameters:  # Python 3.10's `locals` has an order of its own
        value = given.get(name)
        if name in ('data', 'path') or value == defaults.get(name): continue
        if value is True: words.append(f'--{name}')
        else:
            for text in value if isinstance(value, list) else [value]: words += [f'--{name}', str(text)]
    return ' '.join(map(shlex.quote, [*words, '--resume']))


def _figures(learn, out, seed):
    "Figures of the data, the results and the rankings"
    learn.dls.show_batch(max_n=8, save=out/'show_batch.png')
    learn.show_results(max_n=4, seed=seed, save=out/'show_results.png')
    learn.show_ranking(seed=seed, save=out/'show_ranking.png')


@command('data', 'path')
def magnifier_ablate(
    data: str = EMBEDDED,  # Data set: walkers (embedded), market1501, cuhk03_np_labelled, ...
    path: str = None,  # Its folder; the built-in set is drawn if it is not there yet
    recipe: str = 'quick',  # How each run is trained, as in magnifier_train
    out: str = 'runs/ablation',  # Folder of the runs, the tables and the figure
    studies: str = None,  # Some alone, with commas between: Table 2, Figure 4, Figure 5 (whole network), cell, ...
    seeds: str = '0,1,2',  # Seeds, with commas between; each setting is trained once with each
    epochs: int = None,  # Epochs of a run; the recipe's where not given
    arch: str = None,  # Backbone; the recipe's where not given
    weights: str = None,  # File of weights to start from, or none for random ones; the recipe's where not given
    size: str = None,  # Height x width in pixels, as 256x128; the recipe's where not given
    bs: int = None,  # Images a batch; the recipe's where not given
    cache: str = None,  # Originals decoded once: ram, disk or none; the recipe's where not given
    set: Annotated[str, REPEATED] = None,  # Any other argument of a training, the same for all; may be repeated
    masks: str = None,  # Folder of part masks; found beside the data where not given
    workers: int = None,  # Loader processes; fastai's choice where not given
    fast: bool = False,  # bfloat16 where the hardware has it, and a compiled network (minutes at the start)
    keep_learners: bool = False,  # Keeps each run's learner too
    debug: bool = False,  # Shows the traceback of an error
):
    """Trains the rows of the paper's Table 2, of its Figures 4 and 5, and three more choices, over several seeds, and
    writes ablation.csv (a row a run), summary.csv (means and spreads) and ablation.png. Finished runs are not repeated:
    a stopped ablation continues after the last epoch that it finished.

    Examples: `magnifier_ablate --studies "Table 2" --seeds 0` · `magnifier_ablate market1501 /data/Market-1501 --recipe
    paper --out runs/market-ablation --size 256x128`"""
    loading = _loading(size, bs, cache)
    model = _model(arch, weights)
    settings = _settings(set)
    from pathlib import Path
    from magnifier.train.recipes import recipe as named
    named(recipe)
    numbers = _seeds(seeds)
    check_data(data, path)
    say_imports()
    import logging
    from magnifier.look.graphs import plot_studies
    from magnifier.train.ablation import ablate, settings_of, summary
    asked = parse_arguments(settings)
    asked['loading'] |= loading
    asked['model'] |= model
    wanted = None if studies is None else [part.strip() for part in studies.split(',') if part.strip()]
    names = settings_of(wanted)
    catalog = read_catalog(data, path, masks)
    say(f'{len(names)} settings x {len(numbers)} seeds with recipe {recipe}: {", ".join(names)}')
    logging.basicConfig(format='%(asctime)s %(message)s')
    logging.getLogger('magnifier.train.ablation').setLevel(logging.INFO)
    runs = ablate(catalog, out, recipe=recipe, studies=wanted, seeds=numbers, epochs=epochs, workers=workers, **asked,
                  fast=fast, learners=keep_learners)
    table = summary(runs)
    runs.to_csv(Path(out)/'ablation.csv', index=False)
    table.round(2).to_csv(Path(out)/'summary.csv')
    plot_studies(runs, save=Path(out)/'ablation.png')
    shown = table.drop(columns='setting').round(1).to_string()
    say(f'in %, means over seeds and their standard deviation:\n{shown}\nwritten to {Path(out).resolve()}')


def _seeds(text):
    try:
        return [int(part) for part in str(text).split(',') if part.strip()]
    except ValueError:
        raise ValueError(f'seeds {text!r}: whole numbers separated by commas are wanted, as 0,1,2') from None


def _loading(
    size: str,  # As 256x128
    bs: int,  # Images a batch
    cache: str,  # One of `CACHES`
) -> dict:
    "Arguments of the loaders that are not the recipe's"
    import re

    refuse({
        f'size {size!r}: give height x width in pixels, as 256x128': size and not re.fullmatch(r'\d+x\d+', size),
        f'bs {bs}: give 1 or more images a batch': bs is not None and bs < 1,
        f'unknown cache {cache!r}: use one of {", ".join(CACHES)}': cache and cache not in CACHES,
    })
    loading = {}
    if size: loading['size'] = tuple(map(int, size.split('x')))
    if bs: loading['bs'] = bs
    if cache: loading['cache'] = CACHES[cache]
    return loading


def _model(
    arch: str,  # Backbone
    weights: str,  # A file, or none
    branches: str = None,  # One of `BRANCHES`
) -> dict:
    "Arguments of the learner that are not the recipe's"
    from pathlib import Path

    refuse({f'unknown branches {branches!r}: use one of {", ".join(BRANCHES)}': branches and branches not in BRANCHES})
    model = dict(BRANCHES.get(branches, {}))
    if arch: model['arch'] = arch
    if weights == 'none': model['pretrained'] = False
    elif weights:
        if not Path(weights).exists(): raise FileNotFoundError(f'{weights}: no such file of weights')
        model['weights'] = weights
    return model


def _settings(
    set,  # name=value, or a list of such
) -> list[str]:
    "Settings of the form name=value; a ValueError for any other form"
    settings = [set] if isinstance(set, str) else set or []
    refuse({f'--set {text}: give name=value, as --set keep=6': '=' not in text for text in settings})
    return settings


# Arguments that the command sets by its own options, and those that no text can give
NOT_AS_TEXT = {'self', 'epochs', 'seed', 'num_workers', 'path', 'model_dir', 'device', 'n_classes', 'masks',
               'reduction', 'vocab', 'loss_func'}
WORDS = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'a word',
    tuple: 'numbers with commas between',
    NoneType: 'none',
}
SAID = dict(true=True, yes=True, false=False, no=False, none=None)


class Argument(NamedTuple):
    "One argument that can be given as text"

    group: str  # Which argument of `train_run` it belongs to: fitting, loss, model or loading
    types: tuple  # Types that it takes


def known_arguments() -> dict[str, Argument]:
    "Every argument of the fit, the loss, the learner and the loaders that takes numbers or text, by name"
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    from magnifier.train.losses import MagnifierLoss
    from magnifier.train.recipes import Recipe
    # By the argument of `train_run` that they belong to; the first one that knows a name has it
    takers = dict(fitting=Recipe.plan, loss=MagnifierLoss, model=magnifier_learner, loading=ReIDDataLoaders.from_df)
    known = {}
    for group, taker in takers.items():
        for name, parameter in signature(taker).parameters.items():
            types = _types(parameter.annotation)
            if types and name not in NOT_AS_TEXT: known.setdefault(name, Argument(group, types))
    return known


def _types(annotation):
    "Those types of an annotation that text can give: of `tuple[int, int] | None`, tuple and NoneType"
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    found = [get_origin(option) or option for option in options]
    return tuple(t for t in found if t in WORDS)


def parse_arguments(
    texts,  # Each as 'name=value': 'keep=6', 'milestones=40,70', 'sfb=ab'
) -> dict[str, dict]:  # Arguments of `train_run`: fitting, loss, model, loading
    "The values, converted to their types. A ValueError lists the known names, or says which type is wanted"
    known, found = known_arguments(), dict(fitting={}, loss={}, model={}, loading={})
    for text in texts:
        name, equals, word = text.partition('=')
        refuse({
            f'{text!r}: give name=value, as keep=6': not equals,
            f'unknown argument {name!r}: use one of {", ".join(sorted(known))}': name not in known,
        })
        group, types = known[name]
        found[group][name] = _value(name, word, types)
    return found


def _said(word):
    if word.lower() in SAID: return SAID[word.lower()]
    try: return ast.literal_eval(word)
    except (ValueError, SyntaxError): return word


def _value(name, word, types):
    said = _said(word)
    if tuple in types and isinstance(said, (int, float)) and not isinstance(said, bool): said = (said,)
    if float in types and type(said) is int: said = float(said)
    if type(said) in types: return said
    if str in types: return word
    raise ValueError(f'{name}={word}: {" or ".join(WORDS[t] for t in types)} is wanted')
