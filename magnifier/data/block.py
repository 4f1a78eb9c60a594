"The parts of a batch: image, part mask and identity as fastai blocks"

import numpy as np
from fastai.vision.all import (AddMaskCodes, CategoryMap, ColReader, DataBlock, DisplayedTransform, IndexSplitter,
                               IntToFloatTensor, ItemTransform, PILImage, PILMask, ShowTitle, Tensor, TensorBase,
                               TensorMask, TransformBlock, show_title)
from PIL import Image

from magnifier.data.images import check_same_size, read_image, read_mask
from magnifier.regions import NO_MASK, REGIONS

__all__ = ['TensorPartMask', 'TensorIdentity', 'ReIDDataBlock']

ROLES = ('train', 'query', 'gallery')  # the fourth column of a TensorIdentity is an index into these


class PILPerson(PILImage):
    "An image of a person"
    @classmethod
    def create(cls, source, **kwargs):
        "From anything that `read_image` takes, or a tensor (h,w,3)"
        if isinstance(source, Tensor): source = source.cpu().numpy()
        return cls(read_image(source))


class TensorPartMask(TensorMask):
    "Part labels, n x h x w integers: the regions 0..7, or 255 everywhere where an image has no mask"


class PILPartMask(PILMask):
    "A part mask as an image; a subclass of PILMask, so that every resize is nearest neighbour"
    @classmethod
    def create(cls, source, **kwargs):  # PILMask's own is bound to PILMask: inherited, it would build the wrong class
        "Mask from a path or labels (h,w); None gives one pixel of `NO_MASK`, which any resize keeps"
        if source is None: source = np.full((1, 1), NO_MASK, dtype=np.uint8)
        if isinstance(source, Image.Image): return cls(source)
        if isinstance(source, Tensor): source = source.cpu().numpy()
        is_file = not isinstance(source, np.ndarray)
        mask = cls(Image.fromarray((read_mask(source) if is_file else source).astype(np.uint8)))
        mask.source = source if is_file else None
        return mask


PILPerson._tensor_cls = PILImage._tensor_cls
PILPartMask._tensor_cls = TensorPartMask


class TensorIdentity(TensorBase):
    "Person, camera and role of n images, n x 4: class (-1 if not in training), pid, camid, role (index into `ROLES`)"
    label = property(lambda self: self[..., 0].as_subclass(Tensor))
    pid = property(lambda self: self[..., 1].as_subclass(Tensor))
    camid = property(lambda self: self[..., 2].as_subclass(Tensor))
    role = property(lambda self: self[..., 3].as_subclass(Tensor))


class IdentityTitle(ShowTitle, str):
    "An identity as a title over an image"
    _show_args = {'label': 'text'}
    def show(self, ctx=None, **kwargs):
        "Writes the title on a matplotlib axis, or beside other text"
        return show_title(str(self), ctx=ctx, **{**self._show_args, **kwargs})


class IdentityCategorize(DisplayedTransform):
    """[pid, camid, split] -> TensorIdentity; the classes are the training identities in ascending order, on
    every machine"""
    order = 1
    loss_func = None
    def __init__(self,
        vocab: list | None = None,  # Training identities in class order; None takes the sorted ones
    ): self.vocab = None if vocab is None else CategoryMap(vocab, sort=False)

    def setups(self, dsets):
        if self.vocab is None and dsets is not None:
            self.vocab = CategoryMap(sorted({int(o[0]) for o in dsets}), sort=False)
        self.c = len(self.vocab)

    def encodes(self, o):
        pid, camid, split = o
        return TensorIdentity([self.vocab.o2i.get(int(pid), -1), int(pid), int(camid), ROLES.index(split)])

    def decodes(self, o: TensorIdentity):
        label, pid, camid, role = o.tolist()
        if pid < 0: return IdentityTitle(f'like id {self.vocab[label]}')  # a prediction: no camera and no role
        return IdentityTitle(f'id {pid} cam {camid}' + ('' if role == 0 else f' {ROLES[role]}'))


# Getters are transforms: fastai wraps other callables in closures, which do not pickle for processes that are spawned
class _MaskColumn(DisplayedTransform):
    "A row's mask path, or None where it has none"
    def __call__(self, row, **kwargs):
        mask = row['mask'] if 'mask' in row else None
        return mask if isinstance(mask, str) else None


class _IdentityColumns(DisplayedTransform):
    "A row's [pid, camid, split]; a list, because fastai maps over tuples"
    def __call__(self, row, **kwargs): return [row['pid'], row['camid'], row['split']]


class SameSize(ItemTransform):
    "Refuses a mask of another size than its image"
    order = -10
    def encodes(self, item):
        if len(item) < 2 or not isinstance(item[1], PILPartMask): return item
        image, mask = item[:2]
        if mask.size == (1, 1): return item  # no mask
        check_same_size(mask.size, image.size, getattr(mask, 'source', 'a mask'))
        return item


def PersonBlock():
    "Block of the input: an image of a person"
    return TransformBlock(type_tfms=PILPerson.create, batch_tfms=IntToFloatTensor)


def PartMaskBlock():
    "Block of the first target: the part mask, or `NO_MASK` everywhere"
    item_tfms = [AddMaskCodes(codes=REGIONS), SameSize()]
    return TransformBlock(type_tfms=PILPartMask.create, item_tfms=item_tfms, batch_tfms=IntToFloatTensor)


def IdentityBlock(
    vocab: list | None = None,  # Training identities in class order; None takes them from the training split
):
    "Block of the second target: class, identity, camera and role"
    return TransformBlock(type_tfms=IdentityCategorize(vocab))


class _SplitColumn:
    "Training rows to train, queries and gallery together to validation"
    def __call__(self, catalog): return IndexSplitter(np.flatnonzero((catalog['split'] != 'train').to_numpy()))(catalog)


def ReIDDataBlock(
    item_tfms=None,  # Transforms of one item: size, flips, crops (see `item_transforms`)
    batch_tfms=None,  # Transforms of a batch on its device: normalisation, erasing (see `batch_transforms`)
    vocab: list | None = None,  # Training identities in class order; None takes the sorted ones of the training split
    dl_type=None,  # Loader class; None for fastai's own. `ReIDDataLoaders` gives `IdentityBatches`
) -> DataBlock:  # Its source is a catalog
    "DataBlock whose batches are (image, mask, identity): one input and two targets"
    return DataBlock(blocks=(PersonBlock, PartMaskBlock, IdentityBlock(vocab)), n_inp=1,
                     getters=[ColReader('path'), _MaskColumn(), _IdentityColumns()],
                     splitter=_SplitColumn(), item_tfms=item_tfms, batch_tfms=batch_tfms, dl_type=dl_type)
