"Streams of several cameras with drawn pedestrians who come and go, and the truth about every frame"

import logging
import math
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image

from magnifier.checks import refuse
from magnifier.files import aside_folder
from magnifier.walkers.cameras import CAMERAS
from magnifier.walkers.canvas import stream
from magnifier.walkers.dataset import cached, holds, share, whole_number, write_json, write_table
from magnifier.walkers.person import random_appearance
from magnifier.walkers.scene import Person, Stage, View, things_of, visits_of

__all__ = ['walkers_streams']

log = logging.getLogger(__name__)

VERSION = 2  # Of the drawing: raised whenever the same arguments give other streams
MARKER = 'streams.json'
CAMERA_TABLE = 'cameras.csv'
TRUTH = 'truth.csv'
PEOPLE = 'people.json'
LOST = 1.   # Seconds without a detection after which the tracker takes somebody for somebody new
SEEN = .3   # Share of a person that must be seen for a detection
SMALL = 24  # Pixels of height below which there is no detection
ALLOWED = dict(people=(1, 999), cameras=(1, len(CAMERAS)), fps=(1, 30), seed=(0, 2**63))


def walkers_streams(
    path=None,  # Folder to write; None: among fastai's data (`FASTAI_HOME` or ~/.fastai), one per set of arguments
    people: int = 12,  # Persons who come and go, 1 to 999
    cameras: int = 3,  # 1 to 6
    minutes: float = 1.,  # Length of each stream
    *,
    fps: int = 5,  # Frames a second, 1 to 30
    seed: int = 0,  # The same seed gives the same walks and the same pixels
    size=(288, 512),  # Height and width of the frames, even numbers
    start: str = '2026-01-31T08:00:00',  # When the first camera begins; the others follow within four seconds
    video: bool = True,  # MP4 files (needs the package `av`); False: folders of JPEG files
    masks: bool = True,  # Whether each frame's mask is written
) -> Path:  # The folder
    """Draws streams of the same people by several cameras, with the truth; a later call finds them.

    People walk across, turn back, stop, pass behind things and each other, leave, and come to another camera seconds
    later. In the folder, for each camera N from 1:

    - `camN.mp4`, or `camN/000001.jpg` and so on: the frames.
    - `camN.gt.txt`: the truth in MOTChallenge's columns `frame,id,x,y,w,h,conf,class,visibility`. Frames and pixels
      count from 1, as there (`read_mot` gives pixels from 0); `id` is the person, the same at every camera; the box
      holds all of the body and its bag that lies inside the frame, hidden or not; `visibility` is the share of the
      person's pixels that is seen.
    - `camN.txt`: the output of a simulated tracker, `frame,id,x,y,w,h,conf,-1,-1,-1`. Boxes hold the visible part, with
      small errors; `id` is a track, counted from 1 at every camera; a person who comes back, or was hidden for more
      than a second, gets another one.
    - `camN_masks/000001.png`: 16-bit pixels, 8 * person + region; 0 where nobody is.

    `cameras.csv` has each camera's file, start time, frames a second, number of frames and size. `truth.csv` says who
    was where: person, camera, from, to, track; one row a track of `camN.txt`. `people.json` has the appearances. The
    folder appears only when it is complete. Raises ValueError or TypeError for arguments out of range, ValueError for a
    path with other contents, ImportError for videos without `av`, OSError where nothing can be written."""
    args = _checked(dict(people=people, cameras=cameras, minutes=minutes, fps=fps, seed=seed, size=size, start=start,
                         video=video, masks=masks))
    root = Path(path).expanduser().absolute() if path is not None else cached('streams', VERSION, args)
    marker = dict(version=VERSION, arguments=args, files=_files(args))
    if holds(root, marker, MARKER): return root
    if args['video']: import av  # noqa: F401, a missing package is told before anything is drawn
    log.info('drawing %d streams into %s', args['cameras'], root)
    try:
        with aside_folder(root) as new:
            _draw(new, args)
            write_json(new/MARKER, marker)
    except FileExistsError:  # another process drew the same streams and was first
        if not holds(root, marker, MARKER): raise
    return root


def _checked(args):
    "The arguments, or an error that says what is allowed"
    out = args | {name: whole_number(name, args[name], *limits) for name, limits in ALLOWED.items()}
    out['minutes'] = share('minutes', args['minutes'], 24 * 60)
    size = args['size']
    refuse({
        f'minutes={args["minutes"]}: too short for a frame at {out["fps"]} a second': _frames(out) < 1,
        f'size={size}: use (height, width), even numbers, 64 or more each':
            len(size) != 2 or min(size) < 64 or any(side % 2 for side in size)})
    try: datetime.fromisoformat(args['start'])
    except (TypeError, ValueError) as e:
        raise ValueError(f'start={args["start"]!r}: use a date and a time, as 2026-01-31T08:00:00') from e
    return out | dict(size=list(size), video=bool(args['video']), masks=bool(args['masks']))


def _frames(args): return round(args['minutes'] * 60 * args['fps'])


def _files(args):
    "The folders of a set, and how many files each has"
    cameras = range(1, args['cameras'] + 1)
    folders = [f'cam{c}_masks' for c in cameras] if args['masks'] else []
    if not args['video']: folders += [f'cam{c}' for c in cameras]
    return dict.fromkeys(folders, _frames(args))


def _draw(root, args):
    "All streams and tables into a new folder"
    view = View(*args['size'])
    delays = {camera: _delay(args['seed'], camera) for camera in range(1, args['cameras'] + 1)}
    looks = {n: random_appearance(stream(args['seed'], 'somebody', n)) for n in range(1, args['people'] + 1)}
    visits = _visits(view, args, seconds=args['minutes'] * 60 + max(delays.values()))
    table = []
    truth = []
    for camera, delay in delays.items():
        here = [visit for visit in visits if visit.camera == camera]
        file, spans = _stream(root, Stage(camera, view, args['seed']), looks, here, delay, args)
        first = datetime.fromisoformat(args['start']) + timedelta(seconds=delay)
        table.append(dict(camera=camera, file=file, start=first.isoformat(), fps=args['fps'], frames=_frames(args),
                          width=view.width, height=view.height))
        truth += [_span(camera, track, *span, first, args['fps']) for track, span in spans.items()]
    write_table(root/CAMERA_TABLE, table)
    write_table(root/TRUTH, sorted(truth, key=lambda row: (row['person'], row['from'])))
    write_json(root/PEOPLE, {n: asdict(look) for n, look in looks.items()})


def _visits(view, args, seconds):
    "Everybody's visits to all cameras"
    things = [things_of(view, camera, args['seed']) for camera in range(1, args['cameras'] + 1)]
    people = range(1, args['people'] + 1)
    return [visit for n in people for visit in visits_of(view, n, things, seconds, args['seed'])]


def _delay(seed, camera):
    "Seconds after the first camera's start"
    return round(4 * float(stream(seed, 'delay', camera).random()), 1) if camera > 1 else 0.


def _span(camera, track, person, first_frame, last_frame, start, fps):
    "A row of the table of truths"
    times = [start + timedelta(seconds=(frame - 1) / fps) for frame in (first_frame, last_frame)]
    begin, end = (time.isoformat(timespec='milliseconds') for time in times)
    return dict(person=person, camera=camera) | {'from': begin, 'to': end, 'track': track}


def _stream(root, stage, looks, visits, delay, args):
    "One camera's frames, boxes and masks; returns the name of its file or folder, and its tracks"
    camera = stage.camera.camid
    fps = args['fps']
    name = f'cam{camera}'
    file = f'{name}.mp4' if args['video'] else name
    masks = root/f'{name}_masks'
    if args['masks']: masks.mkdir()
    rng = stream(args['seed'], 'grain', camera)
    tracker = _Tracker(fps, stream(args['seed'], 'tracker', camera))
    truth = []
    tracks = []
    with (_Video if args['video'] else _Folder)(root/file, fps, args['size']) as out:
        for number in range(1, _frames(args) + 1):
            seconds = delay + (number - 1) / fps
            frame = stage.frame(_present(visits, looks, seconds), rng)
            out.write(frame.image)
            if args['masks']: Image.fromarray(frame.mask).save(masks/f'{number:06d}.png', compress_level=1)
            truth += [_truth_line(number, s) for s in frame.seen]
            tracks += tracker.lines(number, frame.seen)
    for ending, lines in (('gt.txt', truth), ('txt', tracks)):
        (root/f'{name}.{ending}').write_text(''.join(f'{line}\n' for line in lines), 'utf-8', newline='\n')
    return file, tracker.spans


def _present(visits, looks, seconds):
    there = [visit for visit in visits if visit.start <= seconds <= visit.end]
    return [Person(visit.person, looks[visit.person], visit.at(seconds), visit.arms) for visit in there]


def _truth_line(frame, s):
    x, y, w, h = s.whole
    return f'{frame},{s.person},{x + 1},{y + 1},{w},{h},1,1,{s.visibility}'


class _Tracker:
    "A simulated detector and tracker: boxes of the visible part with small errors, and tracks that break"
    def __init__(self, fps, rng):
        self.lost = LOST * fps
        self.rng = rng
        self.last = {}   # person -> (track, frame) of the latest detection
        self.spans = {}  # track -> (person, first frame, last frame)

    def lines(self, frame, seen):
        "The lines of a frame"
        found = [s for s in seen if s.visibility >= SEEN and s.shown[3] >= SMALL]
        return [self._line(frame, s) for s in found]

    def _line(self, frame, s):
        x, y, w, h = s.shown
        dx, dy, dw, dh = ((float(self.rng.random()) - .5) * .06 * side for side in (w, h, w, h))
        box = ','.join(f'{v:.1f}' for v in (x + dx + 1, y + dy + 1, w + dw, h + dh))
        return f'{frame},{self._track(frame, s.person)},{box},{.5 + .5 * s.visibility:.3f},-1,-1,-1'

    def _track(self, frame, person):
        "The track that a detection belongs to"
        track, latest = self.last.get(person, (0, -math.inf))
        if frame - latest > self.lost: track = len(self.spans) + 1
        self.last[person] = track, frame
        first = self.spans[track][1] if track in self.spans else frame
        self.spans[track] = person, first, frame
        return track


class _Video:
    "Frames as an MP4 file, H.264"
    def __init__(self, file, fps, size):
        import av
        self.frame = av.VideoFrame.from_ndarray
        self.out = av.open(str(file), 'w')
        self.stream = self.out.add_stream('libx264', rate=fps, options=dict(crf='20', preset='veryfast'))
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.thread_count = 1

    def __enter__(self): return self

    def write(self, image): self.out.mux(self.stream.encode(self.frame(image, 'rgb24')))

    def __exit__(self, error, *_):
        if error is None: self.out.mux(self.stream.encode())
        self.out.close()


class _Folder:
    "Frames as a folder of JPEG files, numbered from 1"
    def __init__(self, folder, fps, size):
        folder.mkdir()
        self.folder = folder
        self.n = 0

    def __enter__(self): return self

    def write(self, image):
        self.n += 1
        Image.fromarray(image).save(self.folder/f'{self.n:06d}.jpg', quality=92)

    def __exit__(self, *_): pass
