"Pictures of every kind become RGB, or an error that names the file"
import numpy as np
import pytest
from PIL import Image
from magnifier.data.images import read_image


def gradient(): return np.arange(6*4*3, dtype=np.uint8).reshape(6, 4, 3)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'LA'])
def test_every_mode_becomes_rgb(mode, tmp_path):
    image = Image.fromarray(gradient()).convert(mode)
    out = read_image(image)
    assert out.mode == 'RGB' and out.size == (4, 6)
    if mode == 'RGB': assert (np.asarray(out) == gradient()).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(6, 4)
    Image.fromarray(deep).save(tmp_path/'deep.png')
    assert (np.asarray(read_image(tmp_path/'deep.png'))[..., 0] == deep >> 8).all()


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif(); exif[274] = 6  # held sideways
    image.save(tmp_path/'held.png', exif=exif)
    assert (np.asarray(read_image(tmp_path/'held.png')) == np.rot90(gradient(), -1)).all()


def test_arrays_are_rgb_and_checked():
    assert (np.asarray(read_image(gradient())) == gradient()).all()
    with pytest.raises(ValueError, match=r'\(6, 4\).*\(h,w,3\) uint8'): read_image(gradient()[..., 0])
    with pytest.raises(ValueError, match='float64'): read_image(gradient()/255)


def test_what_does_not_decode_is_named(tmp_path):
    whole = tmp_path/'a.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    for name, content in [('cut.jpg', whole.read_bytes()[:900]), ('empty.jpg', b''), ('text.jpg', b'hello')]:
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError, match=f'{name}: not a readable image.*check_catalog'): read_image(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='gone.jpg: no such image file'): read_image(tmp_path/'gone.jpg')
