"The embedding network against the whole one"
import keyword

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from magnifier.model.embedding import EmbeddingNet
from magnifier.model.heads import fold_norms, transposed_convolution
from magnifier.model.net import create_magnifier


def lived_in(arch='resnet18', **kwargs):
    "A model whose batch norms have seen something, and whose weights and biases are none of the initial ones"
    torch.manual_seed(0)
    model = create_magnifier(arch, 5, False, **{'hidden': 32, **kwargs})
    with torch.no_grad():
        for _ in range(3): model(torch.randn(8, 3, 64, 32))
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
                m.weight.uniform_(.5, 1.5), m.running_mean.normal_(0, .1)
            if isinstance(m, nn.BatchNorm2d): m.bias.normal_(0, .1)
    return model.eval()


@pytest.mark.parametrize('kwargs', [{}, dict(mask=False, sab=False, sfb=False), dict(sab=False, sfb=False),
                                    dict(sfb=False), dict(sab=False),
                                    dict(sfb='ab'), dict(cell='lstm'), dict(region_stage=4),
                                    dict(branch_bottleneck=False),
                                    dict(soft_masks=True), dict(mask_resize='nearest'), dict(last_stride=2),
                                    dict(arch='resnet50'), dict(n_regions=4),
                                    dict(normalise_branches=False), dict(keep_background=False),
                                    dict(upsample_maps=True), dict(stage3_stride=1), dict(arch='osnet_x0_25')])
def test_embeds_as_the_model_does(kwargs):
    model = lived_in(**kwargs)
    images, state = torch.randn(3, 3, 64, 48), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected, got = model(images), EmbeddingNet(model)(images)
        assert (got - expected.embedding).abs().max() < 1e-5 and got.shape == (3, model.embedding_dim)
        for n in (0, 1): assert EmbeddingNet(model)(images[:n]).shape == (n, model.embedding_dim)
        if expected.mask_logits is not None:
            got, labels = EmbeddingNet(model, masks=True)(images)
            assert (got - expected.embedding).abs().max() < 1e-5 and labels.dtype == torch.uint8
            assert (labels == expected.mask_logits.argmax(1)).float().mean() > .999
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())  # a copy was folded


def test_it_is_smaller_and_has_no_norms():
    model = lived_in()
    net = EmbeddingNet(model)
    words = {word for name in net.state_dict() for word in name.split('.')}
    assert not [word for word in words if keyword.iskeyword(word)]  # exporters write code of the names
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters()) and not net.training
    assert EmbeddingNet(lived_in(sab=False, sfb=False)).segmentation is None  # parts that nothing is pooled by


def test_a_training_model_is_copied_as_it_evaluates():
    model = lived_in()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = model(images).embedding
        assert (EmbeddingNet(model.train())(images) - expected).abs().max() < 1e-5 and model.training


def test_labels_need_a_head():
    with pytest.raises(ValueError, match='no segmentation head'):
        EmbeddingNet(lived_in(mask=False, sab=False, sfb=False), masks=True)


def test_bfloat16_stays_close():
    model = lived_in()
    images = torch.randn(4, 3, 64, 32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): half = EmbeddingNet(model)(images)
    with torch.no_grad(): whole = model(images).embedding
    assert half.dtype == torch.float32 and F.cosine_similarity(half, whole).min() > .99


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6),
       st.integers(0, 99))
def test_transposed_convolution_is_torchs(n, c, d, h, w, seed):
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(n, c, h, w), torch.randn(c, d, 3, 3), torch.randn(d)
    for fmt in (torch.contiguous_format, torch.channels_last):
        got = transposed_convolution(x.contiguous(memory_format=fmt), weight, bias)
        torch.testing.assert_close(got, F.conv_transpose2d(x, weight, bias, 2, 1, 1), atol=1e-5, rtol=1e-5)


def test_other_networks_are_left_alone():
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))  # norm before convolution: no pair
    folded = fold_norms(net)
    assert isinstance(folded[1], nn.BatchNorm2d) and net.training and not folded.training
