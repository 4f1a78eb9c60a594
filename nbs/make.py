"""Remakes everything that README and the notebooks show.

    python nbs/make.py                    # everything
    python nbs/make.py --only figures     # README's pictures and numbers
    python nbs/make.py --only api         # the API reference
    python nbs/make.py --only notebooks   # the notebooks' outputs, in place

README's pictures go to `nbs/images`, its numbers to `nbs/figures.json`. Models that are missing are trained first, some
minutes each; their folder is printed. Delete it to train anew, as after a class has moved to another module. The time
of each notebook is printed too. The first claim of README or of a notebook that no longer holds ends everything with an
AssertionError. The pictures of the page need playwright and chromium; without them they stay as they are.
"""
import json
import os
import re
import shutil
import sys
import time
from base64 import b64decode, b64encode
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import matplotlib
from fastcore.script import call_parse
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent/'tests'/'bench')]
FULL = 'G+M+SAB+SFB+SD'
PLOT_COLOURS = 10_000  # Curves and bars have up to some 3,000 colours, figures of images more than 20,000
PARTS = ('figures', 'api', 'notebooks')
PAGES = {'page.png': (1280, 1240), 'page_phone.png': (390, 844)}  # Width and height of the window


def numbers(learn, models):
    "README's numbers, as JSON takes them"
    from hsv_baseline import hsv_baseline
    from magnifier.all import describe, read_runs, saliency_inside
    run = read_runs(models.runs).set_index('setting').loc[FULL]
    table = learn.evaluate(rerank=True)
    table.loc['colour alone'] = hsv_baseline(models.path).table().iloc[0]
    test = learn.dls.valid_ds.items.query('pid > 0')
    inside = saliency_inside(learn, test.sample(min(200, len(test)), random_state=0))
    return dict(
        seconds=float(run['seconds']),
        data=json.loads(describe(models.catalog).to_json(orient='index')),
        retrieval=json.loads(table.round(4).to_json(orient='index')),
        saliency={kind: json.loads(of_kind.droplevel('kind').round(3).to_json(orient='index'))
                  for kind, of_kind in inside.groupby('kind')},
    )


def check(found):
    "What README claims"
    retrieval, saliency = found['retrieval'], found['saliency']
    said = re.search(r'compares colours and gives R1 ([\d.]+), mAP ([\d.]+)\.', (HERE.parent/'README.md').read_text())
    for name, percent in zip(('R1', 'mAP'), map(float, said.groups())):
        assert abs(percent - 100*retrieval['colour alone'][name]) < .06, (name, percent, retrieval)
    assert retrieval['plain']['mAP'] > 2*retrieval['colour alone']['mAP'], retrieval
    assert retrieval['re-ranked']['mAP'] > retrieval['plain']['mAP'], retrieval
    for branch, pixels in saliency['pixels'].items():  # "two thirds of the maps lie on the person, who covers a third"
        assert abs(pixels['inside'] - 2/3) < .07, (branch, saliency)
        assert abs(pixels['chance'] - 1/3) < .07, (branch, saliency)
        assert pixels['inside'] > saliency['energy'][branch]['inside'], (branch, saliency)


def draw(learn, folder):
    "README's figures"
    from magnifier.look.ranked import RankedSet
    learn.dls.show_batch(max_n=8, save=folder/'show_batch.png')
    learn.show_results(max_n=4, seed=11, save=folder/'show_results.png')
    learn.show_ranking('spread', n=4, save=folder/'show_ranking.png')
    ranked = RankedSet.of(learn)
    query = int(ranked.choose('best', 1)[0])
    hits = ranked.ranking.hits(query, 20)
    query_row, *hit_rows = [row for _, row in ranked.rows_of(query, hits).iterrows()]
    for name, match in (('explain', True), ('explain_wrong', False)):
        place = hits['match'].eq(match).idxmax()  # of the first right hit, and of the first wrong one
        learn.explain(query_row, hit_rows[place], save=folder/f'{name}.png')


def follow(learn, folder):
    "Who was where in the streams of three cameras, as a timeline"
    import pandas as pd
    from magnifier.all import Gallery, show_timeline, walkers_streams
    root = walkers_streams(people=10, cameras=3, minutes=.5, seed=7)
    with Gallery(folder/'.town') as town:
        for camera in pd.read_csv(root/'cameras.csv').itertuples():
            boxes = root/f'cam{camera.camera}.txt'
            town.add_video(learn, root/camera.file, boxes, camera=camera.camera, start=camera.start, progress=False)
        show_timeline(town.people(), save=folder/'people.png')
    shutil.rmtree(folder/'.town')


def photograph(learn, folder):
    """The page in Chromium, at a desk and on a phone: the first of the people offered whose first hit is right, and why
    it was found. A ValueError where nobody's is"""
    from magnifier.all import Gallery, serve_page
    chromium = shutil.which('chromium')
    if chromium is None or find_spec('playwright') is None:
        return print('playwright or chromium is missing: the pictures of the page stay as they are')
    from playwright.sync_api import sync_playwright
    items = learn.dls.valid_ds.items
    with Gallery(folder/'.people', regions=True) as people, learn.no_bar():
        people.add(learn, items[items.split == 'gallery'].query('pid > 0'), progress=False)
        with serve_page(learn, people) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
            for name, (width, height) in PAGES.items():
                page = browser.new_page(viewport=dict(width=width, height=height), color_scheme='light')
                page.set_default_timeout(120_000)
                page.goto(address)
                explain_a_right_hit(page)
                page.screenshot(path=folder/name)
            browser.close()
    shutil.rmtree(folder/'.people')


def explain_a_right_hit(page):
    "Picks people until somebody's first hit is right, and asks why"
    offered, first = page.locator('.asked .card'), page.locator('#hits .card').first
    page.wait_for_selector('text=Nobody is searched yet')
    for i in range(offered.count()):
        with page.expect_response('**/search'): offered.nth(i).click()
        page.wait_for_selector('body:not(.busy)')
        if '✓' in first.inner_text(): break
    else: raise ValueError('nobody of those offered is found first: train the model, or add more images')
    first.click()
    page.wait_for_selector('#why h3')
    page.evaluate('document.activeElement.blur()')
    page.wait_for_timeout(600)  # of smooth scrolling


def shrink(folder):
    "Pictures of 256 colours: a third of their size in the repository"
    for path in folder.glob('*.png'):
        image = Image.open(path).convert('RGB')
        colours = image.quantize(256, method=Image.Quantize.FASTOCTREE)  # keeps the regions' colours apart
        image.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def execute(path):
    "A notebook, in place"
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=7200, kernel_name='python3',
                   resources={'metadata': {'path': str(HERE)}}).execute(env=dict(os.environ))
    compress_figures(notebook)
    path.write_text(nbformat.writes(notebook), encoding='utf-8')


def compress_figures(notebook):
    "Replaces each PNG among a notebook's outputs by its `compressed` form, about a quarter of the bytes in all"
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    for data in [output.data for output in outputs if 'image/png' in output.get('data', ())]:
        mime, content = compressed(b64decode(data.pop('image/png')))
        data[mime] = b64encode(content).decode()


def compressed(png):
    "A figure's MIME type and bytes: curves and bars keep their colours as a PNG with a palette, images become a JPEG"
    image = Image.open(BytesIO(png)).convert('RGB')
    file = BytesIO()
    if image.getcolors(PLOT_COLOURS):
        palette = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette.save(file, 'PNG', optimize=True)
        return 'image/png', file.getvalue()
    image.save(file, 'JPEG', quality=85, subsampling=0, optimize=True, progressive=True)  # colours at full resolution
    return 'image/jpeg', file.getvalue()


@call_parse
def main(
    only: str = '',  # One of figures, api, notebooks; empty for all
    out: str = '',  # Folder of `images` and `figures.json`; empty for nbs
):
    "Remakes README's pictures and numbers, the API reference and the notebooks' outputs"
    if only and only not in PARTS: raise ValueError(f'--only {only}: use one of {", ".join(PARTS)}')
    matplotlib.use('Agg')
    if only in ('', 'figures'):
        import walkers_models as models
        print(f'data {models.path}, models {models.runs}')
        learn, folder = models.model_of(FULL), Path(out or HERE)
        (folder/'images').mkdir(parents=True, exist_ok=True)
        found = numbers(learn, models)
        (folder/'figures.json').write_text(json.dumps(found, indent=1) + '\n')
        print(json.dumps(found['retrieval'], indent=1))
        draw(learn, folder/'images')
        follow(learn, folder/'images')
        photograph(learn, folder/'images')
        shrink(folder/'images')
        if not models.QUICK: check(found)
    if only in ('', 'api'):
        import api
        api.write()
    if only in ('', 'notebooks'):
        for path in sorted(HERE.glob('*.ipynb')):
            start = time.perf_counter()
            execute(path)
            print(f'{path.name}: {time.perf_counter() - start:.0f} s', flush=True)
