"Labels and logits to region masks, against torch's own interpolation"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from magnifier.model.resize import has_mask, labels_to_masks, predicted_masks, resize_labels, resize_masks
from magnifier.regions import NO_MASK

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
    assert masks[:, 1:7].abs().sum() == 0 and set(resize_labels(labels, (6, 4)).unique().tolist()) <= {0, 7}


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
    assert not hard.requires_grad and not soft.requires_grad
    torch.testing.assert_close(soft.sum(1), torch.ones(2, 6, 3))


def test_resize_masks():
    masks = torch.rand(2, 8, 12, 6, generator=torch.Generator().manual_seed(0))
    assert resize_masks(masks, (12, 6)) is masks
    assert torch.equal(resize_masks(masks, (6, 3)), F.interpolate(masks, (6, 3), mode='bilinear'))
    assert torch.equal(resize_masks(masks, (4, 2), 'nearest'), masks[:, :, 1::3, 1::3])
