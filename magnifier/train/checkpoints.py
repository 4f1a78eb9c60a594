"""A training's whole state, stored at the end of each epoch and taken up again: killed and resumed, it ends as if
it had not been"""
import errno
import os
import time
import warnings
import zipfile
from pathlib import Path

import torch
from fastai.vision.all import Callback, SkipToEpoch, rank_distrib

from magnifier.files import aside, clear_leftovers
from magnifier.train.state import plain_values, restore_training, training_state

__all__ = ['write_checkpoint', 'read_checkpoint', 'checkpoint_files', 'Checkpoints']

VERSION = 2  # Of the states; raised whenever older ones would be misread


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
    "Writes a checkpoint aside and renames it: at every moment the last whole one is there, and never more than two"
    for old in checkpoint_files(folder)[1:]: old.unlink()
    file = Path(folder)/f'{done:05d}.pth'
    with aside(file) as part: torch.save({'version': VERSION, **state}, part)
    return file


def read_checkpoint(
    folder,  # Of the checkpoints
):  # The newest whole state, its tensors on the CPU; None where there is none
    "Reads the newest checkpoint; one that is damaged is set aside with a warning, and the one before it taken"
    for file in checkpoint_files(folder):
        try:
            with open(file, 'rb') as f: state = _whole(f)
        except FileNotFoundError: continue  # the first process set it aside
        except _Damaged as e:
            warnings.warn(
                f'{file} is damaged ({e}) and was set aside as {file.name}.damaged: going on from the checkpoint '
                'before it, if there is one'
            )
            if not rank_distrib(): os.replace(file, file.with_name(file.name + '.damaged'))
            continue
        if state.get('version') != VERSION:
            raise ValueError(f'{file} was written by another version of magnifier: train anew, in another folder')
        return state
    return None


class _Damaged(Exception): pass


def _whole(f):
    """The state in a file that torch wrote. torch itself would read wrong bytes without a word; a wrong byte in
    its index may raise anything"""
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


class Checkpoints(Callback):
    """Stores a training after each of its epochs, and puts it back where it was.

    It counts the epochs of all fits that it is part of: `done` of them are over. From a state it puts the
    learner back in the first fit; that fit, and those before it, are told by their `start_epoch` where to go
    on. With several processes the first one writes"""

    order = SkipToEpoch.order + 30  # not for epochs that are passed over; after all others

    def __init__(
        self,
        folder,  # Of the checkpoints
        *,
        state=None,  # What `read_checkpoint` gave; None to start from the beginning
        note=None,  # Plain values stored with every state, as the run's arguments
        each=None,  # Called with this object after every epoch, once it is stored
    ):
        self.folder, self.state, self.note, self.each = Path(folder), state, note, each
        state = state or dict(done=0, rows=[], seconds=0.)
        self.done, self.rows = state['done'], state['rows']
        self.began, self.stage, self.trained = time.monotonic() - state['seconds'], 0, False
        if not rank_distrib(): clear_leftovers(self.folder)

    @property
    def seconds(self) -> float:
        "Time spent in all, over all resumptions"
        return time.monotonic() - self.began

    def before_fit(self):
        "Another stage; the learner is put back where there is a state to put it back from"
        if self.state is not None:
            restore_training(self.learn, self.state['training'])
            self.stage = self.state['stage']
            self.state = None
        else: self.stage += 1

    def before_epoch(self):
        "This epoch trains: one that is passed over does not come here"
        self.trained = True

    def after_epoch(self):
        "Row and state of an epoch that trained"
        if not self.trained: return
        self.trained, self.done = False, self.done + 1
        self.rows.append(self._row())
        training = training_state(self.learn)  # of all processes together
        if rank_distrib(): return
        write_checkpoint(
            self.folder,
            self.done,
            dict(
                stage=self.stage,
                done=self.done,
                rows=self.rows,
                seconds=self.seconds,
                note=self.note,
                training=training,
            ),
        )
        if self.each: self.each(self)

    def _row(self):
        "Losses by part, metrics and the rate of an epoch, by name"
        recorder, parts = self.learn.recorder, getattr(self.learn, 'loss_parts', None)
        named = dict(zip(recorder.metric_names[1:], recorder.values[-1]))
        by_part = {} if parts is None or not len(parts.history) else parts.history.iloc[-1].to_dict()
        figures = {k: v for k, v in plain_values(named).items() if k not in getattr(parts, 'columns', {})}
        return dict(epoch=self.done - 1, stage=self.stage, lr=float(recorder.lrs[-1]), **by_part, **figures)
