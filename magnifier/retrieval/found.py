"What a search in a gallery found: a table of hits, by image or by identity"
from dataclasses import dataclass
import pandas as pd

__all__ = ['Hits']

COLUMNS = ['path', 'pid', 'camid', 'time', 'similarity', 'key']


@dataclass(frozen=True, eq=False)
class Hits:
    "Hits of one search, best first, and what was asked"
    table: pd.DataFrame  # path, pid, camid, time (UTC), similarity, key; 'shared' regions or 're-ranked' distance where asked for
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

    def by_identity(self) -> pd.DataFrame:  # pid, similarity, images, cameras, first, last, path, key; the most similar identity first
        """One row an identity: its best similarity and image, how many of its images were hit, by which cameras, and from when to
        when. Hits without an identity stay one row each"""
        t = self.table
        group = t['pid'].astype(object).where(t['pid'].notna(), t['key'])
        rows = [dict(pid=g['pid'].iat[0], similarity=g['similarity'].iat[0], images=len(g),
                     cameras=sorted(g['camid'].dropna().astype(int).unique().tolist()), first=g['time'].min(), last=g['time'].max(),
                     path=g['path'].iat[0], key=g['key'].iat[0]) for _, g in t.groupby(group, sort=False)]
        return pd.DataFrame(rows, columns=['pid', 'similarity', 'images', 'cameras', 'first', 'last', 'path', 'key']).astype({'pid': 'Int64'})


def as_table(
    rows: list,  # Dicts of a store
    more: tuple = (),  # Names of further columns
) -> pd.DataFrame:  # Columns of a Hits' table
    "Rows as a table with the right types: identities and cameras may be missing, times are UTC"
    t = pd.DataFrame(rows, columns=[c for c in COLUMNS if rows and c in rows[0] or c != 'similarity' or not rows] + list(more))
    return typed(t)


def typed(
    table: pd.DataFrame,  # As a store gives it
) -> pd.DataFrame:  # Integers that may be missing, and UTC times
    "Types of a table's columns"
    times = pd.to_datetime(table['time'].astype('float64'), unit='s', utc=True)
    paths = table['path'].astype(object).where(table['path'] != '', None)
    return table.assign(path=paths, pid=table['pid'].astype('Int64'), camid=table['camid'].astype('Int64'), time=times)
