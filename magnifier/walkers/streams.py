"Cameras' streams of drawn pedestrians who come and go, with the truth about every frame"

import csv
import json
import logging
import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
import numpy as np
from PIL import Image
from magnifier.files import aside_folder
from magnifier.walkers.appearance import Appearance, random_appearance
from magnifier.walkers.body import Body
from magnifier.walkers.cameras import CAMERAS, background, blurred, noise, response
from magnifier.walkers.canvas import SUPERSAMPLE, Canvas, stream
from magnifier.walkers.clothes import where
from magnifier.walkers.figure import Pose, Projection, skeleton
from magnifier.walkers.pedestrian import shadowed
from magnifier.walkers.scene import View, things_of, visits_of
from magnifier.walkers.sets import cached, holds, mark, share, whole_number

__all__ = ['walkers_streams']

log = logging.getLogger(__name__)

VERSION = 1  # Of the drawing: raised whenever the same arguments give other streams
MARKER, CAMERA_TABLE, TRUTH, PEOPLE = 'streams.json', 'cameras.csv', 'truth.csv', 'people.json'
LOST = 1.   # Seconds without a detection after which a tracker takes somebody for somebody new
SEEN = .3   # Share of a person that must be seen for a detection


def walkers_streams(
    path=None,  # Folder to write; None: among fastai's data (`FASTAI_HOME` or ~/.fastai), a folder per set of arguments
    people: int = 12,  # Persons who come and go, 1 to 999
    cameras: int = 3,  # 1 to 6
    minutes: float = 1.,  # Length of each stream
    *,
    fps: int = 5,  # Frames a second, 1 to 30
    seed: int = 0,  # The same seed gives the same walks and the same pixels
    size=(288, 512),  # Height and width of the frames, even numbers
    start: str = '2026-01-31T08:00:00',  # When the first camera begins; the others follow some seconds later
    video: bool = True,  # MP4 files (needs the package `av`); False: folders of JPEG files
    masks: bool = True,  # Whether each frame's mask is written
) -> Path:  # The folder
    """Draw what several cameras see of the same people, and everything that is true of it; a later call finds it.

    People walk across, turn back, stop, pass behind things and each other, leave, and come to another camera seconds later. In the
    folder, for each camera N from 1:

    - `camN.mp4`, or `camN/000001.jpg` and so on: the frames.
    - `camN.gt.txt`: the truth in MOTChallenge's columns `frame,id,x,y,w,h,conf,class,visibility`. Frames count from 1, pixels from 0;
      `id` is the person, the same at every camera; the box holds the whole body (and its bag) inside the frame, hidden or not;
      `visibility` is the share of the person's pixels that is seen.
    - `camN.txt`: what a tracker would say: `frame,id,x,y,w,h,conf,-1,-1,-1`. Boxes hold what is seen, a little wrong; `id` is the
      camera's own track, from 1 at every camera; a person hidden for more than a second, or who comes back, gets another.
    - `camN_masks/000001.png`: 16-bit pixels, 8 * person + region; 0 where nobody is.

    `cameras.csv` has each camera's file, start time, frames a second, number of frames and size; `truth.csv` says who was where: person,
    camera, from, to, track (one row a track of `camN.txt`); `people.json` has each person's appearance. Everything is drawn aside
    and renamed. Raises ValueError or TypeError for arguments out of range, ValueError for a path that holds anything else,
    ImportError for videos without `av`, OSError where nothing can be written.
    """
    args = _checked(dict(
        people=people, cameras=cameras, minutes=minutes, fps=fps, seed=seed, size=size, start=start, video=video, masks=masks))
    root = Path(path).expanduser().absolute() if path is not None else cached('streams', VERSION, args)
    marker = dict(version=VERSION, arguments=args, files=_files(args))
    if holds(root, marker, MARKER): return root
    if video: import av  # noqa: F401, a missing package is told before anything is drawn
    log.info('drawing %d streams into %s', args['cameras'], root)
    try:
        with aside_folder(root) as new:
            _draw(new, args)
            mark(new, marker, MARKER)
    except FileExistsError:  # another process drew the same streams and was first
        if not holds(root, marker, MARKER): raise
    return root


def _checked(args):
    "The arguments, or an error that says what is allowed"
    limits = dict(people=(1, 999), cameras=(1, len(CAMERAS)), fps=(1, 30), seed=(0, 2**63))
    out = args | {name: whole_number(name, args[name], *limit) for name, limit in limits.items()}
    out['minutes'] = share('minutes', args['minutes'], 24 * 60)
    if out['minutes'] * 60 * out['fps'] < 1: raise ValueError(f'minutes={args["minutes"]}: too short for a frame at {out["fps"]} a second')
    size = args['size']
    if len(size) != 2 or min(size) < 64 or any(side % 2 for side in size):
        raise ValueError(f'size={size}: use (height, width), even numbers, 64 or more each')
    try: datetime.fromisoformat(args['start'])
    except (TypeError, ValueError) as e:
        raise ValueError(f'start={args["start"]!r}: use a date and a time, as 2026-01-31T08:00:00') from e
    return out | dict(size=list(size), video=bool(args['video']), masks=bool(args['masks']))


def _frames(args): return max(1, round(args['minutes'] * 60 * args['fps']))


def _files(args):
    "Folders of the set, and how many files each has"
    folders = [f'cam{c}_masks' for c in range(1, args['cameras'] + 1)] if args['masks'] else []
    if not args['video']: folders += [f'cam{c}' for c in range(1, args['cameras'] + 1)]
    return dict.fromkeys(folders, _frames(args))


# ---- what is in a frame

@dataclass(frozen=True)
class Person:
    "Somebody in the streams"
    number: int
    appearance: Appearance


class Seen(NamedTuple):
    "A person in a frame"
    person: int
    whole: tuple       # Box of the body inside the frame: x, y, w, h
    shown: tuple       # Box of what is seen; None where nothing is
    visibility: float  # Share of the person's pixels that is seen


class Frame(NamedTuple):
    "A drawn frame before it goes through the camera, and what is true of it"
    image: np.ndarray  # (h, w, 3) uint8
    mask: np.ndarray   # (h, w) uint16: 8 * person + region
    seen: list         # Of Seen


class Stage:
    "One camera's place: its ground and wall, and what stands in it"
    def __init__(self, camera:int, view:View, seed:int):
        rng = stream(seed, 'stage', camera)
        self.camera, self.view = CAMERAS[camera-1], view
        self.ground = background(self.camera, (view.height, view.width), rng)
        self.things = [(thing, *self._thing(thing, rng)) for thing in things_of(view, camera, seed)]
        self.response = response(self.camera, rng)
        grain = view.height + 32, view.width + 32, 3
        self.noise = noise(rng, grain, self.camera.noise * .7)  # videos are compressed: much of it would be lost

    def frame(self,
        present,  # (Person, Place, arms) of everybody who is there
    ) -> Frame:
        "Draw everybody, the farthest first"
        h, w = self.view.height, self.view.width
        image, mask = self.ground.copy(), np.zeros((h, w), np.uint16)
        layers = [(thing.d, canvas, box, None) for thing, canvas, box in self.things]
        whole = {}
        for person, place, arms in present:
            canvas, box, projection, joints = self._figure(person, place, arms)
            layers.append((place.d, canvas, box, (person, projection, joints)))
        for _, canvas, box, who in sorted(layers, key=lambda layer: -layer[0]):
            inner, outer = _overlap(box, h, w)
            if inner is None: continue
            ground = np.zeros((box[2] - box[0], box[3] - box[1], 3), np.uint8)
            ground[inner] = image[outer]
            if who: ground = shadowed(ground, *who[1:])
            image[outer] = canvas.reduced(ground)[inner]
            front = canvas.front
            label = canvas.mask.astype(np.uint16) + (8 * who[0].number if who else 0)
            mask[outer] = np.where(front[inner], label[inner] if who else 0, mask[outer])
            if who: whole[who[0].number] = int(front.sum()), _extent(front[inner], outer)
        return Frame(image, mask, _seen(mask, whole))

    def _canvas(self, left, top, right, bottom):
        "A canvas for a part of the picture, and that part as whole pixels"
        box = math.floor(top), math.floor(left), math.ceil(bottom), math.ceil(right)
        size = (box[2] - box[0]) * SUPERSAMPLE, (box[3] - box[1]) * SUPERSAMPLE
        return Canvas(*size, self.camera.light, self.camera.ambient), box

    def _figure(self, person, place, arms):
        "Somebody drawn where they are"
        (x, y), scale = self.view.foot(place.x, place.d), self.view.scale(place.d)
        canvas, box = self._canvas(x - .6 * scale, y - 1.15 * scale, x + .6 * scale, y + .15 * scale)
        joints = skeleton(person.appearance, Pose(place.yaw, place.phase, place.stride, arms))
        small = scale * SUPERSAMPLE
        unit = Projection(place.yaw, self.camera.pitch, self.camera.roll)((0., 0., 0.))
        centre = (x - box[1]) * SUPERSAMPLE - unit[0] * small, (y - box[0]) * SUPERSAMPLE - unit[1] * small
        projection = Projection(place.yaw, self.camera.pitch, self.camera.roll, small, centre)
        Body(canvas, person.appearance, joints, projection).draw()
        return canvas, box, projection, joints

    def _thing(self, thing, rng):
        "A thing drawn where it stands"
        (x, y), scale = self.view.foot(thing.x, thing.d), self.view.scale(thing.d)
        half, top = thing.wide * scale / 2, y - thing.tall * scale
        canvas, box = self._canvas(x - half - 2, top - 2, x + half + 2, y + 2)
        a, b = (((x - box[1]) * SUPERSAMPLE, (v - box[0]) * SUPERSAMPLE, 0) for v in (y, top))
        canvas.tube(a, b, [half * SUPERSAMPLE], 0, _paint(thing, rng), caps=(False, False), flat=.2)
        return canvas, box


def _paint(thing, rng):
    "Boards of a booth, leaves over a planter's box, a plain pole"
    colour = np.array(thing.colour, np.float32)
    def booth(s): return where((np.floor(s.t * 12) % 4 == 0), colour * np.float32(.75), thing.colour)
    def planter(s):
        leaves = rng.integers(70, 120, (len(s.t), 1)).astype(np.float32) / 100
        return where(s.t < .3, (120, 104, 92), colour * leaves)
    return dict(booth=booth, planter=planter, pole=thing.colour)[thing.kind]


def _overlap(box, h, w):
    "Slices of a box that lie inside the picture: in the box, in the picture; None where they do not meet"
    top, left, bottom, right = max(box[0], 0), max(box[1], 0), min(box[2], h), min(box[3], w)
    if top >= bottom or left >= right: return None, None
    return np.s_[top-box[0]:bottom-box[0], left-box[1]:right-box[1]], np.s_[top:bottom, left:right]


def _extent(there, place=np.s_[0:, 0:]):
    "Box x, y, w, h around the true pixels of an array that lies at `place`; None without any"
    rows, columns = np.nonzero(there.any(1))[0], np.nonzero(there.any(0))[0]
    if not len(rows): return None
    return tuple(int(v) for v in (columns[0] + (place[1].start or 0), rows[0] + (place[0].start or 0), columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1))


def _seen(mask, whole):
    "What is seen of everybody whose body reaches into the frame"
    persons, seen = mask >> 3, []
    for number, (pixels, box) in sorted(whole.items()):
        if box is None: continue
        shown = persons == number
        seen.append(Seen(number, box, _extent(shown), round(int(shown.sum()) / pixels, 4)))
    return seen


# ---- a tracker's view

class Tracker:
    "Boxes as a detector and a tracker would give them: of what is seen, a little wrong, broken where somebody was hidden for long"
    def __init__(self, fps, rng):
        self.lost, self.rng, self.last, self.spans = LOST * fps, rng, {}, {}

    def lines(self, frame, seen):
        "Lines of a frame"
        out = []
        for s in seen:
            if s.visibility < SEEN or s.shown is None or s.shown[3] < 24: continue
            track, at = self.last.get(s.person, (0, -math.inf))
            if frame - at > self.lost:
                track = len(self.spans) + 1
                self.spans[track] = s.person, frame, frame
            self.last[s.person] = track, frame
            self.spans[track] = s.person, self.spans[track][1], frame
            x, y, w, h = s.shown
            wrong = [(float(self.rng.random()) - .5) * .06 * side for side in (w, h, w, h)]
            box = (x + wrong[0], y + wrong[1], w + wrong[2], h + wrong[3])
            out.append(f'{frame},{track},' + ','.join(f'{v:.1f}' for v in box) + f',{.5 + .5 * s.visibility:.3f},-1,-1,-1')
        return out


# ---- files

def _draw(root, args):
    "All streams and tables into a new folder"
    seconds, fps, seed = args['minutes'] * 60, args['fps'], args['seed']
    view = View(*args['size'])
    people = [Person(n, random_appearance(stream(seed, 'somebody', n))) for n in range(1, args['people'] + 1)]
    things = [things_of(view, c, seed) for c in range(1, args['cameras'] + 1)]
    offsets = [0.] + [round(4 * float(stream(seed, 'offset', c).random()), 1) for c in range(2, args['cameras'] + 1)]
    visits = [v for p in people for v in visits_of(view, p.number, things, seconds + max(offsets), seed)]
    begin = datetime.fromisoformat(args['start'])
    cameras, truth = [], []
    for camera, offset in enumerate(offsets, 1):
        here = [v for v in visits if v.camera == camera]
        n = _frames(args)
        tracker = Tracker(fps, stream(seed, 'tracker', camera))
        file = _stream(root, camera, Stage(camera, view, seed), people, here, [offset + i / fps for i in range(n)], tracker, args)
        first = begin + timedelta(seconds=offset)
        cameras.append(dict(camera=camera, file=file, start=first.isoformat(), fps=fps, frames=n, width=view.width, height=view.height))
        truth += [dict(person=p, camera=camera, **{'from': _time(first, a, fps), 'to': _time(first, b, fps)}, track=track)
                  for track, (p, a, b) in tracker.spans.items()]
    _table(root/CAMERA_TABLE, cameras, list(cameras[0]))
    _table(root/TRUTH, sorted(truth, key=lambda row: (row['person'], row['from'])), ['person', 'camera', 'from', 'to', 'track'])
    (root/PEOPLE).write_text(json.dumps({p.number: asdict(p.appearance) for p in people}, indent=1), 'utf-8')


def _time(first, frame, fps): return (first + timedelta(seconds=(frame - 1) / fps)).isoformat(timespec='milliseconds')


def _stream(root, camera, stage, people, visits, times, tracker, args):
    "One camera's frames, boxes and masks; returns the name of its file or folder"
    name, rng = f'cam{camera}', stream(args['seed'], 'grain', camera)
    file = f'{name}.mp4' if args['video'] else name
    if args['masks']: (root/f'{name}_masks').mkdir()
    gt, tracks = [], []
    writer = Video(root/file, args['fps'], args['size']) if args['video'] else Folder(root/file)
    with writer:
        for number, t in enumerate(times, 1):
            present = [(people[v.person-1], v.at(t), v.arms) for v in visits if v.start <= t <= v.end]
            frame = stage.frame(present)
            writer.write(_exposed(frame.image, stage, rng))
            if args['masks']: Image.fromarray(frame.mask).save(root/f'{name}_masks'/f'{number:06d}.png', compress_level=1)
            gt += [f'{number},{s.person},' + ','.join(map(str, s.whole)) + f',1,1,{s.visibility}' for s in frame.seen]
            tracks += tracker.lines(number, frame.seen)
    for ending, lines in (('gt.txt', gt), ('txt', tracks)):
        (root/f'{name}.{ending}').write_text(''.join(f'{line}\n' for line in lines), 'utf-8')
    return file


def _exposed(image, stage, rng):
    "A frame as the camera delivers it"
    out = np.stack([stage.response[c][image[..., c]] for c in range(3)], -1)
    for _ in range(stage.camera.blur): out = blurred(out)
    h, w = image.shape[:2]
    y, x = (int(v) for v in rng.integers(0, 33, 2))
    return np.clip(out + stage.noise[y:y+h, x:x+w], 0, 255).astype(np.uint8)


class Video:
    "An MP4 file, H.264"
    def __init__(self, file, fps, size):
        import av
        self.av, self.out = av, av.open(str(file), 'w')
        self.stream = self.out.add_stream('libx264', rate=fps, options=dict(crf='20', preset='veryfast'))
        self.stream.height, self.stream.width, self.stream.pix_fmt = *size, 'yuv420p'
        self.stream.codec_context.thread_count = 1

    def __enter__(self): return self

    def write(self, image): self.out.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(image, 'rgb24')))

    def __exit__(self, *error):
        if not any(error): self.out.mux(self.stream.encode())
        self.out.close()


class Folder:
    "A folder of JPEG files, numbered from 1"
    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.n = folder, 0

    def __enter__(self): return self

    def write(self, image):
        self.n += 1
        Image.fromarray(image).save(self.folder/f'{self.n:06d}.jpg', quality=92)

    def __exit__(self, *error): pass


def _table(file, rows, columns):
    with open(file, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
