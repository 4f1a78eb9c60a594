"What the page's server answers at all: its own routes to its own pages, nothing by path, no file taken"
from urllib.parse import urlsplit

from magnifier.app.upload import MAX_BYTES

__all__ = ['Guard', 'LOCAL', 'POLICY']

LOCAL = ('localhost', '127.0.0.1', '::1')
# All that the page needs of Gradio. Its routes for files, uploads, proxies, deep links and streams are not among them: pictures come
# and go inside messages
ROUTES = ('/', '/config', '/theme.css', '/favicon.ico', '/manifest.json', '/robots.txt', '/gradio_api/startup-events', '/gradio_api/queue/join',
          '/gradio_api/queue/data', '/gradio_api/theme.css', '/gradio_api/cancel', '/gradio_api/reset', '/gradio_api/app_id')
BELOW = ('/assets/', '/static/', '/svelte/', '/gradio_api/heartbeat/')
MOST = MAX_BYTES*4//3 + 100_000  # Of a request: a picture as text, and what is around it
# The browser itself then asks nobody else for anything; Gradio's templates are compiled in it, hence eval
POLICY = ("default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
          "script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'")


class Guard:
    """ASGI middleware that lets through what the page needs, and adds headers that keep the browser from asking others or keeping pictures.

    A request from another site's page (Origin), or under another name than this machine's (DNS rebinding), is refused."""

    def __init__(self,
        app,        # What it guards
        hosts=LOCAL # Names under which it may be asked; None for any
    ): self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan': return await self.app(scope, receive, send)
        status = 403 if scope['type'] != 'http' else self.refusal(scope)
        if scope['type'] == 'http' and not status: return await self.app(scope, receive, _with_headers(scope['path'], send))
        if scope['type'] == 'http':
            await send({'type': 'http.response.start', 'status': status, 'headers': [(b'content-type', b'text/plain'), (b'connection', b'close')]})
            return await send({'type': 'http.response.body', 'body': b'refused\n'})
        await send({'type': 'websocket.close'})

    def refusal(self,
        scope:dict, # Of an HTTP request
    ) -> int:  # The status that refuses it; 0 lets it through
        "Whether a request is one of the page's own"
        path, headers = scope['path'], {k.decode('latin-1').lower(): v.decode('latin-1') for k, v in scope['headers']}
        if '..' in path or '\\' in path or not (path in ROUTES or path.startswith(BELOW)): return 404
        asked = _name(headers.get('host', ''))
        if self.hosts is not None and asked[0] not in self.hosts: return 421
        if 'origin' in headers and (asked[0] is None or _name(headers['origin'].partition('://')[2]) != asked): return 403
        length = headers.get('content-length', '0' if scope['method'] in ('GET', 'HEAD') else '')
        if not length.isdecimal(): return 411
        return 413 if int(length) > MOST else 0


def _name(netloc):
    "Name and port of 'name:port'; what is no such thing has no name"
    try:
        parts = urlsplit('//' + netloc)
        return parts.hostname, parts.port
    except ValueError: return None, None


def _with_headers(path, send):
    keep = path.startswith(('/assets/', '/static/'))
    more = [(b'content-security-policy', POLICY.encode()), (b'x-content-type-options', b'nosniff'), (b'referrer-policy', b'no-referrer')]
    if not keep: more.append((b'cache-control', b'no-store'))

    async def guarded(message):
        if message['type'] == 'http.response.start':
            own = [(k, v) for k, v in message.get('headers', []) if keep or k.lower() != b'cache-control']
            message = {**message, 'headers': [*own, *more]}
        await send(message)
    return guarded
