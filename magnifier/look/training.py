"Pictures of a training: losses by part, metrics by epoch, and what the adversarial branch was allowed to see"
from copy import deepcopy

import numpy as np
import pandas as pd
from fastai.vision.all import patch
from torch import Tensor
from magnifier.data.batches import IdentityBatches
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.look.drawing import blank_regions, put_picture
from magnifier.look.graphs import LINES
from magnifier.look.palette import region_name
from magnifier.look.picture import TEXT, finish, plot, tiles
from magnifier.look.saliency import decode_pictures
from magnifier.look.show import batch_to_show
from magnifier.regions import NO_MASK
from magnifier.train.callbacks import RegionOcclusion
from magnifier.train.learner import ReIDLearner

__all__ = ['plot_history']

STYLES = ('-', '--', ':', '-.')


def plot_history(
    losses:pd.DataFrame,       # A column a part, a row an epoch
    metrics:pd.DataFrame|None=None, # A column a metric, a row an epoch; NaN where an epoch was not ranked
    *,
    unit:str='epoch',          # What a row is
    save=None,                 # Where to write the picture
):  # Picture
    "Loss parts, and metrics where there are any, over epochs"
    tables = {title: t for title, t in (('training loss by part', losses), ('validation', metrics)) if t is not None and t.size}
    if not tables: raise ValueError('no epoch was trained yet: call fit first')
    sheet, (axes,) = plot(1, len(tables), size=(4.7, 3.1))
    for ax, (title, table) in zip(axes, tables.items()):
        _draw_lines(ax, table)
        ax.set(xlabel=unit)
        ax.set_title(title, fontsize=TEXT + 1)
        positive = table.to_numpy(float)[table.to_numpy(float) > 0]
        if title == 'validation': ax.set_ylim(0, 1.02)
        elif len(positive) and positive.max()/positive.min() > 30: ax.set_yscale('log')
    return finish(sheet, save)


def _draw_lines(ax, table):
    "A line a column, told apart by colour and by style"
    few = len(table) < 30
    for i, name in enumerate(table):
        at = np.arange(1, len(table) + 1)[table[name].notna()]
        ax.plot(at, table[name].dropna(), color=LINES[i % 7], linestyle=STYLES[i//2 % 4], linewidth=1.8, marker='o' if few else None, markersize=3,
                label=str(name).replace('_', ' '))
    ax.grid(alpha=.25)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=TEXT - .5, frameon=False, ncols=2 if len(table.columns) > 5 else 1)


@patch
def plot_training(self:ReIDLearner, *,
    regions:bool=False, # Also the region classifiers' own losses
    save=None,          # Where to write the picture
):  # Picture
    "Loss parts, R1 and mAP over the epochs of the last fit"
    losses = self.loss_parts.history if hasattr(self, 'loss_parts') and hasattr(self.loss_parts, 'history') else pd.DataFrame()
    losses = losses[[c for c in losses if regions or not c.startswith('region')]]
    return plot_history(losses, _metrics(self), save=save)


def _metrics(learn):
    "What the recorder wrote by epoch, but for losses and the clock"
    names, rows = (list(vars(learn.recorder).get(o, ())) for o in ('metric_names', 'values'))  # not there before the first fit
    names = [n for n in names if n not in ('epoch', 'time')]
    wanted = [m.name for m in learn.metrics]
    table = pd.DataFrame([dict(zip(names, row)) for row in rows])
    return table[[n for n in wanted if n in table]].apply(pd.to_numeric) if len(table) else table


@patch
def show_occlusion(self:ReIDDataLoaders,
    n:int=6,              # Occlusions drawn, a column each
    *,
    images:int=2,         # Pictures, a row each; an occlusion is the same for a whole batch
    occlusion:RegionOcclusion|None=None, # The callback that draws; None for the paper's, four regions kept. A copy draws, and its own stream stays
    seed:int=0,           # Seed of the batch
    save=None,            # Where to write the picture
):  # Picture
    "What the adversarial branch may see in training: pictures with the dropped regions blanked (paper, section 3.2)"
    if n < 1 or images < 1: raise ValueError(f'n={n}, images={images}: draw at least one of each')
    pictures, labels = _masked(self.train, seed, images)
    draw = _drawer(occlusion, seed)
    kept = [draw().numpy() for _ in range(n)]
    sheet, axes = tiles(len(pictures), n + 1, aspect=pictures.shape[1]/pictures.shape[2], width=1.05, head=.52, split=1)
    for i, line in enumerate(axes):
        put_picture(line[0], pictures[i], title='image' if i == 0 else None)
        for ax, keeps in zip(line[1:], kept):
            dropped = np.flatnonzero(~keeps)
            words = 'dropped:\n' + _lines([region_name(k) for k in dropped])
            put_picture(ax, blank_regions(pictures[i], labels[i], dropped), title=words if i == 0 else None)
    return finish(sheet, save)


def _drawer(occlusion, seed):
    return (RegionOcclusion(seed=seed) if occlusion is None else deepcopy(occlusion)).draw


def _lines(names):
    "Names in two lines of about the same length"
    half = -(-len(names)//2)
    return ',\n'.join(', '.join(part) for part in (names[:half], names[half:]) if part) or 'nothing'


def _masked(dl:IdentityBatches, seed, images):
    "The first pictures of a batch that have a mask, and their labels"
    x, mask, *_ = batch_to_show(dl, seed)
    mask = mask.as_subclass(Tensor).cpu().numpy()
    at = [i for i, m in enumerate(mask) if not (m == NO_MASK).any()][:images]
    if not at: raise ValueError('no picture of this batch has a part mask, so there are no regions to drop: name a folder of masks to '
                                'the reader (masks=...)')
    return decode_pictures(x.as_subclass(Tensor)[at], dl), mask[at]
