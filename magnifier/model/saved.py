"""A model in files: a folder of two, weights as safetensors and everything else as JSON, which is read without running
code; or one ONNX file, which `Embedder` reads"""

import hashlib
import json
import re
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import magnifier
from magnifier.checks import needs, refuse
from magnifier.data.preprocess import Preprocessing
from magnifier.files import aside, aside_folder
from magnifier.model.net import EmbeddingNet, MagnifierNet, create_magnifier
from magnifier.model.weights import read_safetensors

__all__ = ['write_model', 'read_model', 'model_folder', 'MODEL_FILES', 'fingerprint', 'write_onnx']

FORMAT = 2  # 1 had no weights of branches
KEYS = ('format', 'version', 'fingerprint', 'model', 'preprocessing', 'classes')
MODEL_FILES = WEIGHTS, CONFIG = 'model.safetensors', 'config.json'


def write_model(
    model: nn.Module,  # Made by `create_magnifier`
    folder: str | Path,  # Made where it is not there; files of the same names in it are replaced
    preprocessing: dict,  # Of `Preprocessing.to_json`
    classes: list,  # Training identities in class order, numbers or words
) -> Path:  # The folder
    """Writes weights and arguments. A new folder appears only when it is complete; if a kill leaves new weights beside
    old arguments, reading refuses the folder. A ValueError for a model that cannot be built again from its arguments"""
    from safetensors.torch import save_file
    refuse({'only a network that can be built again by its arguments can be saved so: use create_magnifier with an '
            "arch of torchvision's or timm's, or learn.export, which pickles it":
            not model.arguments or model.arguments['arch'] is None})
    Preprocessing.from_json(preprocessing)  # refuses what cannot be read again
    config = dict(
        format=FORMAT, version=magnifier.__version__, fingerprint=fingerprint(model, preprocessing),
        model=model.arguments, preprocessing=preprocessing,
        classes=[c if isinstance(c, str) else int(c) for c in classes])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with aside_folder(folder, exist_ok=True) as part:
        save_file(tensors, part/WEIGHTS, metadata={'format': 'pt'})
        (part/WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
        (part/CONFIG).write_text(json.dumps(config, indent=1) + '\n')
    return Path(folder)


def model_folder(
    source: str | Path,  # A folder here, or 'user/name' of a repository on the Hugging Face hub
    **hub,  # Passed to `huggingface_hub.snapshot_download`: revision, token, cache_dir, ...
) -> Path:  # A folder here
    "The folder itself, or a downloaded copy of a repository's two files. A FileNotFoundError if there is neither"
    if Path(source).is_dir(): return Path(source)
    if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', str(source)): raise FileNotFoundError(f'{source}: no such folder')
    with needs(f"{source} is not a folder here; to use the hub: pip install 'magnifier-reid[hub]'"):
        from huggingface_hub import snapshot_download
    try: return Path(snapshot_download(str(source), allow_patterns=list(MODEL_FILES), **hub))
    except (OSError, ValueError) as e:
        raise FileNotFoundError(f'{source}: no such folder here, and it could not be downloaded from the hub '
                                f'({str(e).strip().splitlines()[0]})') from e


def read_model(
    source: str | Path,  # See `model_folder`
    **hub,  # See `model_folder`
) -> tuple[MagnifierNet, dict]:  # The model, in training mode as `create_magnifier` gives it; what config.json holds
    """Reads a saved model. A ValueError names a file that is damaged or of another format, arguments that build no
    network or another one than the weights are for, and files that do not belong together"""
    folder = model_folder(source, **hub)
    for name in MODEL_FILES:
        if not (folder/name).is_file():
            raise FileNotFoundError(f'{folder} holds no {name}: a folder of learn.save_pretrained is wanted')
    tensors = read_safetensors(folder/WEIGHTS)
    config = _read_config(folder/CONFIG)
    model = _build(config, tensors, folder)
    found = fingerprint(model, config['preprocessing'])
    refuse({f'{folder}: its weights and its {CONFIG} do not belong together (fingerprint {found}, written was '
            f'{config["fingerprint"]}): one of them was replaced or changed; save the model again':
            found != config['fingerprint']})
    return model, config


def _read_config(file):
    try: config = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as e: raise ValueError(f'{file} is not JSON ({e})') from e
    config = config if isinstance(config, dict) else {}
    missing = [key for key in KEYS if key not in config]
    refuse({
        f'{file} was not written by this package: it has no "format"': 'format' in missing,
        f'{file} is of format {config.get("format")}, by magnifier {config.get("version")}; this is magnifier '
        f'{magnifier.__version__}, which reads format {FORMAT}: install the version that wrote it':
            config.get('format') != FORMAT,
        f'{file}: missing {", ".join(missing)}; {", ".join(KEYS)} are wanted': missing,
    })
    return config


def _build(config, tensors, folder):
    # Without memory first: arguments that do not fit the file are refused before anything is made for them
    arguments = config['model']
    classes = config['classes']
    try:
        Preprocessing.from_json(config['preprocessing'])
        with torch.device('meta'): model = create_magnifier(pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError) as e: raise ValueError(f'{folder/CONFIG}: {e}') from e
    n = model.arguments['n_classes']
    broken = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
    refuse({
        f'{folder/CONFIG}: a list of n_classes={n} different classes is wanted':
            not isinstance(classes, list) or not len(classes) == len(set(map(str, classes))) == n,
        f'{folder/WEIGHTS}: {broken} holds NaN or infinite values': broken,
    })
    try: model.load_state_dict(tensors, assign=True)
    except RuntimeError as e:
        raise ValueError(f'{folder}: {WEIGHTS} does not fit the network of {CONFIG}; save the model again '
                         f'({" ".join(str(e).split())[:300]})') from e
    if any(t.is_meta for t in model.buffers()):  # some of timm's networks have buffers that no file holds
        model = create_magnifier(pretrained=False, **arguments)
        model.load_state_dict(tensors)
    model.arguments = arguments  # as written: an argument that came later is no change of this model's fingerprint
    return model


# Arguments and tensors that no embedding depends on
TRAINING_ONLY = ('n_classes', 'sab_original')
UNUSED = ('.neck.classifier.', '.region_necks.weight', 'num_batches_tracked')


def fingerprint(
    model: nn.Module,  # A MagnifierNet
    preprocessing: dict | str,  # What happens to a picture before the model: values that JSON takes
) -> str:  # 16 hexadecimal digits
    """Hash of the weights that an embedding depends on, of the options that no weight shows, and of the preprocessing.
    Two models with the same fingerprint give the same embeddings on any device; each training step changes the
    fingerprint"""
    arguments = {k: v for k, v in (model.arguments or {}).items() if k not in TRAINING_ONLY}
    digest = hashlib.sha256(json.dumps([arguments, preprocessing], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if any(part in name for part in UNUSED): continue
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        in_order = tensor.detach().cpu().contiguous().flatten()  # whatever the layout in memory
        digest.update(in_order.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


# Warnings of torch's exporter about its own code
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
    refuse({f'{file}: a name that ends in .onnx is wanted': file.suffix != '.onnx'})
    with needs("pip install 'magnifier-reid[onnx]' to export"): import onnx, onnxruntime, onnxscript  # noqa: E401, F401
    about = dict(version=magnifier.__version__, fingerprint=fingerprint, preprocessing=preprocessing)
    net = EmbeddingNet(model, masks=masks).cpu()
    with aside(file) as part:
        program = _to_onnx(net, preprocessing['size'])
        program.model.metadata_props[magnifier.__name__] = json.dumps(about)
        program.save(part, external_data=False)
        _compare(net, part, preprocessing['size'])
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


def _compare(net, file, size):
    import onnxruntime as ort
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): expected = net(images)
    expected = expected[0] if net.with_masks else expected
    session = ort.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    got, = session.run(['embedding'], {'images': images.numpy()})
    cosine = cosine_similarity(torch.from_numpy(got), expected).min().item()
    if cosine > .9999: return
    raise RuntimeError(f'the exported model differs from torch (cosine {cosine:.6f}): nothing was written; '
                       f'torch {torch.__version__} and onnxruntime {ort.__version__} do not agree on it')
