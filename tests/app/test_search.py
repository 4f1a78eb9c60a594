"What the page asks of gallery and model"

import numpy as np
import pytest
from magnifier.look.explain import match_words
from magnifier.app.search import SIDE, Finder, Query, shrunk
from magnifier.regions import N_REGIONS
from PIL import Image


def test_a_person_of_the_gallery_is_searched_without_itself(finder):
    query = finder.pick(finder.images['key'].iloc[0])
    found = finder.find(query)
    assert len(found.hits) == len(finder.images) - 1 and query.row['key'] not in set(found.hits.table['key'])
    assert (np.diff(found.hits.table['similarity']) <= 1e-6).all() and len(found.pictures) == len(found.hits)
    assert found.hits.table['similarity'].tolist() == pytest.approx(
        [float(s) for s in sorted(_cosines(finder, query), reverse=True)][:len(found.hits)], abs=1e-4)


def _cosines(finder, query):
    "Without a gallery: embed all, multiply"
    others = [finder.picture(key) for key in finder.images['key'] if key != query.row['key']]
    e = finder.learn.embed([query.image, *others])
    return (e[1:] @ e[0]).tolist()


def test_an_upload_finds_itself_first(finder):
    found = finder.find(Query(finder.picture(finder.images['key'].iloc[3])), k=5)
    assert found.hits[0]['key'] == finder.images['key'].iloc[3] and found.hits[0]['similarity'] == pytest.approx(1, abs=1e-5) and len(found.hits) == 5


def test_filters(finder):
    row = finder.images.iloc[0]
    query = finder.pick(row['key'])
    assert int(row['camid']) not in finder.find(query, not_camera=int(row['camid'])).hits.table['camid'].tolist()
    assert set(finder.find(query, cameras=finder.cameras[:2]).hits.table['camid']) <= set(finder.cameras[:2])
    middle = finder.images['time'].sort_values().iloc[len(finder.images)//2]
    after = finder.find(query, since=f'{middle:%Y-%m-%dT%H:%M:%S}').hits.table['time']
    assert len(after) and (after >= middle).all()
    assert (finder.find(query, until=f' {middle:%Y-%m-%d %H:%M:%S} ').hits.table['time'] <= middle).all()
    with pytest.raises(ValueError, match='not a date and time'): finder.find(query, since='soon')
    with pytest.raises(ValueError, match='no time is both'): finder.find(query, since='2030-01-01', until='2020-01-01')


def test_regions(finder, people):
    query = finder.pick(finder.images['key'].iloc[0])
    visible = int(people.store.get([query.row['key']], ['key', 'visible'])[0]['visible'])
    from magnifier.regions import REGIONS
    seen = [REGIONS[k] for k in range(1, N_REGIONS) if visible >> k & 1]
    assert finder.by_region and seen
    assert finder.find(query, regions=seen[:2]).hits.regions == tuple(seen[:2])


def test_only_what_was_added_is_shown(finder, monkeypatch, tmp_path):
    key = finder.images['key'].iloc[0]
    assert isinstance(finder.picture(key), Image.Image) and finder.picture('no such key') is None and finder.picture('../../etc/passwd') is None
    other = finder.images['path'].iloc[1]
    for path in (other, '/etc/passwd', str(tmp_path), str(tmp_path/'gone.jpg'), None):
        monkeypatch.setitem(finder._rows, 'path', finder._rows['path'].where(finder._rows.index != key, path))
        assert finder.picture(key) is None
        with pytest.raises(ValueError, match='its file is gone, or is not the one that was added'): finder.pick(key)


def test_pictures_without_files_of_their_own_are_known_by_their_pixels(seer, tmp_path):
    from magnifier.gallery.gallery import Gallery
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 32, 3), np.uint8)) for i in range(2)]
    images[0].save(tmp_path/'0.png')
    with Gallery(tmp_path/'own') as g:
        g.add(seer, images, paths=[tmp_path/'0.png', tmp_path/'1.png'], progress=False)
        finder = Finder(seer, g)
        shown = {row['path']: finder.picture(row['key']) is not None for _, row in finder.images.iterrows()}
        assert shown == {str(tmp_path/'0.png'): True, str(tmp_path/'1.png'): False}
        assert not finder.by_region and not finder.has_times and finder.cameras == []


def test_masks_of_hits(finder):
    found = finder.find(finder.pick(finder.images['key'].iloc[0]), k=3)
    found.pictures[1] = None
    labels = finder.label(found).labels
    assert labels[1] is None and labels[0].shape == (64, 32) and labels[0].max() < N_REGIONS
    assert finder.label(found).labels is labels  # asked once
    found = finder.find(finder.pick(finder.images['key'].iloc[0]), k=1)
    found.pictures[0] = None
    assert finder.label(found).labels == []


def test_a_match_is_the_learners_own_explanation(finder, seer):
    query = finder.pick(finder.images['key'].iloc[0])
    match = finder.match(finder.find(query), 2)
    own = seer.explain(query.image, finder.picture(match.row['key']))
    np.testing.assert_allclose(match.table.to_numpy(float), own.table.to_numpy(float), rtol=1e-4, atol=1e-5)
    assert match.words == match_words(match.table, own.score) == own.words
    assert match.place == 2 and match.table['share'].sum() == pytest.approx(match.row['similarity'], abs=1e-4)
    for place in (0, 99, -1, 'first', None):
        with pytest.raises(ValueError, match='there is no such hit any more'): finder.match(finder.find(query), place)


def test_an_explanation_says_what_else_a_hit_was_found_by(finder):
    query = finder.pick(finder.images['key'].iloc[0])
    found = finder.find(query, regions=['head', 'chest', 'upper_leg'])
    match = finder.match(found, 1)
    alike = match.table['similarity'][['head', 'chest', 'upper_leg']]
    assert match.row['similarity'] == pytest.approx(alike.mean(), abs=1e-4) and match.row['shared'] == alike.notna().sum()
    start = f'Found with {match.row["similarity"]:.2f} by head, chest, upper leg alone, as far as both show them; what follows is of the whole person. '
    assert match.words == start + match_words(match.table, match.table['share'].sum())


def test_a_model_without_parts(blind, few, tmp_path):
    from magnifier.gallery.gallery import Gallery
    with Gallery(tmp_path/'blind') as g:
        g.add(blind, few.head(4), progress=False)
        finder = Finder(blind, g)
        found = finder.find(finder.pick(finder.images['key'].iloc[0]))
        assert not finder.parts and not finder.by_region and len(found.hits) == 3
        for ask in (lambda: finder.label(found), lambda: finder.match(found, 1)):
            with pytest.raises(ValueError, match='this model knows no parts'): ask()


def test_galleries_that_cannot_be_searched(blind, people, seer, tmp_path):
    from magnifier.gallery.gallery import Gallery
    with pytest.raises(ValueError, match='use the learner that made it'): Finder(blind, people)
    with Gallery(tmp_path/'empty') as g, pytest.raises(ValueError, match='is empty: add images first'): Finder(seer, g)


def test_rates_are_worked_out_once(finder, monkeypatch):
    from magnifier.app import search as page_search
    first = finder.rates()
    monkeypatch.setattr(page_search, 'pair_rates', lambda *a: pytest.fail('again'))
    assert finder.rates() is first and len(first.impostor)
    finder.refresh()
    monkeypatch.undo()
    assert finder.rates() is not first


def test_some_are_different_people(finder):
    assert finder.some(3)['pid'].is_unique and len(finder.some(3)) == 3 and len(finder.some(100)) == len(finder.images)


def test_shrunk():
    image = Image.new('RGB', (2000, 4000))
    assert shrunk(image).size == (SIDE//2, SIDE) and image.size == (2000, 4000) and shrunk(None) is None and shrunk(Image.new('RGB', (4, 8))).size == (4, 8)
