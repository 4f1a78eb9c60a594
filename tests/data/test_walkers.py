import re
import numpy as np
import pytest
from PIL import Image
from magnifier.data.walkers import walkers, walkers_truth

SMALL = dict(n_train=4, n_test=4, n_images=4, n_gallery=3, n_distractors=4, n_junk=3)


@pytest.fixture(scope='module')
def small(tmp_path_factory): return walkers(tmp_path_factory.mktemp('walkers')/'set', **SMALL)


def test_layout_is_market1501s(small):
    counts = {f: len(list((small/f).iterdir())) for f in ('bounding_box_train', 'query', 'bounding_box_test')}
    assert counts == dict(bounding_box_train=16, query=8, bounding_box_test=12 + 4 + 3)
    for file in small.glob('*/*'): assert re.fullmatch(r'(-1|\d{4})_c[1-6]s\d_\d{6}_\d\d\.jpg', file.name)
    for file in small.glob('*/*.jpg'):
        mask = np.array(Image.open(small.with_name('set_ps_label')/file.relative_to(small).with_suffix('.png')))
        assert mask.shape == (128, 64) and mask.dtype == np.uint8 and mask.max() <= 7
    assert len(walkers_truth(small)) == 43
