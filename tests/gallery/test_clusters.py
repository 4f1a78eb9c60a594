"Clusters of planted people, and the Jaccard neighbourhoods they come from"
import sys

import numpy as np
import pytest
from magnifier.gallery.people import identity_clusters, jaccard_neighbours
from magnifier.retrieval.rerank import rerank

pytest.importorskip('sklearn')


def planted(n_ids, each, noise, seed=0, d=32):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n_ids), each)
    return rng.normal(size=(n_ids, d))[ids] + noise*rng.normal(size=(len(ids), d)), ids


def test_neighbourhoods_are_those_of_reranking():
    x, _ = planted(6, 10, 1.)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = jaccard_neighbours(x, 10, 5).toarray()
    np.testing.assert_allclose(near, near.T, atol=1e-6)
    np.testing.assert_allclose(near.diagonal(), 1, atol=1e-6)
    wanted = 1 - rerank(x[:7], x[7:], 10, 5, 0)  # the same images as queries and gallery
    np.testing.assert_allclose(near[:7, 7:], wanted, atol=1e-6)


@pytest.mark.parametrize('noise, least', [(.3, 1.), (.8, .95)])
def test_planted_people(noise, least):
    from sklearn.metrics import adjusted_rand_score
    x, ids = planted(20, 12, noise)
    order = np.random.default_rng(1).permutation(len(x))
    labels = identity_clusters(x[order])
    assert adjusted_rand_score(ids[order], labels) >= least
    counts = np.bincount(labels[labels >= 0])
    assert (np.diff(counts) <= 0).all()


def test_strangers_stay_alone():
    x, _ = planted(5, 14, .2)
    labels = identity_clusters(np.concatenate([x, 3*np.random.default_rng(5).normal(size=(8, 32))]))
    assert len(set(labels[:70])) == 5
    assert (labels[70:] == -1).mean() > .5


@pytest.mark.parametrize('n', [1, 2, 3, 5, 12])
def test_few_images(n):
    labels = identity_clusters(np.random.default_rng(0).normal(size=(n, 8)))
    assert labels.shape == (n,)
    assert labels.min() >= -1
    assert (identity_clusters(np.eye(4)[:1], min_images=1) == 0).all()
    assert (identity_clusters(np.eye(4)[:1]) == -1).all()


@pytest.mark.parametrize('kwargs, message', [
    (dict(eps=0), 'eps=0'),
    (dict(eps=1.2), 'eps=1.2'),
    (dict(min_images=0), 'min_images=0'),
    (dict(k1=0), 'k1=0')])
def test_settings_that_mean_nothing(kwargs, message):
    with pytest.raises(ValueError, match=message): identity_clusters(np.eye(8), **kwargs)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.cluster', None)
    with pytest.raises(ImportError, match='magnifier-reid.gallery'): identity_clusters(np.eye(3))
