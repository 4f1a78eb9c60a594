"Uploaded images: decoded in memory within limits, shrunk, and kept for a while in memory only"
import secrets
from collections import OrderedDict
from io import BytesIO
from threading import Lock

import numpy as np
from PIL import Image

from magnifier.data.images import read_image

__all__ = ['MAX_BYTES', 'MAX_PIXELS', 'MAX_SIDE', 'read_upload', 'Uploads']

MAX_BYTES = 10_000_000   # of a file; a crop of a person has some tens of thousands
MAX_PIXELS = 25_000_000  # of an image, as phones take them
MIN_SIDE = 8             # pixels: less shows nobody
MAX_SIDE = 1024          # pixels of the longer side that are kept: models see fewer
KEPT_BYTES = 64_000_000  # of all images that are kept
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')  # decoders that strangers' bytes may reach
WANTED = 'use a JPEG, PNG, WebP or BMP image'


def read_upload(
    data: bytes,  # Of a file, from anybody
    size: int = 0,  # Bytes of the file, where it was too large to be sent
) -> Image.Image:  # Mode RGB, upright, no side over `MAX_SIDE`; nothing else of the file (EXIF, profiles, comments)
    "Decodes an untrusted image. A ValueError says in one sentence what is wrong, and quotes nothing from the file"
    size = max(size, len(data))
    if size > MAX_BYTES:
        raise ValueError(f'this file has {size/1e6:.1f} MB, and at most {MAX_BYTES/1e6:.0f} MB are read: '
                         'use a smaller image')
    if not data: raise ValueError(f'this file is empty: {WANTED}')
    try: image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many('far more pixels') from None
    except Exception:  # hostile bytes raise what they like
        raise ValueError(f'this is not an image that can be read: {WANTED}') from None
    _check_header(image)
    try: return _shrunk(image)
    except Exception: raise ValueError('this image is damaged or cut off: it does not decode to its end') from None


def _check_header(image):
    "Refuses images by their header, before any pixel is decoded"
    w, h = image.size
    if w*h > MAX_PIXELS: raise _too_many(f'{w} x {h} pixels')
    if min(w, h) < MIN_SIDE:
        raise ValueError(f'this image has {w} x {h} pixels, too few to show a person: at least {MIN_SIDE} a side')
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':  # MPO: a phone's JPEG with a second view
        raise ValueError(f'this is an animation: {WANTED} without animation')


def _shrunk(image):
    image.draft('RGB', (MAX_SIDE, MAX_SIDE))  # JPEG decodes a large image at a half, a quarter or an eighth
    pixels = read_image(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    return Image.fromarray(np.asarray(pixels))  # the pixels alone go on


def _too_many(what):
    return ValueError(f'this image has {what}, and at most {MAX_PIXELS/1e6:.0f} million are decoded: '
                      'use a smaller image or cut the person out')


class Uploads:
    """Uploaded images by an id that nobody can guess. Their total size is limited: the least recently used image is
    dropped first"""

    def __init__(self,
        limit: int = KEPT_BYTES,  # Bytes of all images together
    ):
        self.limit = limit
        self._images = OrderedDict()
        self._decoding, self._changing = Lock(), Lock()

    def keep(self,
        data: bytes,  # Of a file
        size: int = 0,  # As for `read_upload`
    ) -> str:  # The image's id
        "Decodes one image at a time and keeps it; the errors of `read_upload`"
        with self._decoding: image = read_upload(data, size)
        with self._changing:
            self._images[key := f'upload-{secrets.token_urlsafe(16)}'] = image
            while self.nbytes > self.limit: self._images.popitem(last=False)
        return key

    def get(self,
        key: str,  # An image's id
    ) -> Image.Image | None:  # None where it is not kept any more
        "An image that was uploaded"
        with self._changing:
            if key in self._images: self._images.move_to_end(key)
            return self._images.get(key)

    @property
    def nbytes(self) -> int:
        "Bytes of the images that are kept"
        return sum(3*image.width*image.height for image in self._images.values())
