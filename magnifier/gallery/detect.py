"Boxes of people from a video itself: a detector finds them in each frame, and a tracker links them"
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from magnifier.gallery.video import BOX_COLUMNS, Video

__all__ = ['track_people', 'person_network']

TRACKERS = {'bytetrack': 'ByteTrackTracker', 'sort': 'SORTTracker'}  # Names in the package `trackers`
PERSON = 1  # COCO's label, as torchvision numbers it
NO_TRACKERS = ("linking boxes needs the package trackers: pip install 'magnifier-reid[video]'; "
               'or give boxes as a MOTChallenge file')


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
    if tracker not in TRACKERS: raise ValueError(f'unknown tracker {tracker!r}: use one of {", ".join(TRACKERS)}')
    link = _linker(tracker, video.fps, min_score)
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    network = (person_network() if network is None else network).to(device).eval()
    rows, frames = [], video.frames()
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
    try:
        import supervision
        import trackers
    except ImportError as e: raise ImportError(NO_TRACKERS) from e
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
