"Pieces of the page: what they say, and that nothing in them is taken for HTML"
import base64
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from magnifier.look.explain import REST
from magnifier.app.html import (card, data_url, hits_html, legend_html, match_html, picture_html, query_html, rates_html, said, status_html,
                                      strip_html, who)
from magnifier.app.rates import PairRates
from magnifier.app.search import Found, Match, Query
from magnifier.regions import BODY_REGIONS, REGIONS
from magnifier.gallery.hits import Hits
from PIL import Image

EVIL = '"><script>alert(1)</script>\'&{{x}}${x}'
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))


class Reader(HTMLParser):
    "Elements, text, and whether all that opened was closed"

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], '', []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('img', 'input', 'br'): self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.text += data

    def all(self, tag): return [a for t, a in self.tags if t == tag]


def hits(n=3, **more):
    t = pd.DataFrame(dict(path=[f'/a/{i}.jpg' for i in range(n)], pid=pd.array([None, 7, 8][:n], 'Int64'), camid=pd.array([1, None, 3][:n], 'Int64'),
                          time=pd.to_datetime([0, None, 86400][:n], unit='s', utc=True), similarity=[.9, .5, -.1][:n], key=[f'k{i}' for i in range(n)]))
    return Found(Query(PICTURE), Hits(t, PICTURE, **more), [PICTURE, None, PICTURE][:n])


def test_a_picture_is_inside_the_text():
    for picture in (PICTURE, np.asarray(PICTURE)/255):
        kind, data = data_url(picture).split(',')
        image = Image.open(BytesIO(base64.b64decode(data)))
        assert kind == 'data:image/jpeg;base64' and image.size == (20, 40)
    assert 'its file is gone' in picture_html(None)
    assert picture_html(PICTURE) != picture_html(PICTURE, np.ones((8, 4), int))


def test_nothing_is_taken_for_html():
    for html in (said(EVIL), said(EVIL, 'alert'), card(PICTURE, EVIL, [EVIL], does=EVIL, first=EVIL), query_html(wrong=EVIL), status_html(wrong=EVIL)):
        read = Reader(html)
        assert not read.all('script') and '<script' not in html and ('alert(1)' in read.text or read.all('button'))
    assert Reader(card(None, EVIL, [], does='x')).all('button')[0]['data-key'] == EVIL


def test_a_card_reads_itself_out():
    read = Reader(card(PICTURE, 3, ['identity 7', 'camera 1'], does='Explain', first='3. 0.80'))
    button, = read.all('button')
    assert button['aria-label'] == 'Explain: 3. 0.80, identity 7, camera 1' and button['type'] == 'button' and button['data-key'] == '3'
    assert read.all('img')[0]['alt'] == ''  # the button's name says it


def test_who():
    rows = hits().hits.table.to_dict('records')
    assert [who(r) for r in rows] == [['unknown', 'camera 1', '1970-01-01 00:00:00'], ['identity 7'], ['identity 8', 'camera 3', '1970-01-02 00:00:00']]


def test_query_and_drop_zone():
    read = Reader(query_html())
    assert read.all('label')[0]['for'] == read.all('input')[0]['id'] == 'mg-file' and not read.all('img') and not read.all('button')
    read = Reader(query_html(Query(PICTURE)))
    assert 'your picture' in read.text and read.all('img')[0]['alt'].startswith('the person who is searched') and read.all('button')
    read = Reader(query_html(Query(PICTURE, hits().hits[2])))
    assert 'identity 8, camera 3' in read.text and read.all('figure')[0]['data-picked'] == 'k2'
    assert Reader(query_html(wrong='No.')).all('p')[-1]['role'] == 'alert'


def test_hits_and_threshold():
    read = Reader(hits_html(hits()))
    assert [b['data-key'] for b in read.all('button')] == ['1', '2', '3'] and '1. 0.90' in read.text and 'its file is gone' in read.text
    assert len(Reader(hits_html(hits(), .5)).all('button')) == 2 and not Reader(hits_html(hits(), .95)).all('button')
    found = hits()
    found.labels = [np.ones((8, 4), int), None, np.zeros((8, 4), int)]
    painted = hits_html(found, 0., True)
    assert painted.count('mg-legend') == 1 and painted != hits_html(found) and 'mg-legend' not in hits_html(hits(), 0., True).replace('mg-legend', '', 1)


def test_status():
    text = lambda *a, **k: Reader(status_html(*a, **k)).text
    assert 'Nobody is searched yet' in text() and 'widen them' in text(hits(0))
    assert text(hits()) == '3 hits, most similar first. Choose one to see why it was found.' and 'Choose' not in text(hits(), parts=False)
    assert text(hits(), .8).startswith('1 hit, most similar first. 2 of the first 3 are less alike')
    assert 'all of the first 3 are less alike' in text(hits(), .95)
    assert '3 hits by upper leg, foot,' in text(hits(regions=('upper_leg', 'foot')))


def test_rates_in_words():
    rates = PairRates(np.linspace(0, .9, 1000), np.linspace(.2, 1, 10))
    text = Reader(rates_html(rates, .5, 2000)).text
    assert 'False accepts 44 %' in text and 'about 890 of 2,000 images' in text and 'Misses 40 %' in text and '1,000 pairs' in text
    assert 'False accepts under 0.1 %' in rates_html(rates, .95, 10) and 'hardly one' in rates_html(rates, .95, 10)
    assert 'False accepts 0.1 %' in rates_html(rates, .9, 100) and 'about 0.1 of' in rates_html(rates, .9, 100)
    assert 'Misses' not in rates_html(rates._replace(genuine=np.empty(0)), .5, 10)
    assert 'No threshold' in rates_html(rates, 0., 10) and 'not known here' in rates_html(None, .5, 10)


def match():
    table = pd.DataFrame({'similarity': np.linspace(.9, .2, 8), 'seen_query': .1, 'seen_hit': .1, 'share': np.linspace(-.1, .3, 8)}, index=list(REGIONS))
    table.loc['head', ['similarity', 'seen_query']] = np.nan, 0.
    table.loc['foot', ['similarity', 'seen_hit']] = np.nan, 0.
    table.loc['chest', ['similarity', 'seen_query', 'seen_hit']] = np.nan, 0., 0.
    table.loc[REST] = [np.nan, np.nan, np.nan, .02]
    labels = np.arange(8).repeat(4).reshape(8, 4)
    return Match(hits().hits[1], 2, f'Words {EVIL}', table, (PICTURE, PICTURE), (labels, labels), (np.eye(8), -np.eye(8)))


def test_an_explanation_says_what_its_bars_show():
    html = match_html(match())
    read = Reader(html)
    assert len(read.all('img')) == 4 and all(i['alt'] for i in read.all('img')) and not read.all('script') and 'Hit 2: identity 7' in read.text
    rows = [r for r in html.split('<tr>')[2:]]
    assert [r.split('scope="row">')[1] != '' for r in rows] == [True]*9
    head, chest, foot = (next(r for r in rows if f'{n}</th>' in r) for n in ('head', 'chest', 'foot'))
    assert 'not seen in the query' in head and 'not seen in either' in chest and 'not seen in the hit' in foot
    assert 'mg-minus' in next(r for r in rows if 'background</th>' in r) and '-0.10' in html and '+0.30' in html
    assert {a['scope'] for a in read.all('th')} == {'row', 'col'} and 'mg-legend' not in html and 'mg-legend' in match_html(match(), True)


def test_legend(): assert all(r.replace('_', ' ') in legend_html() for r in BODY_REGIONS)


def test_strip():
    rows = hits().hits.table
    assert strip_html(rows, [None]*3) == '' and len(Reader(strip_html(rows, [PICTURE, None, PICTURE])).all('button')) == 2


@pytest.mark.parametrize('heats', [(np.zeros((4, 2)), np.zeros((4, 2))), (-np.ones((4, 2)), np.zeros((4, 2)))])
def test_cold_maps(heats): Reader(match_html(match()._replace(heats=heats)))
