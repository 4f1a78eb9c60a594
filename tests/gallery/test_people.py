"Tracklets joined to people: against a slow loop, and against what cannot be; and clusters of planted people"
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from magnifier.gallery.people import (
    certainty, half_distances, identity_clusters, impossible_pairs, jaccard_neighbours, join_tracklets,
    tracklet_distances, unlabelled_threshold)
from magnifier.retrieval.rerank import rerank


def slow_join(distances, never, threshold):
    "Joins the nearest pair of groups that may be joined, until none is near enough"
    groups = [[i] for i in range(len(distances))]
    while True:
        pairs = [(np.mean([distances[i][j] for i in a for j in b]), x, y) for x, a in enumerate(groups)
                 for y, b in enumerate(groups)
                 if x < y and not any(never[i][j] for i in a for j in b)]
        if not pairs or min(pairs)[0] > threshold: return {frozenset(g) for g in groups}
        _, x, y = min(pairs)
        groups[x] += groups.pop(y)


def as_sets(people): return {frozenset(np.flatnonzero(people == p).tolist()) for p in set(people.tolist())}


def drawn(seed, t):
    rng = np.random.default_rng(seed)
    d = rng.random((t, t))
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0)
    never = rng.random((t, t)) < .3
    never = never | never.T
    np.fill_diagonal(never, False)
    return d, never


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(.1, .9))
@settings(max_examples=60, deadline=None)
def test_as_the_slow_loop(seed, t, threshold):
    distances, never = drawn(seed, t)
    assert as_sets(join_tracklets(distances, never, threshold)) == slow_join(distances, never, threshold)


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_the_impossible_never_happens(seed, t):
    distances, never = drawn(seed, t)
    people = join_tracklets(distances, never, 1.)
    assert not ((people[:, None] == people) & never).any()


def test_known_people_stay_and_new_tracklets_join_them():
    line = np.array([0., .1, 1., 1.1, 1.2, 3.])
    distances = np.abs(line[:, None] - line)
    never = np.zeros((6, 6), bool)
    people = join_tracklets(distances, never, .3, known=[4, -1, 2, -1, 2, -1])
    assert people.tolist() == [4, 4, 2, 2, 2, 5]


def test_two_known_people_are_never_joined():
    assert join_tracklets(np.zeros((2, 2)), np.zeros((2, 2), bool), 1., known=[0, 1]).tolist() == [0, 1]


def test_people_are_numbered_by_their_first_tracklet():
    distances = 1 - np.eye(3)
    assert join_tracklets(distances, np.zeros((3, 3), bool), .5).tolist() == [0, 1, 2]


@pytest.mark.parametrize('t', [0, 1])
def test_few_tracklets(t):
    assert join_tracklets(np.zeros((t, t)), np.zeros((t, t), bool), .5).tolist() == list(range(t))


def test_one_camera_at_one_time_is_two_people():
    never = impossible_pairs([1, 1, 1, 2], [0, 5, 20, 5], [10, 15, 30, 15])
    assert never.tolist() == [[False, True, False, False], [True, False, False, False], [False]*4, [False]*4]


def test_travel_takes_time_in_either_order():
    never = impossible_pairs([1, 2, 2], [0, 12, 40], [10, 20, 50], travel={(2, 1): 5})
    assert never[0].tolist() == [False, True, False]
    assert (never == never.T).all()


def test_travel_back_in_time_is_refused():
    with pytest.raises(ValueError, match='-1 seconds'): impossible_pairs([1, 2], [0, 0], [1, 1], travel={(1, 2): -1})


def test_a_threshold_without_labels_lies_among_the_strangers():
    distances = np.full((12, 12), .2)
    never = np.zeros((12, 12), bool)
    never[:6, 6:] = never[6:, :6] = True
    strangers = np.linspace(.5, .9, 36).reshape(6, 6)
    distances[:6, 6:] = strangers
    distances[6:, :6] = strangers.T
    assert unlabelled_threshold(distances, never, far=.1) == pytest.approx(np.quantile(strangers, .1))
    same = np.linspace(0, .3, 11)
    halfway = (np.quantile(strangers, .1) + .27) / 2
    assert unlabelled_threshold(distances, never, same, far=.1) == pytest.approx(halfway)
    with pytest.raises(ValueError, match='0 pairs of tracklets'): unlabelled_threshold(distances, np.zeros_like(never))


def unit(vectors): return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize('centre', [True, False])
def test_distances_of_halves_are_those_of_tracklets_that_are_halves(centre):
    "Where each half is taken for a tracklet of its own, and both cameras' means are the same"
    rng = np.random.default_rng(0)
    halves = unit(rng.normal(size=(12, 2, 5)) + [3, 0, 0, 0, 0])
    camids = np.repeat([1, 2], 6)
    flat = halves.reshape(24, 5)
    means = np.stack([flat[np.repeat(camids, 2) == camera].mean(0) for camera in camids])
    # Each tracklet is its camera's mean, so that this is the mean of tracklets too
    found = half_distances(means, halves, camids, np.full(12, 4), centre=centre)
    wanted = tracklet_distances(flat, np.repeat(camids, 2), centre=centre)[::2, 1::2].diagonal()
    assert np.allclose(found, wanted)


def test_short_tracklets_have_no_halves():
    halves = unit(np.random.default_rng(0).normal(size=(3, 2, 5)))
    assert len(half_distances(halves[:, 0], halves, [1, 1, 2], [3, 4, 1])) == 1
    assert len(half_distances(halves[:0, 0], halves[:0], [], [])) == 0


def test_certainty_is_scikit_learns_silhouette():
    metrics = pytest.importorskip('sklearn.metrics')
    distances, _ = drawn(3, 12)
    people = np.array([0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4])
    assert np.allclose(certainty(distances, people),
                       metrics.silhouette_samples(distances, people, metric='precomputed'))


def test_alone_nobody_is_certain(): assert np.isnan(certainty(np.zeros((2, 2)), [0, 0])).all()


# Clusters of single images

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
    metrics = pytest.importorskip('sklearn.metrics')
    x, ids = planted(20, 12, noise)
    order = np.random.default_rng(1).permutation(len(x))
    labels = identity_clusters(x[order])
    assert metrics.adjusted_rand_score(ids[order], labels) >= least
    counts = np.bincount(labels[labels >= 0])
    assert (np.diff(counts) <= 0).all()


def test_strangers_stay_alone():
    pytest.importorskip('sklearn')
    x, _ = planted(5, 14, .2)
    labels = identity_clusters(np.concatenate([x, 3*np.random.default_rng(5).normal(size=(8, 32))]))
    assert len(set(labels[:70])) == 5
    assert (labels[70:] == -1).mean() > .5


@pytest.mark.parametrize('n', [1, 2, 3, 5, 12])
def test_few_images(n):
    pytest.importorskip('sklearn')
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
    pytest.importorskip('sklearn')
    with pytest.raises(ValueError, match=message): identity_clusters(np.eye(8), **kwargs)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.cluster', None)
    with pytest.raises(ImportError, match='magnifier-reid.gallery'): identity_clusters(np.eye(3))
