"A GPU gives the CPU's embeddings"
import pytest
import torch
from torch.testing import assert_close

from magnifier.model.net import create_magnifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


@pytest.mark.parametrize('channels_last', (False, True))
def test_embeddings_are_those_of_a_cpu(channels_last):
    torch.manual_seed(0)
    net = create_magnifier('resnet18', n_classes=4, pretrained=False).eval()
    images = torch.randn(4, 3, 64, 32)
    expected = net(images).embedding
    if channels_last: net.to(memory_format=torch.channels_last)
    found = net.cuda()(images.cuda()).embedding
    assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
