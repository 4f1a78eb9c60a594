"The third tab, over galleries with and without tracklets"
import base64
import html
import re
import shutil
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from fasthtml.common import to_xml
from magnifier.app.page import ROWS, people_page
from magnifier.app.search import WhoWhere, who_was_where
from magnifier.app.server import make_page
from magnifier.gallery.gallery import Gallery
from PIL import Image
from starlette.testclient import TestClient


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
