"What a search in a gallery found: a table of hits, by image or by identity"
from dataclasses import dataclass
import pandas as pd

__all__ = ['Hits']

FIELDS = ('path', 'pid', 'camid', 'time')


@dataclass(frozen=True, eq=False)
class Hits:
    "Hits of one search, best first, and what was asked"
    table: pd.DataFrame  # path, pid, camid, time (UTC), similarity, key; `reranked` distance or number of `shared` regions where asked for
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

    def by_identity(self) -> pd.DataFrame:  # pid, similarity, images, cameras, first, last, path, key; in the order of the hits
        """One row an identity: its best similarity and image, how many of its images were hit, by which cameras, and from when to
        when. Hits without an identity stay one row each"""
        t = self.table
        group = t['pid'].astype(object).where(t['pid'].notna(), t['key'])
        rows = [dict(pid=g['pid'].iat[0], similarity=best.similarity, images=len(g), cameras=sorted(g['camid'].dropna().astype(int).unique().tolist()),
                     first=g['time'].min(), last=g['time'].max(), path=best.path, key=best.key)
                for _, g in t.groupby(group, sort=False) for best in [g.loc[g['similarity'].idxmax()]]]
        columns = ['pid', 'similarity', 'images', 'cameras', 'first', 'last', 'path', 'key']
        return pd.DataFrame(rows, columns=columns, dtype=object).astype(
            {'pid': 'Int64', 'similarity': 'float64', 'images': 'int64', 'first': t['time'].dtype, 'last': t['time'].dtype})


def as_table(
    rows: list,  # Dicts of a store
    more: tuple = (),  # Names of figures that a search adds
) -> pd.DataFrame:  # Columns path, pid, camid, time, `more`, key
    "Rows as a table with the right types: identities and cameras may be missing, times are UTC"
    t = pd.DataFrame([[row.get(c) for c in (*FIELDS, *more, 'key')] for row in rows], columns=[*FIELDS, *more, 'key'], dtype=object)
    t = t.astype({'pid': 'Int64', 'camid': 'Int64', 'time': 'float64', **{c: 'Int64' if c == 'shared' else 'float64' for c in more}})
    paths = pd.Series([p or None for p in t['path']], index=t.index, dtype=object)
    return t.assign(path=paths, time=pd.to_datetime(t['time'], unit='s', utc=True))
