"""Checkpoints: the whole state of a training, stored after each epoch, so that a killed and resumed training gives the
same result"""

import errno
import os
import time
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.vision.all import Callback, L, SkipToEpoch, get_model, num_distrib, rank_distrib, to_device

from magnifier.checks import refuse
from magnifier.data.batches import IdentityBatches
from magnifier.files import aside, clear_leftovers
from magnifier.train.distributed import gather_objects
from magnifier.train.generators import (generator_state, global_states, learner_generators, plain_loaders,
                                        set_generator_state, set_global_states)

__all__ = ['Checkpoints']

VERSION = 2  # Of the states; raised whenever older ones would be misread


class Checkpoints(Callback):
    """Stores the state of a training after each epoch, and restores it.

    `done` is the number of finished epochs over all fits with this callback. A given state is restored in the first
    fit; the `start_epoch` of the fits says where they continue. With several processes, the first one writes"""

    order = SkipToEpoch.order + 30  # after all others; an epoch that is skipped does not get here

    def __init__(
        self,
        folder,  # Of the checkpoints
        *,
        state=None,  # What `read_checkpoint` gave; None to start from the beginning
        note=None,  # Plain values stored with every state, as the run's arguments
        each=None,  # Called with this object after every epoch, once it is stored
    ):
        self.folder = Path(folder)
        self.state = state
        self.note = note
        self.each = each
        state = state or dict(done=0, rows=[], seconds=0.)
        self.done = state['done']
        self.rows = state['rows']
        self.began = time.monotonic() - state['seconds']
        self.stage = 0
        self.trained = False
        if not rank_distrib(): clear_leftovers(self.folder)

    @property
    def seconds(self) -> float:
        "Total time, over all resumptions"
        return time.monotonic() - self.began

    def before_fit(self):
        "Starts a stage, and restores the learner if there is a state"
        if self.state is not None:
            restore_training(self.learn, self.state['training'])
            self.stage = self.state['stage']
            self.state = None
        else: self.stage += 1

    def before_epoch(self):
        "Notes that this epoch trains; skipped epochs do not get here"
        self.trained = True

    def after_epoch(self):
        "Stores the row and the state of an epoch that trained"
        if not self.trained: return
        self.trained = False
        self.done += 1
        self.rows.append(self._row())
        training = training_state(self.learn)  # of all processes together
        if rank_distrib(): return
        state = dict(stage=self.stage, done=self.done, rows=self.rows, seconds=self.seconds, note=self.note,
                     training=training)
        write_checkpoint(self.folder, self.done, state)
        if self.each: self.each(self)

    def _row(self):
        "Losses by part, metrics and the rate of an epoch, by name"
        recorder = self.learn.recorder
        parts = getattr(self.learn, 'loss_parts', None)
        named = dict(zip(recorder.metric_names[1:], recorder.values[-1]))
        by_part = {} if parts is None or not len(parts.history) else parts.history.iloc[-1].to_dict()
        figures = {k: v for k, v in plain_values(named).items() if k not in getattr(parts, 'columns', {})}
        return dict(epoch=self.done - 1, stage=self.stage, lr=float(recorder.lrs[-1]), **by_part, **figures)


def checkpoint_files(
    folder,  # Of the checkpoints
) -> list:  # Newest first
    "Checkpoints of a folder, by the number of epochs done"
    return sorted((f for f in Path(folder).glob('*.pth') if f.stem.isdigit()), key=lambda f: int(f.stem), reverse=True)


def write_checkpoint(
    folder,  # Of the checkpoints, which keeps the newest and the one before
    done: int,  # Epochs done in all, its number
    state: dict,  # What to store: tensors and plain values
) -> Path:  # The file
    "Writes a checkpoint. At every moment the last complete one exists, and never more than two"
    for old in checkpoint_files(folder)[1:]: old.unlink()
    file = Path(folder)/f'{done:05d}.pth'
    with aside(file) as part: torch.save({'version': VERSION, **state}, part)
    return file


def read_checkpoint(
    folder,  # Of the checkpoints
):  # The newest whole state, its tensors on the CPU; None where there is none
    "Reads the newest checkpoint; a damaged one is renamed with a warning, and the one before it is read"
    for file in checkpoint_files(folder):
        try:
            with open(file, 'rb') as f: state = _whole(f)
        except FileNotFoundError: continue  # the first process set it aside
        except _Damaged as e:
            warnings.warn(
                f'{file} is damaged ({e}) and was renamed to {file.name}.damaged: continuing from the checkpoint '
                'before it, if there is one'
            )
            if not rank_distrib(): os.replace(file, file.with_name(file.name + '.damaged'))
            continue
        refuse({f'{file} was written by another version of magnifier: train again, in another folder':
                state.get('version') != VERSION})
        return state
    return None


class _Damaged(Exception): pass


def _whole(f):
    """The state in a file that torch wrote. torch itself does not notice wrong bytes, and a wrong byte in the file's
    index can raise any error"""
    try:
        with zipfile.ZipFile(f) as z: bad = z.testzip()
        if bad: raise _Damaged(f'wrong bytes in {bad}')
        f.seek(0)
        return dict(torch.load(f, map_location='cpu', weights_only=True))
    except (_Damaged, MemoryError): raise
    except Exception as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL: raise  # a wrong offset is "invalid argument"
        if 'allocate memory' in str(e): raise  # torch has no type of its own for a memory that is short
        raise _Damaged(str(e).splitlines()[0] if str(e) else type(e).__name__) from e


def training_state(
    learn,  # A Learner within or after an epoch
) -> dict:  # Tensors and plain values, which torch reads without running anything
    """Everything that the next epoch depends on: model, optimiser, loss, generators, the loaders' streams, recorder and
    losses by part.

    The schedule depends on the epoch's number only. Callbacks and losses with a `state_dict` are included."""
    held = {name: generator_state(g) for name, g in learner_generators(learn).items()}
    return dict(
        model=get_model(learn.model).state_dict(),
        opt=plain_values(learn.opt.state_dict()),
        frozen=learn.opt.frozen_idx,
        gamma=getattr(learn.loss_func, 'gamma', None),
        stateful={name: plain_values(o.state_dict()) for name, o in _stateful(learn).items()},
        trackers={cb.name: _best_so_far(cb) for cb in learn.cbs if isinstance(cb, TrackerCallback)},
        streams=[dl.epoch if isinstance(dl, IdentityBatches) else None for dl in plain_loaders(learn)],
        generators=gather_objects(dict(held=held, shared=global_states())),  # each process has its own
        train_iter=learn.train_iter,
        records=_records(learn))


def restore_training(
    learn,  # The same Learner, made anew, within a fit
    state: dict,  # What `training_state` gave
):
    "Restores the state of a learner; a ValueError for the state of another learner"
    found = learner_generators(learn)
    _check_state(learn, state, found)
    mine = state['generators'][rank_distrib()]
    try:
        get_model(learn.model).load_state_dict(state['model'])
    except RuntimeError as e:
        raise ValueError(f'this state is of another model: {" ".join(str(e).split())[:300]}') from e
    _restore_optimiser(learn.opt, state)
    if state['gamma'] is not None: learn.loss_func.gamma = state['gamma']  # a second phase changes it
    for name, o in _stateful(learn).items(): o.load_state_dict(state['stateful'][name])
    for cb in learn.cbs: vars(cb).update(state['trackers'].get(cb.name, {}))
    for dl, epoch in zip(plain_loaders(learn), state['streams']):
        if epoch is not None: dl.epoch = epoch
    learn.train_iter = state['train_iter']
    _restore_records(learn, state['records'])
    for name, generator in found.items(): set_generator_state(generator, mine['held'][name])
    set_global_states(mine['shared'])


def _check_state(learn, state, found):
    generators = state['generators']
    n_processes = max(1, num_distrib())
    refuse({f'this state is of {len(generators)} processes, and {n_processes} run now: start as many':
            len(generators) != n_processes})
    mine = generators[rank_distrib()]
    differing = set(mine['held']) ^ set(found) | set(state['stateful']) ^ set(_stateful(learn))
    refuse({f'this state is of another training: {", ".join(sorted(differing))} are in one of them alone': differing})


def _restore_optimiser(opt, state):
    if state['frozen']: opt.freeze_to(state['frozen'])
    opt.load_state_dict(state['opt'])
    for p, own in getattr(opt, 'state', {}).items(): own.update(to_device(own, p.device))  # it may have been on another


def _stateful(learn):
    # Asked of the type: an instance of a callback passes on what it lacks to the learner, and so to the model
    owners = {f'callback {cb.name}': cb for cb in learn.cbs} | {
        'loss': learn.loss_func,
        'scaler': getattr(learn, 'scaler', None),
    }
    return {name: o for name, o in owners.items() if hasattr(type(o), 'state_dict')}


def _best_so_far(tracker):
    return {name: plain_values(value) for name, value in vars(tracker).items() if name in ('best', 'wait')}


def plain_values(
    value,  # Nested dicts and lists
):  # The same
    "Nested values with lists instead of fastai's L and Python's numbers instead of NumPy's; tensors unchanged"
    if isinstance(value, dict): return {k: plain_values(v) for k, v in value.items()}
    if isinstance(value, (L, list, tuple)): return [plain_values(v) for v in value]
    return value.item() if hasattr(value, 'item') and not isinstance(value, torch.Tensor) else value


def _records(learn):
    "The records so far: rates and smoothed losses by batch, rows by epoch, losses by part, hyper-parameters"
    recorder = learn.recorder
    history = getattr(getattr(learn, 'loss_parts', None), 'history', None)
    return dict(
        lrs=plain_values(recorder.lrs),
        iters=plain_values(recorder.iters),
        values=plain_values(recorder.values),
        losses=torch.stack([torch.as_tensor(o) for o in recorder.losses]) if recorder.losses else torch.zeros(0),
        smooth={k: v for k, v in vars(recorder.smooth_loss).items() if isinstance(v, (int, float, torch.Tensor))},
        parts=None if history is None else history.to_dict('list'),
        hypers={cb.name: plain_values(cb.hps) for cb in learn.cbs if isinstance(cb, ParamScheduler)},
    )


def _restore_records(learn, records):
    recorder = learn.recorder
    recorder.lrs = records['lrs']
    recorder.iters = records['iters']
    recorder.losses = list(records['losses'].to(next(learn.model.parameters()).device))
    recorder.values = [L(row) for row in records['values']]
    vars(recorder.smooth_loss).update(records['smooth'])
    if recorder.values: learn.final_record = recorder.values[-1].copy()
    if recorder.losses: learn.smooth_loss = recorder.losses[-1]
    if records['parts'] is not None: learn.loss_parts.history = pd.DataFrame(records['parts'])
    for cb in learn.cbs:
        if cb.name in records['hypers'] and isinstance(cb, ParamScheduler): cb.hps = records['hypers'][cb.name]
