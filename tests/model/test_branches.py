"Branches: a new one takes part in everything, and each argument of the known ones does what it says"
import pytest
import torch
from torch import nn

from magnifier.data.block import TensorIdentity
from magnifier.look.saliency import branch_embeddings, branch_weights, contributions
from magnifier.model.backbone import create_backbone
from magnifier.model.branches import BRANCHES, Branch, GlobalBranch, branch_scales, create_branches, join_branches
from magnifier.model.heads import SegmentationHead
from magnifier.model.net import EmbeddingNet, MagnifierNet, create_magnifier
from magnifier.model.pooling import region_max_pool
from magnifier.regions import NO_MASK
from magnifier.train.losses import MagnifierLoss
from magnifier.train.metrics import region_embeddings


def build(**kwargs):
    torch.manual_seed(0)
    return create_magnifier('resnet10_narrow', 5, False, hidden=16, **kwargs)


IDENTITY = TensorIdentity([[0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])


# --- a branch of one's own

class ToyBranch(Branch):
    "The mean of the regions' maxima, through a linear layer"
    name, title, views = 'toy', 'TOY', ('toy',)

    def __init__(self, width, n_classes, hidden=16):
        super().__init__(nn.Identity(), hidden, n_classes, stage=3)
        self.linear = nn.Linear(width, hidden, bias=False)

    def pool(self, feature_map, region_masks=None, kept_regions=None):
        return self.linear(self.region_pool(feature_map, region_masks).mean(1))

    def describe_regions(self, feature_map, region_masks):
        return self.linear(region_max_pool(feature_map, region_masks))

    def contribution(self, feature_map, region_masks, weight):
        slope = self.slope(weight) @ self.linear.weight.detach()
        products = feature_map[:, None] * region_masks[:, :, None]  # n x k x c x h x w
        (n, k, c), size = products.shape[:3], products.shape[3:]
        values, places = products.flatten(3).max(-1)
        placed = torch.zeros(n, k, c, size.numel()).scatter_(3, places[..., None],
                                                             values[..., None]).view(n, k, c, *size)
        earned = torch.einsum('nkchw,nc->nkhw', placed, slope) / k
        average = self.slope(weight) @ self.neck.bn.running_mean
        return earned - average[:, None, None, None] / (k * size.numel())


@pytest.fixture
def with_toy(monkeypatch):
    monkeypatch.setitem(BRANCHES, 'toy', ToyBranch)
    torch.manual_seed(0)
    backbone = create_backbone('resnet10_narrow', False)
    branches = {**create_branches(backbone.widths, 5, hidden=16), 'toy': ToyBranch(128, 5)}
    model = MagnifierNet(backbone, branches, SegmentationHead(256))
    for branch in model.branches.values(): branch.neck.bn.running_mean.uniform_(0, .5)
    return model


def test_a_new_branch_trains(with_toy, images, labels):
    loss = MagnifierLoss()
    output = with_toy(images, labels, [True] * 8)
    loss(output, labels, IDENTITY).backward()
    assert list(output.features) == ['global', 'sab', 'sfb', 'toy']
    assert {'toy_cls', 'toy_tri'} <= set(loss.last)
    assert loss.column_of['toy_tri'] == 'triplet'
    assert with_toy.branches['toy'].linear.weight.grad.abs().sum() > 0
    no_mask = torch.full_like(labels, NO_MASK)
    loss(output, no_mask, IDENTITY)
    assert loss.last['toy_cls'] == 0  # it pools by masks, so that images without one do not train it


def test_a_new_branch_is_embedded(with_toy, images):
    with_toy.eval()
    with torch.no_grad(): expected, got = with_toy(images), EmbeddingNet(with_toy)(images)
    assert with_toy.branch_slices['toy'] == slice(256 + 32, 256 + 48)
    torch.testing.assert_close(got, expected.embedding, atol=1e-5, rtol=0)


def test_a_new_branch_is_explained(with_toy, images):
    with_toy.eval()
    with torch.no_grad(): a, b = with_toy.feature_maps(images), with_toy.feature_maps(images.flip(0))
    parts = contributions(with_toy, a, b).parts
    with torch.no_grad(): ours, theirs = branch_embeddings(with_toy, a), branch_embeddings(with_toy, b)
    share = (ours['toy'] * branch_weights(with_toy, ours, theirs)['toy']).sum(1)
    assert parts['toy'].shape == (4, 8, 4, 2)
    torch.testing.assert_close(parts['toy'].sum((1, 2, 3)), share)
    assert region_embeddings(with_toy, a).shape == (4, 8, 16)


# --- one road for masks

class Parser(nn.Module):
    "A segmentation head that knows the labels"

    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def forward(self, feature_map):
        h, w = (2 * side for side in feature_map.shape[-2:])
        rows = (2 * torch.arange(h) + 1) * self.labels.shape[1] // (2 * h)  # nearest, by pixel centres
        columns = (2 * torch.arange(w) + 1) * self.labels.shape[2] // (2 * w)
        nearest = self.labels[:, rows][:, :, columns]
        return torch.nn.functional.one_hot(nearest, 8).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize('size', [pytest.param((384, 192), marks=pytest.mark.slow), (64, 32)])
@pytest.mark.parametrize('mask_resize', ['bilinear', 'nearest'])
@pytest.mark.parametrize('upsample', [False, True])
def test_a_perfect_parser_gives_the_features_of_given_labels(size, mask_resize, upsample):
    model = build(mask_resize=mask_resize, upsample_maps=upsample).eval()
    labels = torch.randint(8, (2, *size), generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    model.segmentation = Parser(labels)
    with torch.no_grad():
        given, parsed = model(images, labels), model(images)
        maps = model.feature_maps(images)
    for view in given.features:
        torch.testing.assert_close(given.features[view], parsed.features[view], atol=1e-5, rtol=0)
    assert maps['sfb'].shape[-2:] == maps['masks'].shape[-2:]
    if upsample: assert set(maps['masks'].unique().tolist()) == {0, 1}  # nothing to resize where the labels live


# --- the adversarial branch

def test_without_background_sab_never_sees_it(images, labels):
    model, kept = build(keep_background=False).eval(), [False] + [True] * 7
    with torch.no_grad():
        evaluated, occluded = model(images, labels), model(images, labels, kept)
        whole, embedded = model(images, labels, [True] * 8), EmbeddingNet(model)(images)
        expected = model(images).embedding
    assert torch.equal(evaluated.features['sab'], occluded.features['sab'])
    assert not torch.equal(evaluated.features['sab'], whole.features['sab'])
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)


def test_sab_trains_on_original_images_too(images, labels):
    model, kept = build(sab_original=True), [True, True] + [False] * 6
    seen = []
    model.sab.reduce.register_forward_hook(lambda module, x, y: seen.append(y))
    output = model(images, labels, kept)
    assert torch.equal(output.features['sab'], seen[0])
    assert torch.equal(output.features['sab_original'], seen[1])
    assert not torch.equal(*seen)
    loss = MagnifierLoss(sab_triplet='plain')
    loss(output, labels, IDENTITY)
    assert {'sab_original_cls', 'sab_original_tri'} <= set(loss.last)
    assert 'sab_original' not in model(images, labels).features  # nothing is occluded
    assert 'sab_original' not in model.eval()(images, labels, kept).features
    assert len(model.branch_slices) == 3


# --- weights in the embedding

@pytest.mark.parametrize('normalise', [True, False])
def test_branches_are_joined_by_their_weights(normalise):
    normed = [torch.tensor([[3., 4.]]), torch.tensor([[0., 0., 2.]])]
    parts = [torch.tensor([[.6, .8]]), torch.tensor([[0., 0., 1.]])] if normalise else normed
    joined = torch.cat([parts[0] * 2, parts[1]], 1)
    torch.testing.assert_close(join_branches(normed, [2., 1.], normalise), joined / joined.norm())


def test_a_branch_that_says_nothing_is_zero_and_no_nan():
    scales = branch_scales([torch.zeros(1, 2), torch.ones(1, 4)], [1., 1.], True)
    assert scales.isfinite().all()
    joined = join_branches([torch.zeros(1, 2), torch.ones(1, 4)], [1., 1.], True)
    torch.testing.assert_close(joined, torch.tensor([[0., 0., .5, .5, .5, .5]]))
    assert join_branches([torch.zeros(2, 2)], [1.], True).tolist() == [[0., 0.], [0., 0.]]


def test_a_weight_of_zero_leaves_a_branch_out(images):
    model = build(branch_weights={'sfb': 0, 'global': 2.5}, normalise_branches=True).eval()
    with torch.no_grad(): embedding, folded = model(images).embedding, EmbeddingNet(model)(images)
    lengths = {name: embedding[:, where].norm(dim=1) for name, where in model.branch_slices.items()}
    assert lengths['sfb'].max() == 0
    torch.testing.assert_close(lengths['global'], 2.5 * lengths['sab'])
    torch.testing.assert_close(folded, embedding, atol=1e-5, rtol=0)


def test_the_papers_embedding_is_f_bn_as_it_is(images):
    model = build(normalise_branches=False, branch_weights=None).eval()
    with torch.no_grad():
        out = model(images)
        f_bn = torch.cat([branch.neck.bn(out.features[name]) for name, branch in model.branches.items()], 1)
        torch.testing.assert_close(out.embedding, torch.nn.functional.normalize(f_bn))


@pytest.mark.parametrize('weights', [{'sbf': 1.}, {'sab': -1.}])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match='zero or positive weights by branch are wanted, of global, sab, sfb'):
        build(branch_weights=weights)


# --- larger maps

@pytest.mark.parametrize('kwargs, sizes', [({}, ((4, 2), (4, 2))), (dict(upsample_maps=True), ((4, 2), (8, 4))),
                                           (dict(stage3_stride=1), ((8, 4), (8, 4)))])
def test_sizes_of_maps(kwargs, sizes, images):
    maps = build(**kwargs).feature_maps(images)
    assert tuple(maps['stage4'].shape[-2:]) == sizes[0]
    for name in ('sab', 'sfb', 'masks'): assert tuple(maps[name].shape[-2:]) == sizes[1]


def test_an_upsampled_map_is_torchs_bilinear(images):
    model = build(upsample_maps=True).eval()
    with torch.no_grad():
        maps = model.feature_maps(images)
        small = model.sfb.map(maps['stage3'])
    torch.testing.assert_close(maps['sfb'], nn.Upsample(scale_factor=2, mode='bilinear')(small))


def test_a_global_branch_alone_needs_no_masks(images):
    model = MagnifierNet(create_backbone('resnet10_narrow', False), {'global': GlobalBranch(256, 5)}).eval()
    assert model.masked_branch is None
    with torch.no_grad(): assert torch.equal(model(images).features['global'], model.backbone(images)[1].mean((2, 3)))
