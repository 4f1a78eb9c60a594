"Verification rates against counting pair by pair and scikit-learn"

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from magnifier.retrieval.distance import cosine_distances
from magnifier.retrieval.verification import (
    Comparison, VerificationPairs, compare, roc, similarity_threshold, verification_pairs, verification_table)

distances = st.lists(st.one_of(st.integers(0, 6).map(float), st.floats(0, 2, width=32)), min_size=1, max_size=30)


def slow_rates(genuine, impostor, threshold):
    "Accept a pair where its distance is the threshold or less"
    return sum(d <= threshold for d in impostor) / len(impostor), sum(d > threshold for d in genuine) / len(genuine)


@given(distances, distances, st.floats(0, 1, exclude_max=True))
def test_rates_and_thresholds(genuine, impostor, far):
    curve = roc(genuine, impostor)
    assert set(curve['threshold']) == set(genuine) | set(impostor)
    for row in curve.itertuples():
        assert (row.false_accept, row.false_reject) == slow_rates(genuine, impostor, row.threshold)
        assert row.true_accept == pytest.approx(1 - row.false_reject)
    table = verification_table(genuine, impostor, false_accept=[far])
    assert list(table.index) == ['EER', f'FAR {far:g}']
    reached = slow_rates(genuine, impostor, table['threshold'].iloc[1])
    assert (table['false_accept'].iloc[1], table['false_reject'].iloc[1]) == reached
    assert reached[0] <= far + 1e-9
    better = [slow_rates(genuine, impostor, t)[1]
              for t in genuine + impostor if slow_rates(genuine, impostor, t)[0] <= far]
    assert reached[1] <= min(better, default=1)  # no other threshold rejects fewer at that rate
    gaps = [abs(np.subtract(*slow_rates(genuine, impostor, t))) for t in genuine + impostor]
    eer = table.loc['EER']
    assert abs(eer['false_accept'] - eer['false_reject']) == pytest.approx(min(gaps))


def test_equal_error_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    pairs = VerificationPairs(rng.normal(0, 1, 100_000), rng.normal(2, 1, 300_000))
    rate, threshold = pairs.equal_error()
    assert rate == pytest.approx(0.1587, abs=2e-3)
    assert threshold == pytest.approx(1, abs=0.02)
    assert pairs.false_accept(pairs.threshold(1e-3)) == pytest.approx(1e-3, abs=1e-5)


def test_long_curves_are_thinned_and_stay_exact():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0, 1, 5000), rng.normal(2, 1, 70_000)
    curve = roc(genuine, impostor, points=100)
    assert 50 < len(curve) <= 110
    assert curve['false_accept'].iloc[0] < 1e-3
    for row in curve.iloc[::9].itertuples():
        assert (row.false_accept, row.false_reject) == slow_rates(genuine, impostor, row.threshold)
    from sklearn.metrics import roc_auc_score
    full = roc(genuine, impostor, points=1_000_000)
    area = np.trapezoid(np.r_[0, full['true_accept']], np.r_[0, full['false_accept']])
    assert area == pytest.approx(roc_auc_score(np.r_[np.ones(5000), np.zeros(70_000)], -np.r_[genuine, impostor]),
                                 abs=1e-4)


def case(seed=0, n_q=6, n_g=25):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_q, 4)).astype(np.float32), rng.normal(size=(n_g, 4)).astype(np.float32),
            rng.integers(-1, 4, n_q), rng.integers(-1, 4, n_g), rng.integers(0, 2, n_q), rng.integers(0, 2, n_g))


@pytest.mark.parametrize('seed', range(5))
def test_pairs_are_those_of_the_protocol(seed):
    q, g, qp, gp, qc, gc = case(seed)
    dist = cosine_distances(q, g)
    same = [dist[i, j] for i in range(6) for j in range(25) if qp[i] == gp[j] != -1 and qc[i] != gc[j]]
    other = [dist[i, j] for i in range(6) for j in range(25) if qp[i] != -1 != gp[j] != qp[i]]
    for pairs in (verification_pairs(q, g, qp, gp, qc, gc), verification_pairs(dist, None, qp, gp, qc, gc)):
        assert pairs.genuine == pytest.approx(sorted(same))
        assert pairs.impostor == pytest.approx(sorted(other))


def test_a_random_part_of_the_impostors():
    big = case(n_q=40, n_g=500)
    part, again, whole = (verification_pairs(*big, max_impostors=n, seed=1) for n in (2000, 2000, 10**9))
    assert part.impostor.tolist() == again.impostor.tolist()
    assert 800 < len(part.impostor) < 2100 < len(whole.impostor)
    assert set(part.impostor) <= set(whole.impostor)
    assert part.genuine.tolist() == whole.genuine.tolist()


def test_compare_one_pair_and_several():
    same = compare([3., 0], [5., 0.1], 0.7)
    assert isinstance(same, Comparison)
    assert same.same is True
    assert same
    assert same.similarity == pytest.approx(5 / np.hypot(5, 0.1))
    assert same.threshold == 0.7
    assert str(same) == 'the same person: similarity 1.000 reaches the threshold of 0.700'
    other = compare(torch.tensor([1., 0]), torch.tensor([0., 1]), 0.7)
    assert not other
    assert str(other) == 'not the same person: similarity 0.000 is below the threshold of 0.700'
    assert compare([1., 0], [1., 0], 1.)
    many = compare(np.eye(3), np.eye(3)[[0, 2, 1]], 0.5)
    assert many.same.tolist() == [True, False, False]
    assert many.similarity.tolist() == [1, 0, 0]
    assert str(many) == '1 of 3 pairs reach a similarity of 0.500'


@given(distances, distances, st.sampled_from([0, .01, .1, .5, .9]))
def test_similarity_threshold_against_counting(genuine, impostor, far):
    found = similarity_threshold(VerificationPairs(genuine, impostor), far=far)
    assert found.false_accept == sum(1 - d >= found.similarity for d in impostor) / len(impostor)
    assert found.false_reject == sum(1 - d < found.similarity for d in genuine) / len(genuine)
    assert found.false_accept <= far
    # a lower one lets in too many, or finds no more
    for similarity in {1 - d for d in impostor} | {1 - d for d in genuine}:
        lets_in = sum(1 - d >= similarity for d in impostor) / len(impostor)
        misses = sum(1 - d < similarity for d in genuine) / len(genuine)
        assert lets_in > far or misses >= found.false_reject


def test_similarity_threshold_says_what_it_costs():
    pairs = VerificationPairs([.1, .2, .3, .9], np.linspace(.5, 1.49, 100))
    found = similarity_threshold(pairs, far=.01)
    assert .49 < found.similarity < .5
    assert str(found) == (f'similarity {found.similarity:.3f} or more: lets in 1.00% of the pairs of two people, '
                          'misses 25.00% of the pairs of one')
    assert compare([1., 0], [.6, .8], found)
    assert not compare([1., 0], [.4, .917], found)


@pytest.mark.parametrize('far', [1, 5, 1., -.1, float('nan')])
def test_percents_are_no_shares(far):
    pairs = VerificationPairs([.1], [.5])
    for ask in (pairs.threshold, lambda rate: similarity_threshold(pairs, far=rate)):
        with pytest.raises(ValueError,
                           match=f'false_accept={far}: a share of 0 or more and less than 1 wanted; one in a hundred '
                                 f'is .01'):
            ask(far)


def test_only_cosine_distances_have_a_similarity():
    pairs = verification_pairs(*case(), metric='euclidean')
    with pytest.raises(ValueError,
                       match="pairs of metric 'euclidean' have no similarity: make them with metric='cosine'"):
        similarity_threshold(pairs)
    with pytest.raises(ValueError, match="metric='l1': use one of"): verification_pairs(*case(), metric='l1')


@pytest.mark.parametrize('args, message', [
    (([1., 0], [1., 0, 0], 0.3), r'got shapes \(2,\) and \(3,\)'), (([[[1.]]], [[[1.]]], 0.3), 'two embeddings'),
    (([1., 0], [1., 0], 3), 'threshold=3: a cosine similarity from -1 to 1'),
    (([0., 0], [1., 0], 0.3), 'a: 1 of 1 rows are zero'), (([1., 0], [np.nan, 0], 0.3), 'b: 1 of 1 rows hold NaN'),
    (([1., 0], [1., 0], float('nan')), 'threshold=nan')])
def test_compare_says_what_is_wrong(args, message):
    with pytest.raises(ValueError, match=message): compare(*args)


def test_what_makes_no_test():
    with pytest.raises(ValueError, match='genuine: no pairs'): roc([], [1.])
    with pytest.raises(ValueError, match='impostor: distances hold NaN'): verification_table([1.], [np.nan])
    with pytest.raises(ValueError, match='points=1: a curve needs'): roc([1.], [1.], points=1)
    with pytest.raises(ValueError, match='false_accept=2: a share of 0 or more'):
        verification_table([1.], [1.], false_accept=[2])
    with pytest.raises(ValueError, match='genuine: no pairs'):
        verification_pairs([[1., 0]], [[1., 0]], [1], [2], [0], [1])
    with pytest.raises(ValueError, match='max_impostors=0'):
        verification_pairs([[1., 0]], [[1., 0]], [1], [2], [0], [1], max_impostors=0)
