"show_batch, show_results, show_ranking: what is drawn, from what, and that looking changes nothing"
import random
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.all import Interpretation
from magnifier.look.drawing import FRAMES
from magnifier.look.explain import REST
from magnifier.look.picture import Picture
from magnifier.look.searched import Searched
from magnifier.look.show import draw_results, draw_samples
from magnifier.regions import NO_MASK
from magnifier.train.precision import CPUBfloat16


def words(picture): return [t.get_text() for ax in picture.axes for t in ax.texts]

def legend(picture): return [t.get_text() for t in picture.legends[0].get_texts()] if picture.legends else []


def test_show_batch_shows_pictures_masks_and_titles(dls, tmp_path):
    picture = dls.show_batch(max_n=4, save=tmp_path/'deep'/'batch.png')
    assert isinstance(picture, Picture) and (tmp_path/'deep'/'batch.png').stat().st_size > 5000
    assert len(picture.axes) == 8 and sum(w.startswith('id ') and ' cam ' in w for w in words(picture)) == 4
    assert legend(picture) == ['head', 'chest', 'upper arm', 'lower arm', 'upper leg', 'lower leg', 'foot']
    assert picture.get_facecolor() == (1, 1, 1, 1) and not plt.get_fignums()


def test_show_batch_of_a_batch_in_hand_shows_that_batch(dls):
    x, m, y = dls.one_batch()
    titles = [w for w in words(dls.train.show_batch((x, m, y), max_n=3)) if w]
    assert titles == [f'id {int(pid)} cam {int(cam)}' for pid, cam in y[:3, 1:3].tolist()]


def test_validation_batches_show_their_roles(dls):
    assert all(w.endswith(('query', 'gallery')) for w in words(dls.valid.show_batch(max_n=2)) if w)


def test_unique_shows_one_picture_under_augmentation(dls):
    assert len({w for w in words(dls.show_batch(max_n=6, unique=True)) if w}) == 1


def test_show_false_gives_the_decoded_batch(dls):
    x, y, samples = dls.show_batch(show=False, max_n=2)
    assert len(samples) == 2 and len(samples[0]) == 3


def test_looking_moves_no_generator(dls):
    def state(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dls.train.epoch, \
        dls.train.after_batch[-1].generator.get_state().tolist()
    before = state()
    dls.show_batch()
    assert state() == before


def test_seeds_draw_other_batches(dls):
    first, again, other = (words(dls.show_batch(seed=s)) for s in (0, 0, 1))
    assert first == again != other


def test_a_batch_without_masks_has_no_legend_and_one_row(blind):
    picture = blind.dls.show_batch(max_n=3)
    assert len(picture.axes) == 3 and not picture.legends


def test_a_picture_without_a_mask_among_others_says_so():
    pictures = [np.zeros((16, 8, 3))]*2
    picture = draw_samples(pictures, [np.ones((16, 8), int), np.full((16, 8), NO_MASK)], ['a', 'b'])
    assert words(picture).count('no mask') == 1
    rows = draw_results(pictures, ['a', 'b'], true=[np.ones((4, 2), int), None], predicted=None)
    assert words(rows) == ['a', 'true mask', 'b', 'no mask']


@pytest.mark.parametrize('call', [lambda dls: dls.show_batch(max_n=0), lambda dls: draw_samples([], [], []), lambda dls: draw_results([], [])])
def test_nothing_to_show_is_refused(dls, call):
    with pytest.raises(ValueError, match='at least'): call(dls)


def test_show_results_has_a_column_for_each_thing(seer, tmp_path):
    picture = seer.show_results(max_n=2, save=tmp_path/'r.png')
    assert (tmp_path/'r.png').exists() and len(picture.axes) == 12
    assert [w for w in words(picture)[1:6]] == ['true mask', 'predicted', 'global', 'SAB', 'SFB']
    assert legend(picture)[-1] == 'high activation'
    assert words(seer.show_results(max_n=1, branches='stage3'))[1:] == ['true mask', 'predicted', 'stage3']
    assert words(seer.show_results(max_n=1, branches=()))[1:] == ['true mask', 'predicted']


def test_show_results_draws_by_its_seed_and_from_any_source(seer, catalog):
    titles = lambda **kwargs: [w for w in words(seer.show_results(max_n=3, branches=(), **kwargs)) if w.startswith('id')]
    assert titles(seed=1) == titles(seed=1) != titles(seed=2)
    rows = catalog[catalog.split == 'train'].iloc[:3]
    assert titles(dl=rows, shuffle=False) == [f'id {r.pid} cam {r.camid}' for r in rows.itertuples()]
    assert titles(ds_idx=0, shuffle=False) == titles(dl=seer.dls.train, shuffle=False)
    paths = seer.loader(rows.path.tolist())
    assert not [w for w in words(seer.show_results(dl=paths, max_n=1, branches=())) if w.startswith(('id', 'true'))]


def test_show_results_without_masks_or_branches(blind):
    picture = blind.show_results(max_n=2)
    assert words(picture)[1::2] == ['global', 'global'] and legend(picture) == ['high activation']
    with pytest.raises(ValueError, match="no map 'sab' in this model: it has stage3, stage4, global"): blind.show_results(branches='sab')
    with pytest.raises(ValueError, match='at least one picture'): blind.show_results(max_n=0)


def test_show_results_leaves_the_model_as_it_was(seer):
    seer.model.train()
    seer.show_results(max_n=1)
    assert seer.model.training and all(p.grad is None for p in seer.model.parameters())


def test_fastais_interpretation_shows_results(seer):
    interp = Interpretation.from_learner(seer)
    assert interp.show_results([0, 1]) is None  # fastai's own method returns nothing, and draws through the overload


def test_ranking_frames_follow_the_ranking(seer):
    searched = Searched.of(seer)
    q = int(searched.choose('best', 1)[0])
    hits = searched.ranking.hits(q, 5)
    picture = seer.show_ranking('best', n=1, k=5, saliency=False)
    marks = [next((t.get_text() for t in ax.texts if t.get_text() in '✓✗'), None) for ax in picture.axes]
    assert marks[1:] == [FRAMES['true' if m else 'false'][2] for m in hits['match']]
    captions = [f'{1 - d:.3f}' for d in hits['distance']]
    assert [w for w in words(picture) if w in captions] == captions
    assert [w.split('\n')[1] for w in words(picture) if w[:1].isdigit() and '\n' in w] == [f'id {h.pid} cam {h.camid}' for h in hits.itertuples()]


def test_frames_differ_by_line_and_mark_too():
    assert len({str(style) for _, style, _ in FRAMES.values()} - {'-'}) == 2 and len({mark for *_, mark in FRAMES.values()}) == 4


@pytest.mark.parametrize('how', ['worst', 'best'])
def test_worst_and_best_queries(seer, how):
    searched = Searched.of(seer)
    ap = searched.ranking.ap[searched.choose(how, 3)]
    every = np.sort(searched.ranking.ap[searched.ranking.n_matches > 0])
    assert np.allclose(ap, every[:3] if how == 'worst' else every[::-1][:3])


def test_queries_by_name(seer, catalog):
    searched = Searched.of(seer)
    row = searched.items.iloc[searched.query_rows[2]]
    name = row.path.rsplit('/', 1)[-1]
    assert list(searched.choose(name)) == list(searched.choose(row.path)) == list(searched.choose([name.rsplit('.', 1)[0]])) == [2]
    assert set(searched.identity[searched.query_rows[searched.choose(int(row.pid))], 1]) == {row.pid}
    for wrong in ('nobody.jpg', 99999):
        with pytest.raises(ValueError, match='no query'): searched.choose(wrong)
    with pytest.raises(ValueError, match='no queries named'): searched.choose([])
    with pytest.raises(ValueError, match='at least one query'): searched.choose(None, 0)


def test_all_who_are_named_are_shown(seer, catalog):
    searched = Searched.of(seer)
    pids = searched.identity[searched.query_rows, 1]
    often = [int(p) for p in np.unique(pids) if (pids == p).sum() > 1]
    assert len(often) > 2
    shown = lambda named, n: [int(p) for p in pids[searched.choose(named, n)]]
    assert shown(often[:3], 4) == [*often[:3], often[0]] and shown(often[:2], 4) == often[:2]*2 and shown(often[:3], 1) == often[:3]
    row = int(np.flatnonzero(pids == often[1])[0])
    name = Path(searched.items.path.iloc[searched.query_rows[row]]).name
    assert list(searched.choose([often[0], name, name], 4)) == [*np.flatnonzero(pids == often[0])[:1], row, *np.flatnonzero(pids == often[0])[1:3]]


def test_random_queries_follow_the_seed(seer):
    searched = Searched.of(seer)
    assert list(searched.choose(None, 4, seed=3)) == list(searched.choose('random', 4, seed=3)) != list(searched.choose(None, 4, seed=4))


@pytest.mark.parametrize('saliency', [True, 'masks'])
def test_overlays_and_their_legends(seer, saliency, tmp_path):
    picture = seer.show_ranking(n=1, k=3, saliency=saliency, save=tmp_path/'x.png')
    assert ('similarity from here' in legend(picture)) == (saliency is True) and ('foot' in legend(picture)) == (saliency == 'masks')


def test_removed_hits_are_greyed_and_explained(seer):
    picture = seer.show_ranking(n=6, k=30, saliency=False, show_removed=True)
    assert any(w.startswith('removed') for w in words(picture)) and 'removed: same camera' in ' '.join(legend(picture))


def test_two_learners_on_the_same_queries(seer, blind):
    picture = seer.show_ranking(n=2, k=2, versus=blind, names=('full', 'G'))
    assert [w for w in words(picture) if w in ('full', 'G')] == ['full', 'G']*2
    queries = [w for w in words(picture) if w.startswith('query')]
    assert queries[0] == queries[1] and queries[2] == queries[3]


def test_a_query_without_hits_and_one_without_a_match(seer, catalog):
    test = catalog[catalog.split != 'train']
    query = test[test.split == 'query'].iloc[:1]
    own = test[(test.split == 'gallery') & (test.pid == query.pid.iat[0])]
    same_camera = own.iloc[:1].assign(camid=query.camid.iat[0])
    stranger = test[(test.split == 'gallery') & (test.pid != query.pid.iat[0])].iloc[:2]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that nothing matches is the point here
        alone = seer.show_ranking(catalog=np_concat(query, same_camera))
        other = seer.show_ranking(catalog=np_concat(query, stranger), k=5, saliency=False)
    assert any('no hits' in w for w in words(alone))
    assert 'no match in gallery' in words(other) and words(other).count('✗') == 2


def test_search_by_region(seer, blind, tmp_path):
    from magnifier.train.parts import embed_parts
    searched = Searched.of(seer, regions=['foot', 'lower_leg'])
    parts, q = embed_parts(seer, seer.dls.valid, ['foot', 'lower_leg']), 1
    hits = searched.ranking.hits(q, 4)
    a = searched.query_rows[q]
    for hit in hits.itertuples():
        b = searched.gallery_rows[hit.item]
        both = parts.visible[a] & parts.visible[b]
        want = 1 - np.mean([float(parts.embeddings[a, k] @ parts.embeddings[b, k]) for k in np.flatnonzero(both)]) if both.any() else 2
        assert hit.distance == pytest.approx(want, abs=1e-5)
    assert (searched.identity == Searched.of(seer).identity).all()
    picture = seer.show_ranking(regions='foot', n=1, k=3, save=tmp_path/'r.png')
    assert 'similarity from here' not in legend(picture)
    with pytest.raises(ValueError, match='no mask module'): blind.show_ranking(regions='foot')
    with pytest.raises(ValueError, match='unknown region'): seer.show_ranking(regions='sock')


def np_concat(*tables):
    import pandas as pd
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize('kwargs, says', [(dict(k=0), 'at least one hit'), (dict(n=0), 'at least one query'), (dict(saliency='heat'), 'similarity maps')])
def test_bad_arguments_of_show_ranking(seer, kwargs, says):
    with pytest.raises(ValueError, match=says): seer.show_ranking(**kwargs)


def test_sets_that_cannot_be_ranked(seer, catalog):
    with pytest.raises(ValueError, match='nothing to rank'): seer.show_ranking(catalog=catalog[catalog.split == 'train'])


def test_a_shuffled_loader_is_refused(seer, few):
    dl = seer.loader(few).new(shuffle=True, n_per_id=None)
    with pytest.raises(ValueError, match='does not shuffle'): seer.show_ranking(catalog=dl)


def test_half_precision_moves_an_explanation_by_its_rounding_alone(seer, few):
    for hit in few.path.iloc[[5, 7, 9]]:
        before = seer.explain(few.path.iat[0], hit)
        with seer.added_cbs(CPUBfloat16()): after = seer.explain(few.path.iat[0], hit)
        moved = (after.table['share'] - before.table['share']).abs()
        assert after.score == pytest.approx(before.score, abs=.02) and 1e-4 < moved.max() < .03 and moved[REST] < .01


def test_an_exported_learner_asks_for_data(seer, catalog, tmp_path):
    from fastai.vision.all import load_learner
    seer.export(tmp_path/'l.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'l.pkl')
    with loaded.no_bar():
        with pytest.raises(ValueError, match='carries no'): loaded.show_ranking()
        with pytest.raises(ValueError, match='carries no'): loaded.show_results()
        assert loaded.show_ranking(catalog=catalog[catalog.split != 'train'], n=1, k=2, saliency=False)


def test_many_pictures_leave_nothing_open(dls):
    for _ in range(25): dls.show_batch(max_n=1)
    assert not plt.get_fignums()
