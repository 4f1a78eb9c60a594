"Folders of images: finding a data set's root, and the images in it"

import logging
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from magnifier.data.images import IMAGE_ENDINGS
from magnifier.files import aside

__all__ = ['existing', 'find_root', 'image_files', 'mask_folder', 'save_png']

HARMLESS = ('.db', '.ini', '.txt', '.md')  # Beside images everywhere; nobody misses them
log = logging.getLogger(__name__)


def existing(
    path: str | Path,  # A folder
) -> Path:  # Absolute, so that a catalog survives a change of the working directory
    "The folder; a FileNotFoundError if it does not exist"
    path = Path(path).expanduser().absolute()
    if not path.is_dir(): raise FileNotFoundError(f'{path} is not a folder')
    return path


def find_root(
    path: str | Path,  # The root itself, or a folder with the root up to two levels below
    folders: list,  # What the root must hold
    names: list,  # Usual names of the root, compared by letters and digits alone
    title: str,  # Of the data set, for the messages
) -> Path:
    "The root of a data set; a FileNotFoundError if no folder holds all of the given ones, a ValueError if several do"
    path = existing(path)
    folders = list(folders)
    found = [r for r in _roots(path, {plain(n) for n in names}) if all((r / f).is_dir() for f in folders)]
    if len(found) == 1 or found[:1] == [path]: return found[0]
    if found: raise ValueError(f'{path} holds {" and ".join(r.name for r in found)}: give the path of one of them')
    below = f' and in folders of it named {", ".join(names)}' if names else ''
    raise FileNotFoundError(f'no {title} in {path}: looked for the folders {", ".join(folders)} in it{below}; it '
                            f'holds {_some(path)}')


def image_files(
    folder: str | Path,  # Where to look
    recursive: bool = False,  # Whether folders in it are searched too; links are followed, but not in circles
    *,
    include: str | None = None,  # Regex, searched in the path below the folder: only these images
    exclude: str | None = None,  # The same: but not these
) -> list[Path]:  # Sorted
    """Image files of a folder, by their endings, without hidden files, part masks and copies with a second ending.

    One warning in the log counts what is left out. A ValueError if no image is left."""
    left_out = Counter()
    found = list(_without_copies(_folders(str(folder), recursive, (), left_out), left_out))
    for pattern, wanted in ((include, True), (exclude, False)):
        if pattern is None: continue
        kept = [f for f in found if bool(re.search(pattern, _below(f, folder))) == wanted]
        left_out[f'by {"include" if wanted else "exclude"}={pattern!r}'] += len(found) - len(kept)
        found = kept
    reasons = ', '.join(f'{n} {why}' for why, n in sorted(left_out.items()) if n)
    if not found:
        why = f'; left out: {reasons}' if reasons else ''
        raise ValueError(f'{folder} holds no image ({", ".join(IMAGE_ENDINGS)}){why}')
    if reasons: log.warning('%s: left out %s', folder, reasons)
    return [Path(f) for f in sorted(found)]


def _without_copies(folders, left_out):
    for place, names in folders:
        second = {n for n in names if os.path.splitext(n)[0] in names}  # x.jpg.jpg beside x.jpg
        left_out['copies with a second ending'] += len(second)
        yield from (os.path.join(place, n) for n in names - second)


def mask_folder(
    folder: str | Path,  # A folder of images
) -> Path:  # `<folder>_ps_label`, beside it
    "The default folder of part masks, where readers look for them"
    return Path(folder).with_name(Path(folder).name + '_ps_label')


def save_png(
    image,  # A PIL image or an array
    path: str | Path,  # Where to
):
    "Writes a PNG; a kill leaves no partial file"
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    with aside(path, synced=False) as part: image.save(part, format='PNG')


def plain(name) -> str: return re.sub('[^a-z0-9]', '', str(name).lower())


def _roots(path, names, depth=2):
    yield path
    if depth == 0: return
    for d in sorted(path.iterdir()):
        if d.is_dir() and plain(d.name) in names: yield from _roots(d, names, depth - 1)


def _some(path):
    names = sorted(os.listdir(path))
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '') if names else 'nothing'


def _below(file, folder): return Path(file).relative_to(folder).as_posix()


def _folders(folder, recursive, above, left_out):
    "(folder, names of its images) for a folder and those in it; `above`: the real folders that led here"
    here = os.path.realpath(folder)
    if here in above: return  # a link back
    names, deeper = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'): continue
            if entry.is_dir():
                if recursive and not entry.name.endswith('_ps_label'): deeper.append(entry.path)
            elif why := _no_image(entry): left_out[why] += 1
            elif entry.name.lower().endswith(IMAGE_ENDINGS): names.add(entry.name)
    yield folder, names
    for d in sorted(deeper): yield from _folders(d, recursive, (*above, here), left_out)


def _no_image(entry):
    "Why a file is left out; None if that need not be reported"
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in HARMLESS: return None
    if ending not in IMAGE_ENDINGS: return f'{ending or "files without an ending"} (no image)'
    if not entry.is_file(): return 'pipes, devices or broken links'
    try: entry.path.encode()
    except UnicodeEncodeError: return 'names that are not UTF-8'
    return None
