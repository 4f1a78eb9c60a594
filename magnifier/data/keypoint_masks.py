"Part masks without a parser: a pretrained network finds 17 joints, and the regions are drawn around them"

import math
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

from magnifier.checks import refuse
from magnifier.data.catalog import CatalogWarning
from magnifier.data.images import read_image, write_mask
from magnifier.data.masks import mask_targets
from magnifier.regions import region_indices

__all__ = ['make_masks', 'keypoint_network', 'regions_from_joints']

HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = region_indices(range(1, 8))

# COCO's order of joints
NOSE = 0
EYES = (1, 2)
EARS = (3, 4)
SHOULDERS = (5, 6)
ELBOWS = (7, 8)
WRISTS = (9, 10)
HIPS = (11, 12)
KNEES = (13, 14)
ANKLES = (15, 16)

# Lengths in statures (Drillis and Contini 1966); the camera only ever shortens them
LENGTHS = ((SHOULDERS, ELBOWS, .18), (ELBOWS, WRISTS, .146), (HIPS, KNEES, .245), (KNEES, ANKLES, .246))
TRUNK = .288
# Half-widths of clothed limbs at both ends, in statures
WIDTHS = {UPPER_ARM: (.045, .038), LOWER_ARM: (.037, .028), UPPER_LEG: (.07, .05), LOWER_LEG: (.05, .033),
          FOOT: (.037, .034)}
FLAT = {CHEST: (True, True), LOWER_ARM: (True, False), LOWER_LEG: (True, False)}  # Ends that are not round


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
        if network is None: network = keypoint_network(weights)
        rows |= _make_all(todo, network, device, bs, progress, min_score, min_joint_score)
    report = pd.DataFrame([rows[p] for p, _ in targets], columns=['path', 'mask', 'result', 'problem'])
    _warn_without(report)
    return report


def _make_all(todo, network, device, bs, progress, min_score, min_joint_score) -> dict:
    "Report rows by image path, batch by batch; the masks are written"
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    network = network.to(device).eval()
    batches = [todo[i:i + bs] for i in range(0, len(todo), bs)]
    rows = {}
    for batch in progress_bar(batches) if progress else batches:
        rows |= _make_batch(batch, network, device, min_score, min_joint_score)
    return rows


def _make_batch(batch, network, device, min_score, min_joint_score) -> dict:
    "Report rows by image path; the masks are written"
    with ThreadPoolExecutor(os.cpu_count()) as pool: read = list(pool.map(_read, (p for p, _ in batch)))
    rows = {p: (p, None, 'failed', image) for (p, _), image in zip(batch, read) if isinstance(image, str)}
    good = [(p, mask, image) for (p, mask), image in zip(batch, read) if p not in rows]
    if not good: return rows
    with torch.inference_mode(): found = network([image.to(device) for *_, image in good])
    for (p, mask, image), person in zip(good, found):
        rows[p] = _make_mask(p, mask, image, largest_person(person, min_score, min_joint_score))
    return rows


def _read(path):
    "(3, h, w) in 0..1, or what is wrong with the file"
    try: return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1).float() / 255
    except (OSError, ValueError) as e: return str(e)


def _make_mask(path, mask, image, joints):
    "The row of the report for an image that was read; its mask is written if somebody is found"
    regions = None if joints is None else regions_from_joints(joints, tuple(image.shape[1:]))
    if regions is None or not regions.any(): return path, None, 'no person', None
    return path, str(write_mask(mask, regions)), 'made', None


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


def regions_from_joints(
    joints,  # (17, 2) x, y in pixels, or (17, 3) with a score: COCO's order; NaN or a low score is a joint not found
    size,  # Height and width of the mask
    *,
    threshold: float = 0.,  # Joints score above this
) -> np.ndarray:  # (h, w) uint8 regions, background where no limb is
    """Draws the seven body regions around 17 joints, with widths from the skeleton's own lengths.

    The direction in which the person faces (from shoulders, nose and ears) decides which parts are in front. Parts
    without a joint are left out; without a limb or a trunk to measure, everything is background. Raises ValueError for
    other shapes."""
    joints = np.asarray(joints, float)
    refuse({
        f'joints of shape {joints.shape}: use (17, 2) or (17, 3), COCO order': joints.shape not in ((17, 2), (17, 3)),
        f'size={size}: use (height, width), in pixels': len(size) != 2 or min(size) < 1})
    joints = _found(joints, threshold)
    mask = np.zeros(size, np.uint8)
    body = _stature(joints)
    if body is None: return mask
    for _, region, a, b, widths in sorted(_parts(joints, body), key=lambda part: part[0]):
        flat = FLAT.get(region, (False, False))
        if np.isfinite([*a, *b]).all(): _paint(mask, region, a, b, [w * body for w in widths], flat)
    return mask


def _found(joints, threshold):
    "(17, 2) floats, NaN where a joint was not found"
    found = np.isfinite(joints).all(1)
    if joints.shape[1] == 3: found &= joints[:, 2] > threshold
    return np.where(found[:, None], joints[:, :2], np.nan)


def _middle(joints, which):
    "Mean of those of the joints that were found; NaN if none was"
    found = [joints[i] for i in which if np.isfinite(joints[i]).all()]
    return np.mean(found, axis=0) if found else np.full(2, np.nan)


def _length(a, b): return math.sqrt(((a - b) ** 2).sum())


def _stature(joints):
    """Body height in pixels: the second longest estimate, since foreshortening only shortens and one joint may be
    wrong; None without any"""
    estimates = [_length(joints[p[i]], joints[q[i]]) / part for p, q, part in LENGTHS for i in (0, 1)]
    estimates.append(_length(_middle(joints, SHOULDERS), _middle(joints, HIPS)) / TRUNK)
    estimates = sorted(e for e in estimates if math.isfinite(e) and e > 0)
    if len(estimates) < 2: return estimates[0] if estimates else None
    return estimates[-2]


def _facing(joints, body):
    "Direction in which the person faces: (to the image's right, to the viewer), each -1 to 1; to the viewer if unknown"
    left, right = joints[SHOULDERS[0]], joints[SHOULDERS[1]]
    front = np.clip((left[0] - right[0]) / (.2 * body), -1, 1)
    side = np.clip((joints[NOSE][0] - _middle(joints, EARS)[0]) / (.05 * body), -1, 1)
    return (side if math.isfinite(side) else 0.), (front if math.isfinite(front) else 1.)


def _parts(joints, body):
    "(depth, region, start, end, half-widths in statures) of every part, larger depth nearer to the viewer"
    side, front = _facing(joints, body)
    parts = [_trunk(joints, body), *_head(joints, body)]
    for i, sign in ((0, -1), (1, 1)):  # facing the picture's right, the right limbs are the near ones
        near = sign * side
        shoulder = joints[SHOULDERS[i]]
        elbow = joints[ELBOWS[i]]
        wrist = joints[WRISTS[i]]
        hip = joints[HIPS[i]]
        knee = joints[KNEES[i]]
        ankle = joints[ANKLES[i]]
        parts += [(near + .3, UPPER_ARM, shoulder, elbow, WIDTHS[UPPER_ARM]),
                  (near + .6 * front + .31, LOWER_ARM, elbow, wrist + .35 * (wrist - elbow), WIDTHS[LOWER_ARM]),
                  (.2 * near - 2, UPPER_LEG, hip, knee, WIDTHS[UPPER_LEG]),
                  (.2 * near - 1.9, LOWER_LEG, knee, ankle, WIDTHS[LOWER_LEG]),
                  (.2 * near - 1.8, FOOT, *_foot(ankle, side, body), WIDTHS[FOOT])]
    return parts


def _foot(ankle, side, body):
    "Heel and toe: COCO has no joints there, so the foot points where the nose does"
    heel = ankle + np.array([-.02 * side, .02]) * body
    toe = ankle + np.array([.1 * side, .028]) * body
    return heel, toe


def _trunk(joints, body):
    "Neck to hem: as wide as the distance of shoulders and hips, and at least as wide as a body is deep"
    top = _middle(joints, SHOULDERS)
    bottom = _middle(joints, HIPS)
    apart = [_length(joints[left], joints[right]) / body for left, right in (SHOULDERS, HIPS)]
    shoulder, hip = np.nan_to_num(apart)
    wide = max(shoulder / 2 + .012, .08)
    low = max(hip / 2 + .065, .085)
    axis = (top - bottom) / max(_length(top, bottom), 1e-6) * body
    return 0., CHEST, bottom - .03 * axis, top + .045 * axis, (low, .9 * low, max(.9 * wide, .078), wide, wide, .05)


def _head(joints, body):
    "A neck and a round head about ears, eyes and nose"
    centre = _middle(joints, (*EARS, *EYES))
    if np.isnan(centre).any(): centre = joints[NOSE]
    if np.isnan(centre).any(): return []
    neck = _middle(joints, SHOULDERS)
    has_neck = np.isfinite(neck).all()
    up = np.array([0., -body])
    if has_neck: up = (centre - neck) / max(_length(centre, neck), 1e-6) * body
    ears = _middle(joints, EARS)
    if np.isfinite(ears).all(): centre = ears
    crown = centre + .022 * up
    chin = centre - .025 * up
    parts = [(.05, HEAD, chin, crown, (.055, .058))]
    if has_neck: parts.append((.04, HEAD, neck + .045 * up, chin, (.04, .04)))
    return parts


def _paint(mask, region, a, b, radii, flat):
    "Writes a region where the pixel's centre lies within a tapered limb; a flat end stops at the joint"
    reach = max(radii)
    x0, y0 = np.clip(np.minimum(a, b) - reach - 1, 0, mask.shape[::-1]).astype(int)
    x1, y1 = np.clip(np.maximum(a, b) + reach + 2, 0, mask.shape[::-1]).astype(int)
    x = np.arange(x0, x1)[None] + .5 - a[0]
    y = np.arange(y0, y1)[:, None] + .5 - a[1]
    length = max(_length(a, b), 1e-6)
    ux, uy = (b - a) / length
    along = x * ux + y * uy
    side = x * uy - y * ux
    core = np.clip(along, 0, length)
    radius = np.interp(core, np.linspace(0, length, len(radii)), radii)
    inside = side ** 2 + (along - core) ** 2 <= radius ** 2
    if flat[0]: inside &= along >= 0
    if flat[1]: inside &= along <= length
    mask[y0:y1, x0:x1][inside] = region
