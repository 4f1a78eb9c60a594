"Conditions, addresses, and what is said where a gallery cannot be opened"
import sys

import numpy as np
import pytest
from gallery_stub import Colours, people
from magnifier.gallery.gallery import Gallery
from magnifier.gallery.store import EVERYTHING, Where, where

pytest.importorskip('lance')


@pytest.mark.parametrize('kwargs, wanted', [
    ({}, EVERYTHING),
    (dict(cameras=3), Where(cameras=(3,))),
    (dict(cameras=[3, 1, 3]), Where(cameras=(1, 3))),
    (dict(not_camera=np.int64(2)), Where(not_cameras=(2,))),
    (dict(since=10, until=20), Where(since=10., until=20.)),
    (dict(pids=[1], paths='a"b\\c'), Where(pids=(1,), paths=('a"b\\c',))),
    (dict(keys=[]), Where(keys=())),
])
def test_conditions(kwargs, wanted):
    assert where(**kwargs) == wanted
    assert bool(where(**kwargs)) == bool(kwargs)


@pytest.mark.parametrize('kwargs, error, message', [
    (dict(cameras=[]), ValueError, 'cameras: at least one number'),
    (dict(not_camera='3'), TypeError, 'not_camera: whole numbers'),
    (dict(since=20, until=10), ValueError, 'lies after'),
    (dict(pids=[None]), ValueError, 'pids: at least one number'),
])
def test_conditions_that_mean_nothing(kwargs, error, message):
    with pytest.raises(error, match=message): where(**kwargs)


@pytest.mark.slow
def test_a_server_that_does_not_answer():
    pytest.importorskip('pymilvus')
    with pytest.raises(OSError, match='http://127.0.0.1:9: the Milvus server does not answer') as e:
        Gallery('http://127.0.0.1:9')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('missing, uri, extra', [
    ('pymilvus', 'http://127.0.0.1:9', 'milvus'),
    ('lance', 'people', 'gallery')])
def test_what_is_not_installed_is_named(monkeypatch, missing, uri, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"pip install 'magnifier-reid\[{extra}\]'"): Gallery(uri)


def test_folders_and_names(tmp_path):
    (tmp_path/'file').write_text('x')
    (tmp_path/'crops').mkdir()
    (tmp_path/'crops'/'a.jpg').write_text('x')
    with pytest.raises(ValueError, match='is a file; a local gallery is a folder'): Gallery(tmp_path/'file')
    with pytest.raises(ValueError, match=r'crops is a folder of other files \(a.jpg among them\)'):
        Gallery(tmp_path/'crops')
    with pytest.raises(ValueError, match="name='a b'"): Gallery(tmp_path/'people', name='a b')
    assert not (tmp_path/'people').exists()


def test_looking_makes_nothing(tmp_path):
    with Gallery(tmp_path/'people') as g:
        assert len(g) == 0
        assert g.info()['index'] is None
    assert not (tmp_path/'people').exists()


def test_a_folder_stays_the_same_wherever_the_process_goes(tmp_path, monkeypatch):
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    with Gallery('people') as g:
        g.add(Colours(), people(2))
        monkeypatch.chdir('elsewhere')
        with Gallery('../people') as second: assert len(second) == len(g) == 2


def test_two_galleries_at_one_place(place):
    name = place.pop('name', 'people')
    with Gallery(**place, name=name) as a, Gallery(**place, name=f'{name}cars') as b:
        a.add(Colours(), people(2))
        b.add(Colours('other'), people(3))
        assert len(a) == 2
        assert len(b) == 3


def test_a_table_of_others(tmp_path):
    import lance
    import pyarrow as pa
    lance.write_dataset(pa.table(dict(key=['a'])), str(tmp_path/'strange'/'people.lance'))
    with pytest.raises(ValueError, match='holds a table that is not a gallery of magnifier'):
        Gallery(tmp_path/'strange').info()


@pytest.mark.slow
def test_a_collection_of_others(server):
    from pymilvus import MilvusClient
    MilvusClient(server).create_collection('strange', dimension=4)
    with pytest.raises(ValueError, match="'strange' that is not a gallery"): Gallery(server, name='strange')
