"The interface of a gallery's storage: rows of images with their vectors, and conditions on them"

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from magnifier.gallery.entries import number, timestamp

__all__ = ['Store', 'Where', 'where', 'joined', 'COLUMNS', 'VECTORS', 'EVERYTHING', 'MOST_NAMES']

# Of a row: the key of its content, the path it was added under, other paths of the same content, identity, camera,
# seconds since 1970, the tracklet that it belongs to (None for a single image), and the share of the body that it
# shows (None where nobody looked)
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


EVERYTHING = Where()


def where(
    *,
    not_camera=None,  # Camera or cameras whose images are left out; images of unknown cameras stay
    cameras=None,  # Camera or cameras
    since=None,  # Earliest time (seconds in UTC, ISO text or datetime); images without a time are left out
    until=None,  # Latest time; the same
    pids=None,  # Identity or identities
    paths=None,  # Path or paths
    keys=None,  # Key or keys
) -> Where:
    """Conditions from a user's arguments. ValueError for an empty list or a time span that ends before it begins,
    TypeError for other types than numbers"""
    since, until = timestamp(since), timestamp(until)
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
    def create(self,
        about: dict,  # What to remember
    ):
        "Makes the gallery, unless another process has made it"

    @abstractmethod
    def add(self,
        rows: dict,  # Columns; keys are not twice among them
    ) -> int:  # Rows written
        "Writes the rows with new keys. When this returns, they are on disk"

    @abstractmethod
    def update(self,
        rows: dict,  # Columns: 'key', which must be there, and those that change
    ):
        "Changes some columns of rows"

    @abstractmethod
    def delete(self,
        where: Where,  # Which rows; not everything
    ) -> int:  # Rows deleted
        "Removes rows from every answer; `compact` removes them from the disk"

    @abstractmethod
    def count(self) -> int:
        "How many rows there are"

    @abstractmethod
    def scan(self,
        where: Where = EVERYTHING,  # Which rows
        columns=COLUMNS,  # Names, of which the vectors are read only if named
    ) -> Iterator[dict]:  # Columns of some thousand rows at once
        "Rows of one version, in any order"

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
    def index(self,
        kind: str,  # 'exact' or 'ivf'
    ):
        "Changes how vectors are searched"

    @abstractmethod
    def settle(self):
        "Merges files after additions, so that searches stay fast"

    @abstractmethod
    def compact(self):
        "Removes from the disk what was deleted or replaced"

    @abstractmethod
    def close(self):
        "Closes files or the connection"

    def read(self,
        where: Where = EVERYTHING,  # Which rows
        columns=COLUMNS,  # Names
    ) -> dict:  # Columns
        "All rows of `scan` as one batch"
        return joined(list(self.scan(where, columns)), columns)

    def rows_of(self,
        keys,  # Keys, all of which are there
        columns,  # Names
    ) -> dict:  # Columns
        "Rows in the order of their keys"
        found = self.read(Where(keys=tuple(keys)), ('key', *columns))
        place = {key: i for i, key in enumerate(found['key'])}
        order = [place[key] for key in keys]
        return {name: found[name][order] if name in VECTORS else [found[name][i] for i in order] for name in columns}

    def known(self,
        keys: list,  # Keys
    ) -> dict:  # key -> [path, *other paths] of those that are there
        "Those of the given keys that the gallery has"
        if not keys: return {}
        rows = self.read(Where(keys=tuple(keys)), ('key', 'path', 'also'))
        return {key: [path, *also] for key, path, also in zip(rows['key'], rows['path'], rows['also'])}


def joined(
    parts: list,  # Columns
    names,  # Of the columns
) -> dict:  # Columns
    "Several batches joined"
    return {name: _joined([part[name] for part in parts], name) for name in names}


def _joined(parts, name):
    if name in VECTORS: return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    return [value for part in parts for value in part]
