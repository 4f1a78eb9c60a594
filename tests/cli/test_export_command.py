"magnifier_export as a shell sees it"
import json

import numpy as np
import pytest
from magnifier.cli.all import magnifier_export
from magnifier.model.embedder import Embedder


@pytest.fixture
def pickled(learn):
    learn.export('learner.pkl')
    return learn.path/'learner.pkl'


@pytest.mark.slow
def test_pickle_to_folder_to_file(pickled, catalog, capsys):
    magnifier_export(str(pickled), format='pretrained')
    folder = pickled.with_name('pretrained')
    embedder = Embedder(folder)
    said = capsys.readouterr().out
    assert str(folder) in said
    assert embedder.fingerprint in said
    assert '64 x 32' in said
    pytest.importorskip('onnxscript')
    magnifier_export(str(folder), str(pickled.with_name('p.onnx')), json=True)
    about = json.loads(capsys.readouterr().out)
    assert about['fingerprint'] == embedder.fingerprint
    assert about['dimensions'] == embedder.dim
    assert about['size'] == [64, 32]
    assert about['bytes'] == pickled.with_name('p.onnx').stat().st_size
    assert about['format'] == 'onnx'
    paths = catalog.path.tolist()[:5]
    assert np.abs(Embedder(about['file'])(paths) - embedder(paths)).max() < 1e-4


@pytest.mark.parametrize('args, kwargs, message', [
    (['l.pkl'], dict(format='tflite'), "unknown format 'tflite': use onnx or pretrained"),
    (['/no/l.pkl'], {}, 'no/l.pkl'),
    (['l.pkl'], dict(format='pretrained', masks=True), '--masks goes with --format onnx')])
def test_mistakes_are_one_line(args, kwargs, message):
    with pytest.raises(SystemExit, match=message): magnifier_export(*args, **kwargs)
