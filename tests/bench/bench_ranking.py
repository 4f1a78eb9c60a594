"""Ranking a test set: seconds, CPU seconds and memory beside the input, from a distance matrix and from
features, side by side with other tools.

    python tests/bench/bench_ranking.py --size market --csv tests/bench/DATE-ranking-market.csv
"""

import warnings
import numpy as np
import torch
from magnifier.retrieval.distance import band_slices
from magnifier.retrieval.ranking import evaluate_distances, rank
from retrieval_bench import features, main, squared

warnings.filterwarnings('ignore')


def figures(ranking): return dict(R1=ranking.cmc(1), mAP=ranking.mAP)


def magnifier_matrix(size):
    feats, ids = features(size)
    dist = squared(*feats)
    return lambda: figures(evaluate_distances(dist, *ids))


def torchreid_matrix(size):
    from torchreid.reid.metrics.rank import IS_CYTHON_AVAI, evaluate_rank
    feats, ids = features(size)
    dist = squared(*feats)
    def run():
        cmc, mean_ap = evaluate_rank(dist, *ids, max_rank=50, use_cython=IS_CYTHON_AVAI)
        return dict(R1=float(cmc[0]), mAP=float(mean_ap))
    return run


def textbook_matrix(size):
    feats, (q_pids, g_pids, q_camids, g_camids) = features(size)
    dist = squared(*feats)
    def run():
        order, found, aps = np.argsort(dist, axis=1, kind='stable'), [], []
        for i, row in enumerate(order):
            row = row[(g_pids[row] != q_pids[i]) | (g_camids[row] != q_camids[i])]
            ranks = np.flatnonzero(g_pids[row] == q_pids[i]) + 1
            if len(ranks): found.append(ranks[0] == 1), aps.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        return dict(R1=float(np.mean(found)), mAP=float(np.mean(aps)))
    return run


def product(size):
    (q, g), _ = features(size)
    q, g = torch.from_numpy(q), torch.from_numpy(g)
    slices = band_slices(len(q), len(g))
    memory = torch.empty(slices[0].stop, len(g))
    def run():
        for rows in slices: torch.mm(q[rows], g.T, out=memory[:rows.stop - rows.start])
        return dict(R1=float('nan'), mAP=float('nan'))
    return run


def magnifier_features(size):
    feats, ids = features(size)
    return lambda: figures(rank(*feats, *ids))


def oml_features(size):
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics
    feats, ids = features(size)
    q, g = map(torch.from_numpy, feats)
    q_pids, g_pids, q_camids, g_camids = map(torch.from_numpy, ids)
    def run():  # a sequence is an identity in a camera: what the protocol removes
        _, found, true = batched_knn_qg(q, g, len(g), q_pids, g_pids, None, None, q_pids * 6 + q_camids,
                                        g_pids * 6 + g_camids)
        m = calc_retrieval_metrics(found, true, cmc_top_k=(1,), map_top_k=(len(g),), precision_top_k=(1,), reduce=False)
        counted = torch.tensor([len(t) > 0 for t in true])
        return dict(R1=float(m['cmc'][1][counted].float().mean()), mAP=float(m['map'][len(g)][counted].mean()))
    return run


if __name__ == '__main__':
    main(__doc__, [('matrix', 'magnifier', None, magnifier_matrix),
                   ('matrix', 'torchreid', 'torchreid', torchreid_matrix),
                   ('matrix', 'argsort loop', None, textbook_matrix),
                   ('features', 'product alone', None, product), ('features', 'magnifier', None, magnifier_features),
                   ('features', 'open-metric-learning', 'oml', oml_features)])
