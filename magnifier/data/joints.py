"Part masks without a parser: drawn around body joints, from confidence fields, or as stripes"

import math

import numpy as np
from PIL import Image

from magnifier.regions import region_indices

__all__ = ['regions_from_joints', 'stripe_masks']

HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = region_indices(range(1, 8))

# COCO's order of joints
NOSE, EYES, EARS = 0, (1, 2), (3, 4)
SHOULDERS, ELBOWS, WRISTS, HIPS, KNEES, ANKLES = (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)

# OpenPifPaf's 36 fields: 17 joints in COCO's order, then 19 connections in the order of its COCO skeleton
FIELDS = {
    HEAD: (NOSE, *EYES, *EARS, 29, 30, 31, 32, 33, 34, 35),  # between eyes, nose and ears, and from ear to shoulder
    CHEST: (*SHOULDERS, *HIPS, 21, 22, 23, 24),  # between shoulders and hips
    UPPER_ARM: (*ELBOWS, 25, 26),
    LOWER_ARM: (*WRISTS, 27, 28),
    UPPER_LEG: (*KNEES, 18, 20),
    LOWER_LEG: (17, 19),
    FOOT: ANKLES,
}
CONFIDENT = .3  # Below, a field sees nothing

# Lengths in statures (Drillis and Contini 1966); the camera only ever shortens them
LENGTHS = ((SHOULDERS, ELBOWS, .18), (ELBOWS, WRISTS, .146), (HIPS, KNEES, .245), (KNEES, ANKLES, .246))
TRUNK = .288
# Half-widths of clothed limbs at both ends, in statures
WIDTHS = {UPPER_ARM: (.045, .038), LOWER_ARM: (.037, .028), UPPER_LEG: (.07, .05), LOWER_LEG: (.05, .033),
          FOOT: (.037, .034)}
FLAT = {CHEST: (True, True), LOWER_ARM: (True, False), LOWER_LEG: (True, False)}  # Ends that are not round


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
    joints = _checked(joints, threshold)
    if len(size) != 2 or min(size) < 1: raise ValueError(f'size={size}: use (height, width), in pixels')
    mask, body = np.zeros(size, np.uint8), _stature(joints)
    if body is None: return mask
    for _, region, a, b, radii in sorted(_parts(joints, body), key=lambda part: part[0]):
        flat = FLAT.get(region, (False, False))
        if np.isfinite([*a, *b]).all(): _paint(mask, region, a, b, [r * body for r in radii], flat=flat)
    return mask


def regions_from_fields(
    fields: np.ndarray,  # (36, h', w') confidence in 0..1 of OpenPifPaf: joints, then connections
    size: tuple[int, int],  # Height and width of the mask
) -> np.ndarray:  # (h, w) uint8 regions, background where no field is confident
    "Gives every pixel the region with the most confident joints and connections there. A ValueError for other shapes"
    fields = np.asarray(fields)
    if fields.ndim != 3 or len(fields) != 36 or not fields.size or fields.dtype.kind != 'f':
        raise ValueError(f'fields of shape {fields.shape} and type {fields.dtype}: (36, h, w) floats are wanted, of '
                         '17 joints and 19 connections')
    best = np.full(size, CONFIDENT, np.float32)
    mask = np.zeros(size, np.uint8)
    for region, members in FIELDS.items():
        field = np.ascontiguousarray(fields[list(members)].max(0), dtype=np.float32)
        field = np.asarray(Image.fromarray(field).resize(size[::-1], Image.Resampling.BILINEAR))
        better = field > best
        best[better] = field[better]
        mask[better] = region
    return mask


def stripe_masks(
    size,  # Height and width of the mask
    edges=(0., .17, .34, .42, .5, .7, .88),  # Where each stripe from head to foot begins, shares of the height
) -> np.ndarray:  # (h, w) uint8, region 1 on top to region 7 at the bottom
    """Seven horizontal stripes with the names of the seven regions, for a first run on data without masks.

    They are NOT body parts: they do not depend on the image. Nothing is background, and an arm has the region of the
    stripe that it lies in. Raises ValueError for edges that do not rise."""
    if len(size) != 2 or min(size) < 1: raise ValueError(f'size={size}: use (height, width), in pixels')
    if len(edges) != 7 or any(b <= a for a, b in zip(edges, edges[1:])) or edges[0] != 0 or edges[-1] >= 1:
        raise ValueError(f'edges={tuple(edges)}: use seven rising shares of the height, the first 0, all below 1')
    rows = (np.arange(size[0]) + .5) / size[0]
    stripe = np.searchsorted(np.asarray(edges), rows, side='right').astype(np.uint8)
    return np.repeat(stripe[:, None], size[1], axis=1)


def _checked(joints, threshold):
    "(17, 2) floats, NaN where a joint was not found"
    joints = np.asarray(joints, float)
    if joints.shape not in ((17, 2), (17, 3)):
        raise ValueError(f'joints of shape {joints.shape}: use (17, 2) or (17, 3), COCO order')
    found = np.isfinite(joints).all(1)
    if joints.shape[1] == 3: found &= joints[:, 2] > threshold
    return np.where(found[:, None], joints[:, :2], np.nan)


def _middle(joints, pair):
    "Mean of those of the pair that were found, else NaN"
    found = [joints[i] for i in pair if np.isfinite(joints[i]).all()]
    return np.mean(found, axis=0) if found else np.full(2, np.nan)


def _length(a, b): return math.sqrt(((a - b) ** 2).sum())


def _stature(joints):
    """Body height in pixels: the second longest estimate, since foreshortening only shortens and one joint may be
    wrong; None without any"""
    answers = [_length(joints[p[i]], joints[q[i]]) / part for p, q, part in LENGTHS for i in (0, 1)]
    answers.append(_length(_middle(joints, SHOULDERS), _middle(joints, HIPS)) / TRUNK)
    answers = sorted(a for a in answers if math.isfinite(a) and a > 0)
    return answers[max(0, len(answers) - 2)] if answers else None


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
        near, shoulder, elbow, wrist = sign * side, joints[SHOULDERS[i]], joints[ELBOWS[i]], joints[WRISTS[i]]
        hip, knee, ankle = joints[HIPS[i]], joints[KNEES[i]], joints[ANKLES[i]]
        parts += [(near + .3, UPPER_ARM, shoulder, elbow, WIDTHS[UPPER_ARM]),
                  (near + .6 * front + .31, LOWER_ARM, elbow, wrist + .35 * (wrist - elbow), WIDTHS[LOWER_ARM]),
                  (.2 * near - 2, UPPER_LEG, hip, knee, WIDTHS[UPPER_LEG]),
                  (.2 * near - 1.9, LOWER_LEG, knee, ankle, WIDTHS[LOWER_LEG]),
                  (.2 * near - 1.8, FOOT, *_foot(ankle, side, body), WIDTHS[FOOT])]
    return parts


def _foot(ankle, side, body):
    "Heel and toe: COCO has no joints there, so the foot points where the nose does"
    return ankle + np.array([-.02 * side, .02]) * body, ankle + np.array([.1 * side, .028]) * body


def _trunk(joints, body):
    "Neck to hem: as wide as the distance of shoulders and hips, and at least as wide as a body is deep"
    top, bottom = _middle(joints, SHOULDERS), _middle(joints, HIPS)
    apart = [_length(joints[p[0]], joints[p[1]]) / body for p in (SHOULDERS, HIPS)]
    shoulder, hip = (a if math.isfinite(a) else 0. for a in apart)
    wide, low = max(shoulder / 2 + .012, .08), max(hip / 2 + .065, .085)
    axis = (top - bottom) / max(_length(top, bottom), 1e-6) * body
    return 0., CHEST, bottom - .03 * axis, top + .045 * axis, (low, .9 * low, max(.9 * wide, .078), wide, wide, .05)


def _head(joints, body):
    "A neck and a round head about ears, eyes and nose"
    face = [joints[i] for i in (*EARS, *EYES) if np.isfinite(joints[i]).all()] or [joints[NOSE]]
    centre, neck = np.mean(face, axis=0), _middle(joints, SHOULDERS)
    if not np.isfinite(centre).all(): return []
    up = (centre - neck) / max(_length(centre, neck), 1e-6) * body if np.isfinite(neck).all() else np.array([0., -body])
    ears = _middle(joints, EARS)
    if np.isfinite(ears).all(): centre = ears
    crown, chin = centre + .022 * up, centre - .025 * up
    parts = [(.05, HEAD, chin, crown, (.055, .058))]
    if np.isfinite(neck).all(): parts.append((.04, HEAD, neck + .045 * up, chin, (.04, .04)))
    return parts


def _paint(mask, region, a, b, radii, flat):
    "Write a region where the pixel's centre lies within a tapered limb; a flat end stops at the joint"
    h, w = mask.shape
    reach = max(radii)
    x0, x1 = (int(np.clip(v, 0, w)) for v in (min(a[0], b[0]) - reach - 1, max(a[0], b[0]) + reach + 2))
    y0, y1 = (int(np.clip(v, 0, h)) for v in (min(a[1], b[1]) - reach - 1, max(a[1], b[1]) + reach + 2))
    x, y = np.arange(x0, x1)[None] + .5 - a[0], np.arange(y0, y1)[:, None] + .5 - a[1]
    length = max(_length(np.asarray(a), np.asarray(b)), 1e-6)
    ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    along, side = x * ux + y * uy, x * uy - y * ux
    core = np.clip(along, 0, length)
    radius = np.interp(core, np.linspace(0, length, len(radii)), radii)
    inside = side ** 2 + (along - core) ** 2 <= radius ** 2
    if flat[0]: inside &= along >= 0
    if flat[1]: inside &= along <= length
    mask[y0:y1, x0:x1][inside] = region
