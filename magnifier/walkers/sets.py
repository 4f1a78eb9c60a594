"A drawn set on disk: the file that describes a folder, the check that it is complete, and the checks of arguments"

import json
import math
import os
from pathlib import Path
import numpy as np

__all__ = ['holds', 'mark', 'cached', 'whole_number', 'share']


def mark(
    folder: Path,  # A whole set
    marker: dict,  # version, arguments, files (sub-folder -> number of files)
    name: str,  # Of the marker's file
):
    "Writes the file that describes the folder"
    (folder/name).write_text(json.dumps(marker, indent=1), 'utf-8')


def holds(
    folder: Path,  # Where the set may be
    marker: dict,  # As in `mark`
    name: str,  # Of the marker's file
) -> bool:  # Whether it is there
    "True if the folder holds this set, False if it is missing or empty; a ValueError otherwise"
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()): return False
    try: found = json.loads((folder/name).read_text('utf-8'))
    except (OSError, ValueError): found = None
    if not isinstance(found, dict):
        raise ValueError(
            f'{folder} exists and does not hold drawn walkers: choose another path, or remove it')
    if found != marker:
        had, wanted = (f'{m.get("arguments")} (version {m.get("version")})' for m in (found, marker))
        raise ValueError(
            f'{folder} holds walkers drawn with {had}, wanted are {wanted}: choose another path, or remove that set')
    seen = {sub: sum(1 for _ in (folder/sub).glob('*')) for sub in marker['files']}
    short = [f'{sub} has {seen[sub]} of {n} files' for sub, n in marker['files'].items() if seen[sub] < n]
    if short: raise ValueError(f'{folder} lacks files ({", ".join(short)}): remove it, and draw it again')
    return True


def cached(
    kind: str,  # As 'walkers'
    version: int,  # Of the drawing
    args: dict,  # Every argument
) -> Path:  # Among fastai's data (`FASTAI_HOME` or ~/.fastai)
    "The default folder for these arguments"
    key = '-'.join(f'{k}{v}' for k, v in args.items()).replace('_', '')
    return Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser()/'data'/f'{kind}-v{version}-{key}'


def whole_number(
    name: str,  # Of the argument
    value,  # Given
    low: int,  # Lowest allowed
    high: int,  # Highest allowed
) -> int:
    "The value as an int; a TypeError or ValueError says what is allowed"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f'{name}={value!r}: use a whole number')
    if not low <= value <= high: raise ValueError(f'{name}={value}: use {low} or more, at most {high}')
    return int(value)


def share(
    name: str,  # Of the argument
    value,  # Given
    high: float = 1.,  # Highest allowed
) -> float:
    "The value as a float from 0 to `high`; a ValueError says what is allowed"
    if not isinstance(value, (int, float)) or not 0 <= value <= high or math.isnan(value):
        raise ValueError(f'{name}={value!r}: use a number from 0 to {high:g}')
    return float(value)
