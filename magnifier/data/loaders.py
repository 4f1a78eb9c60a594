"ReIDDataLoaders: from a catalog, or straight from a data set's folder, to (image, mask, identity) batches"
import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import AddMaskCodes, DataLoaders, IntToFloatTensor, ToTensor, listify
from magnifier.data import readers
from magnifier.data.batches import IdentityBatches
from magnifier.data.block import ReIDDataBlock, SameSize
from magnifier.data.cache import cache_pixels
from magnifier.data.catalog import validate_catalog
from magnifier.data.pixel_batches import FitBatch, PixelBatches
from magnifier.data.preprocess import Preprocessing
from magnifier.data.transforms import FitImage, NormalizeInPlace, batch_transforms, item_transforms

__all__ = ['ReIDDataLoaders', 'preprocessing_of']

NEUTRAL = (AddMaskCodes, SameSize, ToTensor, IntToFloatTensor)  # change a type, or a mask: no step of `Preprocessing`


class ReIDDataLoaders(DataLoaders):
    "Training batches of P identities x M images; validation is query and gallery together, told apart by the identity's role column"

    @classmethod
    def from_df(cls,
        catalog:pd.DataFrame,   # One row an image: `path`, `mask` (path or missing), `pid`, `camid`, `split`
        *,
        path='.',               # Where a learner made from this writes its models
        size:tuple=(384, 192),  # Height and width in pixels, multiples of 16 (paper, section 4.1)
        bs:int=64,              # Images a training batch: P = bs // n_per_id identities
        n_per_id:int=4,         # M: images of an identity in a batch
        val_bs:int|None=None,   # Images a validation batch; None for 2 x bs
        fit:str='squish',       # 'squish' to the size, or 'pad' to it: the aspect ratio is kept, on black
        pad:int|None=None,      # Pixels of random shift; None for the baseline's 10, and less where images are narrower than 128
        flip:float=0.5,         # Probability of a flip
        erase:float=0.5,        # Probability of random erasing, per image
        cache=None,             # 'ram', 'disk' or a folder (Path): originals decoded once, and whole batches augmented on `device`
        item_tfms=None,         # Replaces size, flip and crop by transforms of one's own; not with a cache
        batch_tfms=None,        # Replaces normalisation and erasing
        vocab=None,             # Training identities in class order; None takes the sorted ones
        seed:int=0,             # Seed of the identity batches and of the erasing
        num_workers:int|None=None, # Loader processes; None for fastai's choice, with a cache 0
        device=None,            # Where batches go; None for the GPU, where there is one
    ):  # Loaders: `train` and `valid`; `c` is the number of training identities, `vocab` their pids
        """Loaders over any catalog; a ValueError says what is wrong with one that cannot be trained or evaluated on.

        Without a cache every picture is decoded and moved by itself (Pillow); with one the batches are the same to within rounding, several
        times faster, and hold as many bytes as 4 for each pixel of the originals (`cache_pixels` says when a file is used again)."""
        catalog = validate_catalog(catalog, ('train',)).reset_index(drop=True)
        if not (catalog.split != 'train').any():
            raise ValueError('the catalog has no query and gallery: nothing to evaluate on; give some identities those splits')
        preprocessing = Preprocessing(_checked_size(size), fit)
        if pad is None: pad = min(10, round(10*size[1]/128))
        batch_tfms = batch_transforms(preprocessing, erase, seed) if batch_tfms is None else listify(batch_tfms)
        kwargs = dict(path=path, bs=bs, val_bs=val_bs or 2*bs, device=None if device is None else torch.device(device))
        each = [dict(n_per_id=n_per_id, seed=seed), dict(n_per_id=None)]
        if cache is None:
            block = ReIDDataBlock(item_transforms(preprocessing, pad, flip) if item_tfms is None else item_tfms, batch_tfms, vocab, IdentityBatches)
            dls = block.dataloaders(catalog, num_workers=num_workers, dl_kwargs=each, **kwargs)
        else:
            if item_tfms is not None: raise ValueError('item_tfms change one picture at a time, and a cache makes whole batches: leave out '
                                                       'the cache, or write them as batch_tfms')
            dls = _from_pixels(catalog, cache, vocab, [FitBatch(preprocessing, pad, flip, seed), *batch_tfms], each, num_workers=num_workers or 0, **kwargs)
        return cls(*dls.loaders, path=path, device=dls.device)

    @classmethod
    def without_images(cls,
        preprocessing: Preprocessing,  # What is done to the images that come later
        classes: list,  # Training identities in class order
    ):  # Empty loaders, as fastai's `load_learner` has them, whose `test_dl` prepares images
        "Loaders of a model whose data are elsewhere"
        blank = np.zeros((16, 16, 3), np.uint8)  # fastai looks at one item to know what a batch is
        catalog = pd.DataFrame(dict(path=[blank, blank], pid=classes[0], camid=0, split=['train', 'query']))
        block = ReIDDataBlock(item_transforms(preprocessing, pad=0, flip=0), batch_transforms(preprocessing, erase=0), vocab=classes)
        return cls(*block.dataloaders(catalog, bs=64).loaders).new_empty()

    @property
    def preprocessing(self) -> Preprocessing:
        "What is done to an image in validation; see `preprocessing_of`"
        return preprocessing_of(self)

    @property
    def masks_found(self) -> float:
        "Share of the training images that have a part mask, 0 to 1; 1 where there are no images"
        items = self.train_ds.items
        if not len(items): return 1.
        return float(items['mask'].notna().mean()) if 'mask' in items else 0.


def preprocessing_of(
    dls,  # Loaders, of this package's class or fastai's
) -> Preprocessing:
    "What loaders do to an image in validation; a ValueError names a step of one's own, which no file can describe"
    fit = normalise = None
    for tfm in [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]:
        if tfm.split_idx == 0 or isinstance(tfm, NEUTRAL): continue  # 0: in training alone
        if isinstance(tfm, (FitImage, FitBatch)): fit = tfm.preprocessing
        elif isinstance(tfm, NormalizeInPlace): normalise = tfm.preprocessing
        else: raise ValueError(f'{type(tfm).__name__} is no step that another program could repeat: build the loaders without '
                               'item_tfms and batch_tfms of your own')
    if not fit or not normalise: raise ValueError('the loaders do not resize and normalise: build them by ReIDDataLoaders')
    return replace(fit, mean=normalise.mean, std=normalise.std)


def _checked_size(size):
    if len(size) != 2 or any(s <= 0 or s % 16 for s in size):
        raise ValueError(f'size={tuple(size)}: give height and width in multiples of 16, the stride of the feature map, '
                         'such as (384, 192)')
    return tuple(size)


def _from_pixels(catalog, cache, vocab, batch_tfms, each, **kwargs):
    "Loaders over decoded originals; the datasets are those of the loaders without a cache"
    block = ReIDDataBlock(vocab=vocab)
    dsets, pixels = block.datasets(catalog), cache_pixels(catalog, cache)
    each = [{**kw, 'pixels': [pixels[i] for i in split]} for kw, split in zip(each, dsets.splits)]
    return dsets.dataloaders(after_item=block.item_tfms, after_batch=batch_tfms, dl_type=PixelBatches, dl_kwargs=each, **kwargs)


def _from_reader(reader):
    "A classmethod that reads with `reader` and loads with `from_df`, each taking the arguments it knows"
    known = inspect.signature(reader).parameters
    def from_reader(cls,
        path,     # The data set's folder, or what the reader's first parameter says
        **kwargs  # The reader's arguments and those of `from_df`
    ):
        mine = {k: kwargs.pop(k) for k in list(kwargs) if k in known}
        return cls.from_df(reader(path, **mine), **kwargs)
    loading = [p for p in inspect.signature(ReIDDataLoaders.from_df).parameters.values() if p.kind is p.KEYWORD_ONLY]
    first, *rest = known.values()
    taken = set(known)  # its `path` is the data's; models go to the working directory, or where the learner's `path` says
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in rest]
    cls_parameter = inspect.Parameter('cls', inspect.Parameter.POSITIONAL_OR_KEYWORD)
    from_reader.__signature__ = inspect.Signature([cls_parameter, first, *own, *(p for p in loading if p.name not in taken)])
    from_reader.__name__ = f'from_{reader.__name__}'
    from_reader.__doc__ = f'Loaders over a folder read by `{reader.__name__}` (its arguments), batched by `from_df` (its arguments).'
    return classmethod(from_reader)


for _name in readers.__all__:
    setattr(ReIDDataLoaders, f'from_{_name}', _from_reader(getattr(readers, _name)))
