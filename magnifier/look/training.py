"Figures of training: losses by part and metrics by epoch, and of ablations (paper, Table 2, Figures 4 and 5)"
import pandas as pd
from fastai.vision.all import patch
from magnifier.look.figure import TEXT, Figure, finish, plot
from magnifier.look.graphs import LINES
from magnifier.train.ablation import STUDIES, summary
from magnifier.train.learner import ReIDLearner

__all__ = ['plot_history', 'plot_studies']

STYLES = ('-', '--', ':', '-.')
SERIES = {'R1': (LINES[0], 'o'), 'mAP': (LINES[4], 's')}
STRATEGIES = {'torso': (LINES[0], '-', 'o'), 'random': (LINES[1], '--', 's')}


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
