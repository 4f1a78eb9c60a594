"What the page's events answer: a visit without a browser"
import base64
from io import BytesIO

import pandas as pd
import pytest
from magnifier.app.desk import Desk
from magnifier.app.upload import MAX_BYTES


@pytest.fixture
def desk(finder): return Desk(finder)


def ask(desk, query, **changes):
    asked = {**dict(cameras=[], not_camera=None, since='', until='', regions=[], threshold=0., masks=False), **changes}
    return desk.search(query, *asked.values())


def as_url(image):
    file = BytesIO()
    image.save(file, format='PNG')
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def test_a_visit(desk):
    key = desk.finder.images['key'].iloc[0]
    query, own, html = desk.pick(key)
    assert own == desk.finder.images['camid'].iloc[0] and f'data-picked="{key}"' in html
    found, match, status, hits, rates, why = ask(desk, query, not_camera=own)
    assert match is None and why == '' and f'{len(found.hits)} hits' in status and hits.count('<button') == len(found.hits) and 'No threshold' in rates
    match, why = desk.explain(found, '1', False)
    assert match.place == 1 and 'Hit 1' in why and why.count('<img') == 4
    hits, why = desk.paint(found, match, 0., True)
    assert hits.count('mg-legend') == why.count('mg-legend') == 1 and desk.paint(found, match, 0., False) != (hits, why)
    threshold = float(found.hits.table['similarity'].iloc[1])
    status, hits, rates = desk.narrow(found, threshold - 1e-6, False, [])
    assert hits.count('<button') == 2 and '2 hits' in status and 'False accepts' in rates
    assert desk.forget()[:2] == (None, None) and 'mg-query' not in desk.forget()[2]


def test_a_person_without_a_camera_among_others_with_one(desk, monkeypatch):
    key, nowhere = desk.finder.images['key'].iloc[0], desk.finder._rows.copy()
    nowhere.loc[key, 'camid'] = pd.NA
    monkeypatch.setattr(desk.finder, '_rows', nowhere)
    query, own, html = desk.pick(key)
    assert own is None and query.row['key'] == key and 'camera' not in html and len(ask(desk, query, not_camera=own)[0].hits)
    assert desk.pick(desk.finder.images['key'].iloc[1])[1] == desk.finder.images['camid'].iloc[1]


def test_an_upload_is_searched(desk):
    query, own, html = desk.upload(as_url(desk.finder.picture(desk.finder.images['key'].iloc[2])), 100)
    assert own is None and query.row is None and 'your picture' in html
    assert ask(desk, query, masks=True)[0].hits[0]['key'] == desk.finder.images['key'].iloc[2]


@pytest.mark.parametrize('data, size, words', [(None, MAX_BYTES + 1, '10.0 MB'), (None, 0, 'No file came'), ('data:,', 0, 'empty'),
                                               ('data:image/svg+xml;base64,PHN2Zy8+', 6, 'SVG')])
def test_a_refused_upload_is_a_sentence_and_nobody_is_searched(desk, data, size, words):
    query, own, html = desk.upload(data, size)
    assert query is None and own is None and 'role="alert"' in html and words in html
    found, _, status, hits, _, _ = ask(desk, query)
    assert found is None and 'Nobody is searched yet' in status and hits == ''


def test_mistakes_are_sentences(desk):
    query = desk.pick(desk.finder.images['key'].iloc[0])[0]
    found, _, status, hits, _, _ = ask(desk, query, since='soon')
    assert found is None and hits == '' and 'role="alert"' in status and 'not a date and time' in status
    assert 'widen them' in ask(desk, query, until='1999-01-01')[2]
    for key in (None, 'x', '../../etc/passwd', '<script>'):
        query, own, html = desk.pick(key)
        assert query is None and 'its file is gone' in html and '<script' not in html
    for found, place in ((None, '1'), (ask(desk, desk.pick(desk.finder.images['key'].iloc[0])[0])[0], '99')):
        for wrong in (place, None, '<b>', '-1'):
            if found is not None and wrong == '1': continue
            match, html = desk.explain(found, wrong, False)
            assert match is None and 'There is no such hit any more' in html


def test_before_anybody_is_searched(desk):
    assert desk.paint(None, None, 0., True) == ('', '') and desk.narrow(None, .5, False, None)[1] == '' and 'Nobody is searched yet' in desk.status()
    assert desk.opened().count('<button') == len(desk.finder.some())


def test_cameras_and_times(desk):
    assert desk.cameras() == [('none', None), *((f'camera {c}', c) for c in desk.finder.cameras)]
    first, last = desk.times()
    assert first == '2025-10-09 08:53' < last
    desk.finder.has_times = False
    assert desk.times() == ('', '')


def test_browse(desk):
    html, page = desk.browse()
    assert 'Page 1 of 1' in html and html.count('<button') == len(desk.finder.images) and page == 1
    assert desk.browse('camera', None, None)[1] == 1 == desk.browse('camera', None, None, -1)[1] == desk.browse('camera', None, None, 1)[1] and desk.browse('identity', 'everybody', -7)[1] == 1 == desk.browse(page=1e9)[1]


def test_pages_are_turned(desk, monkeypatch):
    monkeypatch.setattr('magnifier.app.gallery_tab.PER_PAGE', 5)
    last = -(-len(desk.finder.images)//5)
    turned = [desk.browse('identity', None, page, turn)[1] for page, turn in ((1, 1), (2, -1), (1, -1), (last, 1), (None, 1), (None, -1))]
    assert turned == [2, 1, 1, last, 2, 1]
