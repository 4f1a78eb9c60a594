"""Drawing of images, part masks, heat maps, frames and legends from plain arrays.

Functions named `paint_*`, `blank_regions`, `spotlight` and `stack` return arrays and need no axis, so a web page can
use them too; `as_png` makes bytes of an array; the others draw on an axis or a figure."""

import math
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch.nn.functional import interpolate

from magnifier.look.figure import TEXT
from magnifier.model.resize import resize_labels
from magnifier.regions import BODY_REGIONS, N_REGIONS, REGIONS

__all__ = ['REGION_COLOURS', 'HEAT', 'TRUE_COLOUR', 'FALSE_COLOUR', 'NEUTRAL_COLOUR', 'region_name',
           'resized_labels', 'resized_heat', 'are_stripes', 'paint_mask', 'paint_heat', 'blank_regions',
           'spotlight', 'stack', 'as_png', 'outline', 'frame', 'put_image', 'put_note', 'region_legend',
           'legend_room', 'FRAMES']

# Okabe and Ito's palette, one colour a region, the background first. Regions that touch are the furthest apart
# (24 units of CIELAB or more), for normal sight and for protanopia, deuteranopia and tritanopia
REGION_COLOURS = np.array([[128, 128, 128], [204, 121, 167], [213, 94, 0], [240, 228, 66],
                           [86, 180, 233], [0, 114, 178], [230, 159, 0], [0, 158, 115]]) / 255  # (k,3) in [0,1]
# Frames of right, wrong and removed hits; their line style and mark differ as well
TRUE_COLOUR = '#008f5f'
FALSE_COLOUR = '#d04a00'
NEUTRAL_COLOUR = '#8a8a8a'
# Violet is no region's colour. The higher the darker, so that a map over a pale image reads in grey too
HEAT = LinearSegmentedColormap.from_list('heat', ['#d9c2ff', '#9a4dff', '#5a00c8', '#2b0060'])


def region_name(
    region: int | str,  # Index 0..7, or a name of `REGIONS`; other names are kept
    *,
    stripes: bool = False,  # Masks are horizontal stripes, not body parts: 'stripe 3', from the top
) -> str:  # As people write it
    "A region's name for a legend: 'upper arm' for index 3"
    name = region if isinstance(region, str) else REGIONS[region]
    if stripes and name in BODY_REGIONS: return f'stripe {REGIONS.index(name)}'
    return name.replace('_', ' ')


# kind -> colour, line style, mark: told apart without colour too
FRAMES = {
    'true': (TRUE_COLOUR, '-', '✓'),
    'false': (FALSE_COLOUR, (0, (3, 1.6)), '✗'),
    'removed': (NEUTRAL_COLOUR, ':', '–'),
    'query': ('#222222', '-', ''),
}


def resized_labels(
    labels: np.ndarray,  # (h,w) part labels
    size: tuple,  # Height and width wanted
) -> np.ndarray:  # (height, width), nearest: no region appears that was not there
    "Labels at the size of an image"
    return resize_labels(torch.from_numpy(np.ascontiguousarray(labels))[None], tuple(size))[0].numpy()


def resized_heat(
    heat: np.ndarray,  # (h,w) in [0,1]
    size: tuple,  # Height and width wanted
) -> np.ndarray:  # (height, width), bilinear
    "A map at the size of an image"
    heat = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
    return interpolate(heat[None, None], tuple(size), mode='bilinear', align_corners=False)[0, 0].numpy()


def are_stripes(
    labels: np.ndarray,  # (h,w) part labels
) -> bool:  # True where the body is three or more bands, each of one label over its whole width
    "Whether a mask has the horizontal stripes of `stripe_masks`, which must not be called body parts"
    body = labels > 0
    body = labels[body.any(1)][:, body.any(0)]  # without a border of background, which a shift leaves
    return len(np.unique(body)) > 2 and bool((body == body[:, :1]).all())


def paint_mask(
    image: np.ndarray,  # (h,w,3) in [0,1]
    labels: np.ndarray,  # (h',w') part labels, any size
    alpha: float = .62,  # Opacity of the regions
) -> np.ndarray:  # (h,w,3): the image in grey, its body regions in their colours
    "Part mask over an image; the background stays as it is, in grey"
    labels = resized_labels(labels, image.shape[:2])
    share = np.where(labels[..., None] > 0, alpha, 0.)
    return _grey(image)*(1 - share) + REGION_COLOURS[np.minimum(labels, N_REGIONS - 1)]*share


def paint_heat(
    image: np.ndarray,  # (h,w,3) in [0,1]
    heat: np.ndarray,  # (h',w') in [0,1], any size
    alpha: float = .9,  # Opacity where the heat is 1
) -> np.ndarray:  # (h,w,3): pale and almost grey, and the darker violet the hotter
    "A map over an image; where the map is low, the image stays visible"
    heat = resized_heat(heat, image.shape[:2]).clip(0, 1)[..., None]
    pale = .42 + .40*_grey(image) + .18*image
    share = alpha*heat**.75
    return pale*(1 - share) + HEAT(heat[..., 0])[..., :3]*share


def _grey(image): return image.mean(2, keepdims=True).repeat(3, 2)


def blank_regions(
    image: np.ndarray,  # (h,w,3) in [0,1]
    labels: np.ndarray,  # (h',w') part labels
    dropped,  # Indices of regions that are taken away
) -> np.ndarray:  # (h,w,3) hatched in white and grey where they were
    "An image with the dropped regions blanked"
    h, w = image.shape[:2]
    rows, cols = np.arange(h)[:, None], np.arange(w)
    hatch = np.where((rows + cols)//max(2, h//32) % 2, .93, .72)[..., None]
    return np.where(np.isin(resized_labels(labels, (h, w)), list(dropped))[..., None], hatch, image)


def spotlight(
    image: np.ndarray,  # (h,w,3) in [0,1]
    labels: np.ndarray,  # (h',w') part labels
    regions,  # Indices of regions to keep
) -> np.ndarray:  # (h,w,3): those regions as they are, all else pale and grey
    "An image with everything but some regions darkened"
    kept = np.isin(resized_labels(labels, image.shape[:2]), list(regions))[..., None]
    return np.where(kept, image, .72 + .22*_grey(image))


def stack(
    image: np.ndarray,  # (h,w,3) in [0,1]
    below: np.ndarray,  # (h,w,3), the same image painted
) -> np.ndarray:  # (2h + gap, w, 3)
    "An image, and the same image painted below it, as one tile"
    gap = np.ones((max(1, image.shape[0]//40), *image.shape[1:]))
    return np.concatenate([image, gap, below])


def as_png(
    image: np.ndarray,  # (h,w,3) in [0,1]
) -> bytes:  # A PNG file
    "An array as the bytes of an image file"
    file = BytesIO()
    Image.fromarray((image.clip(0, 1)*255).round().astype(np.uint8)).save(file, format='PNG')
    return file.getvalue()


def outline(
    ax,  # Axis that already holds an image of the labels' size
    labels: np.ndarray,  # (h,w) part labels
    regions=range(1, N_REGIONS),  # Regions to draw
    width: float = 1.3,  # Line width in points
):
    "Edges of regions in their colours, on a dark line so that they are visible on any image"
    y, x = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
    for k in regions:
        inside = np.pad((labels == k).astype(float), 1)
        if not inside.any(): continue
        for colour, line in (('#111111', width + 1.2), (REGION_COLOURS[k], width)):
            ax.contour(x, y, inside, levels=[.5], colors=[colour], linewidths=line)
    ax.set_xlim(-.5, labels.shape[1] - .5)
    ax.set_ylim(labels.shape[0] - .5, -.5)


def put_image(
    ax,  # Where
    image: np.ndarray,  # (h,w,3) in [0,1]
    *,
    title: str | None = None,  # Over it
    caption: str | None = None,  # Under it
    kind: str | None = None,  # One of `FRAMES`, drawn around it
):
    "One image on its tile"
    ax.imshow(np.clip(image, 0, 1), aspect='auto', interpolation='nearest' if image.shape[0] < 64 else 'antialiased')
    if title: _beside(ax, title, (.5, 1), (0, 3), va='bottom', linespacing=1.1)
    if caption: _beside(ax, caption, (.5, 0), (0, -4), va='top')
    if kind: frame(ax, kind)


def _beside(ax, text, at, offset, **kwargs):
    "Text at a position of the tile (in shares of its size), moved by an offset in points"
    kwargs = dict(ha='center', fontsize=TEXT) | kwargs
    ax.annotate(text, at, xycoords='axes fraction', xytext=offset, textcoords='offset points', **kwargs)


def frame(
    ax,  # Tile
    kind: str,  # 'true' (solid, tick), 'false' (dashed, cross), 'removed' (dotted, dash) or 'query'
):
    "Frame around a tile, with a mark in its corner, so that it does not depend on colour alone"
    colour, style, mark = FRAMES[kind]
    border = dict(transform=ax.transAxes, fill=False, clip_on=False)
    ax.add_patch(Rectangle((0, 0), 1, 1, edgecolor='white', linewidth=4.5, zorder=4, **border))
    ax.add_patch(Rectangle((0, 0), 1, 1, edgecolor=colour, linestyle=style, linewidth=1.2 if kind == 'query' else 3,
                           zorder=5, **border))
    if not mark: return
    disc = dict(boxstyle='circle,pad=.18', facecolor=colour, edgecolor='white', linewidth=.8)
    _beside(ax, mark, (1, 1), (-4, -4), ha='right', va='top', color='white', weight='bold', zorder=6, bbox=disc)


def put_note(
    ax,  # An empty tile
    text: str,  # What is not there, and why
):
    "A text instead of an image"
    ax.text(.5, .5, text, transform=ax.transAxes, ha='center', va='center', fontsize=TEXT, color='#555555', wrap=False)


def legend_room(
    figure_width: float,  # Inches
    entries: int,  # Of the legend
) -> float:  # Inches that a legend of so many entries needs
    "Height of the legend, needed before its figure exists"
    return .12 + .22*math.ceil(entries/_legend_columns(figure_width))


def _legend_columns(width): return max(1, int((width - .1)/.98))


def region_legend(
    figure,  # With `legend_room` left at its foot
    *,
    regions: bool = True,  # Entries of the seven body regions
    stripes: bool = False,  # The regions are horizontal stripes: one entry that says so stands for all of them
    heat: str | None = None,  # What dark violet means, or None without heat
    frames=(),  # (kind, words) of frames to explain
):
    "One legend for the whole figure"
    handles = []
    if regions and stripes: handles.append(_ramp(REGION_COLOURS[1:], STRIPES))
    elif regions: handles += [(Patch(facecolor=REGION_COLOURS[k]), region_name(k)) for k in range(1, N_REGIONS)]
    for kind, words in frames:
        colour, style, mark = FRAMES[kind]
        handles.append((Line2D([], [], color=colour, linestyle=style, linewidth=2.5), f'{mark} {words}'.strip()))
    if heat: handles.append(_ramp(HEAT(np.linspace(.15, 1, 4)), heat))
    if not handles: return
    columns = min(len(handles), _legend_columns(figure.get_size_inches()[0]))
    figure.legend(*zip(*handles), loc='lower center', bbox_to_anchor=(.5, 0), ncols=columns, fontsize=TEXT,
                  frameon=False, handlelength=1.5, handletextpad=.4, columnspacing=1., borderaxespad=.2,
                  handler_map={tuple: HandlerTuple(ndivide=None, pad=0)})


STRIPES = 'horizontal stripes, not body parts'


def _ramp(colours, words): return tuple(Patch(facecolor=c) for c in colours), words
