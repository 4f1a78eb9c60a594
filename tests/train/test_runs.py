"Runs killed anywhere and resumed end as those that were not; what a run says, stores and refuses"
import json
import math
import os
import re
import signal
import traceback
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, load_learner

from magnifier.files import locked
from magnifier.train import checkpoints
from magnifier.train.monitoring import NonFiniteLoss
from magnifier.train.runs import (RunStopped, as_json, describe_data, differing, environment, read_json, train_run,
                                  write_json)


class DoAt(Callback):
    "Does something at one batch of one epoch of one stage, counted from 0"
    order = 300
    def __init__(self, does, stage=0, epoch=0, batch=0, event='after_batch', training=True):
        self.does, self.at, self.event, self.wants, self.stage = does, (stage, epoch, batch), event, training, -1

    def before_fit(self): self.stage += 1

    def __call__(self, event):
        if event == 'before_fit': self.before_fit()
        elif event == self.event and self.learn.training == self.wants and (self.stage, self.learn.epoch,
                                                                            self.learn.iter) == self.at:
            self.does()


def die(): os.kill(os.getpid(), signal.SIGKILL)


def killed(train):
    "Runs `train` in a child that must be killed on the way"
    child = os.fork()
    if not child:
        try: train()
        except BaseException: traceback.print_exc()
        finally: os._exit(1)  # it should not come here
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def weights(out): return load_learner(out/'learner.pkl').model.state_dict()


def assert_same(out, other):
    a, b = weights(out), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    for name in ('metrics.csv', 'losses.csv'): assert (out/name).read_text() == (other/name).read_text(), name
    records = [json.loads((o/'run.json').read_text()) for o in (out, other)]
    for name in ('figures', 'arguments', 'stages', 'epochs_done', 'parameters'):
        assert records[0][name] == records[1][name], name


def dying_in(where):
    "Patches, in a child, what writes a checkpoint: it dies at its third one"
    save, replace, n = torch.save, os.replace, [0]
    def half(state, part):
        n[0] += 1
        if n[0] < 3: return save(state, part)
        part.write_bytes(b'PK' + bytes(1000))
        die()
    def last(part, file):
        n[0] += 'checkpoints' in str(file)
        if n[0] == 3 and where == 'before the rename': die()
        replace(part, file)
        if n[0] == 3: die()
    if where == 'while writing': checkpoints.torch.save = half
    else: os.replace = last


pytestmark = [pytest.mark.forks, pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork.*:DeprecationWarning')]


@pytest.fixture(scope='module')
def straight(small, how, tmp_path_factory):
    "A run of the paper's two stages that nothing happened to, and what it said"
    out, said = tmp_path_factory.mktemp('runs')/'straight', []
    run = train_run(small, 'paper', out, epochs=4, say=said.append, **how)
    return out, run, '\n'.join(said)


@pytest.mark.parametrize('where', [
    dict(epoch=1, batch=2), *(pytest.param(where, marks=pytest.mark.slow) for where in (
        dict(epoch=0, batch=1), dict(epoch=2, batch=0, event='after_pred'),
        dict(epoch=2, batch=1, training=False), dict(stage=1, batch=0),
        dict(stage=1, batch=3, event='after_step')))])
def test_killed_at_a_batch(straight, small, how, where, tmp_path):
    out = tmp_path/'run'
    killed(lambda: train_run(small, 'paper', out, epochs=4, cbs=[DoAt(die, **where)], **how))
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])


@pytest.mark.slow
@pytest.mark.parametrize('where', ['while writing', 'before the rename', 'after the rename'])
def test_killed_at_a_checkpoint(straight, small, how, where, tmp_path):
    out = tmp_path/'run'
    def train():
        dying_in(where)
        train_run(small, 'paper', out, epochs=4, **how)
    killed(train)
    names = {re.sub(r'-\d+\.part', '.part', f.name) for f in (out/'checkpoints').iterdir()}
    left = {
        'while writing': [{'00001.pth', '00002.pth', '.00003.pth.part'}, {'00002.pth', '.00003.pth.part'}],
        'before the rename': [{'00002.pth', '.00003.pth.part'}],
        'after the rename': [{'00002.pth', '00003.pth'}],
    }
    assert names in left[where]
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])
    assert not (out/'checkpoints').exists()


@pytest.mark.slow
def test_killed_after_the_last_checkpoint_its_records_are_whole(straight, small, how, tmp_path):
    out = tmp_path/'run'

    def train():
        replace = os.replace

        def last(part, file):
            replace(part, file)
            if str(file).endswith('00004.pth'): die()

        os.replace = last
        train_run(small, 'paper', out, epochs=4, **how)

    killed(train)
    assert json.loads((out/'run.json').read_text())['epochs_done'] == 3
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])


def test_what_a_kill_left_of_the_checkpoints_is_removed(small, how, tmp_path):
    out = tmp_path/'run'
    train_run(small, 'paper', out, epochs=1, **how)
    (out/'checkpoints').mkdir()
    train_run(small, 'paper', out, epochs=1, resume=True, **how)
    assert not (out/'checkpoints').exists()


def test_a_folder_is_one_runs_at_a_time(small, how, tmp_path):
    with locked(tmp_path/'run'), pytest.raises(BlockingIOError, match='another process is using this folder'):
        train_run(small, 'paper', tmp_path/'run', epochs=1, **how)


@pytest.mark.slow
def test_killed_twice_and_resumed_twice(straight, small, how, tmp_path):
    out, said = tmp_path/'run', []
    again = lambda **kwargs: train_run(small, 'paper', out, epochs=4, **kwargs, **how)
    killed(lambda: again(cbs=[DoAt(die, epoch=1)]))
    killed(lambda: again(cbs=[DoAt(die, epoch=2, batch=2)], resume=True))
    record = again(resume=True, say=said.append).record
    assert_same(out, straight[0])
    assert [r['epochs_done'] for r in record['resumed']] == [1, 2]
    assert 'continuing after epoch 2 of 4' in said


@pytest.mark.slow
@pytest.mark.parametrize('name, recipe, change', [
    ('whole batches from decoded originals', 'quick',
     dict(loading=dict(size=(32, 16), bs=4, n_per_id=2, pad=2, cache='ram', erase=.5))),
    ('loader processes', 'one_cycle', dict(workers=2)),
    ('the baseline', 'baseline', dict(fitting=dict(milestones=(60,))))])
def test_killed_and_resumed_whatever_feeds_it(small, how, name, recipe, change, tmp_path):
    kwargs = {**how, **change, 'epochs': 3}
    train_run(small, recipe, tmp_path/'straight', **kwargs)
    killed(lambda: train_run(small, recipe, tmp_path/'run', cbs=[DoAt(die, epoch=1, batch=2)], **kwargs))
    train_run(small, recipe, tmp_path/'run', resume=True, **kwargs)
    assert_same(tmp_path/'run', tmp_path/'straight')


def test_it_says_what_it_will_do_and_stores_what_it_did(straight, small):
    out, run, said = straight
    for part in ('16 images of 4 identities, 16 with part masks; 6 queries, 6 in the gallery',
                 '4 images = 2 identities x 2, 32 x 16 pixels, 4 an epoch',
                 'stage 1 of 2: 3 epochs, rate 0.00035, x 0.1 from epoch 2 and 3 on',
                 'stage 2 of 2: 1 epoch, rate 0.001', 'semantic diversity loss x 0.002'):
        assert part in said, part
    record = json.loads((out/'run.json').read_text())
    assert record == run.record
    assert record['finished']
    assert record['epochs_done'] == 4
    assert record['seconds'] > 0
    assert record['resumed'] == []
    assert {'python', 'torch', 'fastai', 'magnifier'} <= set(record['versions'])
    assert {'cpu', 'cores', 'gpus'} <= set(record['hardware'])
    assert record['arguments']['seed'] == 0
    assert record['arguments']['model']['hidden'] == 16
    assert record['arguments']['loading']['size'] == [32, 16]
    assert record['figures']['after, plain']['mAP'] == pytest.approx(run.table.loc['after, plain', 'mAP'])
    assert list(run.table.index) == ['before, plain', 'after, plain']
    losses = pd.read_csv(out/'losses.csv', index_col='epoch')
    assert list(losses.index) == [0, 1, 2, 3]
    assert list(losses.stage) == [1, 1, 1, 2]
    last = 1e-3*(1 + math.cos(math.pi*3/4))/2  # of four batches
    assert losses.lr.tolist() == pytest.approx([3.5e-4, 3.5e-5, 3.5e-6, last])
    assert {'global_cls', 'sab_cls', 'region_cls', 'mask', 'sd', 'train_loss', 'R1', 'mAP'} <= set(losses.columns)
    assert losses.mAP.notna().tolist() == [False, False, True, True]
    assert not (out/'checkpoints').exists()
    assert not list(out.glob('.*'))


@pytest.mark.slow
def test_the_same_arguments_give_the_same_run_and_leave_the_generators_alone(straight, small, how, tmp_path):
    import random
    import numpy as np
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    run = train_run(small, 'paper', tmp_path/'run', epochs=4, **how)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert_same(tmp_path/'run', straight[0])
    assert run.learn.embed(small.path.tolist()[:2]).shape[0] == 2


def test_a_finished_run_is_finished(straight, small, how):
    said = []
    before = (straight[0]/'learner.pkl').stat().st_mtime_ns
    run = train_run(small, 'paper', straight[0], epochs=4, resume=True, say=said.append, **how)
    assert run.learn is None
    assert 'nothing is left to do' in said[0]
    assert len(said) == 1
    pd.testing.assert_frame_equal(run.table, straight[1].table)
    assert (straight[0]/'learner.pkl').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match='epochs=4, and now it is 5'):
        train_run(small, 'paper', straight[0], epochs=5, resume=True, **how)


@pytest.mark.slow
def test_nothing_to_resume_is_a_beginning(straight, small, how, tmp_path):
    said, out = [], tmp_path/'run'
    killed(lambda: train_run(small, 'paper', out, epochs=4, cbs=[DoAt(die)], **how))
    (out/'.run.json-1.part').write_text('half')
    train_run(small, 'paper', out, epochs=4, resume=True, say=said.append, **how)
    assert 'there is no finished epoch to resume from, so the run starts from the beginning' in said[0]
    assert not list(out.glob('.*.part'))
    assert_same(out, straight[0])


@pytest.fixture(scope='module')
def unfinished(small, how, tmp_path_factory):
    "A run that was killed in its third epoch"
    out = tmp_path_factory.mktemp('runs')/'unfinished'
    killed(lambda: train_run(small, 'paper', out, epochs=4, cbs=[DoAt(die, epoch=2)], **how))
    return out


@pytest.mark.parametrize('change, message', [
    (dict(epochs=5), 'epochs=4, and now it is 5'), (dict(seed=1), 'seed=0, and now it is 1'),
    (dict(workers=1), 'workers=0, and now it is 1'),
    (dict(model=dict(hidden=8)), 'model.hidden=16, and now it is 8'),
    (dict(loading=dict(bs=8)), 'loading.bs=4, and now it is 8'),
    (dict(fitting=dict(diversity=False)), 'fitting.diversity=None, and now it is False'),
    (dict(rerank=True), 'rerank=False, and now it is True'),
    (dict(recipe='baseline'), "recipe='paper', and now it is 'baseline'")])
def test_a_changed_argument_is_refused_by_name(unfinished, small, how, change, message):
    kwargs = {'recipe': 'paper', 'epochs': 4, **how, **change,
              **{k: {**how[k], **change[k]} for k in ('model', 'loading') if k in change}}
    with pytest.raises(ValueError, match=message + ', which would give another result'):
        train_run(small, out=unfinished, resume=True, **kwargs)


def test_other_data_are_refused(unfinished, small, how):
    with pytest.raises(ValueError, match='data.images=16, and now it is 15'):
        train_run(small[1:], 'paper', unfinished, epochs=4, resume=True, **how)
    moved = small.assign(camid=small.camid + 1)
    with pytest.raises(ValueError, match='data.digest='):
        train_run(moved, 'paper', unfinished, epochs=4, resume=True, **how)


def test_an_unfinished_run_is_not_overwritten(unfinished, small, how):
    with pytest.raises(ValueError, match='holds a run that was not finished: continue it'):
        train_run(small, 'paper', unfinished, epochs=4, **how)
    assert len(list((unfinished/'checkpoints').iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize('harm', ['truncated', 'a byte', 'empty'])
def test_a_damaged_checkpoint_falls_back(straight, unfinished, small, how, harm, tmp_path):
    import shutil
    out = tmp_path/'run'
    shutil.copytree(unfinished, out)
    newest = out/'checkpoints/00002.pth'
    data = bytearray(newest.read_bytes())
    largest = max(zipfile.ZipFile(newest).infolist(), key=lambda record: record.file_size)
    # of the weights: between records is padding
    if harm == 'a byte': data[largest.header_offset + largest.file_size//2 + 200] ^= 1
    newest.write_bytes({'truncated': data[:len(data)//2], 'a byte': data, 'empty': b''}[harm])
    with pytest.warns(UserWarning, match='00002.pth is damaged .* continuing from the checkpoint before it'):
        train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])



def test_a_loss_that_is_no_number_ends_the_run_with_its_batch(small, how, tmp_path):
    out = tmp_path/'run'
    class Poison(Callback):
        def before_batch(self):
            if self.learn.training and (self.epoch, self.iter) == (1, 2):
                self.learn.xb = (self.xb[0]*torch.nan, *self.xb[1:])
    with pytest.raises(NonFiniteLoss, match='loss is nan .*global_cls.* in epoch 1, batch 2') as e:
        train_run(small, 'paper', out, epochs=4, cbs=[Poison()], **how)
    assert str(out/'nonfinite.pth') in str(e.value)
    assert '\n' not in str(e.value)
    seen = torch.load(out/'nonfinite.pth', weights_only=True)
    assert seen['images'].shape == (4, 3, 32, 16)
    assert seen['masks'].shape == (4, 32, 16)
    assert seen['identities'].shape == (4, 4)
    assert (seen['epoch'], seen['step']) == (1, 2)
    assert seen['parts']['global_cls'] != seen['parts']['global_cls']
    assert len(seen['kept']) == 8
    assert [f.name for f in (out/'checkpoints').iterdir()] == ['00001.pth']  # of before


@pytest.mark.parametrize('where, done', [
    (dict(epoch=1, batch=1), 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (dict(epoch=0, batch=0), 0), (dict(epoch=2, batch=1, training=False, event='after_pred'), 2),
        (dict(epoch=2, batch=3, event='after_step'), 2)))])
def test_ctrl_c_keeps_the_last_epoch(straight, small, how, where, done, tmp_path):
    out = tmp_path/'run'
    press = DoAt(lambda: os.kill(os.getpid(), signal.SIGINT), **where)
    with pytest.raises(RunStopped, match=f'stopped by the keyboard after epoch {done} of 4'):
        train_run(small, 'paper', out, epochs=4, cbs=[press], **how)
    train_run(small, 'paper', out, epochs=4, resume=True, **how)
    assert_same(out, straight[0])


def test_no_epochs_are_no_run(small, how, tmp_path):
    with pytest.raises(ValueError, match='epochs=0: train one or more'):
        train_run(small, 'paper', tmp_path, epochs=0, **how)


def test_a_record_that_is_none_is_refused(small, how, tmp_path):
    (tmp_path/'run.json').write_text('{')
    with pytest.raises(ValueError, match='run.json: not the record of a run'):
        train_run(small, 'paper', tmp_path, epochs=1, **how)


def test_data_are_described_wherever_they_lie(catalog):
    said = describe_data(catalog)
    train = catalog[catalog.split == 'train']
    assert ((said['images'], said['identities'], said['queries'])
            == (len(train), train.pid.nunique(), (catalog.split == 'query').sum()))
    assert said['masks'] == train['mask'].notna().sum()
    assert said['gallery'] == (catalog.split == 'gallery').sum()
    moved = catalog.assign(path=catalog.path.map(lambda p: '/elsewhere' + str(p)))
    assert describe_data(moved) == said != describe_data(catalog.assign(mask=None))
    for other in (catalog[1:], catalog.assign(pid=catalog.pid + 1)):
        assert describe_data(other)['digest'] != said['digest']


def test_one_image_is_described(catalog): assert describe_data(catalog[:1])['images'] == 1


def test_the_environment_is_json_and_says_the_commit(monkeypatch, tmp_path):
    said = environment()
    assert json.loads(json.dumps(said)) == said
    assert re.fullmatch('[0-9a-f]{40}[+]?', said['commit'] or '0'*40)
    assert said['hardware']['cpu']
    import magnifier
    monkeypatch.setattr(magnifier, '__file__', str(tmp_path/'magnifier/__init__.py'))
    assert environment()['commit'] is None
    (tmp_path/'.git').mkdir()  # a clone that git cannot read
    assert environment()['commit'] is None


def test_what_json_does_not_know_is_named():
    from fastai.vision.all import Adam
    from torchvision.models import resnet50
    said = as_json(dict(arch=resnet50, opt=partial(Adam, decouple_wd=False), size=(4, 2), rate=np.float64(.5),
                        none=None, yes=True, path=pd.NA is None))
    assert said == dict(arch='resnet50', opt='Adam(decouple_wd=False)', size=[4, 2], rate=.5, none=None, yes=True,
                        path=False)
    assert as_json(partial(max, 1, 'a')) == "max(1, 'a')"
    assert type(as_json(np.str_('a'))) is str


def test_differences_are_named_by_their_path():
    assert differing(dict(a=1, b=dict(c=2, d=3)), dict(a=1, b=dict(c=2, d=4), e=5)) == [('b.d', 3, 4), ('e', None, 5)]
    assert differing({}, {}) == []


def test_json_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path/'a/run.json', {'a': [1, 2.5, None, 'ä']})
    assert read_json(tmp_path/'a/run.json') == {'a': [1, 2.5, None, 'ä']}
    assert read_json(tmp_path/'none.json') is None
    (tmp_path/'bad.json').write_text('{"a": ')
    with pytest.raises(ValueError, match='bad.json: not the record of a run .* remove it'):
        read_json(tmp_path/'bad.json')


def test_masks_of_another_kind_are_other_data(catalog, tmp_path):
    import shutil
    own = catalog.assign(mask=[str(tmp_path/'a'/f'{i}.png') for i in range(len(catalog))])
    for place, mask in zip(own['mask'], catalog['mask']):
        Path(place).parent.mkdir(exist_ok=True)
        shutil.copy(mask, place)
    moved = own.assign(mask=own['mask'].str.replace('/a/', '/b/'))
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    assert describe_data(moved) == describe_data(own)  # where they lie does not matter
    assert describe_data(own.assign(mask=own['mask'].map(Path))) == describe_data(own)
    with open(moved['mask'][3], 'ab') as f: f.write(b'another')
    assert describe_data(moved)['digest'] != describe_data(own)['digest']
    assert describe_data(own.assign(mask=None))['digest'] != describe_data(own)['digest']


class Nameless: pass


@pytest.mark.parametrize('value', [lambda x: x, Nameless(), dict(model=dict(loss_func=Nameless()))])
def test_what_has_no_name_cannot_be_recorded(value):
    with pytest.raises(ValueError, match='cannot be recorded.*functools.partial'): as_json(value)
