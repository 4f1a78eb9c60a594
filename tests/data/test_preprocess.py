"Pictures as the loaders make them, without the loaders"
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.data.images import as_images
from magnifier.data.preprocess import Preprocessing

WORDS = dict(size=[32, 16], resize='squish', interpolation='bilinear', channels='RGB', scale=1/255,
             mean=[.485, .456, .406], std=[.229, .224, .225])
OURS = Preprocessing((32, 16))


def picture(h=40, w=24, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def test_same_as_the_slow_way(tmp_path):
    array, path = picture(), tmp_path/'a.png'
    Image.fromarray(array).save(path)
    small = np.asarray(Image.fromarray(array).resize((16, 32), Image.Resampling.BILINEAR)).astype(np.float64)/255
    expected = ((small - OURS.mean)/OURS.std).transpose(2, 0, 1)
    out = OURS([array, path, str(path), Image.open(path), array[:, :, :]])
    assert out.shape == (5, 3, 32, 16)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert np.abs(out - expected).max() < 1e-5


def test_bgr_is_of_arrays_alone(tmp_path):
    array, path = picture(), tmp_path/'a.png'
    Image.fromarray(array).save(path)
    rgb = OURS([array, path])
    assert np.array_equal(OURS([np.ascontiguousarray(array[..., ::-1]), path], bgr=True), rgb)
    assert not np.allclose(OURS([array], bgr=True)[0], rgb[0])


def test_mixed_sizes_and_none():
    sizes = [(1, 1), (300, 2), (32, 16), (5, 400)]
    assert OURS([picture(*s) for s in sizes]).shape == (4, 3, 32, 16)
    assert OURS([]).shape == (0, 3, 32, 16)


@pytest.mark.parametrize('what, message', [
    (np.zeros((4, 4), np.uint8), r'shape \(4, 4\).*\(h,w,3\) uint8'), (np.zeros((4, 4, 3), np.float32), 'float32'),
    (np.zeros((4, 4, 4), np.uint8), 'h,w,3'),
    (np.zeros((0, 4, 3), np.uint8), 'pixels|shape')])
@pytest.mark.parametrize('bgr', [False, True])
def test_what_is_no_picture(what, message, bgr):
    with pytest.raises(ValueError, match=message): OURS([what], bgr=bgr)


def test_one_or_many():
    import pandas as pd
    array = picture()
    assert as_images('a.png') == ['a.png']
    assert len(as_images(array)) == 1
    assert len(as_images(Image.fromarray(array))) == 1
    assert len(as_images(np.stack([array]*3))) == 3
    assert list(as_images(pd.DataFrame(dict(path=['a', 'b'], pid=1)))) == ['a', 'b']


@pytest.mark.parametrize('change, message', [
    (dict(gamma=2), 'gamma.*are needed, and nothing else'),
    (dict(channels='BGR'), "channels': 'BGR'.*this version knows.*RGB"), (dict(size=[32]), 'height and width'),
    (dict(size=[32, 16.]), 'height and width'), (dict(size=[32, 10**6]), 'height and width'),
    (dict(mean=[1]), 'three numbers'), (dict(std=[0, 1, 1]), 'above 0')])
def test_other_steps_are_refused(change, message):
    with pytest.raises(ValueError, match=message): Preprocessing.from_json({**WORDS, **change})


def test_words_and_back():
    assert OURS.to_json() == WORDS
    assert Preprocessing.from_json(WORDS) == OURS
    padded = Preprocessing((32, 16), 'pad', (0, 0, 0), (1, 1, 1))
    assert Preprocessing.from_json(json.loads(json.dumps(padded.to_json()))) == padded != OURS
    with pytest.raises(ValueError, match='needed'): Preprocessing.from_json(None)
    with pytest.raises(ValueError, match="fit='crop': use 'squish' or 'pad'"): Preprocessing(fit='crop')


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300))
def test_padding_keeps_the_aspect_ratio(height, width):
    pad = Preprocessing((32, 16), 'pad')
    h, w = pad.fitted(np.int64(height), np.int64(width))
    assert (h == 32 and w <= 16) or (w == 16 and h <= 32), 'as large as it fits'
    scale = min(32/height, 16/width)
    assert abs(h - max(1, height*scale)) <= .5
    assert abs(w - max(1, width*scale)) <= .5
    image = pad.fit_image(Image.new('RGB', (width, height), 'white'))
    shown = np.asarray(image).any(2)
    assert image.size == (16, 32)
    assert shown.sum() == h*w
    top, left = (int(np.flatnonzero(shown.any(axis))[0]) for axis in (1, 0))
    assert (top, left) == ((32 - h)//2, (16 - w)//2)


def test_labels_are_never_mixed():
    mask = Image.fromarray(np.array([[0, 7]], np.uint8).repeat(20, 0).repeat(9, 1))
    assert set(np.unique(Preprocessing((32, 16), 'pad').fit_image(mask, labels=True, fill=255))) == {0, 7, 255}
    assert set(np.unique(OURS.fit_image(mask, labels=True))) == {0, 7}
