"Crops for a gallery: a folder as a tracker leaves it, or a table; cameras and times from file names"
import re
from pathlib import Path

import pandas as pd

from magnifier.data.folders import existing, image_files
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
    """A folder as a table for `Gallery.add`. ValueError for a pattern without groups, a time that is none, a
    folder without images"""
    root, patterns = existing(path), [pattern] if isinstance(pattern, str) else list(pattern)
    for p in patterns: _check_pattern(p)
    return pd.DataFrame([_row(file, root, patterns) for file in image_files(root, recursive=True)], dtype=object)


def crops_csv(
    file: str | Path,  # CSV with a header: path, and where known pid, camid, time
    root: str | Path | None = None,  # Folder that relative paths start from; the file's own by default
) -> pd.DataFrame:  # The table with whole paths, for `Gallery.add`
    """A table for `Gallery.add`. ValueError where it has no column path, or no rows; FileNotFoundError where
    it is not there"""
    if not Path(file).is_file(): raise FileNotFoundError(f'{file}: no such file')
    try: table = pd.read_csv(file)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise ValueError(f'{file}: not a CSV table ({e})') from e
    if 'path' not in table: raise ValueError(f'{file} has no column path, only {", ".join(map(str, table.columns))}')
    if not len(table): raise ValueError(f'{file} has no rows')
    base = Path(root if root is not None else Path(file).parent).expanduser().absolute()
    return table.assign(path=[str(base/str(p)) for p in table['path']])


def _row(file, root, patterns):
    "What a file's name says"
    name, said = file.relative_to(root).as_posix(), {}
    for pattern in patterns:
        found = re.search(pattern, name, re.I)
        if found: said |= {group: text for group, text in found.groupdict().items() if text is not None}
    return dict(
        path=str(file),
        pid=_whole(said.get('pid'), 'pid', file),
        camid=_whole(said.get('camid'), 'camid', file),
        time=_time(said.get('time'), file),
    )


def _check_pattern(pattern):
    try: groups = set(re.compile(pattern).groupindex)
    except re.error as e: raise ValueError(f'pattern {pattern!r} is no regular expression: {e}') from e
    if not groups or not groups <= {'pid', 'camid', 'time'}:
        raise ValueError(f'pattern {pattern!r}: named groups pid, camid, time wanted, as in c(?P<camid>\\d+); it has '
                         f'{sorted(groups) or "none"}')


def _whole(text, name, file):
    if text is None: return None
    try: return int(text)
    except ValueError as e:
        raise ValueError(f'{file}: the pattern reads {name} {text!r}, which is no whole number') from e


def _time(text, file):
    if text is None: return None
    if re.fullmatch(r'\d+(\.\d+)?', text): return timestamp(float(text))
    digits = re.sub(r'\D', '', text)
    iso = re.sub(r'(....)(..)(..)(..)(..)(..)', r'\1-\2-\3T\4:\5:\6', digits) if len(digits) == 14 else text
    try: return timestamp(iso)
    except ValueError as e: raise ValueError(f'{file}: the pattern reads the time {text!r}, which is none') from e
