"Boxes of people in the frames of one camera, read from and written to MOTChallenge text files"
from pathlib import Path

import numpy as np
import pandas as pd

from magnifier.files import aside

__all__ = ['read_mot', 'write_mot', 'BOX_COLUMNS']

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
    file: str | Path,  # Written whole or not at all
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
