"Pictures and part labels of a whole batch resized, shifted and mirrored in one go: two matrix products an image"
import torch
from torch.nn.functional import pad as pad_with_zeros
from magnifier.regions import NO_MASK

__all__ = ['output_positions', 'bilinear_weights', 'resample_images', 'resample_labels']


def output_positions(
    size:int,        # Pixels of the output along one axis
    shift,           # (n,) integers: output pixel i shows pixel i + shift of the resized picture
    mirrored=None,   # (n,) booleans: the resized picture is mirrored before it is shifted; None for none
) -> torch.Tensor:  # (n, size) integers: which pixel of the resized picture each output pixel shows, -1 outside of it
    "Shift and mirror along one axis, as positions"
    at = torch.arange(size, device=shift.device) + shift[:, None]  # (n, size)
    outside = (at < 0) | (at >= size)
    if mirrored is not None: at = torch.where(mirrored[:, None], size - 1 - at, at)
    return at.masked_fill(outside, -1)


def bilinear_weights(
    lengths,    # (n,) integers: pixels of each original along one axis
    size:int,   # Pixels they are resized to
    longest:int # Columns of the result, at least the largest length
) -> torch.Tensor:  # (n, size, longest) float32; each row adds up to 1
    """Weights of the original's pixels in each resized one: Pillow's bilinear filter.

    A triangle between pixel centres; where a picture shrinks it widens with the factor (antialiasing), so that no pixel is skipped.
    """
    lengths = lengths[:, None, None].float()  # (n, 1, 1)
    centre = (torch.arange(size, device=lengths.device)[:, None] + .5)*lengths/size
    pixel = torch.arange(longest, device=lengths.device)
    weights = (1 - (pixel + .5 - centre).abs()/(lengths/size).clamp(min=1)).clamp(min=0)*(pixel < lengths)
    return weights/weights.sum(2, keepdim=True)


def _axis_matrices(lengths, positions, longest):
    "(n, size, longest): the weights of `bilinear_weights` at the positions asked for, nothing outside"
    size = positions.shape[1]
    distinct, which = lengths.unique(return_inverse=True)  # most sets have one size: its weights are made once
    table = pad_with_zeros(bilinear_weights(distinct, size, longest).flatten(0, 1), (0, 0, 0, 1))  # (s*size + 1, longest)
    rows = torch.where(positions < 0, len(table) - 1, which[:, None]*size + positions)
    return table[rows]


def resample_images(
    pixels,  # (n,c,h,w) uint8: each original in its upper left corner
    sizes,   # (n,2) integers: height and width of each original
    rows,    # (n,H) `output_positions` of the rows
    columns, # (n,W) `output_positions` of the columns
) -> torch.Tensor:  # (n,c,H,W) float32 in [0,1]; black outside of the picture
    """Bilinear resize with antialiasing, shift and mirror at once, in float32: within rounding what Pillow gives.

    Resampling is linear along each axis, so a picture is A_rows X A_columns^T.
    """
    n, c, h, w = pixels.shape
    with torch.autocast(pixels.device.type, enabled=False):
        down = _axis_matrices(sizes[:, 0], rows, h)/255                  # (n,H,h)
        across = _axis_matrices(sizes[:, 1], columns, w).transpose(1, 2) # (n,w,W)
        tall = down @ pixels.transpose(1, 2).float().flatten(2)          # (n,H,c*w): one product for all channels
        tall = tall.view(n, -1, c, w).transpose(1, 2).flatten(1, 2)      # (n,c*H,w)
        return (tall @ across).view(n, c, rows.shape[1], columns.shape[1])


def resample_labels(
    labels,  # (n,h,w) uint8: each original in its upper left corner
    sizes,   # (n,2) integers: height and width of each original
    rows,    # (n,H) `output_positions` of the rows
    columns, # (n,W) `output_positions` of the columns
) -> torch.Tensor:  # (n,H,W) int64; background outside of the picture, but `NO_MASK` everywhere where there is no mask
    "Nearest resize by pixel centres, as Pillow's, with shift and mirror: no label is ever mixed"
    n, h, w = labels.shape
    missing = labels[:, 0, 0] == NO_MASK
    labels = pad_with_zeros(labels, (0, 1, 0, 1))  # a column and a row of background, for what lies outside
    across, down = _nearest(sizes[:, 1], columns, w), _nearest(sizes[:, 0], rows, h)
    wide = labels.gather(2, across[:, None].expand(n, h + 1, -1))  # (n,h+1,W)
    down = down + torch.arange(n, device=labels.device)[:, None]*(h + 1)
    out = wide.flatten(0, 1)[down].long()  # (n,H,W)
    out[missing] = NO_MASK
    return out


def _nearest(lengths, positions, outside):
    "(n, size) index of the original's pixel that holds the centre of each output pixel"
    size = positions.shape[1]
    distinct, which = lengths.unique(return_inverse=True)
    # Where a centre lies on the border of two pixels rounding decides: added up step by step on the CPU, it does so as in Pillow
    steps = (distinct.cpu().double()/size)[:, None].repeat(1, size)
    steps[:, 0] /= 2
    table = steps.cumsum(1).long().to(positions.device)  # (s, size)
    return torch.where(positions < 0, outside, table[which[:, None], positions.clamp(min=0)])
