"Backbones of our own: OSNet (Zhou et al. 2019), cut after stage 4, and a small residual network for a CPU"

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

__all__ = ['OSNet', 'OSNETS', 'resnet10_narrow']

# Channels after the stem and after stages 2, 3 and 4
OSNETS = {'osnet_x1_0': (64, 256, 384, 512), 'osnet_x0_75': (48, 192, 288, 384), 'osnet_x0_5': (32, 128, 192, 256),
          'osnet_x0_25': (16, 64, 96, 128)}


class ConvNorm(nn.Module):
    "Convolution, batch norm, and optionally a ReLU"

    norm_pairs = (('conv', 'bn'),)  # See `fold_norms`

    def __init__(self, c_in, c_out, size=1, stride=1, *, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class LightConv(nn.Module):
    "A 3x3 convolution as a 1x1 and a depthwise one, batch norm, ReLU"

    norm_pairs = (('conv2', 'bn'),)

    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 1, bias=False)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x):
        return self.bn(self.conv2(self.conv1(x))).relu()


class ChannelGate(nn.Module):
    "Multiplies each channel by a weight computed from the whole map"

    def __init__(self, c, reduction=16):
        super().__init__()
        self.fc1 = nn.Conv2d(c, c // reduction, 1)
        self.fc2 = nn.Conv2d(c // reduction, c, 1)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(pooled).relu()).sigmoid()


class OSBlock(nn.Module):
    "Four streams of one to four light convolutions, weighed by one gate and added up, in a residual bottleneck"

    def __init__(self, c_in, c_out):
        super().__init__()
        c = c_out // 4
        self.conv1 = ConvNorm(c_in, c)
        self.conv2a = LightConv(c)
        self.conv2b = nn.Sequential(*[LightConv(c) for _ in range(2)])
        self.conv2c = nn.Sequential(*[LightConv(c) for _ in range(3)])
        self.conv2d = nn.Sequential(*[LightConv(c) for _ in range(4)])
        self.gate = ChannelGate(c)
        self.conv3 = ConvNorm(c, c_out, relu=False)
        self.downsample = ConvNorm(c_in, c_out, relu=False) if c_in != c_out else None

    def forward(self, x):
        reduced = self.conv1(x)
        streams = [self.gate(stream(reduced)) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d)]
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.conv3(sum(streams)) + shortcut).relu()


class OSNet(nn.Module):
    "The network's stem and stages, under the parameter names of its authors' published weights"

    def __init__(
        self,
        name: str = 'osnet_x1_0',  # One of `OSNETS`
        stage3_stride: int = 2,  # 2 as published, 1 leaves out the pooling that ends stage 3
    ):
        "Random weights, He et al.'s for convolutions"
        super().__init__()
        stem, c2, c3, c4 = OSNETS[name]
        self.conv1 = ConvNorm(3, stem, 7, 2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, c2, 2)
        self.conv3 = _stage(c2, c3, stage3_stride)
        self.conv4 = nn.Sequential(OSBlock(c3, c4), OSBlock(c4, c4))
        self.conv5 = ConvNorm(c4, c4)
        self.widths = {3: c3, 4: c4}
        for m in self.modules():
            if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    def forward(
        self,
        images: Tensor,  # n x 3 x H x W
    ) -> tuple[Tensor, Tensor]:  # Stage 3 n x c3 x H/16 x W/16, stage 4 n x c4 x H/16 x W/16
        "The maps of both stages, after ReLU and so non-negative; as published, stage 4 keeps stage 3's size"
        stage3 = self.conv3(self.conv2(self.maxpool(self.conv1(images))))
        return stage3, self.conv5(self.conv4(stage3))


def _stage(c_in, c_out, stride):
    # The last module is there without pooling too, so that its parameters keep their names
    end = nn.Sequential(ConvNorm(c_out, c_out), nn.AvgPool2d(stride) if stride > 1 else nn.Identity())
    return nn.Sequential(OSBlock(c_in, c_out), OSBlock(c_out, c_out), end)


WIDTHS = (32, 64, 128, 256)  # Channels of the four stages, half of ResNet-18's


def resnet10_narrow(
    weights: str | None = None,  # As torchvision's builders take it; nobody has trained this network on ImageNet
) -> nn.Module:  # With torchvision's names: conv1, bn1, relu, maxpool, layer1 to layer4
    """ResNet of one basic block a stage, ten layers in all, and half of ResNet-18's channels. A ValueError if
    pretrained weights are asked for"""
    if weights:
        raise ValueError('resnet10_narrow has no ImageNet weights to download: pass pretrained=False, or weights=FILE')
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
