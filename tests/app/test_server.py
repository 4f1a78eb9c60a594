"""What the page's server answers, and whom: a visit without a browser, and attacks. Images from strangers: decoded, or
refused in a sentence, and the sum that is kept is bounded"""
import os
import socket
import struct
import zlib
from io import BytesIO
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from starlette.testclient import TestClient

from magnifier.app import server
from magnifier.app.page import MAX_BYTES
from magnifier.app.server import MAX_FORM, MAX_SIDE, Guard, Uploads, make_page, read_upload, serve_page


ADDRESS = 'http://127.0.0.1:7860'
FRAGMENT = {'HX-Request': 'true'}


@pytest.fixture(scope='module')
def client(seer, people):
    with TestClient(make_page(seer, people), base_url=ADDRESS, headers=FRAGMENT) as client: yield client


@pytest.fixture(scope='module')
def keys(people): return people.images()['key'].tolist()


def search(client, query, **fields):
    answer = client.post('/search', data={'query': query, **fields})
    assert answer.status_code == 200
    return answer.text


def chosen(text):
    "The id of who is searched, as the page's hidden field has it"
    return text.split('name="query" value="')[1].split('"')[0]


def test_a_visit(client, keys):
    opened = client.get('/', headers={'HX-Request': ''})
    assert opened.text.count('name="query"') > 4
    query = chosen(client.post('/choose', data={'query': keys[0]}).text)
    assert query == keys[0]
    text = search(client, query)
    assert f'{len(keys) - 1} hits' in text
    assert text.count('class="card"') == len(keys) - 1
    assert 'No threshold' in text
    hit = text.split('name="hit" value="')[1].split('"')[0]
    why = search(client, query, hit=hit, masks='on')
    assert 'Hit 1' in why
    assert why.count('class="legend"') == 2
    assert 'No hit at this threshold' in search(client, query, threshold='1.0')
    assert 'False accepts' in search(client, query, threshold='0.5')
    assert 'Hit 1' not in search(client, query, hit='no such hit')
    assert 'Nobody is searched yet' in search(client, '')
    assert chosen(client.post('/choose', data={'query': ''}).text) == ''


def test_an_upload_is_searched(client, people, keys):
    row = people.images().iloc[2]
    with open(row['path'], 'rb') as file: answer = client.post('/upload', content=file.read())
    assert 'your image' in answer.text
    text = search(client, chosen(answer.text), leave_out='own')
    assert f'name="hit" value="{row["key"]}"' in text.split('</li>')[0]
    assert '✓' not in text  # nobody knows who it is
    assert '✗' not in text


@pytest.mark.parametrize('content, size, words', [(b'', 0, 'This file is empty'), (b'', MAX_BYTES + 1, '10.0 MB'),
                                                  (b'<svg onload=alert(1)>', 0, 'not an image'),
                                                  (b'GIF89a', 0, 'not an image'), (bytes(500), 0, 'not an image')])
def test_a_refused_upload_is_a_sentence_and_nobody_is_searched(client, content, size, words):
    text = client.post(f'/upload?size={size}', content=content).text
    assert words in text
    assert 'role="alert"' in text
    assert 'alert(1)' not in text
    assert chosen(text) == ''


def test_mistakes_are_sentences(client, keys):
    for fields, words in ((dict(since='soon'), 'not a date and time'), (dict(cameras='999'), 'no camera 999'),
                          (dict(regions='tail'), 'Unknown region'), (dict(leave_out='9'*5000), 'alert'),
                          (dict(until='1999-01-01'), 'widen them')):
        assert words in search(client, keys[0], **fields)
    for key in ('x', '../../etc/passwd', '<script>alert(1)</script>', 'upload-x'):
        for text in (search(client, key), client.post('/choose', data={'query': key}).text):
            assert 'role="alert"' in text
            assert '<script' not in text
    assert client.post('/search', data={'query': keys[0], 'threshold': 'high'}).status_code == 404


FIELDS = ['query', 'hit', 'leave_out', 'cameras', 'since', 'until', 'regions', 'threshold', 'masks', 'by',
          'only', 'page', 'size', 'other']
ODD = ['nan', 'inf', '-1', '1e400', '0', 'on', 'own', 'foot', 'head', '1', '99999999999999999999',
       'camera 1', "' or 1=1 --"]
VALUES = st.one_of(st.text(max_size=20), st.sampled_from(ODD))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(['/search', '/choose', '/gallery', '/people', '/upload']), known=st.booleans(),
       fields=st.dictionaries(st.sampled_from(FIELDS), st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=6))
@pytest.mark.slow
def test_whatever_a_form_says_the_server_stands(client, keys, route, known, fields):
    fields = {**fields, 'query': keys[0]} if known else fields
    assert client.post(route, data=fields).status_code in (200, 404)


def test_the_gallery(client, keys):
    text = client.post('/gallery').text
    assert text.count('class="card"') == len(keys)
    one = client.post('/gallery', data=dict(by='camera', only='camera 1', page='-3')).text
    assert 'camera 1 <small>' in one.replace('\n', '')


def test_headers(client):
    for path in ('/', '/page.js', '/page.css', '/nothing'):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers['content-security-policy']
        assert 'unsafe' not in headers['content-security-policy']
        assert headers['cache-control'] == 'no-store'
        assert 'set-cookie' not in headers


def test_another_servers_cookies_say_nothing(client, keys):
    "Cookies are all servers' of this machine, whatever their port"
    client.cookies.set('query', keys[0])
    text = client.post('/search', data={}).text
    client.cookies.clear()
    assert 'Nobody is searched yet' in text


@pytest.mark.parametrize('path', ['/etc/passwd', '/../../../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/page.py',
                                  '/server.py', '/.sesskey', '/static/page.js', '/docs', '/openapi.json',
                                  '/favicon.ico', '/search', '/page.css/../page.py'])
def test_no_file_and_no_other_route_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert b'root:' not in answer.content


def test_nothing_is_written(client, keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.setattr('tempfile.TemporaryFile', lambda *a, **k: pytest.fail('a temporary file'))
    assert client.post('/upload', files={'file': ('a.png', bytes(2_000_000))}).status_code == 415
    client.post('/upload', content=bytes(3_000_000))
    search(client, keys[0])
    assert not list(tmp_path.iterdir())


def refused(guard=None, *, method='POST', path='/search', **headers):
    headers = {'host': '127.0.0.1:7860', 'content-length': '2', **{k.replace('_',
    '-'): v for k, v in headers.items()}}
    return (guard or Guard()).refusal(method, path, {k: v for k, v in headers.items() if v is not None})


@pytest.mark.parametrize('host, status', [('localhost:7860', 0), ('LOCALHOST', 0), ('[::1]:7860', 0),
                                          ('127.0.0.1', 0),
                                          ('evil.example', 421), ('127.0.0.1.evil.example', 421), ('', 421),
                                          ('a:b:c', 421), ('[', 421), ('0.0.0.0', 421)])
def test_only_under_this_machines_name(host, status): assert refused(host=host) == status


@pytest.mark.parametrize('origin, status', [('http://127.0.0.1:7860', 0), ('http://evil.example', 403), ('null', 403),
                                            ('http://127.0.0.1:1', 403), ('http://[', 403), ('', 403),
                                            ('http://localhost:7860', 403), (None, 0)])
def test_no_other_sites_page_asks(origin, status): assert refused(origin=origin) == status


@pytest.mark.parametrize('host, origin, status', [
    ('people.example.org', 'https://people.example.org', 0),  # a proxy that keeps Host
    ('127.0.0.1:7860', 'https://people.example.org', 0),  # a proxy that does not
    ('people.example.org', 'https://evil.example', 403), ('people.example.org',
    'https://people.example.org:8443', 403),
    ('evil.example', 'https://evil.example', 421), ('evil.example', 'https://people.example.org', 421),
    ('127.0.0.1:7860', 'http://127.0.0.1:7860', 0)])
def test_behind_a_proxy(host, origin, status):
    assert refused(Guard(public='people.example.org'), host=host, origin=origin) == status


def test_a_public_name_may_have_a_port_and_none_is_no_name():
    guard = Guard(public='people.example.org:8443')
    assert refused(guard, host='people.example.org', origin='https://people.example.org:8443') == 0
    assert refused(Guard(), host='people.example.org') == 421
    for wrong in ('https://people.example.org', 'people.example.org/page', ':80', 'a:b', '['):
        with pytest.raises(ValueError, match='NAME or NAME:PORT wanted'): Guard(public=wrong)


@pytest.mark.parametrize('headers, status', [
    (dict(content_length='10'), 0), (dict(content_length=str(MAX_FORM)), 0),
    (dict(content_length=str(MAX_FORM + 1)), 413), (dict(content_length=None), 411),
    (dict(content_length='-1'), 411), (dict(content_length='x'), 411), (dict(transfer_encoding='chunked'), 411),
    (dict(content_length=str(MAX_BYTES), path='/upload'), 0),
    (dict(content_length=str(MAX_BYTES + 1), path='/upload'), 413),
    (dict(content_length=None, method='GET', path='/'), 0),
    (dict(content_type='multipart/form-data; boundary=x'), 415)])
def test_a_request_says_how_long_it_is_and_is_not_too_long(headers, status): assert refused(**headers) == status


def test_refusals_reach_the_client(client):
    assert client.get('/', headers={'host': 'evil.example'}).status_code == 421
    assert client.post('/search', data={}, headers={'origin': 'https://evil.example'}).status_code == 403
    assert client.post('/search', content=b'x'*(MAX_FORM + 1)).status_code == 413
    preflight = {'origin': 'https://evil.example', 'access-control-request-method': 'POST'}
    assert client.options('/search', headers=preflight).status_code == 403


@pytest.mark.parametrize('host', ['0.0.0.0', '::', ''])
def test_every_address_needs_a_name(seer, people, host):
    with pytest.raises(ValueError, match='give it as public_host'), serve_page(seer, people, host=host): pass


def asked(address, host):
    try: return urlopen(Request(address, headers={'Host': host}), timeout=20).status
    except OSError as e: return e.code


def test_a_network_address_lets_in_one_name_and_no_other(seer, people):
    with serve_page(seer, people, host='0.0.0.0', port=0, public_host='camera-room') as address:
        address = address.replace('0.0.0.0', '127.0.0.1')
        assert asked(address, 'camera-room:7860') == 200
        assert asked(address, 'evil.example') == 421


def test_it_is_bound_to_this_machine_alone_and_a_port_that_is_taken_is_said(seer, people):
    with serve_page(seer, people, port=0) as address:
        port = int(address.rsplit(':')[-1].strip('/'))
        with socket.socket() as other: other.bind(('127.0.0.2', port))  # free, as it would not be on all addresses
        assert asked(address, f'127.0.0.1:{port}') == 200
        with pytest.raises(OSError, match=f'cannot listen on port {port} .* choose another'):
            with serve_page(seer, people, port=port): pass
    with pytest.raises(OSError): urlopen(address, timeout=5)


# Uploads

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8))


def encoded(image=IMAGE, kind='PNG', **kwargs):
    file = BytesIO()
    image.save(file, format=kind, **kwargs)
    return file.getvalue()


def png_header(width, height):
    "A PNG that says how large it is, and holds nothing"
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b'\0'*100)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


@pytest.mark.parametrize('kind', ['PNG', 'BMP'])
def test_an_image_comes_as_it_is(kind):
    np.testing.assert_array_equal(np.asarray(read_upload(encoded(kind=kind))), np.asarray(IMAGE))


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_lossy_kinds_too(kind): assert read_upload(encoded(kind=kind)).size == (20, 40)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'I;16', 'LA'])
def test_any_mode_becomes_rgb(mode):
    image = (IMAGE if mode == 'P' else IMAGE.convert('L')).convert(mode)
    assert read_upload(encoded(image)).mode == 'RGB'


def test_upright_and_without_what_else_the_file_says():
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'where I live'
    image = read_upload(encoded(kind='JPEG', exif=exif, comment=b'secret'))
    assert image.size == (40, 20)
    assert not image.info
    assert not dict(image.getexif())


def test_a_phones_second_view_is_no_film():
    image = read_upload(encoded(kind='MPO', save_all=True, append_images=[IMAGE]))
    assert image.size == (20, 40)


FILM = [IMAGE, IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
NO_IMAGE = 'not an image that can be read: use a JPEG'
REFUSED = {
    'empty': (b'', 'empty'),
    'text': (b'hello, this is no image', NO_IMAGE),
    'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', NO_IMAGE),
    'xml': (b'<?xml version="1.0"?><svg/>', NO_IMAGE),
    'html': (b'<!DOCTYPE html><script>', NO_IMAGE),
    'gif': (encoded(kind='GIF'), NO_IMAGE),
    'moving gif': (encoded(kind='GIF', save_all=True, append_images=FILM[1:]), NO_IMAGE),
    'moving webp': (encoded(kind='WEBP', save_all=True, append_images=FILM[1:], duration=50), 'animation'),
    'moving png': (encoded(kind='PNG', save_all=True, append_images=FILM[1:]), 'animation'),
    'tiff': (encoded(kind='TIFF'), NO_IMAGE),
    'pdf': (b'%PDF-1.7 ...', NO_IMAGE),
    'postscript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9', NO_IMAGE),
    'archive': (b'PK\3\4....', NO_IMAGE),
    'heic': (b'\0\0\0\x18ftypheic....', NO_IMAGE),
    'half a jpeg': (encoded(kind='JPEG')[:-200], 'damaged or cut off'),
    'half a png': (encoded()[:-900], 'damaged or cut off'),
    'a start': (encoded()[:20], NO_IMAGE),
    'a bomb': (png_header(60_000, 60_000), 'far more pixels'),
    'half a bomb': (png_header(10_000, 9_500), 'pixels'),
    'too many pixels': (png_header(6000, 5000), '6000 x 5000 pixels'),
    'too few': (encoded(IMAGE.resize((4, 90))), '4 x 90 pixels'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence(name):
    data, words = REFUSED[name]
    with pytest.raises(ValueError) as e: read_upload(data)
    said = str(e.value)
    assert words in said
    assert '\n' not in said
    assert 'script' not in said
    assert len(said) < 200


def test_too_many_bytes():
    with pytest.raises(ValueError, match='10.0 MB, and at most 10 MB'): read_upload(encoded() + bytes(MAX_BYTES))
    with pytest.raises(ValueError, match='12.0 MB, and at most 10 MB'): read_upload(b'', 12_000_000)  # it was not sent


def test_nothing_large_is_decoded(monkeypatch):
    "A refused image's pixels are never asked for"
    monkeypatch.setattr(server, 'read_image', lambda image: pytest.fail('decoded'))
    for name in ('a bomb', 'half a bomb', 'too many pixels', 'moving webp'):
        with pytest.raises(ValueError): read_upload(REFUSED[name][0])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(['PNG', 'JPEG', 'WEBP', 'BMP']), st.data())
def test_whatever_comes_is_an_image_or_a_sentence(kind, data):
    good = bytearray(encoded(kind=kind))
    for _ in range(data.draw(st.integers(0, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(good[:data.draw(st.integers(1, len(good)))])
    try: assert read_upload(bad).mode == 'RGB'
    except ValueError as e: assert len(str(e).splitlines()) == 1


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(ValueError): read_upload(data)


@pytest.mark.parametrize('kind', ['JPEG', pytest.param('PNG', marks=pytest.mark.slow)])
@pytest.mark.parametrize('size', [(2100, 1050), (1050, 2100), (MAX_SIDE + 1, 8), (MAX_SIDE, 700)])
def test_a_large_image_is_shrunk_in_proportion(kind, size):
    image = read_upload(encoded(IMAGE.resize(size), kind))
    assert max(image.size) == min(MAX_SIDE, max(size))
    assert image.width*size[1] == pytest.approx(image.height*size[0], rel=.1 if min(size) < 10 else .002)


def test_what_is_shrunk_still_looks_the_same():
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 4000).astype(np.uint8)[None], (80, 1))).convert('RGB')
    shrunk = np.asarray(read_upload(encoded(ramp, 'JPEG')), float)
    np.testing.assert_allclose(shrunk.mean((0, 2)), np.linspace(0, 255, MAX_SIDE), atol=3)


def test_the_sum_is_bounded_and_the_longest_unused_goes_first():
    kept = Uploads(limit=3*3*40*20)
    first, second, third = (kept.keep(encoded()) for _ in range(3))
    assert kept.get(first).size == IMAGE.size  # and so it was used last
    fourth = kept.keep(encoded())
    assert kept.get(second) is None
    assert all(kept.get(key) is not None for key in (first, third, fourth))
    assert kept.nbytes == kept.limit
    assert len({first, second, third, fourth}) == 4
    with pytest.raises(ValueError): kept.keep(b'x')
    assert kept.nbytes == kept.limit


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='memory is read from /proc')
def test_forty_photographs_of_25_megapixels_stay_small():
    resident = lambda: int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
    photograph = encoded(Image.fromarray(noise).resize((5000, 5000)), 'JPEG')
    kept = Uploads()
    kept.keep(photograph)
    before = resident()
    keys = [kept.keep(photograph) for _ in range(40)]
    assert kept.nbytes <= kept.limit
    assert resident() - before < 150  # MB; at full size they would be 3,000
    assert kept.get(keys[-1]).size == (MAX_SIDE, MAX_SIDE)
    assert kept.get(keys[0]) is None
