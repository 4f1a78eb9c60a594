"A model in a folder of two files: weights as safetensors, all else as JSON. Reading it runs nothing that the folder brings"

import json
import os
import re
import shutil
import tempfile
from inspect import signature
from pathlib import Path

import torch
from torch import nn

import magnifier
from magnifier.data.preprocess import Preprocessing
from magnifier.model.backbone import backbone_names
from magnifier.model.fingerprint import fingerprint
from magnifier.model.net import MagnifierNet, create_magnifier

__all__ = ['write_model', 'read_model', 'model_folder', 'MODEL_FILES']

FORMAT = 1
KEYS = ('format', 'version', 'fingerprint', 'model', 'preprocessing', 'classes')
MODEL_FILES = WEIGHTS, CONFIG = 'model.safetensors', 'config.json'


def write_model(
    model: nn.Module,  # Made by `create_magnifier`
    folder: str | Path,  # Made where it is not there; files of the same names in it are replaced
    preprocessing: dict,  # Of `Preprocessing.to_json`
    classes: list,  # Training identities in class order, numbers or words
) -> Path:  # The folder
    """Weights and arguments, written aside and then renamed: a new folder is there whole or not at all, and one whose weights were
    replaced and whose arguments were not yet is refused on reading. A ValueError for a model that its arguments cannot build again"""
    from safetensors.torch import save_file
    if not model.arguments or model.arguments['arch'] is None:
        raise ValueError('only a network that can be built again by its arguments can be saved so: use create_magnifier with an arch of '
                         "torchvision's or timm's, or learn.export, which pickles it")
    folder = Path(folder)
    Preprocessing.from_json(preprocessing)  # refuses what cannot be read again
    config = dict(format=FORMAT, version=magnifier.__version__, fingerprint=fingerprint(model, preprocessing),
                  model=model.arguments, preprocessing=preprocessing, classes=[c if isinstance(c, str) else int(c) for c in classes])
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, aside/WEIGHTS, metadata={'format': 'pt'})
        (aside/CONFIG).write_text(json.dumps(config, indent=1) + '\n')
        (aside/WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
        if folder.is_dir():
            for name in MODEL_FILES: os.replace(aside/name, folder/name)
        else:
            aside.chmod(0o755)  # a temporary folder is its owner's alone
            os.rename(aside, folder)
    finally: shutil.rmtree(aside, ignore_errors=True)
    return folder


def model_folder(
    source: str | Path,  # A folder here, or 'user/name' of a repository on the Hugging Face hub
    **hub,  # Passed to `huggingface_hub.snapshot_download`: revision, token, cache_dir, ...
) -> Path:  # A folder here
    "The folder itself, or its copy of a repository's two files. A FileNotFoundError where there is neither"
    if Path(source).is_dir(): return Path(source)
    if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', str(source)): raise FileNotFoundError(f'{source}: no such folder')
    try: from huggingface_hub import snapshot_download
    except ImportError as e:
        raise ImportError(f"{source} is no folder here; to look on the hub: pip install 'magnifier-reid[hub]'") from e
    try: return Path(snapshot_download(str(source), allow_patterns=list(MODEL_FILES), **hub))
    except (OSError, ValueError) as e:
        raise FileNotFoundError(f'{source}: no such folder here, and from the hub it could not be had ({str(e).strip().splitlines()[0]})') from e


def read_model(
    source: str | Path,  # See `model_folder`
    **hub,  # See `model_folder`
) -> tuple[MagnifierNet, dict]:  # The model, in training mode as `create_magnifier` gives it; the content of config.json
    """A saved model. A ValueError for files of a later format, with unknown keys, whose shapes are not those of the arguments, or that do not
    belong together"""
    folder = model_folder(source, **hub)
    tensors, config = _read_weights(folder/WEIGHTS), _read_config(folder/CONFIG)
    arguments = config['model']
    # Without memory first: arguments that do not fit the file are refused before anything is made for them
    with torch.device('meta' if arguments['arch'] in backbone_names() else 'cpu'):
        model = create_magnifier(pretrained=False, **arguments)
    _check_tensors(model, tensors, folder)
    model.load_state_dict(tensors, assign=True)
    found = fingerprint(model, config['preprocessing'])
    if found != config['fingerprint']:
        raise ValueError(f'{folder}: its weights and its {CONFIG} do not belong together (fingerprint {found}, written was '
                         f'{config["fingerprint"]}): one of them was replaced or changed; save the model again')
    return model, config


def _read_weights(file):
    try: from safetensors import SafetensorError
    except ImportError as e: raise ImportError(f"{file}: pip install 'magnifier-reid[safetensors]' to read it") from e
    from safetensors.torch import load_file
    if not file.is_file(): raise FileNotFoundError(f'{file.parent} holds no {file.name}: a folder of learn.save_pretrained is wanted')
    try: return load_file(file)
    except SafetensorError as e: raise ValueError(f'{file} is cut short or no safetensors file ({e})') from e


def _read_config(file):
    if not file.is_file(): raise FileNotFoundError(f'{file.parent} holds no {file.name}: a folder of learn.save_pretrained is wanted')
    try: config = json.loads(file.read_text())
    except ValueError as e: raise ValueError(f'{file} is no JSON ({e})') from e
    if not isinstance(config, dict) or 'format' not in config: raise ValueError(f'{file} is not of this package: it has no "format"')
    if config['format'] != FORMAT:
        raise ValueError(f'{file} is of format {config["format"]}, by magnifier {config.get("version")}; this is magnifier {magnifier.__version__}, '
                         f'which reads format {FORMAT}: install the version that wrote it')
    _check_keys(file, config, KEYS)
    defaults = {k: p.default for k, p in signature(create_magnifier).parameters.items() if k not in ('pretrained', 'weights')}
    _check_keys(f'{file}: model', config['model'], defaults)
    for key, default in defaults.items():
        value = config['model'][key]
        if type(value) is not type(default) and not (key == 'sfb' and value == 'ab'):
            raise ValueError(f'{file}: model: {key} is {value!r}; {type(default).__name__} is wanted')
    Preprocessing.from_json(config['preprocessing'])
    if not isinstance(config['classes'], list) or len(config['classes']) != config['model']['n_classes']:
        raise ValueError(f'{file}: as many classes as n_classes={config["model"]["n_classes"]} are wanted')
    return config


def _check_keys(where, found, wanted):
    found = found if isinstance(found, dict) else {}
    for what, keys in (('unknown', set(found) - set(wanted)), ('missing', set(wanted) - set(found))):
        if keys: raise ValueError(f'{where}: {what} {", ".join(sorted(map(str, keys)))}; {", ".join(wanted)} are wanted')


def _check_tensors(model, tensors, folder):
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in [*own, *found]:
        if own.get(name) != found.get(name):
            raise ValueError(f'{folder}: {name} is {found.get(name, "missing")} in {WEIGHTS} and {own.get(name, "unknown")} by {CONFIG}: '
                             'files of two models; save the model again')
