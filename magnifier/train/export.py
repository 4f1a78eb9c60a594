"The embedding model as an ONNX file, checked before it is there"

import json
import warnings
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

import magnifier
import magnifier.train.pretrained  # noqa: F401, gives learners their fingerprint
from magnifier.data.loaders import preprocessing_of
from magnifier.files import aside
from magnifier.model.embedder import ONNX_KEY
from magnifier.model.embedding import EmbeddingNet
from magnifier.train.learner import ReIDLearner

__all__ = ['export_onnx']

# torch's exporter calls what torch is about to drop, and tells of the recurrent layer's second list of its weights
UPSTREAM = (('.*_check_is_size will be removed.*', FutureWarning), (r'The tensor attributes .*_flat_weights.*', UserWarning))


def export_onnx(
    learn,  # A ReIDLearner
    file='model.onnx',  # Where to write; a file that is there is replaced
    *,
    masks: bool = False,  # A second output, `masks`: n x 2h x 2w uint8 part labels
) -> Path:  # The file
    """Images n x 3 x H x W in (`images`; any n, this learner's H and W), L2-normalised embeddings n x d out (`embedding`). Preprocessing,
    fingerprint and version are JSON in the metadata, under 'magnifier'; `Embedder` reads them. The file is compared with torch
    (cosine above 0.9999) before it takes its name: a RuntimeError where they differ. An ImportError without the libraries, a
    ValueError for loaders whose preprocessing no file can hold"""
    if Path(file).suffix != '.onnx': raise ValueError(f'{file}: a name that ends in .onnx is wanted')
    try: import onnx, onnxruntime, onnxscript  # noqa: E401, F401
    except ImportError as e: raise ImportError(f"no {e.name}: pip install 'magnifier-reid[onnx]' to export") from e
    about = dict(version=magnifier.__version__, fingerprint=learn.fingerprint, preprocessing=preprocessing_of(learn.dls).to_json())
    net, file = EmbeddingNet(learn.model, masks=masks).cpu(), Path(file)
    with aside(file) as part:
        program = _to_onnx(net, about['preprocessing']['size'])
        program.model.metadata_props[ONNX_KEY] = json.dumps(about)
        program.save(part, external_data=False)
        _check(net, part, about['preprocessing']['size'])
    return file


def _to_onnx(net, size):
    images = torch.zeros(2, 3, *size)
    with warnings.catch_warnings():
        for message, category in UPSTREAM: warnings.filterwarnings('ignore', message=message, category=category)
        return torch.onnx.export(net, (images,), dynamo=True, verbose=False, input_names=['images'],
                                 output_names=['embedding', 'masks'][:1 + net.with_masks], dynamic_shapes={'images': {0: torch.export.Dim('n')}})


def _check(net, file, size):
    import onnxruntime as ort
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): expected = net(images)
    expected = expected[0] if net.with_masks else expected
    got = ort.InferenceSession(str(file), providers=['CPUExecutionProvider']).run(['embedding'], {'images': images.numpy()})[0]
    cosine = cosine_similarity(torch.from_numpy(got), expected).min().item()
    if not cosine > .9999: raise RuntimeError(f'the exported model differs from torch (cosine {cosine:.6f}): nothing was written; '
                                              f'torch {torch.__version__} and onnxruntime {ort.__version__} do not agree on it')


ReIDLearner.export_onnx = export_onnx  # learn.export_onnx(file)
