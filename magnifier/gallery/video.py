"""One camera's video: its frames, the boxes of people in them, and the people cut out. Boxes come from MOTChallenge
text files, or from a detector and a tracker"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.checks import choose, needs, refuse
from magnifier.data.images import read_image
from magnifier.files import aside

__all__ = ['read_mot', 'write_mot', 'track_people', 'person_network', 'read_frame', 'read_crop']

BOX_COLUMNS = ('frame', 'track', 'left', 'top', 'width', 'height', 'confidence')
WANTED = 'lines of frame,id,left,top,width,height'
FEWEST = 6  # Columns that every MOTChallenge file has: frame, id, left, top, width, height
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
ADDRESS = re.compile(r'(?P<video>.*)#frame=(?P<frame>\d+)&xywh=(?P<box>[-\d.]+,[-\d.]+,[\d.]+,[\d.]+)')
LEAST_VISIBLE = .1  # Share of a box that must lie in its frame
TRACKERS = {'bytetrack': 'ByteTrackTracker', 'sort': 'SORTTracker'}  # Names in the package `trackers`
PERSON = 1  # COCO's label, as torchvision numbers it
NO_PYAV = "video files need PyAV: pip install 'magnifier-reid[video]', or give a folder of frames"
NO_TRACKERS = ("linking boxes needs the package trackers: pip install 'magnifier-reid[video]'; "
               'or give boxes as a MOTChallenge file')


def read_mot(
    file: str | Path,  # Lines of `frame,id,left,top,width,height,confidence,...`; frames and pixels are counted from 1
    *,
    min_confidence: float | None = None,  # Boxes below it are left out; None keeps all
) -> pd.DataFrame:  # `BOX_COLUMNS` by frame and track; pixels from 0; confidence 1 where there is none
    """Boxes of tracks (MOTChallenge, Milan et al. 2016). A track is one person as the tracker followed them.

    A ValueError names the file and the box for text that is not a number, a box without an area, a frame below 1, and a
    track with two boxes in one frame. A file without boxes is a ValueError too."""
    try: values = pd.read_csv(Path(file), header=None, comment='#', skip_blank_lines=True, dtype=float).to_numpy()
    except pd.errors.EmptyDataError: values = np.empty((0, FEWEST))
    except ValueError as e:  # pandas' parser errors and decoding errors are ValueErrors too
        raise ValueError(f'{file}: not a MOTChallenge file ({e}); {WANTED} are wanted') from e
    refuse({
        f'{file} holds no boxes: run the tracker first, or leave this camera out': not len(values),
        f'{file} has {values.shape[1]} columns: {WANTED} are wanted': values.shape[1] < FEWEST,
    })
    _check_boxes(values, file)
    confidence = values[:, 6] if values.shape[1] > 6 else np.ones(len(values))
    boxes = pd.DataFrame({
        'frame': values[:, 0].astype(int),
        'track': values[:, 1].astype(int),
        'left': values[:, 2] - 1,
        'top': values[:, 3] - 1,
        'width': values[:, 4],
        'height': values[:, 5],
        'confidence': confidence,
    })
    if min_confidence is not None: boxes = boxes[boxes.confidence >= min_confidence]
    return boxes.sort_values(['frame', 'track'], ignore_index=True)


def _check_boxes(values, file):
    "Raises a ValueError for the first invalid box"
    frame = values[:, 0]
    track = values[:, 1]
    wrong = {
        'a value is missing or infinite': ~np.isfinite(values[:, :FEWEST]).all(1),
        'frames are whole numbers from 1': (frame < 1) | (frame % 1 != 0),
        'track ids are whole numbers from 0': (track < 0) | (track % 1 != 0) | (track > 2**53),
        'width and height are above 0': (values[:, 4] <= 0) | (values[:, 5] <= 0),
        'the track has a second box in this frame': pd.DataFrame(values[:, :2]).duplicated().to_numpy(),
    }
    for what, rows in wrong.items():
        if rows.any():
            line = int(rows.argmax())
            shown = ','.join(f'{v:g}' for v in values[line, :FEWEST])
            raise ValueError(f'{file}, box {line + 1} ({shown}): {what}')


def write_mot(
    boxes: pd.DataFrame,  # As `read_mot` gives them; confidence may be missing
    file: str | Path,  # Written completely or not at all
):
    "A MOTChallenge file of boxes, frames and pixels counted from 1, for other tools"
    table = pd.DataFrame({
        'frame': boxes['frame'].astype(int),
        'track': boxes['track'].astype(int),
        'left': boxes['left'] + 1,
        'top': boxes['top'] + 1,
        'width': boxes['width'],
        'height': boxes['height'],
        'confidence': boxes['confidence'] if 'confidence' in boxes else 1.,
    }).assign(x=-1, y=-1, z=-1)
    with aside(file) as part: table.to_csv(part, header=False, index=False, float_format='%.6g')


class Video:
    """A video file (PyAV decodes it), or a folder of frames whose names end in their number, as 000001.jpg.

    FileNotFoundError if neither exists; ValueError for a folder without numbered frames and a file that is not a video;
    ImportError if a file needs PyAV and it is missing."""

    def __init__(
        self,
        source: str | Path,  # Video file, or folder of frames
        *,
        fps: float | None = None,  # Frames a second; None takes a video file's own; a folder has none
    ):
        self.source = Path(source)
        self.address = str(source)  # as given, since people are deleted by it
        if not self.source.exists(): raise FileNotFoundError(f'{source}: no such video, and no such folder of frames')
        self.files = _numbered(self.source) if self.source.is_dir() else None
        if fps is None and self.files is None: fps = _frame_rate(self.source)
        refuse({
            f'{source} has no frame rate: give fps': fps is None,
            f'fps={fps}: above 0 and up to 1000 frames a second are wanted': fps is not None and not 0 < fps <= 1000,
        })
        self.fps = float(fps)

    def frames(
        self,
        wanted: Iterable[int] | None = None,  # Frame numbers to give, from 1; None gives all
    ) -> Iterator[tuple[int, np.ndarray]]:  # (number, H x W x 3 uint8 RGB), by rising number
        "Frames in order. Numbers that the video does not have are skipped"
        wanted = None if wanted is None else set(wanted)
        last = None if wanted is None else max(wanted, default=0)
        for number, frame in _decoded(self.source) if self.files is None else self.files.items():
            if last is not None and number > last: return
            if wanted is None or number in wanted: yield number, _pixels(frame)


def _numbered(folder):
    "Number -> file, by rising number"
    found = {}
    for file in sorted(folder.iterdir()):
        number = re.search(r'(\d+)$', file.stem)
        if number and file.suffix.lower() in IMAGE_SUFFIXES: found[int(number[1])] = file
    if not found: raise ValueError(f'{folder} holds no frames: images named by their number, as 000001.jpg, are wanted')
    return dict(sorted(found.items()))


def _opened(file):
    with needs(NO_PYAV): import av
    try: container = av.open(str(file))
    except av.FFmpegError as e: raise ValueError(f'{file}: not a video that can be read ({e.strerror})') from e
    if not container.streams.video:
        container.close()
        raise ValueError(f'{file} holds no video stream')
    return container


def _frame_rate(file):
    "Frames a second, or None where the file does not say"
    with _opened(file) as container: rate = container.streams.video[0].average_rate
    return float(rate) if rate else None


def _decoded(file):
    "Numbers and frames in order, not converted to pixels yet; a damaged frame ends the video"
    with _opened(file) as container:
        from av import FFmpegError
        stream = container.streams.video[0]
        stream.thread_type = 'AUTO'
        number = 0
        try:
            for frame in container.decode(stream):
                number += 1
                yield number, frame
        except FFmpegError: return


def _pixels(frame):
    "A frame's file, or a frame as PyAV gives it, as an array"
    return np.asarray(read_image(frame)) if isinstance(frame, Path) else frame.to_ndarray(format='rgb24')


class Crop(NamedTuple):
    "One box cut out of its frame"
    row: int  # Its row in the table of boxes, from 0
    frame: int  # Its frame, from 1
    image: Image.Image  # RGB, the part of the box that lies in the frame


def cut_boxes(video: Video, boxes: pd.DataFrame) -> Iterator[Crop]:
    """The people in boxes as `read_mot` gives them, by frame; each frame is decoded once. Boxes whose frame is missing,
    or that lie outside it, are left out"""
    by_frame = boxes.groupby('frame').indices  # frame -> positions
    corners = _corners(boxes)
    for number, frame in video.frames(by_frame):
        for row in by_frame[number]:
            image = _cut(frame, corners[row])
            if image is not None: yield Crop(int(row), number, image)


def _corners(boxes):
    "(n, 4): left, top, right, bottom"
    left, top = boxes['left'].to_numpy(float), boxes['top'].to_numpy(float)
    return np.stack([left, top, left + boxes['width'].to_numpy(float), top + boxes['height'].to_numpy(float)], 1)


def _cut(frame, corners):
    "The part of a box inside its frame, or None if too little of it is inside"
    height, width = frame.shape[:2]
    left, right = np.clip(corners[[0, 2]], 0, width).round().astype(int)
    top, bottom = np.clip(corners[[1, 3]], 0, height).round().astype(int)
    inside = (right - left) * (bottom - top)
    whole = (corners[2] - corners[0]) * (corners[3] - corners[1])
    if inside < max(1, LEAST_VISIBLE * whole): return None
    return Image.fromarray(frame[top:bottom, left:right])


def read_frame(
    source: str | Path,  # Video file or folder of frames
    number: int,  # Frame, from 1
) -> Image.Image:  # RGB
    "One frame; a ValueError if the video does not have it"
    for _, frame in Video(source, fps=1).frames([number]): return Image.fromarray(frame)
    raise ValueError(f'{source} has no frame {number}')


def crop_address(video, frame: int, box) -> str:
    """The address of a person in a frame, used if no crop is kept, as cam1.mp4#frame=12&xywh=100,40,60,150: left, top,
    width and height as in W3C's media fragments"""
    return f'{video}#frame={int(frame)}&xywh=' + ','.join(f'{value:g}' for value in box)


def box_of(address: str) -> tuple[str, int, list[float]] | None:
    "Video, frame and [left, top, width, height] of an address that `crop_address` wrote; None for another text"
    found = ADDRESS.fullmatch(address)
    if found is None: return None
    return found['video'], int(found['frame']), [float(value) for value in found['box'].split(',')]


def read_crop(
    address: str,  # As `crop_address` writes it
) -> Image.Image:  # RGB
    "The person at an address, cut out of the video again; a ValueError if the video has no such frame"
    video, frame, (left, top, width, height) = box_of(address)
    image = _cut(np.asarray(read_frame(video, frame)), np.array([left, top, left + width, top + height]))
    if image is None: raise ValueError(f'{address}: the box lies outside the frame')
    return image


def track_people(
    video: Video,  # Where the frames come from
    network=None,  # List of (3,h,w) in 0..1 -> list of dicts: boxes, labels, scores; None for `person_network()`
    *,
    tracker: str = 'bytetrack',  # 'bytetrack' (Zhang et al. 2022) or 'sort' (Bewley et al. 2016)
    min_score: float = .5,  # Of a person, 0 to 1; less is no person
    device=None,  # None takes the GPU where there is one
    bs: int = 4,  # Frames at once
) -> pd.DataFrame:  # Boxes of tracks, as `read_mot` gives them
    """Tracks of the people in one camera's video. Boxes that belong to no track are left out. ValueError for an unknown
    tracker and for a video in which nobody is found; OSError as of `person_network`."""
    import torch
    choose(tracker, TRACKERS, 'tracker')
    link = _linker(tracker, video.fps, min_score)
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    network = (person_network() if network is None else network).to(device).eval()
    rows = []
    frames = video.frames()
    while batch := list(islice(frames, bs)):
        with torch.inference_mode(): found = network([_tensor(frame).to(device) for _, frame in batch])
        for (number, _), people in zip(batch, found): rows += link(number, *_people(people, min_score))
    if not rows:
        raise ValueError(f'{video.source}: nobody was followed; lower min_score={min_score}, or look at the video')
    return pd.DataFrame(rows, columns=BOX_COLUMNS)


def _tensor(frame):
    import torch
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255  # (3, h, w)


def _people(found, min_score):
    "Boxes (n, 4) and scores (n,) of the people in a frame"
    sure = found['scores'] >= min_score
    if 'labels' in found: sure &= found['labels'] == PERSON
    return found['boxes'][sure].cpu().numpy(), found['scores'][sure].cpu().numpy()


def _linker(tracker, fps, min_score):
    "(frame, boxes, scores) -> rows of `BOX_COLUMNS`, for frames in order"
    with needs(NO_TRACKERS):
        import supervision
        import trackers
    following = getattr(trackers, TRACKERS[tracker])(frame_rate=fps, track_activation_threshold=min_score)

    def link(number, boxes, scores):
        people = supervision.Detections(xyxy=boxes.reshape(-1, 4).astype(float), confidence=scores.astype(float))
        tracked = following.update(people)
        if tracked.tracker_id is None: return []
        rows = zip(tracked.tracker_id, tracked.xyxy, tracked.confidence)
        return [(number, int(track), box[0], box[1], box[2] - box[0], box[3] - box[1], float(score))
                for track, box, score in rows if track >= 0 and np.all(box[2:] > box[:2])]
    return link


def person_network(
    weights: str | Path | None = None,  # File of a state dict; None downloads torchvision's COCO weights once
    *,
    short_side: int = 480,  # Pixels that a frame's shorter side is scaled to; more finds smaller people, and is slower
):  # Faster R-CNN with ResNet-50-FPN, in evaluation mode
    """Faster R-CNN (Ren et al. 2015) from torchvision. OSError without a network connection, ValueError for a
    file of other weights."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
    from magnifier.data.keypoint_masks import detection_network
    default = FasterRCNN_ResNet50_FPN_Weights.DEFAULT
    return detection_network(fasterrcnn_resnet50_fpn, default, weights, short_side, otherwise=(
        'run a detector and a tracker of your own, and give their boxes as a MOTChallenge file '
        '(--boxes FILE in a shell)'))
