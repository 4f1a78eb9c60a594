"Circle and center loss against plain loops, in degenerate batches, in half precision, and as options of the sum"
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from magnifier.model.output import MagnifierOutput
from magnifier.train.losses import MagnifierLoss
from magnifier.train.metric_losses import Centers, center_loss, circle_loss, move_centers

labels_of = st.lists(st.integers(-1, 3), min_size=1, max_size=9)


def features_of(labels, seed=0, c=5): return torch.randn(len(labels), c, generator=torch.Generator().manual_seed(seed))


def slow_circle(x, labels, m, gamma):
    x = (x/x.norm(dim=1, keepdim=True)).double().numpy()
    values = []
    for i, a in enumerate(labels):
        pos = [x[i] @ x[j] for j, b in enumerate(labels) if j != i and a == b >= 0]
        neg = [x[i] @ x[j] for j, b in enumerate(labels) if a >= 0 and b >= 0 and a != b]
        if not pos or not neg: continue
        total = sum(np.exp(gamma*max(s + m, 0)*(s - m)) for s in neg)*sum(np.exp(-gamma*max(1 + m - s, 0)*(s - 1 + m)) for s in pos)
        values.append(np.log1p(total))
    return np.mean(values) if values else 0.


@settings(deadline=None, max_examples=60)
@given(labels_of, st.sampled_from([0., .25, .5]), st.sampled_from([1., 16., 64.]), st.integers(0, 99))
def test_circle_equals_the_loop(labels, m, gamma, seed):
    x = features_of(labels, seed)
    assert float(circle_loss(x, torch.tensor(labels), m, gamma)) == pytest.approx(slow_circle(x, labels, m, gamma), rel=1e-4, abs=1e-5)


def test_the_weights_of_the_circle_carry_no_gradient():
    # One positive and one negative: the slope is the fixed weight, not the derivative of the product
    x = features_of([0, 0, 1]).double().requires_grad_()
    circle_loss(x, torch.tensor([0, 0, 1]), .25, 4.).backward()
    y = x.detach().clone().requires_grad_()
    values = []
    for i in (0, 1):
        s = [torch.nn.functional.cosine_similarity(y[i], y[j], dim=0) for j in (1 - i, 2)]
        z = 4*(s[1].item() + .25)*(s[1] - .25)*(s[1].item() > -.25) - 4*(1.25 - s[0].item())*(s[0] - .75)
        values.append(torch.log1p(z.exp()))
    torch.stack(values).mean().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize('labels', [[0], [0, 0, 0], [0, 1, 2], [-1, -1, -1], [0, 0, -1]])
def test_no_pairs_are_zero_with_gradient(labels):
    for loss in (circle_loss, lambda x, l: center_loss(x, l.clamp(max=-1), torch.zeros(4, 5))):
        x = features_of(labels).requires_grad_()
        value = loss(x, torch.tensor(labels))
        value.backward()
        assert value.item() == 0 and value.requires_grad and torch.equal(x.grad, torch.zeros_like(x))


@settings(deadline=None, max_examples=40)
@given(labels_of, st.integers(0, 99))
def test_centers_equal_the_loop(labels, seed):
    x, centers = features_of(labels, seed), features_of(range(4), seed + 1)
    known = [i for i, l in enumerate(labels) if l >= 0]
    want = np.mean([float((x[i] - centers[labels[i]]).square().sum()) for i in known]) if known else 0.
    assert float(center_loss(x, torch.tensor(labels), centers)) == pytest.approx(want, rel=1e-4)
    moved = centers.clone()
    move_centers(moved, x, torch.tensor(labels), .5)
    for j in range(4):
        mine = [x[i] for i in known if labels[i] == j]
        delta = sum((centers[j] - v for v in mine), torch.zeros(5))/(1 + len(mine))
        torch.testing.assert_close(moved[j], centers[j] - .5*delta, rtol=1e-4, atol=1e-5)


def test_centers_start_at_zero_move_in_training_alone_and_come_to_their_class():
    centers, labels = Centers(), torch.tensor([0, 0, 1])
    x = torch.tensor([[1., 0.], [1., 0.], [0., 3.]])
    with torch.no_grad(): assert centers(x, labels, 3).item() == pytest.approx(11/3)
    assert not centers.values.any()
    for _ in range(60): loss = centers(x, labels, 3)
    assert loss < 1e-6 and torch.allclose(centers.values, torch.tensor([[1., 0.], [0., 3.], [0., 0.]]), atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    labels = torch.tensor([0, 0, 1, 1])
    x = features_of(labels, c=64).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): found = circle_loss(x, labels), center_loss(x, labels, torch.ones(2, 64)), Centers()(x, labels, 2)
    want = circle_loss(x.float(), labels), center_loss(x.float(), labels, torch.ones(2, 64)), Centers()(x.float(), labels, 2)
    for a, b in zip(found, want): assert a.dtype == torch.float32 and torch.equal(a, b)


def test_per_image_values_have_the_mean():
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    x, centers = features_of(labels), features_of(range(3), 1)
    circle, center = circle_loss(x, labels, reduction='none'), center_loss(x, labels, centers, reduction='none')
    assert circle.shape == center.shape == (6,) and (circle > 0).tolist() == [True]*4 + [False]*2
    assert circle[:4].mean().item() == pytest.approx(circle_loss(x, labels).item(), rel=1e-5)
    assert center[:5].mean().item() == pytest.approx(center_loss(x, labels, centers).item(), rel=1e-5)


@pytest.fixture
def output():
    x = {b: torch.randn(4, c, generator=torch.Generator().manual_seed(c), requires_grad=True) for b, c in (('global', 6), ('sab', 4))}
    logits = {b: torch.zeros(4, 3) for b in x}
    return MagnifierOutput.build(torch.nn.functional.normalize(x['global']), features=x, logits=logits)


IDENTITY = torch.tensor([[0, 7, 1, 0], [0, 7, 1, 0], [2, 9, 1, 0], [2, 9, 1, 0]])


def test_they_are_options_of_the_sum(output):
    loss, labels = MagnifierLoss(pairs='circle', center_weight=.01, masks=False), IDENTITY[:, 0]
    total, f = loss(output, IDENTITY), output.features
    want = {f'{b}_circle': slow_circle(f[b].detach(), labels.tolist(), .25, 128.) for b in f} | {
        f'{b}_center': f[b].detach().square().sum(1).mean().item() for b in f} | {f'{b}_cls': np.log(3) for b in f}
    assert {k: v.item() for k, v in loss.last.items()} == pytest.approx(want, rel=1e-4)
    assert total.item() == pytest.approx(sum(v*(.01 if k.endswith('center') else 1) for k, v in want.items()), rel=1e-4)
    total.backward()
    assert all(x.grad.abs().sum() > 0 for x in f.values())
    again = MagnifierLoss(pairs='circle', center_weight=.01, masks=False)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(output, IDENTITY), loss(output, IDENTITY)) and MagnifierLoss().state_dict() == {}
    assert torch.equal(pickle.loads(pickle.dumps(loss)).state_dict()['sab'], loss.state_dict()['sab'])


def test_without_a_triplet_in_sab_there_is_no_circle_there(output):
    loss = MagnifierLoss(pairs='circle', sab_triplet=False)
    loss(output, IDENTITY)
    assert 'global_circle' in loss.last and 'sab_circle' not in loss.last


@pytest.mark.parametrize('kwargs, message', [(dict(pairs='square'), 'use triplet or circle'), (dict(center_weight=-1), 'center_weight=-1')])
def test_what_makes_no_sense_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message): MagnifierLoss(**kwargs)


def test_columns_name_the_losses_in_use(dls):
    from magnifier.train.learner import magnifier_learner
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=16, loss_func=MagnifierLoss(pairs='circle', center_weight=5e-4))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'valid_loss', 'id', 'circle', 'center', 'mask', 'sd', 'R1', 'mAP', 'time']
    row = dict(zip(names[1:], learn.recorder.values[-1]))
    assert row['circle'] > 0 and row['center'] > 0 and len(learn.recorder.values[-1]) == len(names) - 2
