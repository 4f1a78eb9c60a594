"""RankedSet: queries and gallery of a set, embedded and ranked once, with the choice of queries and the rows of their
hits"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from magnifier.data.block import ROLES
from magnifier.retrieval.ranking import Ranking
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import rank_by_role
from magnifier.train.parts import embed_parts, rank_parts

__all__ = ['RankedSet', 'CHOICES']

CHOICES = ('random', 'worst', 'best')


@dataclass(frozen=True, eq=False)
class RankedSet:
    "Queries and gallery of a set, ranked by one model. It holds embeddings, and no images"
    items: pd.DataFrame  # The set's rows, in the order of the embeddings
    embeddings: torch.Tensor  # (n,d) on the CPU, L2-normalised; by regions (n,k*c), these side by side
    identity: np.ndarray  # (n,4) class, pid, camid, role
    ranking: Ranking  # Of the queries against the gallery

    @classmethod
    def of(cls,
        learn: ReIDLearner,  # The model
        catalog=None,  # Catalog or loader with queries and gallery; None for the validation set
        regions=None,  # Rank by these regions alone, names or indices; None by the whole embedding
        **kwargs,  # Passed to `rank`
    ) -> 'RankedSet':
        "Embeds and ranks a set; a ValueError if it has no queries or no gallery"
        dl = _loader(learn, catalog)
        if regions is None:
            embeddings, identity = learn.embed(dl, with_identity=True)
            ranking = rank_by_role(embeddings, identity, **kwargs)
        else:
            parts = embed_parts(learn, dl, regions)
            embeddings, identity = parts.embeddings.flatten(1), parts.identity  # (n, k*c)
            ranking = rank_parts(parts, **kwargs).get('regions')
        if ranking is None:
            raise ValueError('nothing to rank: the catalog needs rows of split "query" and of split "gallery"')
        items = dl.dataset.items
        if (identity[:, 1:3].numpy() != items[['pid', 'camid']].to_numpy()).any():
            raise ValueError('this loader shuffles: pass the catalog itself, or a loader that does not shuffle')
        return cls(items, embeddings, identity.numpy(), ranking)

    @property
    def query_rows(self) -> np.ndarray:  # (q,) indices of rows
        "Which rows are queries"
        return np.flatnonzero(self.identity[:, 3] == ROLES.index('query'))

    @property
    def gallery_rows(self) -> np.ndarray:  # (g,) indices of rows
        "Which rows are gallery"
        return np.flatnonzero(self.identity[:, 3] == ROLES.index('gallery'))

    def ids(self,
        rows,  # Indices of rows
    ) -> tuple[np.ndarray, np.ndarray]:  # (n,) pids, (n,) camids
        "Identities and cameras of some rows"
        return self.identity[rows, 1], self.identity[rows, 2]

    def choose(self,
        queries=None,  # None or 'random', 'worst', 'best'; or identities and file names, one or several
        n: int = 4,  # Queries; where several are named, at least one of each
        seed: int = 0,  # Seed of the random choice
    ) -> np.ndarray:  # Indices of queries, as the ranking counts them
        "Queries by name, or by their average precision; a ValueError for a name that no query or several queries have"
        if n < 1: raise ValueError(f'n={n}: show at least one query')
        if queries is None or isinstance(queries, str) and queries in CHOICES:
            return self._by_success(queries or 'random', n, seed)
        wanted = [queries] if isinstance(queries, (str, Path, int, np.integer)) else list(queries)
        if not wanted:
            raise ValueError(f'no queries given: give identities, file names, or one of {", ".join(CHOICES)}')
        found = [self._by_pid(q) if isinstance(q, (int, np.integer)) else self._by_file(q) for q in wanted]
        # the first of each, then the second of each
        turns = dict.fromkeys(rows[i] for i in range(n) for rows in found if i < len(rows))
        return np.array(list(turns))[:max(n, len(wanted))]

    def _by_success(self, how, n, seed):
        found = np.flatnonzero(self.ranking.n_matches > 0)
        if not len(found): found = np.arange(len(self.query_rows))  # no query has a match: show any
        if how == 'random': return np.random.default_rng(seed).permutation(found)[:n]
        ap = np.nan_to_num(self.ranking.ap[found])
        return found[np.argsort(ap if how == 'worst' else -ap, kind='stable')[:n]]

    def _by_pid(self, pid):
        pids, _ = self.ids(self.query_rows)
        found = np.flatnonzero(pids == pid)
        if not len(found): raise _unknown(pid, np.unique(pids))
        return found

    def _by_file(self, name):
        paths = [Path(p) for p in self.items['path'].iloc[self.query_rows]]
        wanted = Path(name)
        ending = wanted.parts
        found = [i for i, p in enumerate(paths) if p.parts[-len(ending):] == ending or p.stem == str(name)]
        if not found: raise _unknown(name, [p.name for p in paths])
        if len(found) > 1:
            called = _few([paths[i] for i in found])
            raise ValueError(f'{len(found)} queries are called {str(name)!r}: {called}; name one by its whole path')
        return found

    def rows_of(self,
        query: int,  # Index of a query
        hits: pd.DataFrame,  # Its hits, of `Ranking.hits`
    ) -> pd.DataFrame:  # Catalog rows: the query's, then its hits'
        "The catalog rows of a query and its hits"
        return self.items.iloc[[self.query_rows[query], *self.gallery_rows[hits['item'].to_numpy()]]]


def _unknown(query, known):
    return ValueError(f'no query {query!r}: the {len(known)} here are {_few(known)}; or use {", ".join(CHOICES)}')


def _few(names, n=5): return ', '.join(map(str, names[:n])) + (', ...' if len(names) > n else '')


def _loader(learn, catalog):
    "Loader of the set to rank"
    if catalog is not None: return learn.loader(catalog)
    if len(learn.dls.loaders) < 2 or not len(learn.dls.valid_ds):
        raise ValueError('this learner has no validation set: pass catalog=..., rows of splits query and gallery')
    return learn.dls.valid
