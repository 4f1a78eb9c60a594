"MagnifierNet: its options, inputs, gradients, an output that fastai can handle; the embedding network against it"
import copy
import itertools
import keyword
import pickle

import pytest
import torch
from fastai.torch_core import TensorImage, TensorMask, apply, nested_reorder, to_concat, to_detach, to_float
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from magnifier.model.heads import fold_norms, transposed_convolution
from magnifier.model.net import EmbeddingNet, MagnifierNet, MagnifierOutput, create_magnifier, model_splitter
from magnifier.model.pooling import (kept_region_pool, labels_to_masks, predicted_masks, region_max_pool,
                                     resize_labels)
from magnifier.regions import NO_MASK
from magnifier.train.losses import MagnifierLoss


def build(arch='resnet10_narrow', hidden=16, **kwargs):
    torch.manual_seed(0)
    return create_magnifier(arch, 5, False, hidden=hidden, **kwargs)


@pytest.fixture(scope='module')
def shared_model(): return build()


@pytest.fixture
def model(shared_model): return copy.deepcopy(shared_model)


def shape_of(tensor): return None if tensor is None else tuple(tensor.shape)


ROWS = [dict(), dict(sfb=False), dict(sab=False), dict(sab=False, sfb=False), dict(mask=False, sab=False, sfb=False),
        dict(sfb='ab')]
OPTIONS = [dict(cell='lstm'), dict(region_stage=4), dict(branch_bottleneck=False), dict(soft_masks=True),
           dict(mask_resize='nearest'), dict(last_stride=2), dict(last_stride=2, region_stage=4)]


@pytest.mark.parametrize('arch, options', [
    *itertools.product(['resnet10_narrow'], ROWS + OPTIONS),
    *(pytest.param(arch, options, marks=pytest.mark.slow) for arch, options in (
        ('resnet18', {}), ('resnet50', {}), ('resnet50', dict(sfb='ab', region_stage=4))))])
@pytest.mark.parametrize('training', [True, False])
def test_shapes(arch, options, training, images, labels):
    model = build(arch, **options).train(training)
    c3, c4 = model.backbone.widths.values()
    sab, sfb, mask = options.get('sab', True), options.get('sfb', True), options.get('mask', True)
    h, w = (4, 2) if options.get('last_stride', 1) == 1 else (2, 1)
    width = c3 if options.get('region_stage', 3) == 3 else c4
    out = model(images, labels if training else None, [True] * 8 if training else None)
    widths = {'global': c4, **({'sab': 16} if sab else {}), **({'sfb': 16} if sfb else {})}
    assert {b: f.shape for b, f in out.features.items()} == {b: (4, c) for b, c in widths.items()}
    assert {b: f.shape for b, f in out.logits.items()} == {b: (4, 5) for b in widths}
    assert out.embedding.shape == (4, sum(widths.values())) == (4, model.embedding_dim)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(4))
    assert shape_of(out.mask_logits) == ((4, 8, 2*h, 2*w) if mask else None)
    assert shape_of(out.region_features) == ((4, 8, width) if sfb else None)
    assert shape_of(out.region_logits) == ((4, 8, 5) if sfb and training else None)
    assert len(out) == 13
    assert {(type(t), len(t), t.dtype) for t in out} == {(torch.Tensor, 4, torch.float32)}


@pytest.mark.parametrize('kwargs, said', [
    (dict(mask=False), 'mask=False leaves out: pass mask=True, or sab=False and sfb=False'),
    (dict(mask=False, sab=False), 'mask=False'),
    (dict(sfb='gru'), "sfb='gru': it is True, False or 'ab'"), (dict(cell='rnn'), 'unknown cell'),
    (dict(region_stage=2), 'use one of 3, 4'), (dict(region_stage=5), 'use one of 3, 4'),
    (dict(mask_resize='bicubic'), 'use one of bilinear, nearest'), (dict(sfb='ab', hidden=20), 'multiple of 8'),
    (dict(arch='resnet19'), 'unknown arch')])
def test_combinations_without_sense(kwargs, said):
    with pytest.raises(ValueError, match=said): build(**kwargs)


@pytest.mark.parametrize('n_classes', [0, -1, 2.5, None])
def test_n_classes(n_classes):
    with pytest.raises(ValueError, match='number of training identities'):
        create_magnifier('resnet18', n_classes, False)


@pytest.mark.parametrize('args, said', [
    ((torch.rand(2, 3, 60, 32),), '60 x 32: both sides must be multiples of 16; resize or pad them to 64 x 32'),
    ((torch.rand(2, 3, 64, 33),), 'to 64 x 48'), ((torch.rand(3, 64, 32),), 'n x 3 x H x W is wanted'),
    ((torch.rand(2, 1, 64, 32),), 'wanted'),
    ((torch.rand(1, 3, 64, 32),), 'batch of one image in training mode.*drop_last=True'),
    ((torch.rand(2, 3, 64, 32), torch.zeros(3, 64, 32, dtype=torch.long)), 'integer labels 2 x H x W'),
    ((torch.rand(2, 3, 64, 32), torch.zeros(2, 8, 64, 32, dtype=torch.long)), 'or floats 2 x 8 x H x W'),
    ((torch.rand(2, 3, 64, 32), torch.zeros(2, 64, 32, dtype=torch.bool)), 'torch.bool region masks'),
    ((torch.rand(2, 3, 64, 32), torch.zeros(2, 7, 64, 32)), 'float region masks'),
    ((torch.rand(2, 3, 64, 32), torch.zeros(2, 64, 32)), 'float'),
    ((torch.rand(2, 3, 64, 32), torch.full((2, 64, 32), 9)), 'part label 9: labels are 0 to 7, or 255'),
    ((torch.rand(2, 3, 64, 32), torch.full((2, 64, 32), -1)), 'part label -1'),
    ((torch.rand(2, 3, 64, 32), None, [True] * 7), '8 booleans are wanted')])
def test_inputs_that_do_not_fit(model, args, said):
    with pytest.raises(ValueError, match=said): model(*args)


@pytest.mark.parametrize('size', [(32, 32), (48, 16), (128, 64)])
def test_sides_of_any_multiple_of_16(model, size):
    # masks of any size and integer type
    out = model(torch.randn(2, 3, *size), torch.zeros(2, 37, 21, dtype=torch.uint8))
    assert out.mask_logits.shape == (2, 8, size[0] // 8, size[1] // 8)


def test_one_image_is_enough_to_embed(model, images):
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images[:1]).embedding, model(images).embedding[:1], rtol=1e-4, atol=1e-6)


def test_eval_is_deterministic(model, images):
    model.eval()
    with torch.no_grad(): assert all(torch.equal(a, b) for a, b in zip(model(images), model(images)))


# --- what the parts are made of

def test_forward_is_the_method_step_by_step(model, images, labels):
    kept = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]).bool()
    model.eval()
    with torch.no_grad():
        out = model(images, labels, kept)
        stage3, stage4 = model.backbone(images)
        masks = labels_to_masks(resize_labels(labels, (8, 4)), stage3.shape[-2:])
        f_global = stage4.mean((2, 3))
        f_sab = model.sab.reduce(kept_region_pool(model.sab.map(stage3), masks, kept))
        regions = region_max_pool(model.sfb.map(stage3), masks)
        f_sfb = model.sfb.fuse.rnn(regions)[0][:, -1]
        normed = [model.branches[b].neck.bn(f) for b, f in (('global', f_global), ('sab', f_sab), ('sfb', f_sfb))]
        # length 1, and half a weight for SAB and SFB
        embedding = torch.cat([weight*F.normalize(f) for weight, f in zip((1, .5, .5), normed)], 1)
    for got, want in ((out.features['global'], f_global), (out.features['sab'], f_sab), (out.features['sfb'], f_sfb),
                      (out.region_features, regions), (out.mask_logits, model.segmentation(stage4)),
                      (out.embedding, embedding / embedding.norm(dim=1, keepdim=True))):
        torch.testing.assert_close(got, want)


def test_without_masks_the_model_parses(model, images):
    model.eval()
    with torch.no_grad():
        maps, out = model.feature_maps(images), model(images)
        assert torch.equal(maps['masks'], predicted_masks(out.mask_logits, (4, 2)))
        again = model(images, out.mask_logits.argmax(1))
    for a, b in zip(out, again): torch.testing.assert_close(a, b)


def test_images_without_a_mask_are_parsed_and_others_not(model, images, labels):
    labels[1] = NO_MASK
    model.eval()
    with torch.no_grad():
        given, own, mixed = (model.feature_maps(images, m)['masks'] for m in (labels % 8, None, labels))
    assert torch.equal(mixed[1], own[1])
    for i in (0, 2, 3): assert torch.equal(mixed[i], given[i])
    assert torch.equal(mixed.sum(1), torch.ones(4, 4, 2))


def test_float_masks_and_one_hot_labels_say_the_same(model, images, labels):
    model.eval()
    soft = torch.nn.functional.one_hot(labels, 8).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        for a, b in zip(model(images, labels), model(images, soft)): torch.testing.assert_close(a, b)


def test_feature_maps(model, images, labels):
    maps = model.feature_maps(images, labels)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        'stage3': (4, 128, 4, 2), 'stage4': (4, 256, 4, 2), 'global': (4, 256, 4, 2), 'sab': (4, 128, 4, 2),
        'sfb': (4, 128, 4, 2), 'mask_logits': (4, 8, 8, 4), 'masks': (4, 8, 4, 2)}
    assert set(build(mask=False, sab=False, sfb=False).feature_maps(images)) == {'stage3', 'stage4', 'global'}
    assert not maps['masks'].requires_grad


def test_occlusion_changes_sab_alone(model, images, labels):
    model.eval()
    with torch.no_grad(): whole, part = model(images, labels), model(images, labels, [True] + [False] * 7)
    assert not torch.equal(whole.features['sab'], part.features['sab'])
    for b in ('global', 'sfb'): assert torch.equal(whole.features[b], part.features[b])


def test_a_model_without_parts_takes_masks_and_lets_them_be(images, labels):
    out = build(sab=False, sfb=False)(images, labels, [True] * 8)
    assert list(out.features) == ['global']
    assert out.mask_logits is not None


# --- training

@pytest.mark.parametrize('options', [*ROWS, dict(cell='lstm'), dict(branch_bottleneck=False)])
def test_gradients_reach_every_parameter(options, images, labels):
    model = build(**options)
    MagnifierLoss(gamma=1., sab_triplet='plain')(model(images, labels, [True] * 8), labels,
                                                 torch.tensor([[0], [0], [1], [1]]).expand(4, 4)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.endswith(('neck.bn.bias', 'necks.bn.bias'))}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_splitter_has_every_parameter_but_the_frozen_once(model):
    backbone, rest = model_splitter(model)
    assert [id(p) for p in backbone] == [id(p) for p in model.backbone.parameters()]
    ids = [id(p) for p in backbone + rest]
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    assert len(frozen) == 4
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for p in model.parameters()} - frozen
    for p in model.parameters(): p.requires_grad_(False)  # a frozen model is split alike
    assert [id(p) for group in model_splitter(model) for p in group] == ids


def test_float64(model, images, labels):
    out = model.double()(images.double(), labels)
    assert all(t.dtype == torch.float64 for t in out)


def test_bfloat16_autocast_keeps_heads_in_float32(images, labels):
    model, seen = build(), {}
    for name in ('branches.sab.reduce', 'branches.sfb.fuse', 'branches.global.neck', 'branches.sfb.region_necks',
                 'backbone.layer4'):
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: y[0].dtype}))
    want = model(images, labels)
    with torch.autocast('cpu', dtype=torch.bfloat16): out = model(images, labels)
    assert all(t.dtype == torch.float32 for t in out)
    assert seen.pop('backbone.layer4') == torch.bfloat16
    assert set(seen.values()) == {torch.float32}
    assert torch.nn.functional.cosine_similarity(out.embedding, want.embedding).min() > 0.98
    MagnifierLoss()(out, labels, torch.tensor([[0], [0], [1], [1]]).expand(4, 4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- life around the model

def test_output_survives_what_fastai_does(model, images, labels):
    model.eval()
    with torch.no_grad(): out = model(TensorImage(images), TensorMask(labels))
    assert type(out.embedding) is torch.Tensor
    for other in (to_detach(out), to_float(out), apply(lambda t: t + 0, out), pickle.loads(pickle.dumps(out)),
                  copy.deepcopy(out)):
        assert type(other) is MagnifierOutput
        assert torch.equal(other.embedding, out.embedding)
        assert set(other.features) == set(out.features)
    both = to_concat([to_detach(out), to_detach(out)])  # as get_preds gathers batches
    assert type(both) is MagnifierOutput
    assert both.region_features.shape == (8, 8, 128)
    assert both.region_logits is None
    turned = nested_reorder(both, torch.arange(7, -1, -1))
    assert type(turned) is MagnifierOutput
    assert torch.equal(turned.embedding[0], out.embedding[-1])
    assert turned.mask_logits.shape[0] == 8


def test_pickles_and_loads(model, images):
    model.eval()
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad(): assert torch.equal(again(images).embedding, model(images).embedding)
    fresh = build()
    fresh.load_state_dict(model.state_dict())


def test_state_dict_keys_are_stable(model):
    heads = {k for k in model.state_dict() if not k.startswith('backbone.') and '.map.' not in k and 'running' not in k
             and 'num_' not in k}
    assert heads == {
        'segmentation.deconv.weight', 'segmentation.bn.weight', 'segmentation.bn.bias', 'segmentation.conv.weight',
        'segmentation.conv.bias',
        *(f'branches.{b}.neck.{p}' for b in ('global', 'sab', 'sfb')
          for p in ('bn.weight', 'bn.bias', 'classifier.weight')),
        'branches.sab.reduce.weight',
        *(f'branches.sfb.fuse.rnn.{p}_{q}_l0' for p in ('weight', 'bias') for q in ('ih', 'hh')),
        'branches.sfb.region_necks.bn.weight', 'branches.sfb.region_necks.bn.bias', 'branches.sfb.region_necks.weight'}
    assert {'backbone.conv1.weight', 'backbone.layer4.0.bn2.bias', 'branches.sab.map.conv1.weight',
            'branches.sfb.map.bn3.weight'} <= set(model.state_dict())


def test_properties(model):
    assert isinstance(model, MagnifierNet)
    assert model.sab is model.branches['sab']
    assert model.sfb is model.branches['sfb']
    plain = build(mask=False, sab=False, sfb=False)
    assert plain.sab is None
    assert plain.sfb is None
    assert plain.segmentation is None


@pytest.mark.slow
def test_an_image_overfits_in_a_few_steps(model, images, labels):
    identity, loss = torch.tensor([[0], [0], [1], [1]]).expand(4, 4), MagnifierLoss()
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    torch.manual_seed(0)
    learnt = []
    for _ in range(12):
        value = loss(model(images, labels), labels, identity)
        opt.zero_grad()
        value.backward()
        opt.step()
        learnt.append(sum(v for name, v in loss.last.items() if name.endswith(('cls', 'tri'))
                          and name != 'region_cls').item())
    assert learnt[-1] < 0.6 * learnt[0]  # smoothing keeps 0.39 a branch; the masks are noise, and not counted
    assert all((m.bias == 0).all() for name, m in model.named_modules() if name.endswith(('neck.bn', 'necks.bn')))


def lived_in(arch='resnet10_narrow', **kwargs):
    "A model whose batch norms have seen something, and whose weights and biases are none of the initial ones"
    torch.manual_seed(0)
    model = create_magnifier(arch, 5, False, **{'hidden': 32, **kwargs})
    with torch.no_grad():
        for _ in range(3): model(torch.randn(8, 3, 64, 32))
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
                m.weight.uniform_(.5, 1.5)
                m.running_mean.normal_(0, .1)
            if isinstance(m, nn.BatchNorm2d): m.bias.normal_(0, .1)
    return model.eval()


SLOWER = [
    dict(sab=False, sfb=False), dict(sfb=False), dict(sab=False), dict(sfb='ab'), dict(cell='lstm'),
    dict(region_stage=4), dict(branch_bottleneck=False), dict(soft_masks=True), dict(mask_resize='nearest'),
    dict(last_stride=2), dict(n_regions=4), dict(normalise_branches=False, branch_weights=None),
    dict(keep_background=False), dict(upsample_maps=True), dict(stage3_stride=1), dict(arch='resnet18'),
    dict(arch='resnet50'), dict(arch='osnet_x0_25')]


@pytest.mark.parametrize('kwargs', [
    {}, dict(mask=False, sab=False, sfb=False), *(pytest.param(k, marks=pytest.mark.slow) for k in SLOWER)])
def test_embeds_as_the_model_does(kwargs):
    model = lived_in(**kwargs)
    images, state = torch.randn(3, 3, 64, 48), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected, got = model(images), EmbeddingNet(model)(images)
        assert got.shape == (3, model.embedding_dim)
        assert (got - expected.embedding).abs().max() < 1e-5
        for n in (0, 1): assert EmbeddingNet(model)(images[:n]).shape == (n, model.embedding_dim)
        if expected.mask_logits is not None:
            got, labels = EmbeddingNet(model, masks=True)(images)
            assert (got - expected.embedding).abs().max() < 1e-5
            assert labels.dtype == torch.uint8
            assert (labels == expected.mask_logits.argmax(1)).float().mean() > .999
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())  # a copy was folded


def test_it_is_smaller_and_has_no_norms():
    model = lived_in()
    net = EmbeddingNet(model)
    words = {word for name in net.state_dict() for word in name.split('.')}
    assert not [word for word in words if keyword.iskeyword(word)]  # exporters write code of the names
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training
    assert EmbeddingNet(lived_in(sab=False, sfb=False)).segmentation is None  # parts that nothing is pooled by


def test_a_training_model_is_copied_as_it_evaluates():
    model = lived_in()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = model(images).embedding
        assert (EmbeddingNet(model.train())(images) - expected).abs().max() < 1e-5
    assert model.training


def test_labels_need_a_head():
    with pytest.raises(ValueError, match='no segmentation head'):
        EmbeddingNet(lived_in(mask=False, sab=False, sfb=False), masks=True)


def test_bfloat16_stays_close():
    model = lived_in()
    images = torch.randn(4, 3, 64, 32)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): half = EmbeddingNet(model)(images)
    with torch.no_grad(): whole = model(images).embedding
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half, whole).min() > .99


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
    assert isinstance(folded[1], nn.BatchNorm2d)
    assert net.training
    assert not folded.training
