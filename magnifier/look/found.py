"Hits of a gallery as a picture: the query, and whom it found, when and where"
import numpy as np
import pandas as pd
from fastcore.basics import patch
from magnifier.data.images import read_image
from magnifier.look.drawing import put_note, put_picture
from magnifier.look.picture import finish, tiles
from magnifier.gallery.entries import stored_image
from magnifier.gallery.hits import Hits

__all__ = []

PER_ROW = 8


@patch
def show(
    self:Hits,
    k:int=16,   # Hits at most
    *,
    save=None,  # Where to write the picture
):  # The picture
    """The query, and the first hits with identity, camera, time (UTC) and similarity. A hit whose file is gone is a note, since a gallery
    keeps no pixels; so is a query that was searched by no picture"""
    hits = self[:max(k, 0)]
    query, pictures = _read(self.query), [_stored(hit) for hit in hits]
    shapes = [p.shape[0]/p.shape[1] for p in (query, *pictures) if p is not None]
    rows, cols = max(1, -(-len(hits)//PER_ROW)), min(PER_ROW, max(1, len(hits)))
    picture, axes = tiles(rows, cols + 1, aspect=min(3., float(np.median(shapes))) if shapes else 2., above=.44, below=.2, split=1)
    _put(axes[0, 0], query, kind='query', title='query' + _regions(self.regions))
    if not len(hits): put_note(axes[0, 1], 'no hits')
    for ax, image, hit in zip(axes[:, 1:].flat, pictures, hits):
        _put(ax, image, title=_title(hit), caption=f'{hit.similarity:.3f}')
    return finish(picture, save)


def _put(ax, image, **kwargs):
    if image is not None: return put_picture(ax, image, **kwargs)
    put_picture(ax, np.full((2, 2, 3), .93), **kwargs)
    put_note(ax, 'no picture')


def _regions(regions): return '' if regions is None else '\n' + '\n'.join(r.replace('_', ' ') for r in regions[:2]) + ('\n...' if len(regions) > 2 else '')


def _title(hit):
    who = 'unknown' if pd.isna(hit.pid) else f'id {hit.pid}'
    where = '' if pd.isna(hit.camid) else f'  cam {hit.camid}'
    return f'{who}{where}' + ('' if pd.isna(hit.time) else f'\n{hit.time:%Y-%m-%d}\n{hit.time:%H:%M:%S}')


def _stored(hit):
    "A hit's image in [0,1], or None where its file is gone, or is another by now"
    image = stored_image(hit.path, hit.key)
    return None if image is None else np.asarray(image, dtype=np.float32)/255


def _read(source):
    "A picture in [0,1], or None where it is gone"
    if source is None or isinstance(source, float): return None
    try: return np.asarray(read_image(source), dtype=np.float32)/255
    except (OSError, ValueError): return None
