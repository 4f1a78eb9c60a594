"The raw CUHK03 file, with its structure as MATLAB v7.3 writes it, into the CUHK03-NP layout"

import builtins
import os
import sys

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from magnifier.data import readers as module
from magnifier.data.catalog import CatalogWarning, validate_catalog
from magnifier.data.readers import cuhk03

# (pair, person, image): images 1 to 5 are camera 1, 6 to 10 camera 2. Person 2 of pair 1 has gaps
CROPS = [(1, 1, 1), (1, 1, 2), (1, 1, 6), (1, 2, 3), (1, 2, 10), (2, 1, 1), (2, 1, 7), (2, 1, 8)]
PEOPLE = {(1, 1): 1, (1, 2): 2, (2, 1): 1200}


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
                for p, person, image in CROPS:
                    if p == pair: cell[image - 1, person - 1] = refs.create_dataset(f'{kind}{p}_{person}_{image}',
                                                                                    data=picture(p, person, image,
                                                                                                 kind).T).ref
                cells.append(cell.ref)
            f.create_dataset(kind, (1, 5), dtype=h5py.ref_dtype)[0] = cells


def write_config(file, crops=CROPS, **changes):
    pids = np.array([PEOPLE[c[:2]] for c in crops])
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
    assert seen == {f: [f'{pid:04d}_c{camera(i)}_{p}_{person:03d}_{camera(i)}_{i:02d}.png' for pid, p, person,
                        i in rows] for f, rows in expected.items()}
    for folder, rows in expected.items():
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
    assert (tmp_path/'png'/'labeled'/'query').is_dir() and not (release/'cuhk03-np').exists()
    release.rename(tmp_path/'CUHK03')
    with pytest.warns(CatalogWarning, match='7,365 of 767'): cuhk03(tmp_path/'CUHK03', 'detected')


def test_files_that_are_not_there(release, monkeypatch):
    with pytest.raises(ValueError, match="kind='both': use 'labeled' or 'detected'"): cuhk03(release, 'both')
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
    monkeypatch.setitem(PEOPLE, (9, 1), 3)
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
