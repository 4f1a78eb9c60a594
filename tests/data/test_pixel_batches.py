"Loaders with a cache beside loaders without: the same data, the same statistics, the same use"
import random
from copy import deepcopy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Resize, TensorImage
from PIL import Image
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.data.images import read_image
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.preprocess import Preprocessing
from magnifier.data.pixels import PixelBatches, FitBatch
from magnifier.regions import NO_MASK

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)
STILL = dict(pad=0, flip=0., erase=0.)
GREY = 1/(255*.225)  # a grey level after normalisation


def same_batches(a, b):
    for one, other in zip(a, b, strict=True):
        assert [type(o) for o in one] == [type(o) for o in other] and [o.dtype for o in one] == [o.dtype for o in other]
        assert one[0].shape == other[0].shape and (one[0] - other[0]).abs().max() <= 1.05*GREY
        assert all(torch.equal(o, p) for o, p in zip(one[1:], other[1:]))


@pytest.fixture
def mixed(catalog, tmp_path):
    "Every picture at a size of its own, a third without masks; all sizes have their own masks"
    catalog = catalog.copy()
    for i, row in enumerate(catalog.itertuples()):
        size = (40 + i % 7, 90 + i % 11)
        path, mask = tmp_path/f'{i}.png', tmp_path/f'{i}_mask.png'
        Image.open(row.path).resize(size).save(path)
        Image.open(row.mask).resize(size, Image.Resampling.NEAREST).save(mask)
        catalog.loc[catalog.index[i], ['path', 'mask']] = str(path), None if i % 3 == 0 else str(mask)
    return catalog


@pytest.mark.parametrize('size', [(64, 32), (128, 64), (192, 96)])
def test_without_augmentation_both_ways_give_the_same(catalog, size, tmp_path):
    plain = ReIDDataLoaders.from_df(catalog, **{**SMALL, 'size': size}, **STILL)
    for cache in ('ram', tmp_path):
        fast = ReIDDataLoaders.from_df(catalog, cache=cache, **{**SMALL, 'size': size}, **STILL)
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
    assert missing.any() and (missing.all(1) == missing.any(1)).all()


def test_the_outside_is_the_same(catalog):
    dls = ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL)
    x, mask, identity = dls.one_batch()
    assert (type(x), type(mask), type(identity)) == (TensorImage, TensorPartMask, TensorIdentity) and dls.n_inp == 1
    assert dls.c == len(dls.vocab) == catalog[catalog.split == 'train'].pid.nunique() and dls.masks_found == 1
    assert isinstance(dls.train, PixelBatches)
    assert {'path', 'pid'} <= set(dls.train_ds.items)
    assert len(dls.train_ds[0]) == 3
    assert sorted(identity.label.bincount()[identity.label.unique()].tolist()) == [2]*4
    assert next(iter(dls.train.new(n_per_id=4)))[2].label.unique().numel() == 2


def test_every_reader_takes_a_cache(walkers_root, tmp_path):
    dls = ReIDDataLoaders.from_market1501(walkers_root, cache=tmp_path, size=(64, 32), bs=8, n_per_id=2)
    assert dls.train.fake_l.num_workers == 0 and list(tmp_path.iterdir())


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
    for key in ('down', 'across'): assert (fast[key] > .1).all() and abs(fast[key].sum() - 1) < 1e-5
    assert .43 < fast['left'] < .57 and .43 < fast['erased'] < .57


@pytest.mark.slow
def test_draws_belong_to_the_seed_and_to_nobody_else(catalog):
    streams = []
    for elsewhere, seed in enumerate((1, 1, 2)):
        dls = ReIDDataLoaders.from_df(catalog, cache='ram', seed=seed, **SMALL)
        for set_seed in (random.seed, torch.manual_seed, np.random.seed): set_seed(elsewhere)
        state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
        b = dls.train.do_batch(dls.train.get_idxs()[:8])
        FitBatch(Preprocessing((32, 16)))(b, split_idx=0)
        assert (numpy_state == np.random.get_state()[1]).all() and state == random.getstate()
        identities, pixels = zip(*[(b[2], b[0]) for b in dls.train])
        streams.append((torch.cat(identities), torch.cat(pixels)))
    assert torch.equal(streams[0][1], streams[1][1]) and not torch.equal(streams[0][1], streams[2][1])
    plain = ReIDDataLoaders.from_df(catalog, seed=1, **SMALL)
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


def test_workers_give_the_same(catalog):
    kwargs = {**SMALL, 'num_workers': 2}
    same_batches(ReIDDataLoaders.from_df(catalog, cache='ram', **kwargs).valid,
                 ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL).valid)


def test_looking_at_a_batch(catalog):
    import magnifier.look.show  # noqa: F401, gives loaders their picture
    dls = ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL)
    before = dls.train.after_batch[0].generator.get_state()
    picture = dls.show_batch(max_n=4)
    assert picture is not None
    assert torch.equal(before, dls.train.after_batch[0].generator.get_state())
    assert dls.train.epoch == 0
    shown = dls.show_batch(max_n=3, show=False, unique=True)[2]
    assert len(shown) == 3 and len({str(s[2]) for s in shown}) == 1 and not torch.equal(shown[0][0], shown[1][0])
    x = dls.valid.one_batch()
    original = np.asarray(Image.open(dls.valid_ds.items.path.iat[0]).resize((32, 64), Image.Resampling.BILINEAR))
    decoded = dls.valid.decode_batch(x, max_n=1)[0]
    assert np.abs(decoded[0].permute(1, 2, 0).numpy() - original).max() <= 2 and str(decoded[2]).startswith('id ')


def test_pictures_from_elsewhere(catalog):
    fast, plain = (ReIDDataLoaders.from_df(catalog, cache=c, **SMALL) for c in ('ram', None))
    table, paths = catalog[catalog.split == 'query'], catalog.path[:3].tolist()
    for kwargs in (dict(), dict(with_labels=True)):
        same_batches(fast.test_dl(table, **kwargs), plain.test_dl(table, **kwargs))
    bare = table.assign(mask=None)
    same_batches(fast.test_dl(bare, with_labels=True), plain.test_dl(bare, with_labels=True))
    pictures = [read_image(p) for p in paths]
    for images in (paths, pd.DataFrame(dict(path=pictures))):
        x, = fast.test_dl(images).one_batch()
        assert x.shape == (3, 3, 64, 32) and type(x) is TensorImage
        same_batches([(x,)], [plain.test_dl(images).one_batch()])
    assert fast.test_dl(paths).pixels is None and fast.valid.new().pixels is fast.valid.pixels


def test_other_transforms(catalog):
    with pytest.raises(ValueError, match='item_tfms change one image at a time'):
        ReIDDataLoaders.from_df(catalog, cache='ram', item_tfms=[Resize((32, 16))], **SMALL)
    for tfms in ([], None):
        x = ReIDDataLoaders.from_df(catalog, cache='ram', batch_tfms=tfms, **SMALL).one_batch()[0]
        assert bool(0 <= x.min() and x.max() <= 1) is (tfms is not None)
    with pytest.raises(ValueError, match='multiples of 16'):
        ReIDDataLoaders.from_df(catalog, cache='ram', **{**SMALL, 'size': (100, 50)})
    with pytest.raises(ValueError, match="cache='rma'"): ReIDDataLoaders.from_df(catalog, cache='rma', **SMALL)


def test_what_is_wrong_with_a_file_is_said_with_its_name(catalog, tmp_path):
    broken = catalog.copy()
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    broken.loc[broken.index[-1], 'path'] = str(tmp_path/'broken.jpg')
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'):
        ReIDDataLoaders.from_df(broken, cache='ram', **SMALL)
    dls = ReIDDataLoaders.from_df(catalog, cache='ram', **SMALL)
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'): list(dls.test_dl(broken))
    small = catalog.copy()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path/'small.png')
    small.loc[small.index[0], 'mask'] = str(tmp_path/'small.png')
    with pytest.raises(ValueError, match='small.png: mask of 4 x 4 pixels'):
        ReIDDataLoaders.from_df(small, cache=tmp_path, **SMALL)


@pytest.mark.slow
def test_a_learner_trains_predicts_in_order_and_travels(catalog, tmp_path):
    from fastai.vision.all import load_learner
    from magnifier.train.learner import magnifier_learner
    dls = ReIDDataLoaders.from_df(catalog, path=tmp_path, cache='ram', **SMALL)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        preds, targets = learn.get_preds(ds_idx=1)
        assert targets[1][:, 1].tolist() == dls.valid_ds.items.pid.tolist()
        figures = learn.evaluate()
        assert torch.allclose(learn.embed(catalog.path[:5].tolist()), learn.embed(catalog[:5]), atol=1e-5)
        learn.export('fast.pkl')
    assert len(learn.dls.train.pixels) == len(learn.dls.train_ds), 'the learner that exports keeps its data'
    loaded = load_learner(tmp_path/'fast.pkl')
    with loaded.no_bar(), loaded.no_logging():
        assert np.allclose(loaded.evaluate(catalog[catalog.split != 'train']), figures)
    assert loaded.dls.valid.pixels is None, 'no data travels'
