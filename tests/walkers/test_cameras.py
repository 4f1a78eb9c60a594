import numpy as np
from magnifier.walkers.cameras import CAMERAS, Camera, background, expose
from magnifier.walkers.canvas import stream


def test_noise_has_the_spread_it_says():
    camera = Camera(1, (1., 1., 1.), noise=6.)
    grey = np.full((200, 200, 3), 120, np.uint8)
    out = expose(grey, camera, stream('noise')).astype(float)
    np.testing.assert_allclose(out.std((0, 1)), 6., rtol=.03)
    assert np.ptp(out.mean((0, 1))) < 12   # the hour's white balance


def test_backgrounds_are_cut_from_one_view():
    crops = [background(CAMERAS[0], (32, 16), stream(i)) for i in range(2)]
    assert crops[0].shape == (32, 16, 3)
    assert (crops[0] != crops[1]).any()
