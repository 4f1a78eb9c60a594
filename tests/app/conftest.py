"A small gallery, and what the page asks of it"
import pytest


@pytest.fixture(scope='session')
def people(seer, few, tmp_path_factory):
    "Four images of each of four people, an hour apart"
    from magnifier.gallery.gallery import Gallery
    rows = few.groupby(['split', 'pid'], group_keys=False).head(2)
    rows = rows.assign(time=[1_760_000_000 + 3600*i for i in range(len(rows))])
    with Gallery(tmp_path_factory.mktemp('people')/'people', regions=True) as gallery:
        gallery.add(seer, rows, progress=False)
        yield gallery


@pytest.fixture(scope='session')
def one_finder(seer, people):
    from magnifier.app.search import Finder
    from magnifier.app.server import Uploads
    return Finder(seer, people, Uploads())


@pytest.fixture
def finder(one_finder):
    "As it is when the page is opened: it remembers no searches"
    one_finder.refresh()
    return one_finder
