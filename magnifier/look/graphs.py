"Curves, bars and tables of numbers as figures"
import numpy as np
import pandas as pd
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from magnifier.look.figure import TEXT, plot
from magnifier.look.drawing import FALSE_COLOUR, REGION_COLOURS, TRUE_COLOUR

__all__ = ['LINES', 'draw_table', 'draw_bars', 'draw_groups', 'draw_cmc', 'draw_histogram', 'draw_distances',
           'draw_thumbnails']

LINES = REGION_COLOURS[[5, 2, 7, 1, 6, 4, 3, 0]]  # for series, the darkest first
EDGE = dict(edgecolor='#333333', linewidth=.5)


def draw_table(
    ax,  # Where
    table: pd.DataFrame,  # Numbers; NaN stays white
    *,
    title: str = '',  # Over it
    top: float = 1.,  # Value of the darkest colour
    number: str = '.2f',  # Format of a cell's number
):
    "A matrix as colours with its numbers in the cells, where these are large enough"
    values = table.to_numpy(float)
    ax.imshow(values, cmap='Blues', vmin=0, vmax=top, aspect='auto')
    if max(values.shape) <= 16: _write_cells(ax, values, top, number)
    for set_ticks, names in ((ax.set_xticks, table.columns), (ax.set_yticks, table.index)):
        set_ticks(range(len(names)), [str(n).replace('_', ' ') for n in names], fontsize=TEXT - .5)
    if max(len(str(n)) for n in table.columns) > 3:
        for label in ax.get_xticklabels(): label.set(rotation=40, ha='right', rotation_mode='anchor')
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=TEXT + 1)


def _write_cells(ax, values, top, number):
    size = TEXT - (2.5 if max(values.shape) > 10 else .5)
    for (r, c), v in np.ndenumerate(values):
        if np.isnan(v): continue
        ax.text(c, r, format(v, number), ha='center', va='center', fontsize=size,
                color='white' if v > .6*top else '#222222')


def draw_bars(
    ax,  # Where
    values: pd.Series,  # One bar each, 0 to 1; NaN is a bar of length 0
    *,
    words: str,  # What the values are
):
    "Horizontal bars with their numbers, the first on top"
    lengths = np.nan_to_num(values)
    ax.barh(range(len(values)), lengths, color=LINES[5], **EDGE)
    for i, (length, v) in enumerate(zip(lengths, values)):
        ax.text(length + .02, i, f'{v:.2f}', va='center', fontsize=TEXT)
    ax.set_yticks(range(len(values)), [str(n).replace('_', ' ') for n in values.index])
    ax.set(xlim=(0, 1.15), xlabel=words)
    ax.invert_yaxis()


def draw_groups(
    table: pd.DataFrame,  # Rows are groups; columns `queries`, `R1`, `mAP`
    *,
    label: str,  # What the groups are
):
    "R1 and mAP by group, with the number of queries in each"
    figure, ((ax,),) = plot(size=(max(4., .8*len(table) + 1.6), 3.1))
    x = np.arange(len(table))
    for column, colour, hatch, shift in (('R1', LINES[0], '', -.19), ('mAP', LINES[4], '//', .19)):
        ax.bar(x + shift, table[column].fillna(0), width=.36, color=colour, label=column, hatch=hatch, **EDGE)
        for at, v in zip(x + shift, table[column]):
            if np.isfinite(v): ax.text(at, v + .01, f'{v:.2f}', ha='center', va='bottom', fontsize=TEXT - 1)
    ax.set_xticks(x, [f'{name}\n{int(n)} queries' for name, n in zip(table.index, table['queries'])], fontsize=TEXT)
    ax.set_ylim(0, 1.12)
    ax.set_xlabel(label, fontsize=TEXT + .5)
    ax.legend(fontsize=TEXT, frameon=False, ncols=2, loc='upper right', borderaxespad=0)
    return figure


def draw_cmc(
    table: pd.DataFrame,  # Index rank from 1, column `share`
    words: str,  # Over it
):
    "Cumulative match characteristic"
    figure, ((ax,),) = plot()
    ax.step(table.index, table['share'], where='post', color=LINES[0], linewidth=2)
    ax.plot(table.index, table['share'], 'o', color=LINES[0], markersize=3)
    ax.set(xlabel='rank', ylabel='share of queries found', ylim=(0, 1.02), xlim=(.5, table.index[-1] + .5))
    ax.set_title(words, fontsize=TEXT + 1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=.25)
    return figure


def draw_histogram(
    values: np.ndarray,  # (q,) average precisions
    edges: np.ndarray,  # (b+1,) of the bins
):
    "Histogram of average precision with its mean"
    figure, ((ax,),) = plot()
    mean = values.mean()
    ax.hist(values, bins=edges, color=LINES[5], **EDGE)
    ax.axvline(mean, color=LINES[1], linewidth=2)
    ax.text(mean, ax.get_ylim()[1]*1.01, f'mAP {mean:.3f}', ha='center', va='bottom', fontsize=TEXT, color='#222222')
    ax.set(xlabel='average precision of a query', ylabel='queries', xlim=(0, 1))
    return figure


def draw_distances(
    genuine: np.ndarray,  # Distances of true pairs, sorted
    impostor: np.ndarray,  # Distances of false pairs, sorted
    cuts: pd.DataFrame,  # Rows with `threshold`, `false_accept`, `true_accept`
):
    "Distances of true and false pairs as densities, with thresholds"
    figure, ((ax,),) = plot(size=(5.4, 3.3))
    bins = np.linspace(min(genuine[0], impostor[0]), max(genuine[-1], impostor[-1]), 60)
    ax.hist(impostor, bins=bins, density=True, color=FALSE_COLOUR, alpha=.55,
            label=f'two persons ({len(impostor)} pairs)')
    ax.hist(genuine, bins=bins, density=True, histtype='step', color=TRUE_COLOUR, linewidth=2.2,
            label=f'one person ({len(genuine)} pairs)')
    tall = ax.get_ylim()[1]
    room = 1.3 + .11*len(cuts)  # the legend stands above the curves and the lines
    for i, (name, cut) in enumerate(cuts.iterrows()):
        words = f'{name}: cut at {cut.threshold:.3f}, {cut.true_accept:.0%} of true pairs'
        ax.axvline(cut.threshold, 0, 1/room, color='#222222', linestyle=('--', ':', '-.', '-')[i % 4], linewidth=1.3,
                   label=words)
    ax.set(xlabel='cosine distance', ylabel='density', ylim=(0, tall*room))
    ax.legend(fontsize=TEXT - .5, frameon=False, loc='upper left')
    return figure


def draw_thumbnails(
    points: np.ndarray,  # (n,2) places
    images,  # (h,w,3) each
    groups,  # Whom each shows
    title: str,  # Over it
    *,
    tall: float = .42,  # Height of a thumbnail, in inches
):
    "Images where their embeddings lie, framed by identity, each identity named once"
    figure, ((ax,),) = plot(size=(8.6, 6.4))
    names = list(dict.fromkeys(groups))
    for point, image, group in zip(points, images, groups):
        i = names.index(group)
        thumbnail = OffsetImage(image, zoom=tall*72/image.shape[0], interpolation='antialiased')
        border = dict(edgecolor=LINES[i % 7], linewidth=2.2, linestyle='-' if i < 7 else '--')
        ax.add_artist(AnnotationBbox(thumbnail, point, pad=.12, bboxprops=border))
    for i, name in enumerate(names):
        own = points[[g == name for g in groups]]
        middle = own[np.abs(own - np.median(own, 0)).sum(1).argmin()]
        label = dict(boxstyle='round,pad=.15', facecolor='white', edgecolor=LINES[i % 7], alpha=.9)
        ax.annotate(f'id {name}', middle, xytext=(0, tall*36 + 5), textcoords='offset points', ha='center',
                    fontsize=TEXT + .5, weight='bold', zorder=20, bbox=label)
    low, high = points.min(0), points.max(0)
    room = np.maximum(high - low, 1e-6)*.09
    ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]*1.3), xticks=[],
           yticks=[])
    ax.set_title(title, fontsize=TEXT + 1)
    ax.spines[:].set_visible(False)
    return figure
