"Training at the hardware's pace: lower precision, a layout and a compiled network, for as long as a training lasts"
from contextlib import contextmanager

import torch
from fastai.vision.all import AMPMode, MixedPrecision
from magnifier.train.callbacks import CPUBfloat16, bfloat16_pays

__all__ = ['fast_training']


@contextmanager
def fast_training(
    learn,              # A ReIDLearner
    *,
    compile:bool=True,  # Whether the network is compiled too, which takes a minute or two at its first step and needs a C++ compiler or a GPU's
):
    """Fits inside run in bfloat16 where the hardware multiplies it, in channels-last order, and compiled; weights, heads, losses and distances
    stay float32, so the method stays as it is (METHOD), though not the last digits. Afterwards the learner is as it was, but for the order in
    memory. What it gains on a GPU has not been measured so far"""
    on_gpu = learn.dls.device.type == 'cuda'
    precision = [MixedPrecision(AMPMode.BF16)] if on_gpu else [CPUBfloat16()] if bfloat16_pays() else []
    learn.model.to(memory_format=torch.channels_last)
    if compile: learn.model.compile()  # in place: the names of its tensors stay as they are
    try:
        with learn.added_cbs([cb for cb in precision if not hasattr(learn, cb.name)]): yield learn
    finally: learn.model._compiled_call_impl = None  # as torch's own copies and pickles have it; else every other size would be compiled too
