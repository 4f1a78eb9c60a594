"Commands: the package's functions, from a shell. Heavy imports wait until a command runs, so that --help is quick"
import sys
import warnings
from functools import wraps

from fastcore.script import call_parse

__all__ = ['magnifier_train', 'magnifier_eval', 'magnifier_walkers', 'magnifier_masks']

_EMBEDDED = 'walkers'


def command(*positional):
    "A command of `call_parse` whose user's mistakes are one line and exit code 1; `--debug` shows where they arose"
    def decorate(func):
        @wraps(func)
        def guarded(*args, **kwargs):
            # fastai's import calls what torch is about to drop: nothing that whoever types a command could mend
            warnings.filterwarnings('ignore', message='.*torch.jit.script.*', category=FutureWarning)
            try: return func(*args, **kwargs)
            except (ValueError, TypeError, OSError, ImportError) as e:
                if kwargs.get('debug'): raise
                raise SystemExit(f'{func.__name__}: {e}') from None
            except KeyboardInterrupt: raise SystemExit(f'{func.__name__}: stopped by the keyboard') from None
        return call_parse(guarded, pos=list(positional))
    return decorate


def _say(text): print(text, flush=True)


def _read(data, path, masks):
    "Catalog of a data set named on the command line"
    from pathlib import Path
    from magnifier.data import readers
    from magnifier.data.walkers import walkers
    if data == _EMBEDDED:
        drawn = path is not None and (Path(path)/'walkers.json').exists()  # taken as it is, whatever its size
        root = Path(path) if drawn else walkers(path)
        _say(f'{root}: the embedded data set (drawn pedestrians)')
        return readers.market1501(root, masks=masks)
    if data not in readers.__all__: raise ValueError(f'unknown data set {data!r}: use {_EMBEDDED} or one of {", ".join(sorted(readers.__all__))}')
    if path is None: raise ValueError(f'{data}: name the folder that holds it, as in `magnifier_train {data} PATH`')
    return getattr(readers, data)(path, masks=masks)


def _table(tables):
    "Figures in percent, as papers print them"
    import pandas as pd
    return (pd.concat(tables)*100).round(1).to_string()


@command('data', 'path')
def magnifier_train(
    data:str='walkers',     # Data set: walkers (embedded), market1501, dukemtmc, cuhk03_np, ...
    path:str=None,          # Its folder; the embedded set is drawn if it is not there yet
    recipe:str='quick',     # How to train: quick (two CPU cores, minutes) or one_cycle (a GPU)
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
    import pandas as pd
    from fastai.vision.all import set_seed
    import magnifier.look.show  # noqa: F401, its pictures become methods of loaders and learners
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    from magnifier.train.recipes import recipe as named
    plan, out = named(recipe), Path(out)
    catalog = _read(data, path, masks)
    set_seed(seed)
    dls = ReIDDataLoaders.from_df(catalog, path=out, seed=seed, num_workers=workers, **plan.loading)
    learn = magnifier_learner(dls, **{**plan.model, **({'arch': arch} if arch else {}), 'seed': seed})
    epochs = plan.epochs if epochs is None else epochs
    _say(f'{recipe}: {plan.says}; {epochs} epochs over {len(dls.train_ds)} images of {dls.c} identities')
    out.mkdir(parents=True, exist_ok=True)
    before = learn.evaluate(rerank=rerank)
    plan.fit(learn, epochs)
    after = learn.evaluate(rerank=rerank)
    tables = [t.set_axis([f'{when}, {row}' for row in t.index]) for when, t in (('before', before), ('after', after))]
    pd.concat(tables).rename_axis('model').to_csv(out/'metrics.csv')
    learn.loss_parts.history.rename_axis('epoch').to_csv(out/'losses.csv')
    learn.export('learner.pkl')
    _pictures(learn, out, seed)
    _say(f'query against gallery, in %:\n{_table(tables)}\nwritten to {out.resolve()}: ' + ', '.join(sorted(p.name for p in out.iterdir() if p.is_file())))


def _pictures(learn, out, seed):
    "What the data, the results and the rankings look like"
    import matplotlib
    matplotlib.use('Agg')  # a command draws to files, with or without a screen
    learn.dls.show_batch(max_n=8, save=out/'show_batch.png')
    learn.show_results(max_n=4, seed=seed, save=out/'show_results.png')
    learn.show_ranking(seed=seed, save=out/'show_ranking.png')


@command('learner', 'data', 'path')
def magnifier_eval(
    learner:str,            # A learner exported by magnifier_train, as runs/quick/learner.pkl. A pickle: load only what you trust
    data:str='walkers',     # Data set: walkers (embedded), market1501, ...
    path:str=None,          # Its folder
    rerank:bool=False,      # Adds a row after k-reciprocal re-ranking
    flip_test:bool=False,   # Adds the mirrored picture's embedding
    json:bool=False,        # Prints JSON instead of a table
    debug:bool=False,       # Shows the traceback of an error
):
    """Evaluates an exported learner: R1, R5, R10, mAP and mINP, queries against gallery.

    Example: `magnifier_eval runs/quick/learner.pkl market1501 /data/Market-1501 --rerank`"""
    from fastai.vision.all import load_learner
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*insecure pickle.*')  # said in the argument's own words above
        learn = load_learner(learner)
    catalog = _read(data, path, None) if not json else _quietly(_read, data, path, None)
    table = learn.evaluate(catalog[catalog.split != 'train'], rerank=rerank, flip_test=flip_test)
    _say(table.to_json(orient='index') if json else f'query against gallery, in %:\n{_table([table])}')


def _quietly(func, *args):
    "Calls `func` with what it prints on standard error, so that standard output pipes"
    from contextlib import redirect_stdout
    with redirect_stdout(sys.stderr): return func(*args)


@command('path')
def magnifier_walkers(
    path:str=None,          # Folder to draw into; a cache in the home folder where not given
    n_train:int=96,         # Training identities
    n_test:int=96,          # Test identities
    seed:int=0,             # The same seed gives the same pictures
    mask_noise:float=0.,    # 0 exact part masks, 1 those of a poor parser
    debug:bool=False,       # Shows the traceback of an error
):
    """Draws the embedded data set, walkers, in Market-1501's layout with part masks, and prints where it is.

    Example: `magnifier_walkers /data/walkers --n-train 200`"""
    from magnifier.data.walkers import walkers
    _say(walkers(path, n_train=n_train, n_test=n_test, seed=seed, mask_noise=mask_noise))


@command('action', 'src', 'dst')
def magnifier_masks(
    action:str,             # convert (a parser's label files), make (with a keypoint network) or stripes (horizontal bands, no parts)
    src:str,                # Folder: of label files for convert, of images for the others
    dst:str=None,           # Folder of the part masks, same sub-paths; beside the images, as <folder>_ps_label, where not given
    labels:str='lip',       # convert: the parser's labelling: ps_label, densepose14, densepose24, lip, pascal, atr, cihp, sapiens
    weights:str=None,       # make: file of Keypoint R-CNN's weights; torchvision downloads them where not given
    bs:int=8,               # make: images a batch
    debug:bool=False,       # Shows the traceback of an error
):
    """Writes part masks. Files that are there already stay, so that a run that was stopped goes on where it was.

    Examples: `magnifier_masks convert lip_labels market_ps_label --labels lip` ·
    `magnifier_masks make /data/Market-1501 --weights keypointrcnn.pth` · `magnifier_masks stripes /data/own`"""
    from magnifier.data import masks
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', masks.CatalogWarning)  # the report says the same
        if action == 'convert':
            if dst is None: raise ValueError('name the folder of the part masks, as in `magnifier_masks convert SRC DST --labels lip`')
            return _report(masks.convert_masks(src, dst, labels), dst)
        if action == 'make': return _make_masks(src, dst, weights, bs)
    if action != 'stripes': raise ValueError(f'unknown action {action!r}: use convert, make or stripes')
    files = masks.make_stripe_masks(src, dst)
    _say(f'{len(files)} files of horizontal stripes, which are no body parts, for the images of {src}: {files[0].parent}')


def _make_masks(src, dst, weights, bs):
    "Masks, and beside their folder the report and the contact sheet"
    import matplotlib
    matplotlib.use('Agg')
    from pathlib import Path
    from magnifier.data.keypoint_masks import make_masks
    from magnifier.look.catalogs import contact_sheet
    src = Path(src).expanduser().absolute()
    dst = src.with_name(src.name + '_ps_label') if dst is None else Path(dst)
    report = make_masks(src, dst, weights, bs=bs)
    sheet = dst.with_name(dst.name + '_sheet.png')
    if report['mask'].notna().any():
        contact_sheet(report, save=sheet)
        _say(f'how good they are is seen in {sheet}')
    _report(report, dst)


def _report(report, dst):
    "What became of the files, in one line; the table is written beside the masks"
    from pathlib import Path
    table = Path(dst).with_name(Path(dst).name + '_report.csv')
    report.to_csv(table, index=False)
    counts = ', '.join(f'{n} {result}' for result, n in report['result'].value_counts().items())
    failed = report[report['mask'].isna()]
    _say(f'{dst}: {counts}; file by file in {table}' + (f'; the first without a mask: {failed["path"].iat[0]}' if len(failed) else ''))
    if len(failed) == len(report): raise ValueError(f'no mask was written: {failed["problem"].iat[0] or "no person was found"}')
