"The same shoes, another coat"
import numpy as np
import pytest
from gallery_stub import Colours, people, person
from magnifier.regions import region_indices
from magnifier.gallery.gallery import Gallery
from magnifier.retrieval.region_distance import region_distance

pytest.importorskip('lance')
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
    from PIL import Image
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
    from PIL import Image
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
