"Losses against loops that say the same in the longest way"
import itertools
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.model.net import MagnifierOutput, create_magnifier
from magnifier.model.pooling import resize_labels
from magnifier.regions import NO_MASK
from magnifier.train.losses import (MagnifierLoss, batch_hard_triplet, gradient_norms, identity_loss,
                                    region_segmentation_loss, semantic_diversity_loss)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def value(x): return x.detach().item() if isinstance(x, torch.Tensor) else x


def rng(seed=0): return torch.Generator().manual_seed(seed)


def slow_triplet(features, labels, margin):
    losses = []
    for a in range(len(labels)):
        to = lambda i: value(((features[a] - features[i]) ** 2).sum() ** 0.5)
        if labels[a] < 0: continue
        positives = [to(i) for i in range(len(labels)) if i != a and labels[i] == labels[a]]
        negatives = [to(i) for i in range(len(labels)) if labels[i] != labels[a] and labels[i] >= 0]
        if positives and negatives: losses.append(max(0., margin + max(positives) - min(negatives)))
    return sum(losses) / len(losses) if losses else 0.


def slow_cross_entropy(logits, labels, smoothing):
    losses = []
    for row, label in zip(logits.double(), labels):
        if label < 0: continue
        target = torch.full_like(row, smoothing / len(row))
        target[label] += 1 - smoothing
        losses.append(value(-(target * row.log_softmax(0)).sum()))
    return sum(losses) / len(losses) if losses else 0.


def slow_diversity(features, eps=1e-8):
    total, (n, k, _) = 0., features.shape
    for image in features.double():
        for i, j in itertools.combinations(range(k), 2):
            total += value(image[i] @ image[j] / max(value(image[i].norm() * image[j].norm()), eps))
    return total / (n * k * (k - 1) / 2)


def slow_segmentation(logits, mask):
    k = logits.shape[1]
    by_region, logp = {r: [] for r in range(k)}, logits.double().log_softmax(1)
    target = resize_labels(mask, logits.shape[-2:])
    for i, y, x in itertools.product(*map(range, target.shape)):
        if (mask[i] == NO_MASK).any(): continue
        by_region[int(target[i, y, x])].append(-value(logp[i, target[i, y, x], y, x]))
    means = [sum(v) / len(v) for v in by_region.values() if v]
    return sum(means) / len(means) if means else 0.


# --- batch-hard triplet

@settings(deadline=None, max_examples=60)
@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=12), margin=st.sampled_from([0., 0.3, 2.]),
       seed=st.integers(0, 10**6))
def test_triplet_equals_the_loop(labels, margin, seed):
    features = torch.randn(len(labels), 5, generator=rng(seed), dtype=torch.float64)
    got = batch_hard_triplet(features, torch.tensor(labels), margin)
    assert value(got) == pytest.approx(slow_triplet(features, labels, margin), rel=1e-10)


@pytest.mark.parametrize('labels', [[0, 0, 0], [0, 1, 2], [-1, -1, -1], [3]])
@pytest.mark.parametrize('dtype', DTYPES)
def test_no_triplet_is_zero_with_gradient(labels, dtype):
    features = torch.randn(len(labels), 4, generator=rng()).to(dtype).requires_grad_()
    loss = batch_hard_triplet(features, torch.tensor(labels))
    loss.backward()
    assert loss == 0
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(features.grad, 0 * features)


def test_repeated_images_give_finite_gradients():
    features = torch.ones(6, 4, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert value(loss) == pytest.approx(0.3)
    assert features.grad.isfinite().all()


def test_near_pairs_far_from_the_origin_are_told_apart():
    features = torch.full((4, 512), 10.)
    features[1, 0] += 0.01
    features[2:, 1] += 0.03
    want = slow_triplet(features.double(), [0, 0, 1, 1], 0.3)
    assert value(batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]))) == pytest.approx(want, rel=1e-4)


def test_triplet_per_image_has_the_mean_of_its_valid_anchors():
    features, labels = torch.randn(6, 3, generator=rng()), torch.tensor([0, 0, 1, 2, 2, -1])
    each = batch_hard_triplet(features, labels, reduction='none')
    assert each.shape == (6,)
    assert each[2] == each[5] == 0
    torch.testing.assert_close(each.sum() / 4, batch_hard_triplet(features, labels))


def test_triplet_gradcheck():
    features = torch.randn(6, 3, generator=rng(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: batch_hard_triplet(f, torch.tensor([0, 0, 1, 1, 2, 2]), 5.), features)


# --- cross-entropy

@pytest.mark.parametrize('smoothing', [0., 0.1])
@pytest.mark.parametrize('labels', [[0, 3, 2, 1], [0, -1, 2, -1], [-1] * 4])
def test_identity_loss_equals_the_loop(labels, smoothing):
    logits = torch.randn(4, 5, generator=rng(), requires_grad=True)
    loss = identity_loss(logits, torch.tensor(labels), smoothing=smoothing)
    loss.backward()
    assert value(loss) == pytest.approx(slow_cross_entropy(logits, labels, smoothing), rel=1e-5)
    assert (logits.grad[torch.tensor(labels) < 0] == 0).all()


def test_identity_loss_adds_up_classifiers():
    logits, labels = torch.randn(4, 8, 5, generator=rng()), torch.tensor([1, -1, 0, 4])
    want = sum(slow_cross_entropy(logits[:, k], labels, 0.1) for k in range(8))
    assert value(identity_loss(logits, labels)) == pytest.approx(want, rel=1e-5)
    assert identity_loss(logits, labels, reduction='none').shape == (4,)


# --- semantic diversity

@pytest.mark.parametrize('k', [1, 2, 8])
def test_diversity_equals_the_loop(k):
    features = torch.rand(3, k, 6, generator=rng(), dtype=torch.float64)
    features[0, 0] = 0
    want = slow_diversity(features) if k > 1 else 0
    assert value(semantic_diversity_loss(features)) == pytest.approx(want, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(2, 8), st.integers(1, 6), st.integers(0, 10**6))
def test_diversity_of_non_negative_features_lies_between_0_and_1(n, k, c, seed):
    features = torch.randn(n, k, c, generator=rng(seed)).relu()
    assert 0 <= value(semantic_diversity_loss(features)) <= 1 + 1e-6


def test_diversity_of_orthogonal_equal_and_absent_regions():
    assert semantic_diversity_loss(torch.eye(8)[None]) == 0
    assert value(semantic_diversity_loss(torch.ones(2, 8, 3))) == pytest.approx(1)
    absent = torch.zeros(2, 8, 3, requires_grad=True)
    loss = semantic_diversity_loss(absent)
    loss.backward()
    assert loss == 0
    assert absent.grad.isfinite().all()


def test_diversity_counts_the_images_told():
    features, counted = torch.rand(4, 8, 3, generator=rng()), torch.tensor([True, False, True, False])
    torch.testing.assert_close(semantic_diversity_loss(features, counted), semantic_diversity_loss(features[counted]))
    assert semantic_diversity_loss(features, torch.zeros(4, dtype=torch.bool)) == 0
    assert semantic_diversity_loss(features, counted, reduction='none').tolist()[1::2] == [0, 0]


def test_diversity_gradcheck():
    features = torch.rand(2, 4, 3, generator=rng(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(semantic_diversity_loss, features)


# --- region segmentation

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9),
       st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 10**6))
def test_segmentation_equals_the_loop(n, h, w, H, W, absent, seed):
    logits = torch.randn(n, 8, h, w, generator=rng(seed), dtype=torch.float64)
    mask = torch.randint(8, (n, H, W), generator=rng(seed))
    for i in range(n): mask[i] = NO_MASK if absent[i] else mask[i]
    assert value(region_segmentation_loss(logits, mask)) == pytest.approx(slow_segmentation(logits, mask), rel=1e-10)


def test_images_without_a_mask_change_nothing():
    logits = torch.randn(4, 8, 6, 4, generator=rng(), requires_grad=True)
    mask = torch.randint(8, (4, 12, 8), generator=rng())
    mask[1] = NO_MASK
    mask[3, 0, 0] = NO_MASK  # the rest of it was padded
    loss = region_segmentation_loss(logits, mask)
    assert torch.equal(loss, region_segmentation_loss(logits[[0, 2]], mask[[0, 2]]))
    loss.backward()
    assert logits.grad[[1, 3]].abs().sum() == 0
    assert logits.grad[[0, 2]].abs().sum() > 0
    each = region_segmentation_loss(logits, mask, reduction='none')
    for i in range(4): torch.testing.assert_close(each[i], region_segmentation_loss(logits[i:i+1], mask[i:i+1]))


def test_no_mask_at_all_is_zero_with_gradient():
    logits = torch.randn(2, 8, 6, 4, requires_grad=True)
    loss = region_segmentation_loss(logits, torch.full((2, 6, 4), NO_MASK))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_small_parts_count_as_much_as_the_background():
    mask = torch.zeros(1, 10, 10, dtype=torch.long)
    mask[0, 0, 0] = 7
    logits = torch.zeros(1, 8, 10, 10)
    logits[:, 0] = 100  # all background
    assert value(region_segmentation_loss(logits, mask)) == pytest.approx(50)


# --- the sum

@pytest.fixture(scope='module')
def model(arch):
    torch.manual_seed(0)
    return create_magnifier(arch, 5, False, hidden=16)


@pytest.fixture
def batch():
    g = rng()
    identity = torch.zeros(6, 4, dtype=torch.long)
    identity[:, 0] = torch.tensor([0, 0, 1, 1, 4, 4])
    return torch.randn(6, 3, 32, 32, generator=g), torch.randint(8, (6, 32, 32), generator=g), identity


@pytest.fixture
def output(model, batch):
    model.train()
    return model(batch[0], batch[1])


PARTS = {f'{b}_{p}' for b in ('global', 'sab', 'sfb') for p in ('cls', 'tri')} | {'region_cls', 'mask', 'sd'}
Whole = partial(MagnifierLoss, sab_triplet='plain')  # Eq. 4 as written


def test_total_is_equation_4(output, batch):
    _, mask, identity = batch
    loss = Whole(gamma=2e-3)
    total, labels = loss(output, mask, identity), identity[:, 0]
    want = 2 * slow_segmentation(output.mask_logits, mask) + 2e-3 * slow_diversity(output.region_features)
    want += 0.0125 * sum(slow_cross_entropy(output.region_logits[:, k], labels, 0.1) for k in range(8))
    for b in ('global', 'sab', 'sfb'):
        want += slow_cross_entropy(output.logits[b], labels, 0.1)
        want += slow_triplet(output.features[b].detach(), labels, 0.3)
    assert value(total) == pytest.approx(want, rel=1e-5)
    assert total.dtype == torch.float32
    assert set(loss.last) == PARTS
    assert not any(v.requires_grad or v.ndim for v in loss.last.values())


def test_options_leave_parts_out(output, batch):
    loss = MagnifierLoss(mask_weight=0., region_weight=0.)
    total = loss(output, *batch[1:])
    assert set(loss.last) == PARTS - {'sab_tri'}
    parts = [value(v) for name, v in loss.last.items() if name not in ('mask', 'region_cls', 'sd')]
    assert value(total) == pytest.approx(sum(parts), rel=1e-6)


def test_without_gamma_diversity_is_watched_and_gives_no_gradient(output, batch):
    for gamma in (0., 2e-3):
        loss = Whole(gamma=gamma)
        diversity = next(part.value for part in loss.parts(output, *batch[1:]) if part.name == 'sd')
        assert diversity > 0
        assert diversity.requires_grad == bool(gamma)


def test_unlabelled_identities_leave_the_mask_loss(output, batch):
    _, mask, identity = batch
    loss = Whole(gamma=1.)
    total = loss(output, mask, torch.full_like(identity, -1))
    torch.testing.assert_close(total, 2 * region_segmentation_loss(output.mask_logits, mask))
    assert {name for name, v in loss.last.items() if v > 0} == {'mask'}
    nothing = loss(output, torch.full_like(mask, NO_MASK), torch.full_like(identity, -1))
    assert nothing == 0
    assert nothing.requires_grad


def test_images_without_a_mask_count_in_the_global_branch_alone(output, batch):
    _, mask, identity = batch
    mask[:2] = NO_MASK
    loss, rest = Whole(gamma=1.), Whole(gamma=1.)
    loss(output, mask, identity)
    rest(MagnifierOutput([t[2:] for t in output]), mask[2:], identity[2:])
    for name in PARTS - {'global_cls', 'global_tri'}: torch.testing.assert_close(loss.last[name], rest.last[name])
    want = slow_cross_entropy(output.logits['global'], identity[:, 0], 0.1)
    assert value(loss.last['global_cls']) == pytest.approx(want, rel=1e-5)


def test_identity_alone(output, batch):
    loss = Whole(masks=False)
    loss(output, batch[2])
    assert set(loss.last) == PARTS - {'mask'}
    assert isinstance(loss.decodes(output), TensorIdentity)


def test_tensor_subclasses_and_a_list_are_taken(output, batch):
    loss = Whole()
    want = loss(output, *batch[1:])
    got = loss(list(output), TensorPartMask(batch[1]), TensorIdentity(batch[2]))
    assert type(got) is torch.Tensor
    assert torch.equal(got, want)


def test_loss_per_image(output, batch):
    loss = Whole(reduction='none')
    each = loss(output, *batch[1:])
    whole = Whole()
    whole(output, *batch[1:])
    assert each.shape == (6,)
    # every image counts here
    for name in PARTS - {'mask'}: torch.testing.assert_close(loss.last[name], whole.last[name])


def test_decodes_gives_one_item_a_target(output, batch, arch):
    masks, identity = Whole().decodes(Whole().activation(output))
    assert type(masks) is TensorPartMask
    assert type(identity) is TensorIdentity
    assert torch.equal(masks.as_subclass(torch.Tensor), output.mask_logits.argmax(1))
    assert torch.equal(identity.label, sum(output.logits.values()).argmax(1))
    assert (identity[:, 1:] == -1).all()
    plain = create_magnifier(arch, 5, False, mask=False, sab=False, sfb=False).eval()
    masks, identity = Whole().decodes(plain(batch[0]))
    assert (masks == NO_MASK).all()
    assert len(masks) == len(identity) == 6


@pytest.mark.parametrize('name', ['gamma', 'mask_weight', 'region_weight', 'margin'])
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=f'{name}=-1'): Whole(**{name: -1})


def test_pickles():
    assert pickle.loads(pickle.dumps(Whole(gamma=0.5))).gamma == 0.5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    features, labels = torch.randn(4, 8, 6, generator=rng()).to(dtype), torch.tensor([0, 0, 1, 1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for fn, args in ((identity_loss, (features[:, 0], labels)), (batch_hard_triplet, (features[:, 0], labels)),
                         (semantic_diversity_loss, (features,)),
                         (region_segmentation_loss, (features[..., None], torch.ones(4, 6, 1, dtype=torch.long)))):
            got = fn(*args)
            assert got.dtype == torch.float32
            assert torch.equal(got, fn(args[0].float(), *args[1:]))


# --- the adversarial branch's own

def test_sab_has_no_triplet_unless_asked(output, batch):
    loss = MagnifierLoss()
    loss(output, *batch[1:])
    assert set(loss.last) == PARTS - {'sab_tri'}
    with pytest.raises(ValueError, match="sab_triplet='hard': use one of none, plain, normalised"):
        MagnifierLoss(sab_triplet='hard')


def test_sabs_triplet_on_features_of_length_one(output, batch):
    loss = MagnifierLoss(sab_triplet='normalised')
    loss(output, *batch[1:])
    features = output.features['sab'].detach()
    unit = features / features.norm(dim=1, keepdim=True)
    assert value(loss.last['sab_tri']) == pytest.approx(slow_triplet(unit, batch[2][:, 0], 0.3), rel=1e-5)
    want = slow_triplet(output.features['sfb'].detach(), batch[2][:, 0], 0.3)
    assert value(loss.last['sfb_tri']) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_sabs_identity_loss_by_the_share_kept(model, batch, reduction):
    model.train()
    occluded = model(batch[0], batch[1], [True] * 2 + [False] * 6)
    plain, weighed = MagnifierLoss(reduction=reduction), MagnifierLoss(reduction=reduction, sab_share=True)
    for loss in (plain, weighed): loss(occluded, *batch[1:])
    assert occluded.kept_share.tolist() == [[.25]] * 6
    assert value(weighed.last['sab_cls']) == pytest.approx(value(plain.last['sab_cls']) / (1 + math.exp(-.25)),
                                                           rel=1e-5)
    for name in set(plain.last) - {'sab_cls'}: assert weighed.last[name] == plain.last[name]


# --- gradients by part

def test_gradient_norms_are_those_of_each_part_alone(model, batch):
    model.train()
    loss, kept = MagnifierLoss(gamma=.5), [True] * 5 + [False] * 3
    parts = loss.parts(model(batch[0], batch[1], kept), *batch[1:])
    got = gradient_norms(parts, model.backbone)
    assert all(p.grad is None for p in model.parameters())
    for part in parts:
        model.zero_grad()
        (part.weight * part.value).backward(retain_graph=True)
        grads = [p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None]
        assert got[part.name] == pytest.approx(torch.cat(grads).double().norm().item(), rel=1e-3)
    model.zero_grad(set_to_none=True)
    assert set(got) == PARTS - {'sab_tri'}
    weightless = MagnifierLoss().parts(model(batch[0], batch[1], kept), *batch[1:])
    assert gradient_norms(weightless, model.backbone)['sd'] == 0
