"Hits as a table, by image and by identity"
import pandas as pd
from magnifier.gallery.hits import Hits, as_table

ROWS = [dict(key='a', path='a.png', pid=3, camid=1, time=60., similarity=.9),
        dict(key='b', path='', pid=None, camid=None, time=None, similarity=.8),
        dict(key='c', path='c.png', pid=3, camid=0, time=0., similarity=.7),
        dict(key='d', path='d.png', pid=None, camid=2, time=5., similarity=.6)]


def test_types_and_missing_values():
    t = as_table(ROWS)
    assert list(t.columns) == ['path', 'pid', 'camid', 'time', 'similarity', 'key']
    assert str(t['pid'].dtype) == 'Int64'
    assert str(t['time'].dt.tz) == 'UTC'
    assert t['path'][1] is None
    assert t['pid'].isna().tolist() == [False, True, False, True]
    assert t['time'][0] == pd.Timestamp(60, unit='s', tz='UTC')
    empty = as_table(dict(similarity=[], shared=[]))
    assert len(empty) == 0
    assert str(empty['pid'].dtype) == 'Int64'
    assert str(empty['shared'].dtype) == 'Int64'


def test_hits_behave_like_a_list():
    hits = Hits(as_table(ROWS), 'q.png')
    assert len(hits) == 4
    assert hits[0].pid == 3
    assert [h.path for h in hits][3] == 'd.png'
    assert hits.df is hits.table
    assert len(hits[1:3]) == 2
    assert hits[1:3][0].similarity == .8
    assert hits[1:3].query == 'q.png'
    assert 'key' not in repr(hits)
    assert '0.9' in repr(hits)
    assert '<table' in hits._repr_html_()
    assert repr(hits[:0]) == 'no hits'


def test_identities_once_each():
    t = Hits(as_table(ROWS)).by_identity()
    assert t['pid'].fillna(-1).tolist() == [3, -1, -1]
    assert t['images'].tolist() == [2, 1, 1]
    assert t['cameras'].tolist() == [[0, 1], [], [2]]
    assert t['similarity'].tolist() == [.9, .8, .6]
    assert t['first'][0] == pd.Timestamp(0, unit='s', tz='UTC')
    assert t['last'][0] == pd.Timestamp(60, unit='s', tz='UTC')
    assert len(Hits(as_table(dict(similarity=[]))).by_identity()) == 0


def test_the_best_of_an_identity_is_its_most_similar_hit_whatever_the_order():
    t = Hits(as_table([ROWS[2], ROWS[1], ROWS[0]])).by_identity()  # as re-ranking may leave them
    assert t['pid'].fillna(-1).tolist() == [3, -1]
    assert t['similarity'].tolist() == [.9, .8]
    assert t['path'][0] == 'a.png'
    assert t['key'][0] == 'a'
    assert [str(d) for d in t[['pid', 'similarity', 'images']].dtypes] == ['Int64', 'float64', 'int64']
    assert str(t['first'].dt.tz) == str(t['last'].dt.tz) == 'UTC'


def test_large_identities_stay_what_they_are():
    large = 2**60 + 1
    hits = Hits(as_table([{**ROWS[0], 'pid': large, 'camid': large}, ROWS[1]]))
    assert hits.table['pid'][0] == hits.table['camid'][0] == hits.by_identity()['pid'][0] == large
