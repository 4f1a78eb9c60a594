"""k-reciprocal re-ranking: seconds, CPU seconds and memory beside the input, from distances and from features,
side by side with other tools.

    python tests/bench/bench_rerank.py --size market --csv tests/bench/DATE-rerank-market.csv
"""

import warnings
import numpy as np
import torch
from magnifier.retrieval.ranking import evaluate_distances
from magnifier.retrieval.rerank import rerank, rerank_distances
from retrieval_bench import features, main, squared

warnings.filterwarnings('ignore')


def matrices(size):
    (q, g), ids = features(size)
    return (squared(q, g), squared(q, q), squared(g, g)), ids


class Run:
    "A call whose result is evaluated after the clock has stopped"

    def __init__(self, fn, ids): self.fn, self.ids, self.result = fn, ids, None
    def __call__(self): self.result = self.fn(); return {}

    def figures(self):
        if self.ids is None: return dict(R1=float('nan'), mAP=float('nan'))
        ranking = evaluate_distances(self.result, *self.ids)
        return dict(R1=ranking.cmc(1), mAP=ranking.mAP)


def magnifier_distances(size):
    dist, ids = matrices(size)
    return Run(lambda: rerank_distances(*dist), ids)


def torchreid_distances(size):
    from torchreid.reid.utils.rerank import re_ranking
    dist, ids = matrices(size)
    for d in dist: np.sqrt(d, out=d)  # it squares what it is given
    return Run(lambda: re_ranking(*dist), ids)


def product(size):
    (q, g), ids = features(size)
    x = torch.cat([torch.from_numpy(q), torch.from_numpy(g)])
    memory = torch.empty(1024, len(x))
    def run():
        for rows in torch.arange(len(x)).split(1024): torch.mm(x[rows[0]:rows[-1] + 1], x.T, out=memory[:len(rows)])
    return Run(run, None)


def magnifier_features(size):
    feats, ids = features(size)
    return Run(lambda: rerank(*feats), ids)


def magnifier_sparse(size):
    feats, ids = features(size)
    return Run(lambda: rerank(*feats, return_sparse=True), ids)


if __name__ == '__main__':
    main(__doc__, [('distances', 'magnifier', None, magnifier_distances),
                   ('distances', 'torchreid', 'torchreid', torchreid_distances),
                   ('features', 'product alone', None, product), ('features', 'magnifier', None, magnifier_features),
                   ('features', 'magnifier, sparse result', None, magnifier_sparse)])
