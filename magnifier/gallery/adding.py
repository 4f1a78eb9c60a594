"Adding to a gallery: images are read in advance and rows are written in the background, while the caller embeds"

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd

from magnifier.checks import refuse
from magnifier.data.images import image_name
from magnifier.files import aside
from magnifier.gallery.entries import (
    as_array, content_key, embedded_regions, keyed, number, read_entry, timestamp, unit_rows)
from magnifier.gallery.store import MOST_NAMES, joined, where
from magnifier.gallery.video import Video, crop_address, cut_boxes, read_mot

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

    def __iter__(self) -> Iterator[list[dict]]:
        with ThreadPoolExecutor(4) as threads:
            yield from prefetched(self._read(start, threads) for start in range(0, len(self.table), self.bs))

    def _read(self, start, threads):
        "New images of a batch: rows of the table with key and image"
        rows = self.table.iloc[start:start + self.bs].to_dict('records')
        _fill(rows, threads.map(lambda row: keyed(row['item'], row['path']), rows))
        new = self._new([row for row in rows if not row['problem']])
        _fill(new, threads.map(lambda row: read_entry(row['item'], row['key']), new))
        self.skipped += [(image_name(row['item']), row['problem']) for row in rows if row['problem']]
        new = [row for row in new if not row['problem']]
        self._seen |= {row['key'] for row in new}
        return new

    def _new(self, rows):
        "The first row of each content that the gallery does not have; of the other rows the names are kept"
        known = self.store.known([row['key'] for row in rows])
        new = {}
        for row in rows:
            key, path = row['key'], row['path']
            if key not in known and key not in self._seen and key not in new: new[key] = row
            elif path is not None and path not in known.get(key, ()): self.names.append((key, path))
        return list(new.values())


def _fill(rows, images):
    "Adds to each row the key, image and problem that were read for it"
    for row, image in zip(rows, images): row.update(image._asdict())


class VideoReading:
    """People in the boxes of a video that a gallery does not have yet, in batches that a thread cuts out in advance.
    The arguments are those of `Gallery.add_video`. ValueError for no boxes, and for another video of this camera under
    the same name"""

    names = ()  # As in `Reading`; who is known keeps the address

    def __init__(self, store, video: Video, boxes, bs, *, camera, start, every, crops):
        self.store = store
        self.video = video
        self.bs = bs
        self.crops = None if crops is None else Path(crops)
        self.table = self._entries(boxes, number(camera, 'camera'), timestamp(start) or 0., every)
        self._check_same_video()
        self.skipped = []  # (path, problem) of boxes that gave no image

    def _entries(self, boxes, camera, start, every):
        "The boxes with columns path, pid, camid, tracklet and time"
        table = boxes if isinstance(boxes, pd.DataFrame) else read_mot(boxes)
        refuse({f'no boxes for {self.video.address}: run the tracker first, or leave this camera out': not len(table)})
        table = table[table.groupby('track').cumcount() % every == 0].reset_index(drop=True)
        places = zip(table['frame'], table[['left', 'top', 'width', 'height']].to_numpy(float))
        return table.assign(
            path=[crop_address(self.video.address, frame, box) for frame, box in places],
            pid=None,
            camid=camera,
            tracklet=[f'{camera}/{self.video.source.stem}/{track}' for track in table['track']],
            time=start + (table['frame'] - 1) / self.video.fps,
        )

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

    def __iter__(self) -> Iterator[list[dict]]:
        left = set(range(len(self.table)))
        for numbers, new in prefetched(self._batches()):
            left -= numbers
            yield new
        self.skipped += [(self.table['path'][row], 'no such frame, or outside it') for row in sorted(left)]

    def _batches(self):
        "The row numbers of each batch, and the new ones of its rows"
        crops = cut_boxes(self.video, self.table)
        while batch := list(islice(crops, self.bs)): yield {crop.row for crop in batch}, self._new(batch)

    def _new(self, crops):
        "Rows of the table for those crops that are new, with key and image"
        rows = self.table.iloc[[crop.row for crop in crops]].to_dict('records')
        for row, crop in zip(rows, crops): row |= dict(image=crop.image, key=content_key(crop.image))
        known = self.store.known([row['key'] for row in rows])
        new = {}
        for row in rows:
            if row['key'] not in known: new.setdefault(row['key'], row)
        if self.crops is not None:  # the address stays as another name
            for row in new.values(): row |= dict(path=self._keep(row), also=[row['path']])
        return list(new.values())

    def _keep(self, row):
        "Writes a person's image and returns its path"
        file = self.crops/row['tracklet']/f'{row["frame"]:06d}.png'
        with aside(file, synced=False) as part: row['image'].save(part, format='png')
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


def embedded(embedder, new: list[dict], regions: bool, d) -> dict:
    """Columns of new images, to be written: labels, and embeddings of `d` dimensions (None for any). Of images of
    tracklets also the visible share of each person, if the embedder can measure it"""
    images = [row['image'] for row in new]
    columns = {name: [row[name] for row in new] for name in ('key', 'pid', 'camid', 'time', 'tracklet')}
    columns['path'] = [row['path'] or '' for row in new]
    columns['also'] = [row.get('also', []) for row in new]
    if any(pd.notna(name) for name in columns['tracklet']) and hasattr(embedder, 'embed_visible'):
        vectors, visibility = embedder.embed_visible(images)
        columns['visibility'] = as_array(visibility).tolist()
    else:
        vectors = embedder.embed(images)
        columns['visibility'] = [None] * len(images)
    columns['vector'] = unit_rows(vectors, len(images), d)
    if regions:
        columns['regions'], visible = embedded_regions(embedder, images)
        columns['visible'] = visible.tolist()
    return columns


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
