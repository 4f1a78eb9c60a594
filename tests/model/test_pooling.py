"Region pooling against the naive product then maximum; labels and logits to region masks against torch's interpolation"
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from magnifier.model import pooling
from magnifier.model.pooling import (has_mask, kept_region_pool, labels_to_masks, predicted_masks, region_max_pool,
                                     resize_labels, resize_masks)
from magnifier.regions import NO_MASK

MASKS = ('one_hot', 'weighted', 'negative', 'absent', 'soft', 'everywhere', 'empty')


def naive(maps, masks):  # Eq. 1 as written: n x k x c x h x w, whole
    return (maps[:, None] * masks[:, :, None]).flatten(3).max(-1).values


def make_masks(kind, n, k, h, w, g, dtype=torch.float64):
    if kind == 'everywhere': return torch.ones(n, k, h, w, dtype=dtype)
    if kind == 'empty': return torch.zeros(n, k, h, w, dtype=dtype)
    if kind == 'soft': return torch.rand(n, k, h, w, generator=g, dtype=dtype)
    masks = F.one_hot(torch.randint(k, (n, h, w), generator=g), k).permute(0, 3, 1, 2).to(dtype)
    if kind == 'weighted': masks = masks * torch.randint(1, 5, masks.shape, generator=g) / 4
    if kind == 'negative': masks = masks * torch.randn(masks.shape, generator=g, dtype=dtype)
    if kind == 'absent': masks[0], masks[:, 0] = 0, 0
    return masks


def check_against_naive(maps, masks, g):
    maps = maps.requires_grad_()
    got, want = region_max_pool(maps, masks), naive(maps, masks)
    assert got.dtype == maps.dtype
    assert got.shape == want.shape
    assert torch.equal(got, want)
    grad = torch.rand(want.shape, generator=g, dtype=want.dtype)
    got_grad, want_grad = (torch.autograd.grad(out, maps, grad)[0] for out in (got, want))
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-14 if maps.dtype == torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('kind', MASKS)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_equals_naive(kind, relu, layout):
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(3, 5, 6, 4, generator=g, dtype=torch.float64).contiguous(memory_format=layout)
    check_against_naive(maps.relu() if relu else maps, make_masks(kind, 3, 8, 6, 4, g), g)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3), k=st.integers(1, 9), c=st.integers(1, 6), h=st.integers(1, 5), w=st.integers(1, 5),
       kind=st.sampled_from(MASKS), levels=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_equals_naive_with_ties_at_any_size(n, k, c, h, w, kind, levels, seed):
    g = torch.Generator().manual_seed(seed)
    maps = torch.randint(-levels, levels + 1, (n, c, h, w), generator=g).double()  # ties everywhere, zeros among them
    check_against_naive(maps, make_masks(kind, n, k, h, w, g), g)


@pytest.mark.parametrize('chunk', [1, 40, 10**6])
def test_dense_and_sparse_ways_agree(chunk, monkeypatch):
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 4, 6, 4, generator=g)
    masks = make_masks('absent', 5, 8, 6, 4, g, torch.float32)
    dense = pooling._max_dense(maps.flatten(2), masks.flatten(2))
    for got, want in zip(pooling._max_sparse(maps.flatten(2), masks.flatten(2)), dense): assert torch.equal(got, want)
    monkeypatch.setattr(pooling, 'CHUNK', chunk)
    for got, want in zip(pooling.max_by_region(maps, masks), dense): assert torch.equal(got, want)


def test_gradcheck():
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, 4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    for kind in ('one_hot', 'soft'):
        masks = make_masks(kind, 2, 4, 4, 3, g)
        assert torch.autograd.gradcheck(lambda m: region_max_pool(m, masks), maps)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['weighted', 'soft'])
def test_dtype_is_the_maps(dtype, kind):
    g = torch.Generator().manual_seed(2)
    maps, masks = torch.rand(2, 3, 4, 4, generator=g).to(dtype).requires_grad_(), make_masks(kind, 2, 8, 4, 4, g)
    got = region_max_pool(maps, masks)
    assert got.dtype == dtype
    torch.testing.assert_close(got, naive(maps, masks.to(dtype)))
    got.sum().backward()
    assert maps.grad.dtype == dtype


def test_gradient_keeps_the_layout_and_masks_get_none():
    maps = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    masks = torch.rand(2, 8, 4, 4, requires_grad=True)
    region_max_pool(maps, masks).sum().backward()
    assert maps.grad.is_contiguous(memory_format=torch.channels_last)
    assert masks.grad is None


def test_absent_region_pools_to_zero_without_gradient():
    maps = torch.rand(1, 3, 4, 4, requires_grad=True)
    pooled = region_max_pool(maps, torch.zeros(1, 8, 4, 4))
    pooled.sum().backward()
    assert pooled.abs().sum() == 0
    assert maps.grad.abs().sum() == 0


def test_no_images():
    assert region_max_pool(torch.rand(0, 3, 4, 4), torch.rand(0, 8, 4, 4)).shape == (0, 8, 3)


@pytest.mark.parametrize('shapes, said', [
    (((2, 3, 4), (2, 8, 4, 4)), 'n x c x h x w'), (((2, 3, 4, 4), (2, 4, 4)), 'n x k x h x w'),
    (((2, 3, 4, 4), (1, 8, 4, 4)), 'of one n, h and w'), (((2, 3, 4, 4), (2, 8, 4, 5)), 'bring masks to the size')])
def test_shapes_that_do_not_fit(shapes, said):
    with pytest.raises(ValueError, match=said): region_max_pool(*(torch.rand(s) for s in shapes))


def test_kept_pool_is_equation_2_for_every_kept_set():
    g = torch.Generator().manual_seed(5)
    maps = torch.rand(2, 3, 6, 4, generator=g, dtype=torch.float64)
    masks = make_masks('weighted', 2, 8, 6, 4, g)
    regions = maps[:, None] * masks[:, :, None]  # x_k
    for kept in itertools.product([False, True], repeat=8):
        want = sum((regions[:, k] for k in range(8) if kept[k]), torch.zeros_like(maps)).amax((2, 3))
        torch.testing.assert_close(kept_region_pool(maps, masks, torch.tensor(kept)), want, rtol=1e-14, atol=0)


def test_all_kept_of_masks_that_sum_to_one_is_global_max_pooling():
    g = torch.Generator().manual_seed(6)
    maps, masks = torch.rand(2, 3, 6, 4, generator=g), make_masks('one_hot', 2, 8, 6, 4, g)
    assert torch.equal(kept_region_pool(maps, masks), maps.amax((2, 3)))


SIDES = st.integers(1, 40)


def one_hot(labels, k=8): return F.one_hot(labels, k).permute(0, 3, 1, 2).float()


@settings(deadline=None, max_examples=80)
@given(SIDES, SIDES, st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_labels_to_masks_is_the_interpolated_one_hot(H, W, h, w, seed):
    labels = torch.randint(8, (2, H, W), generator=torch.Generator().manual_seed(seed))
    want = F.interpolate(one_hot(labels), (h, w), mode='bilinear', align_corners=False)
    torch.testing.assert_close(labels_to_masks(labels, (h, w)), want, rtol=0, atol=2e-5)
    want = F.interpolate(one_hot(labels), (h, w), mode='nearest-exact')
    got = labels_to_masks(labels, (h, w), 'nearest')
    assert torch.equal(got.sum(1), torch.ones(2, h, w))
    # torch finds the source in floats, and may miss by a pixel where a centre falls between two
    if all(o * 2 % i or i == o for o, i in ((h, H), (w, W))) and H % h == 0 == W % w: assert torch.equal(got, want)


@pytest.mark.parametrize('factor', [1, 2, 8, 16])
def test_usual_sizes_are_exact(factor):
    labels = torch.randint(8, (2, 24 * factor, 12 * factor), generator=torch.Generator().manual_seed(0))
    for mode, torch_mode in (('bilinear', dict(mode='bilinear', align_corners=False)),
                             ('nearest', dict(mode='nearest-exact'))):
        assert torch.equal(labels_to_masks(labels, (24, 12), mode),
                           F.interpolate(one_hot(labels), (24, 12), **torch_mode))


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SIDES, SIDES)
def test_resize_labels_takes_the_pixel_under_each_centre(H, W, h, w):
    labels = torch.arange(H * W).view(1, H, W)
    want = [[labels[0, (2*y + 1) * H // (2*h), (2*x + 1) * W // (2*w)] for x in range(w)] for y in range(h)]
    assert resize_labels(labels, (h, w))[0].tolist() == want


def test_resizing_invents_no_region():
    labels = torch.tensor([0, 7]).repeat(2, 17, 5)
    masks = labels_to_masks(labels, (6, 4))
    assert masks[:, 1:7].abs().sum() == 0
    assert set(resize_labels(labels, (6, 4)).unique().tolist()) <= {0, 7}


def test_no_mask_is_in_no_region():
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[1] = NO_MASK
    assert has_mask(labels).tolist() == [True, False]
    assert labels_to_masks(labels, (3, 3)).sum((1, 2, 3)).tolist() == pytest.approx([9, 0])
    labels[1] = 0
    labels[1, 3, 3] = NO_MASK  # padded beside an absent mask
    assert has_mask(labels).tolist() == [True, False]


def test_predicted_masks_hard_and_soft():
    logits = torch.randn(2, 8, 12, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    hard, soft = predicted_masks(logits, (6, 3)), predicted_masks(logits, (6, 3), soft=True)
    assert torch.equal(hard, F.interpolate(one_hot(logits.argmax(1)), (6, 3), mode='bilinear'))
    torch.testing.assert_close(soft, F.interpolate(logits.softmax(1), (6, 3), mode='bilinear').detach())
    assert not hard.requires_grad
    assert not soft.requires_grad
    torch.testing.assert_close(soft.sum(1), torch.ones(2, 6, 3))


def test_resize_masks():
    masks = torch.rand(2, 8, 12, 6, generator=torch.Generator().manual_seed(0))
    assert resize_masks(masks, (12, 6)) is masks
    assert torch.equal(resize_masks(masks, (6, 3)), F.interpolate(masks, (6, 3), mode='bilinear'))
    assert torch.equal(resize_masks(masks, (4, 2), 'nearest'), masks[:, :, 1::3, 1::3])
