"What interpretations say, against obvious loops over the same search"
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import ClassificationInterpretation, Interpretation
from magnifier.look.drawing import Figure
from magnifier.look.interpret import ReIDInterpretation
from magnifier.regions import REGIONS


@pytest.fixture(scope='module')
def interp(seer): return ReIDInterpretation.from_learner(seer)


@pytest.fixture(scope='module')
def blind_interp(blind): return ReIDInterpretation.from_learner(blind)


def test_worst_queries(interp, tmp_path):
    table = interp.worst_queries(2, k=2, save=tmp_path/'w.png')
    assert list(table['ap']) == sorted(interp.ranking.ap)[:2]
    assert (tmp_path/'w.png').exists()
    assert isinstance(interp.figure, Figure)


def test_confused_identities_against_a_loop(interp):
    table, want = interp.confused_identities(3), {}
    for q in range(interp.ranking.shape[0]):
        first = interp.ranking.hits(q, 1).iloc[0]
        if not first['match']:
            pair = int(interp.ranking.labels.q_pids[q]), int(first['pid'])
            want[pair] = want.get(pair, 0) + 1
    assert {(r.pid, r.taken_for): r.times for r in table.itertuples()} == want
    assert table['times'].is_monotonic_decreasing
    assert len(interp.figure.axes) == 2*min(3, len(table))
    assert (table['of'] >= table['times']).all()
    with pytest.raises(ValueError, match='n=0: a whole number of 1 or more'): interp.confused_identities(0)


def test_nobody_is_confused_where_all_first_hits_are_right(seer, few):
    query = few[few.split == 'query'].iloc[:1]
    twin = query.assign(split='gallery', camid=query.camid + 1)
    table = ReIDInterpretation.from_learner(seer, catalog=pd.concat([query, twin],
                                                                    ignore_index=True)).confused_identities()
    assert len(table) == 0
    assert list(table.columns) == ['pid', 'taken_for', 'times', 'of', 'query', 'item']


def test_cmc_and_ap(interp):
    cmc = interp.plot_cmc(5)
    assert list(cmc['share']) == [interp.ranking.cmc(r) for r in range(1, 6)]
    ap = interp.plot_ap()
    assert ap['ap'].mean() == pytest.approx(interp.ranking.mAP)
    assert {'pid', 'camid', 'path', 'first_match'} <= set(ap)


def test_distances_keep_the_false_accept_rate(interp):
    table = interp.plot_distances([.05, .2])
    assert list(table.index) == ['EER', 'FAR 0.05', 'FAR 0.2']
    assert (table['false_accept'].iloc[1:] <= [.05, .2]).all()
    assert list(interp.plot_distances(.1).index) == ['EER', 'FAR 0.1']


def test_camera_pairs_against_the_hits(interp):
    table = interp.plot_camera_pairs()
    s = interp.ranked
    cams = s.identity[s.query_rows, 2], s.identity[s.gallery_rows, 2]
    assert len(table) == len(set(cams[0]))*len(set(cams[1]))
    assert (table['queries'][table.query_cam == table.gallery_cam] == 0).all()
    for row in table[table.queries > 0].itertuples():
        right = []
        for q in np.flatnonzero(cams[0] == row.query_cam):
            hits = interp.ranking.hits(int(q), len(cams[1]))
            hits = hits[hits.camid == row.gallery_cam]
            if hits['match'].any(): right.append(hits['match'].iat[0])
        assert len(right) == row.queries
        assert np.mean(right) == pytest.approx(row.R1)


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', [dict(ap='trapezoid'), dict(no_match='zero'), dict(separate_cameras=True)])
def test_camera_pairs_keep_the_settings_of_the_ranking(seer, interp, kwargs):
    from magnifier.retrieval.ranking import rank
    own = ReIDInterpretation.from_learner(seer, **kwargs)
    table, s, ids = own.plot_camera_pairs(), own.ranked, own.ranked.identity
    for row in table.itertuples():
        q, g = (r[ids[r, 2] == cam] for r, cam in ((s.query_rows, row.query_cam), (s.gallery_rows, row.gallery_cam)))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # a camera's pair with itself has no match
            want = rank(s.embeddings[q], s.embeddings[g], ids[q, 1], ids[g, 1], ids[q, 2], ids[g, 2], **kwargs)
        assert (row.R1, row.mAP) == pytest.approx((want.cmc(1), want.mAP), nan_ok=True)
    if kwargs != dict(separate_cameras=True):
        assert not table.equals(interp.plot_camera_pairs())  # a pair's own camera leaves nothing either way


def test_by_groups(interp):
    table = interp.by('camid')
    for cam, row in table.iterrows():
        own = interp.ranked.identity[interp.ranked.query_rows, 2] == cam
        assert row.queries == own.sum()
        assert row.mAP == pytest.approx(interp.ranking.ap[own].mean())
        assert row.R1 == (interp.ranking.first_match[own] == 1).mean()
    with pytest.raises(KeyError, match='mood'): interp.by('mood')
    with pytest.raises(ValueError, match='does not match length'): interp.by([1, 2])


def test_occlusion_and_visible_regions(interp, blind_interp, seer):
    estimated = interp.plot_occlusion()
    assert estimated['queries'].sum() == interp.ranking.shape[0]
    assert 'estimated' in estimated.index.name
    assert list(estimated.index) == [name for name in ('0%–5%', '5%–20%', '20%–40%', '40%–100%')
                                     if name in estimated.index]
    seen = interp.plot_visible_regions()
    assert seen['queries'].sum() == interp.ranking.shape[0]
    assert set(seen.index) <= set(range(8))
    known = interp.ranked.items.assign(occluded=np.linspace(0, 1, len(interp.ranked.items)))
    told = ReIDInterpretation(seer, replace(interp.ranked, items=known)).plot_occlusion()
    assert 'estimated' not in told.index.name
    with pytest.raises(ValueError, match='no mask module'): blind_interp.plot_visible_regions()


@pytest.mark.slow
def test_areas_come_from_the_model_where_masks_are_missing(seer, few):
    from magnifier.train.metrics import embed_parts
    bare = few.assign(mask=None)
    interp = ReIDInterpretation.from_learner(seer, catalog=bare)
    assert np.allclose(interp._areas(), embed_parts(seer, few[few.split == 'query'].path.tolist()).areas)


@pytest.mark.parametrize('method', ['pca', pytest.param('t-sne', marks=pytest.mark.slow)])
def test_embedding_map(interp, method):
    table = interp.plot_embeddings(method, n_ids=3, n_images=3)
    assert table['pid'].nunique() == 3
    assert np.isfinite(table[['x', 'y']]).all(axis=None)
    assert table.equals(interp.plot_embeddings(method, n_ids=3, n_images=3))


def test_embedding_map_refusals(interp):
    with pytest.raises(ValueError, match="method='umap': use one of pca, t-sne"): interp.plot_embeddings('umap')
    with pytest.raises(ValueError, match='are too few'): interp.plot_embeddings(n_ids=1, n_images=2)


def test_segmentation_against_a_loop(interp, seer, blind_interp):
    from magnifier.look.saliency import Sight
    table = interp.plot_segmentation()
    sight = Sight.of(seer, interp.ranked.items)
    true, seen = np.stack(sight.true), sight.parsed
    for k, name in enumerate(REGIONS):
        both, either = ((true == k) & (seen == k)).sum(), ((true == k) | (seen == k)).sum()
        assert table.iou[name] == pytest.approx(both/either, nan_ok=True) if either else np.isnan(table.iou[name])
        assert table.pixels[name] == (true == k).sum()
        assert table.as_foot[name] == pytest.approx(((true == k) & (seen == 7)).sum()/(true == k).sum())
    with pytest.raises(ValueError, match='no mask module'): blind_interp.plot_segmentation()


def test_segmentation_without_masks_to_compare(interp, seer):
    bare = replace(interp.ranked, items=interp.ranked.items.assign(mask=None))
    with pytest.raises(ValueError, match='no image here has a part mask'):
        ReIDInterpretation(seer, bare).plot_segmentation()


def test_a_set_without_any_match(seer, few):
    query, other = few[few.split == 'query'].iloc[:1], few[few.split == 'gallery']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that nothing matches is the point here
        interp = ReIDInterpretation.from_learner(seer, catalog=pd.concat([query,
                                                                          other[other.pid != query.pid.iat[0]]],
                                                                         ignore_index=True))
    for draw in (interp.plot_ap, interp.plot_distances, interp.plot_visible_regions):
        with pytest.raises(ValueError, match='no query has a true match'): draw()
    assert interp.plot_cmc()['share'].isna().all()
    assert (interp.plot_camera_pairs()['queries'] == 0).all()


def test_fastais_interpretation_of_classes_says_what_to_use(seer):
    with pytest.raises(NotImplementedError, match='use ReIDInterpretation'):
        ClassificationInterpretation.from_learner(seer)


@pytest.mark.slow
def test_fastais_top_losses_say_what_to_use(seer):
    with pytest.raises(NotImplementedError, match='use ReIDInterpretation'):
        Interpretation.from_learner(seer).plot_top_losses(2)
