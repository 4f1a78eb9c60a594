"Figures with tiles of a fixed size or with plots; they can be saved, and a notebook shows them once"
import sys
from io import BytesIO
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

__all__ = ['Figure', 'tiles', 'plot', 'finish', 'TEXT']

TEXT = 8   # Points of small text: readable at a notebook's width
DPI = 110


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure on opaque white. `figure.save(path)` writes it.

    It is not registered in pyplot, so `plt.savefig` does not save it, and its memory is freed when it is no longer
    used. In a notebook, the call that draws a figure shows it. As the last value of the same cell it is not shown
    again."""
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
        self.shown_in = _cell()

    def _ipython_display_(self):
        if self.shown_in != _cell() or _cell() is None: self.show()


def _cell():
    "Number of the running notebook cell; None outside of notebooks"
    if 'IPython' not in sys.modules: return None
    shell = sys.modules['IPython'].get_ipython()
    return shell.execution_count if shell is not None and hasattr(shell, 'kernel') else None


def finish(
    figure: Figure,  # What was drawn
    save=None,  # A path, as `Figure.save` takes it; None writes no file
    show: bool = True,  # Whether a notebook shows it at once; not where it goes into a widget
) -> Figure:  # The same
    "Last step of every drawing function: writes the file, and shows the figure in a notebook"
    if save is not None: figure.save(save)
    if show and _cell() is not None: figure.show()
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
    title: str | None = None,  # Heading of the figure
    **kwargs,  # Passed to `Figure.subplots`
) -> tuple:  # Figure, and (rows, cols) axes
    "Figure for curves and bars"
    figure = Figure(figsize=(size[0]*cols, size[1]*rows + (.3 if title else 0)), layout='constrained')
    axes = figure.subplots(rows, cols, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.spines[['top', 'right']].set_visible(False)
        ax.tick_params(labelsize=TEXT)
    if title: figure.suptitle(title, fontsize=TEXT + 3)
    return figure, axes
