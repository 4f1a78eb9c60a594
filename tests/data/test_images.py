"Images of every kind become RGB, or an error that names what was given"
import io
import os
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from magnifier.data.images import UnreadableImage, as_images, image_name, read_image
from magnifier.data.images import read_mask


def gradient(): return np.arange(6*4*3, dtype=np.uint8).reshape(6, 4, 3)


def png(image=None):
    "The bytes of a PNG file"
    stream = io.BytesIO()
    Image.fromarray(gradient() if image is None else image).save(stream, format='PNG')
    return stream.getvalue()


def png_by_hand(width, height, colours, data, bits=16):
    "A PNG that Pillow would not write"
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    header = struct.pack('>IIBBBBB', width, height, bits, colours, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def png_of_16_bits(values):
    "A PNG of 16 bits a channel, (h,w,3)"
    return png_by_hand(values.shape[1], values.shape[0], 2,
                       b''.join(b'\0' + row.astype('>u2').tobytes() for row in values))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'LA'])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(gradient()).convert(mode)
    out = read_image(image)
    assert out.mode == 'RGB'
    assert out.size == (4, 6)
    if mode == 'RGB': assert (np.asarray(out) == gradient()).all()


@pytest.mark.parametrize('bits', [8, 12, 16])
@pytest.mark.parametrize('dtype', [np.uint16, np.int32])
def test_deep_greys_keep_their_range(bits, dtype, tmp_path):
    deep = np.linspace(0, 2**bits - 1, 24).astype(dtype).reshape(6, 4)
    Image.fromarray(deep).save(tmp_path/'deep.tif')
    assert (np.asarray(read_image(tmp_path/'deep.tif'))[..., 0] == deep >> (bits - 8)).all()


@pytest.mark.parametrize('top', [1., 255.])
def test_floats_are_of_0_to_1_or_0_to_255(top, tmp_path):
    values = np.linspace(0, top, 24, dtype=np.float32).reshape(6, 4)
    Image.fromarray(values).save(tmp_path/'float.tif')
    assert np.abs(np.asarray(read_image(tmp_path/'float.tif'))[..., 0] - values*255/top).max() <= .5


@pytest.mark.parametrize('values',
                         [np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32),
                          np.full((2, 2), 300, np.float32),
                                    np.full((2, 2), np.nan, np.float32), np.full((2, 2), -.5, np.float32)])
def test_greys_of_no_known_range_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path/'odd.tif')
    with pytest.raises(UnreadableImage, match=r'odd.tif: .*greys from .* scale them to 0 to 255'):
        read_image(tmp_path/'odd.tif')


def test_colours_of_16_bits_are_read_and_those_of_12_refused():
    deep = np.linspace(0, 65535, 72).astype(np.uint16).reshape(6, 4, 3)
    assert np.abs(np.asarray(read_image(png_of_16_bits(deep))).astype(int) - deep/257).max() <= 1
    for bits in (8, 12):
        with pytest.raises(UnreadableImage, match='at most 12 are used.*scale it to 8 bits'):
            read_image(png_of_16_bits(deep >> (16 - bits)))


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[274] = 6  # held sideways
    image.save(tmp_path/'held.png', exif=exif)
    assert (np.asarray(read_image(tmp_path/'held.png')) == np.rot90(gradient(), -1)).all()


def test_bytes_and_files_are_images(tmp_path):
    (tmp_path/'a.png').write_bytes(png())
    with open(tmp_path/'a.png', 'rb') as file:
        sources = [str(tmp_path/'a.png'), tmp_path/'a.png', png(), bytearray(png()), io.BytesIO(png()), file]
    with open(tmp_path/'a.png', 'rb') as file:
        for source in [*sources[:-1], file]: assert (np.asarray(read_image(source)) == gradient()).all()
        assert not file.closed


def test_arrays_are_rgb_or_bgr():
    assert (np.asarray(read_image(gradient())) == gradient()).all()
    assert (np.asarray(read_image(gradient(), bgr=True)) == gradient()[..., ::-1]).all()
    assert (np.asarray(read_image(png(), bgr=True)) == gradient()).all(), 'files know their own order'


@pytest.mark.parametrize('array', [gradient()[..., 0], gradient()/255, gradient().astype(np.uint16), gradient()[None]])
def test_other_arrays_are_refused(array):
    with pytest.raises(UnreadableImage, match=r'array of shape .* and type .*: an image is \(h,w,3\) uint8'):
        read_image(array)


@pytest.mark.parametrize('nothing',
                         [np.zeros((0, 64, 3), np.uint8), np.zeros((64, 0, 3), np.uint8), Image.new('RGB', (0, 5))])
def test_what_has_no_area_is_refused(nothing):
    with pytest.raises(UnreadableImage, match='with an area is wanted'): read_image(nothing)


@pytest.mark.parametrize('number', [1, 0, 2.5, None, np.int64(1), io.StringIO('text'),
                                    io.TextIOWrapper(io.BytesIO(png()))])
def test_numbers_are_no_images_and_no_open_files(number):
    with pytest.raises(TypeError, match='an image is a path, the bytes of a file'): read_image(number)


def test_what_does_not_decode_is_named(tmp_path):
    whole = tmp_path/'a.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    damaged = {'cut.jpg': whole.read_bytes()[:900], 'empty.jpg': b'', 'text.jpg': b'hello',
               'odd.dds': b'DDS ' + bytes(200),
               'odd.avif': b'\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf' + bytes(300)}
    for name, content in damaged.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=f'{name}: not a readable image.*check_catalog'):
            read_image(tmp_path/name)
        with pytest.raises(UnreadableImage, match='image in bytes: not a readable image'): read_image(content)
    with pytest.raises(FileNotFoundError, match='gone.jpg: no such image file'): read_image(tmp_path/'gone.jpg')


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')  # opening it would wait for ever
    (tmp_path/'endless.jpg').symlink_to('/dev/zero')
    (tmp_path/'folder.jpg').mkdir()
    for name in ('pipe.jpg', 'endless.jpg', 'folder.jpg'):
        with pytest.raises(UnreadableImage, match=f'{name}: not a regular file'): read_image(tmp_path/name)
    with pytest.raises(UnreadableImage, match='null'): read_image('a\0b.jpg')


def test_names_that_are_no_utf8_can_be_read_and_printed(tmp_path):
    name = os.fsencode(tmp_path) + b'/caf\xe9.png'
    with open(name, 'wb') as file: file.write(png())
    assert (np.asarray(read_image(os.fsdecode(name))) == gradient()).all()
    with open(name, 'wb') as file: file.write(b'hello')
    with pytest.raises(UnreadableImage, match=r'caf\\udce9.png: not a readable image') as problem:
        read_image(os.fsdecode(name))
    str(problem.value).encode()


@pytest.mark.parametrize('width, height', [(9000, 10000), (30000, 15000)])
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_too_many_pixels_are_named_before_they_are_decoded(width, height, tmp_path):
    (tmp_path/'huge.png').write_bytes(png_by_hand(width, height, 0, b'', 8))
    with pytest.raises(UnreadableImage, match='huge.png: not a readable image .*pixels'):
        read_image(tmp_path/'huge.png')
    with pytest.raises(UnreadableImage, match='huge.png: not a readable part mask .*pixels'):
        read_mask(tmp_path/'huge.png')


def test_one_image_or_many(tmp_path):
    image = Image.fromarray(gradient())
    for one in ('a.png', tmp_path/'a.png', gradient(), image, png(), io.BytesIO(png())):
        assert as_images(one) == [one] or as_images(one)[0] is one
    assert len(list(as_images(np.stack([gradient()]*3)))) == 3
    assert list(as_images(np.array(['a', 'b'], object))) == ['a', 'b']
    assert list(as_images(pd.DataFrame(dict(path=['a', 'b'], pid=1)))) == ['a', 'b']
    assert list(as_images(name for name in 'ab')) == ['a', 'b']
    with pytest.raises(TypeError, match='int given: an image is a path'): as_images(1)
    with pytest.raises(ValueError, match='no column path, only file'): as_images(pd.DataFrame(dict(file=['a'])))


def test_names():
    assert image_name('a/b.png') == 'a/b.png'
    assert image_name(np.zeros((2, 3, 3))) == 'array of shape (2, 3, 3) and type float64'
    assert image_name(b'123') == 'image in bytes'
