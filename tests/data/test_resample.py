"Whole batches against Pillow, one picture at a time"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from magnifier.data.pixels import Axis, bilinear_weights, output_positions, resample_images, resample_labels
from magnifier.data.pixels import on_one_canvas
from magnifier.regions import NO_MASK

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


def still(originals, size): return axes(originals,
                                        *(output_positions(s,
                                                           torch.zeros(len(originals),
                                                                       dtype=torch.long)) for s in size))

def tensors(images): return torch.stack([torch.from_numpy(i).permute(2, 0, 1) for i in images])


def by_pillow(image, size, shift, mirrored, *, nearest=False):
    "The item path: squish, mirror, pad, crop"
    out = Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
    if mirrored: out = ImageOps.mirror(out)
    pad = max(map(abs, shift), default=0)
    out = ImageOps.expand(out, border=pad, fill=0)
    return np.asarray(out.crop((pad + shift[1], pad + shift[0], pad + shift[1] + size[1], pad + shift[0] + size[0])))


@settings(deadline=None, max_examples=80)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(-6, 6), st.integers(-6, 6), st.booleans(), st.integers(0, 99))
def test_as_pillow_resizes_mirrors_and_shifts(h, w, height, width, down, right, mirrored, seed):
    image, size = picture(h, w, seed), (height, width)
    rows, columns = (output_positions(s, torch.tensor([o]), m) for s, o, m in
                     zip(size, (down, right), (None, torch.tensor([mirrored]))))
    ours = resample_images(tensors([image]), *axes([[h, w]], rows, columns))[0].permute(1, 2, 0)*255
    theirs = by_pillow(image, size, (down, right), mirrored)
    assert np.abs(ours.numpy() - theirs).max() <= 1.05  # Pillow rounds to whole grey levels after each of two passes
    assert np.abs(ours.numpy() - theirs).mean() <= .5


@settings(deadline=None, max_examples=80)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(-6, 6), st.integers(-6, 6), st.booleans(), st.integers(0, 99))
def test_labels_are_pillows_nearest(h, w, height, width, down, right, mirrored, seed):
    mask, size = labels(h, w, seed), (height, width)
    rows, columns = (output_positions(s, torch.tensor([o]), m) for s, o, m in
                     zip(size, (down, right), (None, torch.tensor([mirrored]))))
    ours = resample_labels(torch.from_numpy(mask)[None], *axes([[h, w]], rows, columns))[0].numpy()
    theirs = by_pillow(mask, size, (down, right), mirrored, nearest=True)
    assert (ours == theirs).all()
    assert ours.dtype == np.int64 and set(np.unique(ours)) <= {0, *np.unique(mask)}


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
    rows, columns = output_positions(16, torch.tensor([0, 2, -3, 0])), output_positions(16,
                                                                                        torch.tensor([1, 0, 0, -5]),
                                                                                        torch.tensor([1, 0, 1,
                                                                                                      0]).bool())
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
    out = resample_labels(masks,
                          *axes([[8, 8]]*2, output_positions(16, torch.tensor([5, 5])),
                                output_positions(16, torch.tensor([-5, -5]))))
    assert (out[0] == 0).all() and (out[1] == NO_MASK).all()


def test_half_precision_around_it_changes_nothing():
    pixels = tensors([picture(40, 20)])
    plain = resample_images(pixels, *still([[40, 20]], (64, 32)))
    with torch.autocast('cpu', dtype=torch.bfloat16): inside = resample_images(pixels, *still([[40, 20]], (64, 32)))
    assert inside.dtype == torch.float32 and torch.equal(plain, inside)
