"Curves, bars and tables of numbers: of trainings, ablations (paper, Table 2, Figures 4 and 5), catalogs and rankings"
import numpy as np
import pandas as pd
from fastai.vision.all import patch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator

from magnifier.data.catalog import SPLITS, describe
from magnifier.look.drawing import FALSE_COLOUR, REGION_COLOURS, TEXT, TRUE_COLOUR, Figure, finish, plot
from magnifier.train.ablation import STUDIES, summary
from magnifier.train.learner import ReIDLearner

__all__ = ['plot_history', 'plot_studies', 'plot_catalog']

LINES = REGION_COLOURS[[5, 2, 7, 1, 6, 4, 3, 0]]  # for series, the darkest first
EDGE = dict(edgecolor='#333333', linewidth=.5)
STYLES = ('-', '--', ':', '-.')
SERIES = {'R1': (LINES[0], 'o'), 'mAP': (LINES[4], 's')}
STRATEGIES = {'torso': (LINES[0], '-', 'o'), 'random': (LINES[1], '--', 's')}
SPLIT_COLOURS = dict(zip(SPLITS, LINES[[0, 1, 4]]))


# Trainings and ablations

def plot_history(
    losses: pd.DataFrame,  # A column a part, a row an epoch
    metrics: pd.DataFrame | None = None,  # A column a metric, a row an epoch; NaN where an epoch was not ranked
    *,
    unit: str = 'epoch',  # What a row is
    save=None,  # Where to write the figure
) -> Figure:
    "Parts of the loss, and metrics if there are any, over epochs"
    tables = {'training loss by part': losses, 'validation': metrics}
    tables = {title: table for title, table in tables.items() if table is not None and table.size}
    if not tables: raise ValueError('no epoch was trained yet: call fit first')
    figure, (axes,) = plot(1, len(tables), size=(4.7, 3.1))
    for ax, (title, table) in zip(axes, tables.items()):
        _draw_lines(ax, table)
        ax.set(xlabel=unit)
        ax.set_title(title, fontsize=TEXT + 1)
        if title == 'validation': ax.set_ylim(0, 1.02)
        elif _spans_magnitudes(table): ax.set_yscale('log')
    return finish(figure, save)


def _spans_magnitudes(table):
    values = table.to_numpy(float)
    positive = values[values > 0]
    return len(positive) and positive.max()/positive.min() > 30


def _draw_lines(ax, table):
    "One line for each column, with its own colour and style"
    mark = 'o' if len(table) < 30 else None
    for i, name in enumerate(table):
        known = table[name].notna().to_numpy()
        epochs = [epoch for epoch, there in enumerate(known, 1) if there]
        ax.plot(epochs, table[name][known], color=LINES[i % 7], linestyle=STYLES[i//2 % 4], linewidth=1.8,
                marker=mark, markersize=3, label=str(name).replace('_', ' '))
    ax.grid(alpha=.25)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=TEXT - .5, frameon=False, ncols=2 if len(table.columns) > 5 else 1)


@patch
def plot_training(self: ReIDLearner, *,
    regions: bool = False,  # Also the region classifiers' own losses
    save=None,  # Where to write the figure
) -> Figure:
    "Parts of the loss, R1 and mAP over the epochs of the last fit"
    losses = getattr(getattr(self, 'loss_parts', None), 'history', pd.DataFrame())
    losses = losses[[c for c in losses if regions or not c.startswith('region')]]
    return plot_history(losses, _metrics(self), save=save)


def _metrics(learn):
    "The metrics of the recorder, a row an epoch"
    names = list(getattr(learn.recorder, 'metric_names', ()))  # not there before the first fit
    rows = list(getattr(learn.recorder, 'values', ()))
    names = [n for n in names if n not in ('epoch', 'time')]
    table = pd.DataFrame([dict(zip(names, row)) for row in rows])
    return table[[m.name for m in learn.metrics if m.name in table]].apply(pd.to_numeric)


def plot_studies(
    runs: pd.DataFrame,  # Of `ablate`, `read_runs` or the CSV that `magnifier_ablate` wrote
    studies=None,  # Names of `STUDIES`; None for all that have a run
    *,
    save=None,  # Where to write the figure
) -> Figure:
    """A panel a study: R1 and mAP of each line, or mAP against the regions kept (Figure 5). Bars are one
    standard deviation over seeds; a panel of one seed has no bars, and its title says so"""
    table = summary(runs)
    known = list(table.index.unique('study'))
    studies = known if studies is None else list(studies)
    unknown = [s for s in studies if s not in known]
    if unknown: raise ValueError(f'there is no run of study {unknown[0]!r}, but of {", ".join(known)}')
    columns = min(3, len(studies))
    figure, axes = plot(-(-len(studies)//columns), columns, size=(3.9, 2.9))
    panels = list(axes.flat)
    for ax, study in zip(panels, studies):
        draw = _draw_kept if study == 'Figure 5' else _draw_dots
        draw(ax, table.loc[study], study)
        ax.set_title(_study_title(table.loc[study], study), fontsize=TEXT + 1)
    for ax in panels[len(studies):]: ax.set_axis_off()
    return finish(figure, save)


def _study_title(table, study):
    low, high = table.runs.min(), table.runs.max()
    if high == 1: return f'{study} (one seed)'
    return f'{study} ({high} seeds)' if low == high else f'{study} ({low} to {high} seeds)'


def _draw_dots(ax, table, study):
    "One row for each line of the study, with a mark for R1 and one for mAP"
    rows = range(len(table))[::-1]
    for (name, (colour, mark)), shift in zip(SERIES.items(), (.12, -.12)):
        ax.errorbar(table[name], [row + shift for row in rows], xerr=table[f'± {name}'].fillna(0), color=colour,
                    marker=mark, linestyle='', capsize=2, label=name)
    ax.set_yticks(rows, table.index, fontsize=TEXT)
    ax.set(xlabel='%', ylim=(-.6, len(table) - .4))
    ax.margins(x=.12)
    ax.grid(axis='x', alpha=.25)
    ax.legend(fontsize=TEXT - .5, frameon=True, framealpha=.8, loc='best')


def _draw_kept(ax, table, study):
    "mAP against the number of regions that the adversarial branch keeps, a line a strategy (Figure 5)"
    for strategy, (colour, style, mark) in STRATEGIES.items():
        lines = [line for line in STUDIES[study] if line.startswith(strategy) and line in table.index]
        kept = [int(line.split()[1]) for line in lines]
        if not lines: continue
        ax.errorbar(kept, table.mAP[lines], yerr=table['± mAP'][lines].fillna(0), color=colour, linestyle=style,
                    marker=mark, capsize=2, label=strategy)
    ax.set(xlabel='body regions kept', ylabel='mAP, %', xticks=(2, 4, 6))
    ax.grid(alpha=.25)
    ax.legend(fontsize=TEXT - .5, frameon=False)


# Catalogs

def plot_catalog(
    catalog: pd.DataFrame,  # One row an image: path, mask, pid, camid, split
    *,
    save=None,  # Where to write the figure
) -> Figure:
    "Images and identities by split, images by camera, images by identity"
    splits = [s for s in SPLITS if (catalog['split'] == s).any()]
    figure, ((left, middle, right),) = plot(1, 3, size=(3.1, 2.7))
    _draw_splits(left, describe(catalog), splits)
    _draw_cameras(middle, catalog, splits)
    _draw_identities(right, catalog, splits)
    for ax in (left, middle, right): ax.title.set_fontsize(TEXT + 1)
    return finish(figure, save)


def _draw_splits(ax, table, splits):
    "A bar a split, with its numbers in words"
    for i, s in enumerate(splits):
        row = table.loc[s]
        words = f'{row.images:,.0f}\n{row.identities:,.0f} ids\n{row.masks/row.images:.0%} masks'
        ax.bar(i, row.images, color=SPLIT_COLOURS[s], **EDGE)
        ax.text(i, row.images, words, ha='center', va='bottom', fontsize=TEXT)
    ax.set_xticks(range(len(splits)), splits, fontsize=TEXT + .5)
    ax.set(ylim=(0, table.loc[splits, 'images'].max()*1.4), title='images')


def _draw_cameras(ax, catalog, splits):
    "A bar a camera, the splits on top of each other"
    cameras = sorted(catalog['camid'].unique())
    height = np.zeros(len(cameras))
    for s in splits:
        counts = catalog['camid'][catalog['split'] == s].value_counts().reindex(cameras, fill_value=0).to_numpy()
        ax.bar(range(len(cameras)), counts, bottom=height, color=SPLIT_COLOURS[s], label=s, **EDGE)
        height += counts
    step = -(-len(cameras)//16)  # room for 16 names
    ax.set_xticks(range(0, len(cameras), step), cameras[::step], fontsize=TEXT)
    ax.set(title='images by camera', ylim=(0, height.max()*1.3))
    ax.legend(fontsize=TEXT - .5, frameon=False, ncols=3, loc='upper center', columnspacing=.8, handlelength=1)


def _draw_identities(ax, catalog, splits):
    "Identities by their number of images; the last bin has all above the 99th percentile, such as distractors"
    people = catalog[catalog['pid'] > 0]
    counts = {s: people['pid'][people['split'] == s].value_counts().to_numpy() for s in splits}
    every = np.concatenate(list(counts.values()))
    most = int(np.quantile(every, .99)) if len(every) else 1
    bins = np.unique(np.linspace(.5, most + .5, min(most, 24) + 1).round(1))
    for s in splits:
        ax.hist(np.minimum(counts[s], most), bins=bins, histtype='step', color=SPLIT_COLOURS[s], linewidth=2, label=s)
    ax.set(title='identities by images', xlabel='images of an identity', ylabel='identities')


# What an interpretation of a ranking draws

def draw_table(ax, table: pd.DataFrame, *, title: str):
    "A matrix of numbers from 0 to 1 as colours, with the numbers in cells that are large enough; NaN stays white"
    values = table.to_numpy(float)
    ax.imshow(values, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    if max(values.shape) <= 16: _write_cells(ax, values)
    columns, rows = ([str(name).replace('_', ' ') for name in names] for names in (table.columns, table.index))
    ax.set_xticks(range(len(columns)), columns, fontsize=TEXT - .5)
    ax.set_yticks(range(len(rows)), rows, fontsize=TEXT - .5)
    if max(map(len, columns)) > 3:
        for label in ax.get_xticklabels(): label.set(rotation=40, ha='right', rotation_mode='anchor')
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=TEXT + 1)


def _write_cells(ax, values):
    size = TEXT - (2.5 if max(values.shape) > 10 else .5)
    for (r, c), v in np.ndenumerate(values):
        if np.isnan(v): continue
        ax.text(c, r, f'{v:.2f}', ha='center', va='center', fontsize=size, color='white' if v > .6 else '#222222')


def draw_bars(ax, values: pd.Series, *, words: str):
    "Horizontal bars from 0 to 1 with their numbers, the first on top; `words` say what the values are"
    lengths = np.nan_to_num(values)
    ax.barh(range(len(values)), lengths, color=LINES[5], **EDGE)
    for i, (length, v) in enumerate(zip(lengths, values)):
        ax.text(length + .02, i, f'{v:.2f}', va='center', fontsize=TEXT)
    ax.set_yticks(range(len(values)), [str(n).replace('_', ' ') for n in values.index])
    ax.set(xlim=(0, 1.15), xlabel=words)
    ax.invert_yaxis()


def draw_groups(table: pd.DataFrame, *, label: str):
    "The columns R1 and mAP of each group, a row each, with its number of `queries`; the label says what groups them"
    figure, ((ax,),) = plot(size=(max(4., .8*len(table) + 1.6), 3.1))
    x = np.arange(len(table))
    for column, colour, hatch, shift in (('R1', LINES[0], '', -.19), ('mAP', LINES[4], '//', .19)):
        ax.bar(x + shift, table[column], width=.36, color=colour, label=column, hatch=hatch, **EDGE)
        for at, v in zip(x + shift, table[column]):
            ax.text(at, v + .01, f'{v:.2f}', ha='center', va='bottom', fontsize=TEXT - 1)
    ax.set_xticks(x, [f'{name}\n{int(n)} queries' for name, n in zip(table.index, table['queries'])], fontsize=TEXT)
    ax.set_ylim(0, 1.12)
    ax.set_xlabel(label, fontsize=TEXT + .5)
    ax.legend(fontsize=TEXT, frameon=False, ncols=2, loc='upper right', borderaxespad=0)
    return figure


def draw_cmc(shares: pd.Series, *, title: str):
    "Cumulative match characteristic: the share of the queries found by each rank, from rank 1"
    figure, ((ax,),) = plot()
    ax.step(shares.index, shares, where='post', color=LINES[0], linewidth=2)
    ax.plot(shares.index, shares, 'o', color=LINES[0], markersize=3)
    ax.set(xlabel='rank', ylabel='share of queries found', ylim=(0, 1.02), xlim=(.5, shares.index[-1] + .5))
    ax.set_title(title, fontsize=TEXT + 1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=.25)
    return figure


def draw_histogram(average_precisions: np.ndarray, *, bins: int):
    "Histogram of the queries' average precisions, with their mean"
    figure, ((ax,),) = plot()
    mean = average_precisions.mean()
    ax.hist(average_precisions, bins=np.linspace(0, 1, bins + 1), color=LINES[5], **EDGE)
    ax.axvline(mean, color=LINES[1], linewidth=2)
    ax.text(mean, ax.get_ylim()[1]*1.01, f'mAP {mean:.3f}', ha='center', va='bottom', fontsize=TEXT, color='#222222')
    ax.set(xlabel='average precision of a query', ylabel='queries', xlim=(0, 1))
    return figure


def draw_distances(genuine: np.ndarray, impostor: np.ndarray, cuts: pd.DataFrame):
    "Sorted distances of true and false pairs as densities, with the thresholds of a `verification_table`"
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


def draw_thumbnails(points: np.ndarray, images: np.ndarray, pids: np.ndarray, *, title: str):
    "Images, (n,h,w,3), at their points, (n,2), framed by identity, each identity named once"
    figure, ((ax,),) = plot(size=(8.6, 6.4))
    tall = .42  # Height of a thumbnail, in inches
    names = list(dict.fromkeys(pids))
    for point, image, pid in zip(points, images, pids):
        i = names.index(pid)
        thumbnail = OffsetImage(image, zoom=tall*72/image.shape[0], interpolation='antialiased')
        border = dict(edgecolor=LINES[i % 7], linewidth=2.2, linestyle='-' if i < 7 else '--')
        ax.add_artist(AnnotationBbox(thumbnail, point, pad=.12, bboxprops=border))
    for i, name in enumerate(names):
        own = points[pids == name]
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
