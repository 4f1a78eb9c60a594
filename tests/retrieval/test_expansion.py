"Query expansion and camera centring against obvious loops"

import numpy as np
import pytest
import torch
from magnifier.retrieval.expansion import alpha_query_expansion, average_query_expansion, camera_centre

rng = np.random.default_rng(0)
q, g = rng.normal(size=(6, 5)), rng.normal(size=(40, 5))


def slow(q, g, k, weigh):
    "One query at a time"
    unit = lambda x: x / np.linalg.norm(x)
    result = []
    for x in map(unit, q):
        near = sorted(map(unit, g), key=lambda y: -x @ y)[:k]
        result.append(unit(x + sum(weigh(x @ y) * y for y in near)))
    return np.array(result)


@pytest.mark.parametrize('k', [1, 7, 100])
@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_expansion_equals_the_loop(k, dtype, tolerance):
    x, y = q.astype(dtype), g.astype(dtype)
    assert np.abs(average_query_expansion(x, y, k) - slow(q, g, k, lambda s: 1)).max() < tolerance
    for alpha in (0.5, 3):
        assert (np.abs(alpha_query_expansion(x, y, k, alpha=alpha) - slow(q, g, k, lambda s: max(s, 0) ** alpha)).max()
                < tolerance)
    assert average_query_expansion(x, y, k).dtype == dtype


def test_expansion_of_tensors_and_alpha_zero():
    got = average_query_expansion(torch.from_numpy(q), torch.from_numpy(g), 3)
    assert isinstance(got, torch.Tensor)
    assert np.abs(got.numpy() - average_query_expansion(q, g, 3)).max() == 0
    positive = np.abs(q), np.abs(g)
    assert np.abs(alpha_query_expansion(*positive, alpha=0) - average_query_expansion(*positive)).max() < 1e-12


def test_expansion_says_what_is_wrong():
    for bad in (0, 2.5):
        with pytest.raises(ValueError, match=f'k={bad}: a whole number'): average_query_expansion(q, g, bad)
    with pytest.raises(ValueError, match='alpha=-1: a power of 0 or more'): alpha_query_expansion(q, g, alpha=-1)
    with pytest.raises(ValueError, match='expanded queries: 1 of 1 rows are zero'):
        average_query_expansion([[1., 0]], [[-1., 0]], 1)
    with pytest.raises(ValueError, match='gallery_feats: 1 of 2 rows hold NaN'):
        average_query_expansion(q, np.where([[1], [0]], np.nan, g[:2]))


def test_camera_means_are_gone():
    cams = np.arange(40) % 3
    shifted = g + np.eye(5)[cams] * 10
    centred = camera_centre(shifted, cams)
    for c in range(3): assert np.abs(centred[cams == c] - (g[cams == c] - g[cams == c].mean(0))).max() < 1e-12
    assert (shifted == g + np.eye(5)[cams] * 10).all()
    half = camera_centre(torch.from_numpy(shifted).half(), torch.from_numpy(cams))
    assert half.dtype == torch.float32
    assert np.abs(half.numpy() - centred).max() < 0.02


def test_queries_are_centred_by_the_gallery():
    cams = np.arange(40) % 3
    got = camera_centre(q, [0, 1, 2, 2, 1, 0], reference=g, reference_camids=cams)
    assert np.abs(got - (q - np.stack([g[cams == c].mean(0) for c in (0, 1, 2, 2, 1, 0)]))).max() < 1e-12


def test_camera_centre_says_what_is_wrong():
    with pytest.raises(ValueError, match='no images of camera 4, 7, only of 0, 1'):
        camera_centre(q, [0, 1, 4, 0, 1, 7], reference=g, reference_camids=np.arange(40) % 2)
    with pytest.raises(ValueError, match='together, or neither'): camera_centre(q, np.zeros(6, int), reference=g)
    with pytest.raises(ValueError, match='camids: 5 ids for 6 images'): camera_centre(q, np.zeros(5, int))
    with pytest.raises(ValueError, match='features of camera 1 hold NaN'): camera_centre([[0.], [np.nan]], [0, 1])
