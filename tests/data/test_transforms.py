"Image and mask stay aligned; erasing is per image; sizes are checked"
import pickle

import numpy as np
import pytest
import torch
from fastai.vision.all import Pipeline, TensorImage
from hypothesis import given, settings, strategies as st
from PIL import Image
from magnifier.data.block import PILPartMask, PILPerson, TensorPartMask
from magnifier.data.preprocess import Preprocessing
from magnifier.data.transforms import (EraseBoxes, NormalizeInPlace, RandomPadCrop, _erase_at_once, _erase_one_by_one,
                                       batch_transforms, erase_boxes, item_transforms)
from magnifier.regions import NO_MASK


def pair(h=60, w=40, seed=0):
    "An image whose red channel is 30 times its label, and that label map: alignment can be read off"
    blocks = np.random.default_rng(seed).integers(0, 8, (h//10, w//10))
    labels = blocks.repeat(10, 0).repeat(10, 1).astype(np.uint8)
    return PILPerson(Image.fromarray(np.stack([labels*30]*3, 2))), PILPartMask(Image.fromarray(labels))


def agreement(image, mask):
    red, labels = np.asarray(image)[..., 0].astype(int), np.asarray(mask).astype(int)
    return (abs(red - labels*30) <= 14).mean()


def run(tfms, item): return Pipeline(tfms, split_idx=0)(item)


@pytest.mark.parametrize('seed', range(8))
def test_all_item_transforms_move_image_and_mask_alike(seed):
    import random
    random.seed(seed)
    image, mask = run(sorted(item_transforms(Preprocessing((64, 32)), pad=6), key=lambda t: t.order), pair(seed=seed))
    assert image.size == mask.size == (32, 64)
    assert agreement(image, mask) > .75
    assert agreement(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask) < .6, 'the check would see a lost flip'


def test_masks_keep_their_labels_through_a_resize():
    labels = np.array([[0, 7]], np.uint8).repeat(20, 0).repeat(10, 1)
    _, mask = run(item_transforms(Preprocessing((64, 48)), pad=0, flip=0),
                  (pair(20, 20)[0], PILPartMask(Image.fromarray(labels))))
    assert set(np.unique(mask)) == {0, 7}


@pytest.mark.parametrize('label, border', [(5, 0), (NO_MASK, NO_MASK)])
def test_padding_is_background_and_a_missing_mask_stays_missing(label, border):
    mask = PILPartMask(Image.fromarray(np.full((32, 16), label, np.uint8)))
    seen = {int(v) for _ in range(60) for v in np.unique(np.asarray(run([RandomPadCrop(4)], (mask,))[0]))}
    assert seen == {label, border}


def test_pad_crop_reaches_every_shift():
    image = PILPerson(Image.fromarray(np.zeros((8, 8, 3), np.uint8)))
    image.putpixel((4, 4), (255, 255, 255))
    moved = [np.asarray(run([RandomPadCrop(1)], (image,))[0])[..., 0] for _ in range(300)]
    places = {tuple(int(i[0]) for i in np.nonzero(m)) for m in moved}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_nothing_moves_in_validation():
    item = pair(160, 80)
    out = Pipeline(item_transforms(Preprocessing((160, 80)), pad=4), split_idx=1)(item)
    assert (np.asarray(out[0]) == np.asarray(item[0])).all()
    assert (np.asarray(out[1]) == np.asarray(item[1])).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(2, 80), st.integers(2, 80), st.integers(0, 999))
def test_boxes_lie_inside_and_have_the_area_asked_for(n, h, w, seed):
    boxes = erase_boxes(n, (h, w), torch.Generator().manual_seed(seed), p=1.)
    top, bottom, left, right = boxes.T
    assert (0 <= top).all()
    assert (top <= bottom).all()
    assert (bottom <= h).all()
    assert (0 <= left).all()
    assert (left <= right).all()
    assert (right <= w).all()
    share = ((bottom - top)*(right - left)).float()/(h*w)
    slack = (h + w)/(h*w)  # rounding of both sides
    drawn = share > 0
    assert ((share[drawn] >= .02 - slack) & (share[drawn] <= .4 + slack)).all()


def test_erasing_is_drawn_per_image_with_the_probability_asked_for():
    boxes = erase_boxes(4000, (96, 48), torch.Generator().manual_seed(0), p=.5)
    erased = (boxes[:, 1] > 0) & (boxes[:, 3] > 0)
    assert .46 < erased.float().mean() < .52  # a few boxes fit in no try
    assert len(boxes[erased].unique(dim=0)) > .95*int(erased.sum())


def test_erased_pixels_are_zero_and_the_others_and_the_mask_untouched():
    x, mask = TensorImage(torch.rand(16, 3, 32, 16) + 1), TensorPartMask(torch.ones(16, 32, 16).long())
    out, out_mask = Pipeline([EraseBoxes(1., seed=1)], split_idx=0)((x, mask))
    erased = (out == 0).all(1)
    assert torch.equal(out_mask, mask)
    assert isinstance(out, TensorImage)
    assert torch.equal(out[~erased[:, None].expand_as(out)], x[~erased[:, None].expand_as(x)])
    assert all(0 < e.sum() < 32*16 for e in erased)
    assert torch.equal(Pipeline([EraseBoxes(1.)], split_idx=1)((x,))[0], x), 'training only'


def test_erasing_owns_its_generator_and_travels_with_its_state():
    a, b = EraseBoxes(.5, seed=3), EraseBoxes(.5, seed=3)
    x = TensorImage(torch.ones(8, 3, 32, 16))
    torch.manual_seed(0); before = torch.get_rng_state()
    assert torch.equal(a(x, split_idx=0), b(x, split_idx=0))
    assert torch.equal(torch.get_rng_state(), before)
    c = pickle.loads(pickle.dumps(a))
    assert torch.equal(a(x, split_idx=0), c(x, split_idx=0))


def test_no_erasing_when_none_is_asked_for():
    assert len(batch_transforms(Preprocessing(), 0)) == 1
    assert len(batch_transforms(Preprocessing(), .5)) == 2
    assert len(item_transforms(Preprocessing(), 0, 0)) == 1


def test_erasing_on_a_gpu_is_erasing_on_a_cpu():
    boxes, x = erase_boxes(40, (33, 18), torch.Generator().manual_seed(0)), torch.rand(40, 3, 33, 18) + 1
    by_loop, at_once = _erase_one_by_one(x.clone(), boxes), _erase_at_once(x.clone(), boxes)
    assert torch.equal(by_loop, at_once)
    assert (by_loop == 0).any()
    assert (by_loop[(boxes == 0).all(1)] > 0).all()


def test_normalisation_is_fastais():
    from fastai.vision.all import Normalize, imagenet_stats
    x = TensorImage(torch.rand(2, 3, 8, 8))
    ours, theirs = NormalizeInPlace(Preprocessing()), Normalize.from_stats(*imagenet_stats)
    assert torch.allclose(ours(x.clone()), theirs(x))
    assert torch.allclose(ours.decode(ours(x.clone())), x, atol=1e-6)
