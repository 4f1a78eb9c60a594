"Adding to a gallery: images are read in advance and rows are written in the background, while the caller embeds"

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd

from magnifier.data.images import image_name
from magnifier.files import aside
from magnifier.gallery.entries import (
    ReadImage, as_array, content_key, embedded_regions, keyed, number, read_entry, timestamp, unit_rows)
from magnifier.gallery.store import MOST_NAMES, joined, where
from magnifier.gallery.video import crop_address, cut_boxes, read_mot

__all__ = []

WRITTEN = 1 << 24  # Bytes of embeddings that are written at once
SECONDS = 5  # Fewer bytes are written after this time


class Reading:
    "Images of a table (see `entries`) that a gallery does not have yet, in batches that threads decode in advance"

    def __init__(self, store, table, bs):
        self.store = store
        self.table = table
        self.bs = bs
        self.names = []  # (key, path) of content that was known
        self.skipped = []  # (path, problem) of what is no image
        self._seen = set()

    def __iter__(self) -> Iterator[pd.DataFrame]:
        with ThreadPoolExecutor(4) as threads:
            yield from prefetched(self._read(start, threads) for start in range(0, len(self.table), self.bs))

    def _read(self, start, threads):
        "New images of a batch: rows of the table, with columns key and image"
        part = self.table.iloc[start:start + self.bs]
        part = _with(part, threads.map(keyed, part['item'], part['path']))
        whole = part[part['problem'] == '']
        known = self.store.known(whole['key'].tolist())
        is_new = ~whole['key'].isin(self._seen | set(known)) & ~whole.duplicated('key')
        again = whole[~is_new & whole['path'].notna()]
        self.names += [(key, path) for key, path in zip(again['key'], again['path']) if path not in known.get(key, ())]
        new = whole[is_new]
        new = _with(new, threads.map(read_entry, new['item'], new['key']))
        self._skip(part['problem'].to_dict() | new['problem'].to_dict())
        new = new[new['problem'] == ''].drop(columns='problem')
        self._seen |= set(new['key'])
        return new

    def _skip(self, problems):
        "Keeps the problems of a batch, given by row of the table; a row without a problem has an empty text"
        self.skipped += [(image_name(self.table['item'][row]), text) for row, text in problems.items() if text]


def _with(rows, read):
    "Rows of a table with the columns key, image and problem of what was read for them"
    columns = pd.DataFrame(list(read), columns=ReadImage._fields, index=rows.index, dtype=object)
    return rows.assign(**columns)


def video_entries(video, boxes, *, camera: int, start, every: int) -> pd.DataFrame:
    "The boxes of a tracker with columns path, camid, tracklet and since; the arguments are those of `add_video`"
    table = boxes if isinstance(boxes, pd.DataFrame) else read_mot(boxes)
    if not len(table): raise ValueError(f'no boxes for {video}: run the tracker first, or leave this camera out')
    table = table[table.groupby('track').cumcount() % every == 0].reset_index(drop=True)
    camid = number(camera, 'camera')
    places = zip(table['frame'], table[['left', 'top', 'width', 'height']].to_numpy(float))
    return table.assign(
        camid=camid,
        path=[crop_address(video, frame, box) for frame, box in places],
        tracklet=[f'{camid}/{Path(video).stem}/{track}' for track in table['track']],
        since=timestamp(start) or 0.,
    )


class VideoReading:
    """People of a video (the table is of `video_entries`) that a gallery does not have yet, in batches that a thread
    cuts out in advance; the folder `crops` keeps their images, if there is one. ValueError for another video of this
    camera under the same name"""

    def __init__(self, store, video, table, bs, crops=None):
        self.store = store
        self.video = video
        self.bs = bs
        self.table = table.assign(time=table['since'] + (table['frame'] - 1) / video.fps)
        self.crops = None if crops is None else Path(crops)
        self._check_same_video()
        self.names = []  # (key, path) of content that was known
        self.skipped = []  # (path, problem) of boxes that gave no image

    def _check_same_video(self):
        "Tracks that bear the names of tracklets from another time would be taken for the same people"
        if not self.store.about: return
        meant = replace(where(cameras=self.table['camid'].iat[0]), tracklets=())
        there = pd.DataFrame(self.store.read(meant, ('tracklet', 'time'))).groupby('tracklet')['time'].min()
        tracks = self.table.groupby('tracklet')['time'].agg(['min', 'max']).join(there.astype(float), how='inner')
        other = (tracks['time'] < tracks['min'] - .001) | (tracks['time'] > tracks['max'] + .001)
        if other.any():
            name = other.idxmax()
            begins = pd.Timestamp(tracks['time'][name], unit='s', tz='UTC')
            raise ValueError(f'{self.store.uri} has a tracklet {name} of another time ({begins:%Y-%m-%d %H:%M:%S}): '
                             'give each video of a camera a name of its own, and the same start when it is added again')

    def __iter__(self) -> Iterator[pd.DataFrame]:
        left = set(range(len(self.table)))
        for rows, part in prefetched(self._batches()):
            left -= rows
            yield part
        self.skipped += [(self.table['path'][row], 'no such frame, or outside it') for row in sorted(left)]

    def _batches(self):
        "The rows of each batch, and the new ones of them as `_new` gives them"
        crops = cut_boxes(self.video, self.table)
        while batch := list(islice(crops, self.bs)): yield {crop.row for crop in batch}, self._new(batch)

    def _new(self, crops):
        "Rows of the table for those crops that are new, with columns key and image"
        part = self.table.iloc[[crop.row for crop in crops]].assign(pid=None, image=[crop.image for crop in crops])
        part['key'] = [content_key(crop.image) for crop in crops]
        known = self.store.known(part['key'].tolist())
        part = part[~part['key'].isin(known) & ~part.duplicated('key')]
        if self.crops is not None:  # the address stays as another name
            files = [self._keep(row) for row in part.itertuples()]
            part = part.assign(also=[[address] for address in part['path']], path=files)
        return part

    def _keep(self, row):
        "Writes a person's image and returns its path"
        file = self.crops/f'{row.tracklet}/{row.frame:06d}.png'
        with aside(file, synced=False) as part: row.image.save(part, format='png')
        return str(file)


def prefetched(items: Iterator) -> Iterator:
    "The same items; the next is made in a thread while the caller works on the last"
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(next, items, None)
        while (item := following.result()) is not None:
            following = ahead.submit(next, items, None)
            yield item


class Writing:
    "Writes columns to a store in its own thread, many images at once, while the caller embeds the next"

    def __init__(self, store):
        self.store = store
        self.added = 0  # Rows written
        self._thread = ThreadPoolExecutor(1)
        self._last = None  # What the thread is writing
        self._waiting = []  # Columns that are not written yet
        self._since = time.monotonic()

    def put(self, rows: dict):
        "Takes columns of new images; they are written when there are enough of them"
        self._waiting.append(rows)
        many = len(self._waiting) * rows['vector'].nbytes >= WRITTEN
        if many or time.monotonic() - self._since > SECONDS: self._write()

    def _write(self):
        self._wait()
        if not self._waiting: return
        self._last = self._thread.submit(self.store.add, joined(self._waiting, self._waiting[0]))
        self._waiting = []
        self._since = time.monotonic()

    def _wait(self):
        if self._last is None: return
        last = self._last
        self._last = None  # whatever its result, it is not asked again
        self.added += last.result()

    def __enter__(self): return self

    def __exit__(self, *error):
        "Writes what was embedded, even if the block ended with an error"
        try:
            self._write()
            self._wait()
        finally: self._thread.shutdown()


def embedded(embedder, part, regions: bool, d) -> dict:
    """Columns of new images, to be written: labels, and embeddings of `d` dimensions (None for any). Of images of
    tracklets also the visible share of each person, if the embedder can measure it"""
    images = list(part['image'])
    rows = {name: list(part[name]) for name in ('key', 'pid', 'camid', 'time', 'tracklet')}
    rows['path'] = [path or '' for path in part['path']]
    rows['also'] = list(part['also']) if 'also' in part else [[] for _ in images]
    if part['tracklet'].notna().any() and hasattr(embedder, 'embed_visible'):
        vectors, visibility = embedder.embed_visible(images)
        rows['visibility'] = as_array(visibility).tolist()
    else:
        vectors = embedder.embed(images)
        rows['visibility'] = [None] * len(images)
    rows['vector'] = unit_rows(vectors, len(images), d)
    if regions:
        rows['regions'], visible = embedded_regions(embedder, images)
        rows['visible'] = visible.tolist()
    return rows


def remember_names(store, names: list):
    "Stores other paths of images, given as (key, path), so that deleting by any of their paths finds them"
    known = store.known([key for key, _ in names])
    changed = {}
    for key, path in names:
        paths = known.get(key, [path])
        if path not in paths and len(paths) <= MOST_NAMES:
            paths.append(path)
            changed[key] = paths[1:]
    if changed: store.update(dict(key=list(changed), also=list(changed.values())))


def with_bar(batches, n: int, bs: int) -> Iterator:
    "The same batches, with a progress bar for all `n` images"
    from fastprogress.fastprogress import progress_bar
    start = time.monotonic()
    bar = progress_bar(batches, total=-(-n // bs), leave=False)
    for i, batch in enumerate(bar, 1):
        bar.comment = f'{i*bs/(time.monotonic() - start):.0f} images/s, {max(0, n - i*bs)} left'
        yield batch
