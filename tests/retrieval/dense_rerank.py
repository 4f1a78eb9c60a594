"""k-reciprocal re-ranking as it was published, written plainly: dense, float64, a loop over images. The oracle
of the sparse form"""

import numpy as np


def all_pairs(q_g, q_q, g_g):
    "The n x n matrix, each column divided by its maximum, then transposed"
    d = np.block([[q_q, q_g], [q_g.T, g_g]]).astype(np.float64)
    largest = d.max(0)
    return (d / np.where(largest > 0, largest, 1)).T


def reciprocal_set(order, i, k):
    "Those of i's first k + 1 whose own first k + 1 hold i"
    return [j for j in order[i, :k + 1] if i in order[j, :k + 1]]


def expanded_set(order, i, k1):
    "R*(i)"
    own = reciprocal_set(order, i, k1)
    result = set(own)
    for candidate in own:
        theirs = reciprocal_set(order, candidate, round(k1 / 2))
        if len(set(theirs) & set(own)) > 2 / 3 * len(theirs): result |= set(theirs)
    return sorted(result)


def dense_rerank(q_g, q_q, g_g, k1=20, k2=6, lambda_value=0.3):
    "Re-ranked distances, and the expanded neighbour set of each image"
    q, n = len(q_g), len(q_g) + len(g_g)
    d = all_pairs(q_g, q_q, g_g)
    order = np.argsort(d, axis=1, kind='stable')
    v, sets = np.zeros((n, n)), []
    for i in range(n):
        sets.append(expanded_set(order, i, k1))
        weights = np.exp(-d[i, sets[i]])
        if sets[i]: v[i, sets[i]] = weights / weights.sum()
    if k2 > 1: v = np.stack([v[order[i, :k2]].mean(0) for i in range(n)])
    shared = np.array([[np.minimum(v[i], v[j]).sum() for j in range(q, n)] for i in range(q)])
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_value) * jaccard + lambda_value * d[:q, q:], sets


def squared(x, y):
    "Squared Euclidean distances in float64"
    return np.maximum(((x[:, None].astype(np.float64) - y[None]) ** 2).sum(2), 0)
