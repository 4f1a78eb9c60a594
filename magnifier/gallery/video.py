"One camera's video: its frames, and the boxes of people in them as MOTChallenge text files have them"

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from magnifier.data.images import read_image
from magnifier.files import aside

__all__ = ['read_mot', 'write_mot', 'read_frame', 'read_crop']

BOX_COLUMNS = ('frame', 'track', 'left', 'top', 'width', 'height', 'confidence')
WANTED = 'lines of frame,id,left,top,width,height'
FEWEST = 6  # Columns that every MOTChallenge file has: frame, id, left, top, width, height


def read_mot(
    file: str | Path,  # Lines of `frame,id,left,top,width,height,confidence,...`; frames and pixels are counted from 1
    *,
    min_confidence: float | None = None,  # Boxes below it are left out; None keeps all
) -> pd.DataFrame:  # `BOX_COLUMNS` by frame and track; pixels from 0; confidence 1 where there is none
    """Boxes of tracks (MOTChallenge, Milan et al. 2016). A track is one person as the tracker followed them.

    A ValueError names the file and the box for text that is not a number, a box without an area, a frame below 1, and a
    track with two boxes in one frame. A file without boxes is a ValueError too."""
    file = Path(file)
    if not file.is_file(): raise FileNotFoundError(f'{file}: no such file')
    try: values = pd.read_csv(file, header=None, comment='#', skip_blank_lines=True, dtype=float).to_numpy()
    except pd.errors.EmptyDataError: values = np.empty((0, FEWEST))
    except ValueError as e:  # pandas' parser errors and decoding errors are ValueErrors too
        raise ValueError(f'{file}: not a MOTChallenge file ({e}); {WANTED} are wanted') from e
    if not len(values): raise ValueError(f'{file} holds no boxes: run the tracker first, or leave this camera out')
    if values.shape[1] < FEWEST: raise ValueError(f'{file} has {values.shape[1]} columns: {WANTED} are wanted')
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
    frame, track = values[:, 0], values[:, 1]
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


IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
ADDRESS = re.compile(r'(?P<video>.*)#frame=(?P<frame>\d+)&xywh=(?P<box>[-\d.]+,[-\d.]+,[\d.]+,[\d.]+)')
NO_PYAV = "video files need PyAV: pip install 'magnifier-reid[video]', or give a folder of frames"
LEAST_VISIBLE = .1  # Share of a box that must lie in its frame


class Crop(NamedTuple):
    "One box cut out of its frame"
    row: int  # Its row in the table of boxes, from 0
    frame: int  # Its frame, from 1
    image: Image.Image  # RGB, the part of the box that lies in the frame


class Video:
    """A video file (PyAV decodes it), or a folder of frames whose names end in their number, as 000001.jpg.

    FileNotFoundError if neither exists; ValueError for a folder without numbered frames and a file that is not a video;
    ImportError if a file needs PyAV and it is missing."""

    def __init__(
        self,
        source: str | Path,  # Video file, or folder of frames
        *,
        fps: float | None = None,  # Frames a second; None takes a video file's own, and is refused for a folder
    ):
        self.source = Path(source)
        if not self.source.exists(): raise FileNotFoundError(f'{source}: no such video, and no such folder of frames')
        self.files = _numbered(self.source) if self.source.is_dir() else None
        if self.files is not None and fps is None:
            raise ValueError(f'{source} is a folder, which has no frame rate: give fps')
        self.fps = float(fps) if fps is not None else _video_fps(self.source)
        if not 0 < self.fps <= 1000:
            raise ValueError(f'fps={self.fps:g}: above 0 and up to 1000 frames a second are wanted')

    def frames(
        self,
        wanted: Iterable[int] | None = None,  # Frame numbers to give, from 1; None gives all
    ) -> Iterator[tuple[int, np.ndarray]]:  # (number, H x W x 3 uint8 RGB), by rising number
        "Frames in order. Numbers that the video does not have are skipped"
        wanted = None if wanted is None else set(wanted)
        last = None if wanted is None else max(wanted, default=0)
        for number, decode in self._sources():
            if last is not None and number > last: return
            if wanted is None or number in wanted: yield number, decode()

    def _sources(self):
        "Frame numbers, each with a function that decodes it"
        if self.files is not None:
            for number, file in self.files.items():
                yield number, lambda file=file: np.asarray(read_image(file))
        else: yield from _decoded(self.source)


def _numbered(folder):
    "Number -> file, by rising number"
    found = {}
    for file in sorted(folder.iterdir()):
        number = re.search(r'(\d+)$', file.stem)
        if number and file.suffix.lower() in IMAGE_SUFFIXES: found[int(number[1])] = file
    if not found: raise ValueError(f'{folder} holds no frames: images named by their number, as 000001.jpg, are wanted')
    return dict(sorted(found.items()))


def _av():
    try: import av
    except ImportError as e: raise ImportError(NO_PYAV) from e
    return av


def _opened(file):
    av = _av()
    try: container = av.open(str(file))
    except av.FFmpegError as e: raise ValueError(f'{file}: not a video that can be read ({e.strerror})') from e
    if not container.streams.video:
        container.close()
        raise ValueError(f'{file} holds no video stream')
    return container


def _video_fps(file):
    with _opened(file) as container: rate = container.streams.video[0].average_rate
    if not rate: raise ValueError(f'{file} has no frame rate: give fps')
    return float(rate)


def _decoded(file):
    "Decodes in order; a damaged frame ends the video"
    av = _av()
    with _opened(file) as container:
        stream = container.streams.video[0]
        stream.thread_type = 'AUTO'
        number = 0
        try:
            for frame in container.decode(stream):
                number += 1
                yield number, lambda frame=frame: frame.to_ndarray(format='rgb24')
        except av.FFmpegError: return


def cut_boxes(
    video: Video,  # Where the frames come from
    boxes: pd.DataFrame,  # Columns frame, left, top, width, height (pixels from 0), as `read_mot` gives them
) -> Iterator[Crop]:  # By frame; boxes whose frame is missing, or that lie outside it, are left out
    "The people in the boxes; each frame is decoded once"
    by_frame = boxes.groupby('frame').indices  # frame -> positions
    corners = _corners(boxes)
    for number, frame in video.frames(by_frame):
        for row in by_frame[number]:
            image = _cut(frame, corners[row])
            if image is not None: yield Crop(int(row), number, image)


def _corners(boxes):  # (n, 4): left, top, right, bottom
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


def crop_address(
    video: str | Path,  # Where the frame is
    frame: int,  # From 1
    box,  # Left, top, width, height in pixels
) -> str:  # As cam1.mp4#frame=12&xywh=100,40,60,150
    "The address of a person in a frame, used if no crop is kept (the box as in W3C's media fragments)"
    return f'{video}#frame={int(frame)}&xywh=' + ','.join(f'{value:g}' for value in box)


def is_address(
    path: str,  # Of an image, or an address
) -> bool:
    "Whether a path is an address of a person in a frame"
    return ADDRESS.fullmatch(path) is not None


def box_of(
    address: str,  # As `crop_address` writes it
) -> tuple[str, int, list[float]] | None:  # Video, frame, (left, top, width, height); None for another text
    "The video, frame and box of an address"
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
