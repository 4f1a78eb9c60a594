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
from magnifier.gallery.entries import content_key, number, problem, read_entry, timestamp
from magnifier.gallery.store import MOST_NAMES, joined, where
from magnifier.gallery.video import crop_address, cut_boxes, read_mot

__all__ = []

WRITTEN, SECONDS = 1 << 24, 5  # Embeddings are written once they have so many bytes, or have waited so long


class Reading:
    "Images of a table that a gallery does not have yet, in batches that threads decode in advance"

    def __init__(self,
        store,  # Of the gallery
        table: pd.DataFrame,  # Of `entries`
        bs: int,  # Images in a batch
    ):
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
        part = self.table.iloc[start:start+self.bs]
        keys = pd.Series(list(threads.map(_key_or_error, part['item'], part['path'])), index=part.index, dtype=object)
        broken = keys.map(lambda key: isinstance(key, Exception))
        problems = {i: problem(keys[i], part['item'][i]) for i in part.index[broken]}
        part = part[~broken].assign(key=keys[~broken])
        known = self.store.known(part['key'].tolist())
        new = ~part['key'].isin(self._seen | set(known)) & ~part.duplicated('key')
        again = part[~new & part['path'].notna()]
        self.names += [(key, path) for key, path in zip(again['key'], again['path']) if path not in known.get(key, ())]
        part = part[new]
        read = pd.Series(list(threads.map(read_entry, part['item'], part['key'])), index=part.index, dtype=object)
        problems |= {i: read[i].problem for i in part.index if read[i].image is None}
        self.skipped += [(image_name(self.table['item'][i]), problems[i]) for i in sorted(problems)]
        part = part.assign(image=read.map(lambda entry: entry.image))
        part = part.drop(index=[i for i in part.index if i in problems])
        self._seen |= set(part['key'])
        return part


def _key_or_error(item, path):
    try:
        (path or '').encode()  # or no store could keep it
        return content_key(item)
    except (OSError, ValueError, TypeError) as error: return error


def video_entries(
    video: str | Path,  # A video file, or a folder of frames
    boxes,  # A MOTChallenge file, or a table as `read_mot` gives it
    *,
    camera: int,  # Its number
    start,  # When frame 1 was taken; None counts from 1970
    every: int = 1,  # Takes each track's first box and every so-many-th after it
) -> pd.DataFrame:  # The boxes, with path, camid, tracklet, and frame number
    "The boxes of a tracker as rows for a gallery"
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
    """People of a video that a gallery does not have yet, in batches that a thread cuts out in advance. ValueError for
    another video of this camera under the same name"""

    def __init__(self,
        store,  # Of the gallery
        video,  # A Video
        table: pd.DataFrame,  # Of `video_entries`
        bs: int,  # People in a batch
        crops: str | Path | None = None,  # Folder that keeps their images; None keeps none
    ):
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
        crops, left = cut_boxes(self.video, self.table), set(range(len(self.table)))
        for rows, part in prefetched(map(self._new, iter(lambda: list(islice(crops, self.bs)), []))):
            left -= rows
            yield part
        self.skipped += [(self.table['path'][row], 'no such frame, or outside it') for row in sorted(left)]

    def _new(self, crops):
        "The rows of some crops, and those of them that are new, with columns key and image"
        part = self.table.iloc[[crop.row for crop in crops]].assign(pid=None, image=[crop.image for crop in crops])
        part['key'] = [content_key(crop.image) for crop in crops]
        known = self.store.known(part['key'].tolist())
        part = part[~part['key'].isin(known) & ~part.duplicated('key')]
        if self.crops is not None:  # the address stays as another name
            files = [self._keep(row) for row in part.itertuples()]
            part = part.assign(also=[[address] for address in part['path']], path=files)
        return {crop.row for crop in crops}, part

    def _keep(self, row):
        "Writes a person's image and returns its path"
        file = self.crops/f'{row.tracklet}/{row.frame:06d}.png'
        with aside(file, synced=False) as part: row.image.save(part, format='png')
        return str(file)


def prefetched(
    items: Iterator,  # Whatever takes time to make
) -> Iterator:  # The same
    "Makes the next item in a thread while the caller works on the last"
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(next, items, None)
        while (item := following.result()) is not None:
            following = ahead.submit(next, items, None)
            yield item


class Writing:
    "Writes columns to a store in its own thread, many images at once, while the caller embeds the next"

    def __init__(self,
        store,  # Of the gallery
    ):
        self.store, self.added = store, 0
        self._thread, self._last = ThreadPoolExecutor(1), None
        self._waiting, self._since = [], time.monotonic()

    def put(self,
        rows: dict,  # Columns of new images
    ):
        "Adds rows; they are written when there are enough of them"
        self._waiting.append(rows)
        many = len(self._waiting) * rows['vector'].nbytes >= WRITTEN
        if many or time.monotonic() - self._since > SECONDS: self._write()

    def _write(self):
        self._wait()
        if not self._waiting: return
        self._last = self._thread.submit(self.store.add, joined(self._waiting, self._waiting[0]))
        self._waiting, self._since = [], time.monotonic()

    def _wait(self):
        last, self._last = self._last, None
        if last is not None: self.added += last.result()

    def __enter__(self): return self

    def __exit__(self, *error):
        "Writes what was embedded, even if the block ended with an error"
        try:
            self._write()
            self._wait()
        finally: self._thread.shutdown()


def remember_names(
    store,  # Of the gallery
    names: list,  # (key, path) of images that are already there
):
    "Stores other paths of images, so that deleting by any of their paths finds them"
    known = store.known([key for key, _ in names])
    changed = {}
    for key, path in names:
        paths = known.get(key, [path])
        if path not in paths and len(paths) <= MOST_NAMES:
            paths.append(path)
            changed[key] = paths[1:]
    if changed: store.update(dict(key=list(changed), also=list(changed.values())))


def with_bar(
    batches,  # To iterate over
    n: int,  # Images in all
    bs: int,  # Images in a batch
):  # The same batches
    "Batches with a progress bar"
    from fastprogress.fastprogress import progress_bar
    bar, start = progress_bar(batches, total=-(-n // bs), leave=False), time.monotonic()
    def commented():
        for i, batch in enumerate(bar, 1):
            bar.comment = f'{i*bs/(time.monotonic() - start):.0f} images/s, {max(0, n - i*bs)} left'
            yield batch
    return commented()
