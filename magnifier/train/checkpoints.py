"A training's whole state, stored at the end of each epoch and taken up again: killed and resumed, it ends as if it had not been"
import errno
import os
import time
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.schedule import ParamScheduler
from fastai.vision.all import CancelEpochException, L, get_model, num_distrib, rank_distrib, to_device
from magnifier.data.batches import IdentityBatches
from magnifier.files import aside, clear_leftovers
from magnifier.train.generators import (generator_state, global_states, learner_generators, plain_loaders, set_generator_state,
                                        set_global_states)

__all__ = ['training_state', 'restore_training', 'write_checkpoint', 'read_checkpoint', 'checkpoint_files', 'Checkpoints']

VERSION = 1  # Of the states; raised whenever older ones would be misread


def training_state(
    learn,   # A Learner within or after an epoch
) -> dict:   # Tensors and plain values, which torch reads without running anything
    """All that the next epoch depends on: model, optimiser, loss, generators, the loaders' streams, recorder and losses by part.

    The schedule's position is the epoch itself. Callbacks and losses with a `state_dict` of their own are asked for it."""
    generators = dict(held={name: generator_state(g) for name, g in learner_generators(learn).items()}, shared=global_states())
    return dict(model=get_model(learn.model).state_dict(), opt=_listed(learn.opt.state_dict()), frozen=learn.opt.frozen_idx,
                gamma=getattr(learn.loss_func, 'gamma', None), stateful={name: _listed(o.state_dict()) for name, o in _stateful(learn).items()},
                streams=[dl.epoch if isinstance(dl, IdentityBatches) else None for dl in plain_loaders(learn)],
                generators=_of_all_processes(generators), train_iter=learn.train_iter, records=_records(learn))


def restore_training(
    learn,      # The same Learner, made anew, within a fit
    state:dict, # What `training_state` gave
):
    "Puts a learner where it was; a ValueError for a state of another learner"
    model, generators, found = get_model(learn.model), state['generators'], learner_generators(learn)
    if len(generators) != max(1, num_distrib()):
        raise ValueError(f'this state is of {len(generators)} processes, and {max(1, num_distrib())} run now: start as many')
    mine = generators[rank_distrib()]
    if set(mine['held']) != set(found) or set(state['stateful']) != set(_stateful(learn)):
        differing = sorted(set(mine['held']) ^ set(found) | set(state['stateful']) ^ set(_stateful(learn)))
        raise ValueError(f'this state is of another training: {", ".join(differing)} are in one of them alone')
    try: model.load_state_dict(state['model'])
    except RuntimeError as e: raise ValueError(f'this state is of another model: {" ".join(str(e).split())[:300]}') from e
    _restore_optimiser(learn.opt, state)
    if state['gamma'] is not None: learn.loss_func.gamma = state['gamma']  # a second phase changes it
    for name, o in _stateful(learn).items(): o.load_state_dict(state['stateful'][name])
    for dl, epoch in zip(plain_loaders(learn), state['streams']):
        if epoch is not None: dl.epoch = epoch
    learn.train_iter = state['train_iter']
    _restore_records(learn, state['records'])
    for name, generator in found.items(): set_generator_state(generator, mine['held'][name])
    set_global_states(mine['shared'])


def _restore_optimiser(opt, state):
    if state['frozen']: opt.freeze_to(state['frozen'])
    opt.load_state_dict(state['opt'])
    for p, own in getattr(opt, 'state', {}).items(): own.update(to_device(own, p.device))  # it may have been on another


def _stateful(learn):
    "Callbacks, loss and scaler with a state of their own: asked of the type, for a callback passes on what it lacks to the learner and so to the model"
    owners = {f'callback {cb.name}': cb for cb in learn.cbs} | {'loss': learn.loss_func, 'scaler': getattr(learn, 'scaler', None)}
    return {name: o for name, o in owners.items() if hasattr(type(o), 'state_dict')}


def _of_all_processes(mine):
    "A list with one entry a process: each draws for itself"
    if num_distrib() < 2: return [mine]
    everyone = [None]*num_distrib()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _listed(value):
    "Nested values with lists for fastai's L and Python's numbers for NumPy's; tensors as they are"
    if isinstance(value, dict): return {k: _listed(v) for k, v in value.items()}
    if isinstance(value, (L, list, tuple)): return [_listed(v) for v in value]
    return value.item() if hasattr(value, 'item') and not isinstance(value, torch.Tensor) else value


def _records(learn):
    "What was written down so far: rates and smooth losses by batch, rows by epoch, losses by part, hyper-parameters"
    recorder, history = learn.recorder, getattr(getattr(learn, 'loss_parts', None), 'history', None)
    return dict(lrs=_listed(recorder.lrs), iters=_listed(recorder.iters), values=_listed(recorder.values),
                losses=torch.stack([torch.as_tensor(o) for o in recorder.losses]) if recorder.losses else torch.zeros(0),
                smooth={k: v for k, v in vars(recorder.smooth_loss).items() if isinstance(v, (int, float, torch.Tensor))},
                parts=None if history is None else history.to_dict('list'),
                hypers={cb.name: _listed(cb.hps) for cb in learn.cbs if isinstance(cb, ParamScheduler)})


def _restore_records(learn, records):
    recorder = learn.recorder
    recorder.lrs, recorder.iters, recorder.losses = records['lrs'], records['iters'], list(records['losses'])
    recorder.values = [L(row) for row in records['values']]
    vars(recorder.smooth_loss).update(records['smooth'])
    if 'fetched' in vars(recorder): recorder.fetched = len(recorder.losses)  # all of them are on the CPU
    if recorder.values: learn.final_record = recorder.values[-1].copy()
    if recorder.losses: learn.smooth_loss = recorder.losses[-1]
    if records['parts'] is not None: learn.loss_parts.history = pd.DataFrame(records['parts'])
    for cb in learn.cbs:
        if cb.name in records['hypers'] and isinstance(cb, ParamScheduler): cb.hps = records['hypers'][cb.name]


def checkpoint_files(
    folder,  # Of the checkpoints
) -> list:   # Newest first
    "Checkpoints of a folder, by the number of epochs done"
    return sorted((f for f in Path(folder).glob('*.pth') if f.stem.isdigit()), key=lambda f: int(f.stem), reverse=True)


def write_checkpoint(
    folder,     # Of the checkpoints, which keeps the newest and the one before
    done:int,   # Epochs done in all, its number
    state:dict, # What to store: tensors and plain values
) -> Path:      # The file
    "Writes a checkpoint aside and renames it: at every moment the last whole one is there, and never more than two"
    for old in checkpoint_files(folder)[1:]: old.unlink()
    file = Path(folder)/f'{done:05d}.pth'
    with aside(file) as part: torch.save({'version': VERSION, **state}, part)
    return file


def read_checkpoint(
    folder, # Of the checkpoints
):          # The newest whole state, its tensors on the CPU; None where there is none
    "Reads the newest checkpoint; one that is damaged is set aside with a warning, and the one before it taken"
    for file in checkpoint_files(folder):
        try:
            with open(file, 'rb') as f: state = _whole(f)
        except FileNotFoundError: continue  # the first process set it aside
        except _Damaged as e:
            warnings.warn(f'{file} is damaged ({e}) and was set aside as {file.name}.damaged: going on from the checkpoint before it, if there is one')
            if not rank_distrib(): os.replace(file, file.with_name(file.name + '.damaged'))
            continue
        if state.get('version') != VERSION: raise ValueError(f'{file} was written by another version of magnifier: train anew, in another folder')
        return state
    return None


class _Damaged(Exception): pass


def _whole(f):
    "The state in a file that torch wrote. torch itself would read wrong bytes without a word; a wrong byte in its index may raise anything"
    try:
        with zipfile.ZipFile(f) as z: bad = z.testzip()
        if bad: raise _Damaged(f'wrong bytes in {bad}')
        f.seek(0)
        return dict(torch.load(f, map_location='cpu', weights_only=True))
    except (_Damaged, MemoryError): raise
    except Exception as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL: raise  # the disk's own; a wrong offset is "invalid argument"
        if 'allocate memory' in str(e): raise  # torch's way to say that memory is short
        raise _Damaged(str(e).splitlines()[0] if str(e) else type(e).__name__) from e


class Checkpoints:
    """While it is open, every `fit` of a learner is a stage, and the end of each of its epochs is stored; from a state it goes on.

    Stages that were done are passed by, and the one that was not starts after its last epoch done, so the code that fits runs as it did the
    first time. With several processes the first one writes."""
    def __init__(self,
        learn,       # A ReIDLearner
        folder,      # Of the checkpoints
        *,
        state=None,  # What `read_checkpoint` gave; None to start from the beginning
        note=None,   # Plain values stored with every state, as the run's arguments
        each=None,   # Called with this object after every epoch, once it is stored
    ):
        self.learn, self.folder, self.state, self.note, self.each = learn, Path(folder), state, note, each
        self.stage, self.done, self.rows, self.seconds = -1, 0, [], 0.
        if state is not None: self.done, self.rows, self.seconds = state['done'], state['rows'], state['seconds']

    def __enter__(self):
        if not rank_distrib(): clear_leftovers(self.folder)
        self.learn._do_fit = self._epochs  # fastai's loop always starts at epoch 0
        self.began = time.monotonic() - self.seconds
        return self

    def __exit__(self, *_): del self.learn._do_fit

    def _epochs(self):
        "fastai's loop over epochs, from where the training is"
        learn, first = self.learn, 0
        self.stage += 1
        if self.state is not None:
            if self.stage < self.state['stage']: return
            restore_training(learn, self.state['training'])
            first, self.state = self.state['epoch'], None
            if (bar := getattr(getattr(learn, 'progress', None), 'mbar', None)): bar.update(0)  # a bar's clock starts at its zero
        for epoch in range(first, learn.n_epoch):
            learn.epoch = epoch
            learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)
            self._keep(epoch)

    def _keep(self, epoch):
        "Row and state of an epoch"
        self.done, self.seconds = self.done + 1, time.monotonic() - self.began
        self.rows.append(self._row(epoch))
        training = training_state(self.learn)  # of all processes together
        if rank_distrib(): return
        write_checkpoint(self.folder, self.done, dict(stage=self.stage, epoch=epoch + 1, done=self.done, rows=self.rows, seconds=self.seconds,
                                                      note=self.note, training=training))
        if self.each: self.each(self)

    def _row(self, epoch):
        "Losses by part, metrics and the rate of an epoch, by name"
        recorder, parts = self.learn.recorder, getattr(self.learn, 'loss_parts', None)
        named = dict(zip(recorder.metric_names[1:], recorder.values[-1]))
        by_part = {} if parts is None or not len(parts.history) else parts.history.iloc[-1].to_dict()
        columns = getattr(parts, 'columns', {})
        return dict(epoch=self.done - 1, stage=self.stage + 1, lr=float(recorder.lrs[-1]), **by_part,
                    **{k: v for k, v in _listed(named).items() if k not in columns})
