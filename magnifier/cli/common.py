"""What the commands share: a user's mistakes as one line, data sets by name, tables. Heavy imports wait until a
command runs, so that --help is quick"""

import os
import sys
import warnings
from contextlib import contextmanager
from functools import wraps

from fastcore.script import call_parse

from magnifier.checks import refuse

__all__ = ['EMBEDDED', 'command', 'say', 'say_imports', 'check_data', 'read_catalog', 'percent', 'check_gallery',
           'check_learner', 'open_learner', 'open_embedder']

EMBEDDED = 'walkers'
LEARNERS = 'give the learner.pkl of `magnifier_train`, or a folder of `learn.save_pretrained`'
# Data sets that come in two kinds of boxes, under names of their own
KINDS = {
    f'{data}_{name}': (data, kind)
    for data in ('cuhk03_np', 'cuhk03')
    for name, kind in (('labelled', 'labeled'), ('detected', 'detected'))
}


def command(
    *positional,  # Names of the arguments that may be given without their names
):
    """A command of `call_parse`: a user's mistake gives one line and exit code 1, Ctrl-C exit code 130; `--debug` shows
    the traceback"""
    def decorate(func):
        @wraps(func)
        def guarded(*args, **kwargs):
            os.environ.setdefault('MPLBACKEND', 'Agg')  # a command draws to files, with or without a screen
            # Of fastai's own import, which the user of a command cannot change
            warnings.filterwarnings('ignore', message='.*torch.jit.script.*', category=FutureWarning)
            try:
                with _plain_warnings(): return func(*args, **kwargs)
            except (ValueError, TypeError, OSError, ImportError) as e:
                if kwargs.get('debug'): raise
                raise SystemExit(f'{func.__name__}: {e}') from None
            except KeyboardInterrupt:
                print(f'{func.__name__}: stopped by the keyboard', file=sys.stderr, flush=True)
                raise SystemExit(130) from None  # what a shell expects of a command that SIGINT ended
        return call_parse(guarded, pos=list(positional))
    return decorate


@contextmanager
def _plain_warnings():
    "Warnings as one line each, without the source line that raised them"
    was = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\n'
    try: yield
    finally: warnings.formatwarning = was


def say(
    text,  # A line for the user
):
    "Prints and flushes, so that a pipe gets the text at once"
    print(text, flush=True)


def say_imports():
    "Says that the libraries are being imported, which takes some seconds, if they are not imported yet"
    if 'fastai' not in sys.modules: print('importing torch and fastai ...', file=sys.stderr, flush=True)


def check_data(
    data: str,  # walkers (embedded), a reader's name, or cuhk03_np_detected and its kin
    path: str,  # The set's folder or file; the built-in set may do without
):
    "Refuses unknown names and missing folders, before anything heavy is imported"
    from pathlib import Path
    from magnifier.data.readers import READERS
    if data == EMBEDDED: return
    known = sorted([*READERS, *KINDS])
    refuse({
        f'unknown data set {data!r}: use {EMBEDDED} or one of {", ".join(known)}': data not in known,
        f'{data}: name the folder that holds it, as in `magnifier_train {data} PATH`': path is None,
    })
    if not Path(path).expanduser().exists(): raise FileNotFoundError(f'{path}: no such file or folder')


def read_catalog(
    data: str,  # As `check_data` takes it
    path: str,  # As `check_data` takes it
    masks: str,  # Folder of part masks; None to look beside the data
    **reading,  # Further arguments of the reader, as camera, include, exclude; None where not given
):  # The catalog
    "Catalog of a data set named on the command line"
    from pathlib import Path
    from inspect import signature
    from magnifier.data.readers import READERS, market1501
    from magnifier.walkers.dataset import walkers
    check_data(data, path)
    given = {name: value for name, value in reading.items() if value is not None}
    if data in KINDS: data, given['kind'] = KINDS[data]
    reader = market1501 if data == EMBEDDED else READERS[data]
    refuse({f'--{name} is not an argument of {data}: it is for your own folders (identity_folders)':
            name not in signature(reader).parameters for name in sorted(given)})
    if data == EMBEDDED:
        drawn = path is not None and (Path(path)/'walkers.json').exists()  # taken as it is, whatever its size
        path = Path(path) if drawn else walkers(path)
        say(f'{path}: the built-in data set (drawn pedestrians)')
    return reader(path, masks=masks, **given)


def percent(
    tables: list,  # Tables of `ReIDLearner.evaluate`, in [0, 1]
) -> str:  # One table
    "Figures in percent, as papers print them"
    import pandas as pd
    return (pd.concat(tables)*100).round(1).to_string()


def check_gallery(
    gallery: str,  # A local gallery, or a server's address
):
    "Checks that a gallery exists, since reading must not create one; a FileNotFoundError says how to make one"
    from pathlib import Path

    if '://' not in gallery and not Path(gallery).exists():
        raise FileNotFoundError(f'{gallery}: no such gallery; make one with `magnifier_index FOLDER '
                                f'--gallery {gallery}`')


def check_learner(
    learner: str,  # As `open_learner` takes it
):
    "FileNotFoundError says how to make a learner, ValueError that the file is not one; nothing slow is imported"
    from pathlib import Path

    if not Path(learner).exists():
        raise FileNotFoundError(f'{learner}: no such learner; train one with '
                                '`magnifier_train`, which writes learner.pkl')
    refuse({f'{learner} is an .onnx file, which can only embed: {LEARNERS}': learner.endswith('.onnx')})


def open_learner(
    learner: str,  # A learner's file (a pickle: load only what you trust), or a folder of `learn.save_pretrained`
    bar: bool = True,  # Whether it shows its progress, on standard output
):  # The ReIDLearner, able to do what the other modules add to it
    "A trained learner; FileNotFoundError says how to make one, ValueError that the file is not one"
    from pathlib import Path
    check_learner(learner)
    say_imports()
    from magnifier.train.learner import ReIDLearner
    learn = ReIDLearner.from_pretrained(learner) if Path(learner).is_dir() else _unpickled(learner)
    refuse({f'{learner} holds a {type(learn).__name__}, not a learner of magnifier: {LEARNERS}':
            not isinstance(learn, ReIDLearner)})
    if not bar and hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn


def _unpickled(learner):
    from fastai.vision.all import load_learner
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*insecure pickle.*')  # said in the commands' own words
        try: learn = load_learner(learner)
        except Exception as e:  # a file that is no pickle, or another's, may raise anything
            why = ' '.join(f'{type(e).__name__}: {e}'.split())[:120]
            raise ValueError(f'{learner} cannot be read as a learner ({why}): {LEARNERS}') from e
    import torch
    if torch.cuda.is_available() and hasattr(learn, 'dls'):  # fastai leaves it on the CPU
        learn.model.cuda()
        learn.dls.cuda()
    return learn


def open_embedder(
    learner: str,  # As for `open_learner`, or an .onnx file
):  # What a gallery embeds with: a learner, which also knows regions, or an Embedder
    "A learner without its progress bar, since a gallery shows its own; an .onnx file without importing fastai"
    if learner.endswith('.onnx'):
        from magnifier.model.embedder import Embedder
        return Embedder(learner)
    return open_learner(learner, bar=False)
