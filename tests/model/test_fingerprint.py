"The fingerprint moves with every weight that a search compares by, and with no other"
import pytest
import torch
from magnifier.model.saved import fingerprint
from magnifier.model.net import create_magnifier
from magnifier.train.parts import region_embeddings


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_magnifier('resnet18', 5, pretrained=False, hidden=16).eval()


def test_what_regions_are_compared_by_is_in_it(model):
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad(): embed, moved = lambda: region_embeddings(model, model.feature_maps(x)), []
    for name in ('running_mean', 'running_var', 'weight'):
        before, vectors = fingerprint(model, 'x'), embed()
        with torch.no_grad():
            getattr(model.sfb.region_necks.bn, name).add_(torch.rand_like(model.sfb.region_necks.bn.weight))
        moved.append(not torch.allclose(vectors, embed(), atol=1e-4) and before != fingerprint(model, 'x'))
    assert moved == [True]*3


def test_what_trains_alone_is_not(model):
    before = fingerprint(model, 'x')
    with torch.no_grad():
        model.sfb.region_necks.weight.add_(1)
        for name in ('global', 'sab', 'sfb'): model.branches[name].neck.classifier.weight.add_(1)
    model.sfb.region_necks.bn.num_batches_tracked += 1
    assert fingerprint(model, 'x') == before


def test_writing_past_autograd_is_seen(model):
    before = fingerprint(model, 'x')
    next(model.parameters()).data.add_(1)  # as fastai's optimisers do: no version counter tells
    assert fingerprint(model, 'x') != before
