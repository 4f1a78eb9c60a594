"The protocol as an obvious loop over plain Python lists: what every fast answer is compared with"

import math


def slow_ranking(dist, q_pids, g_pids, q_camids, g_camids, ap='step', no_match='skip', separate_cameras=False):
    "Ranks of the true matches, AP and INP of each query, None for one that is skipped"
    queries = []
    for q, row in enumerate(dist):
        left = []
        for g, d in enumerate(row):
            junk = g_pids[g] == -1
            own_camera = g_camids[g] == q_camids[q]
            if junk or (own_camera and (separate_cameras or g_pids[g] == q_pids[q])): continue
            left.append((d, g))
        left.sort()  # of equal distances the earlier in the gallery first
        ranks = [r for r, (_, g) in enumerate(left, 1) if g_pids[g] == q_pids[q]]
        queries.append(dict(ranks=ranks, order=[g for _, g in left], **figures(ranks, ap, no_match)))
    return queries


def figures(ranks, ap, no_match):
    "AP and INP of one query from the ranks of its matches"
    if not ranks: return dict(ap=0., inp=0.) if no_match == 'zero' else dict(ap=None, inp=None)
    total = 0
    for i, r in enumerate(ranks, 1):
        before = 1. if r == 1 else (i - 1) / (r - 1)
        total += i / r if ap == 'step' else (before + i / r) / 2
    return dict(ap=total / len(ranks), inp=len(ranks) / ranks[-1])


def slow_summary(queries, r):
    "CMC@r, mAP and mINP over the queries that count; NaN where none does"
    counted = [q for q in queries if q['ap'] is not None]
    if not counted: return math.nan, math.nan, math.nan
    n = len(counted)
    return (sum(bool(q['ranks']) and q['ranks'][0] <= r for q in counted) / n, sum(q['ap'] for q in counted) / n,
            sum(q['inp'] for q in counted) / n)
