"R1, mAP and other figures of a ranking as fastai metrics"
from typing import NamedTuple

import numpy as np
import torch
from fastai.vision.all import Metric, to_detach
from magnifier.data.block import ROLES
from magnifier.retrieval.ranking import evaluate_distances, rank
from magnifier.retrieval.rerank import rerank
from magnifier.train.distributed import gather_rows

__all__ = ['reid_metrics', 'R1', 'mAP']


class Sides(NamedTuple):
    "Positions of queries and gallery among n images, and their ids as `rank` takes them"
    query: torch.Tensor   # (n,) booleans
    gallery: torch.Tensor # (n,) booleans
    ids: list             # Four arrays: identities of queries, of gallery, cameras of queries, of gallery


def by_role(
    identity,  # (n,4) integers, tensor or array: class, pid, camid, role (a `TensorIdentity`)
) -> Sides | None:  # None where there is no query or no gallery
    "Queries and gallery by their role, not by their position, so a shuffled loader gives the same results"
    identity = torch.as_tensor(identity).cpu()
    query, gallery = (identity[:, 3] == ROLES.index(role) for role in ('query', 'gallery'))
    if not query.any() or not gallery.any(): return None
    return Sides(query, gallery, [np.asarray(identity[rows, column]) for column in (1, 2) for rows in (query, gallery)])


def rank_by_role(
    embeddings: torch.Tensor,  # (n,d) features of queries and gallery together, in any order
    identity: torch.Tensor,  # (n,4) integers: class, pid, camid, role (a `TensorIdentity`)
    **kwargs,  # Passed to `magnifier.retrieval.ranking.rank`
):  # Ranking, or None where there is no query or no gallery
    "Ranks the gallery for each query, both selected by their role"
    sides = by_role(identity)
    return None if sides is None else rank(embeddings[sides.query], embeddings[sides.gallery], *sides.ids, **kwargs)


def rank_embeddings(
    embeddings: torch.Tensor,  # (n,d) features of queries and gallery together, in any order
    identity: torch.Tensor,  # (n,4) integers: class, pid, camid, role
    again: dict | None = None,  # Arguments of `rerank` for a second ranking; None for none
    **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
) -> dict:  # 'plain' and, if asked for, 're-ranked' -> Ranking; empty where there is no query or no gallery
    "Ranks by cosine distance, and re-ranks"
    plain = rank_by_role(embeddings, identity, **kwargs)
    if plain is None or again is None: return {} if plain is None else {'plain': plain}
    query, gallery, ids = by_role(identity)
    return {
        'plain': plain,
        're-ranked': evaluate_distances(rerank(embeddings[query], embeddings[gallery], **again), *ids, **kwargs),
    }


class _Embeddings:
    "Embeddings and identities of a validation pass, ranked once for all metrics"
    def __init__(self, **kwargs): self.kwargs = kwargs; self.reset()

    def reset(self): self.parts, self.ranking = [], None

    def accumulate(self, learn):
        keep = lambda x: to_detach(x, gather=False)
        self.n = learn.dl.n if hasattr(learn.dl, 'n_padded') else None
        self.parts.append((keep(learn.pred.embedding).float(), keep(learn.yb[-1])))

    def compute(self):
        if self.ranking is None and self.parts:
            self.ranking, self.parts = (
                rank_by_role(*(self._whole(torch.cat(parts)) for parts in zip(*self.parts)), **self.kwargs),
                [],
            )
        return self.ranking

    def _whole(self, x):
        # fastai gives each rank a piece of the data in its order, the last one filled up: put together and cut, ties
        # are broken as in one process
        return x if self.n is None else gather_rows(x)[:self.n]

    def __getstate__(self):
        return {**self.__dict__, 'parts': [], 'ranking': None}  # an exported learner carries no gallery


class ReIDMetric(Metric):
    "One figure of a ranking; only the first of a group collects embeddings, so several metrics need one ranking"
    def __init__(self,
        source: _Embeddings,  # What gathers, shared by a group
        key: str,  # Column: 'mAP', 'mINP' or 'R' and a rank, as 'R1'
        lead: bool = True,  # Whether this one resets and gathers
    ): self.source, self.key, self.lead = source, key, lead

    def reset(self):
        "Forget the last pass"
        if self.lead: self.source.reset()

    def accumulate(self, learn):
        "Keep a batch's embeddings"
        if self.lead: self.source.accumulate(learn)

    @property
    def value(self):
        "The value in [0,1]; None if nothing was ranked (a prediction, a loader without queries)"
        ranking = self.source.compute()
        if ranking is None: return None
        return float(ranking.cmc(int(self.key[1:])) if self.key[1:].isdigit() else getattr(ranking, self.key))

    @property
    def name(self):
        "Column's name"
        return self.key


def reid_metrics(
    keys=('R1', 'mAP'),  # Columns: 'mAP', 'mINP', 'R1', 'R5', 'R10', or R and any rank
    **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
) -> list:  # One metric a key, sharing one ranking
    "Metrics for a Learner that SaveModelCallback and EarlyStoppingCallback can monitor by name"
    keys = [keys] if isinstance(keys, str) else list(keys)
    wrong = [k for k in keys if k not in ('mAP', 'mINP') and not (k[:1] == 'R' and k[1:].isdigit() and int(k[1:]))]
    if wrong: raise ValueError(f'unknown metric {wrong[0]!r}: use mAP, mINP, or R and a rank from 1, as R1')
    source = _Embeddings(**kwargs)
    return [ReIDMetric(source, key, lead=i == 0) for i, key in enumerate(keys)]


def R1(
    **kwargs,  # Passed to `rank`
) -> Metric:  # Share of queries whose first hit is right
    "Rank-1 as a metric of its own"
    return reid_metrics('R1', **kwargs)[0]


def mAP(
    **kwargs,  # Passed to `rank`
) -> Metric:  # Mean average precision
    "mAP as a metric of its own"
    return reid_metrics('mAP', **kwargs)[0]
