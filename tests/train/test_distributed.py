"""Two processes against one: the same data, figures and gradients; what happens when one dies; nothing at all
in a single process"""
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from magnifier.data.readers import market1501
from magnifier.model.net import MagnifierOutput
from magnifier.train.callbacks import RegionOcclusion
from magnifier.train.distributed import (Share, gather_own, gather_rows, join_ranks, mean_over_ranks, n_ranks,
                                         on_all_ranks, rank0_first, same_state)
from magnifier.train.losses import MagnifierLoss

SCRIPT = Path(__file__).with_name('two_ranks.py')


@pytest.fixture(scope='module')
def catalog(walkers_root):
    "The whole set, as the script reads it"
    return market1501(walkers_root)


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('two_ranks', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(): spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def ranks(walkers_root, tmp_path_factory):
    "What two processes found, and how their run ended"
    pytest.importorskip('accelerate')
    out = tmp_path_factory.mktemp('ranks')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', SCRIPT,
               walkers_root, out]
    run = subprocess.run(list(map(str, command)), env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True,
                         text=True, timeout=400)
    ended = time.time()
    assert (out/'1.pt').exists(), run.stderr[-3000:]
    found = [torch.load(out/f'{rank}.pt', weights_only=False) for rank in (0, 1)]
    return found, run, ended - float((out/'dies').read_text())


@pytest.fixture(scope='module')
def alone(script, catalog, tmp_path_factory):
    "The same in one process"
    torch.manual_seed(0)
    learn = script.learner(catalog, tmp_path_factory.mktemp('alone'))
    with learn.no_bar(), on_all_ranks(learn), learn.distrib_ctx():
        return dict(untrained=script.tables(learn, catalog), epoch=script.epoch(learn, catalog))


@pytest.mark.slow
def test_embeddings_and_figures_are_those_of_one_process(ranks, alone):
    (first, second), *_ = ranks
    for found in (first['untrained'], second['untrained']):
        assert found.keys() == alone['untrained'].keys()
        for key in ('embeddings', 'few', 'preds'):
            torch.testing.assert_close(found[key], alone['untrained'][key], rtol=0, atol=1e-6)
        assert torch.equal(found['pids'], alone['untrained']['pids'])
        for key in ('evaluated', 'regions'): assert found[key] == pytest.approx(alone['untrained'][key], abs=1e-6)
        for key in ('metrics', 'odd_metrics'):
            for name in ('R1', 'mAP'): assert found[key][name] == pytest.approx(alone['untrained'][key][name], abs=1e-6)


@pytest.mark.slow
def test_an_epoch_is_the_one_processs_batches_and_the_first_once_more(ranks, alone):
    found, want = [f['epoch'] for f in ranks[0]], alone['epoch']['batches']
    key = lambda batch: tuple(round(v, 3) for v in batch)
    for name in ('epoch', 'cached'):
        seen = [key(b) for f in ranks[0] for b in f[name]['batches']]
        assert len(seen) == len(want) + len(want) % 2
        assert all(len(b) == 8 for b in seen)
    seen = [key(b) for f in found for b in f['batches']]
    assert set(seen) == {key(b) for b in want}
    assert sorted(set(seen), key=seen.index) == [key(b) for b in want], 'the order is kept'
    kept = found[0]['kept']
    assert kept == found[1]['kept'] == alone['epoch']['kept'][:len(kept)], 'occlusions are alike'


@pytest.mark.slow
def test_the_command_shares_the_evaluation_and_prints_one_table(ranks):
    (first, second), *_ = ranks
    table = first['run'][0]  # rows before and after
    assert list(json.loads(first['printed'])['plain'].values()) == pytest.approx(table[-1].tolist(), abs=1e-6)
    assert second['printed'] == ''


@pytest.mark.slow
def test_a_broken_run_of_two_ranks_ends_as_if_it_had_not_been(ranks):
    for found in ranks[0]:
        (straight, figures, never), (weights, again, once) = found['resumed']
        assert (never, once) == (0, 1)
        assert (figures == again).all()
        assert straight.keys() == weights.keys()
        assert all(torch.equal(v, weights[k]) for k, v in straight.items())


@pytest.mark.slow
def test_ranks_end_an_epoch_with_the_same_figures_and_model(ranks):
    (first, second), *_ = ranks
    assert first['epoch']['row'] == second['epoch']['row']
    assert first['epoch']['losses'] == second['epoch']['losses'] == len(first['epoch']['batches'])
    assert torch.equal(first['trained']['embeddings'], second['trained']['embeddings'])
    assert first['cached']['row'] == second['cached']['row']
    assert not torch.equal(first['erasing'], second['erasing'])


@pytest.mark.slow
def test_only_the_first_rank_writes(ranks):
    (first, second), *_ = ranks
    assert {'learner.pkl', 'models/weights.pth'} < set(first['files'])
    assert len([f for f in first['files'] if f.startswith('masks')]) == 2
    assert second['files'] == []


@pytest.mark.slow
def test_the_learner_is_as_it_was(ranks):
    for found in ranks[0]: assert found['wrapped'] == ('MagnifierNet', 'IdentityBatches', False, False)


@pytest.mark.slow
def test_exchanges(ranks):
    (first, second), *_ = ranks
    for found in (first['primitives'], second['primitives']):
        assert found['rows'].tolist() == [[0., 0.], [1., 1.], [1., 1.]]
        assert found['none'].shape == (1, 3)
        assert found['mean'].tolist() == [.5, 4.]
    (alike, apart), (alike2, apart2) = first['primitives']['alike'], second['primitives']['alike']
    assert alike == alike2 == apart != apart2
    assert (first['made'], second['made']) == (False, True)


@pytest.mark.slow
def test_gathered_pairs_give_the_gradients_of_the_doubled_batch(ranks, script, catalog, tmp_path):
    (first, second), *_ = ranks
    learn = script.learner(catalog, tmp_path)
    torch.manual_seed(1)
    learn = script.learner(catalog, tmp_path)
    learn.model.train()
    for m in learn.model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
    (x, masks, kept), (mask, identity) = first['gradients']['batch']
    (x2, masks2, kept2), (mask2, identity2) = second['gradients']['batch']
    assert torch.equal(kept, kept2)
    assert len(set(identity[:, 1].tolist()) | set(identity2[:, 1].tolist())) > 4
    double = lambda a, b: torch.cat([a, b])
    out = MagnifierOutput(learn.model(double(x, x2), double(masks, masks2), kept))
    loss = MagnifierLoss(mask_weight=0., gamma=.01)
    loss(out, double(mask, mask2), double(identity, identity2)).backward()
    apart = [MagnifierLoss()(MagnifierOutput(learn.model(*xb)), *yb)
             for xb, yb in (f['gradients']['batch'] for f in (first, second))]
    assert all(a.isfinite() for a in apart)
    n = 0
    for name, p in learn.model.named_parameters():
        if p.grad is None: continue
        for found in (first, second):
            torch.testing.assert_close(found['gradients']['gradients'][name], p.grad, rtol=1e-3,
                                       atol=1e-5*float(p.grad.abs().max()) + 1e-7)
        n += 1
    assert n > 60


@pytest.mark.slow
def test_a_run_on_two_ranks_is_one_run(ranks, tmp_path_factory):
    (first, second), run, *_ = ranks
    (table, says, model), (table2, says2, model2) = first['run'], second['run']
    assert (table == table2).all()
    assert table.shape[0] == 2
    assert (says, says2) == (True, False)
    assert model == model2 == 'MagnifierNet'
    out = next(tmp_path_factory.getbasetemp().glob('ranks*/run'))
    assert (sorted(p.name for p in out.iterdir())
            == ['learner.pkl', 'losses.csv', 'metrics.csv', 'pictures0', 'run.json'])


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run(ranks):
    _, run, seconds = ranks
    assert run.returncode
    assert 'SIGKILL' in run.stderr
    assert seconds < 60


HANG = """
import time, torch
from magnifier.train.distributed import gather_rows, join_ranks, n_ranks
import os
join_ranks(timeout=3., cpu=True)
assert n_ranks() == 2
gather_rows(torch.ones(1))
if os.environ['RANK'] == '1': time.sleep(300)
started = time.time()
try: gather_rows(torch.ones(1))
except RuntimeError as e: print(time.time() - started, e, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='speaks of processes on a CPU')
def test_a_rank_that_hangs_is_given_up():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
           'OMP_NUM_THREADS': '1'}
    ranks = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', HANG], env={**env, 'RANK': str(rank)},
                              stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    try: said = ranks[0].communicate(timeout=120)[0]
    finally:
        for r in ranks: r.kill(); r.communicate()
    assert float(said.split()[0]) < 30, said
    assert 'imed out' in said or 'imeout' in said, said


def test_a_single_process_notices_nothing(learn, tmp_path):
    x, model = torch.randn(3, 2, requires_grad=True), learn.model
    join_ranks()
    assert n_ranks() == 1
    assert gather_rows(x) is x
    assert gather_own(x) is x
    assert mean_over_ranks(x) is x
    same_state(model)
    with rank0_first(), on_all_ranks(learn) as same, learn.distrib_ctx():
        assert same is learn
        assert learn.model is model
    share = Share(learn, learn.dls.valid)
    assert share.dl is learn.dls.valid
    assert share.whole(x) is x


def test_without_accelerate_it_says_what_to_install(learn, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ImportError, match='pip install accelerate'), learn.distrib_ctx(cpu=True): pass


def test_occlusions_differ_between_ranks_only_where_asked(monkeypatch):
    draws = lambda alike: [RegionOcclusion(seed=2, alike=alike).draw().tolist(),
                           RegionOcclusion(seed=2, alike=alike).rng.random()]
    first = [draws(alike) for alike in (True, False)]
    monkeypatch.setenv('RANK', '1')
    second = [draws(alike) for alike in (True, False)]
    assert first[0] == first[1] == second[0] != second[1]


def test_synchronised_norms_become_plain_again(learn):
    from magnifier.train.distributed import _norms, _with_norms
    norms = _norms(learn.model)
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(learn.model)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules())
    for t in synced.state_dict().values(): t.add_(1)  # trained on
    synced.eval()
    trained = {k: v.clone() for k, v in synced.state_dict().items()}
    plain = _with_norms(synced, norms)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in plain.modules())
    assert not any(m.training for m in plain.modules())
    assert plain.state_dict().keys() == trained.keys()
    assert all(torch.equal(v, trained[k]) for k, v in plain.state_dict().items())
