"Checkpoints as files: whole or not there, two at most; a learner's state, read and put back"
import re
import resource

import pytest
import torch
from magnifier.train import checkpoints
from magnifier.train.checkpoints import (Checkpoints, checkpoint_files, read_checkpoint, restore_training,
                                         training_state, write_checkpoint)
from magnifier.train.recipes import Stage


def names(folder): return sorted(f.name for f in folder.iterdir())


def test_two_files_at_most_at_every_moment(tmp_path, monkeypatch):
    seen, save = [], torch.save
    monkeypatch.setattr(checkpoints.torch, 'save',
                        lambda state, file: (save(state, file), seen.append(names(tmp_path))))
    for n in range(1, 6): write_checkpoint(tmp_path, n, dict(n=n))
    assert [re.sub(r'-\d+', '', s) for s in seen[-1]] == ['.00005.pth.part', '00004.pth']
    assert names(tmp_path) == ['00004.pth', '00005.pth']
    assert all(len(s) <= 2 for s in seen)
    assert [f.name for f in checkpoint_files(tmp_path)] == ['00005.pth', '00004.pth']
    assert read_checkpoint(tmp_path)['n'] == 5


def test_a_hundred_thousand_epochs_are_in_order(tmp_path):
    for n in (99998, 99999, 100000, 100001): write_checkpoint(tmp_path, n, dict(n=n))
    assert read_checkpoint(tmp_path)['n'] == 100001
    assert names(tmp_path) == ['100000.pth', '100001.pth']


@pytest.mark.parametrize('share', [0, .01, .5, .9, .999])
def test_any_truncation_is_noticed(tmp_path, share):
    for n in (1, 2): write_checkpoint(tmp_path, n, dict(n=n, weights=torch.rand(1000)))
    data = (tmp_path/'00002.pth').read_bytes()
    (tmp_path/'00002.pth').write_bytes(data[:int(share*len(data))])
    with pytest.warns(UserWarning, match='00002.pth is damaged .* and was renamed'):
        assert read_checkpoint(tmp_path)['n'] == 1
    assert names(tmp_path) == ['00001.pth', '00002.pth.damaged']


def test_any_wrong_byte_of_the_weights_is_noticed(tmp_path):
    weights = torch.rand(1000)
    write_checkpoint(tmp_path, 1, dict(weights=weights))
    data = bytearray((tmp_path/'00001.pth').read_bytes())
    data[data.index(weights.numpy().tobytes()) + 1234] ^= 4
    (tmp_path/'00001.pth').write_bytes(data)
    torch.load(tmp_path/'00001.pth')  # torch does not notice
    with pytest.warns(UserWarning, match='wrong bytes in'): assert read_checkpoint(tmp_path) is None
    assert names(tmp_path) == ['00001.pth.damaged']


def test_no_checkpoint_is_none(tmp_path):
    (tmp_path/'notes.pth').write_text('not one of ours')
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path/'nowhere') is None
    assert names(tmp_path) == ['notes.pth']


def test_another_version_is_refused(tmp_path):
    write_checkpoint(tmp_path, 1, dict(version=0))
    with pytest.raises(ValueError, match='written by another version'): read_checkpoint(tmp_path)


def test_what_cannot_be_read_is_not_removed(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, {})
    def unreadable(*args): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(checkpoints.zipfile, 'ZipFile', unreadable)
    with pytest.raises(PermissionError): read_checkpoint(tmp_path)
    assert names(tmp_path) == ['00001.pth']


def trained(learn, folder, **kwargs):
    kept = Checkpoints(folder, **kwargs)
    with learn.added_cbs(kept): learn.fit_stages([Stage(2, 1e-3)], done=kept.done)
    return kept


def test_rows_and_notes_are_stored_with_the_state(small_learn, tmp_path):
    seen = []
    kept = trained(small_learn, tmp_path, note=dict(of='me'),
                   each=lambda kept: seen.append((kept.done, names(tmp_path))))
    state = read_checkpoint(tmp_path)
    assert seen == [(1, ['00001.pth']), (2, ['00001.pth', '00002.pth'])]
    assert state['note'] == dict(of='me')
    assert state['rows'] == kept.rows
    assert (state['stage'], state['done']) == (1, 2)
    assert state['seconds'] > 0


def test_leftovers_of_a_killed_write_are_removed(small_learn, tmp_path):
    (tmp_path/'.00007.pth-1.part').write_bytes(b'half')
    trained(small_learn, tmp_path)
    assert names(tmp_path) == ['00001.pth', '00002.pth']


def test_the_state_is_all_of_it(small, how, small_learn, tmp_path):
    "Recorder, losses by part, rates, stream, optimiser: as they were, in a learner made anew"
    from magnifier.data.loaders import ReIDDataLoaders
    from magnifier.train.learner import magnifier_learner
    trained(small_learn, tmp_path)
    other = magnifier_learner(ReIDDataLoaders.from_df(small, path=tmp_path, num_workers=0, **how['loading']),
                              **how['model'])
    with other.no_bar(), other.no_logging(): trained(other, tmp_path/'other', state=read_checkpoint(tmp_path))
    for a, b in zip(small_learn.opt.state_dict()['state'], other.opt.state_dict()['state']):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    assert list(map(dict, small_learn.opt.hypers)) == list(map(dict, other.opt.hypers))
    one, two = small_learn.recorder, other.recorder
    assert one.lrs == two.lrs
    assert one.iters == two.iters
    assert torch.equal(torch.stack(one.losses), torch.stack(two.losses))
    assert [list(v) for v in one.values] == [list(v) for v in two.values]
    assert len(one.values) == 2
    assert float(one.smooth_loss.value) == float(two.smooth_loss.value)
    assert small_learn.train_iter == other.train_iter == 8
    assert small_learn.loss_parts.history.equals(other.loss_parts.history)
    assert small_learn.dls.train.epoch == other.dls.train.epoch == 2
    assert not (tmp_path/'other').exists()  # nothing was left to train


def test_a_callback_with_a_state_is_asked_for_it(small_learn):
    from fastai.vision.all import Callback
    class Counts(Callback):
        n = 0
        def after_batch(self): self.n += self.training
        def state_dict(self): return {'n': self.n}
        def load_state_dict(self, state): self.n = state['n']
    counts = Counts()
    small_learn.add_cb(counts)
    small_learn.fit(1)
    state = training_state(small_learn)
    assert state['stateful'] == {'callback counts': {'n': 4}}
    assert state['gamma'] == 0.
    counts.n = 0
    restore_training(small_learn, state)
    assert counts.n == 4
    small_learn.remove_cb(counts)
    with pytest.raises(ValueError, match='of another training: callback counts'): restore_training(small_learn, state)


def test_another_model_and_other_processes_are_refused(small_learn):
    small_learn.fit(1)
    state = training_state(small_learn)
    with pytest.raises(ValueError, match='of another model: .*backbone'):
        restore_training(small_learn,
                         {**state, 'model': {k: v for k, v in state['model'].items() if 'layer4' not in k}})
    with pytest.raises(ValueError, match='of 2 processes, and 1 run now'):
        restore_training(small_learn, {**state, 'generators': state['generators']*2})


def test_frozen_stays_frozen(small_learn):
    small_learn.freeze()
    small_learn.fit(1)
    state = training_state(small_learn)
    small_learn.unfreeze()
    assert all(p.requires_grad for p in small_learn.model.backbone.layer2.parameters() if p.ndim > 1)
    restore_training(small_learn, state)
    assert not any(p.requires_grad for p in small_learn.model.backbone.layer2.parameters() if p.ndim > 1)


@pytest.mark.slow
def test_torchs_own_optimisers_are_stored_too(small, how, tmp_path):
    from functools import partial
    from fastai.vision.all import Callback, OptimWrapper
    from magnifier.train.runs import train_run
    model = {**how['model'], 'opt_func': partial(OptimWrapper, opt=torch.optim.AdamW)}
    kwargs = {**how, 'model': model, 'epochs': 2}
    class Enough(Exception): pass
    straight = train_run(small, 'baseline', tmp_path/'straight', **kwargs).learn
    class Stop(Callback):
        order = Checkpoints.order + 1
        def after_epoch(self): raise Enough("stop here")
    with pytest.raises(Enough): train_run(small, 'baseline', tmp_path/'run', cbs=[Stop()], **kwargs)
    resumed = train_run(small, 'baseline', tmp_path/'run', resume=True, **kwargs).learn
    for a, b in zip(straight.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)


@pytest.mark.slow
def test_any_wrong_byte_of_the_index_is_damage_or_harmless(tmp_path, recwarn):
    write_checkpoint(tmp_path, 1, dict(weights=torch.arange(3.)))
    data = (tmp_path/'00001.pth').read_bytes()
    index = data.index(b'PK\x01\x02')  # the directory of the zip file, and its end
    for place in range(index, len(data)):
        for bit in (1, 128):
            (tmp_path/'00001.pth').write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1:])
            state = read_checkpoint(tmp_path)
            assert state is None or torch.equal(state['weights'], torch.arange(3.)), place
    assert sum('is damaged' in str(w.message) for w in recwarn) > 100


def test_a_checkpoint_that_another_process_removed_is_none(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, dict(n=1))
    listed = checkpoint_files(tmp_path)
    monkeypatch.setattr(checkpoints, 'checkpoint_files', lambda folder: [tmp_path/'00002.pth', *listed])
    assert read_checkpoint(tmp_path)['n'] == 1


def test_a_full_disk_is_told(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_checkpoint(tmp_path, 1, dict(n=1))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match='cannot write .*00002.pth: .*make room'):
            write_checkpoint(tmp_path, 2, dict(w=torch.zeros(100_000)))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ['00001.pth']


def test_short_memory_is_no_damage(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, dict(n=1))
    def short(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 97 bytes")
    monkeypatch.setattr(torch, 'load', short)
    with pytest.raises(RuntimeError, match='allocate memory'): read_checkpoint(tmp_path)
    assert names(tmp_path) == ['00001.pth']
