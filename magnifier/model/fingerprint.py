"Which embedding model this is, in sixteen digits"

import hashlib
import json

import torch
from torch import nn

__all__ = ['fingerprint']

# What trains and evaluates but never reaches an embedding: another number of identities makes no other model of it
TRAINING_ONLY = ('n_classes', 'sab_original')
UNUSED = ('.neck.classifier.', '.region_necks.weight', 'num_batches_tracked')


def fingerprint(
    model: nn.Module,  # A MagnifierNet
    preprocessing: dict | str,  # What happens to a picture before the model: values that JSON takes
) -> str:  # 16 hexadecimal digits
    """Hash of the weights that an embedding rests on, of the options that no weight shows, and of the preprocessing.
    Two models of one fingerprint give the same embeddings of the same images, on whatever device; an optimiser's step
    gives another fingerprint"""
    arguments = {k: v for k, v in (model.arguments or {}).items() if k not in TRAINING_ONLY}
    digest = hashlib.sha256(json.dumps([arguments, preprocessing], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if any(part in name for part in UNUSED): continue
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        in_order = tensor.detach().cpu().contiguous().flatten()  # whatever the layout in memory
        digest.update(in_order.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
