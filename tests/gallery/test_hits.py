"Hits as a table, by image and by identity; and hits by region: the same shoes, another coat"
import numpy as np
import pandas as pd
import pytest
from gallery_stub import Colours, people, person
from PIL import Image

from magnifier.gallery.gallery import Gallery
from magnifier.gallery.hits import Hits, as_table, as_times
from magnifier.regions import region_indices
from magnifier.retrieval.region_distance import region_distance

pytest.importorskip('lance')


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


def test_missing_times_do_not_depend_on_what_memory_held_before():
    times = pd.Series([np.nan]*8)
    for _ in range(20):
        before = [np.full(8, -1e303) for _ in range(50)]
        del before
        assert as_times(times).isna().all()
    assert as_times(pd.Series([1.25, np.nan])).tolist() == [pd.Timestamp(1.25, unit='s', tz='UTC'), pd.NaT]


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


# Hits by region

FOOT, SHIN, HEAD = region_indices(['foot', 'lower_leg', 'head'])
SHOES = (250, 40, 10)


@pytest.fixture(scope='module')
def gallery(shared_place):
    "Forty strangers, of whom some hide their feet; three wear the shoes, under whatever coat"
    hidden = [FOOT if i % 5 == 0 else SHIN if i % 7 == 0 else None for i in range(40)]
    images = [person(i, {region: (0, 0, 0)} if region is not None else None) for i, region in enumerate(hidden)]
    images += [person(100 + i, {FOOT: SHOES}) for i in range(3)]
    with Gallery(**shared_place, regions=True) as g:
        g.add(Colours(), images, pids=range(43), camids=[i % 4 for i in range(43)], bs=16, progress=False)
        yield g, images


def test_shoes_are_found_under_any_coat(gallery):
    g, _ = gallery
    query = person(500, {FOOT: SHOES})
    hits = g.search(Colours(), query, k=3, regions='foot')
    assert set(hits.table['pid']) == {40, 41, 42}
    assert (hits.table['similarity'] > .999).all()
    assert hits.regions == ('foot',)
    assert not {40, 41, 42} <= set(g.search(Colours(), query, k=3).table['pid'])
    assert set(g.search(Colours(), query, k=3, regions='foot', cameras=[0, 1]).table['camid']) <= {0, 1}
    assert len(g.search(Colours(), query, k=9, regions='foot', threshold=.999)) == 3


@pytest.mark.parametrize('regions', [['foot'], ['foot', 'lower_leg'], ['head', 'foot', 'lower_leg', 'chest'], range(8)])
def test_the_order_is_that_of_region_distance(gallery, regions):
    g, images = gallery
    e, query = Colours(), person(900)
    (qf, qv), (gf, gv) = (e.embed_regions([Image.fromarray(i) for i in ims]) for ims in ([query], images))
    dist = region_distance(qf.astype(np.float32), gf.astype(np.float32), qv, gv, regions=list(regions))[0]
    hits = g.search(e, query, k=43, regions=list(regions))
    shares = dist < 2
    assert len(hits) == shares.sum()
    np.testing.assert_allclose(hits.table['similarity'], np.sort(1 - dist[shares])[::-1], atol=1e-5)
    np.testing.assert_allclose(1 - dist[hits.table['pid'].to_numpy(int)], hits.table['similarity'], atol=1e-5)
    wanted = gv[:, region_indices(list(regions))].sum(1)
    assert (hits.table['shared'].to_numpy(int) == wanted[hits.table['pid'].to_numpy(int)]).all()


def test_embeddings_come_in_the_order_of_their_keys(gallery):
    g, images = gallery
    keys = g.images()['key'].sample(frac=1, random_state=0)
    who = g.images().set_index('key').loc[keys]['pid']
    shown = [Image.fromarray(images[pid]) for pid in who]
    wanted, seen = Colours().embed_regions(shown)
    x, visible = g.region_embeddings(keys)
    assert (visible == seen).all()
    norms = np.linalg.norm(wanted, axis=2, keepdims=True)
    np.testing.assert_allclose(x, wanted / np.where(norms > 0, norms, 1), atol=1e-6)
    whole = Colours().embed(shown)
    np.testing.assert_allclose(g.embeddings(keys), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(KeyError, match='nobody'): g.embeddings(['nobody'])


def test_what_a_query_does_not_show(gallery):
    g, _ = gallery
    barefoot = person(3, {FOOT: (0, 0, 0)})
    with pytest.raises(ValueError, match='this image shows no foot: search by other regions'):
        g.search(Colours(), barefoot, regions='foot')
    assert (g.search(Colours(), barefoot, regions=['foot', 'head'], k=5).table['shared'] == 1).all()
    with pytest.raises(ValueError, match='unknown region .knee'): g.search(Colours(), barefoot, regions='knee')


def test_regions_have_to_be_kept(tmp_path):
    class Whole:
        fingerprint, embed = 'colours', Colours.embed
        n, pixels = 0, Colours.pixels
    with Gallery(tmp_path/'plain') as g:
        g.add(Whole(), people(2))
        with pytest.raises(ValueError, match='keeps no regions: make a new gallery with'):
            g.search(Whole(), person(0), regions='foot')
    with Gallery(tmp_path/'regions', regions=True) as g:
        with pytest.raises(ValueError, match='this Whole has no regions'): g.add(Whole(), people(2))
        assert len(g) == 0
