"What the server lets through"
import asyncio

import pytest
from magnifier.app.guard import MOST, Guard


def request(path, *, method='GET', hosts=('localhost', '127.0.0.1', '::1'), kind='http', **headers):
    "Status of a request, its headers, and whether the application saw it"
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope['type'])
        if scope['type'] == 'lifespan': return
        await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'cache-control', b'max-age=9'), (b'content-type', b'text/html')]})
        await send({'type': 'http.response.body', 'body': b'page'})

    async def send(message): sent.append(message)

    headers = {'host': '127.0.0.1:7860', **{k.replace('_', '-'): v for k, v in headers.items()}}
    scope = dict(type=kind, path=path, method=method, headers=[(k.encode(), v.encode('latin-1')) for k, v in headers.items() if v is not None])
    asyncio.run(Guard(app, hosts)(scope, None, send))
    start = sent[0] if sent else {}
    return start.get('status'), dict(start.get('headers', ())), bool(seen)


@pytest.mark.parametrize('path', ['/', '/config', '/theme.css', '/assets/index.js', '/static/js/x.js', '/gradio_api/queue/data', '/gradio_api/heartbeat/abc'])
def test_the_pages_own_routes_pass(path):
    status, headers, seen = request(path)
    assert status == 200 and seen and b"default-src 'self'" in headers[b'content-security-policy'] and headers[b'x-content-type-options'] == b'nosniff'
    kept = path.startswith(('/assets', '/static'))
    assert headers[b'cache-control'] == (b'max-age=9' if kept else b'no-store')


@pytest.mark.parametrize('path', ['/gradio_api/file=/etc/passwd', '/file=/etc/passwd', '/gradio_api/upload', '/upload', '/gradio_api/proxy=http://a.b', '/docs',
                                  '/gradio_api/deep_link', '/gradio_api/stream/1/2/3/playlist.m3u8', '/monitoring', '/gradio_api/run/predict', '/gradio_api/info',
                                  '/assets/../../etc/passwd', '/static/..\\x', '/gradio_api/component_server', '/openapi.json', '/gradio_api/file', '//', '/a'])
def test_every_other_is_refused(path): assert request(path)[::2] == (404, False)


@pytest.mark.parametrize('host, status', [('localhost:7860', 200), ('LOCALHOST', 200), ('[::1]:7860', 200), ('evil.example', 421), ('127.0.0.1.evil.example', 421),
                                          ('', 421), ('a:b:c', 421), ('[', 421)])
def test_only_under_this_machines_name(host, status):
    assert request('/', host=host)[0] == status
    if host == 'evil.example': assert request('/', host=host, hosts=None)[0] == 200


@pytest.mark.parametrize('origin, status', [('http://127.0.0.1:7860', 200), ('http://evil.example', 403), ('null', 403), ('http://127.0.0.1:1', 403), ('http://[', 403)])
def test_no_other_sites_page_asks(origin, status): assert request('/gradio_api/queue/join', method='POST', content_length='2', origin=origin)[0] == status


@pytest.mark.parametrize('length, status', [('10', 200), (str(MOST), 200), (str(MOST + 1), 413), (None, 411), ('-1', 411), ('x', 411)])
def test_a_request_says_how_long_it_is_and_is_not_too_long(length, status):
    assert request('/gradio_api/queue/join', method='POST', content_length=length)[0] == status


def test_other_protocols():
    assert request('/', kind='lifespan')[2] and request('/', kind='websocket') == (None, {}, False)
