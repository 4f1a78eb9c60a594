"Serves the page on this machine alone unless told otherwise: whom it answers, what it takes in, its routes, its socket"
import secrets
import socket
from collections import OrderedDict
from contextlib import contextmanager
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from PIL import Image
from fasthtml.common import FastHTML, Link, Meta, Response, Script
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from magnifier.app.page import (MAX_BYTES, chosen, gallery_page, hits_list, people_page, rates_said, status, whole_page,
                                why)
from magnifier.app.search import UPLOAD, Asked, Finder
from magnifier.checks import refuse
from magnifier.data.images import read_image

__all__ = ['make_page', 'serve_page']

LOCAL = ('localhost', '127.0.0.1', '::1')
PORTS = range(7860, 7960)
# No sockets, no other loggers, no trust in what a proxy says of a visitor
SERVER = dict(loop='asyncio', http='h11', ws='none', lifespan='off', log_config=None, access_log=False,
              server_header=False, proxy_headers=False, limit_concurrency=100, timeout_graceful_shutdown=3)
MAX_FORM = 100_000  # bytes of a request that carries no image
MAX_PIXELS = 25_000_000  # of an uploaded image, as phones take them
MIN_SIDE = 8  # pixels: less shows nobody
MAX_SIDE = 1024  # pixels of the longer side that are kept: models see fewer
KEPT_BYTES = 64_000_000  # of all uploaded images that are kept
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')  # decoders that strangers' bytes may reach
WANTED = 'use a JPEG, PNG, WebP or BMP image'
TOO_MANY = f'and at most {MAX_PIXELS/1e6:.0f} million are decoded: use a smaller image or cut the person out'
# The browser asks nobody else for anything, keeps nothing on its disk, and shows nothing of the page inside another
POLICY = ("default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = {'content-security-policy': POLICY, 'cache-control': 'no-store', 'x-content-type-options': 'nosniff',
           'referrer-policy': 'no-referrer', 'cross-origin-resource-policy': 'same-origin',
           'cross-origin-opener-policy': 'same-origin'}
HEAD = (Meta(charset='utf-8'), Meta(name='viewport', content='width=device-width, initial-scale=1'),
        Link(rel='icon', href='data:,'), Link(rel='stylesheet', href='page.css'), Script(src='page.js', defer=True))


class Guard:
    """Refuses requests for another host name than the page's own (DNS rebinding), requests from another site's page,
    and requests that are too large, do not state their size, or would be written to a temporary file"""

    def __init__(self,
        names=LOCAL,  # Names and addresses under which the page may be asked for
        public: str = '',  # NAME or NAME:PORT that visitors see, where a proxy stands before the page
    ):
        self.public = _netloc(public) if public else None
        if self.public and ('/' in public or not self.public[0]):
            raise ValueError(f'public_host={public!r}: NAME or NAME:PORT wanted, as people.example.org')
        self.names = {*names, self.public[0]} if self.public else {*names}

    async def __call__(self, request, call_next):
        "As starlette's BaseHTTPMiddleware calls it"
        refused = self.refusal(request.method, request.url.path, request.headers)
        if refused: return Response('refused\n', refused, headers={'connection': 'close'}, media_type='text/plain')
        # Cookies are those of other servers on this machine, and FastHTML would take them for fields of a form
        request.scope['headers'] = [(name, value) for name, value in request.scope['headers'] if name != b'cookie']
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    def refusal(self, method: str, path: str, headers) -> int:
        "The HTTP status that refuses a request (its headers have lower-case names); 0 lets it through"
        asked = _netloc(headers.get('host', ''))
        if asked[0] not in self.names: return 421
        origin = _netloc(headers['origin'].partition('://')[2]) if 'origin' in headers else asked
        if origin not in (asked, self.public): return 403
        if headers.get('content-type', '').startswith('multipart/'): return 415
        length = headers.get('content-length', '0' if method in ('GET', 'HEAD') else '')
        if 'transfer-encoding' in headers or not length.isdecimal(): return 411
        return 413 if int(length) > (MAX_BYTES if path == '/upload' else MAX_FORM) else 0


def _netloc(text):
    "Name and port of 'name:port'; None for the name if the text has another form"
    try:
        parts = urlsplit('//' + text)
        return parts.hostname, parts.port
    except ValueError: return None, None


def read_upload(data: bytes, size: int = 0) -> Image.Image:
    """Decodes an untrusted image: mode RGB, upright, no side over `MAX_SIDE`, and nothing else of the file (EXIF,
    profiles, comments). `size` is that of a file that was too large to be sent. A ValueError says in one sentence what
    is wrong, and quotes nothing from the file"""
    size = max(size, len(data))
    refuse({
        f'this file has {size/1e6:.1f} MB, and at most {MAX_BYTES/1e6:.0f} MB are read: use a smaller image':
            size > MAX_BYTES,
        f'this file is empty: {WANTED}': not data,
    })
    try: image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as e:  # hostile bytes raise what they like
        bomb = isinstance(e, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        raise ValueError(f'this image has far more pixels, {TOO_MANY}' if bomb else
                         f'this is not an image that can be read: {WANTED}') from None
    w, h = image.size
    moves = getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO'  # MPO: a phone's JPEG with a second view
    refuse({
        f'this image has {w} x {h} pixels, {TOO_MANY}': w*h > MAX_PIXELS,
        f'this image has {w} x {h} pixels, too few to show a person: at least {MIN_SIDE} a side': min(w, h) < MIN_SIDE,
        f'this is an animation: {WANTED} without animation': moves,
    })
    try: return _shrunk(image)
    except Exception: raise ValueError('this image is damaged or cut off: it does not decode to its end') from None


def _shrunk(image):
    image.draft('RGB', (MAX_SIDE, MAX_SIDE))  # JPEG decodes a large image at a half, a quarter or an eighth
    pixels = read_image(image)
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    return Image.fromarray(np.asarray(pixels))  # the pixels alone go on


class Uploads:
    """Uploaded images by an id that nobody can guess. All together have at most `limit` bytes: the least recently used
    image is dropped first"""

    def __init__(self, limit: int = KEPT_BYTES):
        self.limit = limit
        self._images = OrderedDict()
        self._decoding, self._changing = Lock(), Lock()

    def keep(self, data: bytes, size: int = 0) -> str:
        "Decodes and keeps an image, one at a time, and returns its id; arguments and errors are those of `read_upload`"
        with self._decoding: image = read_upload(data, size)
        with self._changing:
            key = UPLOAD + secrets.token_urlsafe(16)
            self._images[key] = image
            while self.nbytes > self.limit: self._images.popitem(last=False)
        return key

    def get(self, key: str) -> Image.Image | None:
        "An image that was uploaded; None where it is not kept any more"
        with self._changing:
            if key in self._images: self._images.move_to_end(key)
            return self._images.get(key)

    @property
    def nbytes(self) -> int:
        "Bytes of the images that are kept"
        return sum(3*image.width*image.height for image in self._images.values())


def make_page(
    learn,  # The ReIDLearner that made the gallery
    gallery,  # A Gallery with images
    guard: Guard | None = None,  # Whom it answers; None for this machine alone
) -> FastHTML:  # An ASGI application; `serve_page` serves it
    "The page over a gallery. A ValueError for a gallery without images or of another model"
    finder = Finder(learn, gallery, Uploads())
    guarded = Middleware(BaseHTTPMiddleware, dispatch=guard or Guard())
    app = FastHTML(title='magnifier', hdrs=HEAD, htmlkw=dict(lang='en'), default_hdrs=False, canonical=False,
                   sess_cls=None, secret_key='no sessions', middleware=[guarded])
    _add_files(app)
    _add_choosing(app, finder)
    _add_search(app, finder)
    _add_tabs(app, finder)
    return app


def _add_files(app):
    "The page's own style and script"
    def served(name, media_type):
        return Response(Path(__file__).with_name(name).read_text(encoding='utf-8'), media_type=media_type)

    @app.get('/page.css')
    def style(): return served('page.css', 'text/css')

    @app.get('/page.js')
    def script(): return served('page.js', 'text/javascript')


def _add_choosing(app, finder):
    "The page as it opens, and who is searched"

    @app.get('/')
    def index():
        finder.refresh()
        return whole_page(finder)

    @app.post('/upload')
    async def upload(req, size: int = 0):
        data = await req.body()
        return await run_in_threadpool(choose, lambda: finder.uploads.keep(data, size))

    @app.post('/choose')
    def pick(query: str = ''): return choose(lambda: query)

    def choose(key_of):
        "Sets the query, or says why it cannot be used, and removes the last explanation"
        try:
            key = key_of()
            return chosen(finder.query(key) if key else None), why()
        except ValueError as e: return chosen(wrong=_sentence(e)), why()


def _add_search(app, finder):
    "Hits and explanations. The form contains everything that an answer needs; the server keeps only uploads"

    @app.post('/search')
    def search(query: str = '', hit: str = '', leave_out: str = '', cameras: list[int] = None, since: str = '',
               until: str = '', regions: list[str] = None, threshold: float = 0., masks: str = ''):
        try:
            not_cameras = (int(leave_out),) if leave_out.isdecimal() else ()
            asked = Asked(query, leave_out == 'own', tuple(cameras), not_cameras, since, until, tuple(regions))
            found = finder.find(asked) if query else None
            labels = finder.labels(found) if found and masks and finder.parts else None
            rates = finder.rates(asked.regions)
        except ValueError as e:
            rates = rates_said(finder.rates(()), threshold, len(finder.images))
            return status(wrong=_sentence(e)), rates, hits_list(), why()
        return (status(found, threshold, parts=finder.parts), rates_said(rates, threshold, len(finder.images)),
                hits_list(found, threshold, labels), explain(found, hit, bool(masks)))

    def explain(found, hit, masks):
        place = found.place(hit) if found else None
        if place is None: return why()
        try: return why(finder.match(found, place), masks)
        except ValueError as e: return why(wrong=_sentence(e))


def _add_tabs(app, finder):
    "The other tabs: each is a name in `page.TABS` and a route of that name"

    @app.post('/gallery')
    def gallery(by: str = '', only: str = '', page: int = 1): return gallery_page(finder, by, only, page)

    @app.post('/people')
    def people(): return people_page(finder.people())


def _sentence(error):
    text = str(error)
    return text[:1].upper() + text[1:] + ('' if text.endswith('.') else '.')


@contextmanager
def serve_page(
    learn,  # The ReIDLearner that made the gallery
    gallery,  # A Gallery with images
    *,
    host: str = '127.0.0.1',  # Address to bind to; another lets the network in, and nobody is asked for a password
    port: int | None = None,  # Port; None for the first free one from 7860 on
    public_host: str = '',  # NAME or NAME:PORT that visitors type: a proxy's, or this machine's in the network
):  # The address, while the `with` lasts
    """Serves the page in its own thread. The errors of `make_page`; ValueError for a host that means all addresses of
    the machine without a public name, OSError for a port in use"""
    if _is_every(host) and not public_host:
        raise ValueError(f'host={host!r} means every address of this machine, but the page answers to one '
                         'name: give it as public_host')
    app = make_page(learn, gallery, Guard({*LOCAL, host}, public_host))
    with _listening(host, port) as listening:
        server = uvicorn.Server(uvicorn.Config(app, **SERVER))
        thread = Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try: yield f'http://{f"[{host}]" if ":" in host else host}:{listening.getsockname()[1]}/'
        finally:
            server.should_exit = True
            thread.join()


def _is_every(host):
    try: return ip_address(host).is_unspecified
    except ValueError: return not host


def _listening(host, port):
    "A socket that listens: visitors wait in its queue until the server runs"
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    ports = PORTS if port is None else [port]
    for tried in ports:
        try: return socket.create_server((host, tried), family=family)
        except OSError as e: why_not = e
    raise OSError(f'{host}: cannot listen on port {ports[0]}{f" to {ports[-1]}" if port is None else ""} '
                  f'({why_not}); choose another') from why_not
