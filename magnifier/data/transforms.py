"Transforms that move image and mask together, and random erasing of the image alone"

import math
import random

import torch
from fastai.vision.all import FlipItem, Normalize, PILMask, RandTransform, TensorImage, Transform, broadcast_vec
from PIL import Image, ImageOps

from magnifier.data.preprocess import Preprocessing
from magnifier.regions import NO_MASK

__all__ = ['RandomPadCrop', 'EraseBoxes', 'item_transforms', 'batch_transforms']


class OwnGenerator:
    """Mixin of a random transform: it has its own generator, and the generator's state is copied to exported learners
    and workers"""
    def seed_generator(self,
        seed: int,  # The same seed gives the same draws on every machine
    ):
        "A new CPU generator"
        self.generator = torch.Generator().manual_seed(seed)

    def __getstate__(self):
        # A torch.Generator does not pickle. Its state goes as an array: a tensor would go to a spawned process as a
        # file descriptor, which is closed with the tensor before that process has started
        return {**self.__dict__, 'generator': self.generator.get_state().numpy()}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.generator = torch.Generator()
        self.generator.set_state(torch.from_numpy(state['generator']))


class FitImage(Transform):
    "Resizes image and mask alike, as `Preprocessing` says"
    order = 1
    def __init__(self,
        preprocessing: Preprocessing,  # Size and fit
    ):
        super().__init__()
        self.preprocessing = preprocessing

    def encodes(self, x: Image.Image):
        return type(x)(self.preprocessing.fit_image(x, labels=isinstance(x, PILMask), fill=_outside(x)))


def _outside(image):
    "The padding: black for an image, background for a mask; a missing mask stays missing everywhere"
    return NO_MASK if isinstance(image, PILMask) and image.getpixel((0, 0)) == NO_MASK else 0


class RandomPadCrop(RandTransform):
    "Pads image and mask alike, then cuts the original size out at one random place for both"
    order = 2  # after FitImage (1): fastai sorts item transforms by order, not as they are listed
    def __init__(self,
        pad: int = 10,  # Pixels added on every side; the baseline's 10 at 384 x 192 and 256 x 128
        p: float = 1.,  # Probability of moving an item at all
    ):
        super().__init__(p=p)
        self.pad = pad

    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)
        self.left, self.top = random.randint(0, 2*self.pad), random.randint(0, 2*self.pad)

    def encodes(self, x: Image.Image):
        w, h = x.size
        padded = ImageOps.expand(x, border=self.pad, fill=_outside(x))
        return type(x)(padded.crop((self.left, self.top, self.left + w, self.top + h)))


def erase_boxes(
    n: int,  # Number of images
    size: tuple,  # Their height and width, in pixels
    generator=None,  # CPU torch.Generator, held by the caller
    *,
    p: float = 0.5,  # Probability that an image has a box at all
    area: tuple = (0.02, 0.4),  # Share of the image a box covers, drawn uniformly
    aspect: tuple = (0.3, 1/0.3),  # Height over width, drawn log-uniformly
    tries: int = 10,  # Boxes drawn per image; the first that fits is taken
) -> torch.Tensor:  # (n,4) integers top, bottom, left, right; all zero where nothing is erased
    "One box per image for random erasing (Zhong et al. 2017)"
    h, w = size
    def uniform(low, high): return torch.empty(n, tries).uniform_(low, high, generator=generator)
    share = uniform(*area)
    ratio = uniform(*map(math.log, aspect)).exp()
    box_h = (share*h*w*ratio).sqrt().round()
    box_w = (share*h*w/ratio).sqrt().round()
    fits = (box_h < h) & (box_w < w) & (box_h > 0) & (box_w > 0)
    first = fits.float().argmax(1, keepdim=True)
    box_h, box_w, fits = (o.gather(1, first).squeeze(1) for o in (box_h, box_w, fits))
    where = torch.rand(n, 2, generator=generator)
    top = ((h - box_h + 1)*where[:, 0]).floor()
    left = ((w - box_w + 1)*where[:, 1]).floor()
    boxes = torch.stack([top, top + box_h, left, left + box_w], 1)
    return (boxes * (fits & (torch.rand(n, generator=generator) < p))[:, None]).long()


class NormalizeInPlace(Normalize):
    "fastai's Normalize without its two copies of a batch, which on a CPU take as long as resizing"
    def __init__(self,
        preprocessing: Preprocessing,  # Mean and standard deviation
    ):
        super().__init__(*broadcast_vec(1, 4, preprocessing.mean, preprocessing.std))
        self.preprocessing = preprocessing

    def encodes(self, x: TensorImage): return x.sub_(self.mean).div_(self.std)


class EraseBoxes(OwnGenerator, RandTransform):
    "Erases one box per image, but not in the mask, since the body part is still there"
    order, split_idx = 100, 0  # after Normalize (99): zero is then the ImageNet mean
    def __init__(self,
        p: float = 0.5,  # Probability per image
        area: tuple = (0.02, 0.4),  # Share of the image that is erased
        aspect: tuple = (0.3, 1/0.3),  # Height over width of the box
        seed: int = 0,  # Seed of the generator that this transform holds
    ):
        super().__init__(p=1.)
        self.erase_p = p
        self.area = area
        self.aspect = aspect
        self.seed_generator(seed)

    def encodes(self, x: TensorImage):  # in place: the batch is the loader's own
        n, _, h, w = x.shape
        boxes = erase_boxes(n, (h, w), self.generator, p=self.erase_p, area=self.area, aspect=self.aspect)
        return _erase_one_by_one(x, boxes) if x.device.type == 'cpu' else _erase_at_once(x, boxes.to(x.device))


def _erase_one_by_one(x, boxes):
    "Sets the boxes to zero in place, which is fastest on a CPU"
    for image, (top, bottom, left, right) in zip(x, boxes.tolist()): image[:, top:bottom, left:right] = 0
    return x


def _erase_at_once(x, boxes):
    "The same without waiting for the device"
    top, bottom, left, right = (boxes[:, i, None, None] for i in range(4))  # each (n,1,1)
    rows, columns = torch.arange(x.shape[2], device=x.device)[:, None], torch.arange(x.shape[3], device=x.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (n,h,w)
    return x.masked_fill_(inside[:, None], 0.)


def item_transforms(
    preprocessing: Preprocessing,  # Size and fit
    pad: int = 10,  # Pixels of random shift on every side; 0 for none
    flip: float = 0.5,  # Probability of a horizontal flip
) -> list:  # Transforms of one (image, mask, identity)
    "Resize, pad and crop, flip: image bilinear, mask nearest, both moved alike"
    tfms = [FitImage(preprocessing)]
    if pad: tfms.append(RandomPadCrop(pad))
    if flip: tfms.append(FlipItem(flip))
    return tfms


def batch_transforms(
    preprocessing: Preprocessing,  # Mean and standard deviation
    erase: float = 0.5,  # Probability that an image loses a box
    seed: int = 0,  # Seed of the erasing
) -> list:  # Transforms of a batch, on its device
    "Normalisation, then random erasing"
    tfms = [NormalizeInPlace(preprocessing)]
    if erase: tfms.append(EraseBoxes(erase, seed=seed))
    return tfms
