"Crops for a gallery, from a folder or a table, with cameras and times from the file names"
import re
from pathlib import Path

import pandas as pd

from magnifier.data.folders import existing, image_files
from magnifier.data.own_sets import MISSING, read_table
from magnifier.gallery.entries import timestamp

__all__ = ['crops_folder', 'crops_csv']

# Looked for anywhere in each path below the folder. A file as Market-1501 names them, 0172_c4s3_000691_03.jpg, gives
# its identity too; c4, cam4, cam_4 or camera-4 the camera; 20260131_134500 or 2026-01-31T13:45:00 the time, in UTC
CROP_PATTERN = (r'(?:^|/)(?P<pid>-1|\d{4,5})_c\d+s\d+_',
                r'(?:^|[^a-z0-9])c(?:am(?:era)?)?[_-]?(?P<camid>\d+)(?=[^0-9]|$)',
                r'(?<!\d)(?P<time>\d{4}-?\d\d-?\d\d[T_ -]\d\d[-:]?\d\d[-:]?\d\d)(?!\d)')


def crops_folder(
    path: str | Path,  # Folder of images, with folders in it or without
    pattern: str | tuple = CROP_PATTERN,  # Regular expressions with groups pid, camid, time
) -> pd.DataFrame:  # Columns path, pid, camid, time (seconds since 1970 in UTC); None where a name does not say
    """A folder as a table for `Gallery.add`. ValueError for a pattern without groups, an invalid time, a folder without
    images"""
    root, patterns = existing(path), [pattern] if isinstance(pattern, str) else list(pattern)
    for p in patterns: _check_pattern(p)
    return pd.DataFrame([_row(file, root, patterns) for file in image_files(root, recursive=True)], dtype=object)


def crops_csv(
    file: str | Path,  # CSV with a header: path, and where known pid, camid, time
    root: str | Path | None = None,  # Folder that relative paths start from; the file's own by default
) -> pd.DataFrame:  # The table with whole paths, for `Gallery.add`
    """A table for `Gallery.add`. ValueError where it has no column path, no rows, or a label that is no number
    or time; FileNotFoundError where it is not there"""
    table = read_table(file)
    if 'path' not in table: raise ValueError(f'{file} has no column path, only {", ".join(map(str, table.columns))}')
    if not len(table): raise ValueError(f'{file} has no rows')
    base = Path(root if root is not None else Path(file).parent).expanduser().absolute()
    forms = dict(pid=_whole, camid=_whole, time=_time, tracklet=_word)
    labels = {
        column: pd.Series([form(_known(text), column, file) for text in table[column]], dtype=object)
        for column, form in forms.items() if column in table
    }
    return table.assign(path=[str(base/p) for p in table['path']], **labels)


def _known(text): return None if text.strip().lower() in MISSING else text.strip()


def _row(file, root, patterns):
    "Identity, camera and time from a file's name"
    name, said = file.relative_to(root).as_posix(), {}
    for pattern in patterns:
        found = re.search(pattern, name, re.I)
        if found: said |= {group: text for group, text in found.groupdict().items() if text is not None}
    return dict(
        path=str(file),
        pid=_whole(said.get('pid'), 'pid', file),
        camid=_whole(said.get('camid'), 'camid', file),
        time=_time(said.get('time'), 'time', file),
    )


def _check_pattern(pattern):
    try: groups = set(re.compile(pattern).groupindex)
    except re.error as e: raise ValueError(f'pattern {pattern!r} is not a regular expression: {e}') from e
    if not groups or not groups <= {'pid', 'camid', 'time'}:
        raise ValueError(f'pattern {pattern!r}: named groups pid, camid, time wanted, as in c(?P<camid>\\d+); it has '
                         f'{sorted(groups) or "none"}')


def _whole(text, name, file):
    if text is None: return None
    if not re.fullmatch(r'-?\d+(\.0+)?', text): raise ValueError(f'{file}: {name} {text!r} is no whole number')
    return int(text.partition('.')[0])


def _word(text, name, file): return text


def _time(text, name, file):
    if text is None: return None
    if re.fullmatch(r'\d+(\.\d+)?', text): return timestamp(float(text))
    digits = re.sub(r'\D', '', text)
    iso = re.sub(r'(....)(..)(..)(..)(..)(..)', r'\1-\2-\3T\4:\5:\6', digits) if len(digits) == 14 else text
    try: return timestamp(iso)
    except ValueError as e: raise ValueError(f'{file}: {name} {text!r} is no time') from e
