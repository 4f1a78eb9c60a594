"Loaders from any catalog and from a folder; what cannot be trained on is refused at the door"

import inspect
import io
import pickle
from multiprocessing import get_all_start_methods
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import get_image_files
from torch import multiprocessing

from magnifier.data.batches import IdentityBatches
from magnifier.data.images import read_image
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.preprocess import Preprocessing
from magnifier.data.readers import market1501

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)


def test_from_a_folder_and_from_its_catalog_are_the_same(walkers_root, catalog):
    a, b = ReIDDataLoaders.from_market1501(walkers_root, **SMALL), ReIDDataLoaders.from_df(catalog, **SMALL)
    assert isinstance(a, ReIDDataLoaders)
    assert isinstance(a.train, IdentityBatches)
    assert a.c == b.c
    assert torch.equal(next(iter(a.valid))[0], next(iter(b.valid))[0])
    assert a.train.get_idxs() == b.train.get_idxs()


def test_any_reader_gives_loaders(walkers_root, catalog):
    dls = ReIDDataLoaders.from_reader(market1501, walkers_root, masks=False, **SMALL)
    assert dls.masks_found == 0
    assert len(dls.train_ds) == (catalog.split == 'train').sum()
    assert ReIDDataLoaders.from_reader(lambda path, seed=0: catalog.assign(camid=catalog.camid + seed), '', seed=7,
                                       **SMALL).train.seed == 7


@pytest.mark.parametrize('method', ['from_market1501', 'from_identity_folders', 'from_catalog_csv'])
def test_what_the_loaders_take_is_seen_in_the_signature(method):
    assert {'path', 'size', 'fit', 'bs'} <= set(inspect.signature(getattr(ReIDDataLoaders, method)).parameters)


def test_unknown_arguments_are_refused(walkers_root):
    with pytest.raises(TypeError, match='sise'): ReIDDataLoaders.from_market1501(walkers_root, sise=(64, 32))


def test_batches_hold_p_identities_times_m(dls):
    for _, _, identity in dls.train:
        assert sorted(identity.label.bincount()[identity.label.unique()].tolist()) == [2]*4


def test_masks_found(dls, small):
    assert dls.masks_found == 1
    bare = small.assign(mask=None)
    assert ReIDDataLoaders.from_df(bare, **SMALL).masks_found == 0
    assert ReIDDataLoaders.from_df(bare.drop(columns='mask').assign(mask=None),
                                   **SMALL).one_batch()[1].unique().tolist() == [255]


@pytest.mark.parametrize('size', [(100, 64), (64,), (0, 16), (-16, 16)])
def test_sizes_off_the_grid_are_refused(small, size):
    with pytest.raises(ValueError, match='multiples of 16'): ReIDDataLoaders.from_df(small, **{**SMALL, 'size': size})


@pytest.mark.parametrize('splits, message', [(('query', 'gallery'), 'train'), (('train',), 'no query and gallery')])
def test_catalogs_without_a_half_are_refused(small, splits, message):
    with pytest.raises(ValueError, match=message): ReIDDataLoaders.from_df(small[small.split.isin(splits)], **SMALL)


def test_an_image_that_does_not_decode_is_named(small, tmp_path):
    broken = small.copy()
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    broken.loc[broken.index[broken.split == 'query'][0], 'path'] = str(tmp_path/'broken.jpg')
    dls = ReIDDataLoaders.from_df(broken, **SMALL)
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'): list(dls.valid)


def test_own_transforms_replace_the_usual_ones(catalog):
    from fastai.vision.all import Resize
    x = ReIDDataLoaders.from_df(catalog, item_tfms=[Resize((32, 16), method='squish')], batch_tfms=[],
                                **SMALL).one_batch()[0]
    assert x.shape[-2:] == (32, 16)
    assert 0 <= x.min()
    assert x.max() <= 1


@pytest.mark.parametrize('cache', [None, 'ram'])
def test_whatever_holds_an_image_is_tested_on(small, cache):
    dls = ReIDDataLoaders.from_df(small, cache=cache, **SMALL)
    paths = get_image_files(Path(small.path[0]).parent)[:3]
    expected = dls.preprocessing(list(paths))
    files = [Path(p).read_bytes() for p in paths]
    for images in (paths, [str(p) for p in paths], files, [read_image(p) for p in paths],
                   [np.asarray(read_image(p)) for p in paths],
                   [io.BytesIO(f) for f in files], pd.DataFrame(dict(path=[str(p) for p in paths])),
                   (p for p in paths)):
        x, = dls.test_dl(images).one_batch()
        assert np.abs(x.numpy() - expected).max() < 1.05/(255*.224), 'a grey level'
    assert len(list(dls.test_dl(paths[0]))) == 1
    with pytest.raises(ValueError, match='no images'): dls.test_dl([])
    with pytest.raises(TypeError, match='an image is a path'): dls.test_dl(3)


@pytest.mark.parametrize('cache', [None, 'ram'])
def test_padding_keeps_the_aspect_ratio(small, cache):
    "Images are 128 x 64: in 64 x 64 the middle half is theirs"
    dls = ReIDDataLoaders.from_df(small, cache=cache, fit='pad', pad=0, flip=0, erase=0, batch_tfms=[],
                                  **{**SMALL, 'size': (64, 64)})
    x, mask, _ = dls.one_batch()
    squished = ReIDDataLoaders.from_df(small, pad=0, flip=0, erase=0, batch_tfms=[], **SMALL).one_batch()
    assert not x[..., :16].any()
    assert not x[..., 48:].any()
    assert (x[..., 16:48] - squished[0]).abs().max() < 1.05/255
    assert torch.equal(mask[..., 16:48], squished[1])
    assert not mask[..., :16].any()


def test_padded_batches_are_the_same_with_and_without_a_cache(small):
    kwargs = dict(fit='pad', pad=0, flip=0, erase=0, **{**SMALL, 'size': (48, 64)})
    plain, fast = (ReIDDataLoaders.from_df(small, cache=cache, **kwargs) for cache in (None, 'ram'))
    assert plain.preprocessing == fast.preprocessing == Preprocessing((48, 64), 'pad')
    for a, b in zip(plain.valid, fast.valid, strict=True):
        assert (a[0] - b[0]).abs().max() < 1.05/(255*.224)
        assert torch.equal(a[1], b[1])
    images = small.path[:3].tolist()
    assert np.abs(plain.test_dl(images).one_batch()[0].numpy() - plain.preprocessing(images)).max() < 1e-5


@pytest.mark.parametrize('size, pad', [((384, 192), 10), ((256, 128), 10), ((128, 64), 5), ((64, 32), 2)])
def test_the_shift_is_in_proportion_to_the_size(small, size, pad):
    dls = ReIDDataLoaders.from_df(small, cache='ram', **{**SMALL, 'size': size})
    assert dls.train.after_batch[0].pad == pad


def test_loaders_say_what_they_hold(dls, catalog):
    text = repr(dls)
    train = catalog[catalog.split == 'train']
    assert '\n' not in text
    assert f'train: {len(train)} images of {train.pid.nunique()} identities by {train.camid.nunique()} cameras' in text
    assert text.endswith('64 x 32 pixels)')
    assert 'no images' in repr(ReIDDataLoaders.without_images(Preprocessing((64, 32)), [1, 2]))
    assert 'transforms of your own' in repr(ReIDDataLoaders.from_df(catalog, batch_tfms=[], **SMALL))


# --- loader processes that are not forked: everything in a loader pickles

def loaders(small, **kwargs):
    "Every kind of loader by its name, with a cache and without"
    found = {}
    for cache in (None, 'ram'):
        dls = ReIDDataLoaders.from_df(small, cache=cache, **SMALL | kwargs)
        found |= {f'train {cache}': dls.train, f'valid {cache}': dls.valid,
                  f'test {cache}': dls.test_dl(small.path[:20].tolist()),
                  f'labelled {cache}': dls.test_dl(small[:20], with_labels=True)}
    return found


def test_loaders_pickle(small):
    for name, loader in loaders(small, num_workers=0).items():
        again = pickle.loads(pickle.dumps(loader.fake_l)).d  # what a process is given
        assert len(again) == len(loader), name
        if 'valid' in name: assert torch.equal(again.one_batch()[0], loader.one_batch()[0]), name


@pytest.fixture(params=['spawn', 'forkserver'])
def start_method(request):
    "Processes start in this way"
    if request.param not in get_all_start_methods(): pytest.skip('not on this system')
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['train None', 'test None', 'labelled ram'])
def test_processes_that_are_not_forked_load_the_same(small, start_method, kind):
    here, there = loaders(small, num_workers=0)[kind], loaders(small, num_workers=1)[kind]
    batches = list(there)
    assert len(batches) == len(here)
    if kind.startswith('train'):  # moved at random, each in its own way: the same people in the same order
        here.epoch = there.epoch - 1
        assert torch.equal(torch.cat([b[2] for b in batches]), torch.cat([b[2] for b in here]))
    else:
        for a, b in zip(batches, here, strict=True): assert torch.equal(a[0], b[0])
