"Batches from decoded originals: resized, shifted and mirrored as a whole, on the model's device"
import numpy as np
import pandas as pd
import torch
from fastai.vision.all import DisplayedTransform, IntToFloatTensor, TensorImage, delegates, first

from magnifier.data.batches import IdentityBatches
from magnifier.data.block import IdentityCategorize, TensorIdentity, TensorPartMask
from magnifier.data.cache import decode_pixels
from magnifier.data.batch_resample import Axis, output_positions, resample_images, resample_labels
from magnifier.data.preprocess import Preprocessing
from magnifier.data.transforms import OwnGenerator

__all__ = ['FitBatch', 'PixelBatches', 'on_one_canvas']


class FitBatch(OwnGenerator, DisplayedTransform):
    "Decoded originals to (image, part mask, ...): resized; in training also mirrored and shifted, image and mask alike"
    order = -100  # first of all: it makes what the others change
    def __init__(self,
        preprocessing: Preprocessing,  # Size and fit
        pad:int=10,            # Largest random shift on every side, in pixels; what comes in is black, and background in the mask
        flip:float=0.5,        # Probability of a horizontal flip
        seed:int=0,            # Seed of the generator that this transform holds
    ):
        self.preprocessing, self.pad, self.flip = preprocessing, pad, flip
        self.seed_generator(seed)

    def __call__(self, b, split_idx=None, **kwargs):
        "(pixels, sizes) or (pixels, sizes, identity) to (image,) or (image, mask, identity)"
        pixels, sizes, *identity = b
        down, across = (o.to(pixels.device) for o in self._draw(len(pixels), split_idx == 0))
        heights, widths = sizes.unbind(1)
        fitted_heights, fitted_widths = self.preprocessing.fitted(heights, widths)
        rows = Axis(heights, fitted_heights, down)
        columns = Axis(widths, fitted_widths, across)
        image = TensorImage(resample_images(pixels[:, :3], rows, columns))
        if not identity: return (image,)
        return image, TensorPartMask(resample_labels(pixels[:, 3], rows, columns)), TensorIdentity(identity[0])

    def _draw(self, n, training):
        "Positions of rows and columns; the same draws on every device"
        shift, mirrored = torch.zeros(2, n, dtype=torch.long), None
        if training:
            shift = torch.randint(-self.pad, self.pad + 1, (2, n), generator=self.generator)
            mirrored = torch.rand(n, generator=self.generator) < self.flip
        height, width = self.preprocessing.size
        return output_positions(height, shift[0]), output_positions(width, shift[1], mirrored)

    def decode(self, b, **kwargs):
        "The image in 0..255, as fastai's loaders give it"
        decode = lambda o: IntToFloatTensor().decode(o) if isinstance(o, TensorImage) else o
        return tuple(map(decode, b)) if isinstance(b, tuple) else decode(b)


@delegates()
class PixelBatches(IdentityBatches):
    """`IdentityBatches` that takes decoded originals instead of one item after the other.

    Same batches of identities for the same seed, same types; `FitBatch` has to be among its `after_batch`. Pictures that are not in
    `pixels`, as those of `test_dl`, are decoded as they are needed and go the same way.
    """
    def __init__(self,
        dataset=None, # A fastai Datasets over a catalog, or over pictures alone
        pixels=None,  # (4,h,w) uint8 arrays, one for each item of the dataset; None decodes the files whenever they are needed
        **kwargs
    ):
        self.pixels, self._identities = pixels, None
        super().__init__(dataset, **kwargs)

    def before_iter(self):
        "Identities are made here, before there are workers"
        super().before_iter()
        if self.n and len(self.dataset.tls) > 1: self._all_identities()

    def do_item(self, s): return s or 0  # an index: nothing is done by item

    def do_batch(self, indices):
        "(n,4,h,w) uint8 canvas, (n,2) sizes and, where the dataset has them, (n,4) identities"
        indices = list(indices)
        arrays = list(decode_pixels(map(self._source, indices)) if self.pixels is None else (self.pixels[i] for i in indices))
        return (*on_one_canvas(arrays), *([self._all_identities()[indices]] if len(self.dataset.tls) > 1 else []))

    def _source(self, i):
        "(picture, path of its mask or None)"
        items = self.dataset.items
        if not isinstance(items, pd.DataFrame): return items[i], None
        mask = items['mask'].iat[i] if 'mask' in items and len(self.dataset.tls) > 1 else None
        return items['path'].iat[i], mask if isinstance(mask, str) else None

    def _all_identities(self):
        "(n,4) of the whole dataset, made once"
        if self._identities is None:
            items, categorize = self.dataset.items, first(t for t in self.dataset.tls[-1].tfms.fs if isinstance(t, IdentityCategorize))
            rows = [categorize.encodes(o) for o in zip(items['pid'], items['camid'], items['split'])]
            self._identities = torch.stack(rows).as_subclass(torch.Tensor)
        return self._identities

    def new(self, dataset=None, cls=None, **kwargs):
        "A loader like this one; over another dataset it decodes as it goes"
        same = dataset is None or dataset is self.dataset
        return super().new(dataset, cls, **{'pixels': self.pixels if same else None, **kwargs})


def on_one_canvas(
    arrays:list, # (c,h,w) uint8 arrays of any sizes
) -> tuple:  # (n,c,h,w) uint8 tensor, as large as the largest, each array in its upper left corner; (n,2) integers height and width
    "Arrays of several sizes in one tensor"
    sizes = np.array([a.shape[1:] for a in arrays])
    if (sizes == sizes[0]).all(): return torch.from_numpy(np.stack(arrays)), torch.from_numpy(sizes)
    canvas = np.zeros((len(arrays), arrays[0].shape[0], *sizes.max(0)), np.uint8)
    for place, a in zip(canvas, arrays): place[:, :a.shape[1], :a.shape[2]] = a
    return torch.from_numpy(canvas), torch.from_numpy(sizes)
