"Crops in, embeddings out, from an exported file or a saved folder, without fastai"

import json
from itertools import islice
from pathlib import Path

import numpy as np

import magnifier
from magnifier.checks import as_count, needs, refuse
from magnifier.data.images import as_images
from magnifier.data.preprocess import Preprocessing

__all__ = ['Embedder']


class Embedder:
    """`Embedder('model.onnx')(crops)` needs neither torch nor fastai; `Embedder('folder')`, of learn.save_pretrained,
    torch"""

    def __init__(
        self,
        source: str | Path,  # A file of `export_onnx`, a folder of `save_pretrained`, or 'user/name' on the hub
        *,
        bs: int = 32,  # Crops worked on at once
        device: str = 'cpu',  # 'cpu' or 'cuda'; an .onnx file on a GPU needs onnxruntime-gpu
        threads: int | None = None,  # Of an .onnx file on a CPU; None for one a core
    ):
        "A ValueError for files that this package has not written, a FileNotFoundError for missing ones"
        self.source = str(source)
        self.bs = as_count(bs, 'bs')
        open_it = _open_onnx if str(source).endswith('.onnx') else _open_folder
        self._run, self.fingerprint, self.preprocessing, self.dim = open_it(source, device, threads)

    def __call__(
        self,
        crops,  # A path, PIL image or (h,w,3) uint8 array; a list, array or generator of these, of any sizes; a catalog
        bgr: bool = False,  # Arrays are BGR, as OpenCV reads them; files and PIL images know their own order
    ) -> np.ndarray:  # n x d float32, L2-normalised; 0 x d for an empty list
        "Embeddings, in the order given. A ValueError for files that are not images"
        parts = []
        crops = iter(as_images(crops))
        while batch := list(islice(crops, self.bs)): parts.append(self._run(self.preprocessing(batch, bgr=bgr)))
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    embed = __call__  # as a learner's

    @property
    def size(self) -> tuple[int, int]:  # Height and width in pixels
        "The size that crops are resized to"
        return self.preprocessing.size

    def __repr__(self):
        height, width = self.size
        return f'Embedder({self.source!r}): {self.dim} dimensions, {height} x {width} pixels, {self.fingerprint}'


def _open_onnx(source, device, threads):  # -> images to embeddings, fingerprint, preprocessing, dimensions
    with needs(f'{source}: pip install onnxruntime to run it'): import onnxruntime as ort
    if not Path(source).is_file(): raise FileNotFoundError(f'{source}: no such file')
    options = ort.SessionOptions()
    if threads: options.intra_op_num_threads = threads
    provider = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider').get(device)
    available = ort.get_available_providers()
    refuse({f'device={device!r}: this onnxruntime has {", ".join(available)}': provider not in available})
    try: session = ort.InferenceSession(str(source), options, providers=[provider])
    except Exception as e:  # onnxruntime has classes of its own for each kind of damage
        raise ValueError(f'{source} is not an ONNX file that onnxruntime {ort.__version__} can run '
                         f'({str(e).splitlines()[0]})') from e
    about = session.get_modelmeta().custom_metadata_map.get(magnifier.__name__)
    refuse({f'{source} does not describe its preprocessing: a file of learn.export_onnx is wanted': about is None})
    about = json.loads(about)
    run = lambda images: session.run(['embedding'], {'images': images})[0]
    return run, about['fingerprint'], Preprocessing.from_json(about['preprocessing']), session.get_outputs()[0].shape[1]


def _open_folder(source, device, threads):
    import torch
    from magnifier.model.net import EmbeddingNet
    from magnifier.model.saved import read_model
    model, config = read_model(source)
    net = EmbeddingNet(model).to(device)

    @torch.inference_mode()
    def run(images): return net(torch.from_numpy(images).to(device)).cpu().numpy()
    return run, config['fingerprint'], Preprocessing.from_json(config['preprocessing']), model.embedding_dim
