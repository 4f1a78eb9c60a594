"""Figures of tiles or plots, and what is drawn on them: images, part masks, heat maps, frames and legends.

`paint_*`, `blank_regions`, `spotlight` and `stack` take arrays and return arrays, so a web page can use them too."""
import math
import sys
from io import BytesIO
from pathlib import Path
from threading import current_thread, main_thread

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch.nn.functional import interpolate

from magnifier.model.pooling import resize_labels
from magnifier.regions import BODY_REGIONS, N_REGIONS, REGIONS

__all__ = ['Figure', 'tiles', 'plot', 'finish', 'REGION_COLOURS', 'HEAT', 'FRAMES', 'region_name', 'paint_mask',
           'paint_heat', 'blank_regions', 'spotlight', 'put_image', 'outline', 'region_legend']

TEXT = 8   # Points of small text: readable at a notebook's width
DPI = 110
CURRENT = 'magnifier'  # Name of our last figure in pyplot
# Okabe and Ito's palette, one colour a region, the background first. Regions that touch are the furthest apart
# (24 units of CIELAB or more), for normal sight and for protanopia, deuteranopia and tritanopia
REGION_COLOURS = np.array([[128, 128, 128], [204, 121, 167], [213, 94, 0], [240, 228, 66],
                           [86, 180, 233], [0, 114, 178], [230, 159, 0], [0, 158, 115]]) / 255  # (k,3) in [0,1]
# Violet is no region's colour. The higher the darker, so that a map over a pale image reads in grey too
HEAT = LinearSegmentedColormap.from_list('heat', ['#d9c2ff', '#9a4dff', '#5a00c8', '#2b0060'])
TRUE_COLOUR = '#008f5f'
FALSE_COLOUR = '#d04a00'
# Kind of a frame -> colour, line style, mark: the three differ without colour too
FRAMES = {
    'true': (TRUE_COLOUR, '-', '✓'),
    'false': (FALSE_COLOUR, (0, (3, 1.6)), '✗'),
    'removed': ('#8a8a8a', ':', '–'),
    'query': ('#222222', '-', ''),
}


# Figures

class Figure(matplotlib.figure.Figure):
    """A matplotlib figure on opaque white. `figure.save(path)` writes it.

    The one drawn last is pyplot's current figure, so that `plt.savefig` and `plt.show` take it; pyplot holds no other
    of them. In a notebook, the call that draws a figure shows it, and it is not shown again as the last value of the
    same cell."""
    shown_in = None  # Number of the notebook cell in which it was shown

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{'dpi': DPI, 'facecolor': 'white', **kwargs})
        FigureCanvasAgg(self)

    def save(self,
        path,  # Its ending says the format: png, jpg, pdf, svg; the folder is made if it is not there
    ) -> Path:  # The file
        "Writes the figure"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.savefig(path)
        return path

    def png(self) -> bytes:
        "The figure as the bytes of a PNG file"
        file = BytesIO()
        self.savefig(file, format='png')
        return file.getvalue()

    def show(self):
        "Shows the figure in a notebook"
        from IPython.display import publish_display_data
        publish_display_data({'image/png': self.png(), 'text/plain': repr(self)})
        self.shown_in = notebook_cell()

    def _ipython_display_(self):
        if self.shown_in is None or self.shown_in != notebook_cell(): self.show()


def notebook_cell() -> int | None:
    "Number of the running notebook cell; None outside of notebooks"
    if 'IPython' not in sys.modules: return None
    shell = sys.modules['IPython'].get_ipython()
    return shell.execution_count if shell is not None and hasattr(shell, 'kernel') else None


def finish(
    figure: Figure,  # What was drawn
    save=None,  # A path, as `Figure.save` takes it; None writes no file
    show: bool = True,  # Whether a notebook shows it at once; not where it goes into a widget
) -> Figure:  # The same
    "Last step of a drawing function: writes the file, shows the figure in a notebook, makes it pyplot's current one"
    if save is not None: figure.save(save)
    if show and notebook_cell() is not None: figure.show()
    can_open_windows = current_thread() is main_thread()
    shows_it_once = notebook_cell() is None or 'inline' in matplotlib.get_backend()
    if show and can_open_windows and shows_it_once:
        plt.close(CURRENT)  # pyplot lets the one before go
        plt.figure(CURRENT, FigureClass=lambda **kwargs: figure)
    return figure


def tiles(
    rows: int,  # Rows of tiles
    cols: int,  # Columns
    *,
    aspect: float,  # Height over width of a tile
    width: float = 1.1,  # Width of a tile, in inches
    above: float = 0.,  # Room over each tile for its title, in inches
    head: float = 0.,  # Further room over the first row, for titles of whole columns
    below: float = 0.,  # Room under each tile for its caption
    left: float = 0.,  # Room left of all tiles, for the rows' names
    bottom: float = 0.,  # Room under all tiles, for a legend
    title: str | None = None,  # Heading of the figure
    gap: float = .1,  # Between tiles
    split: int = 0,  # Columns before a wider gap, which sets the query apart from its hits
    min_width: float = 3.4,  # Least width of the figure: a legend needs this much
) -> tuple:  # Figure, and (rows, cols) axes without ticks
    "Figure of tiles. Their places are computed from these sizes, so nothing overlaps"
    top = (.38 if title else .06) + head
    edge = .08
    wide = .16 if split else 0.
    height = width*aspect
    inner = cols*width + (cols - 1)*gap + wide
    total_w = max(min_width, inner + left + 2*edge)
    total_h = top + rows*(above + height + below) + (rows - 1)*gap + bottom + edge
    figure = Figure(figsize=(total_w, total_h))
    start = left + edge + max(0., (total_w - inner - left - 2*edge)/2)
    axes = np.empty((rows, cols), dtype=object)
    for r in range(rows):
        y = total_h - top - (r + 1)*(above + height) - r*(below + gap)
        for c in range(cols):
            x = start + c*(width + gap) + (wide if split and c >= split else 0.)
            axes[r, c] = ax = figure.add_axes([x/total_w, y/total_h, width/total_w, height/total_h])
            ax.set_axis_off()
    if title: figure.text(.5, 1 - .12/total_h, title, ha='center', va='top', fontsize=TEXT + 3)
    return figure, axes


def plot(
    rows: int = 1,  # Rows of plots
    cols: int = 1,  # Columns
    *,
    size: tuple = (4.6, 3.2),  # Width and height of one plot, in inches
    **kwargs,  # Passed to `Figure.subplots`
) -> tuple:  # Figure, and (rows, cols) axes
    "Figure for curves and bars"
    figure = Figure(figsize=(size[0]*cols, size[1]*rows), layout='constrained')
    axes = figure.subplots(rows, cols, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.spines[['top', 'right']].set_visible(False)
        ax.tick_params(labelsize=TEXT)
    return figure, axes


# Arrays of images, (h,w,3) in [0,1]

def region_name(
    region: int | str,  # Index 0..7, or a name of `REGIONS`; other names are kept
    *,
    stripes: bool = False,  # Masks are horizontal stripes, not body parts: 'stripe 3', from the top
) -> str:  # As people write it
    "A region's name for a legend: 'upper arm' for index 3"
    name = region if isinstance(region, str) else REGIONS[region]
    if stripes and name in BODY_REGIONS: return f'stripe {REGIONS.index(name)}'
    return name.replace('_', ' ')


def resized_labels(labels: np.ndarray, size: tuple) -> np.ndarray:
    "Part labels at the height and width of an image, nearest: no region appears that was not there"
    return resize_labels(torch.from_numpy(np.ascontiguousarray(labels))[None], tuple(size))[0].numpy()


def resized_heat(heat: np.ndarray, size: tuple) -> np.ndarray:
    "A map at the height and width of an image, bilinear"
    heat = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
    return interpolate(heat[None, None], tuple(size), mode='bilinear', align_corners=False)[0, 0].numpy()


def are_stripes(labels: np.ndarray) -> bool:
    """Whether part labels are the horizontal stripes of `stripe_masks`, which must not be called body parts: three or
    more bands, each of one label over the whole width of the body"""
    body = labels > 0
    body = labels[body.any(1)][:, body.any(0)]  # without a border of background, which a shift leaves
    return len(np.unique(body)) > 2 and bool((body == body[:, :1]).all())


def all_stripes(masks) -> bool:
    "Whether all masks are horizontal stripes; None stands for an image without a mask. False where no image has one"
    known = [labels for labels in masks if labels is not None]
    return bool(known) and all(map(are_stripes, known))


def paint_mask(
    image: np.ndarray,  # (h,w,3) in [0,1]
    labels: np.ndarray,  # (h',w') part labels, any size
) -> np.ndarray:  # (h,w,3): the image in grey, its body regions in their colours
    "Part mask over an image; the background stays as it is, in grey"
    labels = resized_labels(labels, image.shape[:2])
    share = np.where(labels[..., None] > 0, .62, 0.)  # opacity
    return _grey(image)*(1 - share) + REGION_COLOURS[np.minimum(labels, N_REGIONS - 1)]*share


def paint_heat(
    image: np.ndarray,  # (h,w,3) in [0,1]
    heat: np.ndarray,  # (h',w') in [0,1], any size
) -> np.ndarray:  # (h,w,3): pale and almost grey, and the darker violet the hotter
    "A map over an image; where the map is low, the image stays visible"
    heat = resized_heat(heat, image.shape[:2]).clip(0, 1)[..., None]
    pale = .42 + .40*_grey(image) + .18*image
    share = .9*heat**.75  # opacity
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
    "An image with everything pale but some regions"
    kept = np.isin(resized_labels(labels, image.shape[:2]), list(regions))[..., None]
    return np.where(kept, image, .72 + .22*_grey(image))


def stack(image: np.ndarray, painted: np.ndarray) -> np.ndarray:
    "One tile, (2h + gap, w, 3): an image, and the same image painted below it, both (h,w,3)"
    gap = np.ones((max(1, image.shape[0]//40), *image.shape[1:]))
    return np.concatenate([image, gap, painted])


# On a tile, and the legend of a whole figure

def outline(
    ax,  # Axis that already holds an image of the labels' size
    labels: np.ndarray,  # (h,w) part labels
):
    "Edges of the body's regions in their colours, on a dark line so that they are visible on any image"
    y, x = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
    for k in range(1, N_REGIONS):
        inside = np.pad((labels == k).astype(float), 1)
        if not inside.any(): continue
        for colour, line in (('#111111', 2.5), (REGION_COLOURS[k], 1.3)):
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
    if kind: _frame(ax, kind)


def _beside(ax, text, at, offset, **kwargs):
    "Text at a position of the tile (in shares of its size), moved by an offset in points"
    kwargs = dict(ha='center', fontsize=TEXT) | kwargs
    ax.annotate(text, at, xycoords='axes fraction', xytext=offset, textcoords='offset points', **kwargs)


def _frame(ax, kind):
    "Frame around a tile, with a mark in its corner"
    colour, style, mark = FRAMES[kind]
    border = dict(transform=ax.transAxes, fill=False, clip_on=False)
    ax.add_patch(Rectangle((0, 0), 1, 1, edgecolor='white', linewidth=4.5, zorder=4, **border))
    ax.add_patch(Rectangle((0, 0), 1, 1, edgecolor=colour, linestyle=style, linewidth=1.2 if kind == 'query' else 3,
                           zorder=5, **border))
    if not mark: return
    disc = dict(boxstyle='circle,pad=.18', facecolor=colour, edgecolor='white', linewidth=.8)
    _beside(ax, mark, (1, 1), (-4, -4), ha='right', va='top', color='white', weight='bold', zorder=6, bbox=disc)


def put_note(ax, text: str):
    "A text instead of an image: what is not there, and why"
    ax.text(.5, .5, text, transform=ax.transAxes, ha='center', va='center', fontsize=TEXT, color='#555555', wrap=False)


def legend_room(figure_width: float, entries: int) -> float:
    "Height in inches of a legend with so many entries, needed before its figure exists"
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
    if regions and stripes: handles.append(_ramp(REGION_COLOURS[1:], 'horizontal stripes, not body parts'))
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


def _ramp(colours, words): return tuple(Patch(facecolor=c) for c in colours), words
