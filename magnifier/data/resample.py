"Images and part labels of a whole batch resized, padded, shifted and mirrored at once: two matrix products an image"

from typing import NamedTuple

import torch
from torch.nn.functional import pad as pad_with_zeros

from magnifier.regions import NO_MASK

__all__ = ['Axis', 'output_positions', 'bilinear_weights', 'resample_images', 'resample_labels']


class Axis(NamedTuple):
    "Rows or columns of a batch, from the originals to the output"
    lengths: torch.Tensor  # (n,) integers: pixels of each original
    fitted: torch.Tensor  # (n,) integers: pixels it is resized to, in the middle of the output
    positions: torch.Tensor  # (n, size) `output_positions`


def output_positions(
    size: int,  # Pixels of the output along one axis
    shift: torch.Tensor,  # (n,) integers: output pixel i shows pixel i + shift
    mirrored: torch.Tensor | None = None,  # (n,) booleans: mirrored before it is shifted; None for none
) -> torch.Tensor:  # (n, size) integers: which pixel each output pixel shows, -1 outside
    "Shift and mirror along one axis, as positions"
    at = torch.arange(size, device=shift.device) + shift[:, None]  # (n, size)
    outside = (at < 0) | (at >= size)
    if mirrored is not None: at = torch.where(mirrored[:, None], size - 1 - at, at)
    return at.masked_fill(outside, -1)


def bilinear_weights(
    lengths: torch.Tensor,  # (m,) integers: pixels of originals along one axis
    fitted: torch.Tensor,  # (m,) integers: pixels they are resized to
    longest: int,  # Columns of the result, at least the largest length
    size: int,  # Rows of the result, at least the largest of `fitted`
) -> torch.Tensor:  # (m, size, longest) float32; each of the first `fitted` rows adds up to 1
    """Weights of the original's pixels in each resized one: Pillow's bilinear filter.

    A triangle between pixel centres. If an image shrinks, the triangle widens by the same factor (antialiasing), so no
    pixel is skipped."""
    lengths = lengths[:, None, None].float()  # (m, 1, 1)
    factor = lengths/fitted[:, None, None]
    centre = (torch.arange(size, device=lengths.device)[:, None] + .5)*factor
    pixel = torch.arange(longest, device=lengths.device)
    weights = (1 - (pixel + .5 - centre).abs()/factor.clamp(min=1)).clamp(min=0)*(pixel < lengths)
    return weights/weights.sum(2, keepdim=True).clamp(min=1e-6)


def resample_images(
    pixels: torch.Tensor,  # (n,c,h,w) uint8: each original in its upper left corner
    rows: Axis,  # Of H output pixels
    columns: Axis,  # Of W output pixels
) -> torch.Tensor:  # (n,c,H,W) float32 in [0,1]; black outside of the image
    """Bilinear resize with antialiasing, padding, shift and mirror at once, in float32: within rounding what Pillow
    gives.

    Resampling is linear along each axis: A_rows X A_columns^T."""
    n, c, h, w = pixels.shape
    with torch.autocast(pixels.device.type, enabled=False):
        down = _axis_matrices(rows, h)/255                           # (n,H,h)
        across = _axis_matrices(columns, w).transpose(1, 2)          # (n,w,W)
        tall = down @ pixels.transpose(1, 2).float().flatten(2)      # (n,H,c*w): one product for all channels
        tall = tall.view(n, -1, c, w).transpose(1, 2).flatten(1, 2)  # (n,c*H,w)
        return (tall @ across).view(n, c, down.shape[1], across.shape[2])


def resample_labels(
    labels: torch.Tensor,  # (n,h,w) uint8: each original in its upper left corner
    rows: Axis,  # Of H output pixels
    columns: Axis,  # Of W output pixels
) -> torch.Tensor:  # (n,H,W) int64; background outside of the image, but `NO_MASK` everywhere where there is no mask
    "Nearest-neighbour resize by pixel centres as in Pillow, with padding, shift and mirror: labels are never mixed"
    n, h, w = labels.shape
    missing = labels[:, 0, 0] == NO_MASK
    labels = pad_with_zeros(labels, (0, 1, 0, 1))  # a column and a row of background, for what lies outside
    across = _nearest(columns, w)  # (n,W)
    wide = labels.gather(2, across[:, None].expand(n, h + 1, -1))  # (n,h+1,W)
    down = _nearest(rows, h) + torch.arange(n, device=labels.device)[:, None]*(h + 1)  # (n,H)
    out = wide.flatten(0, 1)[down].long()  # (n,H,W)
    out[missing] = NO_MASK
    return out


def _axis_matrices(axis, longest):
    "(n, size, longest): the weights of `bilinear_weights` at the given positions, 0 outside"
    lengths, fitted, which = _distinct(axis)
    size = axis.positions.shape[1]
    weights = bilinear_weights(lengths, fitted, longest, size).flatten(0, 1)
    table = pad_with_zeros(weights, (0, 0, 0, 1))  # (m*size + 1, longest)
    at = _within(axis)
    return table[torch.where(at < 0, len(table) - 1, which[:, None]*size + at)]


def _nearest(axis, outside):
    "(n, size) index of the original's pixel that holds the centre of each output pixel"
    lengths, fitted, which = _distinct(axis)
    # Where a centre lies on the border of two pixels rounding decides: added up step by step on the CPU, as in Pillow
    steps = (lengths.cpu().double()/fitted.cpu())[:, None].repeat(1, axis.positions.shape[1])
    steps[:, 0] /= 2
    table = steps.cumsum(1).long().to(axis.positions.device)  # (m, size)
    at = _within(axis)
    return torch.where(at < 0, outside, table[which[:, None], at.clamp(min=0)])


def _within(axis):
    "(n, size) positions in the resized image, which lies in the middle of the output; -1 outside of it"
    size, fitted = axis.positions.shape[1], axis.fitted[:, None]
    at = axis.positions - (size - fitted)//2
    return at.masked_fill((axis.positions < 0) | (at < 0) | (at >= fitted), -1)


def _distinct(axis):
    "(m,) pairs of a length and its resized length, each once, and (n,) the pair of each image: most sets have one size"
    base = axis.positions.shape[1] + 1  # above any of `fitted`
    pairs, which = (axis.lengths*base + axis.fitted).unique(return_inverse=True)
    return pairs//base, pairs % base, which
