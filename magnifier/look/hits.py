"Hits of a gallery as a figure: the query and its hits, with camera and time"
import numpy as np
import pandas as pd
from fastcore.basics import patch
from magnifier.data.images import read_image
from magnifier.gallery.entries import stored_image
from magnifier.gallery.hits import Hits
from magnifier.look.drawing import put_image, put_note
from magnifier.look.figure import Figure, finish, tiles
from magnifier.look.palette import region_name

__all__ = []

PER_ROW = 8
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
    "An image as An image as (h,w,3) in [0,1]; None stays None"
    return None if image is None else np.asarray(image, dtype=np.float32)/255


def _query_image(query):
    "The query as an image; None if there is none or it cannot be read"
    if query is None: return None
    try: return read_image(query)
    except (OSError, ValueError): return None
