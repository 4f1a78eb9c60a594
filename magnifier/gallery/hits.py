"The hits of a search in a gallery as a table, by image or by identity"

from dataclasses import dataclass

import pandas as pd

__all__ = ['Hits']

FIELDS = ('path', 'pid', 'camid', 'time')


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


def as_table(
    rows,  # Columns of a store, or a list of dicts
    more: tuple = (),  # Names of figures that a search adds
) -> pd.DataFrame:  # Columns path, pid, camid, time, `more`, key
    "Rows as a table with the right types: identities and cameras may be missing, times are UTC"
    t = pd.DataFrame(rows, columns=[*FIELDS, *more, 'key'], dtype=object)
    figures = {name: 'Int64' if name == 'shared' else 'float64' for name in more}
    t = t.astype({'pid': 'Int64', 'camid': 'Int64', 'time': 'float64', **figures})
    paths = pd.Series([p or None for p in t['path']], index=t.index, dtype=object)
    return t.assign(path=paths, time=pd.to_datetime(t['time'], unit='s', utc=True))
