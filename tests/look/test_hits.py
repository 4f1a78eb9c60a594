"Hits of a gallery drawn"
import magnifier.look  # noqa: F401, hits get their method that draws
import numpy as np
import pytest
from PIL import Image
from magnifier.gallery.entries import content_key
from magnifier.gallery.hits import Hits, as_table
from magnifier.look.gallery import GONE


def rows(folder, n, **kwargs):
    for i in range(n): Image.new('RGB', (20, 40), (i*9 % 255, 90, 200)).save(folder/f'{i}.png')
    return [dict(key=content_key(folder/f'{i}.png'), path=str(folder/f'{i}.png'), pid=i, camid=i, time=1e9 + i,
                 similarity=1 - i/50, **kwargs) for i in range(n)]


def words(picture): return [t.get_text() for ax in picture.axes for t in ax.texts]


@pytest.mark.parametrize('n', [0, 1, 8, 9, 20])
def test_pictures_with_who_where_and_when(tmp_path, n):
    hits = Hits(as_table(rows(tmp_path, n), ('similarity',)), np.zeros((40, 20, 3), np.uint8),
                ('foot', 'lower_leg', 'head'))
    picture = hits.show(save=tmp_path/'out'/'hits.png')
    said = words(picture)
    assert sum('2001-09-09' in t for t in said) == min(n, 16)
    assert 'query\nfoot\nlower leg\n...' in said
    assert ('no hits' in said) == (n == 0)
    assert (n == 0 or 'id 0  cam 0\n2001-09-09\n01:46:40' in said and '1.000' in said)
    with Image.open(tmp_path/'out'/'hits.png') as image: assert len(image.convert('RGB').getcolors(1 << 24)) > 20


def test_what_is_gone_or_unknown(tmp_path):
    table = as_table([dict(key='a', path='/gone.png', pid=None, camid=None, time=None, similarity=.5),
                      dict(key='b', path='', pid=4, similarity=.4)], ('similarity',))
    said = words(Hits(table).show())
    assert said.count('no image') == 1  # of the query
    assert said.count(GONE) == 2
    assert 'unknown' in said
    assert 'id 4' in said


def test_a_file_that_was_swapped_is_not_drawn(tmp_path):
    "Another image under the name of a hit is nobody whom the search found"
    hits = Hits(as_table(rows(tmp_path, 2), ('similarity',)))
    assert GONE not in words(hits.show())
    Image.new('RGB', (20, 40), (1, 2, 3)).save(tmp_path/'1.png')
    assert words(hits.show()).count(GONE) == 1


def test_a_crop_that_was_saved_later_is_drawn(tmp_path):
    "A key of pixels in hand stands for their file too"
    Image.new('RGB', (20, 40), (9, 2, 3)).save(tmp_path/'a.png')
    key = content_key(np.full((40, 20, 3), (9, 2, 3), np.uint8))
    hits = Hits(as_table([dict(key=key, path=str(tmp_path/'a.png'), similarity=.5)], ('similarity',)))
    assert GONE not in words(hits.show())
