"Necks and the segmentation head, against their parts one by one"
import pytest
import torch
from torch import nn

from magnifier.model.branches import ConcatFusion, FusionBranch, RecurrentFusion, branch_map
from magnifier.model.heads import BNNeck, RegionNecks, SegmentationHead, at_least_float32


def test_bnneck():
    torch.manual_seed(0)
    neck, feature = BNNeck(6, 400), torch.randn(5, 6)
    normed, logits = neck(feature)
    torch.testing.assert_close(normed, (feature - feature.mean(0)) / (feature.var(0, unbiased=False) + 1e-5).sqrt())
    torch.testing.assert_close(logits, normed @ neck.classifier.weight.T)
    assert not neck.bn.bias.requires_grad
    assert neck.bn.bias.abs().sum() == 0
    assert neck.classifier.bias is None
    assert neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize('training', [True, False])
def test_region_necks_are_a_bnneck_each(training):
    torch.manual_seed(0)
    necks, features = RegionNecks(6, 4, 3).train(training), torch.randn(5, 3, 6)
    got = necks(features)
    for k in range(3):
        one = BNNeck(6, 4).train(training)
        with torch.no_grad(): one.classifier.weight.copy_(necks.weight[k])
        torch.testing.assert_close(got[:, k], one(features[:, k])[1])


def test_segmentation_head_doubles_the_map():
    torch.manual_seed(0)
    head = SegmentationHead(16)
    assert head(torch.randn(2, 16, 6, 3)).shape == (2, 8, 12, 6)
    for conv in (head.deconv, head.conv): assert conv.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert head.deconv.bias is None
    assert head.conv.bias.abs().sum() == 0


def test_recurrent_fusion_reads_in_index_order():
    torch.manual_seed(0)
    x = torch.randn(3, 8, 6)
    for cell, step in (('gru', nn.GRUCell), ('lstm', nn.LSTMCell)):
        fuse, one = RecurrentFusion(6, 5, cell), step(6, 5)
        one.load_state_dict({name.removesuffix('_l0'): p for name, p in fuse.rnn.state_dict().items()})
        state = None
        for k in range(8): state = one(x[:, k], state)
        torch.testing.assert_close(fuse(x), state if cell == 'gru' else state[0])


def test_concat_fusion_is_a_linear_layer_a_region():
    torch.manual_seed(0)
    fuse, x = ConcatFusion(6, 16), torch.randn(3, 8, 6)
    torch.testing.assert_close(fuse(x), torch.cat([x[:, k] @ fuse.weight[k] for k in range(8)], 1))


def test_branch_map_is_non_negative_and_keeps_the_shape():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 6, 3)
    out = branch_map(16)(x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert branch_map(16, False)(x) is x
    assert [p.shape[0] for name, p in branch_map(16).named_parameters() if 'conv' in name] == [4, 4, 16]


def test_region_features_are_of_the_branchs_own_map():
    torch.manual_seed(0)
    branch, x = FusionBranch(16, 5, RecurrentFusion(16, 8), hidden=8), torch.rand(2, 16, 6, 3)
    masks = torch.ones(2, 8, 6, 3)
    output = branch(x, masks)
    assert torch.equal(output.region_features, x.amax((2, 3))[:, None].expand(-1, 8, -1))
    assert torch.equal(output.features['sfb'], branch.fuse(output.region_features))


@pytest.mark.parametrize('dtype, wanted', [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                           (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_at_least_float32(dtype, wanted):
    assert at_least_float32(torch.ones(1, dtype=dtype)).dtype == wanted
