"Pictures from strangers: decoded, or refused in a sentence; nothing else ever"
import base64
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from magnifier.app import upload as page_upload
from magnifier.app.upload import read_data_url, read_upload
from PIL import Image

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))


def encoded(image=PICTURE, kind='PNG', **kwargs):
    file = BytesIO()
    image.save(file, format=kind, **kwargs)
    return file.getvalue()


def png_header(width, height):
    "A PNG that says how large it is, and holds nothing"
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100))
            + chunk(b'IEND', b''))


@pytest.mark.parametrize('kind', ['PNG', 'BMP'])
def test_a_picture_comes_as_it_is(kind): np.testing.assert_array_equal(np.asarray(read_upload(encoded(kind=kind))), np.asarray(PICTURE))


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_lossy_kinds_too(kind): assert read_upload(encoded(kind=kind)).size == (20, 40)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'I;16', 'LA'])
def test_any_mode_becomes_rgb(mode): assert read_upload(encoded(PICTURE.convert('L').convert(mode) if mode != 'P' else PICTURE.convert('P'))).mode == 'RGB'


def test_upright_and_without_what_else_the_file_says():
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'where I live'
    image = read_upload(encoded(kind='JPEG', exif=exif, comment=b'secret'))
    assert image.size == (40, 20) and not image.info and not dict(image.getexif())


def test_a_phones_second_view_is_no_film():
    image = read_upload(encoded(kind='MPO', save_all=True, append_images=[PICTURE]))
    assert image.size == (20, 40)


FILM = [PICTURE, PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
REFUSED = {
    'empty': (b'', 'empty'),
    'text': (b'hello, this is no picture', 'not a picture that can be read'),
    'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 'SVG'),
    'xml': (b'<?xml version="1.0"?><svg/>', 'SVG'),
    'html': (b'<!DOCTYPE html><script>', 'web page'),
    'gif': (encoded(kind='GIF'), 'a GIF'),
    'moving gif': (encoded(kind='GIF', save_all=True, append_images=FILM[1:]), 'a GIF'),
    'moving webp': (encoded(kind='WEBP', save_all=True, append_images=FILM[1:], duration=50), 'moves'),
    'moving png': (encoded(kind='PNG', save_all=True, append_images=FILM[1:]), 'moves'),
    'tiff': (encoded(kind='TIFF'), 'a TIFF'),
    'pdf': (b'%PDF-1.7 ...', 'a PDF'),
    'postscript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9', 'not a picture'),
    'archive': (b'PK\3\4....', 'an archive'),
    'heic': (b'\0\0\0\x18ftypheic....', 'HEIC'),
    'half a jpeg': (encoded(kind='JPEG')[:-200], 'damaged or cut off'),
    'half a png': (encoded()[:-900], 'damaged or cut off'),
    'a start': (encoded()[:20], 'not a picture'),
    'a bomb': (png_header(60_000, 60_000), 'far more pixels'),
    'half a bomb': (png_header(10_000, 9_500), 'pixels'),
    'too many pixels': (png_header(6000, 5000), '6000 x 5000 pixels'),
    'too few': (encoded(PICTURE.resize((4, 90))), '4 x 90 pixels'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence(name):
    data, words = REFUSED[name]
    with pytest.raises(ValueError) as e: read_upload(data)
    said = str(e.value)
    assert words in said and '\n' not in said and len(said) < 200 and 'script' not in said


def test_too_many_bytes(monkeypatch):
    monkeypatch.setattr(page_upload, 'MAX_BYTES', 1000)
    with pytest.raises(ValueError, match='0.0 MB, and at most 0 MB are read'): read_upload(encoded())
    with pytest.raises(ValueError, match='at most'): read_data_url('data:image/png;base64,' + 'A'*2000)


def test_nothing_large_is_decoded(monkeypatch):
    "A refused picture's pixels are never asked for"
    monkeypatch.setattr(page_upload, 'read_image', lambda image: pytest.fail('decoded'))
    for name in ('a bomb', 'half a bomb', 'too many pixels', 'moving webp'):
        with pytest.raises(ValueError): read_upload(REFUSED[name][0])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(['PNG', 'JPEG', 'WEBP', 'BMP']), st.data())
def test_whatever_comes_is_a_picture_or_a_sentence(kind, data):
    good = bytearray(encoded(kind=kind))
    for _ in range(data.draw(st.integers(0, 6))): good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(good[:data.draw(st.integers(1, len(good)))])
    try: assert read_upload(bad).mode == 'RGB'
    except ValueError as e: assert str(e) and '\n' not in str(e)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(ValueError): read_upload(data)


def test_data_urls():
    text = 'data:image/png;base64,' + base64.b64encode(encoded()).decode()
    np.testing.assert_array_equal(np.asarray(read_data_url(text)), np.asarray(PICTURE))
    for wrong in (None, 3, '', 'http://example.org/a.png', '/etc/passwd'):
        with pytest.raises(ValueError, match='no file came'): read_data_url(wrong)
    for wrong in ('data:image/png;base64,%%%', 'data:image/png;base64,QQ='):
        with pytest.raises(ValueError, match='did not come whole'): read_data_url(wrong)
    with pytest.raises(ValueError, match='empty'): read_data_url('data:')
