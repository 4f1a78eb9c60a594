"magnifier_app as it runs, visited in a browser by clicks and keys, at a desk and on a phone"
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()


class App(NamedTuple):
    "A running command"
    process: subprocess.Popen
    address: str
    gallery: Path
    folder: Path  # Where the process runs and may keep files

    def kept(self): return [p for p in self.folder.rglob('*') if p.is_file()]


@pytest.fixture(scope='module')
def app(seer, few, tmp_path_factory):
    "The command over a gallery of a dozen, in a process of its own"
    from magnifier.gallery.gallery import Gallery
    root = tmp_path_factory.mktemp('app')
    (root/'here').mkdir()
    seer.export(root/'learner.pkl')
    with Gallery(root/'people', regions=True) as gallery:
        gallery.add(seer, few.assign(time=range(10**9, 10**9 + len(few))), progress=False)
    script = root/'command.py'  # as an installed one
    script.write_text('from magnifier.cli.gallery import magnifier_app\nmagnifier_app()\n')
    command = [sys.executable, '-W', 'ignore', script, '--gallery', root/'people', '--learner', root/'learner.pkl']
    environment = {**os.environ, 'TMPDIR': str(root/'here'), 'OMP_NUM_THREADS': '1',
                   'PYTHONPATH': os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root/'here',
                               env=environment)
    try:
        said = process.stdout.readline()
        assert said.startswith('http://127.0.0.1:'), said
        assert f'searches {len(few)} images' in said
        yield App(process, said.split()[0], root/'people', root/'here')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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
            page.on('console', lambda m: m.type in ('error', 'warning') and complaints.append(m.text))
            page.on('pageerror', lambda e: complaints.append(str(e)))
            page.goto(app.address)
            shows(page, '#status', 'Nobody is searched yet')
            return page
        yield opened, asked, complaints
        browser.close()


def shows(page, selector, text): page.locator(selector).filter(has_text=text).first.wait_for()


def until(page, condition, seconds=60):
    "Waits in Python: the page's policy lets nobody evaluate text in it"
    for _ in range(seconds*20):
        if condition(): return
        page.wait_for_timeout(50)
    pytest.fail('waited in vain')


def fits(page):
    "Nothing is wider than the screen, and images are large enough to see"
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    shown = "[...document.querySelectorAll('.card img')].filter(i => i.offsetParent)"
    assert min(page.evaluate(f'{shown}.map(i => i.clientWidth)')) >= 40


def test_a_visit(app, visit, few, tmp_path):
    opened, asked, complaints = visit
    page = opened(1280, 900)
    hits = page.locator('#hits .card')
    page.click('.asked .card >> nth=1')  # pick
    shows(page, '#status', 'most similar first. Left out: camera')
    shows(page, '#chosen figcaption', 'identity')
    assert page.locator('.asked .card[aria-pressed=true]').count() == 1
    page.click('#where summary')
    page.select_option('[name=leave_out]', '')
    n = len(few) - 1
    shows(page, '#status', f'{n} hits, most similar first. Choose')
    hits.nth(1).click()  # why?
    shows(page, '#why h3', 'Hit 2')
    assert page.locator('#why img').count() == 4
    assert page.locator('#why tbody tr').count() == 9
    shows(page, '#why', re.compile('WRONG: the query is identity|Right: both are identity'))
    assert hits.nth(1).get_attribute('aria-pressed') == 'true'
    assert page.evaluate('document.activeElement.tagName') == 'H3'
    page.check('[name=masks]')
    page.wait_for_selector('#hits .legend')
    page.wait_for_selector('#why .legend')  # the explanation stays
    slider = page.locator('#threshold')  # by keys
    slider.focus()
    page.keyboard.press('End')
    shows(page, '#status', 'No hit at this threshold')
    shows(page, '#rates', 'False accepts')
    assert page.locator('output').inner_text() == '1.00'
    assert hits.count() == 0
    slider.press('Home')
    shows(page, '#status', f'{n} hits')
    fits(page)
    # filters
    page.check('[name=cameras] >> nth=0')
    until(page, lambda: hits.count() < n)
    page.uncheck('[name=cameras] >> nth=0')
    shows(page, '#status', f'{n} hits')
    page.fill('[name=since]', '2030-01-01T00:00')
    shows(page, '#status', 'widen them')
    page.fill('[name=since]', '')
    shows(page, '#status', f'{n} hits')
    # a region: hits by it, or a sentence that the query shows none
    page.locator('[name=regions]').nth(1).focus()
    page.keyboard.press('Space')
    shows(page, '#status', re.compile('by chest|shows no chest'))
    page.keyboard.press('Space')
    shows(page, '#status', f'{n} hits, most')
    page.close()
    assert not complaints
    assert all(url.startswith((app.address, 'data:')) for url in asked)
    assert not app.kept()  # nothing of all this


DROP = '''async ([kind, bytes]) => {
    const data = new DataTransfer()
    data.items.add(new File([new Uint8Array(bytes)], 'dropped', {type: 'image/jpeg'}))
    const about = {clipboardData: data, dataTransfer: data, bubbles: true}
    const event = kind === 'paste' ? new ClipboardEvent(kind, about) : new DragEvent(kind, about)
    document.querySelector('#drop').dispatchEvent(event)
}'''


def test_files(app, visit, few, tmp_path):
    "Refused, then taken: chosen, dropped, pasted"
    opened, asked, complaints = visit
    page = opened(1280, 900)
    (tmp_path/'evil.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    page.set_input_files('#file', tmp_path/'evil.svg')
    shows(page, '#chosen [role=alert]', 'not an image')
    (tmp_path/'large.jpg').write_bytes(b'\xff\xd8' + b'x'*11_000_000)
    page.set_input_files('#file', tmp_path/'large.jpg')
    shows(page, '#chosen [role=alert]', '11.0 MB')
    assert page.locator('#hits .card').count() == 0
    page.set_input_files('#file', few.path.iloc[0])
    shows(page, '#chosen figcaption', 'your image')
    shows(page, '#hits', '1. 1.00')
    for kind in ('drop', 'paste'):
        page.click('text=Forget')
        shows(page, '#status', 'Nobody is searched yet')
        assert page.evaluate('document.activeElement.id') == 'file'  # the keyboard's place is not lost
        page.evaluate(DROP, [kind, [*Path(few.path.iloc[0]).read_bytes()]])
        shows(page, '#hits', '1. 1.00')
    page.close()
    assert not complaints
    assert not app.kept()


def test_the_gallery(app, visit, few):
    opened, asked, complaints = visit
    page = opened(1280, 900)
    page.get_by_role('tab', name='Search').focus()
    page.keyboard.press('ArrowRight')  # tabs by keys
    page.wait_for_selector('#gallery-shown .card')
    assert page.get_by_role('tab', name='Gallery').get_attribute('aria-selected') == 'true'
    assert page.locator('#gallery-shown .card').count() == len(few)
    fits(page)
    page.focus('[name=by]')
    page.select_option('[name=by]', 'camera')
    shows(page, '#gallery-shown h3', 'camera 1')
    assert page.evaluate('document.activeElement.name') == 'by'
    page.select_option('[name=only]', 'camera 1')
    until(page, lambda: page.locator('#gallery-shown h3').count() == 1)
    page.locator('#gallery-shown .card').first.focus()
    page.keyboard.press('Enter')  # search for somebody there, by keys
    shows(page, '#status', 'most similar first')
    assert page.locator('#chosen figcaption').is_visible()
    page.close()
    assert not complaints


def test_on_a_phone(visit):
    opened, _, complaints = visit
    page = opened(390, 844)
    fits(page)
    page.click('.asked .card >> nth=0')
    shows(page, '#status', 'most similar first')
    place = "document.querySelector('#status').getBoundingClientRect().top < innerHeight"
    until(page, lambda: page.evaluate(place))  # brought into view
    page.locator('#hits .card').first.click()
    shows(page, '#why h3', 'Hit 1')
    fits(page)
    page.get_by_role('tab', name='Gallery').click()
    page.wait_for_selector('#gallery-shown .card')
    fits(page)
    page.close()
    assert not complaints


def test_everything_has_a_name(visit):
    "What a screen reader needs: no button, field or image without a name"
    opened, *_ = visit
    page = opened(1280, 900)
    page.click('.asked .card >> nth=1')
    page.locator('#hits .card').first.click()
    page.wait_for_selector('#why h3')
    nameless = page.evaluate('''[...document.querySelectorAll('button, input, textarea, select')].filter(
        e => e.offsetParent && !(e.innerText.trim() || e.getAttribute('aria-label') || e.labels?.length || e.title)
        ).map(e => e.outerHTML.slice(0, 200))''')
    assert not nameless
    assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.hasAttribute('alt'))")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


def test_ctrl_c_ends_it_clean(app):
    "Last: an exit without a traceback, and the gallery free for others"
    app.process.send_signal(signal.SIGINT)
    said = app.process.communicate(timeout=60)[0]
    assert app.process.returncode == 0
    assert 'closed; nothing that was dropped is kept' in said
    assert 'Traceback' not in said
    assert not app.kept()
    from magnifier.gallery.gallery import Gallery
    with Gallery(app.gallery) as gallery: assert len(gallery)
