"Pictures from strangers: decoded in memory, within limits, or refused with a sentence"
import base64
import binascii
from io import BytesIO

import numpy as np
from PIL import Image
from magnifier.data.images import read_image

__all__ = ['MAX_BYTES', 'MAX_PIXELS', 'read_upload', 'read_data_url', 'too_large']

MAX_BYTES = 10_000_000   # Of a file; a crop of a person has some tens of thousands
MAX_PIXELS = 25_000_000  # Of a picture: a phone's; decoded it takes 75 MB
MIN_SIDE = 8             # Pixels: less shows nobody
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')  # Decoders that strangers' bytes may reach
WANTED = 'use a JPEG, PNG, WebP or BMP picture'
# How files begin that people take for pictures
OTHERS = {b'GIF8': 'a GIF', b'%PDF': 'a PDF', b'II*\0': 'a TIFF', b'MM\0*': 'a TIFF', b'<svg': 'an SVG drawing', b'<?xm': 'an XML or SVG text',
          b'<!DO': 'a web page', b'PK\3\4': 'an archive', b'\x1f\x8b': 'an archive'}


def read_upload(
    data:bytes, # Of a file, from anybody
) -> Image.Image:  # Mode RGB, upright; no other bytes of the file (EXIF, profiles, comments) come with it
    "Decodes a picture without trusting it; a ValueError says in one sentence why not, without quoting the file"
    if not data: raise ValueError(f'this file is empty: {WANTED}')
    if len(data) > MAX_BYTES: raise ValueError(too_large(len(data)))
    try: image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning): raise ValueError(_too_many('far more pixels')) from None
    except Exception: raise ValueError(f'this is {_kind(data)}: {WANTED}') from None  # hostile bytes raise what they like
    _check_size(image)
    try: return Image.fromarray(np.asarray(read_image(image)))  # decoded here; the pixels alone go on
    except Exception: raise ValueError('this picture is damaged or cut off: it does not decode to its end') from None


def _check_size(image):
    "What the header says, before anything is decoded"
    w, h = image.size
    if w*h > MAX_PIXELS: raise ValueError(_too_many(f'{w} x {h} pixels'))
    if min(w, h) < MIN_SIDE: raise ValueError(f'this picture has {w} x {h} pixels, too few to show a person: at least {MIN_SIDE} a side')
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':  # MPO: a phone's JPEG with a second view
        raise ValueError(f'this picture moves: {WANTED} that stands still')


def too_large(
    size:int, # Bytes
) -> str:
    "Why a file is not read"
    return f'this file has {size/1e6:.1f} MB, and at most {MAX_BYTES/1e6:.0f} MB are read: use a smaller picture'


def _too_many(what):
    return f'this picture has {what}, and at most {MAX_PIXELS/1e6:.0f} million are decoded: use a smaller picture or cut the person out'


def _kind(data):
    start = data[:64].lstrip()
    named = next((name for begin, name in OTHERS.items() if start.startswith(begin)), None)
    if data[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftypavif'): named = 'a HEIC or AVIF picture'
    return named or 'not a picture that can be read'


def read_data_url(
    text, # 'data:image/png;base64,...', as a browser reads a file
) -> Image.Image:  # Mode RGB
    "`read_upload` of a data URL; a ValueError for anything else"
    if not isinstance(text, str) or not text.startswith('data:'): raise ValueError(f'no file came: {WANTED}')
    if len(text) > MAX_BYTES*4//3 + 200: raise ValueError(too_large(len(text)*3//4))
    try: data = base64.b64decode(text.partition(',')[2], validate=True)
    except binascii.Error: raise ValueError('this file did not come whole: try once more') from None
    return read_upload(data)
