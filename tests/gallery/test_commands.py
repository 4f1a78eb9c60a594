"The gallery's commands with the stub for a model: names, ages, old galleries, what is imported"
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gallery_stub import Colours, files, people, person
from magnifier.cli import gallery as commands
from magnifier.gallery.gallery import Gallery
from magnifier.gallery.milvus import is_old

pytest.importorskip('lance')


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder of five images, and the gallery's name"
    monkeypatch.setattr(commands, 'open_embedder', lambda learner: Colours())
    monkeypatch.chdir(tmp_path)
    (tmp_path/'crops').mkdir()
    files(tmp_path/'crops', people(5))
    return tmp_path/'crops', str(tmp_path/'people')


def told(capsys, command, *args, **kwargs):
    command(*args, **kwargs)
    return capsys.readouterr().out


@pytest.mark.parametrize('name', ['a, b.png', '0000.png, 0001.png', 'two\nlines.png', "it's.png", ' .png'])
def test_files_of_any_name_are_deleted_by_it_and_no_others(place, capsys, name):
    crops, gallery = place
    (crops/'0004.png').rename(crops/name)
    commands.magnifier_index(str(crops), gallery=gallery)
    assert '1 images deleted; it holds 4' in told(capsys, commands.magnifier_delete, gallery, paths=f'crops/{name}')
    with Gallery(gallery) as g:
        assert {Path(path).name for path in g.images()['path']} == {f'{i:04d}.png' for i in range(4)}


def test_a_copy_is_deleted_by_the_name_of_either(place, capsys):
    crops, gallery = place
    (crops/'copy.png').write_bytes((crops/'0002.png').read_bytes())
    assert '5 images added, 1 known' in told(capsys, commands.magnifier_index, str(crops), gallery=gallery)
    assert '1 images deleted; it holds 4' in told(capsys, commands.magnifier_delete, gallery, paths='crops/copy.png')
    with pytest.raises(SystemExit, match='no image of .* matches'):
        commands.magnifier_delete(gallery, paths='crops/0002.png')


def test_what_is_older_than_so_many_days_goes(place, capsys):
    _, gallery = place
    now = time.time()
    with Gallery(gallery) as g:
        g.add(Colours(), people(4), times=[now - 40*86400, now - 31*86400, now - 29*86400, None])
    said = told(capsys, commands.magnifier_delete, gallery, older_than='30d')
    assert '2 images deleted; it holds 2, 1 of them without a time' in said
    assert '0 images deleted' in told(capsys, commands.magnifier_delete, gallery, older_than='720h')
    for age in ('30', 'd', '-3d', '3 weeks'):
        with pytest.raises(SystemExit, match='days, hours or minutes wanted'):
            commands.magnifier_delete(gallery, older_than=age)
    with pytest.raises(SystemExit, match='give one of them'):
        commands.magnifier_delete(gallery, older_than='3d', until='2020-01-01')


@pytest.mark.parametrize('kwargs', [{}, dict(src='crops', from_old='old.db')])
def test_either_crops_or_an_old_gallery(place, kwargs):
    with pytest.raises(SystemExit, match='name one of a folder of crops or a CSV table, a video'):
        commands.magnifier_index(**kwargs, gallery=place[1])


def test_what_the_engine_says_is_one_sentence(place):
    crops, gallery = place
    commands.magnifier_index(str(crops), gallery=gallery)
    for file in Path(gallery).glob('*/data/*'): file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SystemExit, match='magnifier_search: .* is damaged: restore it from a copy') as e:
        commands.magnifier_search(str(crops/'0001.png'), gallery=gallery)
    assert '\n' not in str(e.value)


SEARCH = '''
import sys
sys.path.insert(0, {here!r})
from gallery_stub import Colours
from magnifier.cli import gallery as commands
commands.open_embedder = lambda learner: Colours()
commands.magnifier_search({image!r}, gallery={gallery!r}, k=2, json=True)
print(sorted({{'torch', 'fastai', 'matplotlib', 'scipy', 'sklearn', 'pymilvus', 'lancedb'}} & set(sys.modules)))
'''


def test_a_search_from_a_shell_imports_no_torch(place):
    crops, gallery = place
    commands.magnifier_index(str(crops), gallery=gallery)
    code = SEARCH.format(here=str(Path(__file__).parent), image=str(crops/'0003.png'), gallery=gallery)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    hits, imported = done.stdout.splitlines()
    assert Path(json.loads(hits)[0]['path']).name == '0003.png'
    assert imported == '[]'


OLD = '''
import json, sys
import numpy as np
from pymilvus import DataType, MilvusClient
about = json.loads(sys.argv[2])
client = MilvusClient(sys.argv[1])
schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
schema.add_field('vector', DataType.FLOAT_VECTOR, dim=about['d'])
schema.add_field('path', DataType.VARCHAR, max_length=4096)
for field in ('pid', 'camid'): schema.add_field(field, DataType.INT64, nullable=True)
schema.add_field('time', DataType.DOUBLE, nullable=True)
index = MilvusClient.prepare_index_params()
index.add_index('vector', index_type='FLAT', metric_type='IP')
client.create_collection('people', schema=schema, index_params=index, properties=dict(magnifier=json.dumps(about)))
vectors = np.load(sys.argv[1] + '.npy')
rows = [dict(key=f'{i:032x}', vector=x, path=f'{i}.png', pid=i if i % 2 else None, camid=None, time=float(i))
        for i, x in enumerate(vectors)]
client.upsert('people', rows)
client.flush('people')
'''


@pytest.mark.slow
def test_an_old_gallery_is_brought_over(place, tmp_path):
    pytest.importorskip('milvus_lite')
    _, gallery = place
    old, narrow = str(tmp_path/'old.db'), str(tmp_path/'narrow.db')
    embedder = Colours()
    from PIL import Image
    x = embedder.embed([Image.fromarray(person(i)) for i in range(300)]).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    about = dict(fingerprint='colours', d=384, regions=0, width=None)
    for uri, told_of in ((old, about), (narrow, about | dict(width=384))):
        np.save(uri, x)
        subprocess.run([sys.executable, '-W', 'ignore', '-c', OLD, uri, json.dumps(told_of)], check=True)
        assert is_old(uri)
    with pytest.raises(ValueError, match='copy it with `magnifier_index --from .*old.db --gallery NEW`'):
        Gallery(old)

    def brought(uri, into):
        script = tmp_path/'magnifier_index'
        script.write_text('from magnifier.cli.gallery import magnifier_index\nmagnifier_index()\n')
        command = [sys.executable, '-W', 'ignore', script, '--from', uri, '--gallery', into]
        return subprocess.run(command, capture_output=True, text=True)
    first = brought(old, gallery)
    assert first.stdout == f'{gallery}: 300 images added, 0 known; it holds 300\n', first.stderr
    assert brought(old, gallery).stdout == f'{gallery}: 0 images added, 0 known; it holds 300\n'
    assert 'reduced to 384 dimensions, which galleries no longer' in brought(narrow, gallery + '2').stderr
    assert 'no gallery of an earlier version' in brought(str(tmp_path/'no.db'), gallery).stderr
    with Gallery(gallery) as g:
        assert g.search(embedder, person(7))[0].pid == 7
        assert g.images()['pid'].isna().sum() == 150
        np.testing.assert_allclose(g.embeddings([f'{i:032x}' for i in range(300)]), x, atol=1e-6)
    with Gallery(gallery + '3') as g: g.add(Colours('other'), people(1))
    assert 'were made by two models' in brought(old, gallery + '3').stderr
