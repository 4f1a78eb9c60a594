"Part masks without labels: a pretrained network finds 17 joints, and the regions are drawn around them"

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastprogress import progress_bar
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, keypointrcnn_resnet50_fpn

from magnifier.data.catalog import CatalogWarning
from magnifier.data.images import read_image
from magnifier.data.joints import regions_from_joints
from magnifier.data.masks import mask_targets, write_mask

__all__ = ['make_masks', 'keypoint_network']


def make_masks(
    images: str | Path | pd.DataFrame | Iterable,  # A folder, a catalog, or paths
    dst: str | Path | None = None,  # Folder of the masks; default: `<folder>_ps_label`, where `find_masks` looks
    weights: str | Path | None = None,  # File of Keypoint R-CNN's weights; default: downloaded on first use
    *,
    network: torch.nn.Module | None = None,  # In place of Keypoint R-CNN: takes and gives the same
    min_score: float = 0.7,  # Of a person, 0 to 1; less is no person
    min_joint_score: float = 2.0,  # Of a joint, a heat map's logit; less is a joint not seen
    bs: int = 8,  # Images a batch
    device: str | torch.device | None = None,  # Default: the GPU where there is one
    progress: bool = True,  # Show a bar
) -> pd.DataFrame:  # A row an image: path, mask, result (made, already there, no person, failed), problem
    """Writes a part mask of the largest person for every image in which one is found.

    Existing files stay, so a stopped run continues. An image without a person gets no file, so it counts as an image
    without a mask; a warning says how many there are. OSError, with what to do, if the weights are not given and cannot
    be downloaded."""
    targets = mask_targets(images, dst)
    rows = {p: (p, str(mask), 'already there', None) for p, mask in targets if mask.exists()}
    todo = [t for t in targets if t[0] not in rows]
    if todo:
        device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        network = (keypoint_network(weights) if network is None else network).to(device).eval()
        batches = [todo[i:i + bs] for i in range(0, len(todo), bs)]
        for batch in progress_bar(batches) if progress else batches:
            rows.update(_make_batch(batch, network, device, min_score, min_joint_score))
    report = pd.DataFrame([rows[p] for p, _ in targets], columns=['path', 'mask', 'result', 'problem'])
    _warn_without(report)
    return report


def _warn_without(report):
    without = report[report['result'].isin(['no person', 'failed'])]
    nobody = (without['result'] == 'no person').sum()
    if len(without):
        warnings.warn(f'{len(without)} of {len(report)} images have no mask: no person found in {nobody}, the others '
                      f'do not decode (first: {without["path"].iat[0]})', CatalogWarning, stacklevel=3)


def keypoint_network(
    weights: str | Path | None = None,  # File of a state dict; default: torchvision's for COCO, downloaded
    *,
    short_side: int = 320,  # Pixels of an image's shorter side; more is more exact and slower
) -> torch.nn.Module:  # Keypoint R-CNN with ResNet-50-FPN, in evaluation mode
    """Keypoint R-CNN (He et al. 2017) from torchvision; OSError without a network connection, ValueError for a
    file of other weights"""
    default = KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
    return detection_network(keypointrcnn_resnet50_fpn, default, weights, short_side, otherwise=(
        'try things out with horizontal stripes (make_stripe_masks, or `magnifier_masks stripes FOLDER`), which are '
        'no body parts'))


def detection_network(
    build,  # A function of torchvision.models.detection
    default,  # Its COCO weights
    weights: str | Path | None,  # File of a state dict; None takes the default ones, downloaded on first use
    short_side: int,  # Pixels that the image's shorter side is scaled to
    *,
    otherwise: str,  # Another way out for whoever has neither connection nor file
) -> torch.nn.Module:  # In evaluation mode
    "A detector of torchvision; OSError without a network connection, ValueError for a file of other weights"
    size = dict(min_size=short_side, max_size=4 * short_side)
    if weights is None:
        try: return build(weights=default, **size).eval()
        except OSError as e:
            raise OSError(f'the weights of {default.url.rsplit("/", 1)[1]} could not be downloaded ({e}). Two ways '
                          f'out: fetch {default.url} where there is a network, and name the file (weights=FILE, or '
                          f'--weights FILE in a shell); or {otherwise}') from e
    network = build(weights=None, weights_backbone=None, **size)
    try: network.load_state_dict(torch.load(weights, map_location='cpu', weights_only=True))
    except (RuntimeError, TypeError) as e:
        told = str(e).splitlines()[0]
        raise ValueError(f'{weights} does not hold the weights of torchvision\'s {build.__name__}: {told}') from e
    return network.eval()


def largest_person(
    found: dict[str, torch.Tensor],  # One image's boxes (n, 4), scores (n,), keypoints (n, 17, 3), their scores
    min_score: float = 0.7,  # Of the person
    min_joint_score: float = 2.0,  # Of a joint
) -> np.ndarray | None:  # (17, 3) COCO joints: x, y in pixels, 1 seen or 0 not; None where nobody is found
    "Joints of the largest person with a sufficient score: in a re-identification crop, the person of the image"
    sure = torch.nonzero(found['scores'] >= min_score)[:, 0]
    if len(sure) == 0: return None
    x0, y0, x1, y1 = found['boxes'][sure].unbind(1)
    best = sure[((x1 - x0) * (y1 - y0)).argmax()]
    seen = found['keypoints_scores'][best] >= min_joint_score
    return torch.cat([found['keypoints'][best][:, :2], seen[:, None]], 1).float().cpu().numpy()  # (17, 3)


def _make_batch(batch, network, device, min_score, min_joint_score) -> dict:
    "Report rows by image path; the masks are written"
    with ThreadPoolExecutor(os.cpu_count()) as pool: read = list(pool.map(_read, (p for p, _ in batch)))
    rows = {p: (p, None, 'failed', image) for (p, _), image in zip(batch, read) if isinstance(image, str)}
    good = [(p, mask, image) for (p, mask), image in zip(batch, read) if not isinstance(image, str)]
    with torch.inference_mode(): found = network([image.to(device) for *_, image in good]) if good else []
    for (p, mask, image), person in zip(good, found):
        joints = largest_person(person, min_score, min_joint_score)
        rows[p] = _make_mask(p, mask, image, joints)
    return rows


def _make_mask(path, mask, image, joints):
    regions = None if joints is None else regions_from_joints(joints, tuple(image.shape[1:]))
    if regions is None or not regions.any(): return path, None, 'no person', None
    return path, str(write_mask(mask, regions)), 'made', None


def _read(path):
    "(3, h, w) in 0..1, or what is wrong with the file"
    try: return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).float() / 255
    except (OSError, ValueError) as e: return str(e)
