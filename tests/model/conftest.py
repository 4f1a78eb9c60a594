"Images and part labels for networks"
import pytest
import torch


@pytest.fixture
def images(): return torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels(): return torch.randint(8, (4, 64, 32), generator=torch.Generator().manual_seed(1))
