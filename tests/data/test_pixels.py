"Decoded originals: the file that keeps them, whole batches against Pillow, loaders with a cache beside those without"

import os
import pickle
import random
import time
from copy import deepcopy
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Resize, TensorImage
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from magnifier.data import pixels as module
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.data.images import read_image
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.pixels import (Axis, FitBatch, MappedPixels, PixelBatches, bilinear_weights, cache_pixels,
                                   decode_pixels, on_one_canvas, output_positions, read_pixels, resample_images,
                                   resample_labels)
from magnifier.data.preprocess import Preprocessing
from magnifier.regions import NO_MASK

# --- the file

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
        masked = isinstance(row.mask, str)
        labels = np.asarray(Image.open(row.mask)) if masked else np.full(rgb.shape[:2], NO_MASK, np.uint8)
        yield np.concatenate([rgb, labels[..., None]], 2).transpose(2, 0, 1)


def same(found, table):
    assert len(found) == len(table)
    for a, b in zip(found, expected(table), strict=True):
        assert a.dtype == np.uint8
        assert (a == b).all()


def refuse(*args): raise AssertionError('decoded again')


def later(path):
    "The file as if written a while from now"
    os.utime(path, ns=(time.time_ns() + 10**9,)*2)


def test_memory_and_disk_hold_the_originals(table, tmp_path):
    same(cache_pixels(table), table)
    found = cache_pixels(table, tmp_path/'cache')
    same(found, table)
    same(pickle.loads(pickle.dumps(found)), table)
    assert isinstance(found.flat, np.memmap)
    assert [p.suffix for p in (tmp_path/'cache').iterdir()] == ['.pixels']


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
    assert before.file == after.file
    assert len(list((tmp_path/'cache').iterdir())) == 1, 'it takes the place of the old'
    assert before[2].shape == (4, 8, 40), 'whoever still maps the old one is not disturbed'


def test_a_mask_that_appears_counts(table, tmp_path):
    cache_pixels(table, tmp_path/'cache')
    table = table.assign(mask=[*table['mask'][:1], str(tmp_path/'1_mask.png'), *table['mask'][2:]])
    same(cache_pixels(table, tmp_path/'cache'), table)


@pytest.mark.parametrize('spoil', [
    lambda b: b[:-30], lambda b: b[50:], lambda b: b'', lambda b: b'hello', lambda b: b'\xff'*len(b),
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
    process.start()
    process.join()
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
    image = Image.new('RGB', (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path/'held.jpg', exif=exif)
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(tmp_path/'mask.png')
    assert read_pixels(str(tmp_path/'held.jpg'), str(tmp_path/'mask.png')).shape == (4, 20, 10)


def test_threads_keep_the_order(table, monkeypatch):
    monkeypatch.setattr(module, 'AT_ONCE', 3)
    rows = [(p, None) for p in table.path]*5
    for workers in (1, 4):
        assert all((a == read_pixels(p)).all() for a, (p, _) in zip(decode_pixels(rows, workers), rows, strict=True))
    assert list(decode_pixels([])) == []
    assert len(list(decode_pixels(rows[:1]))) == 1


# --- whole batches against Pillow, one picture at a time

SIDE = st.integers(1, 50)


def picture(h, w, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)


def labels(h, w, seed=0): return np.random.default_rng(seed).integers(0, 8, (h, w)).astype(np.uint8)


def axis(lengths, positions, fitted=None):
    "Rows or columns of originals that fill the output, or `fitted` pixels of it"
    lengths = torch.as_tensor(lengths)
    return Axis(lengths, torch.full_like(lengths, positions.shape[1]) if fitted is None else torch.as_tensor(fitted),
                positions)


def axes(originals, *positions):
    "Rows and columns of originals, (n,2)"
    return [axis(lengths, at) for lengths, at in zip(torch.as_tensor(originals).T, positions)]


def still(originals, size):
    unshifted = torch.zeros(len(originals), dtype=torch.long)
    return axes(originals, *(output_positions(s, unshifted) for s in size))


def tensors(images): return torch.stack([torch.from_numpy(i).permute(2, 0, 1) for i in images])


def by_pillow(image, size, shift, mirrored, *, nearest=False):
    "The item path: squish, mirror, pad, crop"
    out = Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
    if mirrored: out = ImageOps.mirror(out)
    pad = max(map(abs, shift), default=0)
    out = ImageOps.expand(out, border=pad, fill=0)
    return np.asarray(out.crop((pad + shift[1], pad + shift[0], pad + shift[1] + size[1], pad + shift[0] + size[0])))


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(-6, 6), st.integers(-6, 6), st.booleans(), st.integers(0, 99))
def test_as_pillow_resizes_mirrors_and_shifts(h, w, height, width, down, right, mirrored, seed):
    image, size = picture(h, w, seed), (height, width)
    rows = output_positions(height, torch.tensor([down]))
    columns = output_positions(width, torch.tensor([right]), torch.tensor([mirrored]))
    ours = resample_images(tensors([image]), *axes([[h, w]], rows, columns))[0].permute(1, 2, 0)*255
    theirs = by_pillow(image, size, (down, right), mirrored)
    assert np.abs(ours.numpy() - theirs).max() <= 1.05  # Pillow rounds to whole grey levels after each of two passes
    assert np.abs(ours.numpy() - theirs).mean() <= .5


@settings(deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(-6, 6), st.integers(-6, 6), st.booleans(), st.integers(0, 99))
def test_labels_are_pillows_nearest(h, w, height, width, down, right, mirrored, seed):
    mask, size = labels(h, w, seed), (height, width)
    rows = output_positions(height, torch.tensor([down]))
    columns = output_positions(width, torch.tensor([right]), torch.tensor([mirrored]))
    ours = resample_labels(torch.from_numpy(mask)[None], *axes([[h, w]], rows, columns))[0].numpy()
    theirs = by_pillow(mask, size, (down, right), mirrored, nearest=True)
    assert (ours == theirs).all()
    assert ours.dtype == np.int64
    assert set(np.unique(ours)) <= {0, *np.unique(mask)}


@pytest.mark.parametrize('original', [(128, 64), (64, 32), (256, 128), (384, 192), (60, 30)])
@pytest.mark.parametrize('size', [(128, 64), (384, 192), (256, 128)])
def test_the_usual_sizes_are_exact_in_the_mask(original, size):
    mask = labels(*original)
    ours = resample_labels(torch.from_numpy(mask)[None], *still([original], size))[0].numpy()
    assert (ours == by_pillow(mask, size, (0, 0), False, nearest=True)).all()


def test_equal_size_changes_nothing():
    image, mask = picture(32, 16), labels(32, 16)
    ours = resample_images(tensors([image]), *still([[32, 16]], (32, 16)))
    assert torch.equal((ours*255).round().to(torch.uint8), tensors([image]))
    assert (resample_labels(torch.from_numpy(mask)[None], *still([[32, 16]], (32, 16)))[0].numpy() == mask).all()


def test_weights_add_up_to_one_and_skip_no_pixel():
    weights = bilinear_weights(torch.tensor([40, 7]), torch.tensor([10, 10]), 48, 10)
    assert torch.allclose(weights.sum(2), torch.ones(2, 10))
    assert (weights[0, :, :40].sum(0) > .15).all()
    assert (weights[0, :, 40:] == 0).all()
    assert (weights[1, :, 7:] == 0).all()


def test_mixed_sizes_are_as_each_alone():
    sizes = [(20, 10), (33, 9), (20, 10), (7, 40)]
    images = [np.concatenate([picture(*s, i).transpose(2, 0, 1), labels(*s, i)[None]]) for i, s in enumerate(sizes)]
    canvas, heights = on_one_canvas(images)
    rows = output_positions(16, torch.tensor([0, 2, -3, 0]))
    columns = output_positions(16, torch.tensor([1, 0, 0, -5]), torch.tensor([True, False, True, False]))
    pictures = resample_images(canvas[:, :3], *axes(heights, rows, columns))
    masks = resample_labels(canvas[:, 3], *axes(heights, rows, columns))
    for i, one in enumerate(images):
        alone, size = on_one_canvas([one])
        assert torch.allclose(resample_images(alone[:, :3], *axes(size, rows[i:i+1], columns[i:i+1]))[0], pictures[i],
                              atol=1e-5)
        assert torch.equal(resample_labels(alone[:, 3], *axes(size, rows[i:i+1], columns[i:i+1]))[0], masks[i])


def test_a_missing_mask_stays_missing_to_its_last_pixel():
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1] = NO_MASK
    rows = output_positions(16, torch.tensor([5, 5]))
    columns = output_positions(16, torch.tensor([-5, -5]))
    out = resample_labels(masks, *axes([[8, 8]]*2, rows, columns))
    assert (out[0] == 0).all()
    assert (out[1] == NO_MASK).all()


def test_half_precision_around_it_changes_nothing():
    pixels = tensors([picture(40, 20)])
    plain = resample_images(pixels, *still([[40, 20]], (64, 32)))
    with torch.autocast('cpu', dtype=torch.bfloat16): inside = resample_images(pixels, *still([[40, 20]], (64, 32)))
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)


# --- loaders with a cache beside loaders without: the same data, the same statistics, the same use

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)
STILL = dict(pad=0, flip=0., erase=0.)
GREY = 1/(255*.225)  # a grey level after normalisation


def same_batches(a, b):
    for one, other in zip(a, b, strict=True):
        assert [type(o) for o in one] == [type(o) for o in other]
        assert [o.dtype for o in one] == [o.dtype for o in other]
        assert one[0].shape == other[0].shape
        assert (one[0] - other[0]).abs().max() <= 1.05*GREY
        assert all(torch.equal(o, p) for o, p in zip(one[1:], other[1:]))


@pytest.fixture
def mixed(small, tmp_path):
    "Every picture at a size of its own, a third without masks; all sizes have their own masks"
    mixed = small.copy()
    for i, row in enumerate(mixed.itertuples()):
        size = (40 + i % 7, 90 + i % 11)
        path, mask = tmp_path/f'{i}.png', tmp_path/f'{i}_mask.png'
        Image.open(row.path).resize(size).save(path)
        Image.open(row.mask).resize(size, Image.Resampling.NEAREST).save(mask)
        mixed.loc[i, ['path', 'mask']] = str(path), None if i % 3 == 0 else str(mask)
    return mixed


@pytest.mark.parametrize('size', [(64, 32), *(pytest.param(s, marks=pytest.mark.slow) for s in ((128, 64), (192, 96)))])
def test_without_augmentation_both_ways_give_the_same(small, size, tmp_path):
    plain = ReIDDataLoaders.from_df(small, **{**SMALL, 'size': size}, **STILL)
    for cache in ('ram', tmp_path):
        fast = ReIDDataLoaders.from_df(small, cache=cache, **{**SMALL, 'size': size}, **STILL)
        same_batches(fast.valid, plain.valid)
        if size == (64, 32):
            for _ in range(2): same_batches(fast.train, plain.train)  # epochs differ, and both in the same way
            plain.train.epoch = 0


def test_mixed_sizes_and_missing_masks(mixed):
    plain, fast = (ReIDDataLoaders.from_df(mixed, cache=c, **SMALL, **STILL) for c in (None, 'ram'))
    same_batches(fast.valid, plain.valid)
    same_batches(fast.train, plain.train)
    assert plain.masks_found == fast.masks_found < 1
    mask = fast.one_batch()[1]
    missing = (mask == NO_MASK).flatten(1)
    assert missing.any()
    assert (missing.all(1) == missing.any(1)).all()


def test_the_outside_is_the_same(small):
    dls = ReIDDataLoaders.from_df(small, cache='ram', **SMALL)
    x, mask, identity = dls.one_batch()
    assert (type(x), type(mask), type(identity)) == (TensorImage, TensorPartMask, TensorIdentity)
    assert dls.n_inp == 1
    assert dls.c == len(dls.vocab) == small[small.split == 'train'].pid.nunique()
    assert dls.masks_found == 1
    assert isinstance(dls.train, PixelBatches)
    assert {'path', 'pid'} <= set(dls.train_ds.items)
    assert len(dls.train_ds[0]) == 3
    assert sorted(identity.label.bincount()[identity.label.unique()].tolist()) == [2]*4
    assert next(iter(dls.train.new(n_per_id=4)))[2].label.unique().numel() == 2


def test_every_reader_takes_a_cache(walkers_root, tmp_path):
    dls = ReIDDataLoaders.from_market1501(walkers_root, cache=tmp_path, size=(64, 32), bs=8, n_per_id=2)
    assert dls.train.fake_l.num_workers == 0
    assert list(tmp_path.iterdir())


def moved(cache, tmp_path):
    "Shifts, mirrorings and erasings seen in 60 epochs of images with one white pixel left of their middle"
    rows = []
    for i in range(10):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[16, 10] = 255
        Image.fromarray(picture).save(tmp_path/f'{i}.png')
        mask = np.zeros((32, 32), np.uint8)
        mask[16, 10] = 5
        Image.fromarray(mask).save(tmp_path/f'{i}m.png')
        rows.append(dict(path=str(tmp_path/f'{i}.png'), mask=str(tmp_path/f'{i}m.png'), pid=i//2, camid=i % 2,
                         split='train' if i < 8 else ['query', 'gallery'][i % 2]))
    dls = ReIDDataLoaders.from_df(pd.DataFrame(rows), cache=cache, size=(32, 32), bs=8, n_per_id=2, num_workers=0,
                                  pad=2, seed=3)
    random.seed(0)
    x, mask, _ = (torch.cat(o).as_subclass(torch.Tensor) for o in zip(*[b for _ in range(60) for b in dls.train]))
    at = (mask == 5).nonzero()
    assert len(at) == len(x), 'the shift never pushes it out'
    there = x[at[:, 0], :, at[:, 1], at[:, 2]]  # (n,3)
    white, erased = (there == x.amax((2, 3))).all(1), (there == 0).all(1)
    assert (white | erased).all(), 'image and mask move alike, but for what is erased'
    left = at[:, 2] < 16
    column = torch.where(left, at[:, 2] - 10, 21 - at[:, 2])
    return dict(down=torch.stack([(at[:, 1] - 16 == s).float().mean() for s in range(-2, 3)]),
                across=torch.stack([(column == s).float().mean() for s in range(-2, 3)]), left=left.float().mean(),
                erased=(x == 0).all(1).flatten(1).any(1).float().mean(), area=(x == 0).all(1).float().mean())


@pytest.mark.slow
def test_with_augmentation_both_ways_have_the_same_statistics(tmp_path):
    plain, fast = moved(None, tmp_path), moved('ram', tmp_path)
    for key, value in plain.items():
        assert torch.allclose(value, fast[key], atol=.09 if key != 'area' else .03), (key, value, fast[key])
    for key in ('down', 'across'):
        assert (fast[key] > .1).all()
        assert abs(fast[key].sum() - 1) < 1e-5
    assert .43 < fast['left'] < .57
    assert .43 < fast['erased'] < .57


@pytest.mark.slow
def test_draws_belong_to_the_seed_and_to_nobody_else(small):
    streams = []
    for elsewhere, seed in enumerate((1, 1, 2)):
        dls = ReIDDataLoaders.from_df(small, cache='ram', seed=seed, **SMALL)
        for set_seed in (random.seed, torch.manual_seed, np.random.seed): set_seed(elsewhere)
        state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
        b = dls.train.do_batch(dls.train.get_idxs()[:8])
        FitBatch(Preprocessing((32, 16)))(b, split_idx=0)
        assert (numpy_state == np.random.get_state()[1]).all()
        assert state == random.getstate()
        identities, pixels = zip(*[(b[2], b[0]) for b in dls.train])
        streams.append((torch.cat(identities), torch.cat(pixels)))
    assert torch.equal(streams[0][1], streams[1][1])
    assert not torch.equal(streams[0][1], streams[2][1])
    plain = ReIDDataLoaders.from_df(small, seed=1, **SMALL)
    plain.train.epoch = 1
    assert torch.equal(streams[0][0],
                       torch.cat([b[2] for b in plain.train])), 'same people in the same batches as without a cache'


def test_the_generators_state_travels():
    resize = FitBatch(Preprocessing((32, 16)), pad=4, seed=5)
    resize._draw(3, True)
    copies = resize, pickle.loads(pickle.dumps(resize)), deepcopy(resize)
    draws = [torch.cat(t._draw(8, True), 1) for t in copies]
    assert all(torch.equal(draws[0], d) for d in draws)
    assert not torch.equal(draws[0], torch.cat(resize._draw(8, True), 1))
    assert torch.equal(resize._draw(2, False)[0][0], torch.arange(32))


def test_workers_give_the_same(small):
    kwargs = {**SMALL, 'num_workers': 2}
    same_batches(ReIDDataLoaders.from_df(small, cache='ram', **kwargs).valid,
                 ReIDDataLoaders.from_df(small, cache='ram', **SMALL).valid)


def test_looking_at_a_batch(small):
    import magnifier.look.show  # noqa: F401, gives loaders their picture
    dls = ReIDDataLoaders.from_df(small, cache='ram', **SMALL)
    before = dls.train.after_batch[0].generator.get_state()
    picture = dls.show_batch(max_n=4)
    assert picture is not None
    assert torch.equal(before, dls.train.after_batch[0].generator.get_state())
    assert dls.train.epoch == 0
    shown = dls.show_batch(max_n=3, show=False, unique=True)[2]
    assert len(shown) == 3
    assert len({str(s[2]) for s in shown}) == 1
    assert not torch.equal(shown[0][0], shown[1][0])
    x = dls.valid.one_batch()
    original = np.asarray(Image.open(dls.valid_ds.items.path.iat[0]).resize((32, 64), Image.Resampling.BILINEAR))
    decoded = dls.valid.decode_batch(x, max_n=1)[0]
    assert np.abs(decoded[0].permute(1, 2, 0).numpy() - original).max() <= 2
    assert str(decoded[2]).startswith('id ')


def test_pictures_from_elsewhere(small):
    fast, plain = (ReIDDataLoaders.from_df(small, cache=c, **SMALL) for c in ('ram', None))
    table, paths = small[small.split == 'query'], small.path[:3].tolist()
    for kwargs in (dict(), dict(with_labels=True)):
        same_batches(fast.test_dl(table, **kwargs), plain.test_dl(table, **kwargs))
    bare = table.assign(mask=None)
    same_batches(fast.test_dl(bare, with_labels=True), plain.test_dl(bare, with_labels=True))
    pictures = [read_image(p) for p in paths]
    for images in (paths, pd.DataFrame(dict(path=pictures))):
        x, = fast.test_dl(images).one_batch()
        assert x.shape == (3, 3, 64, 32)
        assert type(x) is TensorImage
        same_batches([(x,)], [plain.test_dl(images).one_batch()])
    assert fast.test_dl(paths).pixels is None
    assert fast.valid.new().pixels is fast.valid.pixels


def test_other_transforms(small):
    with pytest.raises(ValueError, match='item_tfms change one image at a time'):
        ReIDDataLoaders.from_df(small, cache='ram', item_tfms=[Resize((32, 16))], **SMALL)
    for tfms in ([], None):
        x = ReIDDataLoaders.from_df(small, cache='ram', batch_tfms=tfms, **SMALL).one_batch()[0]
        assert bool(0 <= x.min() and x.max() <= 1) is (tfms is not None)
    with pytest.raises(ValueError, match='multiples of 16'):
        ReIDDataLoaders.from_df(small, cache='ram', **{**SMALL, 'size': (100, 50)})
    with pytest.raises(ValueError, match="cache='rma'"): ReIDDataLoaders.from_df(small, cache='rma', **SMALL)


def test_what_is_wrong_with_a_file_is_said_with_its_name(small, tmp_path):
    broken = small.copy()
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    broken.loc[broken.index[-1], 'path'] = str(tmp_path/'broken.jpg')
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'):
        ReIDDataLoaders.from_df(broken, cache='ram', **SMALL)
    dls = ReIDDataLoaders.from_df(small, cache='ram', **SMALL)
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'): list(dls.test_dl(broken))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path/'tiny.png')
    wrong = small.assign(mask=[str(tmp_path/'tiny.png'), *small['mask'][1:]])
    with pytest.raises(ValueError, match='tiny.png: mask of 4 x 4 pixels'):
        ReIDDataLoaders.from_df(wrong, cache=tmp_path, **SMALL)


@pytest.mark.slow
def test_a_learner_trains_predicts_in_order_and_travels(small, tmp_path):
    from fastai.vision.all import load_learner
    from magnifier.train.learner import magnifier_learner
    dls = ReIDDataLoaders.from_df(small, path=tmp_path, cache='ram', **SMALL)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        preds, targets = learn.get_preds(ds_idx=1)
        assert targets[1][:, 1].tolist() == dls.valid_ds.items.pid.tolist()
        figures = learn.evaluate()
        assert torch.allclose(learn.embed(small.path[:5].tolist()), learn.embed(small[:5]), atol=1e-5)
        learn.export('fast.pkl')
    assert len(learn.dls.train.pixels) == len(learn.dls.train_ds), 'the learner that exports keeps its data'
    loaded = load_learner(tmp_path/'fast.pkl')
    with loaded.no_bar(), loaded.no_logging():
        assert np.allclose(loaded.evaluate(small[small.split != 'train']), figures)
    assert loaded.dls.valid.pixels is None, 'no data travels'
