"Metrics are retrieval's figures, whatever the order and however many columns; regions compared, and by whose masks"
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, EarlyStoppingCallback, SaveModelCallback
from PIL import Image

from magnifier.data.block import ROLES
from magnifier.data.images import read_mask, write_mask
from magnifier.regions import BODY_REGIONS, REGIONS
from magnifier.retrieval.ranking import rank
from magnifier.train.learner import magnifier_learner
from magnifier.train.metrics import (NO_OWN_REGIONS, R1, Parts, embed_parts, mAP, rank_by_role, rank_parts,
                                     reid_metrics)


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
        assert shuffled.mAP == pytest.approx(expected.mAP)
        assert shuffled.cmc(1) == pytest.approx(expected.cmc(1))


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


class Passed(Callback):
    "Embeddings and identities of a validation pass, in its order"
    def before_validate(self):
        self.embeddings = []
        self.identity = []

    def after_pred(self):
        self.embeddings.append(self.pred.embedding)
        self.identity.append(self.yb[-1])

    def after_validate(self):
        self.embeddings = torch.cat(self.embeddings)
        self.identity = torch.cat(self.identity)


def test_a_shuffled_loader_gives_the_same_figures(learn):
    """An image's embedding differs in its last bits (2e-7) where its batch has another size, as the last one has. An
    untrained network leaves gaps as small as that between distances. So the figures of two passes are compared by the
    very same embeddings"""
    passed = Passed()
    learn.validate(cbs=passed)
    plain, identity = passed.embeddings, passed.identity
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))
    r1, mean_ap = learn.validate(dl=learn.dls.valid.new(get_idxs=order.tolist), cbs=passed)[1:]
    torch.testing.assert_close(passed.embeddings, plain[order], atol=1e-5, rtol=0)
    assert torch.equal(passed.identity, identity[order])
    own = rank_by_role(passed.embeddings, passed.identity)
    assert r1 == own.cmc(1)
    assert mean_ap == own.mAP
    one, other = rank_by_role(plain.double(), identity), rank_by_role(plain[order].double(), identity[order])
    assert one.cmc(1) == other.cmc(1)
    assert one.mAP == pytest.approx(other.mAP, rel=1e-12)


def test_several_columns_cost_one_ranking(learn, monkeypatch):
    calls = []
    monkeypatch.setattr('magnifier.train.metrics.rank', lambda *a, **k: calls.append(1) or rank(*a, **k))
    learn.metrics = reid_metrics(['R1', 'R5', 'mAP', 'mINP'])
    values = learn.validate()
    assert len(calls) == 1
    assert len(values) == 5
    assert values[1] <= values[2]


def test_single_metrics_gather_for_themselves(learn):
    learn.metrics = [mAP(), R1()]
    loss, m, r = learn.validate()
    table = learn.evaluate().loc['plain']
    assert (m, r) == (pytest.approx(table.mAP), pytest.approx(table.R1))


def test_a_pass_without_queries_has_no_value(learn):
    learn.metrics = reid_metrics()
    assert list(learn.validate(ds_idx=0))[1:] == [None, None]


@pytest.mark.slow
def test_trackers_monitor_them(learn):
    learn.fit(2, 0.,
              cbs=[SaveModelCallback(monitor='mAP', fname='best'), EarlyStoppingCallback(monitor='R1', patience=1)])
    assert (learn.path/'models'/'best.pth').exists()


def planted(background):
    """Two people, whose body tells who they are and whose background the camera; `background` is where it
    stands among the eight"""
    embeddings = torch.zeros(4, 8, 2)
    embeddings[[0, 2], :, 0] = 1
    embeddings[[1, 3], :, 1] = 1
    embeddings[:2, background], embeddings[2:, background] = torch.tensor([100., 0]), torch.tensor([[0., 1], [1, 0]])
    identity = torch.tensor([[-1, 0, 0, 1], [-1, 1, 0, 1], [-1, 0, 1, 2], [-1, 1, 1, 2]])
    areas = np.zeros((4, 8))
    areas[:, [0, 7]] = .5
    return Parts(embeddings, areas, identity)


def test_the_background_is_compared_where_it_is_named_and_nowhere_else():
    parts = planted(0)
    assert rank_parts(parts)['regions'].hits(0)['distance'].tolist() == pytest.approx([0, 1])
    everywhere = rank_parts(parts._replace(regions=REGIONS))['regions']
    assert everywhere.hits(0)['distance'].tolist() == pytest.approx([.5, .5])
    both = rank_parts(parts, dict(k1=1, k2=1, lambda_value=1.))
    assert both['re-ranked'].ap.tolist() == both['regions'].ap.tolist() == [1, 1]


@pytest.mark.slow
def test_evaluation_takes_the_body(learn):
    table = learn.evaluate(distance='regions')
    pd.testing.assert_frame_equal(table, learn.evaluate(distance='regions', regions=BODY_REGIONS))
    parts = embed_parts(learn, learn.dls.valid)
    assert parts.regions is None
    assert embed_parts(learn, learn.dls.valid, REGIONS).regions == REGIONS
    every = rank_parts(parts._replace(regions=REGIONS))['regions'].table()
    assert learn.evaluate(distance='regions', regions=REGIONS).iloc[0].tolist() == pytest.approx(every.iloc[0].tolist())


@pytest.fixture
def halved(catalog, tmp_path):
    "The test rows, the lower half of every query's mask cut off; the pictures are as they were"
    test = catalog[catalog.split != 'train'].reset_index(drop=True)
    for i in test.index[test.split == 'query']:
        labels = read_mask(test['mask'][i]).copy()
        labels[len(labels)//2:] = 0
        test.loc[i, 'mask'] = str(write_mask(tmp_path/f'{i}.png', labels))
    return test


@pytest.mark.slow
def test_given_masks_say_what_is_seen(learn, halved):
    own, given = embed_parts(learn, halved), embed_parts(learn, halved, given_masks=True)
    assert torch.equal(own.embeddings, given.embeddings)
    assert not np.array_equal(own.areas, given.areas)
    size = learn.dls.valid.one_batch()[0].shape[-2:]
    for i in (0, len(halved) - 1):
        labels = np.asarray(Image.fromarray(read_mask(halved['mask'][i])).resize(size[::-1], 0))
        assert np.abs(given.areas[i] - [(labels == k).mean() for k in range(8)]).max() < .01
    some = embed_parts(learn, halved, ['foot', 'head'], given_masks=True)
    assert np.array_equal(some.areas, given.areas[:, [7, 1]])
    wanted = rank_parts(given)['regions'].table().iloc[0]
    assert learn.evaluate(halved, distance='regions',
                          given_masks=True).iloc[0].tolist() == pytest.approx(wanted.tolist())


def test_given_masks_must_be_there(learn, halved):
    with pytest.raises(ValueError, match='given_masks=True: these images come without part masks'):
        embed_parts(learn, list(halved.path[:2]), given_masks=True)
    halved.loc[0, 'mask'] = None
    with pytest.raises(ValueError, match='given_masks=True: 1 of .* images of a batch have no part mask'):
        embed_parts(learn, halved, given_masks=True)
    with pytest.raises(ValueError, match='given_masks go with distance="regions"'):
        learn.evaluate(halved, given_masks=True)


def test_a_model_without_a_mask_module_is_told_the_regions(dls, halved, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False)
    with learn.no_bar():
        with pytest.raises(ValueError) as e: embed_parts(learn, halved)
        assert str(e.value) == NO_OWN_REGIONS
        assert 'given_masks=True' in NO_OWN_REGIONS
        parts = embed_parts(learn, halved, given_masks=True)  # what the error advises
        assert parts.embeddings.shape[:2] == (len(halved), 8)
        assert parts.embeddings.isfinite().all()
        assert len(learn.evaluate(halved, distance='regions', given_masks=True)) == 1
