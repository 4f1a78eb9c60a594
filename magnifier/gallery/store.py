"The interface of a gallery's storage: rows of images with their vectors, and conditions on them"

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from magnifier.gallery.entries import number, timestamp

__all__ = []

# Of a row: the key of its content, the path it was added under, other paths of the same content, identity, camera,
# seconds since 1970, the tracklet that it belongs to (None for a single image), and the share of the person that it
# shows (None where it was not measured)
COLUMNS = ('key', 'path', 'also', 'pid', 'camid', 'time', 'tracklet', 'visibility')
MOST_NAMES = 64  # Other paths that a row remembers
VECTORS = ('vector', 'regions')  # Columns that are (n, d) arrays; all others are lists


@dataclass(frozen=True)
class Where:
    """Conditions on images: those that meet all of them are selected. None means no condition; `where` makes and checks
    it"""

    keys: tuple | None = None  # Keys of their content
    paths: tuple | None = None  # Paths, as they were added
    pids: tuple | None = None  # Identities
    cameras: tuple | None = None  # Cameras
    not_cameras: tuple | None = None  # Cameras that are left out; images of unknown cameras stay
    since: float | None = None  # Seconds since 1970; images without a time do not fit
    until: float | None = None  # Seconds since 1970; images without a time do not fit
    tracklets: tuple | None = None  # Names of tracklets; empty stands for the images of any
    visible: tuple | None = None  # Sets of visible regions, as bits

    def __bool__(self): return any(condition is not None for condition in astuple(self))

    def expression(self,
        is_in,  # (column, values) -> text: whether the column's value is among the values
        has_any,  # (column, values) -> text: whether the column's list and the values share one
    ) -> str:  # Empty without conditions
        "The conditions as text for a database; databases differ in how they write lists"
        among = dict(key=self.keys, pid=self.pids, camid=self.cameras, visible=self.visible)
        parts = [is_in(column, values) for column, values in among.items() if values is not None]
        if self.paths is not None: parts.append(f'({is_in("path", self.paths)} or {has_any("also", self.paths)})')
        if self.not_cameras is not None: parts.append(f'(camid is null or not ({is_in("camid", self.not_cameras)}))')
        if self.tracklets: parts.append(is_in('tracklet', self.tracklets))
        elif self.tracklets is not None: parts.append('tracklet is not null')
        if self.since is not None: parts.append(f'time >= {self.since!r}')
        if self.until is not None: parts.append(f'time <= {self.until!r}')
        return ' and '.join(parts)


EVERYTHING = Where()


def where(*, keys=None, paths=None, pids=None, cameras=None, not_camera=None, since=None, until=None) -> Where:
    """Conditions from a user's arguments, of which each may be one value or several (see `Gallery.search` and
    `Gallery.delete`). ValueError for an empty list of numbers and for a time span that ends before it begins, TypeError
    for other types than numbers"""
    since = timestamp(since)
    until = timestamp(until)
    if since is not None and until is not None and since > until:
        raise ValueError(f'since={since} lies after until={until}: no time is both')
    return Where(
        keys=_texts(keys),
        paths=_texts(paths),
        pids=_numbers(pids, 'pids'),
        cameras=_numbers(cameras, 'cameras'),
        not_cameras=_numbers(not_camera, 'not_camera'),
        since=since,
        until=until,
    )


def _texts(x):
    if x is None: return None
    return tuple(sorted({str(t) for t in ([x] if isinstance(x, (str, Path)) else x)}))


def _numbers(x, name):
    if x is None: return None
    several = x if isinstance(x, Iterable) and not isinstance(x, str) else [x]
    numbers = {number(n, name) for n in several}
    if not numbers or None in numbers: raise ValueError(f'{name}: at least one number wanted, and none of them missing')
    return tuple(sorted(numbers))


class Store(ABC):
    """Rows of one gallery: `COLUMNS`, a unit 'vector', and where regions are kept also 'regions', the vectors of all
    regions side by side, and 'visible', the bits of those that can be seen. Rows go in and come out as columns: name ->
    list, or (n, d) float32 array.

    What the gallery stores about itself (`about`: 'fingerprint' of its model, 'd' of a vector, 'regions': d of all
    regions' vectors or 0) is written together with its first rows."""

    about: dict  # Empty where nothing was added yet
    kind: str | None  # How vectors are searched: 'exact' or 'ivf'; None where nothing was added yet
    version: object  # Changes with every write, whoever writes; None where a store cannot know

    @abstractmethod
    def create(self, about: dict):
        "Makes the gallery, unless another process has made it"

    @abstractmethod
    def add(self, rows: dict) -> int:
        "Writes the rows with new keys, of which none is there twice, and returns how many; then they are on disk"

    @abstractmethod
    def update(self, rows: dict):
        "Changes some columns of rows that are there: `rows` has their 'key' and those columns"

    @abstractmethod
    def delete(self, where: Where) -> int:
        "Removes rows from every answer, and returns how many; `compact` removes them from the disk"

    @abstractmethod
    def count(self) -> int:
        "How many rows there are"

    @abstractmethod
    def read(self, where: Where = EVERYTHING, columns=COLUMNS) -> dict:
        "Rows of one version in any order; vectors are read only if they are named"

    @abstractmethod
    def search(self,
        vector: np.ndarray,  # (d,) float32
        k: int,  # Rows at most
        where: Where = EVERYTHING,  # Which rows
        *,
        field: str = 'vector',  # Or 'regions'
        exact: bool = False,  # Not by the index, if there is one
    ) -> dict:  # `COLUMNS`, and 'similarity'; the most similar first
        "Nearest rows by inner product"

    @abstractmethod
    def index(self, kind: str):
        "Changes how vectors are searched: 'exact' or 'ivf'"

    @abstractmethod
    def settle(self):
        "Merges files after additions, so that searches stay fast"

    @abstractmethod
    def compact(self):
        "Removes from the disk what was deleted or replaced"

    @abstractmethod
    def close(self):
        "Closes files or the connection"

    def rows_of(self, keys, columns) -> dict:
        "Rows in the order of their keys; a KeyError for a key that is not there"
        found = self.read(Where(keys=tuple(keys)), ('key', *columns))
        place = {key: i for i, key in enumerate(found['key'])}
        order = [place[key] for key in keys]
        return {name: found[name][order] if name in VECTORS else [found[name][i] for i in order] for name in columns}

    def known(self, keys: list) -> dict:
        "key -> [path, *other paths] of those of the keys that are there"
        if not keys: return {}
        rows = self.read(Where(keys=tuple(keys)), ('key', 'path', 'also'))
        return {key: [path, *also] for key, path, also in zip(rows['key'], rows['path'], rows['also'])}


def joined(parts: list, names) -> dict:
    "Several batches as one, with the columns of these names"
    return {name: _joined([part[name] for part in parts], name) for name in names}


def _joined(parts, name):
    if name in VECTORS: return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    return [value for part in parts for value in part]
