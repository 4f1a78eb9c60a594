"Hits of a gallery drawn"
import numpy as np
import pytest
from PIL import Image
from magnifier.look import found  # noqa: F401
from magnifier.gallery.entries import content_key
from magnifier.gallery.hits import Hits, as_table


def rows(folder, n, **kwargs):
    for i in range(n): Image.new('RGB', (20, 40), (i*9 % 255, 90, 200)).save(folder/f'{i}.png')
    return [dict(key=content_key(folder/f'{i}.png'), path=str(folder/f'{i}.png'), pid=i, camid=i, time=1e9 + i, similarity=1 - i/50, **kwargs) for i in range(n)]


def words(picture): return [t.get_text() for ax in picture.axes for t in ax.texts]


@pytest.mark.parametrize('n', [0, 1, 8, 9, 20])
def test_pictures_with_who_where_and_when(tmp_path, n):
    hits = Hits(as_table(rows(tmp_path, n), ('similarity',)), np.zeros((40, 20, 3), np.uint8), ('foot', 'lower_leg', 'head'))
    picture = hits.show(save=tmp_path/'out'/'hits.png')
    said = words(picture)
    assert sum('2001-09-09' in t for t in said) == min(n, 16) and 'query\nfoot\nlower leg\n...' in said
    assert ('no hits' in said) == (n == 0) and (n == 0 or 'id 0  cam 0\n2001-09-09\n01:46:40' in said and '1.000' in said)
    with Image.open(tmp_path/'out'/'hits.png') as image: assert len(image.convert('RGB').getcolors(1 << 24)) > 20


def test_what_is_gone_or_unknown(tmp_path):
    table = as_table([dict(key='a', path='/gone.png', pid=None, camid=None, time=None, similarity=.5), dict(key='b', path='', pid=4, similarity=.4)], ('similarity',))
    said = words(Hits(table).show())
    assert said.count('no picture') == 3 and 'unknown' in said and 'id 4' in said


def test_a_file_that_was_swapped_is_not_drawn_as_a_hit(tmp_path):
    hits = Hits(as_table(rows(tmp_path, 3), ('similarity',)))
    assert words(hits.show()).count('no picture') == 1  # there is no query
    Image.new('RGB', (20, 40), 'white').save(tmp_path/'1.png')
    assert words(hits.show()).count('no picture') == 2
