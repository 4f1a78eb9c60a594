"Reading images from files, bytes, arrays and PIL images: RGB, upright, 8 bits, or an error that names the image"

import os
import stat
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from io import BytesIO, TextIOBase

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ['UnreadableImage', 'read_image']

# File names that count as images, wherever a folder is searched
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.avif')
WANTED = 'an image is a path, the bytes of a file, a binary file, a PIL image or an (h,w,3) uint8 array'
DEPTHS = (8, 12, 16)  # Bits that scanners and cameras write into 16- and 32-bit files


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
def opened_image(
    source,  # As `read_image` takes it, but for arrays
    what: str = 'image',  # What it should be, for the message
):  # A PIL image, not decoded yet
    "Opens an image; every error until it is closed becomes an UnreadableImage that names it"
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
    "One image or many, as a list; a TypeError for other types"
    if hasattr(images, 'columns'):
        if 'path' not in images:
            raise ValueError(f'the table has no column path, only {", ".join(map(str, images.columns))}')
        return images['path'].tolist()
    if _is_one(images): return [images]
    if not isinstance(images, Iterable): raise TypeError(f'{type(images).__name__} given: {WANTED}, or a list of these')
    return images


def image_name(
    source,  # As `read_image` takes it
) -> str:  # Its path, or what it is; always printable
    "An image's name for messages; bytes of a file name that are not UTF-8 are escaped"
    if isinstance(source, np.ndarray): return f'array of shape {source.shape} and type {source.dtype}'
    if isinstance(source, Image.Image): return f'image of {source.width} x {source.height} pixels'
    if _is_path(source): return os.fspath(source).encode(errors='backslashreplace').decode()
    return f'image in {type(source).__name__}'


def _is_path(source): return isinstance(source, (str, os.PathLike))


def _is_one(source):
    if isinstance(source, np.ndarray): return source.ndim in (0, 2, 3)  # else a stack of images, or an array of paths
    return isinstance(source, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(source, 'read')


def _from_array(array, bgr):
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UnreadableImage(f'{image_name(array)}: an image is (h,w,3) uint8, 0 to 255, in RGB order')
    if not array.size: raise UnreadableImage(f'{image_name(array)}: a crop with an area is wanted')
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
    if not w*h: raise ValueError('an image with an area is wanted')
    if Image.MAX_IMAGE_PIXELS and w*h > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f'{w} x {h} pixels, and Pillow is set to read {Image.MAX_IMAGE_PIXELS:,}: shrink it')


def _as_rgb(image):
    deep = any(';16' in str(tile[3]) for tile in getattr(image, 'tile', ()))  # asked before it is decoded
    upright = ImageOps.exif_transpose(image)
    if upright.mode == 'F': upright = _from_floats(np.asarray(upright))
    elif upright.mode.startswith('I'): upright = _from_integers(np.asarray(upright))
    elif deep and upright.mode.startswith('RGB') and max(high for _, high in upright.getextrema()[:3]) < 16:
        raise ValueError('16 bits a channel, of which at most 12 are used, and it would be read as black: scale it '
                         'to 8 bits')
    return upright.convert('RGB')


def _from_integers(values):
    "Greys of 8, 12 or 16 bits, whichever the largest value needs, as 8 bits; Pillow itself would clip them to white"
    low, high = int(values.min()), int(values.max())
    bits = next((b for b in DEPTHS if high < 2**b), None)
    if low < 0 or bits is None: raise ValueError(f'greys from {low} to {high}: scale them to 0 to 255')
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _from_floats(values):
    "Greys from 0 to 1, or from 0 to 255, as 8 bits"
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255: raise ValueError(f'greys from {low:g} to {high:g}: scale them to 0 to 255')
    return Image.fromarray((values*(255 if high <= 1 else 1)).round().astype(np.uint8))
