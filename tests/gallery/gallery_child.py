"""What another process does to a gallery: `python gallery_child.py FOLDER JOB SEED`; each step is told on
standard output once it is done. The job `follow` takes a further argument, the folder of its videos"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from gallery_stub import Colours, Watching, people  # noqa: E402
from magnifier.gallery import adding  # noqa: E402
from magnifier.gallery.gallery import Gallery  # noqa: E402

N = 400


def add(g, rng):
    for start in range(0, N, 16):
        g.add(Colours(), people(16, start), pids=range(start, start + 16), progress=False)
        print('added', start + 16, flush=True)


def delete(g, rng):
    for pid in rng.permutation(N).tolist():
        g.delete(pids=pid)
        print('deleted', pid, flush=True)
        if pid % 8 == 0: g.compact()


def compact(g, rng):
    while True:
        some = g.images(pids=range(10, 20))
        g.label(some['key'], some['pid'])
        g.compact()
        print('compacted', flush=True)


def index(g, rng):
    while True:
        for kind in ('ivf', 'exact'):
            g.index(kind)
            print(kind, flush=True)


def search(g, rng):
    while True:
        known = set(g.images()['pid'].dropna())
        hits = g.search(Colours(), people(1, int(rng.integers(N)))[0], k=5)
        print('found', len(known), len(hits), flush=True)


def follow(g, rng, videos=None):
    "Two cameras' videos and the people in them, each batch being written at once"
    videos, adding.SECONDS = Path(videos or sys.argv[4]), -1
    print('begun', flush=True)
    for camera in (1, 2):
        g.add_video(Watching(), videos/f'cam{camera}', videos/f'cam{camera}.txt', camera=camera,
                    start='2026-01-31T08:00:00', fps=5, bs=4, progress=False)
        g.people(threshold=.8, centre=False)
        print('joined', camera, flush=True)


if __name__ == '__main__':
    with Gallery(sys.argv[1]) as gallery: globals()[sys.argv[2]](gallery, np.random.default_rng(int(sys.argv[3])))
