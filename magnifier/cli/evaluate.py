"""A trained learner from a shell: evaluated, over several data sets beside the paper's table; or exported, as an ONNX
file or as a folder that runs no code when it is loaded"""

import sys
from contextlib import nullcontext, redirect_stdout

from magnifier.checks import refuse
from magnifier.cli.common import (EMBEDDED, check_data, check_learner, command, open_learner, percent, read_catalog,
                                  say, say_imports)

__all__ = ['magnifier_eval', 'magnifier_export']

# Data sets of the paper's Table 1, as its columns call them
COLUMNS = {
    'cuhk03_np_labelled': 'CUHK03-L',
    'cuhk03_np': 'CUHK03-L',
    'cuhk03_np_detected': 'CUHK03-D',
    'dukemtmc': 'DukeMTMC',
    'market1501': 'Market-1501',
}
FORMATS = {'onnx': 'model.onnx', 'pretrained': 'pretrained'}  # and how the result is called where no name is given


@command('learner', 'data', 'path')
def magnifier_eval(
    learner: str,  # A learner.pkl (a pickle: load only what you trust), or a saved folder; or several: a,b
    data: str = None,  # Data set: walkers (embedded), market1501, ...; or several, with commas between
    path: str = None,  # Its folder; several with commas between
    rerank: bool = False,  # Adds a row after k-reciprocal re-ranking
    flip_test: bool = False,  # Adds the mirrored image's embedding
    by_branch: bool = False,  # Adds a row for each branch alone
    camera: str = None,  # identity_folders: regular expression with one group, the camera, in each image's path
    include: str = None,  # identity_folders: regular expression; only images whose path it is found in
    exclude: str = None,  # identity_folders: the same; but not these
    save: str = None,  # Writes R1 and mAP of all data sets beside the paper's Table 1: a name that ends in .csv or .md
    json: bool = False,  # Prints JSON instead of a table
    debug: bool = False,  # Shows the traceback of an error
):
    """Evaluates exported learners: R1, R5, R10, mAP and mINP, queries against gallery.

    Examples: `magnifier_eval runs/quick/learner.pkl market1501 /data/Market-1501 --rerank` · `magnifier_eval
    m.pkl,d.pkl market1501,dukemtmc /data/Market-1501,/data/DukeMTMC-reID --rerank --save table1.md` · `torchrun
    --nproc_per_node 4 --no-python magnifier_eval ...` (four GPUs or processes share the embedding)"""
    jobs = _jobs(learner, data, path)
    refuse({f'--save {save}: a name that ends in .csv or .md is wanted': save and not save.endswith(('.csv', '.md'))})
    reading = dict(camera=camera, include=include, exclude=exclude)
    how = dict(rerank=rerank, flip_test=flip_test, by_branch=by_branch)
    tables = {COLUMNS.get(name, name): _evaluated(file, name, folder, reading, how, json)
              for file, name, folder in jobs}
    from fastai.vision.all import rank_distrib
    if rank_distrib(): return
    if json: say(_as_json(tables))
    else:
        for name, table in tables.items(): _say_table(table, name if len(tables) > 1 else 'query against gallery')
    if save: _save(tables, save)


def _jobs(learner, data, path):
    "(learner, data set, folder) of each evaluation; nothing heavy is imported"
    learners = learner.split(',')
    for file in learners: check_learner(file)
    sets = [_trained_on_walkers(learners[0])] if data is None else data.split(',')
    paths = [None] if path is None else path.split(',')
    refuse({f'{len(learners)} learners, {len(sets)} data sets and {len(paths)} folders: name as many of each, or one '
            'learner for all': not (len(sets) == len(paths) and len(learners) in (1, len(sets)))})
    for name, folder in zip(sets, paths): check_data(name, folder)
    return list(zip(learners * (len(sets) // len(learners)), sets, paths))


def _trained_on_walkers(learner):
    "The built-in set, if the run beside the learner was trained on it"
    from json import loads
    from pathlib import Path
    record = Path(learner).parent/'run.json'
    if record.exists() and loads(record.read_text()).get('dataset') == EMBEDDED: return EMBEDDED
    raise ValueError(f'name the data to evaluate on, as in `magnifier_eval {learner} market1501 PATH`')


def _evaluated(file, data, path, reading, how, json):
    say_imports()
    from magnifier.train.distributed import join_ranks, on_all_ranks, rank0_first
    join_ranks()  # of several processes each has its GPU from here on
    learn = open_learner(file, bar=not json)
    # Where the result is JSON, it is alone on standard output
    with rank0_first(), redirect_stdout(sys.stderr) if json else nullcontext():
        catalog = read_catalog(data, path, None, **reading)
    with on_all_ranks(learn): return learn.evaluate(catalog[catalog.split != 'train'], **how)


def _as_json(tables):
    "Rows by name; where there are several data sets, these by name first"
    from json import dumps
    rows = {name: table.to_dict('index') for name, table in tables.items()}
    return dumps(rows if len(rows) > 1 else next(iter(rows.values())))


def _say_table(table, name):
    queries, left_out = table.attrs['queries'], table.attrs['left_out']
    say(
        f'{name}, in %, {queries - left_out} queries'
        + (f' ({left_out} of {queries} left out, which have no match in the gallery)' if left_out else '')
        + f':\n{percent([table])}'
    )


def _save(tables, file):
    "R1 and mAP in %, a row for ours and one for the paper's, plain and re-ranked"
    import pandas as pd
    from magnifier.files import aside
    from magnifier.train.ablation import TABLE_1

    ours = pd.DataFrame({f'{name} {figure}': (100 * table[figure]).round(1)
                         for name, table in tables.items() for figure in ('R1', 'mAP')})
    paper = TABLE_1.loc[[row for row in ours.index if row in TABLE_1.index]].reindex(columns=ours.columns)
    both = pd.concat([ours.rename(lambda row: f'ours, {row}'), paper.rename(lambda row: f'paper, {row}')])
    both = both.rename_axis('%')
    with aside(file) as part: part.write_text(both.to_csv() if file.endswith('.csv') else _markdown(both))
    say(f'written to {file}')


def _markdown(table):
    "A table as Markdown"
    rows = [
        [table.index.name, *table.columns],
        ['---'] * (len(table.columns) + 1),
        *([name, *row] for name, row in zip(table.index, table.to_numpy())),
    ]
    return ''.join('| ' + ' | '.join(map(str, row)) + ' |\n' for row in rows)


@command('learner', 'out')
def magnifier_export(
    learner: str,  # A learner.pkl of magnifier_train (a pickle: load only what you trust), or a saved folder
    out: str = None,  # File or folder to write; model.onnx or pretrained beside the learner where not given
    format: str = 'onnx',  # onnx (one file, for onnxruntime) or pretrained (a folder: safetensors and JSON)
    masks: bool = False,  # onnx: part labels as a second output
    json: bool = False,  # Prints JSON instead of a line
    debug: bool = False,  # Shows the traceback of an error
):
    """Writes what a tracker or another program needs to embed crops, without fastai: `Embedder(OUT)(crops)`.

    Examples: `magnifier_export runs/quick/learner.pkl people.onnx` · `magnifier_export runs/quick/learner.pkl
    --format pretrained people` · `magnifier_export runs/quick/learner.pkl --json | jq -r .fingerprint`"""
    refuse({
        f'unknown format {format!r}: use {" or ".join(FORMATS)}': format not in FORMATS,
        '--masks goes with --format onnx: a saved folder has the whole model': masks and format != 'onnx',
    })
    from json import dumps
    from pathlib import Path
    from magnifier.model.embedder import Embedder
    out = Path(learner).absolute().parent/FORMATS[format] if out is None else Path(out)
    learn = open_learner(learner)
    written = learn.export_onnx(out, masks=masks) if format == 'onnx' else learn.save_pretrained(out)
    embedder = Embedder(written)
    size = sum(f.stat().st_size for f in written.iterdir()) if written.is_dir() else written.stat().st_size
    height, width = embedder.size
    if json:
        say(dumps(dict(file=str(written), format=format, fingerprint=embedder.fingerprint, dimensions=embedder.dim,
                       size=embedder.size, bytes=size)))
    else:
        say(f'{written}: {embedder.dim} dimensions, crops of {height} x {width}, {size / 1e6:.0f} MB, '
            f'fingerprint {embedder.fingerprint}')
