"The learner as a fastai user expects it, and what re-identification adds"
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import MixedPrecision, SaveModelCallback, load_learner
from PIL import Image
from torch import multiprocessing
from magnifier.data.block import ROLES, TensorIdentity, TensorPartMask
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.model.net import MagnifierNet, MagnifierOutput
from magnifier.retrieval.ranking import rank
from magnifier.train.callbacks import CPUBfloat16, RegionOcclusion, TeacherMasks, autocast_of
from magnifier.train.learner import ReIDLearner, magnifier_learner

TINY = dict(pretrained=False, hidden=32)


def unit(x): return torch.allclose(x.norm(dim=1), torch.ones(len(x)), atol=1e-5)


@pytest.fixture
def paths(catalog): return catalog[catalog.split == 'query'].path.tolist()[:5]


# Table 2's rows, Figure 4 and what makes no sense
@pytest.mark.parametrize('kwargs, branches, callbacks', [
    (dict(mask=False, sab=False, sfb=False), ['global'], (0, 0)),
    pytest.param(dict(sab=False, sfb=False), ['global'], (1, 0), marks=pytest.mark.slow),
    pytest.param(dict(sfb=False), ['global', 'sab'], (1, 1), marks=pytest.mark.slow),
    pytest.param(dict(sab=False), ['global', 'sfb'], (1, 0), marks=pytest.mark.slow),
    (dict(), ['global', 'sab', 'sfb'], (1, 1)),
    pytest.param(dict(sfb='ab'), ['global', 'sab', 'sfb'], (1, 1), marks=pytest.mark.slow),
])
def test_every_row_of_table_2_is_built_and_trains_a_step(dls, kwargs, branches, callbacks, arch):
    learn = magnifier_learner(dls, arch, **TINY, **kwargs)
    assert isinstance(learn, ReIDLearner)
    assert isinstance(learn.model, MagnifierNet)
    assert list(learn.model.branches) == branches
    assert tuple(len(learn._grab_cbs(c)) for c in (TeacherMasks, RegionOcclusion)) == callbacks
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    moved = {k.split('.')[0] + '.' + k.split('.')[1]
             for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert {f'branches.{b}' for b in branches} <= moved
    assert np.isfinite(learn.recorder.losses).all()


@pytest.mark.parametrize('kwargs', [dict(mask=False), dict(mask=False, sab=False), dict(sfb='gru'), dict(keep=3),
                                    dict(strategy='none')])
def test_combinations_without_sense_are_refused(dls, kwargs, arch):
    with pytest.raises(ValueError): magnifier_learner(dls, arch, **TINY, **kwargs)


def test_unknown_arguments_are_refused(dls, arch):
    with pytest.raises(TypeError, match='hiden'): magnifier_learner(dls, arch, pretrained=False, hiden=32)


@pytest.mark.slow
def test_without_masks_the_learner_says_what_to_do(catalog, tmp_path, arch):
    dls = ReIDDataLoaders.from_df(catalog.assign(mask=None), path=tmp_path, size=(64, 32), bs=8, n_per_id=2,
                                  num_workers=0)
    with pytest.raises(ValueError,
                       match='no training image has a part mask.*magnifier_masks.*mask=False, sab=False, sfb=False'):
        magnifier_learner(dls, arch, **TINY)
    learn = magnifier_learner(dls, arch, mask=False, sab=False, sfb=False, **TINY)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.evaluate().notna().all(axis=None)


@pytest.mark.slow
def test_images_with_and_without_masks_train_together(catalog, tmp_path, arch):
    some = catalog.copy()
    some.loc[some.index[some.split == 'train'][::3], 'mask'] = None
    dls = ReIDDataLoaders.from_df(some, path=tmp_path, size=(64, 32), bs=8, n_per_id=2, num_workers=0)
    learn = magnifier_learner(dls, arch, **TINY)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all()


@pytest.mark.slow
def test_training_learns_a_handful_of_people_by_heart(catalog, tmp_path, arch):
    train = catalog[catalog.split == 'train']
    few = train[train.pid.isin(sorted(train.pid.unique())[:4])].groupby('pid').head(6)
    seen = pd.concat([few, few.groupby('pid').head(3).assign(split='query'),
                      few.groupby('pid').tail(3).assign(split='gallery')])
    seen['camid'] = np.where(seen.split == 'query', 1, 2)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the point here is that test images are the training's
        dls = ReIDDataLoaders.from_df(_copied(seen, tmp_path), path=tmp_path, size=(64, 32), bs=16, n_per_id=4,
                                      num_workers=0, erase=0, pad=0)
    learn = magnifier_learner(dls, arch, **TINY)
    with learn.no_bar(), learn.no_logging(): learn.fit(40, 1e-3)
    history = learn.loss_parts.history
    assert history['global_cls'].iloc[-1] < .75*history['global_cls'].iloc[0]
    assert history['mask'].iloc[-1] < .75*history['mask'].iloc[0]
    assert learn.evaluate().loc['plain', 'R1'] > .9


def _copied(rows, folder):
    "Rows whose test images are files of their own: a catalog has no path twice"
    import shutil
    out = rows.copy().reset_index(drop=True)
    for i in out.index[out.split != 'train']:
        new = folder/f'{i}.jpg'
        shutil.copy(out.path[i], new)
        out.loc[i, 'path'] = str(new)
    return out


def test_embeddings_of_everything_that_holds_pictures(learn, paths, catalog):
    from magnifier.data.images import read_image
    expected = learn.embed(paths)
    assert expected.shape == (5, learn.model.embedding_dim)
    assert expected.dtype == torch.float32
    assert type(expected) is torch.Tensor
    assert unit(expected)
    pictures = [read_image(p) for p in paths]
    for images in (pictures, [np.asarray(p) for p in pictures], catalog[catalog.path.isin(paths)], learn.loader(paths),
                   pd.DataFrame({'path': paths})):
        assert torch.allclose(learn.embed(images), expected, atol=1e-5)
    for one in (paths[0], pictures[0], np.asarray(pictures[0])):
        assert torch.allclose(learn.embed(one), expected[:1], atol=1e-5)
    assert torch.allclose(learn.embed(paths, bs=2), expected, atol=1e-5)


def test_embedding_leaves_the_learner_as_it_was(learn, paths):
    learn.model.train()
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    assert not learn.embed(paths).requires_grad
    assert learn.model.training and all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items())


def test_flip_test_is_the_mean_of_both_sides(learn, paths):
    from PIL import ImageOps
    from magnifier.data.images import read_image
    mirrored = [ImageOps.mirror(read_image(p)) for p in paths]
    both = learn.embed(paths) + learn.embed(mirrored)
    expected = torch.nn.functional.normalize(both)
    # the resize is not exactly symmetric, hence the tolerance
    assert (learn.embed(paths, flip_test=True)*expected).sum(1).min() > .9999
    assert torch.allclose(learn.embed(paths, flip_test=True), learn.embed(mirrored, flip_test=True), atol=1e-2)


@pytest.mark.parametrize('images', [[], pd.DataFrame({'path': []})])
def test_nothing_to_embed_is_said(learn, images):
    with pytest.raises(ValueError, match='no images'): learn.embed(images)


def test_a_file_that_does_not_decode_is_named(learn, tmp_path):
    (tmp_path/'cut.jpg').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='cut.jpg'): learn.embed([tmp_path/'cut.jpg'])


def test_the_table_is_retrievals(learn, catalog):
    rows = catalog[catalog.split != 'train']
    q, g = rows[rows.split == 'query'], rows[rows.split == 'gallery']
    expected = rank(learn.embed(q), learn.embed(g), q.pid.to_numpy(), g.pid.to_numpy(), q.camid.to_numpy(),
                    g.camid.to_numpy())
    table = learn.evaluate()
    assert list(table.columns) == ['R1', 'R5', 'R10', 'mAP', 'mINP'] and list(table.index) == ['plain']
    np.testing.assert_allclose(table.loc['plain'], expected.table().iloc[0][table.columns].to_numpy(float), atol=1e-6)
    shuffled = rows.sample(frac=1, random_state=0)
    np.testing.assert_allclose(learn.evaluate(shuffled), table, atol=1e-6)
    trapezoid = learn.evaluate(ap='trapezoid')
    assert trapezoid.loc['plain', 'mAP'] != table.loc['plain', 'mAP']
    assert trapezoid.loc['plain', 'R1'] == table.loc['plain', 'R1']


@pytest.mark.slow
def test_re_ranking_adds_a_row(learn):
    table = learn.evaluate(rerank=True, k1=5, k2=2)
    assert list(table.index) == ['plain', 're-ranked'] and table.notna().all(axis=None)
    same = learn.evaluate(rerank=True, k1=5, k2=2, lambda_value=1.)  # lambda 1 is the original distance alone
    np.testing.assert_allclose(same.loc['re-ranked'], same.loc['plain'], atol=1e-6)


@pytest.mark.slow
def test_evaluation_by_regions_is_region_distance(learn, catalog):
    from magnifier.retrieval.ranking import evaluate_distances
    from magnifier.retrieval.region_distance import region_distance
    from magnifier.regions import BODY_REGIONS
    from magnifier.train.metrics import embed_parts
    rows = catalog[catalog.split != 'train']
    q, g = rows[rows.split == 'query'], rows[rows.split == 'gallery']
    a, b = embed_parts(learn, q), embed_parts(learn, g)
    expected = evaluate_distances(region_distance(a.embeddings, b.embeddings, a.visible, b.visible,
                                                  regions=BODY_REGIONS), q.pid.to_numpy(), g.pid.to_numpy(),
                                  q.camid.to_numpy(), g.camid.to_numpy())
    table = learn.evaluate(distance='regions', rerank=True, k1=5, k2=2, lambda_value=1.)
    assert list(table.index) == ['regions', 're-ranked']
    np.testing.assert_allclose(table.loc['regions'], expected.table().iloc[0][table.columns].to_numpy(float), atol=1e-6)
    np.testing.assert_allclose(table.loc['re-ranked'], table.loc['regions'], atol=1e-6)
    assert len(learn.evaluate(distance='regions', regions=['foot', 'lower_leg'])) == 1


@pytest.mark.parametrize('kwargs, message', [
    (dict(distance='hamming'), 'use cosine or regions'), (dict(distance='regions', flip_test=True), 'need embeddings'),
    (dict(regions=['foot']), 'distance="regions"'), (dict(distance='regions', regions=['shoe']), 'unknown region')])
def test_distances_without_sense_are_refused(learn, kwargs, message):
    with pytest.raises(ValueError, match=message): learn.evaluate(**kwargs)


def test_a_catalog_without_queries_cannot_be_evaluated(learn, catalog):
    with pytest.raises(ValueError, match='query'): learn.evaluate(catalog[catalog.split == 'gallery'])


def test_predictions_of_one_picture(learn, paths):
    (mask, identity), (mask_t, identity_t), embedding = learn.predict(paths[0])
    # twice a sixteenth of 64 x 32
    assert isinstance(mask_t, TensorPartMask) and mask_t.shape == (8, 4) and mask_t.max() < 8
    assert isinstance(identity_t, TensorIdentity) and identity == f'like id {learn.dls.vocab[int(identity_t[0])]}'
    assert torch.allclose(embedding, learn.embed(paths[0])[0], atol=1e-5)
    assert len(learn.predict(paths[0], with_input=True)) == 4


@pytest.mark.slow
def test_get_preds_in_the_data_sets_order(learn, catalog):
    preds, (mask, identity) = learn.get_preds()
    rows = catalog[catalog.split != 'train']
    assert isinstance(preds, MagnifierOutput)
    assert identity[:, 1].tolist() == rows.pid.tolist()
    assert len(mask) == len(rows)
    assert torch.allclose(preds.embedding, learn.embed(rows), atol=1e-5)
    preds, (mask, identity), loss = learn.get_preds(with_loss=True)
    assert loss.shape == (len(rows),) and torch.isfinite(loss).all()


@pytest.mark.slow
def test_training_predictions_go_through_the_data_in_order(learn, catalog):
    _, (_, identity) = learn.get_preds(ds_idx=0)
    assert identity[:, 1].tolist() == catalog[catalog.split == 'train'].pid.tolist()


@pytest.mark.slow
def test_export_and_load_give_the_same_embeddings(learn, paths, catalog):
    learn.fit(1)
    expected = learn.embed(paths)
    learn.export('people.pkl')
    assert len(learn.dls.train_ds) and torch.allclose(learn.embed(paths), expected), 'the learner goes on'
    again = load_learner(learn.path/'people.pkl')
    assert isinstance(again, ReIDLearner) and torch.allclose(again.embed(paths), expected, atol=1e-6)
    pd.testing.assert_frame_equal(again.evaluate(catalog[catalog.split != 'train']), learn.evaluate())
    assert again.predict(paths[0])[0][1].startswith('like id')


@pytest.mark.slow
def test_save_and_load_weights(learn, dls, paths, arch):
    expected = learn.embed(paths)
    learn.save('here')
    other = magnifier_learner(dls, arch, **TINY)
    assert not torch.allclose(other.embed(paths), expected)
    assert torch.allclose(other.load('here', with_opt=False).embed(paths), expected)
    learn.fit(1)
    learn.save('with_opt')
    assert torch.allclose(other.load('with_opt').embed(paths), learn.embed(paths))
    bare = torch.load(learn.save('bare', with_opt=False), weights_only=True)
    assert set(bare) == set(learn.model.state_dict())


def test_freezing_trains_the_heads_alone(learn):
    learn.freeze()
    backbone = learn.model.backbone
    frozen = [p for m in backbone.modules() if isinstance(m, torch.nn.Conv2d) for p in m.parameters()]
    assert not any(p.requires_grad for p in frozen) and learn.model.branches['sab'].reduce.weight.requires_grad
    learn.unfreeze()
    assert all(p.requires_grad for p in frozen)


@pytest.mark.slow
def test_the_usual_fits_and_looks(learn, capsys):
    learn.fine_tune(1, freeze_epochs=1)
    learn.fit_one_cycle(1, 1e-3)
    learn.lr_find(num_it=4, show_plot=False)
    assert 'Total params' in str(learn.summary())


@pytest.mark.slow
def test_trackers_and_one_cycle_together(learn):
    learn.fit_one_cycle(1, 1e-3, cbs=SaveModelCallback(monitor='mAP', fname='best'))
    assert (learn.path/'models/best.pth').exists()


def test_validation_loss_is_the_mask_loss(learn):
    learn.validate()
    assert set(learn.loss_func.last) >= {'mask', 'global_cls'} and float(learn.loss_func.last['global_cls']) == 0.
    assert learn.validate()[0] == pytest.approx(2*float(learn.get_preds(with_loss=True)[2].mean())/2,
                                                rel=.35), 'per image and per batch regions differ'


def test_a_bigger_picture_is_a_bigger_batch_and_gives_one_embedding(learn):
    assert unit(learn.embed(Image.new('RGB', (640, 480), (90, 30, 20))))


def test_roles_are_as_the_protocol_names_them(): assert ROLES == ('train', 'query', 'gallery')


def precisions(learn, monkeypatch, device):
    "What `evaluating` asks torch for on a device"
    asked = []
    monkeypatch.setattr(torch, 'autocast', lambda kind, dtype=None, enabled=True: asked.append((kind, dtype, enabled)))
    autocast_of(learn, device)
    return asked[0]


@pytest.mark.parametrize('mode, dtype', [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_evaluation_has_the_trainings_precision(learn, monkeypatch, mode, dtype):
    assert precisions(learn, monkeypatch, 'cuda')[2] is False
    with learn.added_cbs([MixedPrecision(mode)]):
        assert precisions(learn, monkeypatch, 'cuda') == ('cuda', dtype, True)
        assert precisions(learn, monkeypatch, 'cpu')[2] is False  # fastai's callback trains in float32 there


def test_cpu_bfloat16_is_asked_for_by_its_callback(learn, paths):
    whole = learn.embed(paths)
    with learn.added_cbs([MixedPrecision('bf16')]): assert torch.equal(learn.embed(paths), whole)
    with learn.added_cbs([CPUBfloat16()]): half = learn.embed(paths)
    assert half.dtype == torch.float32 and not torch.equal(half, whole) and (half*whole).sum(1).min() > .98


@pytest.mark.slow
def test_a_given_loaders_batches_are_as_large_as_asked_for(learn, catalog):
    dl = learn.dls.valid
    assert learn.loader(dl) is dl and learn.loader(dl, bs=dl.bs) is dl
    small = learn.loader(dl, bs=3)
    assert small.bs == 3 and {len(x) for x, *_ in small} <= {3, len(dl.dataset)%3} and dl.bs != 3
    assert torch.allclose(learn.embed(dl, bs=3), learn.embed(dl), atol=1e-5)


def test_an_export_that_fails_leaves_file_and_learner_as_they_were(learn, paths, monkeypatch):
    learn.export('model.pkl')
    there, before, dls = (learn.path/'model.pkl').read_bytes(), learn.embed(paths), learn.dls
    def full(obj, f, **kwargs):
        Path(f).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='cannot write .*model.pkl: No space left'): learn.export('model.pkl')
    assert (learn.path/'model.pkl').read_bytes() == there
    assert learn.dls is dls
    assert torch.equal(learn.embed(paths), before)
    assert not list(learn.path.glob('.*.part'))


@pytest.mark.slow
@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_embedding_by_processes_that_are_not_forked(learn, paths, method):
    if method not in multiprocessing.get_all_start_methods(): pytest.skip('not on this system')
    many = (paths*(336//len(paths) + 1))[:336]  # more than one's own process takes by itself
    expected, before = learn.embed(many), multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try: got = learn.embed(learn.loader(many, num_workers=2))
    finally: multiprocessing.set_start_method(before, force=True)
    assert torch.equal(got, expected)
