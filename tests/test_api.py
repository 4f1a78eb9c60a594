"The API reference is of the names that exist: `python nbs/api.py` writes it anew"
import importlib.util
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1]/'nbs'
PAGES = sorted(p for p in (NBS/'api').glob('*.md') if p.stem != 'README')


@pytest.fixture(scope='module')
def api():
    spec = importlib.util.spec_from_file_location('api', NBS/'api.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_page_a_wing(api): assert {p.stem for p in PAGES} == set(api.WINGS)


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_no_name_is_dead(path):
    lines = re.findall(r'^```python\n(.*?)\n```$', path.read_text(encoding='utf-8'), re.M)
    assert lines
    for line in lines: exec(line, {})


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_no_name_is_missing(path, api):
    text = path.read_text(encoding='utf-8')
    names = [name for module in api.modules(path.stem) for name in module.__all__]
    missing = [name for name in names if f'\n### {name}\n' not in text]
    assert not missing, f'{missing} are not in {path.name}: run `python nbs/api.py`'


def test_pages_are_written_from_the_source(api, tmp_path):
    api.write(tmp_path)
    text = (tmp_path/'look.md').read_text(encoding='utf-8')
    assert '### ReIDLearner.show_ranking' in text
    assert '| `k` | `8` | Hits of each query |' in text
    assert 'Returns: `.table`, `.words`, `.figure`, `.score`, `.same_person`' in text
    assert ' at 0x' not in ''.join(p.read_text(encoding='utf-8') for p in tmp_path.glob('*.md'))
