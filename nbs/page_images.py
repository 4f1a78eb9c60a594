"README's images of the page, by `python nbs/page_images.py --gallery people --learner people.pkl`"
import shutil
from pathlib import Path

from fastcore.script import call_parse

IMAGES = Path(__file__).parent/'images'
SIZES = {'page.png': (1280, 1240), 'page_phone.png': (390, 844)}
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking')


def page_images(
    learn,  # The ReIDLearner that made the gallery
    gallery,  # A Gallery of drawn people: photographs do not belong into the repository
    folder: Path = IMAGES,  # Where the images are written
) -> list:  # Their paths
    """The page in Chromium, at a desk and on a phone: the first of the people offered whose first hit is right,
    and why it was found. A ValueError where nobody's is"""
    from playwright.sync_api import sync_playwright
    from magnifier.app.server import serve_page
    with serve_page(learn, gallery) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=list(FLAGS))
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport=dict(width=width, height=height), color_scheme='light')
            page.goto(address)
            explain_a_right_hit(page)
            page.screenshot(path=Path(folder)/name)
        browser.close()
    return [Path(folder)/name for name in SIZES]


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


@call_parse
def main(
    gallery: str = 'people',  # The gallery
    learner: str = 'people.pkl',  # The learner that made it
):
    "Writes README's images of the page"
    from magnifier.cli.common import open_learner
    from magnifier.gallery.gallery import Gallery
    learn = open_learner(learner)
    with Gallery(gallery) as people, learn.no_bar():
        for path in page_images(learn, people): print(path)
