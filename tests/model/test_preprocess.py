"Pictures as the loaders make them, without the loaders"
import numpy as np
import pytest
from PIL import Image

from magnifier.model.preprocess import as_pictures, check_preprocessing, prepare

OURS = dict(size=[32, 16], resize='squish', interpolation='bilinear', channels='RGB', scale=1/255, mean=[.485, .456, .406], std=[.229, .224, .225])


def picture(h=40, w=24, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def test_same_as_the_slow_way(tmp_path):
    array, path = picture(), tmp_path/'a.png'
    Image.fromarray(array).save(path)
    small = np.asarray(Image.fromarray(array).resize((16, 32), Image.Resampling.BILINEAR)).astype(np.float64)/255
    expected = ((small - OURS['mean'])/OURS['std']).transpose(2, 0, 1)
    out = prepare([array, path, str(path), Image.open(path), array[:, :, :]], OURS)
    assert out.shape == (5, 3, 32, 16) and out.dtype == np.float32 and out.flags.c_contiguous
    assert np.abs(out - expected).max() < 1e-5


def test_bgr_is_of_arrays_alone(tmp_path):
    array, path = picture(), tmp_path/'a.png'
    Image.fromarray(array).save(path)
    rgb = prepare([array, path], OURS)
    assert np.array_equal(prepare([np.ascontiguousarray(array[..., ::-1]), path], OURS, bgr=True), rgb)
    assert not np.allclose(prepare([array], OURS, bgr=True)[0], rgb[0])


def test_mixed_sizes_and_none():
    sizes = [(1, 1), (300, 2), (32, 16), (5, 400)]
    assert prepare([picture(*s) for s in sizes], OURS).shape == (4, 3, 32, 16) and prepare([], OURS).shape == (0, 3, 32, 16)


@pytest.mark.parametrize('what, message', [
    (np.zeros((4, 4), np.uint8), r'shape \(4, 4\).*\(h,w,3\) uint8'), (np.zeros((4, 4, 3), np.float32), 'float32'), (np.zeros((4, 4, 4), np.uint8), 'h,w,3'),
    (np.zeros((0, 4, 3), np.uint8), 'pixels|shape')])
@pytest.mark.parametrize('bgr', [False, True])
def test_what_is_no_picture(what, message, bgr):
    with pytest.raises(ValueError, match=message): prepare([what], OURS, bgr=bgr)


def test_one_or_many():
    import pandas as pd
    array = picture()
    assert as_pictures('a.png') == ['a.png'] and len(as_pictures(array)) == 1 and len(as_pictures(Image.fromarray(array))) == 1
    assert len(as_pictures(np.stack([array]*3))) == 3 and list(as_pictures(pd.DataFrame(dict(path=['a', 'b'], pid=1)))) == ['a', 'b']


@pytest.mark.parametrize('change, message', [
    (dict(gamma=2), 'gamma.*are wanted, and no more'), (dict(channels='BGR'), "channels': 'BGR'.*this version knows.*RGB"), (dict(size=[32]), 'height and width'),
    (dict(size=[32, 16.]), 'height and width'), (dict(size=[32, 10**6]), 'height and width'), (dict(mean=[1]), 'three numbers'), (dict(std=[0, 1, 1]), 'above 0')])
def test_other_steps_are_refused(change, message):
    assert check_preprocessing(OURS) is OURS
    with pytest.raises(ValueError, match=message): check_preprocessing({**OURS, **change})
    with pytest.raises(ValueError, match='wanted'): check_preprocessing(None)
