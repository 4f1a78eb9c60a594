"What the page asks of gallery and model: hits and why, what thresholds stand for, who was where"
import base64
import html
import re
import shutil
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from fasthtml.common import to_xml
from PIL import Image
from starlette.testclient import TestClient

from magnifier.app import search as page_search
from magnifier.app.page import ROWS, people_page
from magnifier.app.search import (
    PER_IDENTITY, REMEMBERED, SAMPLE, SIDE, Asked, Finder, Query, WhoWhere, pair_rates, region_table, region_words,
    sample_keys, shrunk, who_was_where)
from magnifier.app.server import make_page
from magnifier.gallery.gallery import Gallery
from magnifier.look.explain import match_words
from magnifier.regions import N_REGIONS, REGIONS


@pytest.fixture
def key(finder): return finder.images['key'].iloc[0]


def ask(finder, key, **changes): return finder.find(Asked(key, **{'own_camera': False, **changes}))


def test_a_person_of_the_gallery_is_searched_without_itself(finder, key):
    found = ask(finder, key)
    table = found.hits.table
    assert sorted([*table['key'], key]) == sorted(finder.images['key'])
    assert len(found.images) == len(table)
    others = [finder.image(k) for k in table['key']]
    embedded = finder.learn.embed([found.query.image, *others])  # without a gallery: embed all, multiply
    np.testing.assert_allclose(table['similarity'], embedded[1:] @ embedded[0], atol=1e-4)
    assert (np.diff(table['similarity']) <= 1e-6).all()


def test_an_upload_finds_itself_first(finder, tmp_path):
    row = finder.images.iloc[3]
    finder.image(row['key']).save(tmp_path/'upload.png')
    upload = finder.uploads.keep((tmp_path/'upload.png').read_bytes())
    found = ask(finder, upload, own_camera=True)
    assert found.hits[0]['key'] == row['key']
    assert found.hits[0]['similarity'] == pytest.approx(1, abs=1e-5)
    assert found.query.row is None
    assert found.left_out == ()


def test_what_is_not_there_is_said(finder):
    for wrong, words in (('upload-gone', 'choose it again'), ('no such key', 'its file is gone'),
                         ('../../etc/passwd', 'its file is gone')):
        with pytest.raises(ValueError, match=words): ask(finder, wrong)
        with pytest.raises(ValueError, match=words): finder.query(wrong)


def test_cameras(finder, key):
    own = int(finder.images.iloc[0]['camid'])
    cameras = lambda **changes: set(ask(finder, key, **changes).hits.table['camid'])
    first, second = finder.cameras[:2]
    assert cameras() == set(finder.cameras)
    assert cameras(own_camera=True) == set(finder.cameras) - {own}
    assert cameras(not_cameras=(second,)) == set(finder.cameras) - {second}
    assert cameras(cameras=(first, second)) == {first, second}
    assert ask(finder, key, own_camera=True, not_cameras=(second,)).left_out == tuple(sorted({own, second}))
    for wrong in (dict(cameras=(999,)), dict(not_cameras=(10**30,))):
        with pytest.raises(ValueError, match='has no camera'): ask(finder, key, **wrong)


def test_an_own_camera_that_nobody_knows_leaves_nothing_out(finder, key, monkeypatch):
    rows = finder._rows.copy()
    rows.loc[key, 'camid'] = pd.NA
    monkeypatch.setattr(finder, '_rows', rows)
    found = ask(finder, key, own_camera=True)
    assert found.left_out == ()
    assert len(found.hits) == len(finder.images) - 1


def test_times(finder, key):
    middle = finder.images['time'].sort_values().iloc[len(finder.images)//2]
    times = finder.images['time'][finder.images['key'] != key]
    after = ask(finder, key, since=f'{middle:%Y-%m-%dT%H:%M:%S}').hits.table['time']
    before = ask(finder, key, until=f' {middle:%Y-%m-%d %H:%M:%S} ').hits.table['time']
    assert sorted(after) == sorted(times[times >= middle])
    assert sorted(before) == sorted(times[times <= middle])
    with pytest.raises(ValueError, match='not a date and time'): ask(finder, key, since='soon')
    with pytest.raises(ValueError, match='no time is both'): ask(finder, key, since='2030-01-01', until='2020-01-01')


def test_who_is_searched(finder, key):
    row = lambda pid, camid=1: pd.Series(dict(pid=pid, camid=camid))
    image = Image.new('RGB', (8, 8))
    assert Query('k', image, row(7)).pid == 7
    assert [Query('k', image, row(unknown)).pid for unknown in (pd.NA, 0)] == [None, None]
    assert Query('upload-k', image).pid is None
    assert Query('k', image, row(7, pd.NA)).camera is None


def test_only_what_was_added_is_shown(finder, key, monkeypatch, tmp_path):
    assert isinstance(finder.image(key), Image.Image)
    other = finder.images['path'].iloc[1]
    for path in (other, '/etc/passwd', str(tmp_path), str(tmp_path/'gone.jpg'), None):
        rows = finder._rows.copy()
        rows.loc[key, 'path'] = path
        monkeypatch.setattr(finder, '_rows', rows)
        assert finder.image(key) is None
        with pytest.raises(ValueError, match='its file is gone, or is not the one that was added'): finder.query(key)


def test_images_without_files_of_their_own_are_known_by_their_pixels(seer, tmp_path):
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 32, 3), np.uint8)) for i in range(2)]
    images[0].save(tmp_path/'0.png')
    with Gallery(tmp_path/'own') as g:
        g.add(seer, images, paths=[tmp_path/'0.png', tmp_path/'1.png'], progress=False)
        finder = Finder(seer, g, {})
        shown = {row['path']: finder.image(row['key']) is not None for _, row in finder.images.iterrows()}
    assert shown == {str(tmp_path/'0.png'): True, str(tmp_path/'1.png'): False}
    assert not finder.by_region
    assert not finder.has_times
    assert finder.cameras == []


def test_masks_of_hits(finder, key):
    found = ask(finder, key)
    found.images[1] = None
    labels = finder.labels(found)
    assert labels[1] is None
    assert labels[0].shape == (64, 32)
    assert labels[0].max() < N_REGIONS
    found.images[:] = [None]*len(found.images)
    finder.labels.cache_clear()
    assert finder.labels(found) == found.images


@pytest.mark.slow
def test_a_match_is_the_learners_own_explanation(finder, seer, key):
    match = finder.match(ask(finder, key), 2)
    own = seer.explain(match.query.image, finder.image(match.row['key']))
    np.testing.assert_allclose(match.table.to_numpy(float), own.table.to_numpy(float), rtol=1e-4, atol=1e-5)
    assert match.words == match_words(match.table, own.score)
    assert match.table['share'].sum() == pytest.approx(match.row['similarity'], abs=1e-4)
    assert len(match.heats) == 2


@pytest.mark.slow
def test_a_search_by_regions_is_explained_by_regions(finder, key):
    regions = ('head', 'chest', 'upper_leg')
    found = ask(finder, key, regions=regions)
    assert found.hits.regions == regions
    for place in (1, len(found.hits)):
        match = finder.match(found, place)
        assert match.table['share'].sum() == pytest.approx(match.row['similarity'], abs=1e-4)
        assert match.table['share'].notna().sum() == match.row['shared']
        assert set(match.table.index[match.table['share'].notna()]) <= set(regions)
        assert match.heats == ()
        assert match.regions == regions
        assert match.words.startswith(f'Similarity {match.row["similarity"]:.2f}')


def test_regions_in_numbers_and_words():
    columns = dict(similarity=np.arange(8)/10, seen_query=.1, seen_hit=.1, share=9.)
    table = pd.DataFrame(columns, index=list(REGIONS))
    table.loc['head', 'similarity'] = np.nan
    two = region_table(table, ('head', 'upper_arm', 'foot'))
    assert two['share'].dropna().to_dict() == {'upper_arm': pytest.approx(.15), 'foot': pytest.approx(.35)}
    assert region_words(two, .5) == ('Similarity 0.50, the mean over upper arm, foot. Most alike: foot (0.70). '
                                     'Least alike: upper arm (0.30). Left out, since not seen in both: head.')
    assert region_words(region_table(table, ('foot',)), .7) == 'Similarity 0.70, by foot alone.'
    assert region_words(region_table(table, ('foot',)), .7, stripes=True) == 'Similarity 0.70, by stripe 7 alone.'
    assert (table['share'] == 9).all()  # as it was


@pytest.mark.slow
def test_a_model_without_parts(blind, few, tmp_path):
    with Gallery(tmp_path/'blind') as g:
        g.add(blind, few.head(4), progress=False)
        finder = Finder(blind, g, {})
        found = ask(finder, finder.images['key'].iloc[0])
        assert not finder.parts
        assert not finder.by_region
        assert len(found.hits) == 3
        with pytest.raises(ValueError, match='this model knows no parts'): finder.match(found, 1)
        with TestClient(make_page(blind, g), base_url='http://127.0.0.1:7860') as client:
            answer = client.post('/search', data=dict(query=found.query.key, masks='on'))  # as no form of its page asks
        assert '3 hits' in answer.text


def test_galleries_that_cannot_be_searched(blind, people, seer, tmp_path):
    with pytest.raises(ValueError, match='their embeddings cannot be compared'): Finder(blind, people, {})
    with Gallery(tmp_path/'empty') as g, pytest.raises(ValueError, match='is empty: add images first'):
        Finder(seer, g, {})


@pytest.mark.slow
def test_what_was_asked_is_not_worked_out_again(finder, key, monkeypatch):
    found, rates = ask(finder, key), finder.rates(())
    match = finder.match(found, 1)
    assert len(rates.impostor)
    for name in ('pair_rates', 'explain_images'):
        monkeypatch.setattr(page_search, name, lambda *a: pytest.fail('again'))
    assert ask(finder, key) is found
    assert finder.rates(()) is rates
    assert finder.match(found, 1) is match
    monkeypatch.undo()
    finder.refresh()  # somebody may have been deleted
    assert ask(finder, key) is not found
    assert finder.rates(()) is not rates
    for i in range(REMEMBERED + 2): ask(finder, key, since=f'{1990 + i}-01-01')
    assert finder.find.cache_info().currsize == REMEMBERED


def test_some_are_different_people(finder):
    assert finder.some(3)['pid'].is_unique
    assert len(finder.some(3)) == 3
    assert len(finder.some(100)) == len(finder.images)


def test_shrunk():
    image = Image.new('RGB', (2000, 4000))
    assert shrunk(image).size == (SIDE//2, SIDE)
    assert image.size == (2000, 4000)
    assert shrunk(Image.new('RGB', (4, 8))).size == (4, 8)
    assert shrunk(None) is None


# What thresholds stand for, against pairs counted one by one

def unit(x): return x/np.linalg.norm(x)


class Shelf:
    "As much of a gallery as the rates ask for"

    def __init__(self, pids, cameras, seed=0, d=6):
        rng = np.random.default_rng(seed)
        visible = rng.integers(0, 256, len(pids))
        parts = rng.normal(size=(len(pids), N_REGIONS, 3)).astype(np.float32)
        parts /= np.linalg.norm(parts, axis=2, keepdims=True)
        parts *= (visible[:, None] >> np.arange(N_REGIONS) & 1)[..., None]
        vectors = [unit(rng.normal(size=d).astype(np.float32)) for _ in pids]
        self.rows = [dict(key=f'k{i}', pid=pids[i], camid=cameras[i], vector=vectors[i], regions=parts[i].ravel(),
                          visible=int(visible[i])) for i in range(len(pids))]

    def images(self): return pd.DataFrame(self.rows)[['key', 'pid', 'camid']].astype({'pid': 'Int64', 'camid': 'Int64'})

    def embeddings(self, keys):
        rows = {r['key']: r for r in self.rows}
        return np.stack([rows[key]['vector'] for key in keys])

    def region_embeddings(self, keys):
        rows = {r['key']: r for r in self.rows}
        seen = [[rows[key]['visible'] >> region & 1 for region in range(N_REGIONS)] for key in keys]
        return np.stack([rows[key]['regions'].reshape(N_REGIONS, -1) for key in keys]), np.array(seen, bool)


PIDS, CAMERAS = [1, 1, 1, 2, 2, 3, None, 0, 0, 3], [1, 2, 2, 1, None, 1, 1, 1, 2, 1]


def slow(shelf, similarity):
    "Pairs of people with names, one by one"
    impostor, genuine = [], []
    rows = [r for r in shelf.rows if r['pid']]
    for i, a in enumerate(rows):
        for b in rows[i + 1:]:
            s = similarity(a, b)
            if s is None: continue
            if a['pid'] != b['pid']: impostor.append(s)
            elif a['camid'] is None or b['camid'] is None or a['camid'] != b['camid']: genuine.append(s)
    return sorted(impostor), sorted(genuine)


def cosine(a, b): return float(a['vector'] @ b['vector']/np.linalg.norm(a['vector'])/np.linalg.norm(b['vector']))


def by_regions(wanted):
    def similarity(a, b):
        both = [k for k in map(REGIONS.index, wanted) if a['visible'] & b['visible'] >> k << k & 1 << k]
        if not both: return None
        x, y = a['regions'].reshape(N_REGIONS, -1), b['regions'].reshape(N_REGIONS, -1)
        return float(np.mean([x[k] @ y[k] for k in both]))
    return similarity


@pytest.mark.parametrize('regions', [(), ('foot',), ('head', 'chest', 'foot')])
def test_pairs_are_those_counted_one_by_one(regions):
    shelf = Shelf(PIDS, CAMERAS)
    rates = pair_rates(shelf, regions)
    impostor, genuine = slow(shelf, by_regions(regions) if regions else cosine)
    np.testing.assert_allclose(np.sort(rates.impostor), impostor, atol=1e-5)
    np.testing.assert_allclose(np.sort(rates.genuine), genuine, atol=1e-5)


def test_nobody_seen_by_two_cameras():
    rates = pair_rates(Shelf([1, 2, 3], [1, 1, 1]))
    assert len(rates.impostor) == 3
    assert len(rates.genuine) == 0


@pytest.mark.parametrize('pids', [[None, None, None], [1, 1, 1], [0, 0, 1], [1, None, 0]])
def test_unknown_without_two_people(pids): assert pair_rates(Shelf(pids, [1, 2, 3])) is None


def test_one_person_with_many_pictures_is_not_many_people():
    keys = sample_keys(Shelf([7]*500 + list(range(10, 30)), [1]*520).images())
    assert len(keys) == PER_IDENTITY + 20
    assert len(set(keys)) == len(keys)


def test_a_sample_holds_whole_identities_and_is_the_same_again():
    images = Shelf(np.repeat(np.arange(1, 601), 4).tolist(), [1, 2, 3, 4]*600).images()
    keys = sample_keys(images)
    sizes = images[images['key'].isin(keys)]['pid'].value_counts()
    assert len(keys) == SAMPLE
    assert (sizes == 4).all()
    assert keys == sample_keys(images)
    assert keys != images['key'].head(SAMPLE).tolist()


# The third tab, over galleries with and without tracklets

EVIL = '"><script>alert(1)</script>'


def rows_of(text):
    "The table's rows, without its head"
    return [[html.unescape(cell.strip()) for cell in re.findall('<td>(.*?)</td>', row, re.S)]
            for row in text.split('<tr>')[2:]]


@pytest.fixture(scope='module')
def folder(seer, few, tmp_path_factory):
    "Four tracklets of three images each: two people, each before two cameras"
    folder = tmp_path_factory.mktemp('followed')/'people'
    first, last = (few[few['pid'] == pid].head(3)['path'] for pid in few['pid'].iloc[[0, -1]])
    images, cameras, times, tracklets = [], [], [], []
    for n, (camera, paths) in enumerate([(1, first), (1, last), (2, first), (2, last)]):
        for second, path in enumerate(paths):
            images.append(Image.open(path).convert('RGB').resize((32, 64 + 2*camera)))
            cameras.append(camera)
            times.append(1_760_000_000 + 60*n + second)
            tracklets.append(f'{camera}/cam{camera}/{n}')
    with Gallery(folder) as g:
        g.add(seer, images, camids=cameras, times=times, tracklets=tracklets, progress=False)
    return folder


@pytest.fixture
def followed(folder, tmp_path):
    "A copy of that gallery, which a test may change"
    shutil.copytree(folder, tmp_path/'people')
    with Gallery(tmp_path/'people') as g: yield g


def joined(g):
    "Labels tracklets 0 and 2 as person 5, and tracklet 1 as person 8; the last stays nobody's"
    rows = g.store.read(columns=('key', 'tracklet'))
    person = {'1/cam1/0': 5, '2/cam2/2': 5, '1/cam1/1': 8}
    known = [(key, person[name]) for key, name in zip(*rows.values()) if name in person]
    g.label(*zip(*known))


def shown(seer, g):
    with TestClient(make_page(seer, g), base_url='http://127.0.0.1:7860', headers={'HX-Request': 'true'}) as client:
        answer = client.post('/people')
    assert answer.status_code == 200
    return answer.text


def test_people_who_were_joined(seer, followed):
    joined(followed)
    before = followed.images()
    text = shown(seer, followed)
    rows = rows_of(text)
    assert [row[:2] for row in rows] == [['5', '1'], ['5', '2'], ['8', '1']]
    assert rows[0][2:5] == ['2025-10-09 08:53:20', '2025-10-09 08:53:22', '1/cam1/0']
    assert 'not joined to people yet: 1. Run magnifier_people' in text
    data, = re.findall('data:image/png;base64,([A-Za-z0-9+/=]+)', text)
    assert Image.open(BytesIO(base64.b64decode(data))).size[0] > 500
    pd.testing.assert_frame_equal(followed.images(), before)  # looking writes nothing


def test_tracklets_that_nobody_joined(seer, followed):
    text = shown(seer, followed)
    assert 'not joined to people yet: 4. Run magnifier_people' in text
    assert '<table' not in text
    assert '<img' not in text


def test_single_images_have_no_timeline(seer, people): assert 'magnifier_index --video' in shown(seer, people)


@pytest.mark.slow
def test_a_deleted_person_is_gone_when_the_page_is_opened_again(seer, followed):
    joined(followed)
    with TestClient(make_page(seer, followed), base_url='http://127.0.0.1:7860') as client:
        assert [row[0] for row in rows_of(client.post('/people').text)] == ['5', '5', '8']
        followed.delete(pids=[5])
        client.get('/')
        assert [row[0] for row in rows_of(client.post('/people').text)] == ['8']


def test_names_are_text_and_long_tables_are_cut():
    n = ROWS + 1
    times = pd.to_datetime(np.arange(n), unit='s', utc=True)
    table = pd.DataFrame(dict(person=range(n), camid=1, start=times, end=times, tracklet=EVIL, certainty=np.nan))
    text = to_xml(people_page(WhoWhere(table, 0, b'png')))
    assert len(rows_of(text)) == ROWS
    assert f'first {ROWS} of {n} rows' in text
    assert rows_of(text)[0][4] == EVIL
    assert '<script' not in text


@pytest.mark.slow
def test_nobody_is_joined_by_looking(followed):
    joined(followed)
    found = who_was_where(followed)
    assert found.unjoined == 1
    assert found.table.groupby('person')['tracklet'].count().to_dict() == {5: 2, 8: 1}
