"Pictures of a data set before anything is trained: what its table holds, and whether its masks fit"
import numpy as np
import pandas as pd
from magnifier.data.catalog import SPLITS, describe
from magnifier.data.images import read_image
from magnifier.data.masks import read_mask
from magnifier.look.drawing import legend_room, paint_mask, put_note, put_picture, region_legend
from magnifier.look.graphs import LINES
from magnifier.look.picture import TEXT, finish, plot, tiles

__all__ = ['plot_catalog', 'show_masks', 'contact_sheet']


def plot_catalog(
    catalog:pd.DataFrame, # One row an image: path, mask, pid, camid, split
    *,
    save=None,            # Where to write the picture
):  # Picture
    "Images and identities by split, images by camera, images by identity"
    table = describe(catalog).drop(index='all')
    splits = [s for s in SPLITS if s in table.index]
    colours = dict(zip(SPLITS, LINES[[0, 1, 4]]))
    sheet, ((left, middle, right),) = plot(1, 3, size=(3.1, 2.7))
    for i, s in enumerate(splits):
        left.bar(i, table.images[s], color=colours[s], edgecolor='#333333', linewidth=.5)
        words = f'{table.images[s]:,}\n{table.identities[s]:,} ids\n{table.masks[s]/table.images[s]:.0%} masks'
        left.text(i, table.images[s], words, ha='center', va='bottom', fontsize=TEXT)
    left.set_xticks(range(len(splits)), splits, fontsize=TEXT + .5)
    left.set(ylim=(0, table.images.max()*1.4), title='images')
    cameras, below = sorted(catalog['camid'].unique()), 0
    for s in splits:
        counts = catalog['camid'][catalog['split'] == s].value_counts().reindex(cameras, fill_value=0).to_numpy()
        middle.bar(range(len(cameras)), counts, bottom=below, color=colours[s], edgecolor='#333333', linewidth=.5, label=s)
        below = below + counts
    step = -(-len(cameras)//16)
    middle.set_xticks(range(0, len(cameras), step), cameras[::step], fontsize=TEXT)
    middle.set(title='images by camera', ylim=(0, np.max(below)*1.3))
    middle.legend(fontsize=TEXT - .5, frameon=False, ncols=3, loc='upper center', columnspacing=.8, handlelength=1)
    _draw_per_identity(right, catalog, splits, colours)
    for ax in (left, middle, right): ax.title.set_fontsize(TEXT + 1)
    return finish(sheet, save)


def _draw_per_identity(ax, catalog, splits, colours):
    "How many identities have so many images; a few with hundreds of them (distractors) do not stretch the axis"
    counts = {s: catalog['pid'][(catalog['split'] == s) & (catalog['pid'] > 0)].value_counts().to_numpy() for s in splits}
    every = np.concatenate(list(counts.values()))
    most = int(np.quantile(every, .99)) if len(every) else 1
    bins = np.unique(np.linspace(.5, most + .5, min(most, 24) + 1).round(1))
    for s in splits: ax.hist(np.minimum(counts[s], most), bins=bins, histtype='step', color=colours[s], linewidth=2, label=s)
    ax.set(title='identities by images', xlabel='images of an identity', ylabel='identities')


def show_masks(
    catalog:pd.DataFrame, # Rows with path and mask
    n:int=8,              # Pictures
    *,
    seed:int|None=0,      # Seed of the choice; None takes the first rows
    save=None,            # Where to write the picture
):  # Picture
    "Pictures and their part masks as the files hold them"
    return _sheet(catalog, n, seed, both=True, cols=8, width=1.0, save=save)


def contact_sheet(
    catalog:pd.DataFrame, # Rows with path and mask, as after `magnifier_masks make`
    n:int=60,             # Pictures
    *,
    seed:int|None=0,      # Seed of the choice; None takes the first rows
    save=None,            # Where to write the picture
):  # Picture
    "Many masks over their pictures, small and close: whether made masks are any good is seen at a glance"
    return _sheet(catalog, n, seed, both=False, cols=12, width=.7, save=save)


def _sheet(catalog, n, seed, *, both, cols, width, save):
    if n < 1: raise ValueError(f'n={n}: show at least one picture')
    if not len(catalog): raise ValueError('the catalog has no rows')
    if 'mask' not in catalog or not catalog['mask'].notna().any():
        raise ValueError('no image of this catalog has a part mask: name their folder to the reader (masks=...), or make some with '
                         '`magnifier_masks make`')
    chosen = np.arange(len(catalog)) if seed is None else np.random.default_rng(seed).permutation(len(catalog))
    rows = catalog.iloc[chosen[:n]].to_dict('records')
    pictures = [_small(read_image(r['path'])) for r in rows]
    aspect, cols = float(np.median([p.shape[0]/p.shape[1] for p in pictures])), min(cols, len(rows))
    per = 2 if both else 1
    room = legend_room(max(3.4, cols*(width + .1)), 7)
    sheet, axes = tiles(-(-len(rows)//cols)*per, cols, aspect=aspect, width=width, above=.2 if both else 0., bottom=room,
                        gap=.1 if both else .05)
    for i, (row, picture) in enumerate(zip(rows, pictures)):
        line = axes[i//cols*per:, i % cols]
        if both: put_picture(line[0], picture, title=f'id {row["pid"]} cam {row["camid"]}' if 'pid' in row else None)
        if isinstance(row['mask'], str): put_picture(line[per - 1], paint_mask(picture, read_mask(row['mask'])))
        else: put_note(line[per - 1], 'no mask')
    region_legend(sheet)
    return finish(sheet, save)


def _small(image, most=256):
    "(h,w,3) in [0,1]; no tile shows more pixels than these"
    if image.height > most: image = image.resize((max(1, image.width*most//image.height), most))
    return np.asarray(image, dtype=np.float32)/255
