"Folding of batch norms into the convolutions before them, for inference"

from copy import deepcopy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

__all__ = ['fold_norms', 'affine_of']

RESIDUAL = (('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'))
PAIRS = {BasicBlock: RESIDUAL, Bottleneck: RESIDUAL}  # a convolution and the norm of its output, by their names


def fold_norms(
    module: nn.Module,  # Any; torchvision's residual blocks in it and modules with `norm_pairs` are folded
) -> nn.Module:  # A copy in evaluation mode; the rest of it is copied as it is
    "Folds batch norms into their convolutions: in evaluation, both are one linear map"
    module = deepcopy(module).eval()
    for block in list(module.modules()):
        for conv, bn in getattr(block, 'norm_pairs', PAIRS.get(type(block), ())): _fold(block, conv, bn)
        if type(block) in PAIRS and block.downsample is not None: _fold(block.downsample, '0', '1')
    return module


def _fold(block, conv, bn):
    conv_module, norm = getattr(block, conv, None), getattr(block, bn, None)
    if type(conv_module) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d: return
    setattr(block, conv, fuse_conv_bn_eval(conv_module, norm))
    setattr(block, bn, nn.Identity())


def affine_of(
    bn: nn.BatchNorm1d,  # A batch norm over c channels
) -> tuple[Tensor, Tensor]:  # c scales and c shifts, without gradient
    "A batch norm in evaluation as x * scale + shift"
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return scale.detach(), (bn.bias - bn.running_mean * scale).detach()
