"The store's edges: who may open it, what a server is asked, what a kill leaves behind"
import json
import sys
import types

import numpy as np
import pytest
from gallery_stub import Colours, people, person
from magnifier.gallery.gallery import Gallery
from magnifier.gallery.store import OPEN, OWN, MilvusStore

pymilvus = pytest.importorskip('pymilvus')


class Server:
    "Keeps what a Milvus server would be asked"
    def __init__(self, uri, token=''): self.uri, self.token, self.rows, self.asked, self.made = uri, token, {}, [], None

    def has_collection(self, name): return self.made is not None

    def describe_collection(self, name): return dict(description=self.made['schema'].description, properties={})

    def create_collection(self, name, **kwargs): self.made = kwargs

    def load_collection(self, name): self.asked.append('load')

    def flush(self, name): self.asked.append('flush')

    def compact(self, name): self.asked.append('compact')

    def close(self): self.asked.append('close')

    def describe_index(self, name, field): return dict(index_type='FLAT')

    def upsert(self, name, rows, **kwargs): self.rows.update({r['key']: {**self.rows.get(r['key'], {}), **r} for r in rows})

    def get(self, name, ids, output_fields): return [{f: self.rows[i][f] for f in output_fields} for i in ids if i in self.rows]

    def delete(self, name, ids): [self.rows.pop(i) for i in ids]

    def query(self, name, filter, output_fields): return [{'count(*)': len(self.rows)}]

    def query_iterator(self, name, **kwargs):
        self.asked.append(kwargs)
        parts = [list(self.rows.values()), []]
        return types.SimpleNamespace(next=lambda: parts.pop(0), close=lambda: None)

    def search(self, name, data, limit, **kwargs):
        self.asked.append(kwargs)
        order = sorted(self.rows.values(), key=lambda r: -float(r['vector'] @ data[0]))[:limit]
        return [[dict(key=r['key'], distance=float(r['vector'] @ data[0]), entity={f: r[f] for f in kwargs['output_fields']}) for r in order]]


def test_a_server_is_asked_by_the_same_client_in_the_same_words(monkeypatch):
    monkeypatch.setattr(pymilvus, 'MilvusClient', type('Client', (Server,), dict(create_schema=staticmethod(pymilvus.MilvusClient.create_schema),
                                                                                 prepare_index_params=staticmethod(pymilvus.MilvusClient.prepare_index_params))))
    with Gallery('http://milvus:19530', token='me:secret') as g:
        server, embedder = g.store.client, Colours()
        assert g.add(embedder, people(20), pids=range(20), camids=[1]*20)[:2] == (20, 0) and g.add(embedder, people(20))[:2] == (0, 20)
        assert (server.uri, server.token) == ('http://milvus:19530', 'me:secret') and 'flush' in server.asked
        about = json.loads(server.made['properties']['magnifier'])
        assert about == dict(fingerprint='colours', d=384, regions=0, width=None) and [f.name for f in server.made['schema'].fields][:2] == ['key', 'vector']
        assert list(server.made['index_params'])[0].to_dict() == dict(field_name='vector', index_type='FLAT', index_name='', metric_type='IP')
        hits = g.search(embedder, person(3), k=2, not_camera=4)
        assert hits[0].pid == 3 and server.asked[-1]['filter'] == '(camid is null or camid not in [4])' and server.asked[-1]['search_params']['metric_type'] == 'IP'
        assert len(g.images()) == 20 and server.asked[-1]['batch_size'] == 2000
        g.label(hits.table['key'], [50, 51])
        assert g.delete(keys=hits.table['key'].tolist()) == 2 and len(g) == 18
        g.compact()
        assert server.asked[-1] == 'compact'
    assert server.asked[-1] == 'close'


def test_a_server_that_does_not_answer(monkeypatch):
    def fail(*args, **kwargs): raise pymilvus.MilvusException(message='server unavailable')
    monkeypatch.setattr(pymilvus, 'MilvusClient', fail)
    with pytest.raises(OSError, match='http://nowhere:1: no Milvus server answers there .server unavailable'): Gallery('http://nowhere:1')


@pytest.mark.parametrize('missing', ['pymilvus', 'milvus_lite.server_manager'])
def test_what_is_not_installed_is_named(monkeypatch, missing, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'magnifier-reid\[gallery\]'"): Gallery(tmp_path/'people.db')


def test_addresses(tmp_path):
    (tmp_path/'file.db').write_text('x')
    for uri, message in ((tmp_path/'people', 'name ends in .db; a server is http'), (tmp_path/'file.db', 'is a file')):
        with pytest.raises(ValueError, match=message): Gallery(uri)
    with pytest.raises(ValueError, match="name='a b'"): Gallery(tmp_path/'people.db', name='a b')
    for end in OWN:
        with pytest.raises(ValueError, match=f"name='people{end}': names that end in _fresh, _old, _axes are a gallery's own"):
            Gallery(tmp_path/'people.db', name='people' + end)
    assert not (tmp_path/'people.db').exists()


def test_what_lies_beside_a_gallery_under_such_a_name_is_left_alone(tmp_path):
    for name in ('people_old', 'people_fresh'):
        uri = tmp_path/f'{name}.db'
        with Gallery(uri, name='cars') as g: g.store._make(name, dict(d=4, regions=0))
        for _ in range(2):
            with Gallery(uri) as g: assert len(g) == 0 and g.store.client.list_collections() == [name]


def test_a_folder_is_let_go_wherever_the_process_has_gone(tmp_path, monkeypatch):
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    g = Gallery('people.db')
    g.add(Colours(), people(2))
    monkeypatch.chdir('elsewhere')
    with Gallery('../people.db') as second: assert len(second) == len(g) == 2
    g.close()
    assert {path: n for path, n in OPEN.items() if tmp_path in path.parents} == {tmp_path/'people.db': 0}
    with Gallery('../people.db') as g: assert len(g) == 2


def test_two_galleries_in_one_folder_and_a_stranger(tmp_path):
    with Gallery(tmp_path/'people.db') as a, Gallery(tmp_path/'people.db', name='cars') as b:
        a.add(Colours(), people(2))
        b.add(Colours('other'), people(3))
        assert (len(a), len(b)) == (2, 3)
        a.store.client.create_collection('strange', dimension=4)
        a.store.client.load_collection('strange')
        with pytest.raises(ValueError, match="'strange' that is no gallery of magnifier"): Gallery(tmp_path/'people.db', name='strange')
        assert OPEN[tmp_path/'people.db'] == 2
    a.close()  # a second time is nothing


@pytest.mark.parametrize('killed_at', ['copying', 'renamed', 'done'])
def test_a_compaction_cut_short(tmp_path, killed_at):
    uri = str(tmp_path/'people.db')
    with Gallery(uri) as g:
        g.add(Colours(), people(12), pids=range(12))
        s, about = g.store, g.store.about
        s._make('people_fresh', about)
        rows = s.get(g.images()['key'].tolist(), ['key', 'path', 'pid', 'camid', 'time', 'vector'])
        s.client.upsert('people_fresh', rows[:5] if killed_at == 'copying' else rows)
        s.client.flush('people_fresh')
        if killed_at != 'copying': s.client.rename_collection('people', 'people_old')
        if killed_at == 'done': s.client.rename_collection('people_fresh', 'people')
    with Gallery(uri) as g:
        assert len(g) == 12 and g.search(Colours(), person(4))[0].pid == 4 and g.store.client.list_collections() == ['people']


def test_large_galleries_search_through_faiss_and_find_the_same(tmp_path, monkeypatch):
    from magnifier.gallery import store as gallery_store
    monkeypatch.setattr(gallery_store, 'LARGE', 150)
    monkeypatch.setattr(gallery_store, 'MANY', 1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    s = MilvusStore(str(tmp_path/'x.db'), 'people')
    s.create(dict(fingerprint='x', d=8, regions=0, width=None))
    for part in np.split(np.arange(200), 2):
        s.upsert([dict(key=str(i), vector=x[i], path='', pid=None, camid=int(i % 3), time=None) for i in part])
        assert s._type == 'FLAT'  # until there are 150
        s.settle()
    assert s._type == 'IVF_FLAT' and s.kind == 'exact'
    for where, keep in (('', np.arange(200) % 3 < 3), ('camid in [1]', np.arange(200) % 3 == 1)):
        for q in rng.normal(size=(5, 8)).astype(np.float32):
            wanted = [str(i) for i in np.argsort(-np.where(keep, x @ q, -np.inf))[:10]]
            assert [r['key'] for r in s.search(q, 10, filter=where)] == wanted
    s.close()
