"Weights from a file: which of its tensors belong where, and a report of it"

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ['WeightsReport', 'load_weights', 'read_weights']

WRAPPERS = ('state_dict', 'model_state_dict', 'model')  # keys under which training scripts keep the tensors
LEADING = ('module.', '_orig_mod.')  # what data parallelism and compilation put before every name
# reid-strong-baseline's neck is our global branch's
NECK = {'bottleneck.': 'branches.global.neck.bn.', 'classifier.': 'branches.global.neck.classifier.'}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsReport:
    "What `load_weights` did, by tensor names"
    file: str  # Where the weights came from
    loaded: list[str]  # The model's tensors that were filled
    reshaped: list[str]  # The model's tensors for which the file holds another shape, left as they were
    missing: list[str]  # The model's tensors that the file does not have, left as they were
    unused: list[str]  # The file's tensors that fit nowhere

    def __str__(self):
        parts = [f'{self.file}: {len(self.loaded)} of {len(self.loaded) + len(self.reshaped) + len(self.missing)} tensors loaded']
        for what in ('reshaped', 'missing', 'unused'):
            names = getattr(self, what)
            if names: parts.append(f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})')
        return '; '.join(parts)


def read_weights(
    file: str | Path,  # A `.safetensors` file, or what `torch.save` made of a state dict, bare or under 'state_dict' or 'model'
) -> dict[str, Tensor]:  # Tensors by name, on the CPU
    """The tensors of a file; no code of it is run. A ValueError where it holds none that can be read so, an ImportError for
    `.safetensors` without that library"""
    file = Path(file)
    if file.suffix == '.safetensors':
        try: from safetensors.torch import load_file
        except ImportError as e: raise ImportError(f'{file}: pip install safetensors to read it') from e
        return _without_leading(load_file(file))
    try: found = torch.load(file, map_location='cpu', weights_only=True)
    except OSError: raise
    except Exception as e:  # whatever a file of another kind makes the unpickler say
        raise ValueError(f'{file} is no file of plain tensors: save a state dict, as torch.save(model.state_dict(), file) does, '
                         'or learn.save(file, with_opt=False)') from e
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict): found = found[wrapper]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors: raise ValueError(f'{file} holds no named tensors: a state dict is wanted')
    return _without_leading(tensors)


def _without_leading(tensors):
    for lead in LEADING: tensors = {k.removeprefix(lead): v for k, v in tensors.items()}
    return tensors


def _sources(model, tensors):
    # The model's name -> the file's: as it is, or as a backbone under whatever prefix the most names agree with
    backbone = {_bare(name): 'backbone.' + name for name in model.backbone.state_dict()}
    first, found = next(iter(backbone)), {k.replace('_', '.'): k for k in tensors}
    ways = [{name: name for name in model.state_dict()}]
    for prefix in {k.removesuffix(first) for k in found if k.endswith(first)}:
        ways.append({ours: found[prefix + name] for name, ours in backbone.items() if prefix + name in found})
    best = max(ways, key=lambda way: sum(source in tensors for source in way.values()))
    if best is ways[0]: return best
    return best | {ours + k.removeprefix(theirs): k for theirs, ours in NECK.items() for k in tensors if k.startswith(theirs)}


def _bare(name):
    # timm's feature networks wrap the network that its files are of, and call its stages.0 stages_0
    return name.removeprefix('net.').removeprefix('model.').replace('_', '.')


def _as_patches(kernel, shape):
    # A ViT made for patches of 14 runs here with patches of 16, whose strides fit the others'
    if kernel.shape[:2] != shape[:2] or kernel.shape == shape: return kernel
    from timm.layers import resample_patch_embed
    return resample_patch_embed(kernel, list(shape[2:]))


def load_weights(
    model: nn.Module,  # A MagnifierNet
    file: str | Path,  # See `read_weights`: of a MagnifierNet, of a plain backbone, or of reid-strong-baseline
) -> WeightsReport:  # Also logged: as a warning where the backbone is incomplete
    """Fills in what fits by name and shape, whatever prefix the backbone has in the file, and leaves the rest as it is. A ValueError
    where nothing fits, or where the backbone has tensors of other shapes, as of another arch"""
    tensors, own = read_weights(file), model.state_dict()
    pairs = {name: source for name, source in _sources(model, tensors).items() if name in own and source in tensors}
    for name, source in pairs.items():
        if name.endswith('patch_embed.proj.weight'): tensors[source] = _as_patches(tensors[source], own[name].shape)
    loaded = [name for name, source in pairs.items() if tensors[source].shape == own[name].shape]
    if not any(own[name].ndim for name in loaded):
        raise ValueError(f'{file}: none of its {len(tensors)} tensors ({", ".join(list(tensors)[:3])}, ...) fits the model '
                         f'({", ".join(list(own)[:3])}, ...); is it of another arch?')
    reshaped = [name for name in pairs if name not in loaded]
    # a ViT's position embeddings follow the image's size; any other shape is another network's
    foreign = next((name for name in reshaped if name.startswith('backbone.') and 'pos_embed' not in name), None)
    if foreign:
        raise ValueError(f'{file}: {pairs[foreign]} is {tuple(tensors[pairs[foreign]].shape)} there and {tuple(own[foreign].shape)} in this backbone; '
                         'it is of another arch: name the arch it was trained with')
    model.load_state_dict({name: tensors[pairs[name]] for name in loaded}, strict=False)
    used = {pairs[name] for name in loaded}
    report = WeightsReport(str(file), loaded, reshaped, [name for name in own if name not in pairs],
                           [k for k in tensors if k not in used])
    whole = all(name in loaded for name in own if name.startswith('backbone.') and own[name].ndim)
    logger.log(logging.INFO if whole else logging.WARNING, '%s', report)
    return report
