"Reads a picture as every other part expects it: RGB, upright, and named in the error where it does not decode"
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ['read_image']


def read_image(
    source,  # A path, a PIL image of any mode, or an (h,w,3) uint8 array in RGB order
) -> Image.Image:  # The picture in mode RGB, turned upright where EXIF says how it was held
    "Picture as RGB; a ValueError names the file that is missing, truncated or no image"
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(f'array of shape {source.shape} and type {source.dtype}: an image is (h,w,3) uint8, in RGB order')
        return Image.fromarray(source)
    if isinstance(source, Image.Image): return _upright(source)
    try:
        with open(source, 'rb') as file, Image.open(file) as image: return _upright(image)
    except FileNotFoundError as e: raise FileNotFoundError(f'{source}: no such image file') from e
    except (OSError, UnidentifiedImageError, SyntaxError) as e:
        raise ValueError(f'{source}: not a readable image ({e}); mend or remove it (`check_catalog(catalog)` lists all such files)') from e


def _upright(image): return _eight_bit(ImageOps.exif_transpose(image)).convert('RGB')


def _eight_bit(image):
    "16-bit greys scaled to 8 bits: PIL's own conversion clips them to white"
    if not image.mode.startswith('I'): return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
