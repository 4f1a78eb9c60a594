"Weights averaged over a training's steps, for whatever comes after it"
import torch
from fastai.vision.all import Callback

__all__ = ['average_into', 'AveragedWeights']


def average_into(
    averages:list, # Tensors, changed in place
    values:list,   # As many of the same shapes
    decay:float,   # 0 to 1: share of the averages that stays
):
    "a <- decay a + (1 - decay) v; what counts in integers, as batch norms' number of batches, is copied"
    with torch.no_grad():
        floats = [(a, v.detach()) for a, v in zip(averages, values) if a.is_floating_point()]
        if floats: torch._foreach_lerp_(*map(list, zip(*floats)), 1 - decay)
        for a, v in zip(averages, values):
            if not a.is_floating_point(): a.copy_(v)


class AveragedWeights(Callback):
    """Exponential moving average of weights and of batch norms' statistics, one update a step.

    The model holds the trained weights while it trains, and the averaged ones whenever it does not: validation, `embed`, `evaluate`, `save`,
    `export` and what tracks the best epoch see those. The next epoch goes on from the trained ones, but for a model that was changed meanwhile
    (another one loaded): that is where it then starts, average included."""
    def __init__(self,
        decay:float=.999,   # Share of the average that stays at a step
        warm_up:bool=True,  # In step n (from 1) at most (1+n)/(10+n) stays: a short training forgets where it started
    ):
        if not 0 <= decay < 1: raise ValueError(f'decay={decay}: 0 or more, and less than 1')
        self.decay, self.warm_up, self.n, self.other, self.left = decay, warm_up, 0, None, None

    def _state(self):
        "Weights and statistics, the tensors themselves; a distributed fit's wrapper has the same"
        model = getattr(self.learn.model, 'module', self.learn.model)
        return [*model.parameters(), *model.buffers()]

    def before_train(self):
        "Trained weights into the model, averages aside"
        state = self._state()
        if self.other is None or self.left is not None and not self._as_left(): self.n, self.other = 0, [t.detach().clone() for t in state]
        elif self.left is not None: self._swap(state)  # after an error within an epoch the trained ones are still there
        self.left = None

    def after_step(self):
        "One step's update"
        self.n += 1
        average_into(self.other, self._state(), min(self.decay, (1 + self.n)/(10 + self.n)) if self.warm_up else self.decay)

    def after_train(self):
        "Averages into the model, trained weights aside"
        if self.left is not None or self.other is None: return
        self._swap(self._state())
        self.left = self._norms()

    def after_fit(self):
        "Also where a fit was cancelled within an epoch"
        self.after_train()

    def _swap(self, state):
        with torch.no_grad():
            for inside, aside in zip(state, self.other):
                kept = inside.detach().clone()
                inside.copy_(aside)
                aside.copy_(kept)

    def _norms(self):
        # Of the weights alone: running statistics are each process's own, and all must come to the same answer
        return torch.stack(torch._foreach_norm([p.detach() for p in self.learn.model.parameters()])).cpu()

    def _as_left(self):
        norms = self._norms()
        return norms.shape == self.left.shape and torch.allclose(norms, self.left, rtol=1e-6, atol=0.)

    def state_dict(self) -> dict:  # 'n' updates, 'trained' weights and 'left', by which the model that belongs to them is known again
        "Between epochs: what a checkpoint needs beside the model, which holds the averages"
        return dict(n=self.n, trained=self.other, left=self.left)

    def load_state_dict(self,
        state:dict # Of `state_dict`
    ):
        "Goes on from a checkpoint, whose model is loaded as usual"
        self.n, self.other, self.left = state['n'], state['trained'], state['left']

    def __getstate__(self): return {**self.__dict__, 'n': 0, 'other': None, 'left': None}  # an exported learner carries one model, not two
