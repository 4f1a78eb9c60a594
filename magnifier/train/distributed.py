"Training in several processes: how images are divided among them, and how results are gathered"

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from fastai.vision.all import L, num_distrib, rank_distrib
from torch.nn.modules.batchnorm import _BatchNorm

from magnifier.checks import needs
from magnifier.data.transforms import OwnGenerator

__all__ = ['n_ranks', 'join_ranks', 'rank0_first', 'on_all_ranks', 'gather_objects', 'gather_rows', 'gather_own',
           'mean_over_ranks', 'same_state', 'Share', 'distributed']

NEEDS_ACCELERATE = ("training on several processes needs accelerate, as fastai's distrib_ctx does: pip install "
                    'accelerate')


def n_ranks() -> int:  # 1 where there is one process, or several that have not met
    "Number of processes that train together"
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_ranks(
    timeout: float = 60.,  # Seconds that a rank waits for the others in one exchange, before it ends with an error
    *,
    cpu: bool | None = None,  # Whether tensors stay on the CPU (gloo); None: where there is no GPU (else NCCL)
):
    """Connects the processes that `torchrun` started; does nothing in a single process or if they are connected.

    If a rank dies, its connections close and the others end with an error at once; if it hangs, they end after
    `timeout`."""
    if num_distrib() <= 1 or dist.is_initialized(): return
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    if not cpu: torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    dist.init_process_group('gloo' if cpu else 'nccl', timeout=timedelta(seconds=timeout))


@contextmanager
def rank0_first(
    timeout: float = 3600.,  # Seconds that the others wait
):
    "Rank 0 runs the block first, so the others find what it made (a data set, a cache); no effect in a single process"
    if n_ranks() == 1:
        yield
        return
    # With a time limit of its own: making a data set may take longer than an exchange ever should
    gate = dist.new_group(backend='gloo', timeout=timedelta(seconds=timeout))
    if rank_distrib(): dist.barrier(gate)
    try: yield
    finally:
        if not rank_distrib(): dist.barrier(gate)
        dist.destroy_process_group(gate)


def _device():
    return torch.device('cuda', torch.cuda.current_device()) if dist.get_backend() == 'nccl' else torch.device('cpu')


def gather_objects(
    mine,  # Anything that pickles
) -> list:  # One entry for each rank, that of rank 0 first
    "The objects of all ranks, on every rank"
    if n_ranks() == 1: return [mine]
    everyone = [None]*n_ranks()
    dist.all_gather_object(everyone, mine)
    return everyone


def gather_rows(
    x: torch.Tensor,  # Rows of this rank, any number; the other dimensions are every rank's
) -> torch.Tensor:  # Rows of all ranks, those of rank 0 first, on the device of `x`; no gradient
    "The rows of all ranks, on every rank; in a single process `x` itself"
    return x if n_ranks() == 1 else torch.cat(gather_objects(x.detach().cpu())).to(x.device)


def gather_own(
    x: torch.Tensor,  # (n,...) of this rank; n is every rank's
) -> torch.Tensor:  # (n_ranks x n, ...), rank after rank; gradient flows to this rank's rows alone
    "The rows of all ranks for a loss over pairs; in a single process `x` itself. It does not wait for the device"
    if n_ranks() == 1: return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n_ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def mean_over_ranks(
    x: torch.Tensor,  # Floats, alike in shape on every rank
) -> torch.Tensor:  # Their mean, on the device of `x`
    "The mean over all ranks, on every rank; in a single process `x` itself"
    if n_ranks() == 1: return x
    total = x.detach().to(_device(), torch.float32, copy=True)
    dist.all_reduce(total)
    return (total/n_ranks()).to(x.device)


def same_state(
    model: torch.nn.Module,  # Alike in its shapes on every rank; changed in place
):
    """Copies rank 0's weights and statistics to every rank, since without a synchronised batch norm each rank has its
    own running statistics"""
    if n_ranks() == 1: return
    for t in model.state_dict().values():
        sent = t.detach().to(_device(), copy=True)
        dist.broadcast(sent, 0)
        t.copy_(sent)


class Share:
    """This rank's part of a loader's batches, and how the parts are gathered.

    A part has whole batches, the same as in a single process, so results do not depend on the number of ranks. The data
    are shared only inside `distrib_ctx` (where every rank gets here) and if each rank has at least one batch; otherwise
    the part is everything."""

    def __init__(
        self,
        learn,  # A ReIDLearner
        dl,  # Its loader
    ):
        self.shared = n_ranks() > 1 and hasattr(learn, 'distributed_trainer') and len(dl) >= n_ranks()
        self.dl = dl
        if not self.shared: return
        same_state(learn.net)
        indices = [list(dl.get_idxs())]
        dist.broadcast_object_list(indices, 0)  # one order for all, also of a loader that shuffles
        batches = [indices[0][i:i + dl.bs] for i in range(0, len(indices[0]), dl.bs)][:len(dl)]
        first = len(batches)*dist.get_rank()//n_ranks()
        end = len(batches)*(dist.get_rank() + 1)//n_ranks()
        own = [i for batch in batches[first:end] for i in batch]
        self.dl = dl.new(shuffle=False, drop_last=False, get_idxs=lambda: own)
        self.dl.n = len(own)

    def whole(
        self,
        x: torch.Tensor,  # (n,...) of this rank's part
    ) -> torch.Tensor:  # Of all parts, in the loader's order
        "The results of all ranks, on every rank"
        return gather_rows(x) if self.shared else x


@contextmanager
def distributed(
    learn,  # A ReIDLearner
    sync_bn: bool | None = None,  # Batch norms over all ranks' batches; None: where there are GPUs
    *,
    timeout: float = 60.,  # Seconds that a rank waits for the others in one exchange; the first call's holds
    **kwargs,  # Passed to fastai's DistributedTrainer, as cpu
):
    """fastai's `distrib_ctx`, also without a GPU, and with rank 0's weights on all ranks. Each rank augments its
    batches with its own random numbers. Afterwards the learner is as before"""
    if num_distrib() <= 1:
        yield learn
        return
    trainer = _trainer_class()
    cpu = kwargs.get('cpu', not torch.cuda.is_available())
    loaders = learn.dls.loaders
    logger = learn.logger
    join_ranks(timeout, cpu=cpu)
    same_state(learn.model)
    _draw_apart(learn.dls.train)
    norms = _norms(learn.model)
    cbs = [trainer(not cpu if sync_bn is None else sync_bn, **kwargs)]
    silenced = [cb for cb in learn.cbs if cb.name == 'progress' and rank_distrib()]
    try:
        with learn.removed_cbs(silenced), learn.added_cbs(cbs): yield learn
    finally:
        learn.logger = logger
        learn.model = _with_norms(learn.net, norms)
        learn.dls.loaders = loaders  # an error in a fit leaves fastai's wrappers behind


def _norms(model): return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def _with_norms(model, norms):
    """The trained model with its original batch norms in place of synchronised ones, which work only on GPUs and cannot
    be folded"""
    for name, norm in norms.items():
        now = model.get_submodule(name)
        if now is norm: continue
        norm._parameters = now._parameters
        norm._buffers = now._buffers
        norm.training = now.training
        model.set_submodule(name, norm)
    return model


@contextmanager
def on_all_ranks(
    learn,  # A ReIDLearner
    timeout: float = 60.,  # As in `distributed`
    **kwargs,  # Passed to `distributed`
):
    """`learn.distrib_ctx` on the device of its loaders, if `torchrun` started several processes; no effect in a single
    process"""
    with distributed(learn, timeout=timeout, cpu=learn.dls.device.type == 'cpu', **kwargs): yield learn


def _trainer_class():
    """fastai's trainer over several processes, with loaders that send an epoch's indices through the device that the
    backend needs; fastai's own loaders always use a GPU"""
    with needs(NEEDS_ACCELERATE): import accelerate  # noqa: F401, without it fastai's module does not load
    from fastai.distributed import DistributedDL, DistributedTrainer

    class RankDL(DistributedDL):
        def _broadcast(self, t, rank):
            t = torch.tensor(t, dtype=torch.long, device=_device())
            dist.broadcast(t, rank)
            return t.tolist()

    class RankTrainer(DistributedTrainer):
        name = 'distributed_trainer'

        def _wrap_dl(self, dl):
            return dl if isinstance(dl, DistributedDL) else RankDL(dl, device=self.learn.model.device)

    return RankTrainer


def _draw_apart(dl):
    """Different erasing and cropping on other ranks, for transforms with their own generator; rank 0 draws as a single
    process does"""
    if not rank_distrib(): return
    transforms = [t for pipeline in (dl.after_item, dl.after_batch) for t in getattr(pipeline, 'fs', L())]
    for t in transforms:
        if isinstance(t, OwnGenerator): t.generator.manual_seed(t.generator.initial_seed() + 1_000_003*rank_distrib())
