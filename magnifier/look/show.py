"show_batch, show_results and show_ranking: the pictures that loaders and learners show of themselves"
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.vision.all import TensorImage, no_random, patch
from plum import dispatch
from torch import Tensor
from magnifier.data.batches import IdentityBatches
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.look.drawing import legend_room, paint_heat, paint_mask, put_note, put_picture, region_legend
from magnifier.look.palette import BRANCH_NAMES
from magnifier.look.picture import finish, tiles
from magnifier.look.ranked import OVERLAYS, draw_rankings
from magnifier.look.saliency import Sight, saliency_maps
from magnifier.look.searched import Searched
from magnifier.regions import NO_MASK
from magnifier.train.learner import ReIDLearner

__all__ = ['draw_samples', 'draw_results', 'batch_to_show']


def draw_samples(
    pictures,   # (h,w,3) each, in [0,1]
    labels,     # (h',w') part labels each; None, or `NO_MASK` everywhere, for a picture without
    titles,     # Words over each
    *,
    cols:int=8, # Pictures in a row
    title=None, # Heading
    save=None,  # Where to write the picture
):
    "Pictures with their part masks over them, one legend for all"
    if not len(pictures): raise ValueError('no pictures to show: ask for max_n of at least 1')
    masked = [m is not None and not (m == NO_MASK).any() for m in labels]
    cols = min(cols, len(pictures))
    rows, aspect, width = -(-len(pictures)//cols), pictures[0].shape[0]/pictures[0].shape[1], 1.0
    both = 2 if any(masked) else 1  # the picture itself, and under it the mask
    room = legend_room(max(3.4, cols*(width + .1)), 7) if any(masked) else 0.
    sheet, axes = tiles(rows*both, cols, aspect=aspect, width=width, above=.2, bottom=room, title=title)
    for i, (picture, mask, words) in enumerate(zip(pictures, labels, titles)):
        line = axes[i//cols*both:, i % cols]
        put_picture(line[0], picture, title=words)
        if masked[i]: put_picture(line[1], paint_mask(picture, mask))
        elif any(masked): put_note(line[1], 'no mask')
    if any(masked): region_legend(sheet)
    return finish(sheet, save)


def _as_picture(image): return image.as_subclass(Tensor).float().div(255 if not image.is_floating_point() else 1).permute(1, 2, 0).cpu().numpy()

def _as_labels(mask): return mask.as_subclass(Tensor).cpu().numpy()


@dispatch
def show_batch(x:TensorImage, y:tuple[TensorPartMask, TensorIdentity], samples, ctxs=None, max_n=8, save=None, title=None, **kwargs):
    "Pictures, their part masks, identity and camera; returns the picture. fastai finds this by the types of the batch"
    shown = list(samples)[:max_n]
    return draw_samples([_as_picture(s[0]) for s in shown], [_as_labels(s[1]) for s in shown], [str(s[2]) for s in shown], title=title, save=save)


@patch
def show_batch(self:IdentityBatches,
    b=None,         # A batch to show; None draws one as training would
    max_n:int=8,    # Pictures at most
    ctxs=None,      # As in fastai; not used
    show:bool=True, # False returns the decoded batch instead
    unique:bool=False, # One picture again and again, to see what augmentation does to it
    *,
    seed:int=0,     # Another seed, another batch; the training's own stream stays where it is
    save=None,      # Where to write the picture
    **kwargs        # `title`
):  # Picture
    "Image, part mask, identity and camera of a batch. Looking changes nothing: no generator of the training moves"
    if max_n < 1: raise ValueError(f'max_n={max_n}: show at least one picture')
    if b is None: b = batch_to_show(self, seed, unique)
    decoded = self._pre_show_batch(b, max_n=max_n)
    return show_batch(*decoded, max_n=max_n, save=save, **kwargs) if show else decoded


def batch_to_show(
    dl:IdentityBatches, # A loader
    seed:int=0,         # Seed of the batch
    unique:bool=False,  # One item again and again
):  # (image, mask, identity), as training has them
    "A batch from a copy of the loader, with every generator, the global ones too, put back"
    with no_random(seed):
        copy = dl.new(after_batch=deepcopy(dl.after_batch), after_item=deepcopy(dl.after_item), num_workers=0, seed=seed)
        if unique:
            item = copy.get_idxs()[0]
            copy.get_idxs = lambda: [item]*copy.bs
        return copy.one_batch()


def draw_results(
    pictures,      # (h,w,3) each, in [0,1]
    titles,        # Words over each
    *,
    true=None,      # (h',w') part labels each, None for a picture without; or None for all
    predicted=None, # The same as the model sees them
    heats=None,     # name -> (n,h',w') maps in [0,1], a column each
    save=None,      # Where to write the picture
):
    "Rows of picture, true mask, mask as the model sees it, saliency of each branch; what the data or the model lacks has no column"
    if not len(pictures): raise ValueError('no pictures to show: ask for max_n of at least 1')
    painted = {'image': list(pictures)}
    for name, labels in (('true mask', true), ('predicted', predicted)):
        if labels is None or all(m is None for m in labels): continue
        painted[name] = [None if m is None else paint_mask(p, m) for p, m in zip(pictures, labels)]
    masks, heats = len(painted) > 1, heats or {}
    for name, maps in heats.items(): painted[BRANCH_NAMES.get(name, name)] = [paint_heat(p, m) for p, m in zip(pictures, maps)]
    (h, w), width = pictures[0].shape[:2], 1.25
    room = legend_room(max(3.4, len(painted)*(width + .1)), 7*masks + 2*bool(heats))
    sheet, axes = tiles(len(pictures), len(painted), aspect=h/w, width=width, above=.2, bottom=room)
    for i, line in enumerate(axes):
        for (name, column), ax in zip(painted.items(), line):
            if column[i] is None: put_note(ax, 'no mask')
            else: put_picture(ax, column[i], title=titles[i] if name == 'image' else name)
    if masks or heats: region_legend(sheet, regions=masks, heat='high activation' if heats else None)
    return finish(sheet, save)


def _known(labels): return None if (labels == NO_MASK).any() else labels


@dispatch
def show_results(x:TensorImage, y:tuple[TensorPartMask, TensorIdentity], samples, outs, ctxs=None, max_n=6, save=None, **kwargs):
    "Picture, true and predicted mask: what fastai's own Interpretation shows. `learn.show_results` adds saliency"
    pairs = list(zip(samples, outs))[:max_n]
    return draw_results([_as_picture(s[0]) for s, _ in pairs], [str(s[2]) for s, _ in pairs], true=[_known(_as_labels(s[1])) for s, _ in pairs],
                        predicted=[_known(_as_labels(o[0])) for _, o in pairs], save=save)


@patch
def show_results(self:ReIDLearner,
    ds_idx:int=1,  # 0 for the training images, 1 for the validation set; without augmentation either way
    dl=None,       # Loader or catalog to take them from instead
    max_n:int=6,   # Pictures at most
    shuffle:bool=True, # Whether they are drawn at random; else the first
    *,
    branches=None, # Maps to show: 'global', 'sab', 'sfb', 'stage3', 'stage4'; None for the branches the model has, () for none
    seed:int=0,    # Seed of the draw
    save=None,     # Where to write the picture
):  # Picture
    "Rows of picture, true part mask, the mask as the model sees it, and where each branch looks (paper, Figure 2)"
    if max_n < 1: raise ValueError(f'max_n={max_n}: show at least one picture')
    items = dl if isinstance(dl, pd.DataFrame) else _items(self, ds_idx, dl)
    order = np.random.default_rng(seed).permutation(len(items)) if shuffle else np.arange(len(items))
    chosen = items.iloc[order[:max_n]]
    sight = Sight.of(self, chosen)
    return draw_results(sight.pictures, [_title(row) for row in chosen.to_dict('records')], true=sight.true, predicted=sight.parsed,
                        heats=saliency_maps(sight, branches), save=save)


def _items(learn, ds_idx, dl):
    "Rows that a loader loads"
    if dl is None and (ds_idx >= len(learn.dls.loaders) or not len(learn.dls[ds_idx].dataset)):
        raise ValueError('this learner carries no data of its own: pass a catalog, as in learn.show_results(dl=catalog)')
    return (learn.dls[ds_idx] if dl is None else dl).dataset.items


def _title(row):
    "Identity and camera of a row, or its file's name"
    return f'id {row["pid"]} cam {row["camid"]}' if 'pid' in row else Path(str(row['path'])).name[:18]


@patch
def show_ranking(self:ReIDLearner,
    queries=None,  # None or 'random', 'worst', 'best' (by average precision); or identities (ints) and file names, one or several
    *,
    k:int=8,       # Hits of each query
    n:int=4,       # Queries
    seed:int=0,    # Seed of the random queries
    save=None,     # Where to write the picture
    saliency=True, # True: what made the match, over each picture; 'masks': the part masks as the model sees them; False: plain
    catalog=None,  # Catalog with queries and gallery; None for the validation set
    regions=None,  # Search by these regions alone, as ['foot', 'lower_leg']: the same shoes, whatever the coat
    show_removed:bool=False, # Also the hits that the protocol removes (same person, same camera), greyed
    versus=None,   # Another learner: its list below this one's, on the same queries (paper, Figure 3)
    names=('this', 'other'), # Names of the two learners
):  # Picture
    "Queries and their first hits, right and wrong framed apart, with identity, camera and cosine similarity"
    if k < 1: raise ValueError(f'k={k}: show at least one hit')
    if saliency not in OVERLAYS: raise ValueError(f"saliency={saliency!r}: use True for similarity maps, 'masks' for part masks, False for neither")
    learns = [self] if versus is None else [self, versus]
    searches = [Searched.of(learn, catalog if versus is None or catalog is not None else _items(self, 1, None), regions) for learn in learns]
    return draw_rankings(learns, searches, searches[0].choose(queries, n, seed), names=names if versus is not None else None, save=save,
                         k=k, saliency=saliency, show_removed=show_removed, regions=regions)
