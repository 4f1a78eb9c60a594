"The gallery's tab: every picture once, in order, page by page"
import re

import numpy as np
import pandas as pd
import pytest
from magnifier.app import gallery_tab as page_gallery
from magnifier.app.gallery_tab import EVERYTHING, gallery_html, group_choices
from PIL import Image


class Shelf:
    "Pictures of people: two without a name, some without a camera or a time"

    def __init__(self, n=23):
        rng = np.random.default_rng(0)
        known = lambda values: pd.array([None if rng.random() < .1 else v for v in values], 'Int64')
        self.images = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], pid=known(rng.integers(0, 4, n)), camid=known(rng.integers(1, 4, n)),
                                        time=pd.to_datetime(rng.integers(0, 10**6, n), unit='s', utc=True), key=[f'k{i}' for i in range(n)]))

    def picture(self, key): return None if key == 'k5' else Image.new('RGB', (20, 40))


def keys(html): return re.findall('data-key="(.*?)"', html)


@pytest.mark.parametrize('by', ['identity', 'camera'])
@pytest.mark.parametrize('per_page', [1, 4, 100])
def test_every_picture_once_in_order(monkeypatch, by, per_page):
    monkeypatch.setattr(page_gallery, 'PER_PAGE', per_page)
    shelf = Shelf()
    _, _, pages = gallery_html(shelf, by)
    shown = [k for p in range(1, pages + 1) for k in keys(gallery_html(shelf, by, page=p)[0])]
    assert pages == -(-23//per_page) and sorted(shown) == sorted(shelf.images['key'])
    column = {'identity': 'pid', 'camera': 'camid'}[by]
    groups = shelf.images.set_index('key')[column].loc[shown].fillna(10**6).tolist()
    assert groups == sorted(groups)  # unknown at the end


def test_groups_by_name(monkeypatch):
    shelf = Shelf()
    choices = group_choices(shelf.images, 'camera')
    assert choices == [EVERYTHING, 'camera 1', 'camera 2', 'camera 3', 'camera unknown']
    html, _, _ = gallery_html(shelf, 'camera', 'camera 2')
    own = shelf.images[shelf.images['camid'] == 2]
    assert sorted(keys(html)) == sorted(own['key']) and f'camera 2 <small>{len(own)} images</small>' in html and 'camera 1' not in html
    assert sum(len(keys(gallery_html(shelf, 'camera', c)[0])) for c in choices[1:]) == 23
    assert 'camera unknown' not in group_choices(shelf.images.dropna(), 'camera')
    monkeypatch.setattr(page_gallery, 'PER_PAGE', 2)
    assert ', continued' in gallery_html(shelf, 'camera', 'camera 2', 2)[0] and ', continued' not in gallery_html(shelf, 'camera', 'camera 2', 1)[0]


def test_pages_that_are_not_there():
    shelf = Shelf()
    assert gallery_html(shelf, page=99)[1:] == (1, 1) and gallery_html(shelf, page=-1)[1:] == (1, 1)
    html, page, pages = gallery_html(shelf, 'identity', 'identity 77')
    assert 'identity 77 has no images' in html and (page, pages) == (1, 1) and 'its file is gone' in gallery_html(shelf)[0]
