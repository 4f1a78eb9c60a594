"""People across cameras on walkers' streams: IDF1 of a model, of colour, and of chance.

    python tests/bench/bench_people.py --learner runs/quick/learner.pkl --out people.csv

Walkers that no training has seen walk in front of cameras. Tracks are the true ones (a person's visit to a
camera) or a tracker's (broken where a person is hidden). All cameras' frames are scored as one video, so that
an identity counts only if it is kept across cameras."""
import argparse
import tempfile
import time
from pathlib import Path

import motmetrics
import numpy as np
import pandas as pd
from hsv_baseline import hsv_stripes

from magnifier.gallery.gallery import Gallery
from magnifier.gallery.video import read_mot
from magnifier.gallery.people import (
    half_distances, impossible_pairs, join_tracklets, tracklet_distances, unlabelled_threshold)
from magnifier.walkers.streams import walkers_streams

GAP = 5  # Frames without a person after which a true visit has ended
LEAST_IOU = .5  # Of a box with the person's own
LEAST_SEEN = .3  # Share of a person that a true box shows


class Colour:
    "Embeds by HSV histograms of horizontal stripes"
    fingerprint = 'hsv stripes'
    def embed(self, images): return np.stack([hsv_stripes(image) for image in images])


def true_tracks(file):
    "Boxes of people as they are, each visit being a track; and the person of each"
    boxes = pd.read_csv(file, header=None).set_axis(['frame', 'person', 'left', 'top', 'width', 'height', 'confidence',
                                                     'class', 'seen'], axis=1)
    boxes = boxes[boxes['seen'] >= LEAST_SEEN].sort_values(['person', 'frame'])
    boxes[['left', 'top']] -= 1  # pixels are counted from 1 there, and from 0 by `read_mot`
    starts = (boxes['person'].diff() != 0) | (boxes['frame'].diff() > GAP)
    return boxes.assign(track=starts.cumsum()).sort_values(['frame', 'track'], ignore_index=True)


def idf1(truth, guessed):
    """IDF1 over all cameras (Ristani et al. 2016). truth: camera -> boxes with person; guessed: camera -> boxes
    with track, numbered over all cameras"""
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for camera, true in truth.items():
        by_frame = dict(list(guessed[camera].groupby('frame')))
        for frame, people in true.groupby('frame'):
            found = by_frame.get(frame, guessed[camera].iloc[:0])
            sides = [side[['left', 'top', 'width', 'height']].to_numpy(float) for side in (people, found)]
            accumulator.update(people['person'].tolist(), found['track'].tolist(), distances(*sides))
    return motmetrics.metrics.create().compute(accumulator, metrics=['idf1'], name='all')['idf1'].iat[0]


def distances(true, found):
    "1 - IoU of every pair of boxes (n, 4) and (m, 4); NaN where they overlap too little to be one person"
    a, b = true[:, None], found[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(min=0).prod(-1)
    iou = both / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both)
    return np.where(iou >= LEAST_IOU, 1 - iou, np.nan)


def joined(found, *, threshold=None, centre=True, possible=True):
    "Tracklet -> person"
    t = found.table
    seconds = [(t[name] - pd.Timestamp(0, tz='UTC')).dt.total_seconds() for name in ('start', 'end')]
    never = impossible_pairs(t['camid'], *seconds)
    distances = tracklet_distances(found.vectors, t['camid'], centre=centre)
    same = half_distances(found.vectors, found.halves, t['camid'], t['images'], centre=centre)
    limit = unlabelled_threshold(distances, never, same) if threshold is None else threshold
    people = join_tracklets(distances, never if possible else np.zeros_like(never), limit)
    return dict(zip(t['tracklet'], people))


def scored(truth, tracks, people):
    "IDF1 where track k of camera c is person people['c/NAME/k']"
    guessed = {}
    for camera, boxes in tracks.items():
        ids = [people.get(f'{camera}/cam{camera}/{track}', -1 - i) for i, track in enumerate(boxes['track'])]
        guessed[camera] = boxes.assign(track=ids)
    return idf1(truth, guessed)


def best_threshold(truth, tracks, found):
    "The best IDF1 that any threshold gives: what a colour baseline could reach at the most"
    return max(scored(truth, tracks, joined(found, threshold=limit)) for limit in np.linspace(.05, 1.2, 24))


def rows_of(root, embedder, name, tracks_name, truth, tracks, cameras, rng):
    with tempfile.TemporaryDirectory() as folder, Gallery(Path(folder)/'people') as g:
        start = time.perf_counter()
        for row in cameras.itertuples():
            g.add_video(embedder, root/row.file, tracks[row.camera], camera=row.camera, start=row.start, progress=False)
        seconds, found = time.perf_counter() - start, g.tracklets()
        plain = g.tracklets(weighted=False)
    settings = {
        'as it is': joined(found),
        'without weights by visibility': joined(plain),
        'without constraints': joined(found, possible=False),
        'without camera centring': joined(found, centre=False),
        'chance': dict(zip(found.table['tracklet'], rng.permutation(list(joined(found).values())))),
    }
    rows = [dict(embedder=name, tracks=tracks_name, setting=setting, idf1=scored(truth, tracks, people))
            for setting, people in settings.items()]
    rows.append(dict(embedder=name, tracks=tracks_name, setting='best threshold',
                     idf1=best_threshold(truth, tracks, found)))
    return [{**row, 'people': sum(len(set(t['person'])) for t in truth.values()), 'tracklets': len(found),
             'crops': len(plain.table) and
             int(found.table['images'].sum()), 'seconds': round(seconds, 1)} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--learner', required=True, help='learner.pkl of magnifier_train, or a saved folder')
    parser.add_argument('--people', type=int, default=16)
    parser.add_argument('--cameras', type=int, default=3)
    parser.add_argument('--minutes', type=float, default=1.)
    parser.add_argument('--seed', type=int, default=1000)
    parser.add_argument('--out', default='people.csv')
    args = parser.parse_args()
    from magnifier.cli.common import open_learner
    learner = open_learner(args.learner, bar=False)
    root = walkers_streams(people=args.people, cameras=args.cameras, minutes=args.minutes, seed=args.seed)
    cameras = pd.read_csv(root/'cameras.csv')
    truth = {c: true_tracks(root/f'cam{c}.gt.txt') for c in cameras['camera']}
    followed = {c: read_mot(root/f'cam{c}.txt') for c in cameras['camera']}
    rows, rng = [], np.random.default_rng(0)
    for name, embedder in (('model', learner), ('HSV stripes', Colour())):
        for tracks_name, tracks in (('true', truth), ('tracker', followed)):
            rows += rows_of(root, embedder, name, tracks_name, truth, tracks, cameras, rng)
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False, float_format='%.3f')
    print(table.to_string(index=False))


if __name__ == '__main__': main()
