"Decoded originals: what is kept, when it is used again, and what is left of a run that dies"
import os
import pickle
import time
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from magnifier.data import pixels as module
from magnifier.data.pixels import MappedPixels, cache_pixels, decode_pixels, read_pixels
from magnifier.regions import NO_MASK

SIZES = [(20, 10), (31, 9), (8, 40), (20, 10)]


@pytest.fixture
def table(tmp_path):
    "Pictures of several sizes, the second without a mask"
    rng, rows = np.random.default_rng(0), []
    for i, (h, w) in enumerate(SIZES):
        image, mask = tmp_path/f'{i}.png', tmp_path/f'{i}_mask.png'
        Image.fromarray(rng.integers(0, 256, (h, w, 3)).astype(np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 8, (h, w)).astype(np.uint8)).save(mask)
        rows.append(dict(path=str(image), mask=None if i == 1 else str(mask)))
    return pd.DataFrame(rows)


def expected(table):
    for row in table.itertuples():
        rgb = np.asarray(Image.open(row.path))
        labels = np.asarray(Image.open(row.mask)) if isinstance(row.mask, str) else np.full(rgb.shape[:2], NO_MASK,
                                                                                            np.uint8)
        yield np.concatenate([rgb, labels[..., None]], 2).transpose(2, 0, 1)


def same(found, table):
    assert len(found) == len(table)
    for a, b in zip(found, expected(table), strict=True): assert a.dtype == np.uint8 and (a == b).all()


def refuse(*args): raise AssertionError('decoded again')


def later(path):
    "The file as if written a while from now"
    os.utime(path, ns=(time.time_ns() + 10**9,)*2)


def test_memory_and_disk_hold_the_originals(table, tmp_path):
    same(cache_pixels(table), table)
    found = cache_pixels(table, tmp_path/'cache')
    same(found, table)
    same(pickle.loads(pickle.dumps(found)), table)
    assert isinstance(found.flat, np.memmap) and [p.suffix for p in (tmp_path/'cache').iterdir()] == ['.pixels']


def test_disk_is_among_fastais_data(table, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    assert cache_pixels(table, 'disk').file.parent == tmp_path/'home'/'pixels'


def test_a_file_is_used_again_by_the_same_originals(table, tmp_path, monkeypatch):
    first = cache_pixels(table, tmp_path/'cache')
    monkeypatch.setattr(module, 'read_pixels', refuse)
    monkeypatch.chdir(tmp_path)
    relative = table.assign(path=[os.path.relpath(p) for p in table.path])
    assert cache_pixels(table, tmp_path/'cache').file == cache_pixels(relative, tmp_path/'cache').file == first.file
    with pytest.raises(AssertionError, match='again'): cache_pixels(table[::-1], tmp_path/'cache')


def new_image(table): Image.new('RGB', (10, 20), 'red').save(table.path[0])

def new_mask(table): Image.fromarray(np.full(SIZES[0], 3, np.uint8)).save(table['mask'][0])

def other_size(table): Image.new('RGB', (7, 5)).save(table.path[1])

def touched(table): pass


@pytest.mark.parametrize('change', [new_image, new_mask, other_size, touched])
def test_changed_originals_are_decoded_again(table, tmp_path, change):
    before = cache_pixels(table, tmp_path/'cache')
    change(table)
    for path in [*table.path, *table['mask'].dropna()]: later(path)
    after = cache_pixels(table, tmp_path/'cache')
    same(after, table)
    assert before.file == after.file and len(list((tmp_path/'cache').iterdir())) == 1, 'it takes the place of the old'
    assert before[2].shape == (4, 8, 40), 'whoever still maps the old one is not disturbed'


def test_a_mask_that_appears_counts(table, tmp_path):
    cache_pixels(table, tmp_path/'cache')
    table = table.assign(mask=[*table['mask'][:1], str(tmp_path/'1_mask.png'), *table['mask'][2:]])
    same(cache_pixels(table, tmp_path/'cache'), table)


@pytest.mark.parametrize('spoil',
                         [lambda b: b[:-30], lambda b: b[50:], lambda b: b'', lambda b: b'hello',
                          lambda b: b'\xff'*len(b),
                                   lambda b: b[:-8] + b'\1' + b[-7:]])
def test_a_spoilt_file_is_replaced(table, tmp_path, spoil):
    file = cache_pixels(table, tmp_path/'cache').file
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError): MappedPixels(file)
    same(cache_pixels(table, tmp_path/'cache'), table)


def _die_while_writing(table, folder):
    read = module.read_pixels
    def dying(image, mask=None):
        if image.endswith('3.png'): os.kill(os.getpid(), 9)
        return read(image, mask)
    module.read_pixels, module.AT_ONCE = dying, 1
    cache_pixels(table, folder)


@pytest.mark.forks
def test_killed_while_writing(table, tmp_path):
    process = get_context('fork').Process(target=_die_while_writing, args=(table, tmp_path/'cache'))
    process.start(); process.join()
    left = list((tmp_path/'cache').iterdir())
    assert process.exitcode == -9
    assert [p.suffix for p in left] == ['.part'], 'nothing that could be taken for a cache'
    same(cache_pixels(table, tmp_path/'cache'), table)
    assert [p.suffix for p in (tmp_path/'cache').iterdir()] == ['.pixels'], 'the remains are gone'


def test_an_error_while_writing_leaves_nothing(table, tmp_path):
    (tmp_path/'3.png').write_bytes(b'')
    with pytest.raises(ValueError, match='3.png: not a readable image'): cache_pixels(table, tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())


def test_a_place_that_cannot_be_written(table, tmp_path, monkeypatch):
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match=r"cannot write .*file.*: .*cache='ram'"): cache_pixels(table, tmp_path/'file')
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('magnifier.files.os.replace', full)
    with pytest.raises(OSError, match='No space left on device; make room'): cache_pixels(table, tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())


@pytest.mark.parametrize('where', ['rma', True, 3, 'folder/'])
def test_unknown_places(table, where):
    with pytest.raises(ValueError, match="use 'ram', 'disk', a folder as a Path, or None"): cache_pixels(table, where)


def test_wrong_masks_are_named(table, tmp_path):
    image = table.path[0]
    with pytest.raises(ValueError, match=r'2_mask.png: mask of 40 x 8 pixels for an image of 10 x 20; write'):
        read_pixels(image, table['mask'][2])
    (tmp_path/'half.png').write_bytes((tmp_path/'0_mask.png').read_bytes()[:60])
    with pytest.raises(ValueError, match='half.png: not a readable part mask'):
        read_pixels(image, str(tmp_path/'half.png'))
    Image.fromarray(np.full((20, 10), 9, np.uint8)).save(tmp_path/'nine.png')
    with pytest.raises(ValueError, match='nine.png: labels 9'): read_pixels(image, str(tmp_path/'nine.png'))


def test_pictures_that_are_held_sideways_have_upright_masks(tmp_path):
    image = Image.new('RGB', (20, 10)); exif = image.getexif(); exif[0x0112] = 6
    image.save(tmp_path/'held.jpg', exif=exif)
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(tmp_path/'mask.png')
    assert read_pixels(str(tmp_path/'held.jpg'), str(tmp_path/'mask.png')).shape == (4, 20, 10)


def test_threads_keep_the_order(table, monkeypatch):
    monkeypatch.setattr(module, 'AT_ONCE', 3)
    rows = [(p, None) for p in table.path]*5
    for workers in (1, 4):
        assert all((a == read_pixels(p)).all() for a, (p, _) in zip(decode_pixels(rows, workers), rows, strict=True))
    assert list(decode_pixels([])) == [] and len(list(decode_pixels(rows[:1]))) == 1
