"Every notebook runs from its top on a small data set, and is kept with the outputs of the default one"
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1]/'nbs').glob('*.ipynb'))


def test_there_are_notebooks(): assert {'index', 'quickstart'} <= {p.stem for p in NOTEBOOKS}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_kept_with_outputs_and_without_errors(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    assert any(c.outputs for c in cells), 'run it on the default data set and keep its outputs'
    assert not [o for c in cells for o in c.outputs if o.output_type == 'error']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_reader_need_not_wait_for_a_notebook(path):
    assert path.stat().st_size < 3e6, 'python nbs/make.py --only notebooks compresses the figures'


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv('MAGNIFIER_QUICK', '1')
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, kernel_name='python3',
                   resources={'metadata': {'path': str(path.parent)}}).execute(env=dict(os.environ))
