"Ranked lists: which queries are shown, what is drawn of them, and browsing through them"
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from magnifier.look.drawing import FRAMES, Figure
from magnifier.look.ranked import Browser, RankedSet, ranked_row
from magnifier.train.metrics import embed_parts


@pytest.fixture(scope='module')
def ranked(seer): return RankedSet.of(seer)


def words(figure): return [t.get_text() for ax in figure.axes for t in ax.texts]

def legend(figure): return [t.get_text() for t in figure.legends[0].get_texts()]


def test_frames_follow_the_ranking(seer, ranked):
    hits = ranked.ranking.hits(int(ranked.choose('best', 1)[0]), 5)
    figure = seer.show_ranking('best', n=1, k=5)
    marks = [next((t.get_text() for t in ax.texts if t.get_text() in '✓✗'), None) for ax in figure.axes]
    assert marks[1:] == [FRAMES['true' if m else 'false'][2] for m in hits['match']]
    captions = [f'{1 - d:.3f}' for d in hits['distance']]
    assert [w for w in words(figure) if w in captions] == captions
    titles = [w.split('\n')[1] for w in words(figure) if w[:1].isdigit() and '\n' in w]
    assert titles == [f'id {h.pid} cam {h.camid}' for h in hits.itertuples()]


def test_frames_differ_by_line_and_mark_too():
    assert len({str(style) for _, style, _ in FRAMES.values()} - {'-'}) == 2
    assert len({mark for *_, mark in FRAMES.values()}) == 4


def test_queries_spread_from_the_best_to_the_worst(ranked):
    ap = ranked.ranking.ap[ranked.choose('spread', 3)]
    every = np.sort(ranked.ranking.ap[ranked.ranking.n_matches > 0])[::-1]
    n = len(every)
    assert ap.tolist() == [every[n//6], every[n//2], every[5*n//6]]


@pytest.mark.parametrize('how', ['worst', 'best'])
def test_worst_and_best_queries(ranked, how):
    every = np.sort(ranked.ranking.ap[ranked.ranking.n_matches > 0])
    assert np.allclose(ranked.ranking.ap[ranked.choose(how, 3)], every[:3] if how == 'worst' else every[::-1][:3])


def test_queries_by_name(ranked):
    row = ranked.items.iloc[ranked.query_rows[2]]
    path = Path(row.path)
    for name in (path.name, path.stem, row.path, path, f'{path.parent.name}/{path.name}'):
        assert list(ranked.choose(name)) == [2]
    assert set(ranked.identity[ranked.query_rows[ranked.choose(int(row.pid))], 1]) == {row.pid}


@pytest.mark.parametrize('wrong', ['nobody.jpg', 99999])
def test_a_query_that_is_not_there(ranked, wrong):
    known = ranked.query_rows if isinstance(wrong, str) else np.unique(ranked.identity[ranked.query_rows, 1])
    with pytest.raises(ValueError, match=f'no query {wrong!r}: the {len(known)} here are .*; or use random, worst'):
        ranked.choose(wrong)


def test_a_name_of_several_queries_says_which(seer, few):
    queries = few[few.split == 'query'].iloc[:2]
    folders = [f'/one/{i}/01_3.png' for i in range(2)]
    items = pd.concat([queries, few[few.split == 'gallery']], ignore_index=True)
    whole = RankedSet.of(seer, items)
    twins = RankedSet(items.assign(path=[*folders, *items.path[2:]]), whole.embeddings, whole.identity, whole.ranking)
    with pytest.raises(ValueError, match="2 queries are called '01_3.png': /one/0/01_3.png, /one/1/01_3.png"):
        twins.choose('01_3.png')
    assert list(twins.choose('1/01_3.png')) == [1]


def test_refused_choices(ranked):
    with pytest.raises(ValueError, match='no queries given'): ranked.choose([])
    with pytest.raises(ValueError, match='n=0: a whole number of 1 or more'): ranked.choose(None, 0)


def test_all_who_are_named_are_shown(ranked):
    pids = ranked.identity[ranked.query_rows, 1]
    often = [int(p) for p in np.unique(pids) if (pids == p).sum() > 1]
    assert len(often) > 2
    def shown(named, n): return [int(p) for p in pids[ranked.choose(named, n)]]
    assert shown(often[:3], 4) == [*often[:3], often[0]]
    assert shown(often[:2], 4) == often[:2]*2
    assert shown(often[:3], 1) == often[:3]
    row = int(np.flatnonzero(pids == often[1])[0])
    name = Path(ranked.items.path.iloc[ranked.query_rows[row]]).name
    of_first = np.flatnonzero(pids == often[0])
    assert list(ranked.choose([often[0], name, name], 4)) == [of_first[0], row, *of_first[1:3]]


def test_random_queries_follow_the_seed(ranked):
    assert list(ranked.choose(None, 4, seed=3)) == list(ranked.choose('random', 4, seed=3))
    assert list(ranked.choose(None, 4, seed=3)) != list(ranked.choose(None, 4, seed=4))


@pytest.mark.slow
def test_images_are_plain_unless_asked_for(seer, ranked):
    "Pixels as the loader gives them; with an overlay they stand unchanged above it"
    plain = ranked_row(seer, ranked, 0, k=2)
    x, *_ = seer.loader(ranked.rows_of(0, plain.hits)).one_batch()
    want = seer.dls.valid.after_batch.decode(x).permute(0, 2, 3, 1).numpy()/255
    assert np.allclose(plain.images, want, atol=1e-2)
    for kwargs in (dict(heat=True), dict(masks=True), dict(heat=True, regions=['foot'])):
        both = ranked_row(seer, ranked, 0, k=2, **kwargs)
        assert all(np.allclose(b[:len(p)], p) for b, p in zip(both.images, plain.images))
        assert all(len(b) > 2*len(p) for b, p in zip(both.images, plain.images))


@pytest.mark.slow
@pytest.mark.parametrize('overlay, entry', [('heat', 'similarity comes from here'), ('masks', 'foot')])
def test_overlays_and_their_legends(seer, overlay, entry, tmp_path):
    figure = seer.show_ranking(n=1, k=3, save=tmp_path/'x.png', **{overlay: True})
    assert entry in legend(figure)
    assert (tmp_path/'x.png').exists()
    assert legend(seer.show_ranking(n=1, k=3)) == ['✓ same person', '✗ another person']


@pytest.mark.slow
def test_removed_hits_are_greyed_and_explained(seer):
    figure = seer.show_ranking(n=6, k=30, show_removed=True)
    assert any(w.startswith('removed') for w in words(figure))
    assert 'removed: same camera' in ' '.join(legend(figure))


@pytest.mark.slow
def test_two_learners_on_the_same_queries(seer, blind):
    figure = seer.show_ranking(n=2, k=2, versus=blind, names=('full', 'G'))
    assert [w for w in words(figure) if w in ('full', 'G')] == ['full', 'G']*2
    queries = [w for w in words(figure) if w.startswith('query')]
    assert queries[0::2] == queries[1::2]


def test_a_query_without_hits_and_one_without_a_match(seer, catalog):
    test = catalog[catalog.split != 'train']
    query = test[test.split == 'query'].iloc[:1]
    gallery = test[test.split == 'gallery']
    same_camera = gallery[gallery.pid == query.pid.iat[0]].iloc[:1].assign(camid=query.camid.iat[0])
    strangers = gallery[gallery.pid != query.pid.iat[0]].iloc[:2]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that nothing matches is the point here
        alone = seer.show_ranking(catalog=pd.concat([query, same_camera], ignore_index=True), heat=True)
        other = seer.show_ranking(catalog=pd.concat([query, strangers], ignore_index=True), k=5)
    assert any('no hits' in w for w in words(alone))
    assert 'no match in gallery' in words(other)
    assert words(other).count('✗') == 2


def test_search_by_region_against_a_loop(seer, ranked):
    regions = ['foot', 'lower_leg']
    by_regions = RankedSet.of(seer, regions=regions)
    parts = embed_parts(seer, seer.dls.valid, regions)
    a = by_regions.query_rows[1]
    for hit in by_regions.ranking.hits(1, 4).itertuples():
        b = by_regions.gallery_rows[hit.item]
        both = np.flatnonzero(parts.visible[a] & parts.visible[b])
        want = 1 - np.mean([float(parts.embeddings[a, k] @ parts.embeddings[b, k]) for k in both]) if len(both) else 2
        assert hit.distance == pytest.approx(want, abs=1e-5)
    assert (by_regions.identity == ranked.identity).all()


def test_search_by_region_drawn_and_refused(seer, blind, tmp_path):
    figure = seer.show_ranking(regions='foot', n=1, k=3, heat=True, save=tmp_path/'r.png')
    assert 'similarity comes from here' not in legend(figure)
    with pytest.raises(ValueError, match='no mask module'): blind.show_ranking(regions='foot')
    with pytest.raises(ValueError, match='unknown region'): seer.show_ranking(regions='sock')


@pytest.mark.parametrize('kwargs, says', [(dict(k=0), 'k=0: a whole number of 1'),
                                          (dict(heat=True, masks=True), 'room for one below')])
def test_bad_arguments_of_show_ranking(seer, kwargs, says):
    with pytest.raises(ValueError, match=says): seer.show_ranking(**kwargs)


def test_sets_that_cannot_be_ranked(seer, catalog):
    with pytest.raises(ValueError, match='nothing to rank'):
        seer.show_ranking(catalog=catalog[catalog.split == 'train'].head(4))


def test_a_shuffled_loader_is_refused(seer, few):
    dl = seer.loader(few).new(shuffle=True, n_per_id=None)
    with pytest.raises(ValueError, match='does not shuffle'): seer.show_ranking(catalog=dl)


@pytest.mark.slow
def test_browser_steps_and_ranks_once(seer, tmp_path):
    browser = Browser(seer, k=2)
    assert [browser.step(by) for by in (0, 1, -2)] == [browser.order[0], browser.order[1], browser.order[-1]]
    assert browser.ranked(['foot', 'head']) is browser.ranked(['head', 'foot'])
    assert isinstance(browser.figure(['foot']), Figure)
    assert isinstance(seer.browse(k=2), Figure)
    seer.browse(k=2, save=tmp_path/'b.png')
    assert (tmp_path/'b.png').exists()


@pytest.mark.slow
def test_browser_widget(seer, blind):
    pytest.importorskip('ipywidgets')
    bar, ticks, image = Browser(seer, k=2).widget().children
    first = image.value
    bar.children[1].click()
    assert image.value != first
    assert bar.children[2].value.startswith('query 2 of')
    ticks.children[-1].value = True
    assert 'by foot alone' in bar.children[2].value
    bar.children[0].click()
    assert bar.children[2].value.startswith('query 1 of')
    assert not Browser(blind, k=1).widget().children[1].children


@pytest.fixture
def notebook(monkeypatch):
    "What a notebook was shown, as if this were its first cell"
    import IPython
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython, 'get_ipython', lambda: SimpleNamespace(kernel=True, execution_count=1))
    monkeypatch.setattr(IPython.display, 'publish_display_data', lambda *args, **kwargs: shown.append(args))
    return shown


@pytest.mark.slow
def test_a_widget_shows_its_figure_once(seer, notebook, tmp_path):
    pytest.importorskip('ipywidgets')
    box = seer.browse(k=1)
    box.children[0].children[1].click()
    assert bytes(box.children[2].value[:4]) == b'\x89PNG'
    assert not notebook
    seer.browse(k=1, save=tmp_path/'b.png')
    assert len(notebook) == 1


@pytest.mark.slow
def test_browse_in_a_notebook_and_without_widgets(seer, notebook, monkeypatch):
    widgets = pytest.importorskip('ipywidgets')
    assert isinstance(seer.browse(k=1), widgets.VBox)
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    assert isinstance(seer.browse(k=1), Figure)
