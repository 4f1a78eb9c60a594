"The same results on a GPU as on a CPU"

import numpy as np
import pytest
import torch
from magnifier.retrieval.distance import cosine_distances, euclidean_distances, normalise
from magnifier.retrieval.expansion import alpha_query_expansion, camera_centre
from magnifier.retrieval.ranking import cmc_single_shot, evaluate_distances, rank
from magnifier.retrieval.region_distance import region_distance
from magnifier.retrieval.rerank import rerank, rerank_distances
from magnifier.retrieval.verification import compare, verification_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


def people(q=60, g=2500, d=64, ids=100, seed=0):
    "Clustered features and ids; more images than a tile is wide"
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, ids, q + g), rng.integers(0, 4, q + g)
    feats = torch.from_numpy(rng.normal(size=(ids, d))[pids] + 0.9 * rng.normal(size=(q + g, d))).float()
    return (feats[:q], feats[q:]), (pids[:q], pids[q:], camids[:q], camids[q:])


def cuda(*tensors):
    "On the GPU"
    return [t.cuda() for t in tensors]


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_ranking(metric, dtype):
    (q, g), ids = people()
    q, g = q.to(dtype), g.to(dtype)
    with torch.autocast('cuda'): there = rank(*cuda(q, g), *ids, metric=metric)
    here = rank(q, g, *ids, metric=metric)
    assert there.mAP == pytest.approx(here.mAP, abs=1e-4)
    assert there.cmc(1) == pytest.approx(here.cmc(1), abs=0.02)
    assert there.hits(3)['item'].tolist()[:3] == here.hits(3)['item'].tolist()[:3]


def test_a_matrix_is_counted_exactly():
    (q, g), ids = people()
    dist = (cosine_distances(q, g) * 50).round()  # many ties
    there, here = evaluate_distances(dist.cuda(), *ids), evaluate_distances(dist, *ids)
    assert there.matches.ranks.tolist() == here.matches.ranks.tolist()
    assert there.matches.items.tolist() == here.matches.items.tolist()
    assert cmc_single_shot(dist.cuda(), *ids).tolist() == cmc_single_shot(dist, *ids).tolist()


def test_reranking_gives_the_same():
    (q, g), ids = people()
    q, g = q.double(), g.double()  # near ties do not depend on the device
    here, there = rerank(q, g), rerank(*cuda(q, g))
    assert there.is_cuda
    assert (there.cpu() - here).abs().max() < 1e-5
    dist = (euclidean_distances(q, g, squared=True), euclidean_distances(q, q, squared=True),
            euclidean_distances(g, g, squared=True))
    assert (rerank_distances(*cuda(*dist)).cpu() - here).abs().max() < 1e-5
    sparse = rerank(*cuda(q.float(), g.float()), return_sparse=True)
    assert evaluate_distances(sparse, *ids).mAP == pytest.approx(evaluate_distances(here, *ids).mAP, abs=1e-3)


def test_all_else():
    (q, g), ids = people()
    for call in (normalise, lambda x: alpha_query_expansion(x, x), lambda x: camera_centre(x, ids[3])):
        assert (call(g.cuda()).cpu() - call(g)).abs().max() < 1e-4
    seen = torch.rand(2560, 8, generator=torch.Generator().manual_seed(0)) < 0.7
    regions = [f.view(-1, 8, 8) for f in (q, g)]
    there = region_distance(*cuda(*regions, seen[:60], seen[60:]))
    assert (there.cpu() - region_distance(*regions, seen[:60], seen[60:])).abs().max() < 1e-5
    assert (verification_pairs(*cuda(q, g), *ids).equal_error()[0]
            == pytest.approx(verification_pairs(q, g, *ids).equal_error()[0], abs=1e-4))
    assert compare(q[0].cuda(), q[0].cuda(), 0.1)
