"Weights from a file: which of its tensors are used where, and a report about it"

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from magnifier.checks import needs, refuse

__all__ = ['load_weights']

WRAPPERS = ('state_dict', 'model_state_dict', 'model')  # keys under which training scripts keep the tensors
LEADING = ('module.', '_orig_mod.')  # what data parallelism and compilation put before every name
# reid-strong-baseline's neck is our global branch's
NECK = {'bottleneck.': 'branches.global.neck.bn.', 'classifier.': 'branches.global.neck.classifier.'}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsReport:
    "The result of `load_weights`, by tensor names"
    file: str  # Where the weights came from
    loaded: list[str]  # The model's tensors that were filled
    reshaped: list[str]  # The model's tensors for which the file holds another shape, left as they were
    missing: list[str]  # The model's tensors that the file does not have, left as they were
    unused: list[str]  # The file's tensors that fit nowhere

    def __str__(self):
        wanted = len(self.loaded) + len(self.reshaped) + len(self.missing)
        parts = [f'{self.file}: {len(self.loaded)} of {wanted} tensors loaded']
        for what in ('reshaped', 'missing', 'unused'):
            names = getattr(self, what)
            if names: parts.append(f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})')
        return '; '.join(parts)


def read_weights(
    file: str | Path,  # A `.safetensors` file, or a state dict by `torch.save`, bare or under 'state_dict' or 'model'
) -> dict[str, Tensor]:  # Tensors by name, on the CPU
    """The tensors of a file, read without running code. A ValueError if it holds none, an ImportError for
    `.safetensors` without that library"""
    file = Path(file)
    tensors = read_safetensors(file) if file.suffix == '.safetensors' else _unpickled(file)
    for lead in LEADING: tensors = {name.removeprefix(lead): tensor for name, tensor in tensors.items()}
    return tensors


def read_safetensors(
    file: Path,  # A `.safetensors` file
) -> dict[str, Tensor]:  # Tensors by name, on the CPU
    "The tensors of a file, under their own names. A ValueError for a damaged file, an ImportError without the library"
    with needs(f"{file}: pip install 'magnifier-reid[safetensors]' to read it"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try: return load_file(file)
    except SafetensorError as e: raise ValueError(f'{file} is cut off or not a safetensors file ({e})') from e


def _unpickled(file):
    with open(file, 'rb') as f:
        try: found = torch.load(f, map_location='cpu', weights_only=True)
        except Exception as e:  # whatever a file of another kind makes the unpickler say
            raise ValueError(f'{file} is not a file of plain tensors: save a state dict, as '
                             'torch.save(model.state_dict(), file) does, or learn.save(file, with_opt=False)') from e
    tensors = _named_tensors(found)
    refuse({f'{file} holds no named tensors: a state dict is wanted': not tensors})
    return tensors


def _named_tensors(found):
    if not isinstance(found, dict): return {}
    for wrapper in WRAPPERS:
        if isinstance(found.get(wrapper), dict): found = found[wrapper]
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}


def load_weights(
    model: nn.Module,  # A MagnifierNet
    file: str | Path,  # See `read_weights`: of a MagnifierNet, of a plain backbone, or of reid-strong-baseline
) -> WeightsReport:  # Also logged
    """Loads the tensors that fit by name and shape, with any prefix of the backbone's names, and leaves the rest of the
    model unchanged. A ValueError if nothing fits, or if the file's backbone has another arch: other shapes, fewer or
    more blocks"""
    tensors = read_weights(file)
    own = model.state_dict()
    sources = _sources(model, own, tensors)
    _resample_patches(tensors, own, sources)
    loaded = [name for name, source in sources.items() if tensors[source].shape == own[name].shape]
    refuse({f'{file}: none of its {len(tensors)} tensors ({", ".join(list(tensors)[:3])}, ...) fits the model '
            f'({", ".join(list(own)[:3])}, ...); is it of another arch?': not any(own[name].ndim for name in loaded)})
    report = _report(file, tensors, own, sources, loaded)
    _check_arch(report, tensors, own, sources)
    model.load_state_dict({name: tensors[sources[name]] for name in loaded}, strict=False)
    logger.info('%s', report)
    return report


def _report(file, tensors, own, sources, loaded):
    used = {sources[name] for name in loaded}
    return WeightsReport(
        str(file),
        loaded=loaded,
        reshaped=[name for name in sources if name not in loaded],
        missing=[name for name in own if name not in sources],
        unused=[name for name in tensors if name not in used])


def _sources(model, own, tensors):
    # The model's name -> the file's: as it is, or as a backbone under whatever prefix the most names agree with
    as_it_is = {name: name for name in own if name in tensors}
    best = max([as_it_is, *_backbone_sources(model, tensors)], key=len)
    return best if best is as_it_is else best | _neck_sources(own, tensors)


def _backbone_sources(model, tensors):
    backbone = {_bare(name): 'backbone.' + name for name in model.backbone.state_dict()}
    found = {name.replace('_', '.'): name for name in tensors}
    first = next(iter(backbone))
    for prefix in {name.removesuffix(first) for name in found if name.endswith(first)}:
        yield {ours: found[prefix + name] for name, ours in backbone.items() if prefix + name in found}


def _neck_sources(own, tensors):
    # A plain backbone may bring reid-strong-baseline's neck
    sources = {}
    for theirs, ours in NECK.items():
        for name in tensors:
            if name.startswith(theirs): sources[ours + name.removeprefix(theirs)] = name
    return {ours: name for ours, name in sources.items() if ours in own}


def _bare(name):
    # timm's feature networks wrap the network that its files are of, and call its stages.0 stages_0
    return name.removeprefix('net.').removeprefix('model.').replace('_', '.')


def _resample_patches(tensors, own, sources):
    # A ViT made for patches of 14 runs here with patches of 16, so that its map has stride 16 like all others
    for name, source in sources.items():
        kernel, shape = tensors[source], own[name].shape
        if name.endswith('patch_embed.proj.weight') and kernel.shape[:2] == shape[:2] and kernel.shape != shape:
            from timm.layers import resample_patch_embed
            tensors[source] = resample_patch_embed(kernel, list(shape[2:]))


def _check_arch(report, tensors, own, sources):
    # A ViT's position embeddings follow the image's size; any other shape, a block that is missing or one too many is
    # another network's
    found = [*_reshaped(report, tensors, own, sources), *_missing(report, own), *_surplus(report, sources)]
    if found: raise ValueError(f'{report.file}: {found[0]}; it is of another arch: pass the one it was trained with')


def _reshaped(report, tensors, own, sources):
    for name in report.reshaped:
        if not name.startswith('backbone.') or 'pos_embed' in name: continue
        there, here = tuple(tensors[sources[name]].shape), tuple(own[name].shape)
        yield f'{sources[name]} is {there} there and {here} in this backbone'


def _missing(report, own):
    for name in report.missing:
        if name.startswith('backbone.') and own[name].ndim: yield f'it has no {name.removeprefix("backbone.")}'


def _surplus(report, sources):
    stages = {_stage(source) for name, source in sources.items() if name.startswith('backbone.')}
    for name in report.unused:
        if _stage(name) and _stage(name) in stages: yield f'its {name} is no part of this backbone'


def _stage(name):
    # What is before the first number, as 'base.layer1' of 'base.layer1.2.conv1.weight'; '' without one
    head, _, rest = re.sub(r'\.\d+\.', '\n', name, count=1).partition('\n')
    return head if rest else ''
