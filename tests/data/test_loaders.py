"Loaders from any catalog and from a folder; what cannot be trained on is refused at the door"
import inspect

import pytest
import torch
from magnifier.data import readers
from magnifier.data.batches import IdentityBatches
from magnifier.data.loaders import ReIDDataLoaders

SMALL = dict(size=(64, 32), bs=8, n_per_id=2, num_workers=0)


def test_from_a_folder_and_from_its_catalog_are_the_same(walkers_root, catalog):
    a, b = ReIDDataLoaders.from_market1501(walkers_root, **SMALL), ReIDDataLoaders.from_df(catalog, **SMALL)
    assert isinstance(a, ReIDDataLoaders) and isinstance(a.train, IdentityBatches) and a.c == b.c
    assert torch.equal(next(iter(a.valid))[0], next(iter(b.valid))[0])
    assert a.train.get_idxs() == b.train.get_idxs()


def test_every_reader_has_its_loaders_and_their_arguments_show():
    for name in readers.__all__:
        method = getattr(ReIDDataLoaders, f'from_{name}')
        assert method.__doc__ and method.__name__ == f'from_{name}'
        assert {'size', 'bs', *list(inspect.signature(getattr(readers, name)).parameters)[1:]} <= set(inspect.signature(method).parameters)


def test_unknown_arguments_are_refused(walkers_root):
    with pytest.raises(TypeError, match='sise'): ReIDDataLoaders.from_market1501(walkers_root, sise=(64, 32))


def test_batches_hold_p_identities_times_m(dls):
    for _, _, identity in dls.train:
        assert sorted(identity.label.bincount()[identity.label.unique()].tolist()) == [2]*4


def test_masks_found(dls, catalog):
    assert dls.masks_found == 1
    bare = catalog.assign(mask=None)
    assert ReIDDataLoaders.from_df(bare, **SMALL).masks_found == 0
    assert ReIDDataLoaders.from_df(bare.drop(columns='mask').assign(mask=None), **SMALL).one_batch()[1].unique().tolist() == [255]


@pytest.mark.parametrize('size', [(100, 64), (64,), (0, 16), (-16, 16)])
def test_sizes_off_the_grid_are_refused(catalog, size):
    with pytest.raises(ValueError, match='multiples of 16'): ReIDDataLoaders.from_df(catalog, **{**SMALL, 'size': size})


@pytest.mark.parametrize('splits, message', [(('query', 'gallery'), 'train'), (('train',), 'no query and gallery')])
def test_catalogs_without_a_half_are_refused(catalog, splits, message):
    with pytest.raises(ValueError, match=message): ReIDDataLoaders.from_df(catalog[catalog.split.isin(splits)], **SMALL)


def test_an_image_that_does_not_decode_is_named(catalog, tmp_path):
    broken = catalog.copy()
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    broken.loc[broken.index[broken.split == 'query'][0], 'path'] = str(tmp_path/'broken.jpg')
    dls = ReIDDataLoaders.from_df(broken, **SMALL)
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'): list(dls.valid)


def test_own_transforms_replace_the_usual_ones(catalog):
    from fastai.vision.all import Resize
    x = ReIDDataLoaders.from_df(catalog, item_tfms=[Resize((32, 16), method='squish')], batch_tfms=[], **SMALL).one_batch()[0]
    assert x.shape[-2:] == (32, 16) and 0 <= x.min() and x.max() <= 1
