"Maps and contributions against obvious loops, and against networks whose answer is known"
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from magnifier.train.metrics import region_masks
from magnifier.look.explain import REST, explain_pair
from magnifier.look.saliency import (Sight, activation_map, branch_embeddings, contributions, decode_images,
                                     pixel_shares, saliency_inside, saliency_maps, smoothed)
from magnifier.look.drawing import resized_heat
from magnifier.model.branches import AdversarialBranch, FusionBranch, GlobalBranch, RecurrentFusion
from magnifier.model.heads import SegmentationHead
from magnifier.model.net import MagnifierNet, create_magnifier
from magnifier.regions import N_REGIONS

PAPER = dict(normalise_branches=False, branch_weights=None)  # f_bn as it is
SETTINGS = dict(G=dict(mask=False, sab=False, sfb=False), GM=dict(sab=False, sfb=False), SAB=dict(sfb=False, **PAPER),
                SFB=dict(sab=False), full={},
                AB=dict(sfb='ab'), lstm=dict(cell='lstm'), stage4=dict(region_stage=4),
                nearest=dict(mask_resize='nearest'),
                soft=dict(soft_masks=True), stride2=dict(last_stride=2), bare=dict(branch_bottleneck=False),
                paper=PAPER, weighed=dict(branch_weights={'global': .5, 'sfb': 2.}),
                faceless=dict(keep_background=False), large=dict(upsample_maps=True))

NETWORKS = [name if name in ('G', 'full') else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]


@cache
def untrained(name='full'):
    "A small network whose norms hold something, so that averages and slopes are not 0 and 1. No test changes it"
    torch.manual_seed(0)
    model = create_magnifier('resnet18', 5, pretrained=False, hidden=16, **SETTINGS[name])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):  # the necks; in front of a ReLU a positive mean would leave nothing alive
            m.running_mean.uniform_(0, .5)
            m.running_var.uniform_(.5, 2)
            m.weight.data.uniform_(.5, 1.5)
    return model.eval()


@cache
def maps_of(model, n=3, seed=1):
    x = torch.randn(n, 3, 64, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(): return x, model.feature_maps(x)


def test_activation_map_is_channel_energy_stretched():
    f = torch.rand(2, 5, 4, 3)*torch.tensor([1., 100.])[:, None, None, None]
    got = activation_map(f)
    for i in range(2):
        energy = np.array([[np.sqrt(np.mean([f[i, c, y, x].item()**2 for c in range(5)])) for x in range(3)]
                           for y in range(4)])
        assert np.allclose(got[i], (energy - energy.min())/(energy.max() - energy.min()), atol=1e-5)
    assert (activation_map(torch.ones(1, 4, 3, 3)) == 0).all()
    assert (activation_map(torch.zeros(1, 4, 1, 1)) == 0).all()


def joined(model, normed):
    "The parts of the embedding: each branch of length 1, or as it is, times its weight, and all of length 1"
    parts = [f/f.norm(dim=1, keepdim=True) if model.normalise_branches else f for f in normed.values()]
    parts = [f*w for f, w in zip(parts, model.branch_weights)]
    whole = torch.cat(parts, 1).norm(dim=1, keepdim=True)
    return [f/whole for f in parts]


@pytest.mark.parametrize('name', NETWORKS)
def test_branch_embeddings_make_the_embedding_and_contributions_the_score(name):
    model = untrained(name)
    (x, a), (y, b) = maps_of(model), maps_of(model, seed=2)
    with torch.no_grad(): e, f = model(x).embedding, model(y).embedding
    assert torch.allclose(torch.cat(joined(model, branch_embeddings(model, a)), 1), e, atol=1e-5)
    made = contributions(model, a, b)
    assert torch.allclose(made.score, (e*f).sum(1), atol=1e-5)
    k = 1 if name == 'G' else N_REGIONS
    assert all(p.shape[:2] == (3, k) for p in made.parts.values())


def of_an_average_person(model, a, b):
    "(n,) what the average person earns in SFB; nothing where there is none, so that all of the score is shared out"
    if model.sfb is None: return torch.zeros(len(a['global']))
    z, e = (branch_embeddings(model, m) for m in (a, b))
    average = model.sfb.region_necks.bn.running_mean.view(1, N_REGIONS, -1)
    with torch.no_grad(): f = model.sfb.neck.bn(model.sfb.fuse(average))
    held = joined(model, z)[-1].norm(dim=1)/z['sfb'].norm(dim=1)
    return (f*joined(model, e)[-1]).sum(1)*held


@pytest.mark.parametrize('name', NETWORKS)
def test_what_is_not_shared_out_is_what_an_average_person_earns(name):
    model = untrained(name)
    (_, a), (_, b) = maps_of(model), maps_of(model, seed=2)
    want, back = of_an_average_person(model, a, b), of_an_average_person(model, b, a)
    made = contributions(model, a, b)
    assert torch.allclose(made.score - sum(p.sum((1, 2, 3)) for p in made.parts.values()), want, atol=1e-5)
    masks = [torch.rand(3, N_REGIONS, *m['global'].shape[-2:]).softmax(1) for m in (a, b)]
    for i in range(3):  # the last row of the table is the same, of both sides
        one = lambda maps: {k: o[i:i+1] for k, o in maps.items()}
        score, table = explain_pair(model, one(a), one(b), [m[i:i+1] for m in masks] if name == 'G' else None)
        assert table.share[REST] == pytest.approx((want[i] + back[i]).item()/2, abs=1e-5)
        assert table.share.sum() == pytest.approx(score, abs=1e-9)


def test_shares_are_counted_in_float32_whatever_the_learner_runs_in():
    model = untrained()
    (_, a), (_, b) = maps_of(model), maps_of(model, seed=2)
    want = contributions(model, a, b)
    with torch.autocast('cpu', torch.bfloat16): got = contributions(model, a, b)
    for name in want.parts: assert torch.allclose(got.parts[name], want.parts[name], atol=1e-6)
    assert torch.allclose(got.score, want.score, atol=1e-6)


def test_global_and_sab_against_loops():
    model = untrained('SAB')
    (_, a), (_, b) = maps_of(model, 1), maps_of(model, 1, seed=2)
    made = contributions(model, a, b)
    z, e = (branch_embeddings(model, m) for m in (a, b))
    lengths = [torch.cat(list(parts.values()), 1).norm().item() for parts in (z, e)]
    norm = lengths[0]*lengths[1]
    masks, (h, w) = a['masks'][0].numpy(), a['masks'].shape[-2:]
    bn = model.branches['global'].neck.bn
    scale = (bn.weight/(bn.running_var + bn.eps).sqrt()).detach().numpy()
    for y in range(h):
        for x in range(w):
            gains = [scale[c]*(a['global'][0, c, y, x].item() - bn.running_mean[c].item()) for c in range(len(scale))]
            value = sum(g*e['global'][0, c].item() for c, g in enumerate(gains))/(h*w)/norm
            assert np.allclose(made.parts['global'][0, :, y, x], value*masks[:, y, x], atol=1e-6)
    bn, reduce = model.sab.neck.bn, model.sab.reduce.weight.detach().numpy()
    scale = (bn.weight/(bn.running_var + bn.eps).sqrt()).detach().numpy()
    f, want = a['sab'][0].numpy()*masks.sum(0), np.zeros((h, w))
    mass = f.max((1, 2))/f.max((1, 2)).sum()
    average = sum(scale[d]*bn.running_mean[d].item()*e['sab'][0, d].item() for d in range(len(scale)))
    for c in range(len(f)):
        place = np.unravel_index(f[c].argmax(), (h, w))
        want[place] += sum(reduce[d, c]*f[c].max()*scale[d]*e['sab'][0, d].item()
                           for d in range(len(scale))) - mass[c]*average
    assert np.allclose(made.parts['sab'][0].sum(0), want/norm, atol=1e-5)


def test_maps_have_no_gradient_left_and_the_model_none():
    model = untrained()
    (_, a), (_, b) = maps_of(model), maps_of(model, seed=2)
    for shares in contributions(model, a, b).parts.values():
        assert not shares.requires_grad
        assert shares.shape == (3, N_REGIONS, 4, 2)
    assert all(p.grad is None for p in model.parameters())


class PatchEye(nn.Module):
    "A network that sees magenta (red and blue without green) in cells of 16 pixels, beside channels of plain colour"
    widths = {3: 4, 4: 4}
    def forward(self, x):
        red, green, blue = x.unbind(1)
        patch = nn.functional.relu(torch.minimum(red, blue) - green - .5)*20
        maps = nn.functional.avg_pool2d(torch.stack([patch, .1*red, .1*green, .1*blue], 1), 16)
        return maps, maps


def eye(branches):
    torch.manual_seed(0)
    made = {'global': GlobalBranch(4, 3), 'sab': AdversarialBranch(4, 3, 4, bottleneck=False),
            'sfb': FusionBranch(4, 3, RecurrentFusion(4, 8), hidden=8, bottleneck=False)}
    if 'sab' in branches: nn.init.eye_(made['sab'].reduce.weight)
    return MagnifierNet(PatchEye(), {b: made[b] for b in ('global', *branches)}, SegmentationHead(4, hidden=4)).eval()


@pytest.mark.parametrize('branches', [(), ('sab',), ('sfb',), ('sab', 'sfb')])
def test_pointing_game_over_walkers(branches, few):
    "A planted patch, all that this network knows people by, is where the map is highest: in 36 of 36 images, both ways"
    from magnifier.data.images import read_image
    rng, model, pictures, at = np.random.default_rng(0), eye(branches), [], []
    for path in [*few.path, *few.path][:36]:
        image = np.asarray(read_image(path).resize((64, 128))).copy()
        y, x = int(rng.integers(0, 8))*16, int(rng.integers(0, 4))*16
        image[y:y + 16, x:x + 16] = (255, 0, 255)
        pictures.append(image), at.append((y//16, x//16))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()/255
    with torch.no_grad(): maps = model.feature_maps(x)
    others = {name: o.roll(1, 0) for name, o in maps.items()}
    for one, other, places in ((maps, others, at), (others, maps, at[-1:] + at[:-1])):
        heats = sum(shares.sum(1) for shares in contributions(model, one, other).parts.values()).numpy()
        peaks = [np.unravel_index(heat.argmax(), heat.shape) for heat in heats]
        assert sum(p == q for p, q in zip(peaks, places)) == len(places)


def test_sight_shows_what_the_loader_gives(seer, few):
    sight = Sight.of(seer, few.iloc[:3])
    x, m, _ = seer.loader(few.iloc[:3]).one_batch()
    assert sight.images.shape == (3, 64, 32, 3)
    assert 0 <= sight.images.min()
    assert sight.images.max() <= 1
    assert np.allclose(sight.images, decode_images(x, seer.dls.valid))
    assert (sight.labels == m.numpy()).all()
    assert sight.parsed.shape == (3, 64, 32)
    assert len(sight.seen) == 3
    again = Sight.of(seer, few.path.tolist()[:3])
    assert again.labels is None
    assert again.true == [None]*3
    assert np.allclose(again.images, sight.images)


def test_regions_of_a_model_without_a_mask_module(blind, few):
    sight = Sight.of(blind, few.iloc[:2])
    assert sight.parsed is None
    assert region_masks(sight.maps) is None
    assert (sight.seen[0] == few_labels(few, (64, 32))).mean() > .9


def few_labels(few, size):
    from PIL import Image
    return np.asarray(Image.open(few['mask'].iat[0]).resize(size[::-1], Image.NEAREST))


def test_learn_saliency(seer, blind, few):
    path, sizes = few.path.iat[0], dict(pixels=(1, 64, 32), share=(1, 4, 2), energy=(1, 4, 2))
    for kind, size in sizes.items():
        maps = seer.saliency(path, kind=kind)
        assert list(maps) == ['global', 'sab', 'sfb']
        assert {m.shape for m in maps.values()} == {size}
        assert min(m.min() for m in maps.values()) >= 0
        assert [m.max() for m in maps.values()] == pytest.approx([1, 1, 1])
    assert list(seer.saliency(few.iloc[:2], ('stage3', 'sab'), kind='energy')) == ['stage3', 'sab']
    assert list(blind.saliency(path, kind='share')) == ['global']


def test_maps_that_are_not_there(seer, blind, few):
    with pytest.raises(ValueError, match="no map 'sfb' of kind 'pixels' in this model: it has global$"):
        blind.saliency(few.path.iat[0], 'sfb')
    with pytest.raises(ValueError, match="no map 'stage4'"): seer.saliency(few.path.iat[0], 'stage4')
    with pytest.raises(ValueError, match='use one of pixels, share, energy'):
        seer.saliency(few.path.iat[0], kind='heat')


def test_shares_of_an_image_are_its_contributions_to_itself(seer, few):
    sight = Sight.of(seer, few.iloc[:2])
    with seer.evaluating() as (model, _): parts = contributions(model, sight.maps, sight.maps).parts
    for name, heat in saliency_maps(seer, sight, kind='share').items():
        want = parts[name].sum(1).clamp(min=0).numpy()
        assert np.allclose(heat, want/want.max((1, 2), keepdims=True), atol=1e-5)


class Pooled(nn.Module):
    "The mean colour of the image at stage 4: a model whose pixel shares are known"
    widths = {3: 3, 4: 3}
    def forward(self, x): return (nn.functional.avg_pool2d(x, 16),)*2


def test_pixel_shares_of_a_linear_model():
    "<f_bn(x), f_bn(x)>/|f_bn(x)|^2 is linear in the pixels of its first side: each counts with its own product"
    torch.manual_seed(0)
    model = MagnifierNet(Pooled(), {'global': GlobalBranch(3, 2)}).eval()
    x = torch.rand(2, 3, 32, 16)
    with torch.no_grad(): e = model.branches['global'].neck.bn(x.mean((2, 3)))
    slope = (1 + model.branches['global'].neck.bn.eps)**-.5
    want = torch.einsum('nchw,nc->nhw', x, e)*slope/(32*16)/e.square().sum(1)[:, None, None]
    assert torch.allclose(pixel_shares(model, x, steps=1)['global'], want, atol=1e-6)
    assert torch.allclose(pixel_shares(model, x, steps=3)['global'].sum((1, 2)), torch.ones(2), atol=1e-5)


@pytest.mark.slow
def test_pixel_shares_add_up_to_what_a_grey_image_leaves():
    model = untrained()
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own, grey = (branch_embeddings(model, model.feature_maps(i)) for i in (x, torch.zeros_like(x)))
    want = torch.ones(2)
    for f, g, part in zip(own.values(), grey.values(), joined(model, own)):
        want -= (g*part).sum(1)*part.norm(dim=1)/f.norm(dim=1)
    got = sum(o.sum((1, 2)) for o in pixel_shares(model, x, steps=64).values())
    assert torch.allclose(got, want, atol=.03)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_pixel_shares_of_two_images_add_up_over_branches_too():
    model = untrained()
    x, y = torch.randn(2, 2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    by_branch = pixel_shares(model, x, y, steps=2)
    assert list(by_branch) == ['global', 'sab', 'sfb']
    assert torch.allclose(pixel_shares(model, x, y, by_branch=False, steps=2)['all'], sum(by_branch.values()),
                          atol=1e-5)
    assert torch.allclose(pixel_shares(model, x, x, steps=2)['sab'], pixel_shares(model, x, steps=2)['sab'], atol=1e-6)


def test_smoothing_keeps_a_constant_and_spreads_a_point():
    assert torch.allclose(smoothed(torch.ones(1, 64, 32)), torch.ones(1, 64, 32))
    point = torch.zeros(1, 64, 32)
    point[0, 30, 16] = 1
    spread = smoothed(point)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert spread.argmax() == point.argmax()
    assert (spread > 0).sum() == 9*9  # twice over 5 x 5


def test_pixel_shares_find_the_patch():
    "All that this network knows people by is magenta: no other pixel has a share"
    model = eye(('sab', 'sfb'))
    x = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))*.4
    patch = torch.zeros(64, 32, dtype=torch.bool)
    patch[16:32, 0:16] = True
    x[:, :, patch] = torch.tensor([1., 0, 1.])[:, None]
    for shares in pixel_shares(model, x).values():
        assert shares[:, patch].sum() > 10*shares[:, ~patch].abs().sum()


def test_saliency_inside_against_a_loop(seer, few):
    rows = few.iloc[:5]
    table = saliency_inside(seer, rows, regions=['foot', 'lower_leg'], kinds=('share', 'energy'), bs=2)
    inside = [np.isin(labels, [6, 7]) for labels in Sight.of(seer, rows).true]
    used = [i for i, mask in enumerate(inside) if mask.any()]
    assert np.allclose(table['chance'], np.mean([inside[i].mean() for i in used]))
    maps = {kind: seer.saliency(rows, kind=kind) for kind in ('share', 'energy')}
    for (kind, branch), row in table.iterrows():
        shares = []
        for i in used:
            heat = resized_heat(maps[kind][branch][i], (64, 32))
            shares.append(heat[inside[i]].sum()/heat.sum())
        assert row.inside == pytest.approx(np.mean(shares), abs=1e-5)
        assert row.ratio == pytest.approx(row.inside/row.chance)


def test_a_map_of_one_value_scores_chance(seer, few, monkeypatch):
    from magnifier.look import saliency
    monkeypatch.setattr(saliency, 'saliency_maps', lambda learn, sight,
                        kind: {b: np.ones((len(sight.images), 4, 2)) for b in learn.model.branches})
    assert np.allclose(saliency_inside(seer, few.iloc[:6])['ratio'], 1)


def test_saliency_inside_needs_masks(seer, few):
    with pytest.raises(ValueError, match='no image has a part mask'):
        saliency_inside(seer, few.assign(mask=None), kinds=('energy',))
