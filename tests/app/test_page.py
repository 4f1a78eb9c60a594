"The page's pieces: what they say, and that nothing in them is taken for HTML"
import base64
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from fasthtml.common import to_xml
from magnifier.app import page
from magnifier.app.page import (EVERYBODY, card, chosen, data_url, gallery_page, hits_list, picture, rates_said, status,
                                strip, why)
from magnifier.app.search import Found, Match, PairRates, Query, region_table
from magnifier.gallery.hits import Hits
from magnifier.look.explain import REST
from magnifier.regions import BODY_REGIONS, REGIONS
from PIL import Image

EVIL = '"><script>alert(1)</script>\'&{{x}}${x}'
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))
VOID = ('img', 'input', 'br')


class Reader(HTMLParser):
    "Elements, text and the rows of tables of some pieces; opened elements must be closed"

    def __init__(self, *pieces):
        super().__init__()
        self.tags, self.text, self.open, self.rows = [], '', [], []
        self.feed(to_xml(pieces, indent=False))
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th'): self.rows[-1].append('')

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {'td', 'th'} & set(self.open): self.rows[-1][-1] += data

    def all(self, tag): return [a for t, a in self.tags if t == tag]


def rows(n=3):
    known = lambda *values: pd.array(values, 'Int64')
    table = dict(path=['/a/0.jpg', '/a/1.jpg', '/a/2.jpg'], pid=known(None, 7, 8), camid=known(1, None, 3),
                 time=pd.to_datetime([0, None, 86400], unit='s', utc=True), similarity=[.9, .5, -.1],
                 key=['k0', 'k1', 'k2'])
    return pd.DataFrame(table).head(n)


def found(n=3, regions=None, query_row=None, left_out=()):
    return Found(Query('q', IMAGE, query_row), Hits(rows(n), IMAGE, regions), [IMAGE, None, IMAGE][:n], left_out)


def test_an_image_is_inside_the_text():
    ramp = Image.linear_gradient('L').resize((20, 40)).convert('RGB')
    for image in (ramp, np.asarray(ramp)/255):
        kind, data = data_url(image).split(',')
        decoded = Image.open(BytesIO(base64.b64decode(data)))
        assert kind == 'data:image/jpeg;base64'
        np.testing.assert_allclose(np.asarray(decoded, float), np.asarray(ramp), atol=8)
    assert 'its file is gone' in Reader(picture(None)).text
    assert to_xml(picture(IMAGE)) != to_xml(picture(IMAGE, np.ones((8, 4), int)))


@pytest.mark.parametrize('piece', [status(wrong=EVIL), chosen(wrong=EVIL), why(wrong=EVIL),
                                   card(IMAGE, 'hit', EVIL, [EVIL], does=EVIL, first=EVIL)])
def test_nothing_is_taken_for_html(piece):
    read = Reader(piece)
    assert not read.all('script')
    assert EVIL in read.text
    assert all(button['value'] in (EVIL, '') for button in read.all('button'))


def test_a_card_reads_itself_out():
    read = Reader(card(IMAGE, 'hit', 'k3', ['identity 7', 'camera 1'], does='Explain', first='3. 0.80', same=False))
    button, = read.all('button')
    assert button['aria-label'] == 'Explain: 3. 0.80, identity 7, camera 1, another person'
    assert (button['type'], button['name'], button['value'], button['form']) == ('button', 'hit', 'k3', 'search')
    assert read.text == '3. 0.80✗ identity 7camera 1'
    assert read.all('img')[0]['alt'] == ''  # the button's label says it
    assert '✓' in Reader(card(None, 'hit', 'k', ['identity 7'], does='Explain', same=True)).text


def test_who_is_searched():
    read = Reader(chosen())
    assert read.all('input') == [dict(type='hidden', name='query', value='')]
    assert not read.all('img')
    read = Reader(chosen(Query('k1', IMAGE, rows().iloc[1])))
    assert read.all('input')[0]['value'] == 'k1'
    assert read.all('img')[0]['alt'] == 'the person who is searched: identity 7'
    assert read.all('button')[0]['value'] == ''
    assert 'your image' in Reader(chosen(Query('upload-x', IMAGE))).text
    assert Reader(chosen(Query('k0', IMAGE, rows().iloc[0]))).text.startswith('unknown, camera 1, 1970-01-01\n00:00:00')


def test_hits_and_threshold():
    values = lambda *args: [b['value'] for b in Reader(hits_list(*args)).all('button')]
    assert values(found()) == ['k0', 'k1', 'k2']
    assert values(found(), .5) == ['k0', 'k1']  # at the threshold is a hit
    assert values(found(), .95) == []
    assert values() == []
    read = Reader(hits_list(found(query_row=rows().iloc[1])))
    assert '1. 0.90unknown' in read.text
    assert '2. 0.50✓ identity 7' in read.text
    assert '✗ identity 8' in read.text


def test_masks_come_with_their_legend():
    labels = [np.ones((8, 4), int), None, np.zeros((8, 4), int)]
    plain, painted = Reader(hits_list(found())), Reader(hits_list(found(), 0., labels))
    sources = lambda read: [image['src'] for image in read.all('img')]
    assert sources(plain)[0] != sources(painted)[0]
    assert [len(read.all('ul')) for read in (plain, painted)] == [0, 1]
    assert all(r.replace('_', ' ') in painted.text for r in BODY_REGIONS)
    assert not Reader(hits_list(found(), .95, labels)).all('ul')  # no hits, no legend


def test_status():
    text = lambda *a, **k: Reader(status(*a, **k)).text
    assert 'Nobody is searched yet' in text()
    assert 'widen them' in text(found(0))
    assert text(found()) == '3 hits, most similar first. Choose one to see why it was found.'
    assert text(found(), parts=False) == '3 hits, most similar first.'
    assert text(found(), .8).startswith('1 hit, most similar first. 2 of the first 3 are less alike')
    assert 'all of the first 3 are less alike' in text(found(), .95)
    said = text(found(regions=('upper_leg', 'foot'), left_out=(1, 4)))
    assert said.startswith('3 hits by upper leg, foot, most similar first. Left out: camera 1, 4.')


def test_rates_in_words():
    rates = PairRates(np.linspace(0, .9, 1000), np.linspace(.2, 1, 10))
    text = lambda *args: Reader(rates_said(*args)).text
    said = text(rates, .5, 2000)
    for words in ('False accepts 44 %', 'about 890 of 2,000 images', 'Misses 40 %', '1,000 pairs'): assert words in said
    assert 'False accepts under 0.1 %' in text(rates, .95, 10)
    assert 'hardly one' in text(rates, .95, 10)
    assert 'False accepts 0.1 %' in text(rates, .9, 100)  # a pair at the threshold is accepted
    assert 'about 0.1 of' in text(rates, .9, 100)
    assert 'Misses' not in text(rates._replace(genuine=np.empty(0)), .5, 10)
    assert 'No threshold' in text(rates, 0., 10)
    assert 'not known here' in text(None, .5, 10)


def match(query_pid=None, hit=1, regions=None, heats=(np.eye(8), -np.eye(8))):
    columns = dict(similarity=np.linspace(.9, .2, 8), seen_query=.1, seen_hit=.1, share=np.linspace(-.1, .3, 8))
    table = pd.DataFrame(columns, index=list(REGIONS))
    table.loc['head', ['similarity', 'seen_query']] = np.nan, 0.
    table.loc['foot', ['similarity', 'seen_hit']] = np.nan, 0.
    table.loc['chest', ['similarity', 'seen_query', 'seen_hit']] = np.nan, 0., 0.
    table.loc[REST] = [np.nan, np.nan, np.nan, .02]
    if regions: table = region_table(table, regions)
    labels = np.arange(8).repeat(4).reshape(8, 4)
    query = Query('q', IMAGE, None if query_pid is None else pd.Series(dict(pid=query_pid)))
    return Match(2, query, rows().iloc[hit], f'Words {EVIL}', table, (IMAGE, IMAGE), (labels, labels), heats, regions)


def bars(match):
    "Texts of the table by region"
    return {name: cells for name, *cells in Reader(why(match)).rows[1:]}


def test_an_explanation_says_what_its_bars_show():
    read = Reader(why(match()))
    assert len(read.all('img')) == 4
    assert all(image['alt'] for image in read.all('img'))
    assert not read.all('script')
    assert 'Hit 2: identity 7' in read.text
    assert f'Words {EVIL}' in read.text
    assert {a['scope'] for a in read.all('th')} == {'row', 'col'}
    assert dict(type='hidden', name='hit', value='k1') in read.all('input')
    shown = bars(match())
    assert list(shown) == [*(r.replace('_', ' ') for r in BODY_REGIONS), 'background', REST]
    assert shown['head'] == ['not seen in the query', '-0.04']
    assert shown['chest'] == ['not seen in either', '+0.01']
    assert shown['foot'] == ['not seen in the hit', '+0.30']
    assert shown['background'] == ['0.90', '-0.10']
    assert shown[REST] == ['', '+0.02']
    assert len(read.all('ul')) == 0
    assert len(Reader(why(match(), True)).all('ul')) == 1


def test_bars_are_as_long_as_their_numbers():
    lengths = [(r['width'], r['class']) for r in Reader(why(match())).all('rect') if 'class' in r]
    assert ('100', 'plus') in lengths  # the largest share
    assert ('33', 'minus') in lengths  # -0.10 of 0.30
    assert ('90', 'plus') in lengths  # 0.90 alike


@pytest.mark.parametrize('query_pid, hit, words', [
    (3, 1, 'WRONG: the query is identity 3, the hit is identity 7. What'), (7, 1, 'Right: both'),
    (None, 1, 'Nobody has said'), (7, 0, 'Nobody has said'), (0, 1, 'Nobody has said')])
def test_a_wrong_hit_is_said_to_be_one(query_pid, hit, words): assert words in Reader(why(match(query_pid, hit))).text


def test_stripes_are_not_called_body_parts():
    hits = replace(found(regions=('foot',)), stripes=True)
    painted = hits_list(hits, 0., [np.ones((8, 4), int)]*3)
    read = Reader(why(replace(match(), stripes=True), True), painted, status(hits))
    assert '3 hits by stripe 7' in read.text
    assert [row[0] for row in read.rows[1:8]] == [f'stripe {i}' for i in range(1, 8)]
    assert not any(r.replace('_', ' ') in read.text for r in BODY_REGIONS)


def test_a_search_by_regions_shows_the_regions():
    regions = ('upper_arm', 'foot')
    shown = bars(match(regions=regions, heats=()))
    assert shown['upper arm'] == ['0.60', '+0.60']
    assert shown['foot'] == ['not seen in the hit', '']
    assert shown['chest'] == ['not compared', '']
    assert list(shown) == [r.replace('_', ' ') for r in BODY_REGIONS]
    read = Reader(why(match(regions=regions, heats=())))
    assert 'compared regions of hit 2' in read.text
    assert len({image['src'] for image in read.all('img')}) == 2  # query and hit are one image here


@pytest.mark.parametrize('heats', [(np.zeros((4, 2)), np.zeros((4, 2))), (-np.ones((4, 2)), np.zeros((4, 2)))])
def test_cold_maps_are_shown_cold(heats):
    cold = [image['src'] for image in Reader(why(match(heats=heats))).all('img')]
    warm = [image['src'] for image in Reader(why(match(heats=(np.ones((4, 2)),)*2))).all('img')]
    assert cold[:2] == warm[:2]
    assert cold[2] != warm[2]


class Shelf:
    "Images of people: some without a name, a camera, a time or a file"

    def __init__(self, n=23):
        rng = np.random.default_rng(0)
        known = lambda values: pd.array([None if rng.random() < .1 else v for v in values], 'Int64')
        self.images = pd.DataFrame(dict(
            path=[f'{i}.jpg' for i in range(n)], key=[f'k{i}' for i in range(n)], pid=known(rng.integers(0, 4, n)),
            camid=known(rng.integers(1, 4, n)), time=pd.to_datetime(rng.integers(0, 10**6, n), unit='s', utc=True)))

    def image(self, key): return None if key == 'k5' else Image.new('RGB', (20, 40))

    def some(self): return self.images.iloc[3:7]


def test_another_tab_is_a_name(monkeypatch, finder):
    monkeypatch.setitem(page.TABS, 'more', 'More')
    read = Reader(page.whole_page(finder))
    panels = [button['aria-controls'] for button in read.all('button') if button.get('role') == 'tab']
    assert panels == ['panel-search', 'panel-gallery', 'panel-people', 'panel-more']
    assert [f['action'] for f in read.all('form')] == ['search', 'gallery', 'people', 'more']
    assert 'more-shown' in [d.get('id') for d in read.all('div')]


def test_a_few_people_to_begin_with():
    shelf = Shelf()
    assert [b['value'] for b in Reader(strip(shelf)).all('button')] == ['k3', 'k4', 'k6']  # the file of k5 is gone
    shelf.image = lambda key: None
    assert strip(shelf) == ''


def tab(shelf, *args):
    "Keys, text and 'Page 1 of 2' of the gallery's tab"
    read = Reader(gallery_page(shelf, *args))
    return [b['value'] for b in read.all('button') if b['name'] == 'query'], read.text


@pytest.mark.parametrize('by, column', [('identity', 'pid'), ('camera', 'camid')])
@pytest.mark.parametrize('per_page', [1, 4, 11, 100])
def test_every_image_once_in_order(monkeypatch, by, column, per_page):
    monkeypatch.setattr(page, 'PER_PAGE', per_page)
    shelf, pages = Shelf(), -(-23//per_page)
    shown = [key for p in range(1, pages + 1) for key in tab(shelf, by, EVERYBODY, p)[0]]
    assert sorted(shown) == sorted(shelf.images['key'])
    groups = shelf.images.set_index('key')[column].loc[shown].fillna(10**6).tolist()
    assert groups == sorted(groups)  # the unknown at the end
    assert f'Page {pages} of {pages}' in tab(shelf, by, EVERYBODY, 99)[1]
    assert f'Page 1 of {pages}' in tab(shelf, by, EVERYBODY, -1)[1]


def test_groups_by_name(monkeypatch):
    shelf = Shelf()
    choices = [o['value'] for o in Reader(gallery_page(shelf, 'camera')).all('option')][2:]
    assert choices == [EVERYBODY, 'camera 1', 'camera 2', 'camera 3', 'camera unknown']
    own = shelf.images[shelf.images['camid'] == 2]
    keys, text = tab(shelf, 'camera', 'camera 2')
    assert sorted(keys) == sorted(own['key'])
    assert f'camera 2 {len(own)} images' in text
    assert sum(len(tab(shelf, 'camera', c)[0]) for c in choices[1:]) == 23
    assert len(tab(shelf, 'nonsense', 'identity 77')[0]) == 23  # what is no choice is everybody
    monkeypatch.setattr(page, 'PER_PAGE', 2)
    assert ', continued' not in tab(shelf, 'camera', 'camera 2', 1)[1]
    assert ', continued' in tab(shelf, 'camera', 'camera 2', 2)[1]


def test_turning_pages(monkeypatch):
    monkeypatch.setattr(page, 'PER_PAGE', 10)
    buttons = lambda p: Reader(gallery_page(Shelf(), 'identity', EVERYBODY, p)).all('button')
    turns = lambda p: [(b['value'], 'disabled' in b) for b in buttons(p) if b['name'] == 'page']
    assert turns(1) == [('1', True), ('0', True), ('2', False), ('3', False)]
    assert turns(2) == [('1', False), ('1', False), ('3', False), ('3', False)]
    assert turns(3) == [('1', False), ('2', False), ('4', True), ('3', True)]
