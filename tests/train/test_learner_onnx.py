"The exported file against the learner it came from"
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from magnifier.data.loaders import ReIDDataLoaders
from magnifier.model.embedder import Embedder
from magnifier.model.net import EmbeddingNet
from magnifier.model import saved
from magnifier.train.learner import magnifier_learner

onnx, ort = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

pytestmark = pytest.mark.slow  # a network is trained and exported before the first


@pytest.fixture(scope='module')
def learn(catalog, tmp_path_factory):
    "A full model after one epoch"
    torch.manual_seed(0)
    dls = ReIDDataLoaders.from_df(catalog, path=tmp_path_factory.mktemp('export'), size=(64, 32), bs=8, n_per_id=2,
                                  pad=2, num_workers=0)
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        yield learn


@pytest.fixture(scope='module')
def file(learn): return learn.export_onnx(learn.path/'deep'/'model.onnx', masks=True)


@pytest.fixture(scope='module')
def embedder(file): return Embedder(file, bs=7, threads=1)


@pytest.fixture(scope='module')
def paths(catalog): return catalog[catalog.split != 'train'].path.tolist()


def test_embeds_as_the_learner_does(learn, embedder, paths):
    expected, got = learn.embed(paths).numpy(), embedder(paths)
    assert got.shape == expected.shape == (len(paths), embedder.dim)
    assert got.dtype == np.float32
    assert (got*expected).sum(1).min() > .9999
    assert np.abs(got - expected).max() < 1e-4
    assert embedder.fingerprint == learn.fingerprint
    assert embedder.preprocessing == learn.dls.preprocessing
    assert embedder.size == (64, 32)


def test_any_kind_of_picture(embedder, paths):
    arrays = [np.asarray(Image.open(p).convert('RGB')) for p in paths[:3]]
    expected = embedder(paths[:3])
    for crops in (arrays, [Image.open(p) for p in paths[:3]], np.stack(arrays), (a for a in arrays),
                  [paths[0], arrays[1], Image.open(paths[2])]):
        np.testing.assert_allclose(embedder(crops), expected, atol=1e-5)
    np.testing.assert_allclose(embedder([a[..., ::-1] for a in arrays], bgr=True), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(arrays[0]), expected[:1], atol=1e-5)
    assert embedder([]).shape == (0, embedder.dim)
    with pytest.raises(ValueError, match='uint8'): embedder([arrays[0].astype(float)])
    with pytest.raises(FileNotFoundError, match='nobody.png'): embedder(['nobody.png'])


def test_the_file_says_what_it_is(file, learn):
    model = onnx.load(file)
    onnx.checker.check_model(model)
    about = json.loads({p.key: p.value for p in model.metadata_props}['magnifier'])
    assert about['fingerprint'] == learn.fingerprint
    assert about['preprocessing']['size'] == [64, 32]
    assert [p.name for p in file.parent.iterdir()] == ['model.onnx']  # weights inside, nothing left over
    assert {o.domain: o.version for o in model.opset_import}[''] >= 18
    n, *size = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert isinstance(n, str), 'any number of images'
    assert size == [3, 64, 32]
    assert [d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim][0] == n
    assert set(learn.model.branches) == {'global', 'sab', 'sfb'}


@pytest.mark.parametrize('n', [1, 3])
def test_dynamic_batch_and_masks(file, learn, n):
    session = ort.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    images = torch.randn(n, 3, 64, 32)
    embedding, masks = session.run(['embedding', 'masks'], {'images': images.numpy()})
    with learn.evaluating() as (model, _): expected = model(images)
    assert (embedding*expected.embedding.numpy()).sum(1).min() > .9999
    assert masks.dtype == np.uint8
    assert (masks == expected.mask_logits.argmax(1).numpy()).mean() > .99


def test_starts_without_torch_fastai_or_pandas(file, paths):
    code = ('import sys; from magnifier.model.embedder import Embedder; '
            f'e = Embedder({str(file)!r}); assert e({paths[:2]!r}).shape == (2, e.dim); print(*sys.modules)')
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'torchvision', 'fastai', 'pandas', 'matplotlib', 'fastcore'} & set(loaded)


def test_a_file_that_differs_is_not_written(learn, monkeypatch, tmp_path):
    def other(net, size):
        class Program:
            class model: metadata_props = {}
            def save(self, path, external_data): path.write_bytes(b'')
        return Program()
    monkeypatch.setattr(saved, '_to_onnx', other)
    monkeypatch.setattr(ort, 'InferenceSession',
                        lambda *a, **kw: SimpleNamespace(run=lambda names, feed: [np.eye(3, 576, dtype=np.float32)]))
    with pytest.raises(RuntimeError, match='differs from torch .cosine .*nothing was written'):
        learn.export_onnx(tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())


def test_without_the_libraries(learn, monkeypatch, tmp_path, file):
    with pytest.raises(ValueError, match='people: a name that ends in .onnx'): learn.export_onnx(tmp_path/'people')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match=r"pip install 'magnifier-reid\[onnx\]'"): learn.export_onnx(tmp_path/'m.onnx')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='pip install onnxruntime'): Embedder(file)


def test_files_that_are_not_ours(file, tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.onnx: no such file'): Embedder(tmp_path/'gone.onnx')
    (tmp_path/'bad.onnx').write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match='is not an ONNX file that onnxruntime'): Embedder(tmp_path/'bad.onnx')
    model = onnx.load(file)
    about = json.loads(model.metadata_props[0].value)
    del model.metadata_props[:]
    onnx.save(model, tmp_path/'bare.onnx')
    with pytest.raises(ValueError, match='does not describe its preprocessing: a file of learn.export_onnx'):
        Embedder(tmp_path/'bare.onnx')
    about['preprocessing']['channels'] = 'BGR'
    model.metadata_props.add(key='magnifier', value=json.dumps(about))
    onnx.save(model, tmp_path/'other.onnx')
    with pytest.raises(ValueError, match='this version knows'): Embedder(tmp_path/'other.onnx')
    with pytest.raises(ValueError, match="device='tpu'.*CPUExecutionProvider"): Embedder(file, device='tpu')


def test_openvino_reads_the_file(file, tmp_path):
    openvino = pytest.importorskip('openvino')
    openvino.save_model(openvino.convert_model(str(file)), tmp_path/'people.xml')
    network = openvino.compile_model(tmp_path/'people.xml', 'CPU')
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 32)).astype(np.float32)
    expected = ort.InferenceSession(str(file)).run(['embedding'], {'images': images})[0]
    for n in (1, 3): assert (network(images[:n])['embedding']*expected[:n]).sum(1).min() > .999  # weights of 16 bits


@pytest.mark.filterwarnings('ignore:.*torch.jit.*is deprecated', 'ignore::torch.jit.TracerWarning')
def test_the_network_can_be_traced(learn, tmp_path):
    torch.jit.trace(EmbeddingNet(learn.net).cpu(), torch.zeros(2, 3, 64, 32)).save(tmp_path/'people.ts')
    images = torch.randn(3, 3, 64, 32)
    with learn.evaluating() as (model, _): expected = model(images).embedding
    traced = torch.jit.load(tmp_path/'people.ts')
    for n in (1, 3): assert (traced(images[:n])*expected[:n]).sum(1).min() > .9999
