"""The gallery as a user meets it: what comes in is found again, by all conditions, and nothing else; in a
folder and on a server"""
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gallery_stub import Colours, files, people, person
from PIL import Image
from magnifier.gallery.gallery import Gallery, GalleryWarning
from magnifier.retrieval.rerank import rerank

pytest.importorskip('lance')
N = 60


@pytest.fixture(scope='module')
def shown(shared_place, tmp_path_factory):
    """A gallery that tests only read: 60 people, 10 identities (every seventh unknown), 5 cameras (every
    fifth unknown), a second apart"""
    folder, embedder = tmp_path_factory.mktemp('images'), Colours()
    table = pd.DataFrame(dict(
        path=files(folder, people(N)),
        pid=[None if i % 7 == 6 else i % 10 for i in range(N)],
        camid=[None if i % 5 == 4 else i % 5 for i in range(N)],
        time=[1e9 + i for i in range(N)],
    ))
    with Gallery(**shared_place) as g:
        assert g.add(embedder, table, bs=16, progress=False)[:2] == (N, 0)
        yield g, embedder, table


@pytest.fixture
def empty(place):
    with Gallery(**place) as g: yield g


def unit(x): return x/np.linalg.norm(x, axis=1, keepdims=True)


def slow(embedder, table, image, keep=lambda row: True):
    "Paths by similarity, from every image anew"
    query = unit(embedder.embed([Image.fromarray(image)]))[0]
    similarity = unit(embedder.embed([Image.open(path) for path in table['path']])) @ query
    order = np.argsort(-similarity, kind='stable')
    return [(str(table['path'][i]), similarity[i]) for i in order if keep(table.iloc[i])]


@pytest.mark.parametrize('kwargs, keep', [
    ({}, lambda r: True),
    (dict(not_camera=3), lambda r: r.camid != 3),
    (dict(not_camera=[0, 1]), lambda r: r.camid not in (0, 1)),
    (dict(cameras=2), lambda r: r.camid == 2), (dict(cameras=[0, 2], not_camera=2), lambda r: r.camid == 0),
    (dict(since=1e9 + 10), lambda r: r.time >= 1e9 + 10),
    (dict(until='2001-09-09T01:47:00'), lambda r: r.time <= 1e9 + 20),
    (dict(since=datetime(2001, 9, 9, 1, 46, 50, tzinfo=timezone.utc), until=pd.Timestamp(1e9 + 15, unit='s')),
     lambda r: 1e9 + 10 <= r.time <= 1e9 + 15),
    (dict(threshold=.1), lambda r: True)])
def test_search_is_what_a_loop_over_all_pictures_finds(shown, kwargs, keep):
    g, embedder, table = shown
    query = person(7 + 1000)
    hits, wanted = g.search(embedder, query, k=200, **kwargs), slow(embedder, table, query, keep)
    wanted = [w for w in wanted if w[1] >= kwargs.get('threshold', -1)]
    assert list(hits.table['path']) == [p for p, _ in wanted]
    assert len(hits) > 0
    np.testing.assert_allclose(hits.table['similarity'], [s for _, s in wanted], atol=1e-5)
    assert list(g.search(embedder, query, k=3, **kwargs).table['path']) == [p for p, _ in wanted[:3]]


def test_a_hit_knows_who_where_and_when(shown):
    g, embedder, table = shown
    hit = g.search(embedder, table['path'][8])[0]
    assert (hit.path, hit.pid, hit.camid) == (str(table['path'][8]), 8, 3)
    assert hit.time == pd.Timestamp(1e9 + 8, unit='s', tz='UTC')
    assert hit.similarity == pytest.approx(1, abs=1e-6)
    unknown = g.search(embedder, table['path'][34])[0]
    assert unknown.pid is pd.NA
    assert unknown.camid is pd.NA
    assert len(g.search(embedder, table['path'][0], cameras=99)) == 0


def test_reranking_orders_the_first_hundred(shown):
    g, embedder, table = shown
    query = person(3000)
    plain, again = g.search(embedder, query, k=N), g.search(embedder, query, k=N, rerank=True)
    dist = rerank(unit(embedder.embed([_image(query)])), g.embeddings(plain.table['key']))[0]
    wanted = dict(zip(plain.table['key'], dist))
    np.testing.assert_allclose(again.table['reranked'], [wanted[k] for k in again.table['key']], atol=1e-4)
    assert again.table['reranked'].is_monotonic_increasing
    assert set(again.table['key']) == set(plain.table['key'])
    assert len(g.search(embedder, query, k=2, rerank=True)) == 2
    assert len(g.search(embedder, query, rerank=True, cameras=99)) == 0


def _image(array): return Image.fromarray(array)


def test_images_and_info(shown):
    g, embedder, table = shown
    images, info = g.images(), g.info()
    assert len(images) == len(g) == info['images'] == N
    assert not images['key'].duplicated().any()
    assert info['identities'] == 10
    assert info['unlabelled'] == sum(i % 7 == 6 for i in range(N))
    assert info['cameras'] == [0, 1, 2, 3]
    assert info['model'] == 'colours'
    assert info['index'] == 'exact'
    assert info['last'] == pd.Timestamp(1e9 + N - 1, unit='s', tz='UTC')
    wanted = {str(p) for i, p in enumerate(table['path']) if i % 10 == 3 and i % 7 != 6 and i % 5 == 3}
    assert set(g.images(pids=3, cameras=[3])['path']) == wanted
    assert g.images(paths=table['path'][[5, 7]])['time'].dt.second.tolist() == [45, 47]
    assert g.uri in repr(g)
    assert str(N) in repr(g)


def test_nothing_comes_in_twice(empty, tmp_path):
    embedder, images = Colours(), people(10)
    assert empty.add(embedder, [*images, images[0]], pids=range(11), progress=False)[:2] == (10, 1)
    assert empty.add(embedder, images)[:2] == (0, 10)
    assert len(empty) == 10
    assert embedder.n == 10
    paths = files(tmp_path, images[:2])
    (tmp_path/'copy.png').write_bytes(paths[0].read_bytes())
    # a file is known by its bytes, an array by its pixels
    assert empty.add(embedder, [*paths, tmp_path/'copy.png'])[:2] == (2, 1)
    assert empty.add(embedder, images[3])[:2] == (0, 1)


def test_open_files_are_known_by_their_bytes(empty, tmp_path):
    paths = files(tmp_path, people(2))
    with open(paths[0], 'rb') as first, open(paths[1], 'rb') as second:
        assert empty.add(Colours(), [first, second])[:2] == (2, 0)
    assert empty.add(Colours(), paths)[:2] == (0, 2)


def test_another_model_is_refused(empty):
    empty.add(Colours(), people(3))
    for call in (lambda: empty.add(Colours('other'), people(1)), lambda: empty.search(Colours('other'), person(0))):
        with pytest.raises(ValueError, match='made by the model colours, and this one is other'): call()
    with pytest.raises(TypeError, match='int is not an embedder'): empty.add(3, people(1))
    short = Colours()
    short.embed = lambda images: np.ones((len(images), 5))
    with pytest.raises(ValueError, match=r'1 images gave embeddings of shape \(1, 5\): \(1, 384\) wanted'):
        empty.search(short, person(0))
    assert len(empty) == 3


@pytest.mark.parametrize('bad, message', [
    (lambda n: np.full((n, 4), np.nan), 'zero, NaN'),
    (lambda n: np.zeros((n, 4)), 'zero, NaN'),
    (lambda n: np.ones((n + 1, 4)), 'gave embeddings of shape'),
    (lambda n: np.ones(4), 'gave embeddings of shape')])
def test_embeddings_that_are_none(empty, bad, message):
    embedder = Colours()
    embedder.embed = lambda images: bad(len(images))
    with pytest.raises(ValueError, match=message): empty.add(embedder, people(2))
    assert len(empty) == 0


def test_unreadable_files_are_left_out_and_named(empty, tmp_path):
    paths = files(tmp_path, people(3))
    (tmp_path/'bad.png').write_bytes(b'no picture')
    (tmp_path/'cut.png').write_bytes(paths[0].read_bytes()[:60])
    told = r'3 of 6 files are no readable images \(first: .*bad.png: not a readable image .*\)'
    with pytest.warns(GalleryWarning, match=told):
        given = [tmp_path/'bad.png', *paths, tmp_path/'cut.png', tmp_path/'gone.png']
        result = empty.add(Colours(), given, pids=range(6))
    assert result[:2] == (3, 0)
    assert [Path(p).name for p in result.skipped['path']] == ['bad.png', 'cut.png', 'gone.png']
    assert sorted(empty.images()['pid']) == [1, 2, 3]
    with pytest.raises(ValueError, match='1 of 1 files are no readable images'):
        empty.add(Colours(), tmp_path/'gone.png')
    with pytest.raises(ValueError, match='not a readable image'): empty.search(Colours(), str(tmp_path/'bad.png'))


def test_delete_wants_a_name(empty):
    with pytest.raises(ValueError, match='name what to delete'): empty.delete()


def test_labels(empty):
    empty.add(Colours(), people(4), camids=[1, 2, 3, 4], times=[1, 2, 3, 4])
    t = empty.images()
    assert empty.label(t['key'], [5, 5, pd.NA, 6]) == 4
    again = empty.images().set_index('key').loc[t['key']]
    assert again['pid'].fillna(-1).tolist() == [5, 5, -1, 6]
    assert again['camid'].tolist() == t['camid'].tolist()
    assert empty.label(t['key'], [-1, 5, 5, -1]) == 4  # -1 is nobody
    assert empty.info()['unlabelled'] == 2
    assert empty.info()['identities'] == 1
    assert len(empty.search(Colours(), person(0)).by_identity()) == 3
    with pytest.raises(ValueError, match="1 of 1 keys are not in .* 'x'"): empty.label(['x'], [1])
    with pytest.raises(ValueError, match='1 identities for 2 keys'): empty.label(['x', 'y'], [1])


def test_clusters_of_planted_people(empty):
    rng = np.random.default_rng(0)
    noisy = [person(i // 8).astype(int) + rng.integers(-25, 25, (16, 8, 3)) for i in range(64)]
    images = [image.clip(0, 255).astype(np.uint8) for image in noisy]
    empty.add(Colours(), images, camids=range(64))
    t = empty.cluster().sort_values('camid')
    assert t['cluster'].notna().all()
    assert t['cluster'].nunique() == 8
    assert all(t['cluster'].iloc[i:i+8].nunique() == 1 for i in range(0, 64, 8))
    empty.label(t['key'], t['cluster'])
    assert empty.info()['identities'] == 8


@pytest.mark.parametrize('call, error, message', [
    (lambda g: g.search(Colours(), person(0)), ValueError, 'is empty: add images first'),
    (lambda g: g.cluster(), ValueError, 'is empty'),
    (lambda g: g.index('ivf'), ValueError, 'is empty'),
    (lambda g: g.index('flat'), ValueError, "kind='flat': use one of exact, ivf"),
    (lambda g: g.search(Colours(), person(0), k=0), ValueError, 'k=0: a whole number of 1 or more'),
    (lambda g: g.search(Colours(), person(0), k=True), ValueError, 'k=True'),
    (lambda g: g.search(Colours(), person(0), threshold=2), ValueError, 'threshold=2'),
    (lambda g: g.search(Colours(), person(0), rerank=True, regions=1), ValueError, 'leave out rerank or regions'),
    (lambda g: g.add(Colours(), people(2), bs=0), ValueError, 'bs=0'),
    (lambda g: g.add(Colours(), []), ValueError, 'no images'),
    (lambda g: g.add(Colours(), people(2), pids=['ann', 'bob']), TypeError,
     r"pids: whole numbers wanted, got 'ann'\. Number names first"),
    (lambda g: g.add(Colours(), people(2), pids=[1]), ValueError, 'pids: 1 for 2 images')])
def test_mistakes_are_said_in_words(empty, call, error, message):
    with pytest.raises(error, match=message): call(empty)
    assert len(empty) == 0


def test_an_empty_gallery(empty):
    assert len(empty) == 0
    assert len(empty.images()) == 0
    assert empty.info()['index'] is None
    assert empty.delete(pids=3) == 0
    empty.compact()


def test_deleted_is_gone(place):
    embedder = Colours()
    with Gallery(**place, regions=True) as g:
        paths = [f'{i % 3}/{i}.png' for i in range(30)]
        g.add(embedder, people(30), pids=[i % 3 for i in range(30)], times=range(30), paths=paths)
        gone = g.images(pids=1)
        assert g.delete(pids=1) == 10
        assert len(g) == 20
        assert g.delete(pids=1) == 0
        assert g.info()['identities'] == 2
        assert g.delete(paths='2/2.png') == 1
        assert g.delete(keys=g.images()['key'][0]) == 1
        assert g.delete(until=5, pids=0) == 1
        assert g.delete(keys=[]) == 0
        left = g.images()
        assert not set(gone['key']) & set(g.search(embedder, people(30)[1], k=40).table['key'])
        g.compact()
        pd.testing.assert_frame_equal(left, g.images())
        assert g.search(embedder, people(30)[6], regions=[1, 2])[0].path == '0/6.png'
    with Gallery(**place) as g:
        assert g.regions
        assert len(g) == len(left)
        assert g.add(embedder, people(30)[1])[:2] == (1, 0)


def test_content_under_two_names_goes_by_either(place, tmp_path):
    first, second = files(tmp_path, people(2))
    names = [tmp_path/'copy, again.png', tmp_path/'cop"y\'s\n.png']
    for name in names: name.write_bytes(first.read_bytes())
    with Gallery(**place) as g:
        assert g.add(Colours(), [first, second, names[0]])[:2] == (2, 1)
        assert g.add(Colours(), [first, *names])[:2] == (0, 3)
        assert g.delete(paths=names[1]) == 1
        assert g.images()['path'].tolist() == [str(second)]


@pytest.mark.slow
def test_past_a_size_an_index_is_built_that_finds_nearly_the_same(place):
    embedder = Colours()
    with Gallery(**place, exact_up_to=500*384) as g:
        g.add(embedder, people(400), pids=range(400), progress=False)
        assert g.info()['index'] == 'exact'
        assert g.info()['recall'] is None
        g.add(embedder, people(200, 400), pids=range(400, 600), camids=[i % 3 for i in range(200)], progress=False)
        assert g.info()['index'] == 'ivf'
        x = unit(embedder.embed([_image(p) for p in people(600)]))
        nearest = np.argsort(-x[:20] @ x.T)[:, :10].tolist()
        found = [set(g.search(embedder, person(i)).table['pid']) for i in range(20)]
        recall = np.mean([len(set(a) & b)/10 for a, b in zip(nearest, found)])
        assert recall >= .8
        assert g.info()['recall'] == pytest.approx(recall, abs=.2)
        hits = g.search(embedder, person(3), k=200, cameras=[1])
        assert set(hits.table['camid']) == {1}
        assert len(hits) == 67
        assert hits.table['similarity'].is_monotonic_decreasing
        g.add(embedder, people(3, 600), pids=range(600, 603))
        assert g.search(embedder, person(601))[0].pid == 601  # not in the index yet
        g.delete(pids=3)
        assert g.search(embedder, person(3))[0].pid != 3
        g.compact()
        assert len(g) == 602
        assert g.info()['index'] == 'ivf'
        assert 3 not in set(g.search(embedder, person(3), k=600).table['pid'])
    with Gallery(**place) as g:
        assert g.info()['index'] == 'ivf'
        g.index('exact')
        x = unit(embedder.embed([_image(p) for p in people(603)]))
        x[3] = 0  # deleted
        wanted = [set(np.argsort(-x @ row)[:10]) for row in x[4:20]]
        assert [set(g.search(embedder, person(i)).table['pid']) for i in range(4, 20)] == wanted


def test_what_a_gallery_was_not_made_with_is_refused(place):
    with Gallery(**place) as g: g.add(Colours(), people(3))
    with pytest.raises(ValueError, match='keeps no regions: regions=True is for a new gallery'):
        Gallery(**place, regions=True)
    with Gallery(**place) as g:
        assert len(g) == 3
        assert not g.regions


def test_a_gallery_with_regions_says_so_when_it_is_opened_again(place):
    with Gallery(**place, regions=True) as g: g.add(Colours(), people(3))
    with Gallery(**place) as g: assert g.regions  # what is not asked for is as it was made


def test_two_handles_see_each_others_writes(place):
    embedder = Colours()
    with Gallery(**place) as a, Gallery(**place) as b:
        assert len(b.images()) == 0
        assert b.info()['model'] is None
        a.add(embedder, people(3), pids=range(3))
        assert b.add(embedder, people(6), pids=range(6))[:2] == (3, 3)  # it had seen an empty gallery
        assert len(a) == len(a.images()) == a.info()['images'] == len(a.cluster()) == 6
        b.label(b.images()['key'], [7]*6)
        assert a.info()['identities'] == 1
        b.delete(keys=b.images()['key'][0])
        assert len(a.images()) == 5
        assert len(a.search(embedder, person(1), k=9)) == 5
        b.compact()
        assert len(a.search(embedder, person(1), k=9)) == 5


def test_thousands_of_keys_that_are_not_there(place):
    with Gallery(**place) as g:
        g.add(Colours(), people(5))
        assert g.delete(keys=[f'{i:032x}' for i in range(5000)]) == 0
        assert len(g) == 5


def test_numbers_that_do_not_fit(empty):
    with pytest.raises(ValueError, match='pids: 9223372036854775808 does not fit into 63 bits'):
        empty.add(Colours(), people(1), pids=[2**63])
    empty.add(Colours(), people(2), pids=[2**63 - 1, -2**63 + 1])
    assert sorted(empty.images()['pid']) == [-2**63 + 1, 2**63 - 1]
    assert len(empty.images(pids=2**63 - 1)) == 1


def test_counts_may_be_numpys(empty):
    empty.add(Colours(), people(4))
    assert len(empty.search(Colours(), person(0), k=np.int64(3))) == 3
