"The sheet that every picture is drawn on: tiles of fixed size in inches, saved, shown once in a notebook, never left open"
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ['Picture', 'tiles', 'plot', 'finish', 'TEXT']

TEXT = 8   # Points of small text: readable at a notebook's width
DPI = 110


class Picture(Figure):
    """A matplotlib Figure on opaque white, which pyplot does not hold: hundreds of them cost nothing once they are dropped.

    In a notebook the call that made it has already shown it, wherever it stood in the cell; as the cell's last value it is not shown
    twice, and in a later cell it is."""
    shown_in = None  # Number of the notebook cell in which it appeared

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{'dpi': DPI, 'facecolor': 'white', **kwargs})
        FigureCanvasAgg(self)

    def png(self) -> bytes:
        "The picture as the bytes of a PNG file"
        file = BytesIO()
        self.savefig(file, format='png')
        return file.getvalue()

    def show(self):
        "Shows it here, in a notebook; elsewhere a script saves it with `savefig`"
        from IPython.display import publish_display_data
        publish_display_data({'image/png': self.png(), 'text/plain': repr(self)})
        self.shown_in = _cell()

    def _ipython_display_(self):
        if self.shown_in != _cell() or _cell() is None: self.show()


def _cell():
    "Number of the running notebook cell; None outside of notebooks"
    if 'IPython' not in sys.modules: return None
    shell = sys.modules['IPython'].get_ipython()
    return shell.execution_count if shell is not None and hasattr(shell, 'kernel') else None


def finish(
    picture:Picture, # What was drawn
    save=None,       # A path, whose ending says the format; its folder is made if it is not there
    show:bool=True,  # Whether a notebook shows it at once; not where it goes into a widget
) -> Picture:  # The same
    "Last line of whatever draws: writes the file, and shows the picture where it is a notebook's"
    if save is not None:
        Path(save).parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(save)
    if show and _cell() is not None: picture.show()
    return picture


def tiles(
    rows:int, # Rows of tiles
    cols:int, # Columns
    *,
    aspect:float,       # Height over width of a tile
    width:float=1.1,    # Width of a tile, in inches
    above:float=0.,     # Room over each tile, for its title, in inches
    head:float=0.,      # More of it over the first row, for titles that stand for whole columns
    below:float=0.,     # Room under each tile
    left:float=0.,      # Room left of all, for the rows' names
    bottom:float=0.,    # Room under all, for a legend
    title:str|None=None,# Heading of the whole
    gap:float=.1,       # Between tiles
    split:int=0,        # Columns before a wider gap: what follows is another kind of thing
    min_width:float=3.4,# A legend needs this much
) -> tuple:  # Picture, and (rows, cols) axes without ticks
    "Tiles whose places are computed, not searched for: nothing overlaps and a hundred are as quick as ten"
    top, edge, wide = (.38 if title else .06) + head, .08, .16 if split else 0.
    height = width*aspect
    inner = cols*width + (cols - 1)*gap + wide
    total_w = max(min_width, inner + left + 2*edge)
    total_h = top + rows*(above + height + below) + (rows - 1)*gap + bottom + edge
    picture = Picture(figsize=(total_w, total_h))
    start = left + edge + max(0., (total_w - inner - left - 2*edge)/2)
    axes = np.empty((rows, cols), dtype=object)
    for r in range(rows):
        y = total_h - top - (r + 1)*(above + height) - r*(below + gap)
        for c in range(cols):
            x = start + c*(width + gap) + (wide if split and c >= split else 0.)
            axes[r, c] = ax = picture.add_axes([x/total_w, y/total_h, width/total_w, height/total_h])
            ax.set_axis_off()
    if title: picture.text(.5, 1 - .12/total_h, title, ha='center', va='top', fontsize=TEXT + 3)
    return picture, axes


def plot(
    rows:int=1,  # Rows of plots
    cols:int=1,  # Columns
    *,
    size:tuple=(4.6, 3.2),   # Width and height of one plot, in inches
    title:str|None=None,     # Heading of the whole
    **kwargs                 # Passed to `Figure.subplots`
) -> tuple:  # Picture, and (rows, cols) axes
    "Sheet for curves and bars"
    picture = Picture(figsize=(size[0]*cols, size[1]*rows + (.3 if title else 0)), layout='constrained')
    axes = picture.subplots(rows, cols, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.spines[['top', 'right']].set_visible(False)
        ax.tick_params(labelsize=TEXT)
    if title: picture.suptitle(title, fontsize=TEXT + 3)
    return picture, axes
