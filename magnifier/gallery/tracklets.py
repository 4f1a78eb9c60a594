"""Tracklets: one person as a tracker followed them in one camera, from boxes in a video to one embedding each.

A tracklet has no row of its own: it consists of the images with its name. So deleting, labelling and adding images
always keep it consistent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from magnifier.files import aside
from magnifier.gallery.entries import content_key, number, timestamp
from magnifier.gallery.video import box_of, crop_address, cut_boxes, is_address, read_mot
from magnifier.gallery.store import Where

__all__ = ['Tracklets', 'summarise', 'people_boxes', 'video_entries', 'VideoReading']

OF_AN_IMAGE = ('tracklet', 'camid', 'time', 'pid', 'path', 'key', 'visibility')
LEAST_WEIGHT = .05  # Of an image of which nothing is seen, so that a tracklet of such images has an embedding too


class Tracklets(NamedTuple):
    "Tracklets of a gallery"

    table: pd.DataFrame  # tracklet, camid, start, end (UTC), images, visibility, pid; path and key of the best
    vectors: np.ndarray  # (t, d) float32 of length 1, in the order of the table
    halves: np.ndarray  # (t, 2, d) float32 of length 1: of the earlier and of the later half of the images; 0 for none

    def __len__(self): return len(self.table)


def video_entries(
    video: str | Path,  # A video file, or a folder of frames
    boxes,  # A MOTChallenge file, or a table as `read_mot` gives it
    *,
    camera: int,  # Its number
    start,  # When frame 1 was taken; None counts from 1970
    fps: float | None,  # Frames a second; None takes a video file's own
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
    "People of a video that a gallery does not have yet, in batches that a thread cuts out in advance"

    def __init__(self,
        store,  # Of the gallery
        video,  # A Video
        table: pd.DataFrame,  # Of `video_entries`
        bs: int,  # People in a batch
        crops: str | Path | None = None,  # Folder that keeps their images; None keeps none
    ):
        self.store, self.video, self.bs = store, video, bs
        self.table = table.assign(time=table['since'] + (table['frame'] - 1) / video.fps)
        self.crops = None if crops is None else Path(crops)
        self.names = []  # (key, path) of content that was known
        self.skipped = []  # (path, problem) of boxes that gave no image

    def __iter__(self) -> Iterator[pd.DataFrame]:
        cut, left = cut_boxes(self.video, self.table), set(range(len(self.table)))
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._read, cut)
            while (batch := following.result()) is not None:
                rows, part = batch
                left -= rows
                following = ahead.submit(self._read, cut)
                yield part
        self.skipped += [(self.table['path'][row], 'no such frame, or outside it') for row in sorted(left)]

    def _read(self, cut):
        "The rows of the next people, and those of them that are new, with columns key and image; None at the end"
        crops = list(islice(cut, self.bs))
        if not crops: return None
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


def summarise(
    columns: dict,  # Columns of a store, 'vector' among them, of images that belong to tracklets
    weighted: bool = True,  # By how much of the person each image shows
) -> Tracklets:  # With one row a tracklet
    """Each tracklet's camera, times, best image and embedding: the mean of its images' embeddings, weighted by
    how much of the person each shows, at length 1."""
    images = pd.DataFrame({name: columns[name] for name in OF_AN_IMAGE})
    images = images.astype({'pid': 'Int64', 'camid': 'Int64', 'time': 'float64', 'visibility': 'float64'})
    images['seen'] = images['visibility'].fillna(1).clip(lower=LEAST_WEIGHT) if weighted else 1.
    found = images.groupby('tracklet')
    # Of images that show about as much, one from the middle: where a track begins and ends, the frame cuts people off
    images['about'] = images['seen'].round(1)
    images['aside'] = (images['time'] - found['time'].transform('median')).abs()
    best = images.sort_values(['about', 'aside', 'key'], ascending=[False, True, True]).groupby('tracklet').first()
    table = pd.DataFrame(dict(
        camid=best['camid'],
        start=_as_times(found['time'].min()),
        end=_as_times(found['time'].max()),
        images=found.size(),
        visibility=found['visibility'].mean(),
        pid=found['pid'].first(),
        path=best['path'],
        key=best['key'],
    )).sort_values('start', kind='stable').reset_index()
    halves = np.zeros((len(table), 2, columns['vector'].shape[1]), np.float32)
    place = pd.Series(np.arange(len(table)), index=table['tracklet'])
    nth = images.sort_values('time', kind='stable').groupby('tracklet').cumcount().sort_index()
    later = (2*nth >= found['key'].transform('size')).to_numpy(int)
    weighted = columns['vector'] * images['seen'].to_numpy(np.float32)[:, None]
    np.add.at(halves, (place[images['tracklet']].to_numpy(), later), weighted)
    return Tracklets(table, _unit(halves.sum(1)), _unit(halves))


def _unit(vectors): return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _as_times(seconds): return pd.to_datetime(seconds, unit='s', utc=True).dt.round('ms')


def people_boxes(
    store,  # Of a gallery
) -> dict[str, pd.DataFrame]:  # cam1_NAME -> boxes as `write_mot` takes them, with the person as track
    "Boxes of all people in all embedded frames, for other tools; by camera and the video's name"
    rows = store.read(Where(tracklets=()), ('path', 'also', 'pid', 'camid'))
    found = []
    for path, also, pid, camid in zip(*rows.values()):
        address = next(filter(is_address, [path, *also]), None)
        if address is None or pid is None: continue
        video, frame, box = box_of(address)
        found.append((f'cam{camid}_{Path(video).stem}', frame, pid, *box))
    columns = ['video', 'frame', 'track', 'left', 'top', 'width', 'height']
    table = pd.DataFrame(found, columns=columns).sort_values(['video', 'frame', 'track'])
    return {video: boxes.drop(columns='video').reset_index(drop=True) for video, boxes in table.groupby('video')}
