"A run: a training by a recipe over a catalog, with its record, results and checkpoints in one folder"

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from fastai.vision.all import noop, num_distrib, rank_distrib

import magnifier
from magnifier.checks import refuse
from magnifier.data.catalog import validate_catalog
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.files import aside, clear_leftovers, locked
from magnifier.train.callbacks import fast_training
from magnifier.train.checkpoints import Checkpoints, checkpoint_files, read_checkpoint
from magnifier.train.distributed import join_ranks, on_all_ranks, rank0_first
from magnifier.train.generators import seeded
from magnifier.train.learner import recipe_learner, versions
from magnifier.train.monitoring import StopAtNonFinite
from magnifier.train.recipes import recipe as named

__all__ = ['Run', 'RunStopped', 'train_run']

log = logging.getLogger(__name__)


class Run(NamedTuple):
    "The results of a run"
    learn: object  # The trained learner; None where the run had been finished before
    table: pd.DataFrame  # R1 R5 R10 mAP mINP in [0,1]; rows 'before, plain', 'after, plain', re-ranked
    record: dict  # What run.json holds


class RunStopped(KeyboardInterrupt):
    "Ctrl-C ended a run; the message says after which epoch"


def train_run(
    catalog: pd.DataFrame,  # One row an image, as every reader gives
    recipe: str = 'quick',  # One of `RECIPES`
    out='runs/quick',  # Folder of the run
    *,
    epochs: int | None = None,  # Epochs; the recipe's where not given
    seed: int = 0,  # Seed of weights, batches, augmentation and occlusions
    workers: int | None = None,  # Loader processes; fastai's choice where not given
    loading: dict | None = None,  # Of `ReIDDataLoaders.from_df`, beside or instead of the recipe's, as size, bs
    model: dict | None = None,  # Arguments of `magnifier_learner` beside or instead of the recipe's, as arch, sab, keep
    loss: dict | None = None,  # Arguments of `MagnifierLoss` beside or instead of the recipe's, as mask_weight
    fitting: dict | None = None,  # Arguments of `Recipe.plan`, as diversity, milestones, second_lr
    dataset: str | None = None,  # What the data are called, for the record
    before: bool = True,  # Whether the untrained learner is evaluated too
    rerank: bool = False,  # Adds rows after k-reciprocal re-ranking
    fast: bool = False,  # Trains in bfloat16, channels last and compiled (`fast_training`)
    resume: bool = False,  # Goes on where a run with the same arguments was ended, if there was one
    quiet: bool = False,  # Neither bars nor tables of losses
    cbs=None,  # Further callbacks
    then=None,  # Called with the learner before the run is marked as finished, for example to draw figures
    say=log.info,  # Called with each line about the run's progress
) -> Run:  # Learner, figures and record
    """Trains a recipe over a catalog, evaluated before and after.

    In `out`: learner.pkl, metrics.csv, losses.csv (a row an epoch), run.json (arguments, data, versions, hardware) and,
    until the run is finished, checkpoints. A run that was killed and resumed ends with the same weights as one that was
    not: bit for bit on a CPU with the same number of threads. The state of the global random generators does not
    change. ValueError: arguments that do not fit, an unfinished run in `out` without `resume`, or `resume` with
    arguments that would change the result. BlockingIOError: another process trains in `out`. NonFiniteLoss: the loss is
    NaN or infinite; the batch is in nonfinite.pth. RunStopped: Ctrl-C; the last finished epoch is kept"""
    plan = named(recipe)
    out = Path(out)
    catalog = validate_catalog(catalog, ('train',))
    if epochs is None: epochs = plan.epochs
    given = _with_recipe(plan, seed, loading, model, loss, fitting)
    plan.plan(epochs, **given['fitting'])  # a mistake is said before anything is read
    asked = as_json(dict(recipe=recipe, epochs=epochs, seed=seed, **given, rerank=rerank, fast=fast,
                         data=describe_data(catalog)))
    with nullcontext() if rank_distrib() else locked(out):  # of several processes the first one keeps the folder
        state, record = _found(out, asked, resume, say)
        if record is not None:
            say(f'{out}: this run was finished on {record["finished"]}; nothing is left to do')
            return Run(None, pd.read_csv(out/'metrics.csv', index_col='model'), record)
        join_ranks()  # each has its GPU from here on
        if rank_distrib(): say = noop
        with seeded(seed):
            learn = _learner(catalog, recipe, given, path=out, seed=seed, num_workers=workers)
            learn.add_cbs(cbs)
            asked.update(workers=learn.dls.train.fake_l.num_workers, processes=max(1, num_distrib()))
            stages = learn.plan(recipe, epochs, **given['fitting'])
            with _quietly(learn) if quiet else nullcontext(), on_all_ranks(learn):
                record = _begin(out, plan, learn, stages, asked, dataset=dataset, state=state, say=say)
                if before and state is None: record['figures'] = _figures(learn, 'before', rerank)
                _train(out, learn, stages, record, state, fast=fast)
                record['figures'] |= _figures(learn, 'after', rerank)
            # When the call returns on one rank, the files are there
            with rank0_first(): return _finish(out, learn, record, then)


def _with_recipe(plan, seed, loading, model, loss, fitting):
    "The recipe's arguments, with those that were given beside or instead of them"
    return dict(
        loading={**plan.loading, **(loading or {})},
        model={**plan.model, 'seed': seed, **(model or {})},
        loss={**plan.loss, **(loss or {})},
        fitting=fitting or {},
    )


def _learner(catalog, recipe, given, **kwargs):
    "An untrained learner; with a cache on disk, one process decodes the images and all read them"
    on_disk = given['loading'].get('cache') not in (None, 'ram')
    with rank0_first() if on_disk else nullcontext():
        dls = ReIDDataLoaders.from_df(catalog, **kwargs, **given['loading'])
    return recipe_learner(dls, recipe, loss=given['loss'], **given['model'])


@contextmanager
def _quietly(learn):
    with learn.no_bar(), learn.no_logging(): yield


def _found(out, asked, resume, say):
    "(checkpoint to continue from or None, record of a finished run or None)"
    record, checkpoints = read_json(out/'run.json'), out/'checkpoints'
    finished = record is not None and record['finished']
    if not resume:
        refuse({f'{out} holds a run that was not finished: continue it (--resume, resume=True), name another folder, '
                f'or remove {checkpoints}': not finished and checkpoint_files(checkpoints)})
        return None, None
    if finished:
        _check_same(out, record['arguments'], asked)
        shutil.rmtree(checkpoints, ignore_errors=True)  # left where the run was killed at its very end
        return None, record
    state = read_checkpoint(checkpoints)
    if state is None: say(f'{out}: there is no finished epoch to resume from, so the run starts from the beginning')
    else: _check_same(out, state['note']['arguments'], asked)
    return state, None


def _check_same(out, before, now):
    "Refuses arguments that differ from those of the run"
    found = differing({k: v for k, v in before.items() if k in now}, now)
    refuse({f'{out} holds a run with {name}={was!r}, and now it is {wanted!r}, which would give another result: resume '
            f'it with {was!r}, or name another folder': True for name, was, wanted in found})


def _begin(out, plan, learn, stages, asked, *, dataset, state, say):
    "The record of a run that starts or is resumed; prints the plan"
    now = environment()
    if not rank_distrib(): clear_leftovers(out)
    if state is None:
        shutil.rmtree(out/'checkpoints', ignore_errors=True)  # of a finished run
        parameters = sum(p.numel() for p in learn.model.parameters())
        record = dict(recipe=asked['recipe'], says=plan.says, dataset=dataset, arguments=asked, data=asked['data'],
                      device=str(learn.dls.device), parameters=parameters, **now, started=_now(), resumed=[],
                      epochs_done=0, seconds=0.0, finished=None, figures={})
    else: record = _taken_up(out, asked, state, now, say)
    record['stages'] = as_json([stage._asdict() for stage in stages])
    say('\n'.join(_plan(record, learn.dls.train, stages)))
    report = getattr(learn.model, 'weights_report', None)
    if report: say(f'weights: {report}')
    record['weights'] = report and str(report)
    if state is not None: say(f'continuing after epoch {state["done"]} of {sum(s.epochs for s in stages)}')
    return record


def _taken_up(out, asked, state, now, say):
    "The record of a resumed run, up to the epoch of its newest checkpoint"
    record = state['note']
    _check_same(out, record['arguments'], asked)
    for name, first, current in differing(record['versions'], now['versions']):
        say(f'{name} was {first} when this run began and is {current} now: results may differ in their last digits')
    record.update(epochs_done=state['done'], seconds=round(state['seconds'], 1))
    record['resumed'].append(dict(at=_now(), epochs_done=state['done'], **now))
    return record


def _plan(record, dl, stages):
    "The plan of a run, line by line"
    data, asked = record['data'], record['arguments']
    size = ' x '.join(map(str, asked['loading']['size']))
    batch = f'{dl.bs} images' + (f' = {dl.bs//dl.n_per_id} identities x {dl.n_per_id}' if dl.n_per_id else '')
    yield f'{record["recipe"]}: {record["says"]}'
    yield (f'  data: {data["images"]} images of {data["identities"]} identities, {data["masks"]} with part masks; '
           f'{data["queries"]} queries, {data["gallery"]} in the gallery')
    yield f'  model: {asked["model"]["arch"]}, {record["parameters"]/1e6:.1f} million parameters, on {record["device"]}'
    yield f'  batches: {batch}, {size} pixels, {len(dl)} an epoch'
    for i, stage in enumerate(stages): yield f'  stage {i + 1} of {len(stages)}: {stage}'


def _train(out, learn, stages, record, state, *, fast):
    "Runs the fits of the recipe with guards and checkpoints; writes record and losses.csv before them and by epoch"
    def each(kept):
        record.update(epochs_done=kept.done, seconds=round(kept.seconds, 1))
        _write(out, record, kept.rows)
    kept = Checkpoints(out/'checkpoints', state=state, note=record, each=each)
    _write(out, record, kept.rows)
    with learn.added_cbs([kept, StopAtNonFinite(out/'nonfinite.pth')]), fast_training(learn) if fast else nullcontext():
        try: learn.fit_stages(stages, done=kept.done)
        except KeyboardInterrupt as e:
            total = sum(stage.epochs for stage in stages)
            raise RunStopped(f'stopped by the keyboard after epoch {kept.done} of {total}') from e


def _finish(out, learn, record, then):
    "Writes results, learner and record, and removes the checkpoints"
    table = pd.DataFrame.from_dict(record['figures'], orient='index').rename_axis('model')
    if not rank_distrib():
        with aside(out/'metrics.csv') as part: table.to_csv(part)
    learn.export('learner.pkl')
    if then and not rank_distrib(): then(learn)
    record['finished'] = _now()
    _write(out, record)
    if not rank_distrib(): shutil.rmtree(out/'checkpoints', ignore_errors=True)
    return Run(learn, table, record)


def _write(out, record, rows=()):
    "Writes run.json and, if there are rows, losses.csv; only one process writes"
    if rank_distrib(): return
    write_json(out/'run.json', record)
    if not rows: return
    with aside(out/'losses.csv') as part: pd.DataFrame(rows).set_index('epoch').to_csv(part)


def _figures(learn, when, rerank):
    "Retrieval figures as rows"
    rows = learn.evaluate(rerank=rerank).to_dict('index')
    return {f'{when}, {row}': as_json(figures) for row, figures in rows.items()}


def _now(): return datetime.now(timezone.utc).isoformat(timespec='seconds')


# The record as JSON: arguments, data, versions, hardware

def describe_data(
    catalog: pd.DataFrame,  # One row an image: `path`, `mask`, `pid`, `camid`, `split`
) -> dict:  # Counts, and a digest of which images these are, wherever their folder lies
    "The data that a run trains and is evaluated on"
    train = catalog[catalog.split == 'train']
    masks = [None if pd.isna(m) else os.fspath(m) for m in catalog['mask']]
    rows = zip(_below(catalog['path']), _below(masks), map(_size, masks), catalog['pid'], catalog['camid'],
               catalog['split'])
    text = json.dumps([[*files, int(pid), int(cam), split] for *files, pid, cam, split in rows])
    return dict(
        images=len(train),
        identities=int(train['pid'].nunique()),
        masks=int(train['mask'].notna().sum()),
        queries=int((catalog.split == 'query').sum()),
        gallery=int((catalog.split == 'gallery').sum()),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def _below(paths):
    "Paths relative to their common folder; None stays"
    folders = [os.path.dirname(p) for p in paths if p is not None]
    root = os.path.commonpath(folders) if folders else ''
    return [None if p is None else os.path.relpath(p, root) for p in paths]


def _size(path):
    "Size of a mask file in bytes, by which other masks are noticed"
    return None if path is None or not os.path.exists(path) else os.path.getsize(path)


def environment() -> dict:  # versions, commit (None outside a clone), hardware
    "The hardware and software of a run"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hardware = dict(cpu=_cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(), gpus=gpus,
                    system=platform.platform())
    return dict(versions=versions(), commit=_commit(), hardware=hardware)


def _commit():
    "The commit of the clone, with '+' if files differ from it"
    root = Path(magnifier.__file__).parents[1]
    if not (root/'.git').exists(): return None  # installed: a repository further up would be another project's
    command = ['git', '-C', str(root), 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty=+']
    try: return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError): return None


def _cpu():
    "The processor's name, if the system gives it"
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    names = (line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    return next(names, platform.processor() or platform.machine())


def as_json(
    value,  # Anything: of what JSON does not know, functions are named and partials written out
):  # What reading it back from JSON gives
    """The value as plain lists, dicts, strings and numbers. A ValueError for values that a later process could not
    recognise: a lambda, or an object that prints only its address"""
    if isinstance(value, dict): return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)): return [as_json(v) for v in value]
    if isinstance(value, partial): return _call(value)
    if hasattr(value, 'item') and not isinstance(value, torch.Tensor): value = value.item()
    if value is None or isinstance(value, (bool, int, float)): return value
    return _name(value)


def _call(value):
    "A partial as it would be called"
    given = [*map(repr, map(as_json, value.args)), *(f'{k}={as_json(v)!r}' for k, v in value.keywords.items())]
    return f'{as_json(value.func)}({", ".join(given)})'


def _name(value):
    name = value.__name__ if hasattr(value, '__name__') else str(value)
    refuse({f'{name} cannot be recorded, so a resumed run could not be compared with this one: give a named function, '
            'a class, or a functools.partial of either': name == '<lambda>' or ' at 0x' in name})
    return name


def differing(
    before: dict,  # Arguments of a run, as JSON
    now: dict,  # The same, of another
) -> list:  # (name, before, now) of those that differ, in order; names within names are joined by a dot
    "The arguments in which two runs differ"
    found = []
    for name in dict.fromkeys([*before, *now]):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict): found += [(f'{name}.{k}', x, y) for k, x, y in differing(a, b)]
        elif a != b: found.append((name, a, b))
    return found


def write_json(
    file,  # Where to
    value: dict,  # As `as_json` gives it
):
    "Writes a JSON file; a kill leaves no partial file"
    with aside(file) as part: part.write_text(json.dumps(value, indent=1) + '\n')


def read_json(
    file,  # Where from
):  # What is in it; None where it is not there
    "Reads a file of `write_json`; a ValueError if it is not JSON"
    try: return json.loads(Path(file).read_text())
    except FileNotFoundError: return None
    except ValueError as e:
        raise ValueError(f'{file}: not the record of a run ({e}); remove it, or name another folder') from e
