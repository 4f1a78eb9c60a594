"The learner as a fastai user expects it, and what re-identification adds"
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import MixedPrecision, SaveModelCallback, load_learner
from PIL import Image, ImageOps
from torch import multiprocessing

from magnifier.data.block import ROLES, TensorIdentity, TensorPartMask
from magnifier.data.images import read_image, read_mask
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.masks import mask_agreement
from magnifier.gallery.entries import crops_folder
from magnifier.gallery.gallery import Gallery
from magnifier.model.net import MagnifierNet, MagnifierOutput
from magnifier.regions import BODY_REGIONS
from magnifier.retrieval.ranking import evaluate_distances, rank
from magnifier.retrieval.region_distance import region_distance
from magnifier.train.callbacks import CPUBfloat16, RegionOcclusion, TeacherMasks, autocast_of
from magnifier.train.learner import ReIDLearner, magnifier_learner
from magnifier.train.metrics import embed_parts, rank_by_role

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
    out = rows.copy().reset_index(drop=True)
    for i in out.index[out.split != 'train']:
        new = folder/f'{i}.jpg'
        shutil.copy(out.path[i], new)
        out.loc[i, 'path'] = str(new)
    return out


def test_embeddings_of_everything_that_holds_pictures(learn, paths, catalog):
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
    assert learn.model.training
    assert all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items())


def test_flip_test_is_the_mean_of_both_sides(learn, paths):
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
    assert list(table.columns) == ['R1', 'R5', 'R10', 'mAP', 'mINP']
    assert list(table.index) == ['plain']
    np.testing.assert_allclose(table.loc['plain'], expected.table().iloc[0][table.columns].to_numpy(float), atol=1e-6)
    shuffled = rows.sample(frac=1, random_state=0)
    np.testing.assert_allclose(learn.evaluate(shuffled), table, atol=1e-6)
    trapezoid = learn.evaluate(ap='trapezoid')
    assert trapezoid.loc['plain', 'mAP'] != table.loc['plain', 'mAP']
    assert trapezoid.loc['plain', 'R1'] == table.loc['plain', 'R1']


@pytest.mark.slow
def test_re_ranking_adds_a_row(learn):
    table = learn.evaluate(rerank=True, k1=5, k2=2)
    assert list(table.index) == ['plain', 're-ranked']
    assert table.notna().all(axis=None)
    same = learn.evaluate(rerank=True, k1=5, k2=2, lambda_value=1.)  # lambda 1 is the original distance alone
    np.testing.assert_allclose(same.loc['re-ranked'], same.loc['plain'], atol=1e-6)


@pytest.mark.slow
def test_evaluation_by_regions_is_region_distance(learn, catalog):
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
    assert isinstance(mask_t, TensorPartMask)
    assert mask_t.shape == (8, 4)
    assert mask_t.max() < 8
    assert isinstance(identity_t, TensorIdentity)
    assert identity == f'like id {learn.dls.vocab[int(identity_t[0])]}'
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
    assert loss.shape == (len(rows),)
    assert torch.isfinite(loss).all()


@pytest.mark.slow
def test_training_predictions_go_through_the_data_in_order(learn, catalog):
    _, (_, identity) = learn.get_preds(ds_idx=0)
    assert identity[:, 1].tolist() == catalog[catalog.split == 'train'].pid.tolist()


@pytest.mark.slow
def test_export_and_load_give_the_same_embeddings(learn, paths, catalog):
    learn.fit(1)
    expected = learn.embed(paths)
    learn.export('people.pkl')
    assert len(learn.dls.train_ds), 'the learner goes on'
    assert torch.allclose(learn.embed(paths), expected), 'the learner goes on'
    again = load_learner(learn.path/'people.pkl')
    assert isinstance(again, ReIDLearner)
    assert torch.allclose(again.embed(paths), expected, atol=1e-6)
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
    assert not any(p.requires_grad for p in frozen)
    assert learn.model.branches['sab'].reduce.weight.requires_grad
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
    assert set(learn.loss_func.last) >= {'mask', 'global_cls'}
    assert float(learn.loss_func.last['global_cls']) == 0.
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
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert (half*whole).sum(1).min() > .98


@pytest.mark.slow
def test_a_given_loaders_batches_are_as_large_as_asked_for(learn, catalog):
    dl = learn.dls.valid
    assert learn.loader(dl) is dl
    assert learn.loader(dl, bs=dl.bs) is dl
    small = learn.loader(dl, bs=3)
    assert small.bs == 3
    assert {len(x) for x, *_ in small} <= {3, len(dl.dataset)%3}
    assert dl.bs != 3
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
    assert -1 <= found.similarity <= 1
    assert found.false_accept <= .1
    same = learn.compare(catalog.path.iat[0], catalog.path.iat[0])
    assert same
    assert same.similarity == pytest.approx(1, abs=1e-5)
    assert same.threshold == found.similarity
    assert not learn.compare(catalog.path.iat[0], catalog.path.iat[0], threshold=1.0005)
    other = learn.compare(*catalog.path[[0, len(catalog) - 1]], threshold=-1.)
    a, b = learn.embed(catalog.path[[0, len(catalog) - 1]].tolist())
    assert other
    assert other.similarity == pytest.approx(float(a @ b), abs=1e-5)


@pytest.mark.slow
def test_walkers_are_added_and_found(learn, catalog, tmp_path):
    pytest.importorskip('lance')
    gallery = catalog[catalog.split == 'gallery']
    with Gallery(tmp_path/'people', regions=True) as g:
        assert g.add(learn, gallery, progress=False)[:2] == (len(gallery), 0)
        row = gallery.iloc[5]
        hits = g.search(learn, row.path, k=len(gallery))
        assert hits[0].path == row.path
        assert hits[0].pid == row.pid
        assert hits[0].similarity == pytest.approx(1, abs=1e-4)
        similarity = learn.embed(gallery).numpy() @ learn.embed(row.path).numpy()[0]
        np.testing.assert_allclose(hits.table['similarity'], np.sort(similarity)[::-1], atol=1e-4)
        assert g.add(learn, crops_folder(row.path.rsplit('/', 1)[0]).query('path == @row.path'))[:2] == (0, 1)
        parts = embed_parts(learn, gallery)
        assert g.search(learn, row.path, k=1,
                        regions=[int(np.flatnonzero(parts.visible[5])[0])])[0].similarity == pytest.approx(1, abs=1e-3)
        with pytest.raises(ValueError, match='made by the model'):
            learn.model.cpu()
            next(learn.model.parameters()).data.add_(1)
            g.search(learn, row.path)


def test_a_model_that_knows_no_regions(dls, catalog, tmp_path, arch):
    pytest.importorskip('lance')
    learn = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False, hidden=32)
    with learn.no_bar(), Gallery(tmp_path/'people', regions=True) as g:
        with pytest.raises(ValueError, match='the regions are not known'): g.add(learn, catalog['path'].iloc[:2])


def test_embeddings_and_what_can_be_seen_in_one_pass(learn, catalog):
    paths = catalog['path'].iloc[:5].tolist()
    embeddings, visible = learn.embed_visible(paths)
    np.testing.assert_allclose(embeddings, learn.embed(paths), atol=1e-5)
    np.testing.assert_allclose(visible, embed_parts(learn, paths).visible[:, 1:].mean(1), atol=1e-6)


def test_without_masks_everything_counts_as_seen(dls, catalog, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False, hidden=32)
    with learn.no_bar(): assert learn.embed_visible(catalog['path'].iloc[:3].tolist())[1].tolist() == [1, 1, 1]


@pytest.fixture
def people(tmp_path):
    for i, size in enumerate([(64, 128), (50, 90), (33, 60)]):
        (tmp_path/'set'/str(i % 2)).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path/'set'/str(i % 2)/f'{i}.png')
    return tmp_path/'set'


def test_masks_have_their_images_names_sizes_and_labels(learn, people, tmp_path):
    files = learn.predict_masks(people, bs=2)
    assert [p.relative_to(tmp_path/'set_ps_label').as_posix() for p in files] == ['0/0.png', '0/2.png', '1/1.png']
    for mask in files:
        with Image.open(people/mask.relative_to(tmp_path/'set_ps_label')) as image:
            assert read_mask(mask).shape == image.size[::-1]
    again = learn.predict_masks([people/'0'/'0.png', people/'1'/'1.png'], tmp_path/'other')
    assert all((read_mask(a) == read_mask(b)).all() for a, b in zip(again, (files[0], files[2])))
    assert learn.model.training
    assert mask_agreement(tmp_path/'set_ps_label', tmp_path/'set_ps_label').iou.dropna().eq(1).all()


def test_the_label_is_the_largest_logit_of_the_place(learn, people, monkeypatch):
    class Halves(torch.nn.Module):
        segmentation = True
        def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x):
            out = torch.zeros(len(x), 8, 8, 4)
            out[:, 3, :4], out[:, 6, 4:] = 1, 1  # upper arm above, lower leg below
            return type('Output', (), dict(mask_logits=out))
    monkeypatch.setattr(learn, 'model', Halves())
    for mask in map(read_mask, learn.predict_masks(people)):
        h = len(mask)
        assert (mask[:h//2 - 1] == 3).all()
        assert (mask[h//2 + 1:] == 6).all()


def test_what_is_there_stays_unless_asked(learn, people, tmp_path):
    files = learn.predict_masks(people)
    files[1].write_bytes(b'kept')
    with pytest.raises(ValueError,
                       match=r'3 of 3 masks exist \(first: .*0.png\): name another dst, or pass overwrite=True'):
        learn.predict_masks(people)
    assert files[1].read_bytes() == b'kept'
    learn.predict_masks(people, overwrite=True)
    read_mask(files[1])


def test_a_model_without_the_head(dls, people, arch):
    bare = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False)
    with pytest.raises(ValueError, match='no segmentation head'): bare.predict_masks(people)
