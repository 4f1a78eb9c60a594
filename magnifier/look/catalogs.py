"Figures of a data set before training: its images, identities and cameras, and its masks"
import numpy as np
import pandas as pd
from magnifier.data.catalog import SPLITS, describe
from magnifier.data.images import read_image
from magnifier.data.masks import read_mask
from magnifier.look.drawing import are_stripes, legend_room, paint_mask, put_image, put_note, region_legend
from magnifier.look.figure import TEXT, Figure, finish, plot, tiles
from magnifier.look.graphs import EDGE, LINES

__all__ = ['plot_catalog', 'show_masks', 'contact_sheet']

COLOURS = dict(zip(SPLITS, LINES[[0, 1, 4]]))
NO_MASKS = ('no image of this catalog has a part mask: name their folder to the reader (masks=...), or make some with '
            '`magnifier_masks make`')


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
        ax.bar(i, row.images, color=COLOURS[s], **EDGE)
        ax.text(i, row.images, words, ha='center', va='bottom', fontsize=TEXT)
    ax.set_xticks(range(len(splits)), splits, fontsize=TEXT + .5)
    ax.set(ylim=(0, table.loc[splits, 'images'].max()*1.4), title='images')


def _draw_cameras(ax, catalog, splits):
    "A bar a camera, the splits on top of each other"
    cameras = sorted(catalog['camid'].unique())
    height = np.zeros(len(cameras))
    for s in splits:
        counts = catalog['camid'][catalog['split'] == s].value_counts().reindex(cameras, fill_value=0).to_numpy()
        ax.bar(range(len(cameras)), counts, bottom=height, color=COLOURS[s], label=s, **EDGE)
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
        ax.hist(np.minimum(counts[s], most), bins=bins, histtype='step', color=COLOURS[s], linewidth=2, label=s)
    ax.set(title='identities by images', xlabel='images of an identity', ylabel='identities')


def show_masks(
    catalog: pd.DataFrame,  # Rows with path and mask
    n: int = 8,  # Images
    *,
    seed: int | None = 0,  # Seed of the choice; None takes the first rows
    save=None,  # Where to write the figure
) -> Figure:
    "Images, and below each its part mask as the file holds it"
    return _draw_masks(catalog, n, seed, both=True, cols=8, width=1., save=save)


def contact_sheet(
    catalog: pd.DataFrame,  # Rows with path and mask, as after `magnifier_masks make`
    n: int = 60,  # Images
    *,
    seed: int | None = 0,  # Seed of the choice; None takes the first rows
    save=None,  # Where to write the figure
) -> Figure:
    "Many small images with their masks, to judge the masks at a glance"
    return _draw_masks(catalog, n, seed, both=False, cols=12, width=.7, save=save)


def _draw_masks(catalog, n, seed, *, both, cols, width, save):
    rows = _chosen_rows(catalog, n, seed)
    images = [_small(read_image(r['path'])) for r in rows]
    masks = [read_mask(r['mask']) if isinstance(r['mask'], str) else None for r in rows]
    aspect = float(np.median([image.shape[0]/image.shape[1] for image in images]))
    cols = min(cols, len(rows))
    lines = 2 if both else 1  # of tiles, for each row of images
    room = legend_room(max(3.4, cols*(width + .1)), 7)
    figure, axes = tiles(-(-len(rows)//cols)*lines, cols, aspect=aspect, width=width, above=.2 if both else 0.,
                         bottom=room, gap=.1 if both else .05)
    for i, (row, image, mask) in enumerate(zip(rows, images, masks)):
        place = axes[i//cols*lines:, i % cols]
        if both: put_image(place[0], image, title=_who(row))
        _put_mask(place[lines - 1], image, mask)
    region_legend(figure, stripes=_all_stripes(masks))
    return finish(figure, save)


def _all_stripes(masks):
    known = [mask for mask in masks if mask is not None]
    return bool(known) and all(map(are_stripes, known))


def _chosen_rows(catalog, n, seed):
    if n < 1: raise ValueError(f'n={n}: show at least one image')
    if not len(catalog): raise ValueError('the catalog has no rows')
    if 'mask' not in catalog or not catalog['mask'].notna().any(): raise ValueError(NO_MASKS)
    chosen = np.arange(len(catalog)) if seed is None else np.random.default_rng(seed).permutation(len(catalog))
    return catalog.iloc[chosen[:n]].to_dict('records')


def _who(row): return f'id {row["pid"]} cam {row["camid"]}' if 'pid' in row else None


def _put_mask(ax, image, mask):
    if mask is None: put_note(ax, 'no mask')
    else: put_image(ax, paint_mask(image, mask))


def _small(image, most=256):
    "(h,w,3) in [0,1], no higher than a tile shows"
    if image.height > most: image = image.resize((max(1, image.width*most//image.height), most))
    return np.asarray(image, dtype=np.float32)/255
