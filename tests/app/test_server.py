"The page's server before it answers; tests/look/test_page.py asks it"
import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip('gradio')

from magnifier.app.page import make_page  # noqa: E402
from magnifier.app.server import is_local, private_folder  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')  # Gradio's own


@pytest.fixture(autouse=True)
def _loops(monkeypatch):
    "Gradio makes event loops for a page and leaves them open: they are closed here"
    made, new = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, 'new_event_loop', lambda: made.append(new()) or made[-1])
    yield
    for loop in made: loop.close()
    asyncio.set_event_loop(None)


def test_a_folder_that_only_its_owner_reads_and_that_goes(monkeypatch):
    monkeypatch.setenv('GRADIO_TEMP_DIR', '/elsewhere')
    with pytest.raises(ZeroDivisionError), private_folder() as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and os.environ['GRADIO_TEMP_DIR'] == folder
        Path(folder, 'upload.png').write_bytes(b'x')
        1/0
    assert not Path(folder).exists() and os.environ['GRADIO_TEMP_DIR'] == '/elsewhere'
    monkeypatch.delenv('GRADIO_TEMP_DIR')
    with private_folder(): pass
    assert 'GRADIO_TEMP_DIR' not in os.environ


def test_local(): assert is_local('127.0.0.1') and is_local('localhost') and not is_local('0.0.0.0') and not is_local('192.168.0.2')


def test_the_page_promises_nothing_outside(seer, people):
    config = make_page(seer, people).get_config_file()
    assert not config.get('analytics_enabled') and all(d['api_visibility'] == 'private' for d in config['dependencies'])


def test_without_gradio(monkeypatch, seer, people):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ImportError, match=r"pip install 'magnifier-reid\[app\]'"): make_page(seer, people)
