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
    losses:pd.DataFrame,  # A column a part, a row an epoch
    metrics:pd.DataFrame, # A column a metric, a row an epoch; NaN where an epoch was not ranked
    *,
    save=None,            # Where to write the picture
):  # Picture
    "Loss parts, and metrics, over epochs"
    if not len(losses) and not len(metrics): raise ValueError('no epoch was trained yet: call fit first')
    sheet, ((left, right),) = plot(1, 2, size=(4.7, 3.1))
    for ax, table, title in ((left, losses, 'training loss by part'), (right, metrics, 'validation')):
        for i, name in enumerate(table):
            epochs = np.arange(1, len(table) + 1)[table[name].notna()]
            ax.plot(epochs, table[name].dropna(), color=LINES[i % 7], linestyle=STYLES[i//2 % 4], linewidth=1.8,
                    marker='o' if len(table) < 30 else None, markersize=3, label=str(name).replace('_', ' '))
        ax.set(xlabel='epoch')
        ax.set_title(title, fontsize=TEXT + 1)
        ax.grid(alpha=.25)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if len(table.columns): ax.legend(fontsize=TEXT - .5, frameon=False, ncols=2 if len(table.columns) > 5 else 1)
    positive = losses.to_numpy(float)[losses.to_numpy(float) > 0] if len(losses) else np.ones(1)
    if len(positive) and positive.max()/positive.min() > 30: left.set_yscale('log')
    right.set_ylim(0, 1.02)
    return finish(sheet, save)


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
