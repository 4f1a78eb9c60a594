"Images from strangers: decoded, or refused in a sentence; nothing else ever. And the sum that is kept is bounded"
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from magnifier.app import server
from magnifier.app.page import MAX_BYTES
from magnifier.app.server import MAX_SIDE, Uploads, read_upload
from PIL import Image

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))


def encoded(image=IMAGE, kind='PNG', **kwargs):
    file = BytesIO()
    image.save(file, format=kind, **kwargs)
    return file.getvalue()


def png_header(width, height):
    "A PNG that says how large it is, and holds nothing"
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b'\0'*100)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


@pytest.mark.parametrize('kind', ['PNG', 'BMP'])
def test_an_image_comes_as_it_is(kind):
    np.testing.assert_array_equal(np.asarray(read_upload(encoded(kind=kind))), np.asarray(IMAGE))


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_lossy_kinds_too(kind): assert read_upload(encoded(kind=kind)).size == (20, 40)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'I;16', 'LA'])
def test_any_mode_becomes_rgb(mode):
    image = (IMAGE if mode == 'P' else IMAGE.convert('L')).convert(mode)
    assert read_upload(encoded(image)).mode == 'RGB'


def test_upright_and_without_what_else_the_file_says():
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'where I live'
    image = read_upload(encoded(kind='JPEG', exif=exif, comment=b'secret'))
    assert image.size == (40, 20)
    assert not image.info
    assert not dict(image.getexif())


def test_a_phones_second_view_is_no_film():
    image = read_upload(encoded(kind='MPO', save_all=True, append_images=[IMAGE]))
    assert image.size == (20, 40)


FILM = [IMAGE, IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
NO_IMAGE = 'not an image that can be read: use a JPEG'
REFUSED = {
    'empty': (b'', 'empty'),
    'text': (b'hello, this is no image', NO_IMAGE),
    'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', NO_IMAGE),
    'xml': (b'<?xml version="1.0"?><svg/>', NO_IMAGE),
    'html': (b'<!DOCTYPE html><script>', NO_IMAGE),
    'gif': (encoded(kind='GIF'), NO_IMAGE),
    'moving gif': (encoded(kind='GIF', save_all=True, append_images=FILM[1:]), NO_IMAGE),
    'moving webp': (encoded(kind='WEBP', save_all=True, append_images=FILM[1:], duration=50), 'animation'),
    'moving png': (encoded(kind='PNG', save_all=True, append_images=FILM[1:]), 'animation'),
    'tiff': (encoded(kind='TIFF'), NO_IMAGE),
    'pdf': (b'%PDF-1.7 ...', NO_IMAGE),
    'postscript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9', NO_IMAGE),
    'archive': (b'PK\3\4....', NO_IMAGE),
    'heic': (b'\0\0\0\x18ftypheic....', NO_IMAGE),
    'half a jpeg': (encoded(kind='JPEG')[:-200], 'damaged or cut off'),
    'half a png': (encoded()[:-900], 'damaged or cut off'),
    'a start': (encoded()[:20], NO_IMAGE),
    'a bomb': (png_header(60_000, 60_000), 'far more pixels'),
    'half a bomb': (png_header(10_000, 9_500), 'pixels'),
    'too many pixels': (png_header(6000, 5000), '6000 x 5000 pixels'),
    'too few': (encoded(IMAGE.resize((4, 90))), '4 x 90 pixels'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence(name):
    data, words = REFUSED[name]
    with pytest.raises(ValueError) as e: read_upload(data)
    said = str(e.value)
    assert words in said
    assert '\n' not in said
    assert 'script' not in said
    assert len(said) < 200


def test_too_many_bytes():
    with pytest.raises(ValueError, match='10.0 MB, and at most 10 MB'): read_upload(encoded() + bytes(MAX_BYTES))
    with pytest.raises(ValueError, match='12.0 MB, and at most 10 MB'): read_upload(b'', 12_000_000)  # it was not sent


def test_nothing_large_is_decoded(monkeypatch):
    "A refused image's pixels are never asked for"
    monkeypatch.setattr(server, 'read_image', lambda image: pytest.fail('decoded'))
    for name in ('a bomb', 'half a bomb', 'too many pixels', 'moving webp'):
        with pytest.raises(ValueError): read_upload(REFUSED[name][0])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(['PNG', 'JPEG', 'WEBP', 'BMP']), st.data())
def test_whatever_comes_is_an_image_or_a_sentence(kind, data):
    good = bytearray(encoded(kind=kind))
    for _ in range(data.draw(st.integers(0, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(good[:data.draw(st.integers(1, len(good)))])
    try: assert read_upload(bad).mode == 'RGB'
    except ValueError as e: assert len(str(e).splitlines()) == 1


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(ValueError): read_upload(data)


@pytest.mark.parametrize('kind', ['JPEG', pytest.param('PNG', marks=pytest.mark.slow)])
@pytest.mark.parametrize('size', [(2100, 1050), (1050, 2100), (MAX_SIDE + 1, 8), (MAX_SIDE, 700)])
def test_a_large_image_is_shrunk_in_proportion(kind, size):
    image = read_upload(encoded(IMAGE.resize(size), kind))
    assert max(image.size) == min(MAX_SIDE, max(size))
    assert image.width*size[1] == pytest.approx(image.height*size[0], rel=.1 if min(size) < 10 else .002)


def test_what_is_shrunk_still_looks_the_same():
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 4000).astype(np.uint8)[None], (80, 1))).convert('RGB')
    shrunk = np.asarray(read_upload(encoded(ramp, 'JPEG')), float)
    np.testing.assert_allclose(shrunk.mean((0, 2)), np.linspace(0, 255, MAX_SIDE), atol=3)


def test_the_sum_is_bounded_and_the_longest_unused_goes_first():
    kept = Uploads(limit=3*3*40*20)
    first, second, third = (kept.keep(encoded()) for _ in range(3))
    assert kept.get(first).size == IMAGE.size  # and so it was used last
    fourth = kept.keep(encoded())
    assert kept.get(second) is None
    assert all(kept.get(key) is not None for key in (first, third, fourth))
    assert kept.nbytes == kept.limit
    assert len({first, second, third, fourth}) == 4
    with pytest.raises(ValueError): kept.keep(b'x')
    assert kept.nbytes == kept.limit


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is read from /proc')
def test_forty_photographs_of_25_megapixels_stay_small():
    resident = lambda: int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
    photograph = encoded(Image.fromarray(noise).resize((5000, 5000)), 'JPEG')
    kept = Uploads()
    kept.keep(photograph)
    before = resident()
    keys = [kept.keep(photograph) for _ in range(40)]
    assert kept.nbytes <= kept.limit
    assert resident() - before < 150  # MB; at full size they would be 3,000
    assert kept.get(keys[-1]).size == (MAX_SIDE, MAX_SIDE)
    assert kept.get(keys[0]) is None
