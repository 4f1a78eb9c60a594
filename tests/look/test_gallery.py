"Hits of a gallery, and who was where, as figures"
import magnifier.look  # noqa: F401, hits get their method that draws
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from magnifier.gallery.entries import content_key
from magnifier.gallery.hits import Hits, as_table
from magnifier.look.gallery import GONE, show_timeline


def rows(folder, n, **kwargs):
    for i in range(n): Image.new('RGB', (20, 40), (i*9 % 255, 90, 200)).save(folder/f'{i}.png')
    return [dict(key=content_key(folder/f'{i}.png'), path=str(folder/f'{i}.png'), pid=i, camid=i, time=1e9 + i,
                 similarity=1 - i/50, **kwargs) for i in range(n)]


def words(picture): return [t.get_text() for ax in picture.axes for t in ax.texts]


@pytest.mark.parametrize('n', [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 9, 20))])
def test_pictures_with_who_where_and_when(tmp_path, n):
    hits = Hits(as_table(rows(tmp_path, n)), np.zeros((40, 20, 3), np.uint8),
                ('foot', 'lower_leg', 'head'))
    picture = hits.show(save=tmp_path/'out'/'hits.png')
    said = words(picture)
    assert sum('2001-09-09' in t for t in said) == min(n, 16)
    assert 'query\nfoot\nlower leg\n...' in said
    assert ('no hits' in said) == (n == 0)
    if n:
        assert 'id 0  cam 0\n2001-09-09\n01:46:40' in said
        assert '1.000' in said
    with Image.open(tmp_path/'out'/'hits.png') as image: assert len(image.convert('RGB').getcolors(1 << 24)) > 20


def test_what_is_gone_or_unknown(tmp_path):
    table = as_table([dict(key='a', path='/gone.png', pid=None, camid=None, time=None, similarity=.5),
                      dict(key='b', path='', pid=4, similarity=.4)])
    said = words(Hits(table).show())
    assert said.count('no image') == 1  # of the query
    assert said.count(GONE) == 2
    assert 'unknown' in said
    assert 'id 4' in said


def test_a_file_that_was_swapped_is_not_drawn(tmp_path):
    "Another image under the name of a hit is nobody whom the search found"
    hits = Hits(as_table(rows(tmp_path, 2)))
    assert GONE not in words(hits.show())
    Image.new('RGB', (20, 40), (1, 2, 3)).save(tmp_path/'1.png')
    assert words(hits.show()).count(GONE) == 1


def test_a_crop_that_was_saved_later_is_drawn(tmp_path):
    "A key of pixels in hand stands for their file too"
    Image.new('RGB', (20, 40), (9, 2, 3)).save(tmp_path/'a.png')
    key = content_key(np.full((40, 20, 3), (9, 2, 3), np.uint8))
    hits = Hits(as_table([dict(key=key, path=str(tmp_path/'a.png'), similarity=.5)]))
    assert GONE not in words(hits.show())


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
    assert figure.get_suptitle() == '1 person in front of 2 cameras on 2026-01-31, 2 more not shown'
    assert [ax.get_title() for ax in figure.axes[1:]] == ['0: cam 1, 2']


def test_the_title_names_all_days(people):
    people.loc[3, 'end'] += pd.Timedelta(days=2)
    assert show_timeline(people).get_suptitle() == '3 people in front of 2 cameras from 2026-01-31 to 2026-02-02'


def test_a_bar_too_narrow_for_a_number_has_none(people):
    people.loc[3, 'end'] = people.loc[3, 'start'] + pd.Timedelta(seconds=.4)
    assert [text.get_text() for text in show_timeline(people).axes[0].texts] == ['0', '1', '0']


def test_nobody(people):
    with pytest.raises(ValueError, match='nothing to show'): show_timeline(people.iloc[:0])
