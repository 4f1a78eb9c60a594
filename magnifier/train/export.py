"The embedding model as an ONNX file, checked before it is saved"
import json
import warnings
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

import magnifier
from magnifier.files import aside
from magnifier.model.embedder import ONNX_KEY
from magnifier.model.embedding import EmbeddingNet

__all__ = ['write_onnx']

# torch's exporter calls what torch is about to drop, and warns of the recurrent layer's second list of its weights
UPSTREAM = (
    ('.*_check_is_size will be removed.*', FutureWarning),
    (r'The tensor attributes .*_flat_weights.*', UserWarning),
)


def write_onnx(
    model: torch.nn.Module,  # A MagnifierNet
    file,  # Where to write; a file that is there is replaced
    preprocessing: dict,  # What the model's images went through, `size` (height, width) among it
    fingerprint: str,  # Of model and preprocessing
    *,
    masks: bool = False,  # A second output, `masks`: n x 2h x 2w uint8 part labels
) -> Path:  # The file
    """Writes the network, compares it with torch (cosine above 0.9999), and only then gives the file its name. A
    RuntimeError if they differ, an ImportError without the libraries, a ValueError for another suffix"""
    file = Path(file)
    if file.suffix != '.onnx': raise ValueError(f'{file}: a name that ends in .onnx is wanted')
    try: import onnx, onnxruntime, onnxscript  # noqa: E401, F401
    except ImportError as e: raise ImportError(f"no {e.name}: pip install 'magnifier-reid[onnx]' to export") from e
    about = dict(version=magnifier.__version__, fingerprint=fingerprint, preprocessing=preprocessing)
    net = EmbeddingNet(model, masks=masks).cpu()
    with aside(file) as part:
        program = _to_onnx(net, preprocessing['size'])
        program.model.metadata_props[ONNX_KEY] = json.dumps(about)
        program.save(part, external_data=False)
        _check(net, part, preprocessing['size'])
    return file


def _to_onnx(net, size):
    images = torch.zeros(2, 3, *size)
    outputs = ['embedding', 'masks'] if net.with_masks else ['embedding']
    with warnings.catch_warnings():
        for message, category in UPSTREAM: warnings.filterwarnings('ignore', message=message, category=category)
        return torch.onnx.export(
            net,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=['images'],
            output_names=outputs,
            dynamic_shapes={'images': {0: torch.export.Dim('n')}},
        )


def _check(net, file, size):
    import onnxruntime as ort
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): expected = net(images)
    expected = expected[0] if net.with_masks else expected
    got = ort.InferenceSession(str(file), providers=['CPUExecutionProvider']).run(
        ['embedding'], {'images': images.numpy()}
    )[0]
    cosine = cosine_similarity(torch.from_numpy(got), expected).min().item()
    if cosine > .9999: return
    raise RuntimeError(f'the exported model differs from torch (cosine {cosine:.6f}): nothing was written; '
                       f'torch {torch.__version__} and onnxruntime {ort.__version__} do not agree on it')
