"The gallery as a user meets it: what comes in is found again, by all conditions, and nothing else"
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gallery_stub import Colours, files, people, person
from magnifier.gallery.gallery import Gallery, GalleryWarning
from magnifier.gallery.store import OPEN
from magnifier.retrieval.rerank import rerank

server_manager_instance = pytest.importorskip('milvus_lite.server_manager').server_manager_instance
N = 60


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    "A gallery that tests only read: 60 people, 10 identities (every seventh unknown), 5 cameras (every fifth unknown), a second apart"
    folder, embedder = tmp_path_factory.mktemp('gallery'), Colours()
    table = pd.DataFrame(dict(path=files(folder, people(N)), pid=[None if i % 7 == 6 else i % 10 for i in range(N)],
                              camid=[None if i % 5 == 4 else i % 5 for i in range(N)], time=[1e9 + i for i in range(N)]))
    g = Gallery(folder/'people.db')
    assert g.add(embedder, table, bs=16, progress=False)[:2] == (N, 0)
    yield g, embedder, table
    g.close()


@pytest.fixture
def empty(tmp_path):
    with Gallery(tmp_path/'people.db') as g: yield g


def slow(embedder, table, image, keep=lambda row: True):
    "Paths by similarity, from every picture anew"
    unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
    from PIL import Image
    q, g = (unit(embedder.embed([Image.open(p) if not isinstance(p, np.ndarray) else Image.fromarray(p) for p in ps])) for ps in ([image], table['path']))
    return [(str(table['path'][i]), s) for i in np.argsort(-(g @ q[0]), kind='stable') for s in [(g @ q[0])[i]] if keep(table.iloc[i])]


@pytest.mark.parametrize('kwargs, keep', [
    ({}, lambda r: True), (dict(not_camera=3), lambda r: r.camid != 3), (dict(not_camera=[0, 1]), lambda r: r.camid not in (0, 1)),
    (dict(cameras=2), lambda r: r.camid == 2), (dict(cameras=[0, 2], not_camera=2), lambda r: r.camid == 0),
    (dict(since=1e9 + 10), lambda r: r.time >= 1e9 + 10), (dict(until='2001-09-09T01:47:00'), lambda r: r.time <= 1e9 + 20),
    (dict(since=datetime(2001, 9, 9, 1, 46, 50, tzinfo=timezone.utc), until=pd.Timestamp(1e9 + 15, unit='s')), lambda r: 1e9 + 10 <= r.time <= 1e9 + 15),
    (dict(threshold=.1), lambda r: True)])
def test_search_is_what_a_loop_over_all_pictures_finds(shown, kwargs, keep):
    g, embedder, table = shown
    query = person(7 + 1000)
    hits, wanted = g.search(embedder, query, k=200, **kwargs), slow(embedder, table, query, keep)
    wanted = [w for w in wanted if w[1] >= kwargs.get('threshold', -1)]
    assert list(hits.table['path']) == [p for p, _ in wanted] and len(hits) > 0
    np.testing.assert_allclose(hits.table['similarity'], [s for _, s in wanted], atol=1e-5)
    assert list(g.search(embedder, query, k=3, **kwargs).table['path']) == [p for p, _ in wanted[:3]]


def test_a_hit_knows_who_where_and_when(shown):
    g, embedder, table = shown
    hit = g.search(embedder, table['path'][8])[0]
    assert (hit.path, hit.pid, hit.camid, hit.time) == (str(table['path'][8]), 8, 3, pd.Timestamp(1e9 + 8, unit='s', tz='UTC'))
    assert hit.similarity == pytest.approx(1, abs=1e-6)
    unknown = g.search(embedder, table['path'][34])[0]
    assert unknown.pid is pd.NA and unknown.camid is pd.NA
    assert len(g.search(embedder, table['path'][0], cameras=99)) == 0


def test_reranking_orders_the_first_hundred(shown):
    g, embedder, table = shown
    query = person(3000)
    plain, again = g.search(embedder, query, k=N), g.search(embedder, query, k=N, rerank=True)
    unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
    dist = rerank(unit(embedder.embed([_image(query)])), g.store.vectors(plain.table['key'].tolist()))[0]
    wanted = dict(zip(plain.table['key'], dist))
    np.testing.assert_allclose(again.table['reranked'], [wanted[k] for k in again.table['key']], atol=1e-4)
    assert again.table['reranked'].is_monotonic_increasing and set(again.table['key']) == set(plain.table['key'])
    assert len(g.search(embedder, query, k=2, rerank=True)) == 2 and len(g.search(embedder, query, rerank=True, cameras=99)) == 0


def _image(array):
    from PIL import Image
    return Image.fromarray(array)


def test_images_and_info(shown):
    g, embedder, table = shown
    images, info = g.images(), g.info()
    assert len(images) == len(g) == info['images'] == N and not images['key'].duplicated().any()
    assert info['identities'] == 10 and info['unlabelled'] == sum(i % 7 == 6 for i in range(N)) and info['cameras'] == [0, 1, 2, 3]
    assert info['model'] == 'colours' and info['index'] == 'exact' and info['last'] == pd.Timestamp(1e9 + N - 1, unit='s', tz='UTC')
    assert set(g.images(pids=3, cameras=[3])['path']) == {str(p) for i, p in enumerate(table['path']) if i % 10 == 3 and i % 7 != 6 and i % 5 == 3}
    assert 'people.db' in repr(g) and str(N) in repr(g)


def test_nothing_comes_in_twice(empty, tmp_path):
    embedder, images = Colours(), people(10)
    assert empty.add(embedder, [*images, images[0]], pids=range(11), progress=False)[:2] == (10, 1)
    assert empty.add(embedder, images)[:2] == (0, 10) and len(empty) == 10 and embedder.n == 10
    paths = files(tmp_path, images[:2])
    (tmp_path/'copy.png').write_bytes(paths[0].read_bytes())
    assert empty.add(embedder, [*paths, tmp_path/'copy.png'])[:2] == (2, 1)  # a file is known by its bytes, an array by its pixels
    assert empty.add(embedder, images[3])[:2] == (0, 1)


def test_another_model_is_refused(empty):
    empty.add(Colours(), people(3))
    for call in (lambda: empty.add(Colours('other'), people(1)), lambda: empty.search(Colours('other'), person(0))):
        with pytest.raises(ValueError, match='made by the model colours, and this one is other'): call()
    with pytest.raises(TypeError, match='int is no embedder'): empty.add(3, people(1))
    short = Colours()
    short.embed = lambda images: np.ones((len(images), 5))
    with pytest.raises(ValueError, match='embeddings of 5 dimensions; those of .* have 384'): empty.search(short, person(0))
    assert len(empty) == 3


@pytest.mark.parametrize('bad, message', [(lambda n: np.full((n, 4), np.nan), 'zero, NaN'), (lambda n: np.zeros((n, 4)), 'zero, NaN'),
                                          (lambda n: np.ones((n + 1, 4)), 'gave embeddings of shape'), (lambda n: np.ones(4), 'gave embeddings of shape')])
def test_embeddings_that_are_none(empty, bad, message):
    embedder = Colours()
    embedder.embed = lambda images: bad(len(images))
    with pytest.raises(ValueError, match=message): empty.add(embedder, people(2))
    assert len(empty) == 0


def test_unreadable_files_are_left_out_and_named(empty, tmp_path):
    paths = files(tmp_path, people(3))
    (tmp_path/'bad.png').write_bytes(b'no picture')
    (tmp_path/'cut.png').write_bytes(paths[0].read_bytes()[:60])
    with pytest.warns(GalleryWarning, match=r'3 of 6 files are no readable images \(first: .*bad.png: not an image\)'):
        result = empty.add(Colours(), [tmp_path/'bad.png', *paths, tmp_path/'cut.png', tmp_path/'gone.png'], pids=range(6))
    assert result[:2] == (3, 0) and [Path(p).name for p in result.skipped['path']] == ['bad.png', 'cut.png', 'gone.png']
    assert sorted(empty.images()['pid']) == [1, 2, 3]
    with pytest.raises(ValueError, match='1 of 1 files are no readable images'): empty.add(Colours(), tmp_path/'gone.png')
    with pytest.raises(ValueError, match='not a readable image'): empty.search(Colours(), str(tmp_path/'bad.png'))


def test_deleted_is_gone_and_compaction_leaves_nothing_of_it(tmp_path):
    embedder, uri = Colours(), tmp_path/'people.db'
    with Gallery(uri, regions=True) as g:
        g.add(embedder, people(30), pids=[i % 3 for i in range(30)], times=range(30), paths=[f'secret{i % 3}/{i}.png' for i in range(30)])
        gone = g.images(pids=1)
        assert g.delete(pids=1) == 10 and len(g) == 20 and g.delete(pids=1) == 0 and g.info()['identities'] == 2
        assert g.delete(paths='secret2/2.png') == 1 and g.delete(keys=g.images()['key'][0]) == 1 and g.delete(until=5, pids=0) == 1
        left = g.images()
        assert not set(gone['key']) & set(g.search(embedder, people(30)[1], k=40).table['key'])
        g.compact()
        pd.testing.assert_frame_equal(left, g.images())
        assert g.search(embedder, people(30)[6], regions=[1, 2])[0].path == 'secret0/6.png'
    assert not any(b'secret1' in f.read_bytes() or gone['key'][0].encode() in f.read_bytes() for f in uri.rglob('*') if f.is_file())
    with Gallery(uri) as g: assert g.regions and len(g) == len(left) and g.add(embedder, people(30)[1])[:2] == (1, 0)


def test_delete_wants_a_name(empty):
    with pytest.raises(ValueError, match='name what to delete'): empty.delete()


def test_labels(empty):
    empty.add(Colours(), people(4), camids=[1, 2, 3, 4], times=[1, 2, 3, 4])
    t = empty.images()
    assert empty.label(t['key'], [5, 5, pd.NA, 6]) == 4
    again = empty.images().set_index('key').loc[t['key']]
    assert again['pid'].fillna(-1).tolist() == [5, 5, -1, 6] and again['camid'].tolist() == t['camid'].tolist()
    assert empty.label(t['key'], [-1, 5, 5, -1]) == 4 and empty.info()['unlabelled'] == 2 and empty.info()['identities'] == 1  # -1 is nobody
    assert len(empty.search(Colours(), person(0)).by_identity()) == 3
    with pytest.raises(ValueError, match="1 of 1 keys are not in .* 'x'"): empty.label(['x'], [1])
    with pytest.raises(ValueError, match='1 identities for 2 keys'): empty.label(['x', 'y'], [1])


def test_clusters_of_planted_people(empty):
    rng = np.random.default_rng(0)
    images = [np.clip(person(i // 8).astype(int) + rng.integers(-25, 25, (16, 8, 3)), 0, 255).astype(np.uint8) for i in range(64)]
    empty.add(Colours(), images, camids=range(64))
    t = empty.cluster().sort_values('camid')
    assert t['cluster'].notna().all() and t['cluster'].nunique() == 8 and all(t['cluster'].iloc[i:i+8].nunique() == 1 for i in range(0, 64, 8))
    empty.label(t['key'], t['cluster'])
    assert empty.info()['identities'] == 8


@pytest.mark.parametrize('call, error, message', [
    (lambda g: g.search(Colours(), person(0)), ValueError, 'is empty: add images first'), (lambda g: g.cluster(), ValueError, 'is empty'),
    (lambda g: g.index('ivf'), ValueError, 'is empty'), (lambda g: g.index('flat'), ValueError, "unknown index 'flat': use one of exact, ivf, hnsw"),
    (lambda g: g.search(Colours(), person(0), k=0), ValueError, 'k=0: a whole number from 1'),
    (lambda g: g.search(Colours(), person(0), k=True), ValueError, 'k=True'),
    (lambda g: g.search(Colours(), person(0), threshold=2), ValueError, 'threshold=2'),
    (lambda g: g.search(Colours(), person(0), rerank=True, regions=1), ValueError, 'leave out rerank or regions'),
    (lambda g: g.add(Colours(), people(2), bs=0), ValueError, 'bs=0'), (lambda g: g.add(Colours(), []), ValueError, 'no images'),
    (lambda g: g.add(Colours(), people(2), pids=['ann', 'bob']), TypeError, r"pids: whole numbers wanted, got 'ann'\. Number names first"),
    (lambda g: g.add(Colours(), people(2), pids=[1]), ValueError, 'pids: 1 for 2 images')])
def test_mistakes_are_said_in_words(empty, call, error, message):
    with pytest.raises(error, match=message): call(empty)
    assert len(empty) == 0


def test_an_empty_gallery(empty):
    assert len(empty) == 0 and len(empty.images()) == 0 and empty.info()['index'] is None and empty.delete(pids=3) == 0
    empty.compact()


def test_narrower_galleries(tmp_path):
    embedder, basis = Colours(), np.random.default_rng(0).normal(size=(4, 384))
    embedder.embed = lambda images: embedder.pixels(images)[:, 0, 0] @ basis[:3] + basis[3]  # four dimensions are all there is
    with Gallery(tmp_path/'four.db', width=4) as g:
        with pytest.raises(ValueError, match='width=4: axes are learned from the first images.* 5 readable images were given, at least 8'):
            g.add(embedder, people(5))
        g.add(embedder, people(40), progress=False)
        assert g.info()['dimensions'] == 4
        found = g.search(embedder, person(5), k=40)
    with Gallery(tmp_path/'whole.db') as g:
        g.add(embedder, people(40))
        whole = g.search(embedder, person(5), k=40)
    assert list(found.table['key']) == list(whole.table['key'])
    np.testing.assert_allclose(found.table['similarity'], whole.table['similarity'], atol=1e-4)
    with Gallery(tmp_path/'four.db') as g:  # axes are read from the gallery
        assert g.width == 4 and list(g.search(embedder, person(5), k=40).table['key']) == list(whole.table['key'])
        with pytest.raises(ValueError, match='embeddings of 3 dimensions; those of .* have 384'):
            embedder.embed = lambda images: np.ones((len(images), 3))
            g.search(embedder, person(5))
    with pytest.raises(ValueError, match='keeps 4 axes: width=8 is for a new gallery'): Gallery(tmp_path/'four.db', width=8)
    with Gallery(tmp_path/'noise.db', width=8) as g:
        embedder.embed = lambda images: np.random.default_rng(0).normal(size=(len(images), 384))
        with pytest.raises(ValueError, match=r'width=8: that many axes keep \d+% of these embeddings'): g.add(embedder, people(40))
        assert len(g) == 0


def test_past_a_size_an_index_is_built_that_finds_nearly_the_same(tmp_path):
    embedder = Colours()
    with Gallery(tmp_path/'people.db', index_past=500) as g:
        g.add(embedder, people(400), pids=range(400), progress=False)
        assert g.info()['index'] == 'exact'
        g.add(embedder, people(200, 400), pids=range(400, 600), progress=False)
        assert g.info()['index'] == 'ivf'
        x = embedder.embed([_image(p) for p in people(600)])
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        nearest = [set(row) for row in np.argsort(-x[:20] @ x.T)[:, :10].tolist()]
        for kind, least in (('ivf', .5), ('hnsw', .9), ('exact', 1)):
            g.index(kind)
            assert g.info()['index'] == kind and g.search(embedder, person(3))[0].similarity == pytest.approx(1, abs=1e-5)
            found = [set(g.search(embedder, person(i)).table['pid']) for i in range(20)]
            assert np.mean([len(a & b)/10 for a, b in zip(nearest, found)]) >= least
        g.index('ivf')
    with Gallery(tmp_path/'people.db') as g: assert g.info()['index'] == 'ivf'


@pytest.mark.parametrize('kwargs, message', [
    (dict(regions=True), 'keeps no regions: regions=True is for a new gallery'), (dict(width=8), 'keeps whole embeddings: width=8 is for a new gallery')])
def test_what_a_gallery_was_not_made_with_is_refused_and_its_folder_let_go(tmp_path, kwargs, message):
    uri = tmp_path/'people.db'
    with Gallery(uri) as g: g.add(Colours(), people(3))
    with pytest.raises(ValueError, match=message): Gallery(uri, **kwargs)
    assert not OPEN[uri] and str(uri) not in server_manager_instance._servers
    with Gallery(uri) as g: assert len(g) == 3 and not g.regions and g.width is None
    with Gallery(tmp_path/'regions.db', regions=True) as g: g.add(Colours(), people(3))
    with Gallery(tmp_path/'regions.db') as g: assert g.regions  # what is not asked for is as it was made


@pytest.mark.parametrize('width', [0, -1, True, 2.5])
def test_widths_that_are_none(tmp_path, width):
    with pytest.raises(ValueError, match=f'width={width}: a whole number of axes from 1'): Gallery(tmp_path/'people.db', width=width)
    assert not (tmp_path/'people.db').exists()


def test_two_handles_see_each_others_writes(tmp_path):
    uri, embedder = tmp_path/'people.db', Colours()
    with Gallery(uri) as a, Gallery(tmp_path/'..'/tmp_path.name/'people.db', width=4) as b, Gallery(uri) as c:
        assert len(b.images()) == len(c.images()) == 0 and c.info()['model'] is None
        a.add(embedder, people(3), pids=range(3))
        assert c.add(embedder, people(6), pids=range(6))[:2] == (3, 3)  # it had seen an empty gallery
        with pytest.raises(ValueError, match='keeps whole embeddings: width=4'): b.add(embedder, people(6))
        assert len(a) == len(a.images()) == a.info()['images'] == len(a.cluster()) == len(c.images()) == 6
        c.label(c.images()['key'], [7]*6)
        assert a.info()['identities'] == 1
        c.delete(keys=c.images()['key'][0])
        assert len(a.images()) == 5
        assert a.info()['index'] == 'exact'
        c.index('hnsw')
        assert a.info()['index'] == 'hnsw' and len(a.search(embedder, person(1))) == 5
        c.compact()
        assert len(a.images()) == 5 and len(a.search(embedder, person(1))) == 5


CHILD = '''
import os, signal, sys
sys.path[:0] = [{here!r}]
from gallery_stub import Colours, people
from magnifier.gallery.gallery import Gallery
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
g, embedder, at = Gallery({uri!r}), Colours(), {at!r}
if at == 'embedding':
    embed, calls = embedder.embed, []
    embedder.embed = lambda images: (calls.append(1), die() if len(calls) == 5 else None, embed(images))[2]
if at == 'writing':  # the batch is half in the log
    from milvus_lite.storage.wal import WAL
    write, calls = WAL.write_insert, []
    def torn(self, batch):
        calls.append(1)
        write(self, batch)
        if len(calls) == 5:
            self._data_sink.flush()
            size = os.path.getsize(self._data_sink.name)
            os.truncate(self._data_sink.name, size - 1000)
            die()
    WAL.write_insert = torn
if at == 'flushing':  # segments are written, and nothing says so yet
    from milvus_lite.storage.manifest import Manifest
    import magnifier.gallery.store as store
    store.MANY = 64
    save, calls = Manifest.save, []
    Manifest.save = lambda self: (calls.append(1), die() if len(calls) == 4 else None, save(self))[2]
for i in range(0, 320, 64):
    for j in range(i, i + 64, 16):
        g.add(embedder, people(16, j), pids=range(j, j + 16))
        print(j + 16, flush=True)
'''


@pytest.mark.parametrize('at, least', [('embedding', 64), ('writing', 64), ('flushing', 64)])
def test_what_was_reported_as_added_survives_a_kill(tmp_path, at, least):
    uri = str(tmp_path/'people.db')
    child = subprocess.run([sys.executable, '-c', CHILD.format(here=str(Path(__file__).parent), uri=uri, at=at)], capture_output=True, text=True, timeout=120)
    assert child.returncode == -9, child.stderr
    reported = int(child.stdout.split()[-1])
    assert least <= reported < 320
    with Gallery(uri) as g:
        images, embedder = g.images(), Colours()
        assert set(range(reported)) <= set(images['pid']) and len(images) == len(g)
        x = g.store.vectors(images['key'].tolist())
        wanted = embedder.embed([_image(person(pid)) for pid in images['pid']])
        np.testing.assert_allclose(x, wanted/np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
        assert g.add(embedder, people(320), pids=range(320), progress=False)[:2] == (320 - len(images), len(images)) and len(g) == 320


def test_one_process_at_a_time(shown):
    g = shown[0]
    child = subprocess.run([sys.executable, '-c', f'from magnifier.gallery.gallery import Gallery; Gallery({g.uri!r})'], capture_output=True, text=True)
    assert 'OSError' in child.stderr and 'another process holds it' in child.stderr
    with Gallery(g.uri) as second: assert len(second) == N
    assert len(g) == N  # the first is still open
