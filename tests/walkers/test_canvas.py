import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from magnifier.walkers.canvas import Canvas, enlarge, shrink


def test_a_tube_against_an_obvious_loop():
    canvas, (ax, ay), (bx, by), (r0, r1) = Canvas(60, 50), (12.25, 15.5), (35., 41.), (6., 10.)
    canvas.tube((ax, ay, 0), (bx, by, 0), [r0, r1], 5, (200, 100, 50))
    expected = np.zeros((60, 50), bool)
    length2 = (bx - ax) ** 2 + (by - ay) ** 2
    for y in range(60):
        for x in range(50):
            t = min(1, max(0, ((x + .5 - ax) * (bx - ax) + (y + .5 - ay) * (by - ay)) / length2))
            gap = np.hypot(x + .5 - ax - t * (bx - ax), y + .5 - ay - t * (by - ay))
            expected[y, x] = gap < r0 + (r1 - r0) * t
    assert (canvas.covered != expected).mean() < .01   # radii are looked up in steps
    assert ((canvas.label == 5) == canvas.covered).all()


def test_the_nearer_tube_is_seen():
    canvas = Canvas(30, 30)
    canvas.tube((15, 2, 10), (15, 28, 10), [5], 1, (255, 0, 0))
    canvas.tube((2, 15, 0), (28, 15, 0), [5], 2, (0, 255, 0))
    assert canvas.label[15, 15] == 1
    assert canvas.label[15, 5] == 2
    canvas.push_back()
    canvas.tube((2, 15, -50), (28, 15, -50), [3], 3, (0, 0, 255))
    assert canvas.label[15, 15] == 3
    assert canvas.label[4, 15] == 1
    assert canvas.front.sum() == (canvas.label[1::3, 1::3] == 3).sum() > 0
    canvas.tube((500, 500, 0), (600, 600, 0), [3], 4, (0, 0, 255))
    assert 4 not in canvas.label


def test_reduction_is_the_mean_over_the_background():
    canvas = Canvas(6, 6)
    canvas.colour[:, :2], canvas.depth[:, :2] = 90, 0
    out = canvas.reduced(np.full((2, 2, 3), 30, np.uint8))
    assert (out[:, 0] == (6 * 90 + 3 * 30 + 4) // 9).all()
    assert (out[:, 1] == 30).all()


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
@settings(deadline=None)
def test_an_even_picture_stays_even(h, w, up, value):
    image = np.full((h, w), value)
    assert (enlarge(image, (up, up + 3)) == value).all()
    assert (shrink(image, (1, w)) == value).all()


def test_the_same_size_changes_nothing():
    image = picture(12, 8)
    np.testing.assert_array_equal(enlarge(image, (12, 8)), image)
    np.testing.assert_array_equal(shrink(image, (12, 8)), image)


def test_halves_round_up():
    assert shrink(np.array([[1, 2]]), (1, 1)).item() == 2
    assert shrink(np.array([[0, 1]]), (1, 1)).item() == 1
