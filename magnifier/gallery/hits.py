"A search in a gallery: the nearest rows of its store, and the hits as a table, by image or by identity"

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from magnifier.gallery.store import EVERYTHING, Store, Where, joined
from magnifier.regions import N_REGIONS, REGIONS

__all__ = ['Hits']

FIELDS = ('path', 'pid', 'camid', 'time')
FIGURES = {'similarity': 'float64', 'reranked': 'float64', 'shared': 'Int64'}
RERANKED = 100  # Hits that re-ranking looks at


@dataclass(frozen=True, eq=False)
class Hits:
    "Hits of one search, best first, and the query"

    table: pd.DataFrame  # path, pid, camid, time (UTC), similarity, where asked for `reranked` or `shared`, key
    query: object = None  # The image that was searched, as it was given
    regions: tuple | None = None  # Regions that were compared; None for the whole person

    @property
    def df(self) -> pd.DataFrame:  # The same table
        "The table"
        return self.table

    def __len__(self): return len(self.table)

    def __iter__(self): return self.table.itertuples(index=False)

    def __getitem__(self, i):
        if isinstance(i, slice): return Hits(self.table.iloc[i].reset_index(drop=True), self.query, self.regions)
        return self.table.iloc[i]

    def _repr_html_(self): return self.table.drop(columns='key').to_html()

    def __repr__(self): return self.table.drop(columns='key').to_string() if len(self) else 'no hits'

    def by_identity(self) -> pd.DataFrame:  # pid, similarity, images, cameras, first, last, path, key; best first
        """One row an identity: its best similarity and image, how many of its images were hit, by which cameras, and
        from when to when. Each hit without an identity keeps its own row"""
        identities = self.table['pid'].astype(object).where(self.table['pid'].notna(), self.table['key'])
        rows = [_of_identity(images) for _, images in self.table.groupby(identities, sort=False)]
        columns = ['pid', 'similarity', 'images', 'cameras', 'first', 'last', 'path', 'key']
        times = self.table['time'].dtype
        types = {'pid': 'Int64', 'similarity': 'float64', 'images': 'int64', 'first': times, 'last': times}
        return pd.DataFrame(rows, columns=columns, dtype=object).astype(types)


def _of_identity(images):
    best = images.loc[images['similarity'].idxmax()]
    return dict(
        pid=images['pid'].iat[0],
        similarity=best.similarity,
        images=len(images),
        cameras=sorted(images['camid'].dropna().astype(int).unique().tolist()),
        first=images['time'].min(),
        last=images['time'].max(),
        path=best.path,
        key=best.key,
    )


def as_table(rows) -> pd.DataFrame:
    """Rows of a store, as columns or dicts, as a table of path, pid, camid, time, key; before the key stand the figures
    of a search that are among them. Identities and cameras may be missing, times are UTC"""
    t = pd.DataFrame(rows, dtype=object)
    figures = {name: kind for name, kind in FIGURES.items() if name in t}
    t = t.reindex(columns=[*FIELDS, *figures, 'key'])
    t = t.astype({'pid': 'Int64', 'camid': 'Int64', 'time': 'float64', **figures})
    paths = pd.Series([p or None for p in t['path']], index=t.index, dtype=object)
    return t.assign(path=paths, time=as_times(t['time']))


def as_times(seconds: pd.Series) -> pd.Series:
    """UTC times, to the microsecond, of seconds since 1970. They pass through whole numbers, because pandas 2 may raise
    a FloatingPointError for missing floats"""
    return pd.to_datetime((seconds * 1e6).round().astype('Int64'), unit='us', utc=True)


def nearest(
    store: Store,  # Of the gallery
    vector: np.ndarray,  # (d,) of the query
    k: int,  # Hits at most
    where: Where,  # Which rows
) -> dict:  # Columns with 'similarity', the most similar first
    "Nearest rows; by an exact search if the index finds too few that meet the conditions"
    rows = store.search(vector, k, where)
    if len(rows['key']) == k or store.kind == 'exact': return rows
    return store.search(vector, k, where, exact=True)


def nearest_reranked(store: Store, vector: np.ndarray, k: int, where: Where) -> dict:
    """As `nearest`, but the first hundred are ordered anew by k-reciprocal encoding. Column 'reranked' is the distance
    that orders them"""
    rows = nearest(store, vector, max(k, RERANKED), where)
    n = len(rows['key'])
    if not n: return {**rows, 'reranked': []}
    first = rows['key'][:RERANKED]
    from magnifier.retrieval.rerank import rerank  # needs torch, which a plain search does without
    distances = rerank(vector[None], store.rows_of(first, ('vector',))['vector'])[0].astype(float)
    order = [*np.argsort(distances, kind='stable'), *range(len(first), n)][:k]
    rows['reranked'] = [*distances, *[None] * (n - len(first))]
    return {name: [values[i] for i in order] for name, values in rows.items()}


def nearest_by_regions(
    store: Store,  # With regions
    vector: np.ndarray,  # (k*c,) of the query
    visible: int,  # Its bits
    wanted: list,  # Indices of the regions to compare
    k: int,  # Hits at most
    where: Where = EVERYTHING,  # Which rows
) -> dict:  # Columns with 'similarity', and 'shared': the number of regions it is the mean of
    """Nearest rows by the mean cosine of the given regions that both images show, as in `region_distance`; rows that
    share none are not hits. A ValueError if the query shows none of them"""
    shown = [r for r in wanted if visible >> r & 1]
    if not shown:
        raise ValueError(f'this image shows no {" or ".join(REGIONS[r] for r in wanted)}: search by other regions')
    query = np.zeros((N_REGIONS, len(vector) // N_REGIONS), np.float32)
    query[shown] = vector.reshape(N_REGIONS, -1)[shown]
    mask = sum(1 << r for r in shown)
    parts = []
    # An inner product is the sum over the shared regions: among rows that share equally many it orders the means too
    for shared in range(1, len(shown) + 1):
        rows = store.search(query.ravel(), k, replace(where, visible=_sharing(mask, shared)), field='regions')
        rows['similarity'] = [s / shared for s in rows['similarity']]
        parts.append({**rows, 'shared': [shared]*len(rows['similarity'])})
    found = joined(parts, parts[0])
    best = np.argsort(-np.array(found['similarity']), kind='stable')[:k]
    return {name: [values[i] for i in best] for name, values in found.items()}


def _sharing(mask, n):
    "All sets of visible regions, as bits, that have n regions in common with a mask"
    return tuple(bits for bits in range(1 << N_REGIONS) if (bits & mask).bit_count() == n)
