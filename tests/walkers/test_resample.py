import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from magnifier.walkers.canvas import enlarge, shrink


def picture(h, w, c=3): return np.random.default_rng(h * w).integers(0, 256, (h, w, c))


@pytest.mark.parametrize('size', [(23, 11), (29, 15), (32, 16), (1, 1), (25, 2)])
def test_shrink_is_the_mean_over_areas(size):
    image = picture(32, 16)
    fine = np.repeat(np.repeat(image, size[0], 0), size[1], 1)  # every new pixel covers whole ones
    expected = fine.reshape(size[0], 32, size[1], 16, 3).mean((1, 3))
    assert np.abs(shrink(image, size) - expected).max() <= .5 + 1e-9


@pytest.mark.parametrize('size', [(128, 64), (92, 46), (50, 333), (10, 9)])
def test_enlarge_is_bilinear(size):
    image = picture(10, 9)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, size, mode='bilinear', align_corners=False)
    assert np.abs(enlarge(image, size) - expected[0].permute(1, 2, 0).numpy()).max() <= .5 + 1e-6
    np.testing.assert_array_equal(enlarge(image[..., 0], size), enlarge(image, size)[..., 0])


@given(h=st.integers(1, 20), w=st.integers(1, 20), up=st.integers(1, 40), value=st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_an_even_picture_stays_even(h, w, up, value):
    image = np.full((h, w), value)
    assert (enlarge(image, (up, up + 3)) == value).all() and (shrink(image, (1, w)) == value).all()


def test_the_same_size_changes_nothing():
    image = picture(12, 8)
    np.testing.assert_array_equal(enlarge(image, (12, 8)), image)
    np.testing.assert_array_equal(shrink(image, (12, 8)), image)


def test_halves_round_up():
    assert shrink(np.array([[1, 2]]), (1, 1)).item() == 2 and shrink(np.array([[0, 1]]), (1, 1)).item() == 1
