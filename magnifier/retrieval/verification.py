"""Verification: are these two the same person? False accepts and false rejects of a threshold, and the answer for one
pair"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from magnifier.checks import as_count, choose, refuse
from magnifier.retrieval.distance import METRICS, FeatureDistances, as_distances, to_numpy
from magnifier.retrieval.features import as_tensor, check_pair, unit, working_dtype
from magnifier.retrieval.ranking import JUNK, Labels

__all__ = ['verification_pairs', 'roc', 'verification_table', 'SimilarityThreshold', 'similarity_threshold',
           'Comparison', 'compare']


@dataclass(frozen=True, eq=False)
class VerificationPairs:
    "Distances of the genuine and the impostor pairs of a verification test, each in ascending order"
    genuine: np.ndarray  # (m,) distances of pairs of one identity
    impostor: np.ndarray  # (n,) distances of pairs of two identities, all of them or a random part
    metric: str = 'cosine'  # Of the distances: 'cosine', 'euclidean' or 'sqeuclidean'

    def __post_init__(self):
        for name in ('genuine', 'impostor'):
            d = np.sort(to_numpy(as_tensor(getattr(self, name), name)).ravel())
            refuse({
                f'{name}: no pairs. A verification test needs pairs of one identity and pairs of two': not len(d),
                f'{name}: distances hold NaN or infinite values': not np.isfinite(d).all(),
            })
            d.setflags(write=False)
            object.__setattr__(self, name, d)

    def false_accept(self,
        threshold,  # Distance or distances; a pair is accepted where its own is this or less
    ):  # Share of impostor pairs accepted, 0 to 1
        "False-accept rate at a threshold"
        return np.searchsorted(self.impostor, threshold, side='right') / len(self.impostor)

    def false_reject(self,
        threshold,  # Distance or distances; a pair is accepted where its own is this or less
    ):  # Share of genuine pairs not accepted, 0 to 1
        "False-reject rate at a threshold"
        return (len(self.genuine) - np.searchsorted(self.genuine, threshold, side='right')) / len(self.genuine)

    def threshold(self,
        false_accept: float,  # Wanted rate, 0 and more but less than 1: .01 is one in a hundred
    ) -> float:  # The largest DISTANCE whose false-accept rate is not above it
        """The largest distance at which the false-accept rate is not above the given one. With fewer than 1 / rate
        impostor pairs, it accepts none of them. A ValueError for a rate of 1 or more"""
        refused = self.impostor[self.allowed(false_accept)]
        return float(np.nextafter(refused, -np.inf, dtype=self.impostor.dtype))

    def allowed(self,
        false_accept: float,  # Wanted rate, as in `threshold`
    ) -> int:  # How many impostor pairs may be accepted; never all
        "The number of impostor pairs that the rate allows"
        if not 0 <= false_accept < 1:
            raise ValueError(f'false_accept={false_accept}: a share of 0 or more and less than 1 wanted; '
                             'one in a hundred is .01')
        n = len(self.impostor)
        return min(int(np.floor(false_accept * n + 1e-9)), n - 1)

    def equal_error(self) -> tuple[float, float]:  # (rate, threshold)
        "Equal error rate: the mean of both rates at the distance, among those of all pairs, where they differ least"
        cuts = np.unique(np.concatenate([self.genuine, self.impostor]))
        gap = np.abs(self.false_accept(cuts) - self.false_reject(cuts))
        cut = cuts[gap.argmin()]
        return float((self.false_accept(cut) + self.false_reject(cut)) / 2), float(cut)


def verification_pairs(
    query_feats,  # (q, d) features, array or tensor; or (q, g) distances with `gallery_feats=None`
    gallery_feats,  # (g, d) features of the same model, on the same device
    q_pids,  # (q,) identities of the queries, integers
    g_pids,  # (g,) identities of the gallery; pairs with -1, junk, are left out
    q_camids,  # (q,) cameras of the queries, integers
    g_camids,  # (g,) cameras of the gallery
    *,
    metric: str = 'cosine',  # As in `rank`: 'cosine', 'euclidean' or 'sqeuclidean'; also what given distances are
    max_impostors: int = 10_000_000,  # About how many impostor pairs to keep; beyond it a random part of them
    seed: int = 0,  # Of that random part
) -> VerificationPairs:  # Genuine pairs of different cameras, and impostor pairs of any cameras
    """All pairs of a query and a gallery image as a verification test. A query's own identity in its own camera is left
    out, as in `rank`; ValueError if one kind of pair is missing"""
    choose(metric, METRICS, 'metric')
    if gallery_feats is None: distances = as_distances(query_feats)
    else: distances = FeatureDistances(*check_pair(query_feats, gallery_feats), metric, torch.float32)
    max_impostors = as_count(max_impostors, 'max_impostors')
    labels = Labels(q_pids, g_pids, q_camids, g_camids, distances.shape)
    share = min(1., max_impostors / np.prod(distances.shape))
    rng = np.random.default_rng(seed)
    genuine = []
    impostor = []
    for rows, band in distances.bands():
        for query, row in enumerate(to_numpy(band), rows.start):
            if labels.q_pids[query] == JUNK: continue
            genuine.append(row[labels.split(query)[0]])
            other = (labels.g_pids != labels.q_pids[query]) & (labels.g_pids != JUNK)
            if share < 1: other &= rng.random(len(row)) < share
            impostor.append(row[other])
    none = [np.empty(0, np.float32)]
    return VerificationPairs(np.concatenate(genuine or none), np.concatenate(impostor or none), metric)


def rates(
    pairs: VerificationPairs,  # Distances of pairs
    cuts: np.ndarray,  # Thresholds
    index=None,  # Names of the rows
) -> pd.DataFrame:  # One row a threshold
    "Both error rates at some thresholds"
    accept, reject = pairs.false_accept(cuts), pairs.false_reject(cuts)
    columns = dict(threshold=cuts, false_accept=accept, false_reject=reject, true_accept=1 - reject)
    return pd.DataFrame(columns, index=index)


def roc(
    genuine,  # (m,) distances of pairs of one identity
    impostor,  # (n,) distances of pairs of two identities
    *,
    points: int = 1000,  # At most about so many rows; the rates in each are exact all the same
) -> pd.DataFrame:  # `threshold` ascending, `false_accept`, `false_reject`, `true_accept`
    """Receiver operating characteristic: the rates at thresholds that are distances of pairs, evenly spaced among the
    genuine pairs and by powers among the nearest impostor pairs. ValueError if one kind of pair is missing"""
    if points < 2: raise ValueError(f'points={points}: a curve needs at least 2')
    pairs = VerificationPairs(genuine, impostor)
    evenly = np.linspace(0, len(pairs.genuine) - 1, points // 2 + 1).round().astype(int)
    by_powers = np.geomspace(1, len(pairs.impostor), points // 2 + 1).round().astype(int) - 1
    cuts = np.unique(np.concatenate([pairs.genuine[evenly], pairs.impostor[by_powers]]))
    return rates(pairs, cuts)


def verification_table(
    genuine,  # (m,) distances of pairs of one identity
    impostor,  # (n,) distances of pairs of two identities
    *,
    false_accept=(1e-4, 1e-3, 1e-2, 1e-1),  # Wanted false-accept rates, one row each
) -> pd.DataFrame:  # Rows 'EER' and 'FAR 0.0001', ...: `threshold`, `false_accept`, `false_reject`, `true_accept`
    """The equal error rate, and the false-reject rate at each given false-accept rate, with their thresholds. The
    reached false-accept rate is never above the given one; ValueError if one kind of pair is missing"""
    pairs = VerificationPairs(genuine, impostor)
    cuts = {'EER': pairs.equal_error()[1], **{f'FAR {far:g}': pairs.threshold(far) for far in false_accept}}
    return rates(pairs, np.array(list(cuts.values())), index=list(cuts))


@dataclass(frozen=True)
class SimilarityThreshold:
    "The cosine similarity from which two images count as one person, and its error rates"
    similarity: float  # The threshold, -1 to 1: pairs at least this alike are accepted
    false_accept: float  # Share of the pairs of two people that it lets in, 0 to 1
    false_reject: float  # Share of the pairs of one person that it misses, 0 to 1

    def __str__(self):
        return (f'similarity {self.similarity:.3f} or more: lets in {self.false_accept:.2%} of the pairs of two people,'
                f' misses {self.false_reject:.2%} of the pairs of one')


def similarity_threshold(
    pairs: VerificationPairs,  # Of cosine distances, from `verification_pairs` on data like yours
    *,
    far: float = .01,  # False-accept rate: the share of pairs of two people that may be let in, 0 or more, under 1
) -> SimilarityThreshold:  # `.similarity`, as galleries mean it, `.false_accept` and `.false_reject`
    """A threshold with at most the given false-accept rate: halfway between the most similar impostor pair
    that must be rejected and the next more similar pair. ValueError for pairs of another metric than cosine, and for a
    rate out of range"""
    if pairs.metric != 'cosine':
        raise ValueError(f"pairs of metric {pairs.metric!r} have no similarity: make them with metric='cosine', or use "
                         '`pairs.threshold`, which is a distance')
    genuine = 1 - pairs.genuine.astype(float)
    impostor = 1 - pairs.impostor.astype(float)
    kept_out = impostor[pairs.allowed(far)]
    more_alike = min(s[s > kept_out].min(initial=np.inf) for s in (genuine, impostor))
    similarity = np.nextafter(kept_out, 2)
    if np.isfinite(more_alike): similarity = max(similarity, (kept_out + more_alike) / 2)
    false_accept = float((impostor >= similarity).mean())
    false_reject = float((genuine < similarity).mean())
    return SimilarityThreshold(float(similarity), false_accept, false_reject)


@dataclass(frozen=True)
class Comparison:
    "The answer of `compare`; for one pair it can be used as a boolean"
    same: bool | np.ndarray  # Whether the similarity reaches the threshold; (n,) for n pairs
    similarity: float | np.ndarray  # Cosine similarity, -1 to 1; (n,) for n pairs
    threshold: float  # The similarity that it was compared with

    def __bool__(self): return bool(self.same)

    def __str__(self):
        if np.ndim(self.same):
            return f'{np.sum(self.same)} of {len(self.same)} pairs reach a similarity of {self.threshold:.3f}'
        verdict, word = ('the same person', 'reaches') if self.same else ('not the same person', 'is below')
        return f'{verdict}: similarity {self.similarity:.3f} {word} the threshold of {self.threshold:.3f}'


def compare(
    a,  # (d,) embedding of one image, or (n, d) of several
    b,  # (d,) embedding of the other, or (n, d), pair by pair
    threshold: float | SimilarityThreshold,  # Smallest SIMILARITY of one person, -1 to 1: of `similarity_threshold`
) -> Comparison:  # `.same`, `.similarity`, `.threshold`
    """Are these two the same person? Thresholds depend on model and cameras, so there is no default. ValueError for
    shapes that differ, zero, NaN or infinite embeddings"""
    if isinstance(threshold, SimilarityThreshold): threshold = threshold.similarity
    a, b = as_tensor(a, 'a'), as_tensor(b, 'b')
    refuse({
        f'threshold={threshold}: a cosine similarity from -1 to 1 wanted; `similarity_threshold` gives it for a wanted '
        'false-accept rate': not -1 <= threshold <= 1.001,  # a rounding above 1 accepts nobody
        f'compare: two embeddings (d,) or two sets (n, d) wanted, got shapes {tuple(a.shape)} and {tuple(b.shape)}':
            a.shape != b.shape or a.ndim not in (1, 2) or 0 in a.shape,
    })
    dtype = working_dtype(a, b)
    x = unit(torch.atleast_2d(a), 'a', dtype)
    y = unit(torch.atleast_2d(b), 'b', dtype)
    similarity = (x * y).sum(1).cpu().numpy()
    if a.ndim == 1: similarity = float(similarity[0])
    return Comparison(similarity >= threshold, similarity, threshold)
