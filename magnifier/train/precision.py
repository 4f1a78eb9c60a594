"Faster training: lower precision, channels-last layout and a compiled network, for the time of a training"
from contextlib import contextmanager

import torch
from fastai.vision.all import AMPMode, Callback, MixedPrecision

__all__ = ['CPUBfloat16', 'bfloat16_pays', 'autocast_of', 'fast_training']


class CPUBfloat16(Callback):
    """The model's forward pass in bfloat16 on a CPU; fastai's own MixedPrecision supports CUDA only.

    Weights, heads, losses and distances stay float32. Use it if `bfloat16_pays()`"""

    order = MixedPrecision.order

    def before_batch(self):
        "Lowers the precision for the forward pass"
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.autocast.__enter__()

    def after_pred(self):
        "Back to float32 before the loss"
        self.autocast.__exit__(None, None, None)
        del self.autocast

    def after_cancel_batch(self):
        "Back to float32 if a batch ends early"
        if hasattr(self, 'autocast'): self.after_pred()


def bfloat16_pays() -> bool:  # True where the CPU multiplies bfloat16 in hardware
    "Whether this CPU has instructions for bfloat16; without them, bfloat16 is slower than float32"
    asks = (getattr(torch.cpu, name, None) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return any(ask is not None and ask() for ask in asks)


def autocast_of(
    learn,  # A Learner
    device: str,  # Type of the device that its model is on: cpu, cuda, ...
):  # torch's autocast, to be entered
    "An autocast context with the precision of the learner's callbacks, for computations outside of a fit"
    if device == 'cpu': return torch.autocast('cpu', torch.bfloat16, enabled=hasattr(learn, 'cpu_bfloat16'))
    half = getattr(learn, 'mixed_precision', None)
    dtype = torch.bfloat16 if half and half.amp_mode == AMPMode.BF16 else torch.float16
    return torch.autocast(device, dtype, enabled=half is not None)


@contextmanager
def fast_training(
    learn,  # A ReIDLearner
    *,
    compile: bool = True,  # Whether the network is compiled too, which takes a minute or two and a C++ compiler
):
    """Fits inside run in bfloat16 if the hardware supports it, in channels-last order, and compiled. Weights, heads,
    losses and distances stay float32, so losses differ only in their last digits. Afterwards only the memory order of
    the learner differs"""
    on_gpu = learn.dls.device.type == 'cuda'
    precision = []
    if on_gpu: precision = [MixedPrecision(AMPMode.BF16)]
    elif bfloat16_pays(): precision = [CPUBfloat16()]
    learn.model.to(memory_format=torch.channels_last)
    if compile: learn.model.compile()  # in place: the names of its tensors stay as they are
    try:
        with learn.added_cbs([cb for cb in precision if not hasattr(learn, cb.name)]): yield learn
    finally:
        # As torch's own copies and pickles have it; else every other size would be compiled too
        learn.model._compiled_call_impl = None
