"The record of a run as JSON: arguments, data, versions, hardware"
import hashlib
import json
import os
import platform
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import magnifier
from magnifier.files import aside

__all__ = ['describe_data', 'versions', 'environment', 'as_json', 'differing', 'write_json', 'read_json']

LIBRARIES = ('torch', 'torchvision', 'fastai', 'fastcore', 'numpy')


def describe_data(
    catalog: pd.DataFrame,  # One row an image: `path`, `mask`, `pid`, `camid`, `split`
) -> dict:  # Counts, and a digest of which images these are, wherever their folder lies
    "The data that a run trains and is evaluated on"
    train, masks = catalog[catalog.split == 'train'], [None if pd.isna(m) else os.fspath(m) for m in catalog['mask']]
    rows = zip(
        _below(catalog['path']), _below(masks), map(_size, masks), catalog['pid'], catalog['camid'], catalog['split']
    )
    digest = hashlib.sha256(
        json.dumps([[*files, int(pid), int(cam), s] for *files, pid, cam, s in rows]).encode()
    ).hexdigest()[:16]
    return dict(
        images=len(train),
        identities=int(train['pid'].nunique()),
        masks=int(train['mask'].notna().sum()),
        queries=int((catalog.split == 'query').sum()),
        gallery=int((catalog.split == 'gallery').sum()),
        digest=digest,
    )


def _below(paths):
    "Paths relative to their common folder; None stays"
    folders = [os.path.dirname(p) for p in paths if p is not None]
    root = os.path.commonpath(folders) if folders else ''
    return [None if p is None else os.path.relpath(p, root) for p in paths]


def _size(path):
    "Size of a mask file in bytes, to notice other masks"
    return None if path is None or not os.path.exists(path) else os.path.getsize(path)


def versions() -> dict:  # name -> version
    "Python, the package, and the libraries that a pickled learner depends on"
    return dict(
        magnifier=magnifier.__version__, python=platform.python_version(), **{name: version(name) for name in LIBRARIES}
    )


def environment() -> dict:  # versions, commit (None outside a clone), hardware
    "The hardware and software of a run"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hardware = dict(
        cpu=_cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(), gpus=gpus, system=platform.platform()
    )
    return dict(versions=versions(), commit=_commit(), hardware=hardware)


def _commit():
    "The commit of the clone, with '+' if files differ from it"
    root = Path(magnifier.__file__).parents[1]
    if not (root/'.git').exists(): return None  # installed: a repository further up would be another project's

    def git(*args):
        return subprocess.run(
            ['git', '-C', str(root), *args], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try: return git('rev-parse', 'HEAD') + '+'*bool(git('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.SubprocessError): return None


def _cpu():
    "The processor's name, if the system gives it"
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: lines = []
    return next(
        (line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')),
        platform.processor() or platform.machine(),
    )


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
    if name == '<lambda>' or ' at 0x' in name:
        raise ValueError(
            f'{name} cannot be recorded, so a resumed run could not be compared with this one: give a named '
            'function, a class, or a functools.partial of either'
        )
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
    try:
        return json.loads(Path(file).read_text())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ValueError(f'{file}: not the record of a run ({e}); remove it, or name another folder') from e
