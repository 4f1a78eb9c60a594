"A set that was embedded and ranked once, and what can be asked of it: queries by name, the hits of each"
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from magnifier.data.block import ROLES
from magnifier.train.parts import embed_parts, rank_parts
from magnifier.retrieval.ranking import Ranking
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import rank_by_role

__all__ = ['Searched', 'CHOICES']

CHOICES = ('random', 'worst', 'best')
NOTHING_TO_RANK = 'nothing to rank: the catalog needs rows of split "query" and of split "gallery"'


@dataclass(frozen=True, eq=False)
class Searched:
    "Queries and gallery of a set under one model; embeddings are held, pictures never"
    items: pd.DataFrame     # The set's rows, in the order of the embeddings
    embeddings: torch.Tensor # (n,d) on the CPU; L2-normalised, but for regions' side by side
    identity: np.ndarray    # (n,4) class, pid, camid, role
    ranking: Ranking        # Of the queries against the gallery

    @classmethod
    def of(cls,
        learn:ReIDLearner, # The model
        catalog=None,      # Catalog with queries and gallery; None for the validation set
        regions=None,      # Rank by these regions alone, names or indices; None by the whole embedding
        **kwargs           # Passed to `rank`
    ):
        "Embeds and ranks a set; a ValueError where it has no queries or no gallery"
        dl = _loader(learn, catalog)
        items = dl.dataset.items
        if regions is None: embeddings, identity = learn.embed(dl, with_identity=True)
        else:  # the same shoes, whatever the coat: distances over the chosen regions that both pictures show
            parts = embed_parts(learn, dl, regions)
            embeddings, identity = parts.embeddings.flatten(1), parts.identity
        if (identity[:, 1:3].numpy() != items[['pid', 'camid']].to_numpy()).any():
            raise ValueError('this loader does not give its images in the order of its rows: pass the catalog itself, or a loader that does not shuffle')
        ranking = rank_by_role(embeddings, identity, **kwargs) if regions is None else rank_parts(parts, **kwargs).get('regions')
        if ranking is None: raise ValueError(NOTHING_TO_RANK)
        return cls(items, embeddings, identity.numpy(), ranking)

    @property
    def query_rows(self) -> np.ndarray: return np.flatnonzero(self.identity[:, 3] == ROLES.index('query'))

    @property
    def gallery_rows(self) -> np.ndarray: return np.flatnonzero(self.identity[:, 3] == ROLES.index('gallery'))

    def choose(self,
        queries=None, # None or 'random', 'worst', 'best'; or identities (ints) and file names (strings), one or several
        n:int=4,      # How many; of several named in turns, and at least one of each
        seed:int=0,   # Seed of the random choice
    ) -> np.ndarray:  # Indices of queries, as the ranking counts them
        "Queries by name or by how well they did; a ValueError for one that is not there"
        if n < 1: raise ValueError(f'n={n}: show at least one query')
        if queries is None or isinstance(queries, str) and queries in CHOICES: return self._by_success(queries or 'random', n, seed)
        wanted = [queries] if isinstance(queries, (str, Path, int, np.integer)) else list(queries)
        if not wanted: raise ValueError(f'no queries named: give identities, file names, or one of {", ".join(CHOICES)}')
        found = [self._named(q, n) for q in wanted]
        turns = dict.fromkeys(at[i] for i in range(n) for at in found if i < len(at))  # the first of each, then the second of each
        return np.array(list(turns))[:max(n, len(wanted))]

    def _by_success(self, how, n, seed):
        found = np.flatnonzero(self.ranking.n_matches > 0)
        if not len(found): found = np.arange(len(self.query_rows))  # nothing can be right here, which is worth seeing too
        if how == 'random': return np.random.default_rng(seed).permutation(found)[:n]
        ap = np.nan_to_num(self.ranking.ap[found])
        return found[np.argsort(ap if how == 'worst' else -ap, kind='stable')[:n]]

    def _named(self, query, n):
        if isinstance(query, (int, np.integer)):
            at = np.flatnonzero(self.identity[self.query_rows, 1] == query)[:n]
            known = np.unique(self.identity[self.query_rows, 1])
        else:
            paths = [str(p) for p in self.items['path'].iloc[self.query_rows]]
            at = np.flatnonzero([p == str(query) or p.endswith('/' + str(query)) or Path(p).stem == str(query) for p in paths])
            known = [Path(p).name for p in paths]
        if not len(at):
            few = ', '.join(map(str, known[:5])) + (', ...' if len(known) > 5 else '')
            raise ValueError(f'no query {query!r}: the {len(known)} here are {few}; or use one of {", ".join(CHOICES)}')
        return at

    def rows_of(self,
        query:int, # Index of a query
        hits:pd.DataFrame, # Its hits, of `Ranking.hits`
    ) -> pd.DataFrame:  # Catalog rows: the query's, then its hits'
        "What to load to show them"
        return self.items.iloc[[self.query_rows[query], *self.gallery_rows[hits['item'].to_numpy()]]]


def _loader(learn, catalog):
    "Loader of the set to search; it must know its rows, so that pictures can be fetched again"
    if catalog is not None: return learn.loader(catalog)
    if len(learn.dls.loaders) < 2 or not len(learn.dls.valid_ds):
        raise ValueError('this learner carries no validation set: name one with catalog=..., rows of splits query and gallery')
    return learn.dls.valid
