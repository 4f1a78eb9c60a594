"Readers of the published sets, each on a tree of its own layout"

import builtins
import logging
import os
import sys
import warnings

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from magnifier.data import readers as module
from magnifier.data.catalog import CatalogWarning, find_masks, validate_catalog
from magnifier.data.readers import (cuhk03, cuhk03_np, dukemtmc, market1501, msmt17, occluded_duke, occluded_reid,
                                    partial_reid)


def draw(root, *names):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(('.png', '.tif')): Image.new('L', (4, 8), 1).save(root/name)
        else: Image.new('RGB', (4, 8), (9, 8, 7)).save(root/name, format='JPEG')
    return root


def market_tree(root):
    "Two training identities, two queries, their gallery, a distractor, junk, and strays"
    names = dict(
        bounding_box_train=('0007_c3s3_077419_03', '0002_c1s1_000451_03', '0002_c2s1_000451_01'),
        query=('0001_c1s1_001051_00', '0003_c2s1_001051_00'),
        bounding_box_test=('0001_c2s1_000301_00', '0003_c1s1_000301_00', '0003_c6s4_000301_00', '0000_c1s1_000151_01',
                           '-1_c1s1_000401_03', '-1_c5s1_000401_03'))
    for folder, stems in names.items(): draw(root, *(f'{folder}/{stem}.jpg' for stem in stems))
    for folder in ('bounding_box_train', 'query', 'bounding_box_test'): (root/folder/'Thumbs.db').write_bytes(b'\0')
    (root/'readme.txt').write_text('')
    return root


def people(catalog): return [(r.path.rsplit('/', 1)[1], r.pid, r.camid, r.split) for r in catalog.itertuples()]


MARKET_ROWS = [('0002_c1s1_000451_03.jpg', 2, 1, 'train'), ('0002_c2s1_000451_01.jpg', 2, 2, 'train'),
               ('0007_c3s3_077419_03.jpg', 7, 3, 'train'),
               ('0001_c1s1_001051_00.jpg', 1, 1, 'query'), ('0003_c2s1_001051_00.jpg', 3, 2, 'query'),
               ('0000_c1s1_000151_01.jpg', 0, 1, 'gallery'), ('0001_c2s1_000301_00.jpg', 1, 2, 'gallery'),
               ('0003_c1s1_000301_00.jpg', 3, 1, 'gallery'), ('0003_c6s4_000301_00.jpg', 3, 6, 'gallery')]


# --- Market-1501 and its kin

def test_market(tmp_path, caplog):
    root = market_tree(tmp_path/'people')
    with caplog.at_level(logging.INFO, 'magnifier'): catalog = market1501(root)
    assert people(catalog) == MARKET_ROWS
    assert '2 junk images (identity -1) left out' in caplog.text
    assert validate_catalog(catalog, ['train', 'query', 'gallery']) is catalog


def test_market_masks(tmp_path):
    root = market_tree(tmp_path/'people')
    draw(tmp_path/'people_ps_label', 'query/0001_c1s1_001051_00.png')
    catalog = market1501(root)
    assert catalog['mask'].dropna().tolist() == [str(tmp_path/'people_ps_label'/'query'/'0001_c1s1_001051_00.png')]
    assert market1501(root, False)['mask'].isna().all()
    draw(tmp_path/'own', 'bounding_box_train/0007_c3s3_077419_03.png')
    assert market1501(root, tmp_path/'own')['mask'].notna().tolist() == [False, False, True, *[False] * 6]


@pytest.mark.parametrize('name',
                         ['Market-1501-v15.09.15', 'market1501', 'Market_1501', 'market1501/Market-1501-v15.09.15'])
def test_usual_names_of_the_root(tmp_path, name):
    root = market_tree(tmp_path/name)
    (tmp_path/'market1501_ps_label').mkdir()
    with pytest.warns(CatalogWarning,
                      match='Market-1501: train has 3 images of 2 identities, expected 12,936 of 751; query has 2 .* '
                            'of 2 identities, expected 3,368 of 750; gallery has 4 .* expected 15,913 of 751'):
        assert market1501(tmp_path)['path'][0].startswith(str(root))
    assert len(market1501(str(root), expected=False)) == 9


def test_expected_counts_are_asked_for_or_guessed(tmp_path):
    root = market_tree(tmp_path/'people')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        market1501(root)
    assert not caught  # not the real set's name
    with pytest.warns(CatalogWarning, match='expected 12,936'): market1501(root, expected=True)
    with pytest.raises(ValueError, match="expected='yes': use True, False or 'auto'"): market1501(root, expected='yes')


def test_the_same_catalog_whatever_the_working_directory(tmp_path, monkeypatch):
    market_tree(tmp_path/'people')
    monkeypatch.chdir(tmp_path)
    assert market1501('people')['path'].tolist() == market1501(tmp_path/'people')['path'].tolist()


def test_second_endings_and_hidden_files(tmp_path, caplog):
    root = draw(market_tree(tmp_path/'people'), 'query/0001_c1s1_001051_00.jpg.jpg',
                'query/0005_c1s1_001051_00.jpg.jpg', 'query/._0001_c1s1_001051_00.jpg',
                'bounding_box_test/0005_c2s1_001051_00.JPG')
    with caplog.at_level(logging.INFO, 'magnifier'): catalog = market1501(root)
    names = [name for name, *_ in people(catalog) if name.startswith(('0005', '.')) or name.count('.jpg') > 1]
    assert names == ['0005_c1s1_001051_00.jpg.jpg', '0005_c2s1_001051_00.JPG']
    assert caplog.text.count('left out 1 copies with a second ending') == 1
    draw(tmp_path/'people_ps_label', 'query/0005_c1s1_001051_00.png')
    assert find_masks(catalog)['mask'].notna().sum() == 1


@pytest.mark.parametrize('name, message', [
    ('query/0000_c1s1_000151_01.jpg',
     'query/0000_c1s1_000151_01.jpg: identity 0000 marks distractors, which belong in the gallery alone, not in query'),
    ('bounding_box_train/0000_c1s1_000151_01.jpg', 'not in train'),
    ('query/holiday.jpg', r'query/holiday.jpg: the name does not begin with <identity>_c<camera>_'),
    ('bounding_box_test/0001_c1x.png', 'bounding_box_test/0001_c1x.png: the name does not begin'),
    ('bounding_box_train/-2_c1s1_000151_01.jpg', 'the name does not begin')])
def test_names_that_make_no_sense(tmp_path, name, message):
    with pytest.raises(ValueError, match=message): market1501(draw(market_tree(tmp_path/'people'), name))


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'): market1501(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError,
                       match='no Market-1501 in .*looked for the folders bounding_box_train, query, bounding_box_test '
                             'in it and in folders of it named Market-1501-v15.09.15, .*; it holds nothing'):
        market1501(tmp_path)
    for i in range(10): (tmp_path/f'folder{i}').mkdir()
    with pytest.raises(FileNotFoundError, match='folder7 and 2 more'): market1501(tmp_path)
    for folder in ('bounding_box_train', 'query', 'bounding_box_test'): (tmp_path/folder).mkdir()
    with pytest.raises(ValueError, match='bounding_box_train holds no image'): market1501(tmp_path)


def test_two_candidates(tmp_path):
    market_tree(tmp_path/'Market-1501')
    market_tree(tmp_path/'market1501')
    with pytest.raises(ValueError, match='holds Market-1501 and market1501: give the path of one of them'):
        market1501(tmp_path)


def test_one_camera_for_everything(tmp_path):
    root = draw(tmp_path/'set', 'bounding_box_train/0001_c4_000001.jpg', 'query/0002_c4_000001.jpg',
                'bounding_box_test/0002_c4_000001.jpg')
    with pytest.raises(ValueError, match='1 of 1 queries have no match left.*one camera 4'):
        validate_catalog(market1501(root))


@pytest.mark.parametrize('reader, name, counts', [
    (dukemtmc, 'DukeMTMC-reID', ('16,522 of 702', '2,228 of 702', '17,661 of 1,110')),
    (occluded_duke, 'Occluded_Duke', ('15,618 of 702', '2,210 of 519'))])
def test_duke(tmp_path, reader, name, counts):
    root = draw(tmp_path/name, 'bounding_box_train/0001_c2_f0046182.jpg', 'query/0005_c2_f0046985.jpg',
                'bounding_box_test/0005_c5_f0051781.jpg',
                'bounding_box_test/7140_c8_f0051781.jpg')
    with pytest.warns(CatalogWarning) as caught: catalog = reader(tmp_path)
    assert all(c in str(caught[0].message) for c in counts)
    assert len(caught) == 1
    assert people(catalog) == [('0001_c2_f0046182.jpg', 1, 2, 'train'), ('0005_c2_f0046985.jpg', 5, 2, 'query'),
                               ('0005_c5_f0051781.jpg', 5, 5, 'gallery'), ('7140_c8_f0051781.jpg', 7140, 8, 'gallery')]
    validate_catalog(reader(root, expected=False))


# --- CUHK03-NP

@pytest.fixture
def np_tree(tmp_path):
    for kind, extra in (('labeled', 0), ('detected', 1)):
        draw(tmp_path/'cuhk03-np'/kind, 'bounding_box_train/0001_c1_1.png', 'query/0003_c1_1.png',
             *(f'bounding_box_test/0003_c2_{i}.png' for i in range(1 + extra)))
    return tmp_path/'cuhk03-np'


def test_cuhk03_np(np_tree):
    with pytest.warns(CatalogWarning,
                      match='train has 1 .* expected 7,368 of 767.*gallery has 1 .* expected 5,328 of 700'):
        labelled = cuhk03_np(np_tree)
    assert people(labelled) == [('0001_c1_1.png', 1, 1, 'train'), ('0003_c1_1.png', 3, 1, 'query'),
                                ('0003_c2_0.png', 3, 2, 'gallery')]
    with pytest.warns(CatalogWarning, match='7,365 of 767.*5,332 of 700'):
        assert len(cuhk03_np(np_tree.parent, 'detected')) == 4
    assert len(cuhk03_np(np_tree/'detected', 'detected', expected=False)) == 4  # the folder itself
    draw(np_tree.with_name('cuhk03-np_ps_label'), 'labeled/query/0003_c1_1.png')
    assert cuhk03_np(np_tree, expected=False)['mask'].notna().tolist() == [False, True, False]
    validate_catalog(labelled)


def test_cuhk03_np_refuses(np_tree):
    with pytest.raises(ValueError, match="kind='both': use one of labeled, detected"): cuhk03_np(np_tree, 'both')
    with pytest.raises(FileNotFoundError, match='looked for the folders labeled in it'):
        cuhk03_np(np_tree/'detected')  # the other kind: not read in its place
    (np_tree/'labeled'/'query'/'0003_c1_1.png').unlink()
    (np_tree/'labeled'/'query').rmdir()
    with pytest.raises(FileNotFoundError,
                       match=r'no CUHK03-NP \(labeled\).*it holds bounding_box_test, bounding_box_train'):
        cuhk03_np(np_tree)


# --- MSMT17

def msmt_tree(root, train='train', test='test'):
    lists = dict(train=['0000/0000_000_01_0303morning_0008_0.jpg 0', '0001/0001_000_15_0303noon_0008_0.jpg 1'],
                 val=['0000/0000_001_02_0303morning_0009_0.jpg 0', '0002/0002_001_02_0303morning_0009_0.jpg 2'],
                 query=['0000/0000_000_03_0303morning_0008_0.jpg 0'],
                 gallery=['0000/0000_000_04_0303morning_0008_0.jpg 0', '0001/0001_000_04_0303morning_0008_0.jpg 1'])
    for name, lines in lists.items():
        draw(root/(train if name in ('train', 'val') else test), *(line.split()[0] for line in lines))
        (root/f'list_{name}.txt').write_text('\n'.join(lines) + '\n\n')
    return root


@pytest.mark.parametrize('folders', [('train', 'test'), ('mask_train_v2', 'mask_test_v2')])
def test_msmt17(tmp_path, folders, caplog):
    root = msmt_tree(tmp_path/'own', *folders)
    with caplog.at_level(logging.INFO, 'magnifier'): catalog = msmt17(root)
    assert [r[1:] for r in people(catalog)] == [(0, 1, 'train'), (0, 2, 'train'), (1, 15, 'train'), (2, 2, 'train'),
                                               (3, 3, 'query'), (3, 4, 'gallery'),
                                               (4, 4, 'gallery')]  # test people follow the 3 of training
    assert catalog['path'][0] == str(root/folders[0]/'0000/0000_000_01_0303morning_0008_0.jpg')
    assert '2 validation images are part of training' in caplog.text
    validate_catalog(catalog)
    without = msmt17(root, val_in_train=False)
    assert [r[1:] for r in people(without)] == [(0, 1, 'train'), (1, 15, 'train'), (3, 3, 'query'), (3, 4, 'gallery'),
                                                (4, 4, 'gallery')]  # the same numbers


def test_msmt17_counts_and_versions(tmp_path):
    msmt_tree(tmp_path/'MSMT17_V1')
    with pytest.warns(CatalogWarning,
                      match='train has 4 images of 3 identities, expected 32,621 of 1,041.*11,659.*82,161 of 3,060'):
        msmt17(tmp_path)
    with pytest.warns(CatalogWarning, match='train has 2 images of 2 identities, expected 30,248 of 1,041'):
        msmt17(tmp_path, val_in_train=False)
    msmt_tree(tmp_path/'MSMT17_V2', 'mask_train_v2', 'mask_test_v2')
    with pytest.raises(ValueError, match='holds V1 .*MSMT17_V1.* and V2 .*MSMT17_V2.*: give the path of one'):
        msmt17(tmp_path)


def test_msmt17_refuses(tmp_path):
    with pytest.raises(FileNotFoundError,
                       match=r'looked for the folders mask_train_v2, mask_test_v2 .*V1 has train and test'):
        msmt17(tmp_path)
    root = msmt_tree(tmp_path/'own')
    (root/'test'/'0000'/'0000_000_03_0303morning_0008_0.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 7 image files do not exist'): validate_catalog(msmt17(root))
    for text, message in [('0000/0000_000_03_x_0.jpg', "list_query.txt, line 1: .* is not \"path identity\""),
                          ('\na/x.jpg 3', 'line 2: .*camera as third field'),
                          ('', 'list_query.txt is empty')]:
        (root/'list_query.txt').write_text(text)
        with pytest.raises(ValueError, match=message): msmt17(root)
    (root/'list_query.txt').unlink()
    with pytest.raises(FileNotFoundError, match='list_query.txt is not there'): msmt17(root)


# --- the raw CUHK03 file, with its structure as MATLAB v7.3 writes it

# (pair, person, image): images 1 to 5 are camera 1, 6 to 10 camera 2. Person 2 of pair 1 has gaps
CROPS = [(1, 1, 1), (1, 1, 2), (1, 1, 6), (1, 2, 3), (1, 2, 10), (2, 1, 1), (2, 1, 7), (2, 1, 8)]
PID_OF = {(1, 1): 1, (1, 2): 2, (2, 1): 1200}


def picture(pair, person, image, kind):
    h, w = 10 + image, 4 + person
    return np.random.default_rng([pair, person, image, len(kind)]).integers(0, 255, (h, w, 3)).astype(np.uint8)


def camera(image): return 1 if image <= 5 else 2


def names(crops): return [f'{pair}_{person:03d}_{camera(image)}_{image:02d}.png' for pair, person, image in crops]


def write_mat(file):
    """labeled, detected: a cell array of pairs, stored 1 x 5; each pair a cell array persons x 10, stored transposed,
    as are images; empty cells hold their size"""
    with h5py.File(file, 'w') as f:
        refs = f.create_group('#refs#')
        empty = refs.create_dataset('a', data=np.zeros(2, np.uint64))
        empty.attrs['MATLAB_empty'] = np.uint8(1)
        for kind in ('labeled', 'detected'):
            cells = []
            for pair in range(1, 6):
                n = max([person for p, person, _ in CROPS if p == pair], default=1)
                cell = refs.create_dataset(f'{kind}{pair}', (10, n), dtype=h5py.ref_dtype)
                cell[...] = empty.ref
                for _, person, image in (crop for crop in CROPS if crop[0] == pair):
                    stored = picture(pair, person, image, kind).T
                    cell[image - 1, person - 1] = refs.create_dataset(f'{kind}{pair}_{person}_{image}', data=stored).ref
                cells.append(cell.ref)
            f.create_dataset(kind, (1, 5), dtype=h5py.ref_dtype)[0] = cells


def write_config(file, crops=CROPS, **changes):
    pids = np.array([PID_OF[c[:2]] for c in crops])
    train = [i + 1 for i, c in enumerate(crops) if c[:2] != (2, 1)]
    filelist = np.empty((len(crops), 1), object)
    filelist[:, 0] = names(crops)
    table = dict(train_idx=np.array(train)[:, None], query_idx=np.array([[6]]), gallery_idx=np.array([[7], [8]]),
                 labels=pids[:, None],
                 camId=np.array([camera(c[2]) for c in crops])[:, None], filelist=filelist) | changes
    savemat(file, {k: v for k, v in table.items() if v is not None})


@pytest.fixture
def release(tmp_path):
    (tmp_path/'own'/'cuhk03_release').mkdir(parents=True)
    write_mat(tmp_path/'own'/'cuhk03_release'/'cuhk-03.mat')
    for kind in ('labeled', 'detected'): write_config(tmp_path/'own'/f'cuhk03_new_protocol_config_{kind}.mat')
    return tmp_path/'own'


@pytest.mark.parametrize('kind', ['labeled', 'detected'])
def test_every_image_in_its_place(release, kind):
    catalog = cuhk03(release, kind)
    root = release/'cuhk03-np'/kind
    expected = {'bounding_box_train': [(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 6), (2, 1, 2, 3), (2, 1, 2, 10)],
                'query': [(1200, 2, 1, 1)],
                'bounding_box_test': [(1200, 2, 1, 7), (1200, 2, 1, 8)]}
    seen = {f: sorted(os.listdir(root/f)) for f in os.listdir(root)}
    assert set(seen) == set(expected)
    for folder, rows in expected.items():
        assert seen[folder] == [
            f'{pid:04d}_c{camera(i)}_{p}_{person:03d}_{camera(i)}_{i:02d}.png' for pid, p, person, i in rows]
        for file, (pid, p, person, i) in zip(seen[folder], rows):
            with Image.open(root/folder/file) as image: assert (np.asarray(image) == picture(p, person, i, kind)).all()
    assert catalog['pid'].tolist() == [1] * 3 + [2] * 2 + [1200] * 3
    assert catalog['camid'].tolist() == [1, 1, 2, 1, 2, 1, 2, 2]
    assert catalog['split'].tolist() == ['train'] * 5 + ['query'] + ['gallery'] * 2
    validate_catalog(catalog)


def test_a_second_call_needs_neither_file_nor_h5py(release, monkeypatch):
    first = cuhk03(release)
    (release/'cuhk03_release'/'cuhk-03.mat').unlink()
    monkeypatch.setitem(sys.modules, 'h5py', None)
    assert cuhk03(release).equals(first)


def test_a_killed_run_is_taken_up_again(release, monkeypatch):
    save, saved = module.save_png, []
    def dies(image, path):
        if len(saved) == 3: raise KeyboardInterrupt
        saved.append(path), save(image, path)
    monkeypatch.setattr(module, 'save_png', dies)
    with pytest.raises(KeyboardInterrupt): cuhk03(release)
    assert os.listdir(release/'cuhk03-np') == ['labeled.partial']  # not taken for the whole
    times = {p: p.stat().st_mtime_ns for p in saved}
    monkeypatch.setattr(module, 'save_png', lambda image, path: (saved.append(path), save(image, path)))
    assert len(cuhk03(release)) == len(saved) == 8  # each written once
    assert os.listdir(release/'cuhk03-np') == ['labeled']
    partial, whole = release/'cuhk03-np'/'labeled.partial', release/'cuhk03-np'/'labeled'
    for p, t in times.items(): assert (whole/p.relative_to(partial)).stat().st_mtime_ns == t


def test_out_and_counts(release, tmp_path):
    with pytest.warns(CatalogWarning, match='train has 5 images of 2 identities, expected 7,368 of 767'):
        cuhk03(release, expected=True, out=tmp_path/'png')
    assert (tmp_path/'png'/'labeled'/'query').is_dir()
    assert not (release/'cuhk03-np').exists()
    release.rename(tmp_path/'CUHK03')
    with pytest.warns(CatalogWarning, match='7,365 of 767'): cuhk03(tmp_path/'CUHK03', 'detected')


def test_files_that_are_not_there(release, monkeypatch):
    with pytest.raises(ValueError, match="kind='both': use one of labeled, detected"): cuhk03(release, 'both')
    (release/'cuhk03_new_protocol_config_labeled.mat').unlink()
    with pytest.raises(FileNotFoundError,
                       match='no cuhk03_new_protocol_config_labeled.mat in .*own or two levels below'):
        cuhk03(release)
    def no_h5py(name, *args, **kwargs):
        if name == 'h5py': raise ImportError
        return real(name, *args, **kwargs)
    real = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', no_h5py)
    with pytest.raises(ImportError, match='pip install h5py'): cuhk03(release, 'detected')


@pytest.mark.parametrize('crops, changes, message', [
    (CROPS, dict(labels=None, query_idx=None), 'labeled.mat lacks query_idx, labels'),
    (CROPS, dict(query_idx=np.array([[9]])), 'query_idx 9, and it lists 8'),
    (CROPS, dict(gallery_idx=np.array([[0]])), 'gallery_idx 0'),
    (CROPS[:-1] + [(2, 1, 2)], {}, 'cuhk-03.mat: 2_001_1_02.png is empty'),
    ([(1, 1, 1)] + CROPS[1:-1] + [(9, 1, 1)], {}, 'names 9_001_1_01.png, which .*cuhk-03.mat does not hold')])
def test_files_that_do_not_fit(release, monkeypatch, crops, changes, message):
    monkeypatch.setitem(PID_OF, (9, 1), 3)
    write_config(release/'cuhk03_new_protocol_config_labeled.mat', crops, **changes)
    with pytest.raises(ValueError, match=message): cuhk03(release)
    assert not (release/'cuhk03-np'/'labeled').exists()


def test_names_and_kinds_that_do_not_fit(release):
    filelist = np.empty((8, 1), object)
    filelist[:, 0] = ['x.png'] * 8
    write_config(release/'cuhk03_new_protocol_config_labeled.mat', filelist=filelist)
    with pytest.raises(ValueError, match="'x.png' is not <pair>_<person>_<camera>_<image>"): cuhk03(release)
    with h5py.File(release/'cuhk03_release'/'cuhk-03.mat', 'a') as f: del f['detected']
    with pytest.raises(ValueError, match="has no 'detected': it holds #refs#, labeled"): cuhk03(release, 'detected')


@pytest.mark.parametrize('content',
                         [b'', b'hello', b'\x89HDF\r\n\x1a\n' + bytes(300), b'MATLAB 5.0 MAT-file' + bytes(200)])
def test_damaged_files_are_named(release, content):
    mat = next(release.rglob('cuhk-03.mat'))
    whole = mat.read_bytes()
    for spoilt in (content, whole[:len(whole)//2]):
        mat.write_bytes(spoilt)
        with pytest.raises(ValueError, match='cuhk-03.mat is damaged, or no such MATLAB file'): cuhk03(release)
    config = next(release.rglob('*config_labeled.mat'))
    for spoilt in (content, config.read_bytes()[:200]):
        config.write_bytes(spoilt)
        with pytest.raises(ValueError, match='config_labeled.mat is damaged|config_labeled.mat lacks'): cuhk03(release)


# --- test sets without cameras

def test_partial_reid(tmp_path):
    root = draw(tmp_path/'Partial-REID_Dataset', 'partial_body_images/001_001.jpg', 'partial_body_images/010_001.jpg',
                'whole_body_images/001_001.jpg',
                'whole_body_images/010_002.jpg', 'occluded_body_images/010_003.jpg')
    with pytest.warns(CatalogWarning, match='query has 2 images of 2 identities, expected 300 of 60; gallery has 2 '):
        catalog = partial_reid(tmp_path)
    assert people(catalog) == [('001_001.jpg', 1, 0, 'query'), ('010_001.jpg', 10, 0, 'query'),
                               ('001_001.jpg', 1, 1, 'gallery'), ('010_002.jpg', 10, 1, 'gallery')]
    validate_catalog(catalog)
    assert people(partial_reid(root, expected=False, queries='occluded'))[0] == ('010_003.jpg', 10, 0, 'query')
    with pytest.raises(ValueError, match="queries='whole': use one of partial, occluded"):
        partial_reid(root, queries='whole')


def test_occluded_reid(tmp_path):
    root = draw(tmp_path/'own', 'occluded_body_images/001/001_01.tif', 'occluded_body_images/200/200_05.tif',
                'whole_body_images/001/001_01.tif',
                'whole_body_images/200/200_02.tif')
    catalog = occluded_reid(root)
    assert [r[1:] for r in people(catalog)] == [(1, 0, 'query'), (200, 0, 'query'), (1, 1, 'gallery'),
                                                (200, 1, 'gallery')]
    validate_catalog(catalog)
    with pytest.warns(CatalogWarning, match='expected 1,000 of 200'): occluded_reid(root, expected=True)
    draw(root, 'whole_body_images/ann/x.tif')
    with pytest.raises(ValueError, match='ann/x.tif: no identity in the name; expected'): occluded_reid(root)
