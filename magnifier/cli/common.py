"What the commands share: a user's mistakes as one line, data sets by name, tables. Heavy imports wait until a command runs, so that --help is quick"
import sys
import warnings
from functools import wraps

from fastcore.script import call_parse

__all__ = ['EMBEDDED', 'command', 'say', 'read_catalog', 'percent', 'quietly']

EMBEDDED = 'walkers'


def command(
    *positional # Names of the arguments that may be given without their names
):
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


def say(
    text # A line for whoever typed the command
):
    "Prints at once, so that a pipe sees it too"
    print(text, flush=True)


def read_catalog(
    data:str,   # walkers (embedded) or a reader's name, as market1501
    path:str,   # The set's folder; the embedded set may do without
    masks:str,  # Folder of part masks; None to look beside the data
):              # The catalog
    "Catalog of a data set named on the command line"
    from pathlib import Path
    from magnifier.data import readers
    from magnifier.data.walkers import walkers
    if data == EMBEDDED:
        drawn = path is not None and (Path(path)/'walkers.json').exists()  # taken as it is, whatever its size
        root = Path(path) if drawn else walkers(path)
        say(f'{root}: the embedded data set (drawn pedestrians)')
        return readers.market1501(root, masks=masks)
    if data not in readers.__all__: raise ValueError(f'unknown data set {data!r}: use {EMBEDDED} or one of {", ".join(sorted(readers.__all__))}')
    if path is None: raise ValueError(f'{data}: name the folder that holds it, as in `magnifier_train {data} PATH`')
    return getattr(readers, data)(path, masks=masks)


def percent(
    tables:list # Tables of `ReIDLearner.evaluate`, in [0, 1]
) -> str:       # One table
    "Figures in percent, as papers print them"
    import pandas as pd
    return (pd.concat(tables)*100).round(1).to_string()


def quietly(
    func,  # A function that prints
    *args  # Its arguments
):         # What it returns
    "Calls `func` with what it prints on standard error, so that standard output pipes"
    from contextlib import redirect_stdout
    with redirect_stdout(sys.stderr): return func(*args)
