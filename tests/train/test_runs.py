"Runs killed anywhere and resumed end as those that were not; what a run says, stores and refuses"
import json
import os
import signal
import traceback
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, load_learner
from magnifier.train import checkpoints
from magnifier.train.guards import NonFiniteLoss
from magnifier.train.runs import RunStopped, train_run


class DoAt(Callback):
    "Does something at one batch of one epoch of one stage, counted from 0"
    order = 300
    def __init__(self, does, stage=0, epoch=0, batch=0, event='after_batch', training=True):
        self.does, self.at, self.event, self.wants, self.stage = does, (stage, epoch, batch), event, training, -1

    def before_fit(self): self.stage += 1

    def __call__(self, event):
        if event == 'before_fit': self.before_fit()
        elif event == self.event and self.learn.training == self.wants and (self.stage, self.learn.epoch, self.learn.iter) == self.at: self.does()


def die(): os.kill(os.getpid(), signal.SIGKILL)


def killed(train):
    "Runs `train` in a child that must be killed on the way"
    child = os.fork()
    if not child:
        try: train()
        except BaseException: traceback.print_exc()
        finally: os._exit(1)  # it should not come here
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def weights(out): return load_learner(out/'learner.pkl').model.state_dict()


def assert_same(out, other):
    a, b = weights(out), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for name in ('metrics.csv', 'losses.csv'): assert (out/name).read_text() == (other/name).read_text(), name
    records = [json.loads((o/'run.json').read_text()) for o in (out, other)]
    for name in ('figures', 'arguments', 'stages', 'epochs_done', 'parameters'): assert records[0][name] == records[1][name], name


def dying_in(where):
    "Patches, in a child, what writes a checkpoint: it dies at its third one"
    save, replace, n = torch.save, os.replace, [0]
    def half(state, part):
        n[0] += 1
        if n[0] < 3: return save(state, part)
        Path(part).write_bytes(b'PK' + bytes(1000))
        die()
    def last(part, file):
        n[0] += 'checkpoints' in str(file)
        if n[0] == 3 and where == 'before the rename': die()
        replace(part, file)
        if n[0] == 3: die()
    if where == 'while writing': checkpoints.torch.save = half
    else: checkpoints.os.replace = last


pytestmark = pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork.*:DeprecationWarning')


@pytest.fixture(scope='module')
def straight(small, how, tmp_path_factory):
    "A run of the paper's two stages that nothing happened to, and what it said"
    out, said = tmp_path_factory.mktemp('runs')/'straight', []
    run = train_run(small, 'paper', out, epochs=4, say=said.append, **how)
    return out, run, '\n'.join(said)


@pytest.mark.parametrize('where', [
    dict(epoch=0, batch=1), dict(epoch=1, batch=2), dict(epoch=2, batch=0, event='after_pred'), dict(epoch=2, batch=1, training=False), dict(stage=1, batch=0),
    dict(stage=1, batch=3, event='after_step')])
def test_killed_at_a_batch(straight, small, how, where, tmp_path):
    out = tmp_path/'run'
    killed(lambda: train_run(small, 'paper', out, epochs=4, cbs=[DoAt(die, **where)], **how))
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])


@pytest.mark.parametrize('where', ['while writing', 'before the rename', 'after the rename'])
def test_killed_at_a_checkpoint(straight, small, how, where, tmp_path):
    out = tmp_path/'run'
    def train():
        dying_in(where)
        train_run(small, 'paper', out, epochs=4, **how)
    killed(train)
    names = {f.name for f in (out/'checkpoints').iterdir()}
    assert names == {'while writing': {'00001.pth', '00002.pth', '.00003.pth.part'}, 'before the rename': {'00002.pth', '.00003.pth.part'},
                     'after the rename': {'00002.pth', '00003.pth'}}[where] or where == 'while writing' and names == {'00002.pth', '.00003.pth.part'}
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])
    assert not (out/'checkpoints').exists()
