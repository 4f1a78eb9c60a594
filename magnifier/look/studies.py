"Pictures of the ablations: Table 2 and Figure 4 as dots with their spread, Figure 5 as lines"
import numpy as np
import pandas as pd
from magnifier.look.graphs import LINES
from magnifier.look.picture import TEXT, finish, plot
from magnifier.train.ablation import STUDIES, summary

__all__ = ['plot_studies']

SERIES = {'R1': (LINES[0], 'o'), 'mAP': (LINES[4], 's')}
STRATEGIES = {'torso': (LINES[0], '-', 'o'), 'random': (LINES[1], '--', 's')}


def plot_studies(
    runs:pd.DataFrame, # Of `ablate`, `read_runs` or the CSV that `magnifier_ablate` wrote
    studies=None,      # Names of `STUDIES`; None for all that have a run
    *,
    save=None,         # Where to write the picture
):  # Picture
    """A panel a study: R1 and mAP of each line, or mAP against the regions kept (Figure 5). Bars are one standard deviation over seeds;
    where there is one seed alone there is no bar, and the title says so"""
    table = summary(runs)
    known = list(table.index.unique('study'))
    studies = known if studies is None else list(studies)
    unknown = [s for s in studies if s not in known]
    if unknown: raise ValueError(f'no run of study {unknown[0]!r} is there: there are runs of {", ".join(known)}')
    columns = min(3, len(studies))
    sheet, axes = plot(-(-len(studies)//columns), columns, size=(3.9, 2.9))
    panels = [ax for row in axes for ax in row]
    for ax, study in zip(panels, studies): (_draw_kept if study == 'Figure 5' else _draw_dots)(ax, table.loc[study], study)
    for ax in panels[len(studies):]: ax.set_axis_off()
    return finish(sheet, save)


def _title(table, study):
    low, high = table.runs.min(), table.runs.max()
    return f'{study} ({"one seed" if high == 1 else f"{high} seeds" if low == high else f"{low} to {high} seeds"})'


def _draw_dots(ax, table, study):
    "A line of the study a row, R1 and mAP a mark each"
    y = np.arange(len(table))[::-1]
    for i, (name, (colour, mark)) in enumerate(SERIES.items()):
        ax.errorbar(table[name], y + .12 - .24*i, xerr=table[f'± {name}'].fillna(0), color=colour, marker=mark, linestyle='', capsize=2, label=name)
    ax.set_yticks(y, table.index, fontsize=TEXT)
    ax.set(xlabel='%', ylim=(-.6, len(table) - .4))
    ax.margins(x=.12)
    ax.grid(axis='x', alpha=.25)
    ax.legend(fontsize=TEXT - .5, frameon=True, framealpha=.8, loc='best')
    ax.set_title(_title(table, study), fontsize=TEXT + 1)


def _draw_kept(ax, table, study):
    "mAP against the number of regions that the adversarial branch keeps, a line a strategy (Figure 5)"
    for strategy, (colour, style, mark) in STRATEGIES.items():
        lines = [line for line in STUDIES[study] if line.startswith(strategy) and line in table.index]
        kept = [int(line.split()[1]) for line in lines]
        if lines: ax.errorbar(kept, table.mAP[lines], yerr=table['± mAP'][lines].fillna(0), color=colour, linestyle=style, marker=mark, capsize=2, label=strategy)
    ax.set(xlabel='body regions kept', ylabel='mAP, %', xticks=(2, 4, 6))
    ax.grid(alpha=.25)
    ax.legend(fontsize=TEXT - .5, frameon=False)
    ax.set_title(_title(table, study), fontsize=TEXT + 1)
