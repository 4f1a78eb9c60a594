"A gallery's answers as figures: a query's hits, and who was in front of which camera when"
import numpy as np
import pandas as pd
from fastcore.basics import patch
from matplotlib import colormaps
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

from magnifier.data.images import read_image
from magnifier.gallery.entries import stored_image
from magnifier.gallery.hits import Hits
from magnifier.look.drawing import TEXT, Figure, finish, put_image, put_note, region_name, tiles

__all__ = ['show_timeline']

PER_ROW = 8
NARROW = .01  # Bars shorter than this share of the time shown have no number
GONE = 'no image:\nits file is gone\nor was changed'


@patch
def show(
    self: Hits,
    k: int = 16,  # Hits at most
    *,
    save=None,  # Where to write the figure
) -> Figure:  # Its tiles
    """The query, and the first hits with identity, camera, time (UTC) and similarity.

    A gallery keeps no images: each is read from its file. If the file is missing or its content has changed, a note is
    drawn instead; likewise for a query without an image."""
    hits = self[:max(k, 0)]
    query = _as_array(_query_image(self.query))
    images = [_as_array(stored_image(hit.path, hit.key)) for hit in hits]
    shapes = [image.shape[0]/image.shape[1] for image in (query, *images) if image is not None]
    rows = max(1, -(-len(hits)//PER_ROW))
    cols = min(PER_ROW, max(1, len(hits)))
    aspect = min(3., float(np.median(shapes))) if shapes else 2.
    figure, axes = tiles(rows, cols + 1, aspect=aspect, width=1.15, above=.44, below=.2, split=1)
    _put(axes[0, 0], query, note='no image', kind='query', title='query' + _region_lines(self.regions))
    if not len(hits): put_note(axes[0, 1], 'no hits')
    for ax, image, hit in zip(axes[:, 1:].flat, images, hits):
        _put(ax, image, note=GONE, title=_title(hit), caption=f'{hit.similarity:.3f}')
    return finish(figure, save)


def _put(ax, image, *, note, **kwargs):
    put_image(ax, np.full((2, 2, 3), .93) if image is None else image, **kwargs)
    if image is None: put_note(ax, note)


def _region_lines(regions):
    "A line for each of the first two regions of a search"
    if regions is None: return ''
    lines = [region_name(r) for r in regions[:2]] + ['...']*(len(regions) > 2)
    return ''.join(f'\n{line}' for line in lines)


def _title(hit):
    who = 'unknown' if pd.isna(hit.pid) else f'id {hit.pid}'
    where = '' if pd.isna(hit.camid) else f'  cam {hit.camid}'
    when = '' if pd.isna(hit.time) else f'\n{hit.time:%Y-%m-%d}\n{hit.time:%H:%M:%S}'
    return who + where + when


def _as_array(image):
    "An image as (h,w,3) in [0,1]; None stays None"
    return None if image is None else np.asarray(image, dtype=np.float32)/255


def _query_image(query):
    "The query as an image; None if there is none or it cannot be read"
    if query is None: return None
    try: return read_image(query)
    except (OSError, ValueError): return None


COLOURS = colormaps['tab20'](np.linspace(0, 1, 20))
LANE = .75  # Inches of a camera's lane
FACES = 10  # Thumbnails in a row


def show_timeline(
    people: pd.DataFrame,  # As `Gallery.people` gives it: person, camid, start, end, tracklet, path, key
    *,
    most: int = 20,  # People drawn at most, those seen for longest first; the title says how many are left out
    save=None,  # Where to write the figure
) -> Figure:  # Lanes above, thumbnails below
    """When each person was in front of which camera.

    Two people who are in front of one camera at the same time are drawn one above the other. Thumbnails come from the
    files or videos that were added; if a person's file is missing or was changed, the thumbnail is empty. A ValueError
    for a table without rows"""
    if not len(people): raise ValueError('nothing to show: the table has no rows')
    seen = (people['end'] - people['start']).groupby(people['person']).sum()
    shown = sorted(seen.nlargest(most, keep='first').index)
    table = people[people['person'].isin(shown)]
    colour = {person: COLOURS[i % len(COLOURS)] for i, person in enumerate(shown)}
    cameras = sorted(table['camid'].unique())
    rows = -(-len(shown)//FACES)
    lanes = .5 + LANE*len(cameras)  # inches
    faces = 1.5*rows + .25
    height = lanes + faces + .3
    figure = Figure(figsize=(9, height))
    left_out = f', {len(seen) - len(shown)} more not shown' if len(seen) > len(shown) else ''
    persons = 'person' if len(shown) == 1 else 'people'
    figure.suptitle(f'{len(shown)} {persons} in front of {len(cameras)} cameras {_days(table)}{left_out}',
                    fontsize=TEXT + 3)
    grid = figure.add_gridspec(2, 1, height_ratios=[lanes, faces], left=.09, right=.98, top=1 - .35/height, bottom=.02,
                               hspace=.5/((lanes + faces)/2))  # half an inch for the times
    _draw_lanes(figure.add_subplot(grid[0]), table, cameras, colour)
    _draw_faces(figure, grid[1], table, shown, colour, rows)
    return finish(figure, save)


def _days(table):
    first = f'{table["start"].min():%Y-%m-%d}'
    last = f'{table["end"].max():%Y-%m-%d}'
    return f'on {first}' if first == last else f'from {first} to {last}'


def _draw_lanes(ax, table, cameras, colour):
    narrow = NARROW*(table['end'].max() - table['start'].min())
    for lane, camera in enumerate(cameras):
        here = table[table['camid'] == camera].sort_values('start')
        levels = _levels(here['start'].to_list(), here['end'].to_list())
        height = .8/max(1, max(levels, default=0) + 1)
        for level, row in zip(levels, here.itertuples()):
            start, end = date2num(row.start), date2num(row.end)
            bottom = lane - .4 + level*height
            ax.broken_barh([(start, max(end - start, 1e-6))], (bottom, height*.9), facecolors=[colour[row.person]],
                           edgecolor='black', linewidth=.4)
            if row.end - row.start < narrow: continue  # its number would hide its neighbour's
            ax.text((start + end)/2, bottom + height*.45, str(row.person), ha='center', va='center', fontsize=TEXT - 1,
                    clip_on=True)
    ax.set_yticks(range(len(cameras)), [f'camera {camera}' for camera in cameras], fontsize=TEXT)
    ax.set_ylim(len(cameras) - .5, -.5)
    ax.xaxis_date(tz='UTC')
    locator = AutoDateLocator(tz='UTC')
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz='UTC', show_offset=False))  # the title has the date
    ax.tick_params(labelsize=TEXT)
    ax.spines[['top', 'right']].set_visible(False)
    ax.margins(x=.01)


def _levels(starts, ends):
    "For visits sorted by start: the lowest level that is free at that time"
    taken_until = []  # of each level
    levels = []
    for start, end in zip(starts, ends):
        level = next((i for i, until in enumerate(taken_until) if until < start), len(taken_until))
        taken_until[level:level + 1] = [end]
        levels.append(level)
    return levels


def _draw_faces(figure, place, table, shown, colour, rows):
    grid = place.subgridspec(rows, FACES, hspace=.3, wspace=.12)
    for i, person in enumerate(shown):
        ax = figure.add_subplot(grid[i//FACES, i % FACES])
        mine = table[table['person'] == person]
        mine = mine.loc[(mine['start'] - mine['end']).sort_values(kind='stable').index]  # the longest seen first
        images = (stored_image(row.path, row.key) for row in mine.itertuples())
        image = next((image for image in images if image is not None), None)
        ax.imshow(np.full((2, 1, 3), .93) if image is None else image)
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values(): spine.set(color=colour[person], linewidth=3)
        cameras = ', '.join(str(camera) for camera in sorted(mine['camid'].unique()))
        ax.set_title(f'{person}: cam {cameras}', fontsize=TEXT - 1)
