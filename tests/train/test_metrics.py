"Metrics are retrieval's figures, whatever the order and however many columns"
import numpy as np
import pytest
import torch
from fastai.vision.all import EarlyStoppingCallback, SaveModelCallback
from magnifier.data.block import ROLES
from magnifier.retrieval.ranking import rank
from magnifier.train.metrics import R1, mAP, rank_by_role, reid_metrics


def case(n=40, seed=0):
    "Embeddings and identities of queries and gallery, mixed"
    rng = np.random.default_rng(seed)
    identity = np.stack([np.full(n, -1), rng.integers(0, 6, n), rng.integers(0, 3, n), rng.integers(1, 3, n)], 1)
    return (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(n, 8)), dtype=torch.float32)),
            torch.tensor(identity))


def test_roles_decide_and_order_does_not():
    embeddings, identity = case()
    q, g = (identity[:, 3] == ROLES.index(r) for r in ('query', 'gallery'))
    ids = identity.numpy()
    expected = rank(embeddings[q], embeddings[g], ids[q, 1], ids[g, 1], ids[q, 2], ids[g, 2])
    for seed in range(5):
        order = torch.randperm(len(identity), generator=torch.Generator().manual_seed(seed))
        shuffled = rank_by_role(embeddings[order], identity[order])
        assert shuffled.mAP == pytest.approx(expected.mAP) and shuffled.cmc(1) == pytest.approx(expected.cmc(1))


def test_nothing_to_rank_is_none():
    embeddings, identity = case()
    for role in (1, 2):
        assert rank_by_role(embeddings[identity[:, 3] == role], identity[identity[:, 3] == role]) is None


@pytest.mark.parametrize('key', ['map', 'R', 'R0', 'Rx', ''])
def test_unknown_metrics_are_refused(key):
    with pytest.raises(ValueError, match='unknown metric'): reid_metrics(['R1', key])


def test_a_validation_pass_gives_the_figures_of_evaluate(learn):
    values = dict(zip(['valid_loss', *(m.name for m in learn.metrics)], learn.validate()))
    table = learn.evaluate()
    assert values['R1'] == pytest.approx(table.loc['plain', 'R1'])
    assert values['mAP'] == pytest.approx(table.loc['plain', 'mAP'])


def test_a_shuffled_loader_gives_the_same_figures(learn):
    plain = dict(zip(['valid_loss', *(m.name for m in learn.metrics)], learn.validate()))
    shuffled = dict(zip(plain, learn.validate(dl=learn.dls.valid.new(shuffle=True))))
    assert shuffled['R1'] == pytest.approx(plain['R1']) and shuffled['mAP'] == pytest.approx(plain['mAP'])


def test_several_columns_cost_one_ranking(learn, monkeypatch):
    calls = []
    monkeypatch.setattr('magnifier.train.metrics.rank', lambda *a, **k: calls.append(1) or rank(*a, **k))
    learn.metrics = reid_metrics(['R1', 'R5', 'mAP', 'mINP'])
    values = learn.validate()
    assert len(calls) == 1 and len(values) == 5 and values[1] <= values[2]


def test_single_metrics_gather_for_themselves(learn):
    learn.metrics = [mAP(), R1()]
    loss, m, r = learn.validate()
    table = learn.evaluate().loc['plain']
    assert (m, r) == (pytest.approx(table.mAP), pytest.approx(table.R1))


def test_a_pass_without_queries_has_no_value(learn):
    learn.metrics = reid_metrics()
    assert list(learn.validate(ds_idx=0))[1:] == [None, None]


def test_trackers_monitor_them(learn):
    learn.fit(2, 0.,
              cbs=[SaveModelCallback(monitor='mAP', fname='best'), EarlyStoppingCallback(monitor='R1', patience=1)])
    assert (learn.path/'models'/'best.pth').exists()
