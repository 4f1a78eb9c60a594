"Images and their masks as figures: of a catalog, of a loader's batches, of a learner's results"
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.vision.all import DataLoader, TensorImage, no_random, patch
from plum import dispatch
from torch import Tensor

from magnifier.data.batches import IdentityBatches
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.data.images import as_images, read_image, read_mask
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.look.drawing import (TEXT, Figure, all_stripes, blank_regions, finish, legend_room, paint_heat,
                                    paint_mask, put_image, put_note, region_legend, region_name, tiles)
from magnifier.look.saliency import Sight, decode_images, learnt_stripes, saliency_maps
from magnifier.regions import NO_MASK
from magnifier.train.callbacks import RegionOcclusion
from magnifier.train.learner import ReIDLearner

__all__ = ['draw_samples', 'draw_results', 'show_masks', 'contact_sheet']

NO_MASKS = ('no image of this catalog has a part mask: name their folder to the reader (masks=...), or make some with '
            '`magnifier_masks make`')
HEAT_MEANS = {'pixels': 'the embedding is made of this', 'share': 'the embedding comes from here',
              'energy': 'channel energy'}


def draw_samples(
    images,  # (h,w,3) each, in [0,1]
    labels,  # (h',w') part labels each; None, or `NO_MASK` everywhere, for an image without
    titles,  # Words over each
    *,
    title: str | None = None,  # Heading
    save=None,  # Where to write the figure
) -> Figure:
    "Images, each with its part mask below, and one legend for all"
    labels = [None if mask is None else _known(mask) for mask in labels]
    masked = _has_masks(labels)
    figure, columns = _sheet(images, 8, lines=1 + masked, legend=masked, above=.2, title=title)
    for axes, image, mask, words in zip(columns, images, labels, titles):
        put_image(axes[0], image, title=words)
        if masked: _put_mask(axes[1], image, mask)
    if masked: region_legend(figure, stripes=all_stripes(labels))
    return finish(figure, save)


def _sheet(images, cols, *, lines=1, width=1., legend=True, **kwargs):
    "Figure, and for each image its tiles, `lines` of them one below the other"
    if not len(images): raise ValueError('no images to show: ask for at least one')
    cols = min(cols, len(images))
    rows = -(-len(images)//cols)
    aspect = float(np.median([image.shape[0]/image.shape[1] for image in images]))
    room = legend_room(max(3.4, cols*(width + .1)), 7) if legend else 0.
    figure, axes = tiles(rows*lines, cols, aspect=aspect, width=width, bottom=room, **kwargs)
    return figure, axes.reshape(rows, lines, cols).swapaxes(1, 2).reshape(rows*cols, lines)


def _put_mask(ax, image, mask, title=None):
    if mask is None: put_note(ax, 'no mask')
    else: put_image(ax, paint_mask(image, mask), title=title)


def _known(labels): return None if NO_MASK in labels else labels


def _has_masks(labels): return labels is not None and any(mask is not None for mask in labels)


def show_masks(
    catalog: pd.DataFrame,  # Rows with path and mask
    n: int = 8,  # Images
    *,
    seed: int | None = 0,  # Seed of the choice; None takes the first rows
    save=None,  # Where to write the figure
) -> Figure:
    "Images, and below each its part mask as the file holds it"
    rows, images, masks = _read(catalog, n, seed)
    return draw_samples(images, masks, [_title(row) for row in rows], save=save)


def contact_sheet(
    catalog: pd.DataFrame,  # Rows with path and mask, as after `magnifier_masks make`
    n: int = 60,  # Images
    *,
    seed: int | None = 0,  # Seed of the choice; None takes the first rows
    save=None,  # Where to write the figure
) -> Figure:
    "Many small images with their masks, to judge the masks at a glance"
    _, images, masks = _read(catalog, n, seed)
    figure, columns = _sheet(images, 12, width=.7, gap=.05)
    for (ax,), image, mask in zip(columns, images, masks): _put_mask(ax, image, mask)
    region_legend(figure, stripes=all_stripes(masks))
    return finish(figure, save)


def _title(row):
    "Identity and camera of a row, or its file's name"
    if 'pid' in row: return f'id {row["pid"]} cam {row["camid"]}'
    return Path(row['path']).name[:18] if isinstance(row['path'], (str, Path)) else ''


def _read(catalog, n, seed):
    "Some rows of a catalog, their images, and their masks, None where there is none"
    if 'mask' not in catalog or not catalog['mask'].notna().any(): raise ValueError(NO_MASKS)
    chosen = np.arange(len(catalog)) if seed is None else np.random.default_rng(seed).permutation(len(catalog))
    rows = catalog.iloc[chosen[:n]].to_dict('records')
    images = [_small(read_image(row['path'])) for row in rows]
    return rows, images, [read_mask(row['mask']) if isinstance(row['mask'], str) else None for row in rows]


def _small(image, most=256):
    "(h,w,3) in [0,1], no higher than a tile shows"
    if image.height > most: image = image.resize((max(1, image.width*most//image.height), most))
    return np.asarray(image, dtype=np.float32)/255


@dispatch
def show_batch(x: TensorImage, y: tuple[TensorPartMask, TensorIdentity], samples, ctxs=None, max_n=8, save=None,
               title=None, **kwargs):
    "Images, their part masks, identity and camera. fastai finds this function by the types of the batch"
    shown = list(samples)[:max_n]
    return draw_samples([_as_image(image) for image, *_ in shown], [_as_labels(mask) for _, mask, _ in shown],
                        [str(identity) for *_, identity in shown], title=title, save=save)


def _as_image(image):
    "(h,w,3) in [0,1]"
    image = image.as_subclass(Tensor) if image.is_floating_point() else image.as_subclass(Tensor)/255
    return image.float().permute(1, 2, 0).cpu().numpy()


def _as_labels(mask): return mask.as_subclass(Tensor).cpu().numpy()


@patch
def show_batch(self: IdentityBatches,
    b=None,  # A batch to show; None draws one as training would
    max_n: int = 8,  # Images at most
    ctxs=None,  # As in fastai; not used
    show: bool = True,  # False returns the decoded batch instead
    unique: bool = False,  # One image again and again, to see what augmentation does to it
    *,
    seed: int = 0,  # Another seed, another batch; the training's own stream stays where it is
    title: str | None = None,  # Heading
    save=None,  # Where to write the figure
) -> Figure:  # The figure; with show=False (images, targets, samples)
    """Images, part masks, identities and cameras of a batch. The random generators of the training do not change.

    `dls.show_batch()` shows the training batches, `dls.valid.show_batch()` queries and gallery"""
    if b is None: b = batch_to_show(self, seed, unique)
    decoded = self._pre_show_batch(b, max_n=max_n)
    return show_batch(*decoded, max_n=max_n, title=title, save=save) if show else decoded


def batch_to_show(dl: IdentityBatches, seed: int = 0, unique: bool = False) -> tuple:
    """A batch (image, mask, identity) as training has them, from a copy of the loader. With `unique` it is one item
    again and again. The state of every generator is restored, the global ones too"""
    with no_random(seed):
        copy = dl.new(after_batch=deepcopy(dl.after_batch), after_item=deepcopy(dl.after_item), num_workers=0,
                      seed=seed)
        if unique:
            item = copy.get_idxs()[0]
            copy.get_idxs = lambda: [item]*copy.bs
        return copy.one_batch()


def draw_results(
    images,  # (h,w,3) each, in [0,1]
    titles,  # Words over each
    *,
    true=None,  # (h',w') part labels each, None for an image without; or None for all
    predicted=None,  # The same as the model sees them
    heats=None,  # Title -> (n,h',w') maps in [0,1], a column each
    heat_means: str = HEAT_MEANS['pixels'],  # What dark violet means
    stripes: bool = False,  # Whether the model learnt horizontal stripes for part masks
    save=None,  # Where to write the figure
) -> Figure:
    "Rows of image, true mask, the model's own mask, and maps; without masks or maps there is no such column"
    stripes = stripes or all_stripes(true or ())
    names = ('stripes', 'predicted stripes') if stripes else ('true mask', 'predicted')
    masks = {name: labels for name, labels in zip(names, (true, predicted)) if _has_masks(labels)}
    heats = heats or {}
    h, w = images[0].shape[:2]
    width = 1.25
    cols = 1 + len(masks) + len(heats)
    room = legend_room(max(3.4, cols*(width + .1)), 7*bool(masks) + 2*bool(heats))
    figure, axes = tiles(len(images), cols, aspect=h/w, width=width, above=.2, bottom=room)
    for i, (image, words, line) in enumerate(zip(images, titles, axes)):
        put_image(line[0], image, title=words)
        _draw_overlays(line[1:], image, {name: of_all[i] for name, of_all in masks.items()},
                       {name: of_all[i] for name, of_all in heats.items()})
    region_legend(figure, regions=bool(masks), stripes=stripes, heat=heat_means if heats else None)
    return finish(figure, save)


def _draw_overlays(axes, image, masks, heats):
    "An image's masks and maps, each on an axis of its own"
    for ax, (name, labels) in zip(axes, masks.items()): _put_mask(ax, image, labels, name)
    for ax, (name, heat) in zip(axes[len(masks):], heats.items()): put_image(ax, paint_heat(image, heat), title=name)


@dispatch
def show_results(x: TensorImage, y: tuple[TensorPartMask, TensorIdentity], samples, outs, ctxs=None, max_n=6,
                 save=None, **kwargs):
    "Image, true and predicted mask, as fastai's own Interpretation shows them. `learn.show_results` adds saliency"
    images, masks, identities = zip(*list(samples)[:max_n])
    return draw_results([_as_image(image) for image in images], [str(identity) for identity in identities],
                        true=[_known(_as_labels(mask)) for mask in masks],
                        predicted=[_known(_as_labels(out[0])) for out in list(outs)[:max_n]], save=save)


@patch
def show_results(self: ReIDLearner,
    ds_idx: int = 1,  # 0 for the training images, 1 for the validation set; without augmentation either way
    dl=None,  # Loader, catalog or images to show instead
    max_n: int = 6,  # Images at most
    shuffle: bool = True,  # Whether they are drawn at random; else the first
    *,
    branches=None,  # Names of branches, and of kind 'energy' also 'stage3' and 'stage4'; None for all, () for none
    kind: str = 'pixels',  # Of the maps: 'pixels', 'share' or 'energy' (paper, Figure 2), see `saliency_maps`
    seed: int = 0,  # Seed of the draw
    save=None,  # Where to write the figure
) -> Figure:
    "Rows of image, true part mask, the model's own part mask, and where each branch looks (`saliency_maps`)"
    items = _rows(self, ds_idx, dl)
    order = np.random.default_rng(seed).permutation(len(items)) if shuffle else np.arange(len(items))
    chosen = items.iloc[order[:max_n]]
    sight = Sight.of(self, chosen)
    titles = {name: branch.title for name, branch in self.model.branches.items()}
    heats = {titles.get(name, name): maps for name, maps in saliency_maps(self, sight, branches, kind=kind).items()}
    return draw_results(sight.images, [_title(row) for row in chosen.to_dict('records')], true=sight.true,
                        predicted=sight.parsed, heats=heats, heat_means=HEAT_MEANS[kind],
                        stripes=learnt_stripes(self), save=save)


def _rows(learn, ds_idx, dl):
    "Catalog rows that a loader loads; of mere images, or a loader over them, a table"
    if isinstance(dl, pd.DataFrame): return dl
    if dl is None:
        if ds_idx >= len(learn.dls.loaders) or not len(learn.dls[ds_idx].dataset):
            raise ValueError('this learner has no data: pass a catalog, as in learn.show_results(dl=catalog)')
        dl = learn.dls[ds_idx]
    items = dl.dataset.items if isinstance(dl, DataLoader) else as_images(dl)
    return items if isinstance(items, pd.DataFrame) else pd.DataFrame({'path': pd.Series(list(items), dtype=object)})


@patch
def show_occlusion(self: ReIDDataLoaders,
    n: int = 6,  # Occlusions drawn, a column each
    *,
    images: int = 2,  # Images, a row each; an occlusion is the same for a whole batch
    occlusion: RegionOcclusion | None = None,  # The callback, whose generator stays where it is; None for the paper's
    seed: int = 0,  # Seed of the batch
    save=None,  # Where to write the figure
) -> Figure:
    "Occlusions of the adversarial branch in training: images with the dropped regions blanked (paper, section 3.2)"
    shown, labels = _with_masks(self.train, seed, images)
    if occlusion is None: occlusion = RegionOcclusion(seed=seed)
    rng = deepcopy(occlusion.rng)
    dropped = [np.flatnonzero(~occlusion.draw(rng).numpy()) for _ in range(n)]
    figure, axes = tiles(len(shown), n + 1, aspect=shown.shape[1]/shown.shape[2], width=1.05, head=.52, split=1)
    for image, mask, line in zip(shown, labels, axes):
        put_image(line[0], image)
        for ax, regions in zip(line[1:], dropped): put_image(ax, blank_regions(image, mask, regions))
    words = ['dropped:\n' + _in_two_lines([region_name(k) for k in regions]) for regions in dropped]
    for ax, title in zip(axes[0], ['image', *words]): ax.set_title(title, fontsize=TEXT, linespacing=1.1, pad=3)
    return finish(figure, save)


def _in_two_lines(names):
    "Names in two lines of about the same length"
    half = -(-len(names)//2)
    return ',\n'.join(', '.join(part) for part in (names[:half], names[half:]) if part) or 'nothing'


def _with_masks(dl, seed, n):
    "The first images of a batch that have a mask, (n,h,w,3) in [0,1], and their labels"
    x, mask, *_ = batch_to_show(dl, seed)
    mask = _as_labels(mask)
    at = [i for i, labels in enumerate(mask) if NO_MASK not in labels][:n]
    if not at:
        raise ValueError('no image of this batch has a part mask, so there are no regions to drop: '
                         'name a folder of masks to the reader (masks=...)')
    return decode_images(x.as_subclass(Tensor)[at], dl), mask[at]
