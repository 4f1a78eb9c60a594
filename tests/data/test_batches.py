"P x M batches: their law against a brute force, their stream, their behaviour as a fastai loader"
import random
import time
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from magnifier.data.batches import IdentityBatches, identity_batches, identity_groups, n_full_batches

identities = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def _pids(counts): return [pid for pid, n in enumerate(counts) for _ in range(n)]


class _Rows(list):
    "The least of a data set that a loader needs"
    def __init__(self, pids): super().__init__(range(len(pids))); self.items = pd.DataFrame({'pid': pids})


def loader(pids, **kwargs):
    return IdentityBatches(_Rows(pids),
                           **{**dict(bs=8, n_per_id=4, shuffle=True, drop_last=True, num_workers=0, do_setup=False),
                              **kwargs})


def stream(dl, epochs=1): return [dl.get_idxs() for _ in range(epochs)]


@settings(deadline=None)
@given(identities, st.integers(2, 5), st.integers(0, 99))
def test_groups_hold_one_identity_and_use_each_image_once(counts, m, seed):
    pids = _pids(counts)
    for pid, groups in identity_groups(pids, m, random.Random(seed)).items():
        drawn = [i for g in groups for i in g]
        assert len(groups) == max(1, counts[pid] // m)
        assert all(len(g) == m for g in groups)
        assert {pids[i] for i in drawn} == {pid}
        if counts[pid] >= m: assert len(set(drawn)) == len(drawn)
        else: assert set(drawn) == {i for i, p in enumerate(pids) if p == pid}


def _most_batches(counts, p):
    "Greedy: the p identities with most groups left, until fewer than p have any; known to be the most possible"
    left, n = sorted(counts, reverse=True), 0
    while len(left) >= p and left[p-1] > 0:
        left = sorted([g-1 for g in left[:p]] + left[p:], reverse=True)
        n += 1
    return n


@settings(deadline=None)
@given(identities, st.integers(2, 6), st.integers(0, 99))
def test_batches_are_as_many_as_possible_and_of_different_identities(counts, p, seed):
    assert n_full_batches(counts, p) == _most_batches(counts, p)
    groups = {pid: [[(pid, g)] for g in range(n)] for pid, n in enumerate(counts)}
    batches = identity_batches(groups, p, n_full_batches(counts, p), random.Random(seed))
    assert len(batches) == _most_batches(counts, p)
    assert all(len({pid for pid, _ in b}) == p == len(b) for b in batches)
    used = [g for b in batches for g in b]
    assert len(set(used)) == len(used)
    assert sum(len(g) for g in groups.values()) == sum(counts), 'the groups given are left as they were'
    left = Counter({pid: n for pid, n in enumerate(counts)}) - Counter(pid for pid, _ in used)
    assert len(left) < p, 'fewer than P identities still have groups'


@pytest.mark.slow
def test_many_identities_take_no_time():
    rng = random.Random(0)
    counts = [rng.randint(1, 6) for _ in range(33_000)] + [20_000]
    groups = {pid: [[pid]]*n for pid, n in enumerate(counts)}
    start = time.process_time()
    n = n_full_batches(counts, 16)
    batches = identity_batches(groups, 16, n, rng)
    assert time.process_time() - start < 2
    assert all(len(set(b)) == 16 for b in batches)
    used = Counter(i for b in batches for i in b)
    assert all(used[pid] <= c for pid, c in enumerate(counts))


def test_every_identity_is_drawn_alike():
    seen = Counter()
    for seed in range(400):
        groups = {pid: [[pid]] for pid in range(6)}
        seen.update(identity_batches(groups, 2, 1, random.Random(seed))[0])
    assert all(400*2/6*.7 < seen[pid] < 400*2/6*1.3 for pid in range(6))


def test_loader_yields_p_identities_times_m_images():
    pids = _pids([5, 9, 4, 12, 2, 7])
    dl = loader(pids)
    for epoch in range(3):
        idxs = dl.get_idxs()
        assert len(idxs) == len(dl)*8
        for b in range(len(dl)):
            assert sorted(Counter(pids[i] for i in idxs[b*8:b*8+8]).values()) == [4, 4]


def test_same_seed_same_stream_and_epochs_differ():
    pids = _pids([8]*6)
    first, second, other = (stream(loader(pids, seed=s), 3) for s in (1, 1, 2))
    assert first == second
    assert first != other
    assert first[0] != first[1]


def test_a_stream_resumes_by_its_epoch():
    pids = _pids([8]*6)
    whole, resumed = loader(pids), loader(pids)
    expected = stream(whole, 4)[2:]
    resumed.epoch = 2
    assert stream(resumed, 2) == expected


def test_the_global_generator_is_neither_read_nor_moved():
    pids = _pids([8]*6)
    dl = loader(pids)
    random.seed(3); before = random.getstate()
    dl.get_idxs()
    assert random.getstate() == before


def test_new_keeps_m_and_seed_and_can_be_told_otherwise():
    dl = loader(_pids([8]*6), seed=5, n_per_id=2)
    dl._n_inp, dl._types = 1, None
    again = dl.new()
    assert (again.n_per_id, again.seed, again.epoch) == (2, 5, 0)
    assert stream(again) == stream(loader(_pids([8]*6), seed=5, n_per_id=2))
    assert dl.new(n_per_id=4).n_per_id == 4
    assert dl.new(shuffle=False, drop_last=False).get_idxs() == list(range(48))
    plain = dl.new(n_per_id=None)
    assert sorted(plain.get_idxs()) == list(range(48))
    assert plain.get_idxs() != list(range(48))


def test_batches_reach_the_main_process_whole_from_workers():
    pids = _pids([5, 9, 4, 12, 2, 7])
    here, there = (loader(pids, seed=3, num_workers=n) for n in (0, 2))
    assert [b.tolist() for b in here] == [b.tolist() for b in there]


@pytest.mark.parametrize('n', [2, 3])
def test_processes_share_the_batches_of_one(monkeypatch, n):
    pids = _pids([8]*7)
    alone = _batches(loader(pids).get_idxs())
    assert len(alone) == n_full_batches([2]*7, 2) == 7
    monkeypatch.setattr('magnifier.data.batches.num_distrib', lambda: n)
    dl = loader(pids)
    shared = _batches(dl.get_idxs())
    assert len(dl) == len(shared) == {2: 8, 3: 9}[n]
    assert shared == alone + alone[:len(shared) - 7], 'the same in the same order, then the first once more'


def _batches(idxs, bs=8): return [idxs[i:i + bs] for i in range(0, len(idxs), bs)]


@pytest.mark.parametrize('counts, kwargs, message', [
    ([8]*6, dict(bs=10), 'bs must be a multiple of n_per_id'),
    ([8]*6, dict(n_per_id=1), 'at least 2'),
    ([8]*6, dict(bs=4), 'at least 2 identities'),
    ([8], dict(), '1 training identity: at least 2 are needed'),
    ([8]*3, dict(bs=16), '3 training identities, but bs=16 with n_per_id=4 needs 4.*take bs=12 or less'),
])
def test_impossible_batches_are_refused(counts, kwargs, message):
    with pytest.raises(ValueError, match=message): loader(_pids(counts), **kwargs)


def test_too_few_batches_for_the_processes(monkeypatch):
    monkeypatch.setattr('magnifier.data.batches.num_distrib', lambda: 4)
    with pytest.raises(ValueError, match='1 batches an epoch for 4 processes'): loader([0]*4 + [1]*4)


def test_an_identity_with_one_image_is_drawn_with_replacement():
    idxs = loader([0] + [1]*4, bs=8).get_idxs()
    assert Counter(idxs)[0] == 4
    assert sorted(i for i in idxs if i) == [1, 2, 3, 4]
