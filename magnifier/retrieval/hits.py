"The first hits of a query: chosen without sorting the gallery, and kept in a file"

from dataclasses import dataclass
import numpy as np
import torch
from magnifier.retrieval.counting import Labels
from magnifier.retrieval.distance import to_numpy

__all__ = ['SavedHits', 'first_k']


def first_k(
    row: np.ndarray,  # (g,) distances
    k: int,  # How many
    among=slice(None),  # Which of them take part: a slice or (g,) booleans
) -> np.ndarray:  # Indices of the k nearest; of equal ones the earlier first
    "The k smallest of a row in stable order, without sorting all of it"
    items = np.arange(len(row))[among]
    dist = row[items]
    if k < len(items):
        near = np.flatnonzero(dist <= np.partition(dist, k - 1)[k - 1])
        items, dist = items[near], dist[near]
    return items[np.argsort(dist, kind='stable')[:k]]


@dataclass(frozen=True, eq=False)
class SavedHits:
    "The first hits of each query, all that a file keeps of the distances"
    items: np.ndarray  # (q, k) gallery indices, nearest first; -1 where there were fewer
    dist: np.ndarray  # (q, k) their distances
    n_gallery: int  # Length of a row

    @classmethod
    def of(cls,
        distances,  # Something with `.shape` and `.bands()`
        labels: Labels,  # Who is who, and what is removed
        k: int,  # Hits to keep of each query; 0 keeps none and looks at no distance
    ) -> 'SavedHits':
        "The first k of each query, without what is removed for it"
        q, g = distances.shape
        saved = cls(np.full((q, k), -1), np.full((q, k), np.inf), g)
        for rows, band in distances.bands() if k else ():
            for i, row in enumerate(to_numpy(band), rows.start):
                keep = np.isfinite(row)
                keep[labels.split(i)[1]] = False
                items = first_k(row, k, keep)
                saved.items[i, :len(items)], saved.dist[i, :len(items)] = items, row[items]
        return saved

    @property
    def shape(self) -> tuple[int, int]:  # (q, g)
        "Queries and gallery images"
        return len(self.items), self.n_gallery

    def bands(self):
        "Yields (slice of one query, its distances)"
        for i in range(len(self.items)): yield slice(i, i + 1), torch.from_numpy(self.row(i)[None])

    def row(self,
        query: int,  # Index of a query
    ) -> np.ndarray:  # (g,) distances, infinite where they were not kept
        "One query's distances, as far as they are known"
        row, known = np.full(self.n_gallery, np.inf), self.items[query] >= 0
        row[self.items[query][known]] = self.dist[query][known]
        return row
