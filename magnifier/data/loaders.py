"ReIDDataLoaders: from a catalog, or straight from a data set's folder, to (image, mask, identity) batches"

from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import AddMaskCodes, DataLoaders, IntToFloatTensor, ToTensor, delegates, listify

from magnifier.checks import refuse
from magnifier.data.batches import IdentityBatches
from magnifier.data.block import ReIDDataBlock, SameSize
from magnifier.data.catalog import validate_catalog
from magnifier.data.images import as_images
from magnifier.data.own_sets import catalog_csv, identity_folders
from magnifier.data.pixels import FitBatch, PixelBatches, cache_pixels
from magnifier.data.preprocess import Preprocessing
from magnifier.data.readers import market1501
from magnifier.data.transforms import FitImage, NormalizeInPlace, batch_transforms, item_transforms

__all__ = ['ReIDDataLoaders']

# Transforms that prepare no pixel of an image, so that `Preprocessing` need not know them
NEUTRAL = (AddMaskCodes, SameSize, ToTensor, IntToFloatTensor)


class ReIDDataLoaders(DataLoaders):
    """Training batches of P identities x M images; validation is query and gallery together, told apart by the
    identity's role column"""

    @classmethod
    def from_df(cls,
        catalog: pd.DataFrame,  # One row an image: `path`, `mask` (path or missing), `pid`, `camid`, `split`
        *,
        path: str | Path = '.',  # Where a learner made from this writes its models
        size: tuple[int, int] = (384, 192),  # Height and width in pixels, multiples of 16 (paper, section 4.1)
        fit: str = 'squish',  # 'squish' images to the size, or 'pad' them: their aspect ratio is kept, on black
        bs: int = 64,  # Images a training batch: P = bs // n_per_id identities
        n_per_id: int = 4,  # M: images of an identity in a batch
        val_bs: int | None = None,  # Images a validation batch; None for 2 x bs
        pad: int | None = None,  # Pixels of random shift; None: 10 (the baseline's), less where images are narrow
        flip: float = 0.5,  # Probability of a flip
        erase: float = 0.5,  # Probability of random erasing, per image
        cache: str | Path | None = None,  # 'ram', 'disk' or a folder (Path): images are decoded once
        item_tfms=None,  # Replaces size, flip and crop by transforms of one's own; not with a cache
        batch_tfms=None,  # Replaces normalisation and erasing
        vocab: list | None = None,  # Training identities in class order; None takes the sorted ones
        seed: int = 0,  # Seed of the identity batches and of the erasing
        num_workers: int | None = None,  # Loader processes; None for fastai's choice, with a cache 0
        device=None,  # Where batches go; None for the GPU, where there is one
    ):  # Loaders: `train` and `valid`; `c` is the number of training identities, `vocab` their pids
        """Loaders over any catalog; a ValueError says why a catalog cannot be used.

        Without a cache, Pillow decodes and augments each image separately. With a cache, the batches are the same up to
        rounding and several times faster to load; it needs 4 bytes for each pixel of the originals (`cache_pixels` says
        when its file is used again)."""
        catalog = validate_catalog(catalog, ('train',)).reset_index(drop=True)
        _check(catalog, size, cache, item_tfms)
        preprocessing = Preprocessing(tuple(size), fit)
        if pad is None: pad = min(10, round(10*size[1]/128))
        batch_tfms = batch_transforms(preprocessing, erase, seed) if batch_tfms is None else listify(batch_tfms)
        if device is not None: device = torch.device(device)
        kwargs = dict(path=path, bs=bs, val_bs=val_bs or 2*bs, device=device)
        each = [dict(n_per_id=n_per_id, seed=seed), dict(n_per_id=None)]  # Arguments of the two loaders
        if cache is None:
            if item_tfms is None: item_tfms = item_transforms(preprocessing, pad, flip)
            block = ReIDDataBlock(item_tfms, batch_tfms, vocab, IdentityBatches)
            dls = block.dataloaders(catalog, num_workers=num_workers, dl_kwargs=each, **kwargs)
        else:
            batch_tfms = [FitBatch(preprocessing, pad, flip, seed), *batch_tfms]
            dls = _from_pixels(catalog, cache, vocab, batch_tfms, each, num_workers=num_workers or 0, **kwargs)
        return cls(*dls.loaders, path=path, device=dls.device)

    @classmethod
    def from_reader(cls,
        reader,  # A reader of data sets, such as `market1501`, or any function that gives a catalog
        path: str | Path,  # The data set's folder, or what the reader's first parameter says
        **kwargs  # The reader's arguments and those of `from_df`; a seed goes to both
    ):
        "Loaders over the catalog that a reader gives"
        known = set(list(signature(reader).parameters)[1:])
        reading = {k: v for k, v in kwargs.items() if k in known}
        loading = {k: v for k, v in kwargs.items() if k not in known or k == 'seed'}
        return cls.from_df(reader(path, **reading), **loading)

    @classmethod
    @delegates(from_df)
    def from_market1501(cls,
        path: str | Path,  # Root of Market-1501, or of any set with its layout and names
        **kwargs  # Of `market1501` and `from_df`
    ):
        "Loaders over what `market1501` reads"
        return cls.from_reader(market1501, path, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_identity_folders(cls,
        path: str | Path,  # A folder with a folder an identity
        **kwargs  # Of `identity_folders` and `from_df`
    ):
        "Loaders over what `identity_folders` reads"
        return cls.from_reader(identity_folders, path, **kwargs)

    @classmethod
    @delegates(from_df)
    def from_catalog_csv(cls,
        path: str | Path,  # A CSV file, one row an image
        **kwargs  # Of `catalog_csv` and `from_df`
    ):
        "Loaders over what `catalog_csv` reads"
        return cls.from_reader(catalog_csv, path, **kwargs)

    @classmethod
    def without_images(cls,
        preprocessing: Preprocessing,  # What is done to the images that come later
        classes: list,  # Training identities in class order
    ):  # Empty loaders, as fastai's `load_learner` has them, whose `test_dl` prepares images
        "Loaders without images, for a model that only embeds"
        blank = np.zeros((16, 16, 3), np.uint8)  # fastai looks at one item to know what a batch is
        catalog = pd.DataFrame(dict(path=[blank, blank], pid=classes[0], camid=0, split=['train', 'query']))
        items, batches = item_transforms(preprocessing, pad=0, flip=0), batch_transforms(preprocessing, erase=0)
        return cls(*ReIDDataBlock(items, batches, vocab=classes).dataloaders(catalog, bs=64).loaders).new_empty()

    def test_dl(self,
        test_items,  # A catalog, or whatever `read_image` takes: one image or many
        rm_type_tfms=None,  # As in fastai
        with_labels: bool = False,  # Whether batches hold masks and identities too; of a catalog
        **kwargs  # As in fastai: bs, num_workers, ...
    ):
        "Loader of other images, with the validation transforms, in the order given"
        if not isinstance(test_items, pd.DataFrame):
            test_items = pd.DataFrame({'path': pd.Series(list(as_images(test_items)), dtype=object)})
        refuse({'no images: give at least one path, image or catalog row': not len(test_items)})
        return super().test_dl(test_items, rm_type_tfms=rm_type_tfms, with_labels=with_labels, **kwargs)

    @property
    def preprocessing(self) -> Preprocessing:
        "How images are prepared in validation; see `preprocessing_of`"
        return preprocessing_of(self)

    @property
    def masks_found(self) -> float:
        "Share of the training images that have a part mask, 0 to 1; 1 if there are no images"
        items = self.train_ds.items
        if not len(items): return 1.
        return float(items['mask'].notna().mean()) if 'mask' in items else 0.

    def __repr__(self):
        parts = [f'{name}: {_summary(loader.dataset.items)}' for name, loader in zip(('train', 'valid'), self.loaders)]
        try: parts.append('{} x {} pixels'.format(*self.preprocessing.size))
        except ValueError: parts.append('transforms of your own')
        return f'ReIDDataLoaders({"; ".join(parts)})'


def _check(catalog, size, cache, item_tfms):
    refuse({
        'the catalog has no query and gallery: nothing to evaluate on; give some identities those splits':
            (catalog.split == 'train').all(),
        'item_tfms change one image at a time, and a cache makes whole batches: leave out the cache, or write them as '
        'batch_tfms': cache is not None and item_tfms is not None,
        f'size={tuple(size)}: give height and width in multiples of 16, the stride of the feature map, such as '
        '(384, 192)': len(size) != 2 or any(s <= 0 or s % 16 for s in size)})


def preprocessing_of(
    dls,  # Loaders, of this package's class or fastai's
) -> Preprocessing:
    "How loaders prepare an image in validation; a ValueError names a custom transform, which no file can describe"
    fit = normalise = None
    for tfm in [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]:
        if tfm.split_idx == 0 or isinstance(tfm, NEUTRAL): continue  # 0: in training alone
        if isinstance(tfm, (FitImage, FitBatch)): fit = tfm.preprocessing
        elif isinstance(tfm, NormalizeInPlace): normalise = tfm.preprocessing
        else:
            raise ValueError(f'{type(tfm).__name__} is a custom transform, which another program cannot repeat: '
                             'build the loaders without your own item_tfms and batch_tfms')
    refuse({'the loaders do not resize and normalise: build them by ReIDDataLoaders': not fit or not normalise})
    return replace(fit, mean=normalise.mean, std=normalise.std)


def _summary(items):
    if not len(items): return 'no images'
    return f'{len(items):,} images of {items["pid"].nunique():,} identities by {items["camid"].nunique():,} cameras'


def _from_pixels(catalog, cache, vocab, batch_tfms, each, **kwargs):
    "Loaders over decoded originals, with the same datasets as the loaders without a cache"
    block = ReIDDataBlock(vocab=vocab)
    dsets = block.datasets(catalog)
    pixels = cache_pixels(catalog, cache)
    each = [{**kw, 'pixels': [pixels[i] for i in split]} for kw, split in zip(each, dsets.splits)]
    return dsets.dataloaders(after_item=block.item_tfms, after_batch=batch_tfms, dl_type=PixelBatches,
                             dl_kwargs=each, **kwargs)
