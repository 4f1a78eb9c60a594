"Principal axes against the singular value decomposition"
import numpy as np
import pytest
from magnifier.gallery.narrow import narrowed, principal_axes


@pytest.mark.parametrize('n, d', [(60, 20), (20, 60), (30, 30)])
def test_axes_are_the_singular_vectors(n, d):
    x = np.random.default_rng(0).normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    axes, right = principal_axes(x, 6), np.linalg.svd(x)[2][:6]
    assert axes.shape == (6, d) and axes.dtype == np.float32
    np.testing.assert_allclose(np.abs((axes*right).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(axes @ axes.T, np.eye(6), atol=1e-5)


def test_similarities_of_a_few_dimensions_are_kept():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 64))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = narrowed(x, principal_axes(x, 5))
    np.testing.assert_allclose(y @ y.T, x @ x.T, atol=1e-5)


def test_mistakes():
    x = np.eye(8)
    for width in (0, 9): 
        with pytest.raises(ValueError, match=f'width={width}: from 8 images of 8 dimensions 1 to 8 axes'): principal_axes(x, width)
    with pytest.raises(ValueError, match='differ in fewer directions'): principal_axes(np.ones((4, 9)), 3)
    with pytest.raises(ValueError, match='nothing in common'): narrowed(x[7:].astype(np.float32), principal_axes(x[:4], 3))
