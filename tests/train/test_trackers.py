"Trackers follow what the package is for, and only where it was measured"
import warnings

import pytest
import torch
from fastai.vision.all import (Callback, CutMix, EarlyStoppingCallback, MixUp, ReduceLROnPlateau, SaveModelCallback,
                               load_learner)

from magnifier.train.callbacks import ValidateEvery
from magnifier.train.learner import magnifier_learner
from magnifier.train.monitoring import LossParts

TRACKERS = (SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau)


class Figures(Callback):
    "Puts known figures into the mAP column, epoch by epoch; None where there is none"
    order = LossParts.order + 1

    def __init__(self, *values): self.values = values

    def after_validate(self): self.recorder.log[list(self.recorder.metric_names).index('mAP')] = self.values[self.epoch]


@pytest.mark.parametrize('tracker', TRACKERS)
@pytest.mark.parametrize('make', [lambda tracker: tracker(), lambda tracker: tracker])
def test_without_a_monitor_they_are_refused_before_anything_is_trained(small_learn, tracker, make):
    with pytest.raises(ValueError,
                       match=rf"{tracker.__name__} would monitor valid_loss.*use {tracker.__name__}\(monitor='mAP'\)"):
        small_learn.fit(1, cbs=make(tracker))
    assert not hasattr(small_learn.recorder, 'lrs')


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_identities_are_refused(small_learn, mix):
    with pytest.raises(ValueError, match=f'{mix.__name__} mixes images.*erase=0.5'): small_learn.fit(1, cbs=mix())


@pytest.mark.slow
def test_the_best_epoch_is_saved_and_loaded_and_missing_figures_are_skipped(small_learn):
    save, weights = SaveModelCallback(monitor='mAP'), []

    class Weights(Callback):
        order = 99
        def after_epoch(self): weights.append(self.learn.model.backbone.conv1.weight.detach().clone())

    small_learn.fit(5, 1e-3, cbs=[save, Weights(), Figures(None, .2, .6, None, .4)])
    assert save.best == .6
    assert torch.equal(small_learn.model.backbone.conv1.weight, weights[2])


@pytest.mark.slow
def test_patience_counts_measured_epochs_alone(small_learn):
    stop = EarlyStoppingCallback(monitor='mAP', patience=2)
    small_learn.fit(6, 1e-3, cbs=[stop, Figures(.5, None, .4, None, .3, .9)])
    assert len(small_learn.recorder.values) == 5  # the second epoch that is worse is the fifth


@pytest.mark.slow
def test_a_plateau_is_of_measured_epochs_alone(small_learn):
    small_learn.fit(5, 1e-3,
                    cbs=[ReduceLROnPlateau(monitor='mAP', patience=2, factor=10), Figures(.5, None, .4, .3, .3)])
    last = small_learn.recorder.lrs[::4]
    assert last == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-4])


def test_validation_every_second_epoch_goes_with_a_tracker(small_learn):
    save = SaveModelCallback(monitor='mAP')
    small_learn.fit(3, 1e-3, cbs=[save, ValidateEvery(2)])
    assert 0 < save.best <= 1


def test_where_nothing_was_ever_measured_nothing_is_loaded(small_learn):
    small_learn.fit(2, 1e-3, cbs=[SaveModelCallback(monitor='mAP'), Figures(None, None)])
    assert not (small_learn.path/'models/model.pth').exists()


def test_without_a_mask_module_there_is_no_validation_loss(small, how, small_learn):
    learn = magnifier_learner(small_learn.dls, **{**how['model'], 'mask': False, 'sab': False, 'sfb': False})
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert (list(learn.recorder.metric_names)
            == ['epoch', 'train_loss', 'id', 'triplet', 'mask', 'sd', 'R1', 'mAP', 'time'])
    assert len(learn.recorder.values[-1]) == 7


def test_the_validation_mask_loss_is_the_mask_loss_of_the_validation_images(small_learn):
    small_learn.fit(1)
    row = dict(zip(small_learn.recorder.metric_names[1:], small_learn.recorder.values[-1]))
    parts = []

    class Parts(Callback):
        def after_loss(self): parts.append(float(self.learn.loss_func.last['mask']))

    small_learn.validate(cbs=Parts())
    assert row['valid_mask_loss'] == pytest.approx(sum(parts)/len(parts), rel=1e-4)


def test_an_export_says_which_versions_made_it(learn, tmp_path):
    learn.export(tmp_path/'l.pkl')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*insecure pickle.*')
        again = load_learner(tmp_path/'l.pkl')
        assert torch.__version__.startswith(again.made_with['torch'])
        with pytest.raises(ValueError, match='has no images: give a catalog'): again.evaluate()
    with pytest.warns(UserWarning, match='exported with torch 1.2.3 and is loaded with .*save_pretrained'):
        again.__setstate__({**again.__dict__, 'made_with': {**again.made_with, 'torch': '1.2.3'}})


def test_what_fastai_would_get_wrong_is_said(learn):
    with pytest.raises(NotImplementedError, match='flip_test=True'): learn.tta()


def test_a_learner_in_one_line(learn, dls):
    assert repr(learn) == 'ReIDLearner: a network of your own, branches global + sab + sfb, d = 96'
    named = magnifier_learner(dls, 'resnet18', pretrained=False, mask=False, sab=False, sfb=False)
    assert repr(named) == 'ReIDLearner: resnet18, branches global, d = 512'


@pytest.mark.slow
def test_branches_alone(learn, catalog):
    from magnifier.train.metrics import rank_by_role
    table = learn.evaluate(by_branch=True)
    assert list(table.index) == ['plain', 'global', 'sab', 'sfb']
    embeddings, identity = learn.embed(learn.dls.valid, with_identity=True)
    width = learn.model.branches['global'].width
    assert table.loc['global', 'mAP'] == pytest.approx(rank_by_role(embeddings[:, :width], identity).mAP)
    assert table.attrs == dict(queries=int((catalog.split == 'query').sum()), left_out=0)


def test_gradient_shares_are_those_of_the_loss(learn):
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    batch = learn.dls.train.one_batch()
    table = learn.gradient_shares(batch)
    assert table['share'].sum() == pytest.approx(1)
    assert {'global_cls', 'global_tri', 'sab_cls', 'sfb_cls', 'mask', 'sd'} <= set(table.index)
    assert table.loc['sd', 'gradient'] == 0  # gamma is 0
    assert (table.loc[['global_cls', 'sab_cls', 'sfb_cls', 'mask'], 'gradient'] > 0).all()
    assert all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items())


def test_gradient_shares_before_a_fit_draw_as_training_does(dls, monkeypatch, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, hidden=32, keep_background=False)
    occlusion, drawn = learn.region_occlusion, []
    state, draw = occlusion.rng.getstate(), occlusion.draw
    monkeypatch.setattr(occlusion, 'draw', lambda rng: drawn.append(draw(rng)) or drawn[-1])
    learn.gradient_shares()
    assert len(drawn) == 1
    assert not drawn[0][0], 'the background is left out'
    assert occlusion.rng.getstate() == state


def test_what_a_learner_has_not_says_where_drawing_comes_from(learn):
    with pytest.raises(AttributeError, match='no blurr; those that draw.*from magnifier.all import'): learn.blurr
    assert not hasattr(learn, 'blurr')
    assert learn.branches is learn.model.branches, 'the model is asked, as in fastai'


def test_a_prediction_reads_as_a_sentence(learn, catalog):
    said = repr(learn.predict(catalog.path.iat[0]))
    assert 'a stranger too resembles one of them most' in said
    assert len(said) < 400


def test_a_threshold_is_a_similarity_and_compares(learn, catalog):
    with pytest.raises(ValueError, match='learn.threshold'): learn.compare(*catalog.path[:2])
    found = learn.threshold(far=.1)
    assert -1 <= found.similarity <= 1 and found.false_accept <= .1
    same = learn.compare(catalog.path.iat[0], catalog.path.iat[0])
    assert same and same.similarity == pytest.approx(1, abs=1e-5) and same.threshold == found.similarity
    assert not learn.compare(catalog.path.iat[0], catalog.path.iat[0], threshold=1.0005)
    other = learn.compare(*catalog.path[[0, len(catalog) - 1]], threshold=-1.)
    a, b = learn.embed(catalog.path[[0, len(catalog) - 1]].tolist())
    assert other and other.similarity == pytest.approx(float(a @ b), abs=1e-5)
