"Files of images and part masks: found in a folder, read as RGB or as labels, written, or an error that names the file"

import logging
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from io import BytesIO, TextIOBase
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from magnifier.checks import refuse
from magnifier.files import aside
from magnifier.regions import N_REGIONS

__all__ = ['UnreadableImage', 'read_image', 'read_mask', 'write_mask']

# File names that count as images, wherever a folder is searched
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.avif')
HARMLESS = ('.db', '.ini', '.txt', '.md')  # Often beside images, and not reported as left out
WANTED = 'an image is a path, the bytes of a file, a binary file, a PIL image or an (h,w,3) uint8 array'
DEPTHS = (8, 12, 16)  # Bits that scanners and cameras write into 16- and 32-bit files
log = logging.getLogger(__name__)


class UnreadableImage(ValueError):
    "An image cannot be read; the message names it"


def read_image(
    source,  # A path, the bytes of a file, a binary file, a PIL image of any mode, or an (h,w,3) uint8 array
    *,
    bgr: bool = False,  # Arrays are in OpenCV's order, blue first; files and PIL images know their own
) -> Image.Image:  # Mode RGB, turned upright where EXIF says how the camera was held
    """The image as RGB.

    UnreadableImage, a ValueError, names an image that does not decode, has no area, is not a regular file or has too
    many pixels; FileNotFoundError names a missing file; TypeError says which types are allowed."""
    if isinstance(source, np.ndarray): return _from_array(source, bgr)
    with opened_image(source) as image: return _as_rgb(image)


@contextmanager
def opened_image(source, what='image'):
    """Opens an image without decoding it; every error until it is closed becomes an UnreadableImage that names it.

    `source`: as `read_image` takes it, but no array; `what`: the kind of image, for the message"""
    name = image_name(source)
    file = None if isinstance(source, Image.Image) else _opened(source, name)
    with file or nullcontext():
        try:
            image = Image.open(file) if file else source
            _check_pixels(image)
            yield image
        except MemoryError: raise  # the machine's state, not the file's
        except Exception as e:  # decoders raise whatever they like on damaged bytes
            why = 'of no format that Pillow knows' if isinstance(e, UnidentifiedImageError) else e
            advice = '; mend or remove it (`check_catalog(catalog)` lists all such files)' if _is_path(source) else ''
            raise UnreadableImage(f'{name}: not a readable {what} ({why}){advice}') from e


def as_images(
    images,  # One image as `read_image` takes it, a list, array or generator of them, or a catalog
) -> Iterable:  # Images, one by one
    "One image or many, as an iterable of images; a TypeError for other types"
    if hasattr(images, 'columns'):
        refuse({f'the table has no column path, only {", ".join(map(str, images.columns))}': 'path' not in images})
        return images['path'].tolist()
    if _is_one(images): return [images]
    if not isinstance(images, Iterable): raise TypeError(f'{type(images).__name__} given: {WANTED}, or a list of these')
    return images


def image_name(source) -> str:
    "An image's path, or what it is, for messages; bytes of a file name that are not UTF-8 are escaped"
    if isinstance(source, np.ndarray): return f'array of shape {source.shape} and type {source.dtype}'
    if isinstance(source, Image.Image): return f'image of {source.width} x {source.height} pixels'
    if _is_path(source): return os.fspath(source).encode(errors='backslashreplace').decode()
    return f'image in {type(source).__name__}'


def _is_path(source): return isinstance(source, (str, os.PathLike))


def _is_one(source):
    if isinstance(source, np.ndarray): return source.ndim in (0, 2, 3)  # else a stack of images, or an array of paths
    return isinstance(source, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(source, 'read')


def _from_array(array, bgr):
    is_rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    if not is_rgb or not array.size:
        wanted = 'a crop with an area is wanted' if is_rgb else 'an image is (h,w,3) uint8, 0 to 255, in RGB order'
        raise UnreadableImage(f'{image_name(array)}: {wanted}')
    return Image.fromarray(array[..., ::-1] if bgr else array)


def _opened(source, name):
    "An open binary file; only regular files are opened, because a pipe or a device may have no end"
    if isinstance(source, (bytes, bytearray)): return BytesIO(source)
    if _is_path(source):
        try:
            if stat.S_ISREG(os.stat(source).st_mode): return open(source, 'rb')
        except FileNotFoundError as e: raise FileNotFoundError(f'{name}: no such image file') from e
        except (OSError, ValueError) as e: raise UnreadableImage(f'{name}: {getattr(e, "strerror", None) or e}') from e
        raise UnreadableImage(f'{name}: not a regular file')
    is_binary = hasattr(source, 'read') and not isinstance(source, TextIOBase)
    content = source.read() if is_binary else None
    if not isinstance(content, bytes): raise TypeError(f'{type(source).__name__} given: {WANTED}')
    return BytesIO(content)


def _check_pixels(image):
    "Checks the size in the header before anything is decoded"
    w, h = image.size
    most = Image.MAX_IMAGE_PIXELS or math.inf
    refuse({'an image with an area is wanted': not w*h,
            f'{w} x {h} pixels, and Pillow is set to read {most:,}: shrink it': w*h > most})


def _as_rgb(image):
    deep = any(';16' in str(tile[3]) for tile in getattr(image, 'tile', ()))  # asked before it is decoded
    upright = ImageOps.exif_transpose(image)
    if upright.mode == 'F': upright = _from_floats(np.asarray(upright))
    elif upright.mode.startswith('I'): upright = _from_integers(np.asarray(upright))
    elif deep and upright.mode.startswith('RGB'):
        refuse({'16 bits a channel, of which at most 12 are used, and it would be read as black: scale it to 8 bits':
                max(high for _, high in upright.getextrema()[:3]) < 16})
    return upright.convert('RGB')


def _from_integers(values):
    "Greys of 8, 12 or 16 bits, whichever the largest value needs, as 8 bits; Pillow itself would clip them to white"
    low, high = int(values.min()), int(values.max())
    bits = next((b for b in DEPTHS if high < 2**b), None)
    refuse({f'greys from {low} to {high}: scale them to 0 to 255': low < 0 or bits is None})
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _from_floats(values):
    "Greys from 0 to 1, or from 0 to 255, as 8 bits"
    low, high = float(values.min()), float(values.max())
    refuse({f'greys from {low:g} to {high:g}: scale them to 0 to 255': not 0 <= low <= high <= 255})
    return Image.fromarray((values*(255 if high <= 1 else 1)).round().astype(np.uint8))


# Part masks


def read_mask(
    path: str | Path,  # A grey or palette PNG, the labels 0..7 as its values
) -> np.ndarray:  # (h, w) uint8
    """Labels of a part-mask file; for a palette PNG the indices, not the colours.

    A ValueError names a file that has colour channels or labels above 7, or does not decode; a FileNotFoundError a
    missing one."""
    labels = read_labels(path)
    _check_regions(path, labels, "; if they are another parser's, convert them with convert_masks")
    return labels.astype(np.uint8)


def write_mask(
    path: str | Path,  # Where to; missing folders are made
    labels: np.ndarray,  # (h, w) integers 0..7
) -> Path:  # The file
    "Writes a part mask as a grey PNG; a kill leaves no partial file. ValueError for other labels"
    path = Path(path)
    labels = np.asarray(labels)
    refuse({f'{path}: a part mask is (h, w) integers, not {labels.shape} {labels.dtype}':
            labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in 'iub'})
    _check_regions(path, labels)
    save_png(labels.astype(np.uint8), path)
    return path


def read_labels(path) -> np.ndarray:
    """Values of a one-channel image with any labels: (h, w); a ValueError names a file with colours, or that does not
    decode"""
    with opened_image(path, 'part mask') as image:
        labels = np.asarray(image)
        mode = image.mode
    refuse({f'{path} is {mode}, but a label file is grey or has a palette':
            labels.ndim != 2 or labels.dtype.kind not in 'iub'})
    return labels


def check_same_size(mask_size, image_size, name='a mask'):
    """Refuses a mask of another size than its image, as PIL gives sizes, since it would label the wrong pixels if it
    were stretched over the image; `name`: of the mask's file"""
    refuse({f'{name}: mask of {mask_size[0]} x {mask_size[1]} pixels for an image of {image_size[0]} x {image_size[1]};'
            ' write the mask at the size of its image': mask_size != image_size})


def _check_regions(path, labels, advice=''):
    if labels.min() < 0 or labels.max() >= N_REGIONS:
        raise ValueError(f'{path}: labels {few(np.unique(labels))}, but a part mask has labels 0 to '
                         f'{N_REGIONS-1}{advice}')


def few(values) -> str:
    "The first twelve values, for messages"
    return ', '.join(map(str, values[:12])) + (', ...' if len(values) > 12 else '')


def save_png(array: np.ndarray, path: str | Path):
    "Writes a PNG; a kill leaves no partial file"
    with aside(path, synced=False) as part: Image.fromarray(array).save(part, format='PNG')


# Folders


def existing(path: str | Path) -> Path:
    "The folder's absolute path, which survives a change of the working directory; FileNotFoundError without a folder"
    path = Path(path).expanduser().absolute()
    if not path.is_dir(): raise FileNotFoundError(f'{path} is not a folder')
    return path


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
    found = list(_images_in(str(folder), recursive, (), left_out))
    if include is not None:
        kept = _matching(found, folder, include)
        left_out[f'by include={include!r}'] = len(found) - len(kept)
        found = kept
    if exclude is not None:
        dropped = set(_matching(found, folder, exclude))
        left_out[f'by exclude={exclude!r}'] = len(dropped)
        found = [f for f in found if f not in dropped]
    reasons = ', '.join(f'{n} {why}' for why, n in sorted(left_out.items()) if n)
    why = f'; left out: {reasons}' if reasons else ''
    refuse({f'{folder} holds no image ({", ".join(IMAGE_ENDINGS)}){why}': not found})
    if reasons: log.warning('%s: left out %s', folder, reasons)
    return [Path(f) for f in sorted(found)]


def _matching(files, folder, pattern):
    "Files with a path below the folder in which the pattern is found"
    return [f for f in files if re.search(pattern, Path(f).relative_to(folder).as_posix())]


def _images_in(folder, recursive, above, left_out):
    "Paths of the images of a folder and of the folders in it; `above`: the real folders that led here"
    here = os.path.realpath(folder)
    if here in above: return  # a link back
    with os.scandir(folder) as found: entries = [e for e in found if not e.name.startswith('.')]
    names = {e.name for e in entries if not e.is_dir() and _is_image(e, left_out)}
    copies = {n for n in names if os.path.splitext(n)[0] in names}  # x.jpg.jpg beside x.jpg
    left_out['copies with a second ending'] += len(copies)
    yield from (os.path.join(folder, n) for n in names - copies)
    if not recursive: return
    for deeper in entries:
        if deeper.is_dir() and not deeper.name.endswith('_ps_label'):
            yield from _images_in(deeper.path, recursive, (*above, here), left_out)


def _is_image(entry, left_out):
    "Whether a file is an image by its ending; counts the reasons why others are left out"
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in HARMLESS: return False
    if ending not in IMAGE_ENDINGS: why = f'{ending or "files without an ending"} (no image)'
    elif not entry.is_file(): why = 'pipes, devices or broken links'
    elif not _is_utf8(entry.path): why = 'names that are not UTF-8'
    else: return True
    left_out[why] += 1
    return False


def _is_utf8(path):
    try: path.encode()
    except UnicodeEncodeError: return False
    return True


def mask_folder(folder: str | Path) -> Path:
    "`<folder>_ps_label` beside a folder of images, where readers look for their part masks"
    return Path(folder).with_name(Path(folder).name + '_ps_label')
