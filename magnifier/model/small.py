"A residual network for demonstrations on a CPU: a sixth of ResNet-18's work"

from torch import nn
from torchvision.models.resnet import BasicBlock

__all__ = ['resnet10_narrow']

WIDTHS = (32, 64, 128, 256)  # Channels of the four stages, half of ResNet-18's


def resnet10_narrow(
    weights: str | None = None,  # As torchvision's builders take it; nobody has trained this network on ImageNet
) -> nn.Module:  # With torchvision's names: conv1, bn1, relu, maxpool, layer1 to layer4
    "ResNet of one basic block a stage, ten layers in all, and half of ResNet-18's channels. A ValueError where weights are asked for"
    if weights: raise ValueError('resnet10_narrow has no ImageNet weights to download: pass pretrained=False, or weights=FILE')
    net, channels = nn.Module(), WIDTHS[0]
    net.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(channels)
    net.relu = nn.ReLU(inplace=True)
    net.maxpool = nn.MaxPool2d(3, 2, 1)
    for i, width in enumerate(WIDTHS):
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, 2, bias=False), nn.BatchNorm2d(width)) if i else None
        setattr(net, f'layer{i + 1}', nn.Sequential(BasicBlock(channels, width, 2 if i else 1, shortcut)))
        channels = width
    return net
