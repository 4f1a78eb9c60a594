"Part masks of a whole set: converted from a parser's labels, drawn as stripes, measured and compared"

import os
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from fastprogress import progress_bar
from PIL import Image

from magnifier.checks import refuse
from magnifier.data.catalog import CatalogWarning, by_split
from magnifier.data.images import (IMAGE_ENDINGS, existing, few, image_files, mask_folder, opened_image, read_image,
                                   read_labels, read_mask, write_mask)
from magnifier.data.own_sets import read_table
from magnifier.regions import BODY_REGIONS, N_REGIONS, REGIONS, LabelTable, label_table, region_indices

__all__ = ['convert_masks', 'stripe_masks', 'make_stripe_masks', 'mask_report', 'mask_agreement']

# OpenPifPaf's 36 fields: 17 joints in COCO's order, then 19 connections in the order of its COCO skeleton
FIELDS = dict(
    head=(0, 1, 2, 3, 4, 29, 30, 31, 32, 33, 34, 35),  # Nose, eyes, ears, what joins them, and from ear to shoulder
    chest=(5, 6, 11, 12, 21, 22, 23, 24),  # Shoulders, hips, and between them
    upper_arm=(7, 8, 25, 26),  # Elbows, and from shoulder to elbow
    lower_arm=(9, 10, 27, 28),  # Wrists, and from elbow to wrist
    upper_leg=(13, 14, 18, 20),  # Knees, and from hip to knee
    lower_leg=(17, 19),  # From ankle to knee
    foot=(15, 16))  # Ankles
CONFIDENT = .3  # Below, a field sees nothing


def convert_masks(
    src: str | Path,  # Folder of a parser's label files (PNG), or OpenPifPaf's fields (.npy), any depth
    dst: str | Path,  # Folder of the part masks, same sub-paths; what is there already is left
    labels='lip',  # As `label_table` takes it, 'pifpaf', or a CSV file (see `read_label_table`)
    *,
    images: str | Path | None = None,  # For 'pifpaf': folder of the images, same sub-paths
    workers: int | None = None,  # Threads; default: as many as there are cores
    progress: bool = True,  # Show a bar
) -> pd.DataFrame:  # One row a file: `path`, `mask`, `result` ('converted', 'already there', 'failed'), `problem`
    """Converts a folder of label files to part masks.

    A stopped run continues, and a file that fails does not stop the others (a warning says how many failed). Of
    DensePose's three-channel IUV files, I is read."""
    src, dst = existing(src), Path(dst)
    ending, convert = _converter(labels, src, images)
    files = sorted(p for p in src.rglob('*') if p.suffix.lower() == ending and not p.name.startswith('.'))
    refuse({f'{src} holds no {ending} file': not files})
    def convert_one(p): return _convert_file(p, dst / _mask_name(p.relative_to(src)), convert)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(convert_one, files)
        rows = list(progress_bar(done, total=len(files)) if progress else done)
    report = pd.DataFrame(rows, columns=['path', 'mask', 'result', 'problem'])
    failed = report[report['result'] == 'failed']
    if len(failed):
        warnings.warn(f'{len(failed)} of {len(files)} files were not converted (first: {failed["problem"].iat[0]})',
                      CatalogWarning, stacklevel=2)
    return report


def _converter(labels, src, images):
    "Ending of a parser's files, and the function from one of them to regions"
    if labels == 'pifpaf':
        refuse({"labels='pifpaf': fields are smaller than their images; name the folder of these as images":
                images is None})
        return '.npy', partial(_from_fields, src=src, images=existing(images))
    table = read_label_table(labels) if str(labels).lower().endswith('.csv') else label_table(labels)
    return '.png', lambda path: convert_mask(_parser_labels(path, table), table)


def _convert_file(path, target, convert):
    if target.exists(): return str(path), str(target), 'already there', None
    try: write_mask(target, convert(path))
    except (ValueError, OSError) as e:
        return str(path), None, 'failed', str(e) if str(path) in str(e) else f'{path}: {e}'
    return str(path), str(target), 'converted', None


def _mask_name(path):
    "`x.npy`, `x.jpg.npy`, `x.jpg.confidence_fields.npy` and `x.png` -> `x.png`"
    name = path.name.removesuffix(path.suffix).removesuffix('.confidence_fields')
    if path.suffix == '.npy' and Path(name).suffix.lower() in IMAGE_ENDINGS: name = Path(name).stem
    return path.with_name(f'{name}.png')


def _parser_labels(path, table):
    "`read_labels`; of a DensePose IUV file the I, its first channel in OpenCV's order, which is the last of RGB"
    if 'DensePose' in table.source:
        with opened_image(path, 'part mask') as image:
            if image.mode == 'RGB': return np.asarray(image)[..., 2]
    return read_labels(path)


def convert_mask(
    labels: np.ndarray,  # (h, w) integers in a parser's own numbering
    table='lip',  # A name of LABEL_TABLES, a LabelTable, or the region of each label 0, 1, ...
) -> np.ndarray:  # (h, w) uint8, regions 0..7
    """A parser's labels as regions; limbs that the parser does not divide are divided as LimbSplit says.

    ValueError for labels that the table does not have."""
    labels = np.asarray(labels)
    table = label_table(table)
    if labels.size and (labels.min() < 0 or labels.max() >= len(table.regions)):
        raise ValueError(f'labels {few(np.unique(labels))}, but the table has 0 to {len(table.regions)-1} '
                         f'({table.source})')
    regions = np.asarray(table.regions, np.uint8)[labels]
    rows = np.flatnonzero(regions.any(1))
    if len(rows) == 0: return regions
    head = np.argwhere(regions == REGIONS.index('head'))
    if len(head): anchor = head.mean(0)
    else: anchor = np.array([rows[0], np.flatnonzero(regions[rows[0]]).mean()])  # the person's topmost pixels
    for split in table.splits: _divide(regions, labels, split, anchor=anchor, height=rows[-1] - rows[0] + 1)
    return regions


def _divide(regions, labels, split, *, anchor, height):
    "Gives the far end of a limb the lower region, in place; the near end is the one nearer to `anchor` (y, x)"
    limb = np.argwhere(np.isin(labels, split.limb))
    divided = np.argwhere(np.isin(labels, split.labels))
    if len(divided) == 0: return
    centre = limb.mean(0)
    axis = np.array([1., 0.])
    if not split.upright:
        axis = np.linalg.eigh((limb - centre).T @ (limb - centre))[1][:, -1]  # the direction in which it is longest
        along = (limb - centre) @ axis
        start = centre + axis * along.min()
        end = centre + axis * along.max()
        if np.linalg.norm(end - anchor) < np.linalg.norm(start - anchor): axis = -axis
    along = (limb - centre) @ axis
    length = np.ptp(along) + 1  # pixels, both ends included
    far = (divided - centre) @ axis > along.max() - max(length / 2, min(length, height / 4))
    regions[tuple(divided[far].T)] = split.lower


def read_label_table(file: str | Path) -> LabelTable:
    """Another parser's label table: a CSV file with columns `label` (0, 1, ...) and `region` (a name or 0 to 7).

    Labels that the file does not name are background. A ValueError names the file and what is wrong in it."""
    table = read_table(file)
    refuse({f'{file}: columns label and region are wanted, not {", ".join(table)}':
            not {'label', 'region'} <= set(table),
            f'{file} names no label': table.empty})
    region_of = {}
    for label, region in zip(table['label'].str.strip(), table['region'].str.strip()):
        is_number = re.fullmatch(r'\d{1,5}', label)
        refuse({f'{file}: label {label!r} is not a whole number of 0 or more': not is_number,
                f'{file}: label {label} is listed twice': is_number and int(label) in region_of})
        try: region_of[int(label)], = region_indices([int(region) if region.isdigit() else region])
        except ValueError as e: raise ValueError(f'{file}: label {label}: {e}') from e
    return LabelTable(tuple(region_of.get(i, 0) for i in range(max(region_of) + 1)), (), str(file))


def _from_fields(path, src, images):
    "Regions of a file of fields, at the size of its image"
    place = (images / path.relative_to(src)).parent
    name = _mask_name(path).stem
    image = next((p for ending in IMAGE_ENDINGS if (p := place / f'{name}{ending}').is_file()), None)
    refuse({f'{path}: no image {place / name} ({", ".join(IMAGE_ENDINGS)})': image is None})
    try: fields = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e: raise ValueError(f'{path}: no array of NumPy ({e})') from e
    return regions_from_fields(fields, read_image(image).size[::-1])


def regions_from_fields(
    fields: np.ndarray,  # (36, h', w') confidence in 0..1 of OpenPifPaf: joints, then connections
    size: tuple[int, int],  # Height and width of the mask
) -> np.ndarray:  # (h, w) uint8 regions, background where no field is confident
    "Gives every pixel the region with the most confident joints and connections there. A ValueError for other shapes"
    fields = np.asarray(fields)
    refuse({f'fields of shape {fields.shape} and type {fields.dtype}: (36, h, w) floats are wanted, of 17 joints and '
            '19 connections':
            fields.ndim != 3 or len(fields) != 36 or not fields.size or fields.dtype.kind != 'f'})
    best = np.full(size, CONFIDENT, np.float32)
    mask = np.zeros(size, np.uint8)
    for region, members in FIELDS.items():
        field = np.ascontiguousarray(fields[list(members)].max(0), dtype=np.float32)
        field = np.asarray(Image.fromarray(field).resize(size[::-1], Image.Resampling.BILINEAR))
        better = field > best
        best[better] = field[better]
        mask[better] = REGIONS.index(region)
    return mask


def stripe_masks(
    size,  # Height and width of the mask
    edges=(0., .17, .34, .42, .5, .7, .88),  # Where each stripe from head to foot begins, shares of the height
) -> np.ndarray:  # (h, w) uint8, region 1 on top to region 7 at the bottom
    """Seven horizontal stripes with the names of the seven regions, for a first run on data without masks.

    They are NOT body parts: they do not depend on the image. Nothing is background, and an arm has the region of the
    stripe that it lies in. Raises ValueError for edges that do not rise."""
    refuse({
        f'size={size}: use (height, width), in pixels': len(size) != 2 or min(size) < 1,
        f'edges={tuple(edges)}: use seven rising shares of the height, the first 0, all below 1':
            len(edges) != 7 or any(b <= a for a, b in zip(edges, edges[1:])) or edges[0] != 0 or edges[-1] >= 1})
    rows = (np.arange(size[0]) + .5) / size[0]
    stripe = np.searchsorted(np.asarray(edges), rows, side='right').astype(np.uint8)
    return np.repeat(stripe[:, None], size[1], axis=1)


def make_stripe_masks(
    images: str | Path | pd.DataFrame | Iterable,  # A folder, a catalog, or paths
    dst: str | Path | None = None,  # Folder of the masks; default: `<folder>_ps_label`, where `find_masks` looks
) -> list[Path]:  # The files, in the order of the images
    "Writes `stripe_masks` for every image that has no file yet: horizontal bands for a first run, not body parts"
    targets = mask_targets(images, dst)
    for p, mask in targets:
        if not mask.exists(): write_mask(mask, stripe_masks(read_image(p).size[::-1]))
    return [mask for _, mask in targets]


def mask_targets(images, dst=None) -> list[tuple[str, Path]]:
    """(image path, mask path) for a folder, a catalog or a list of paths: same sub-paths, `.png`.

    Default `dst`: `<folder>_ps_label`, where `find_masks` looks; for a list or a catalog, beside the folder that all
    images have in common."""
    if isinstance(images, (str, os.PathLike)):
        root = existing(images)
        files = image_files(root, recursive=True)
    else:
        if isinstance(images, pd.DataFrame): images = images['path']
        files = [Path(os.path.abspath(p)) for p in images]
        refuse({'no images given': not files})
        root = Path(os.path.commonpath([p.parent for p in files]))
    dst = mask_folder(root) if dst is None else Path(dst)
    targets = [(str(p), (dst / p.relative_to(root)).with_suffix('.png')) for p in files]
    _check_targets(targets)
    return targets


def _check_targets(targets):
    image_of = {}
    for p, mask in targets:
        other = image_of.setdefault(mask, p)
        refuse({f'{other} and {p} would have the same mask {mask}': other != p,
                f'{p} would be overwritten by its mask: choose another dst': str(mask) == p})


def mask_report(
    catalog: pd.DataFrame,  # One row an image, `mask` filled by `find_masks`
) -> pd.DataFrame:  # A row a split, and one for all: images, masks, coverage, regions, area of each region
    """Statistics of a set's masks: coverage (share of images with a mask), body regions per image on average, area.

    Areas are shares of the image, averaged over the masks; they add up to 1."""
    with ThreadPoolExecutor() as pool: areas = list(pool.map(_areas, catalog['mask'].dropna()))
    masked = catalog.index[catalog['mask'].notna()]
    areas = pd.DataFrame(np.reshape(areas, (-1, N_REGIONS)), index=masked, columns=REGIONS)
    rows = {}
    for split, c in by_split(catalog):
        a = areas.loc[c.index[c['mask'].notna()]]
        shown = (a[list(BODY_REGIONS)] > 0).sum(axis=1).mean()
        rows[split] = dict(images=len(c), masks=len(a), coverage=len(a) / len(c), regions=shown, **a.mean())
    return pd.DataFrame.from_dict(rows, orient='index').rename_axis('split')


def _areas(mask):
    labels = read_mask(mask)
    return np.bincount(labels.ravel(), minlength=N_REGIONS) / labels.size


def mask_agreement(
    a: str | Path,  # Folder of part masks
    b: str | Path,  # Another, with the same sub-paths
) -> pd.DataFrame:  # One row a region: iou (NaN where neither has it), pixels in a, in b and in both
    """Agreement of two folders of masks: intersection over union by region, with pixels summed over all files that both
    have.

    A warning counts the files in only one folder. ValueError if they have no file in common, or a pair of two sizes."""
    a, b = existing(a), existing(b)
    in_a, in_b = ({p.relative_to(root) for p in root.rglob('*.png') if not p.name.startswith('.')} for root in (a, b))
    common = sorted(in_a & in_b)
    refuse({f'{a} ({len(in_a)} PNG files) and {b} ({len(in_b)}) have no file name in common': not common})
    alone = len(in_a ^ in_b)
    if alone:
        warnings.warn(f'{alone} masks are in only one of {a} and {b}; {len(common)} are compared', CatalogWarning,
                      stacklevel=2)
    with ThreadPoolExecutor() as pool: confusion = sum(pool.map(lambda n: _confusion(a / n, b / n), common))
    both = confusion.diagonal()
    pixels_a = confusion.sum(1)
    pixels_b = confusion.sum(0)
    union = pixels_a + pixels_b - both
    iou = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    return pd.DataFrame(dict(iou=iou, pixels_a=pixels_a, pixels_b=pixels_b, both=both),
                        index=pd.Index(REGIONS, name='region'))


def _confusion(a, b) -> np.ndarray:
    "(k, k) pixels by region in a and in b"
    first, second = read_mask(a), read_mask(b)
    refuse({f'{a} is {first.shape} and {b} is {second.shape} (h, w): masks of one image have one size':
            first.shape != second.shape})
    pairs = first.astype(np.int64) * N_REGIONS + second
    return np.bincount(pairs.ravel(), minlength=N_REGIONS**2).reshape(N_REGIONS, N_REGIONS)
