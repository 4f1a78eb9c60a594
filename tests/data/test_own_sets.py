"One's own data: identity folders and tables"

import logging
import os

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.data.catalog import CatalogWarning, lost_queries, validate_catalog
from magnifier.data.own_sets import _draw_queries, catalog_csv, identity_folders, read_table, split_queries


def draw(root, *names):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (4, 8), 1).save(root/name)
    return root


@pytest.fixture
def zoo(tmp_path):
    "Eight people, two cameras, three images each; strays"
    people = 'ann bob cat dan eve fay gus hal'.split()
    root = draw(tmp_path/'zoo', *(f'{who}/cam{c}_{i}.png' for who in people for c in (1, 12) for i in range(3)))
    (root/'ann'/'Thumbs.db').write_bytes(b'')
    (root/'notes.txt').write_text('')
    return draw(root, '.cache/x.png', 'zoo_ps_label/ann/cam1_0.png')


# --- folders

def test_folders_split_by_seed(zoo):
    catalog = identity_folders(zoo, r'cam(\d+)_')
    assert catalog.equals(identity_folders(zoo, r'cam(\d+)_', seed=0))
    assert len(catalog) == 48
    others = [identity_folders(zoo, r'cam(\d+)_', seed=s) for s in range(1, 6)]
    assert any(o['identity'].tolist() != catalog['identity'].tolist() for o in others)
    for c in [catalog, *others]:
        validate_catalog(c, ['train', 'query', 'gallery'])
        train = set(c.loc[c['split'] == 'train', 'pid'])
        assert len(train) == 4
        assert not train & set(c.loc[c['split'] != 'train', 'pid'])
        assert set(c['camid']) == {1, 12}
        queries = c[c['split'] == 'query'].groupby(['pid', 'camid']).size()
        assert len(queries) == 8
        assert (queries == 1).all()
    assert catalog.groupby('identity')['pid'].first().to_dict() == dict(zip('ann bob cat dan eve fay gus hal'.split(),
                                                                            range(8)))


def test_shares(zoo):
    assert set(identity_folders(zoo, r'cam(\d+)', train=1)['split']) == {'train'}
    none = identity_folders(zoo, r'cam(\d+)', train=0, n_query=2)
    assert none['split'].value_counts().to_dict() == dict(query=32, gallery=16)
    for bad in (-.1, 1.1):
        with pytest.raises(ValueError, match='a share of the identities, 0 to 1'): identity_folders(zoo, train=bad)
    with pytest.raises(ValueError, match='n_query=0'): identity_folders(zoo, n_query=0)


def test_without_cameras_every_query_is_compared_with_all_others(zoo, caplog):
    with caplog.at_level(logging.INFO, 'magnifier'): catalog = identity_folders(zoo, n_query=2)
    assert 'cameras not known; queries are camera 0, the gallery camera 1' in caplog.text
    assert catalog.groupby('split')['camid'].unique().map(list).to_dict() == dict(train=[0], query=[0], gallery=[1])
    assert catalog['split'].value_counts().to_dict() == dict(train=24, query=8, gallery=16)
    validate_catalog(catalog)


def test_one_camera_gets_the_message(zoo):
    with pytest.raises(ValueError, match='4 of 4 queries have no match left.*one camera 7'):
        validate_catalog(identity_folders(zoo, lambda below: 7))


def test_split_and_camera_from_names(tmp_path):
    root = draw(tmp_path/'set', 'train/7/north-1.png', 'train/7/south-1.png', 'query/012/north-1.png',
                'gallery/012/south-1.png', 'gallery/3/east.png')
    catalog = identity_folders(root, r'/(\w+)[-.]', r'^(\w+)/')
    assert catalog['pid'].tolist() == [7, 7, 12, 3, 12]
    assert catalog['identity'].tolist() == ['7', '7', '012', '3', '012']
    assert catalog['camid'].tolist() == [1, 2, 1, 0, 2]  # east, north, south
    assert catalog['split'].tolist() == ['train', 'train', 'query', 'gallery', 'gallery']
    by_function = identity_folders(root, lambda b: dict(e=0, n=1, s=2)[b.split('/')[2][0]], lambda b: b.split('/')[0])
    assert by_function.equals(catalog)


def test_names_that_are_one_number_are_two_people(tmp_path):
    catalog = identity_folders(draw(tmp_path/'set', '1/a.png', '001/a.png', '2/a.png'), train=1)
    assert catalog.groupby('identity')['pid'].first().to_dict() == {'001': 0, '1': 1, '2': 2}


def test_test_images_are_divided(tmp_path):
    root = draw(tmp_path/'set', 'train/a/1.png', *(f'test/{w}/{i}.png' for w in 'bc' for i in range(3)))
    catalog = identity_folders(root, split=r'^(train|test)/')
    assert catalog['split'].value_counts().to_dict() == dict(train=1, query=2, gallery=4)


def test_patterns_that_do_not_fit(zoo):
    with pytest.raises(ValueError,
                       match=r"ann/cam12_0.png: the camera pattern 'kamera\(.\)' finds nothing; it needs one group"):
        identity_folders(zoo, 'kamera(.)')
    with pytest.raises(ValueError, match='it needs one group'): identity_folders(zoo, 'cam')
    with pytest.raises(ValueError, match='the split pattern'): identity_folders(zoo, split='(x)?cam')
    with pytest.raises(ValueError, match="ann/cam12_0.png: split 'cam', use train, query, gallery, or test"):
        identity_folders(zoo, split='(cam)')


def test_images_are_chosen_by_patterns(zoo):
    chosen = identity_folders(zoo, r'cam(\d+)', include='^(ann|bob|cat|dan)/', exclude=r'_2\.')
    assert set(chosen.identity) == {'ann', 'bob', 'cat', 'dan'}
    assert len(chosen) == 4*4
    assert (chosen.split == 'query').sum() == 4, 'drawn among what is left'
    with pytest.raises(ValueError, match="holds no image .*; left out: 48 by include='nobody'"):
        identity_folders(zoo, include='nobody')


def test_links_are_followed_but_not_in_circles(tmp_path):
    draw(tmp_path/'elsewhere', 'eve/1.png', 'eve/2.png')
    root = draw(tmp_path/'set', 'ann/1.png', 'bob/1.jfif.png')
    Image.new('L', (4, 8)).save(root/'bob'/'2.jfif', format='JPEG')
    (root/'eve').symlink_to(tmp_path/'elsewhere'/'eve')
    (root/'ann'/'again').symlink_to(root)
    assert identity_folders(root, train=1).groupby('identity').size().to_dict() == dict(ann=1, bob=2, eve=2)


def test_what_is_left_out_is_said_once(tmp_path, caplog):
    root = draw(tmp_path/'set', 'ann/1.png', 'bob/1.png', 'bob/1.png.png')
    for name in ('a.heic', 'b.heic', 'c.mp4', 'notes.txt'): (root/'ann'/name).touch()
    (root/'bob'/'gone.jpg').symlink_to(root/'nowhere')
    os.mkfifo(root/'bob'/'pipe.jpg')
    with open(os.fsencode(root/'bob') + b'/caf\xe9.jpg', 'wb'): pass
    with caplog.at_level(logging.WARNING, 'magnifier'): assert len(identity_folders(root, train=1)) == 2
    reasons = ('2 .heic (no image), 1 .mp4 (no image), 1 copies with a second ending, 1 names that are not UTF-8, '
               '2 pipes, devices or broken links')
    assert [r.message for r in caplog.records] == [f'{root}: left out {reasons}']


def test_folders_of_splits_are_noticed(tmp_path):
    root = draw(tmp_path/'set', 'train/ann/1.png', 'val/query/bob/1.png', 'val/gallery/bob/2.png',
                'val/all_imgs/bob/1.png', 'val/all_imgs/bob/2.png')
    with pytest.warns(CatalogWarning,
                      match='identities lie in train, val/all_imgs, val/gallery, val/query, and all are read as one'):
        identity_folders(root)
    identity_folders(root, split='^(?:val/)?(train|query|gallery)/', exclude='all_imgs')
    identity_folders(draw(tmp_path/'cameras', 'north/ann/1.png', 'south/ann/1.png'), '^([a-z]+)/')


def test_queries_are_drawn_again_after_rows_are_left_out(zoo):
    catalog = identity_folders(zoo, r'cam(\d+)_')
    left = catalog[catalog.split != 'query']
    again = split_queries(left)
    assert set(again.path) == set(left.path)
    assert (again[again.split == 'train'].path == left[left.split == 'train'].path).all()
    queries = again[again.split == 'query'].groupby(['pid', 'camid']).size()
    assert len(queries) == 8
    assert (queries == 1).all()
    assert split_queries(catalog, .25).query('split == "train"').pid.nunique() == 2
    assert split_queries(catalog, .5).equals(catalog), 'as the reader drew'
    unknown = split_queries(identity_folders(zoo)[::2], cameras=False, n_query=2)
    assert unknown.groupby('split').camid.unique().map(list).to_dict() == dict(train=[0], query=[0], gallery=[1])
    with pytest.raises(ValueError, match='n_query=0'): split_queries(catalog, n_query=0)


def test_folders_refuse(tmp_path):
    with pytest.raises(ValueError, match='holds no image'): identity_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'): identity_folders(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='loose.png does not lie in an identity'):
        identity_folders(draw(tmp_path/'set', 'a/1.png', 'loose.png'))


def test_folder_masks(zoo):
    draw(zoo.with_name('zoo_ps_label'), 'ann/cam1_0.png')
    assert identity_folders(zoo)['mask'].notna().sum() == 1
    assert identity_folders(zoo, masks=False)['mask'].notna().sum() == 0


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 3),
       st.integers(0, 9))
@settings(deadline=None, max_examples=80)
def test_drawn_queries_can_be_matched(images, n_query, seed):
    import numpy as np
    table = pd.DataFrame([dict(path=str(i), pid=p, camid=c, split='test', mask=None) for i,
                          (p, c) in enumerate(images)])
    table['split'] = _draw_queries(table, n_query, np.random.default_rng(seed))
    queries = table[table['split'] == 'query']
    assert (queries.groupby(['pid', 'camid']).size() <= n_query).all()
    if table['camid'].nunique() > 1: assert len(lost_queries(table)) == 0
    assert set(table['split']) <= {'query', 'gallery'}
    for _, person in table.groupby('pid'):
        assert 'gallery' in set(person['split'])
        if person['camid'].nunique() > 1: assert 'query' in set(person['split'])


# --- tables

def write(file, text):
    file.write_text(text)
    return file


def test_csv(tmp_path):
    draw(tmp_path/'img', 'a.png', 'b.png', 'c.png', 'a_m.png')
    file = write(tmp_path/'list.csv',
                 'path,pid,camid,split,mask,hat\nimg/a.png,0002,1,train,img/a_m.png,red\n'
                 f'img/b.png,2,2,train,,\n{tmp_path}/img/c.png,10,1,train,,x\n')
    catalog = catalog_csv(file)
    assert catalog['path'].tolist() == [str(tmp_path/'img'/f'{n}.png') for n in 'abc']
    assert catalog['pid'].tolist() == [2, 2, 10]
    assert catalog['mask'].tolist() == [str(tmp_path/'img'/'a_m.png'), None, None]
    assert catalog['hat'].tolist() == ['red', '', 'x']
    validate_catalog(catalog)
    catalog.to_csv(tmp_path/'again.csv', index=False)
    assert catalog_csv(tmp_path/'again.csv').equals(catalog)
    assert catalog_csv(file, masks=False)['mask'].isna().all()


def test_csv_with_names_of_its_own(tmp_path):
    draw(tmp_path/'set', 'a.png', 'b.png')
    draw(tmp_path/'set_ps_label', 'b.png')
    file = write(tmp_path/'list.csv', 'image,person,where,split\na.png,zoe,yard,query\nb.png,ann,door,gallery\n')
    catalog = catalog_csv(file, dict(path='image', pid='person', camid='where'), root=tmp_path/'set')
    assert catalog['pid'].tolist() == [1, 0]
    assert catalog['camid'].tolist() == [1, 0]
    assert catalog['mask'].tolist() == [None, str(tmp_path/'set_ps_label'/'b.png')]


@pytest.mark.parametrize('text, message', [
    ('path,person,camid,split\na,1,1,train\n',
     r"no column 'pid' \(for pid\): it has path, person, camid, split; name them with columns="),
    ('path,pid,camid,split\na,1,1,train\nb,,1,train\n', 'list.csv, line 3: pid is empty'),
    ('path,pid,camid,split\n,1,1,train\n', 'line 2: path is empty'),
    ('path,pid,camid,split\na,1,1,dev\n', "split 'dev', use train"), ('path,pid,camid,split\n', 'no images'),
    ('path,pid,camid,split\ngone.png,1.0,1,train\n', None)])
def test_csv_refuses(tmp_path, text, message):
    file = write(tmp_path/'list.csv', text)
    if message:
        with pytest.raises(ValueError, match=message): catalog_csv(file)
    else:
        assert catalog_csv(file)['pid'].tolist() == [1]
        with pytest.raises(FileNotFoundError, match='1 of 1 image files do not exist'):
            validate_catalog(catalog_csv(file))


@pytest.mark.parametrize('content, message', [
    ('path,pid\n'.encode('utf-16'), 'is not in UTF-8'),
    ('path,pid\ncaf\xe9,1\n'.encode('cp1252'), 'is not in UTF-8 .* at byte 12'), (b'', 'is empty'),
    (b'\n\n', 'is empty'),
    (b'path,pid\na,1,2\n', 'line 2: 3 fields, and the header has 2'), (b'path,pid\na,1\nb\n', 'line 3: 1 fields'),
    (b'path,pid,pid\n', "two columns 'pid'"),
    (b'path,pid\n"a,1\n', 'fields|CSV')])
def test_files_that_are_no_tables_are_named(tmp_path, content, message):
    (tmp_path/'list.csv').write_bytes(content)
    with pytest.raises(ValueError, match=f'list.csv.*{message}'): read_table(tmp_path/'list.csv')
    with pytest.raises(ValueError, match='list.csv'): catalog_csv(tmp_path/'list.csv')


def test_a_table_is_text(tmp_path):
    (tmp_path/'list.csv').write_bytes('\ufeffpath,pid\n\n"a, b",007\n'.encode())
    assert read_table(tmp_path/'list.csv').to_dict('records') == [dict(path='a, b', pid='007')]


def test_numbers_of_a_table_are_exact_or_names(tmp_path):
    header = 'path,pid,camid,split\n'
    exact = [9007199254740993 + i for i in range(6)]
    for pids, expected in ((exact, exact), ([f'{p}.0' for p in exact], exact),
                           ([10**22 + i for i in range(6)], list(range(6)))):
        file = write(tmp_path/'list.csv', header + ''.join(f'{i}.png,{p},{p},train\n' for i, p in enumerate(pids)))
        catalog = catalog_csv(file)
        assert catalog.pid.tolist() == expected
        assert catalog.camid.tolist() == expected


@pytest.mark.parametrize('missing', ['inf', 'NaN', ' ', 'None', 'null', 'N/A'])
def test_words_for_unknown_are_no_identity(tmp_path, missing):
    file = write(tmp_path/'list.csv', f'path,pid,camid,split\na,1,1,train\nb,{missing},1,train\n')
    with pytest.raises(ValueError, match='list.csv, line 3: pid is empty'): catalog_csv(file)


def test_a_column_named_beside_one_of_the_same_name(tmp_path):
    file = write(tmp_path/'list.csv', 'path,pid,person,camid,split\na,5,1,1,train\nb,6,2,1,train\n')
    catalog = catalog_csv(file, {'pid': 'person'})
    assert catalog.pid.tolist() == [1, 2]
    swapped = catalog_csv(file, {'pid': 'camid', 'camid': 'pid'})
    assert swapped.camid.tolist() == [5, 6]


def test_csv_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='list.csv: no such file'): catalog_csv(tmp_path/'list.csv')
