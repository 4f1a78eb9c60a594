"Who was where, as a figure"
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from magnifier.gallery.entries import content_key
from magnifier.look.gallery import show_timeline


@pytest.fixture
def people(tmp_path):
    "Three people, two cameras, of whom two are in front of one at the same time; the third one's file is gone"
    Image.fromarray(np.full((40, 16, 3), 200, np.uint8)).save(tmp_path/'a.png')
    start = pd.Timestamp('2026-01-31T08:00', tz='UTC')
    rows = [(0, 1, 0, 9), (1, 1, 5, 20), (0, 2, 30, 40), (2, 2, 50, 51)]
    table = pd.DataFrame(rows, columns=['person', 'camid', 'from', 'to'])
    return table.assign(start=start + pd.to_timedelta(table['from'], 's'),
                        end=start + pd.to_timedelta(table['to'], 's'), tracklet=list('abcd'),
                        path=[str(tmp_path/'a.png')]*3 + [str(tmp_path/'gone.png')], key=content_key(tmp_path/'a.png'))


def bars(figure):
    "(left, right, bottom, top) of the bars, in the axes' units"
    paths = [path for collection in figure.axes[0].collections for path in collection.get_paths()]
    return [(*p.get_extents().intervalx, *p.get_extents().intervaly) for p in paths]


def test_a_bar_for_each_tracklet_at_its_time(people):
    figure = show_timeline(people)
    widths = sorted(right - left for left, right, _, _ in bars(figure))
    seconds = sorted((people['end'] - people['start']).dt.total_seconds())
    assert np.allclose(np.array(widths)*86400, seconds, atol=1e-3)


def test_bars_never_overlap(people):
    found = bars(show_timeline(people))
    for i, a in enumerate(found):
        for b in found[:i]:
            apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
            assert apart


def test_faces_name_their_person_and_cameras(people, tmp_path):
    figure = show_timeline(people, save=tmp_path/'people.png')
    assert [ax.get_title() for ax in figure.axes[1:]] == ['0: cam 1, 2', '1: cam 1', '2: cam 2']
    assert [ax.images[0].get_array().shape[:2] for ax in figure.axes[1:]] == [(40, 16), (40, 16), (2, 1)]
    assert (tmp_path/'people.png').stat().st_size > 1000


def test_who_is_left_out_is_said(people):
    figure = show_timeline(people, most=1)
    assert figure.get_suptitle() == '1 people in front of 2 cameras, 2 more not shown'
    assert [ax.get_title() for ax in figure.axes[1:]] == ['0: cam 1, 2']


def test_nobody(people):
    with pytest.raises(ValueError, match='nothing to show'): show_timeline(people.iloc[:0])
