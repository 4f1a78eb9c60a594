"magnifier_app as it runs: asked as an attacker would, then visited in a browser by clicks and keys, at a desk and on a phone"
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip('gradio')
requests = pytest.importorskip('requests')

FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync').split()


class App(NamedTuple):
    "A running command"
    process: subprocess.Popen
    address: str
    gallery: Path
    temporary: Path # Where the process may keep files

    def kept(self): return [p for p in self.temporary.rglob('*') if p.is_file()]


@pytest.fixture(scope='module')
def app(seer, few, tmp_path_factory):
    "The command over a gallery of a dozen, in a process of its own"
    import magnifier.train.pretrained  # noqa: F401
    from magnifier.gallery.gallery import Gallery
    root = tmp_path_factory.mktemp('app')
    (root/'tmp').mkdir()
    seer.export(root/'learner.pkl')
    with Gallery(root/'people', regions=True) as gallery: gallery.add(seer, few.assign(time=range(10**9, 10**9 + len(few))), progress=False)
    (root/'command.py').write_text('from magnifier.cli.all import magnifier_app\nmagnifier_app()\n')  # as an installed script
    command = [sys.executable, '-W', 'ignore', root/'command.py', '--gallery', root/'people', '--learner', root/'learner.pkl']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, 'TMPDIR': str(root/'tmp'), 'OMP_NUM_THREADS': '1'})
    try:
        said = process.stdout.readline()
        assert said.startswith('http://127.0.0.1:') and f'searches {len(few)} pictures' in said and 'Ctrl-C ends it' in said, said
        yield App(process, said.split()[0], root/'people', root/'tmp')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_answers_this_machine_alone(app):
    address = app.address
    assert address.startswith('http://127.0.0.1:') and requests.get(address, timeout=20).ok
    with socket.socket() as s:  # bound to the loopback address, not to all
        assert s.connect_ex((socket.gethostbyname(socket.gethostname()), int(address.rsplit(':')[-1].strip('/')))) != 0 or \
            socket.gethostbyname(socket.gethostname()).startswith('127.')
    assert requests.get(address, headers={'Host': 'evil.example'}, timeout=20).status_code == 421


def test_no_path_is_served(app, few):
    address, folder = app.address, app.temporary
    (folder/'kept.png').write_bytes(b'secret')
    database = next(p for p in app.gallery.rglob('*') if p.is_file())
    for path in ('/etc/passwd', '../../../../../../etc/passwd', '%2e%2e/%2e%2e/etc/passwd', str(database), str(few.path.iloc[0]), str(folder/'kept.png'),
                 'http://127.0.0.1:1/', 'https://example.org', 'file:///etc/passwd'):
        for route in ('gradio_api/file=', 'file=', 'gradio_api/proxy=', 'gradio_api/file/', 'assets/', 'static/', 'gradio_api/deep_link?path='):
            raw = requests.Request('GET', address).prepare()
            raw.url = f'{address}{route}{path}'  # as it is: no client tidies the dots
            answer = requests.Session().send(raw, timeout=20)
            assert answer.status_code in (403, 404), raw.url
            assert b'root:' not in answer.content and b'secret' not in answer.content
    (folder/'kept.png').unlink()


def test_no_file_is_taken(app):
    address = app.address
    for route in ('gradio_api/upload', 'upload', 'gradio_api/upload?upload_id=a'):
        assert requests.post(address + route, files={'files': ('a.png', b'x'*1000)}, timeout=20).status_code == 404
    huge = requests.post(f'{address}gradio_api/queue/join', data=b'x'*(14_000_000), timeout=20)
    assert huge.status_code == 413 and not app.kept()


def test_another_sites_page_is_refused(app):
    address = app.address
    assert requests.post(f'{address}gradio_api/queue/join', json={}, headers={'Origin': 'https://evil.example'}, timeout=20).status_code == 403


@pytest.fixture(scope='module')
def visit(app):
    "Opens the page at a size: gives it, what it asked for and what it complained about"
    sync_api = pytest.importorskip('playwright.sync_api')
    if shutil.which('chromium') is None: pytest.skip('no chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=FLAGS)
        asked, complaints = [], []

        def opened(width, height):
            page = browser.new_page(viewport=dict(width=width, height=height))
            page.set_default_timeout(60_000)  # of a machine that does other things too
            page.on('request', lambda r: asked.append(r.url))
            page.on('console', lambda m: m.type == 'error' and complaints.append(m.text))
            page.on('pageerror', lambda e: complaints.append(str(e)))
            page.goto(app.address)
            page.wait_for_selector('#mg-some button[data-key]')
            return page
        yield opened, app.address, asked, complaints
        browser.close()


def shows(page, selector, text): page.locator(selector).filter(has_text=text).first.wait_for()


def fits(page):
    "Nothing is wider than the screen, and pictures are large enough to see"
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth + 1')
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.mg-card img')].filter(i => i.offsetParent).map(i => i.clientWidth))") >= 40


def test_a_visit(app, visit, few, tmp_path):
    opened, address, asked, complaints = visit
    page = opened(1280, 900)
    hits = page.locator('#mg-hits button')
    shows(page, '#mg-status', 'Nobody is searched yet')
    page.click('#mg-some button >> nth=1')  # pick
    shows(page, '#mg-status', 'most similar first')
    assert page.locator('#mg-query figcaption').inner_text().startswith('identity')
    n = hits.count()
    hits.nth(1).click()  # why?
    shows(page, '#mg-why h3', 'Hit 2')
    assert page.locator('#mg-why img').count() == 4 and page.locator('#mg-why tbody tr').count() == 9
    assert hits.nth(1).get_attribute('aria-pressed') == 'true' and page.evaluate("document.activeElement.tagName") == 'H3'
    page.locator('#mg-masks input').check()  # part masks
    page.wait_for_selector('#mg-hits .mg-legend')
    page.wait_for_selector('#mg-why .mg-legend')
    slider = page.locator('#mg-threshold input[type=range]')  # threshold, by keys
    slider.focus()
    page.keyboard.press('End')
    shows(page, '#mg-status', 'No hit at this threshold')
    page.wait_for_selector('text=False accepts')
    assert hits.count() == 0
    slider.press('Home')
    shows(page, '#mg-status', f'{n} hits')
    fits(page)
    # filters
    page.locator('#mg-where button').first.click()
    page.locator('#mg-cameras input').first.check()
    page.wait_for_function(f"document.querySelectorAll('#mg-hits button').length < {n}")
    page.locator('#mg-cameras input').first.uncheck()
    shows(page, '#mg-status', f'{n} hits')
    page.locator('#mg-since textarea, #mg-since input').first.fill('soon')
    page.keyboard.press('Tab')
    shows(page, '#mg-status [role=alert]', 'not a date and time')
    page.locator('#mg-since textarea, #mg-since input').first.fill('')
    page.keyboard.press('Tab')
    # a region: hits by it, or a sentence that the query shows none
    region = page.locator('#mg-regions input').nth(1)
    region.focus()
    page.keyboard.press('Space')
    page.wait_for_function("/by chest|shows no chest/.test(document.querySelector('#mg-status').innerText)")
    page.keyboard.press('Space')
    shows(page, '#mg-status', f'{n} hits')
    # files: refused, then taken
    (tmp_path/'evil.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    page.set_input_files('#mg-file', tmp_path/'evil.svg')
    shows(page, '#mg-query [role=alert]', 'SVG')
    shows(page, '#mg-status', 'Nobody is searched yet')
    (tmp_path/'large.jpg').write_bytes(b'\xff\xd8' + b'x'*11_000_000)
    page.set_input_files('#mg-file', tmp_path/'large.jpg')
    shows(page, '#mg-query [role=alert]', '11.0 MB')
    page.set_input_files('#mg-file', few.path.iloc[0])
    shows(page, '#mg-query figcaption', 'your picture')
    shows(page, '#mg-hits', '1. 1.00')
    page.click('.mg-forget')
    shows(page, '#mg-status', 'Nobody is searched yet')
    # the gallery
    page.get_by_role('tab', name='Gallery').click()
    page.wait_for_selector('#mg-gallery button')
    assert page.locator('#mg-gallery button').count() == len(few)
    fits(page)
    page.locator('#mg-page input').fill('')  # an emptied field is the first page
    page.click('#mg-on')
    page.wait_for_function("document.querySelector('#mg-page input').value == '1'")
    page.locator('#mg-by').get_by_label('By camera').check()
    shows(page, '#mg-gallery h3', 'camera 1')
    page.locator('#mg-gallery button').first.focus()
    page.keyboard.press('Enter')  # search for somebody there, by keys
    shows(page, '#mg-status', 'most similar first')
    assert page.locator('#mg-query figcaption').is_visible()
    page.close()
    assert not complaints, complaints
    assert all(u.startswith((address, 'data:', 'blob:')) for u in asked), [u for u in asked if not u.startswith((address, 'data:', 'blob:'))]
    assert not app.kept()  # nothing of all this


def test_on_a_phone(visit):
    opened, _, _, complaints = visit
    page = opened(390, 844)
    fits(page)
    page.click('#mg-some button >> nth=0')
    shows(page, '#mg-status', 'most similar first')
    page.wait_for_function("document.querySelector('#mg-status').getBoundingClientRect().top < innerHeight")  # brought into view
    page.locator('#mg-hits button').first.click()
    shows(page, '#mg-why h3', 'Hit 1')
    fits(page)
    page.get_by_role('tab', name='Gallery').click()
    page.wait_for_selector('#mg-gallery button')
    fits(page)
    page.close()
    assert not complaints


def test_everything_has_a_name(visit):
    "What a screen reader needs: no button, field or picture without a name"
    opened, *_ = visit
    page = opened(1280, 900)
    page.click('#mg-some button >> nth=1')
    page.wait_for_selector('#mg-hits button')
    nameless = page.evaluate('''[...document.querySelectorAll('button, input, textarea, select')].filter(e => e.offsetParent && !(
        e.innerText.trim() || e.getAttribute('aria-label') || e.labels && e.labels.length || e.closest('label') || e.title)).map(e => e.outerHTML.slice(0, 200))''')
    assert not nameless
    assert page.evaluate("[...document.querySelectorAll('.gradio-container img')].every(i => i.hasAttribute('alt'))")
    page.close()


def test_ctrl_c_ends_it_clean(app):
    "Last: an exit without a traceback, the gallery free for others, and no folder left"
    app.process.send_signal(signal.SIGINT)
    said = app.process.communicate(timeout=60)[0]
    assert app.process.returncode == 0 and 'closed; nothing that was dropped is kept' in said and 'Traceback' not in said
    assert not list(app.temporary.iterdir())
    from magnifier.gallery.gallery import Gallery
    with Gallery(app.gallery) as gallery: assert len(gallery)
