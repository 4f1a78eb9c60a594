"""What test_distributed.py starts with torch.distributed.run on two processes; each rank writes what it found
to a file. Arguments: data set, folder"""
import os
import random
import signal
import sys
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)
import torch
import torch.distributed as dist
from fastai.vision.all import Callback, num_distrib
from magnifier.cli.evaluate import magnifier_eval
from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.readers import market1501
from magnifier.data.transforms import EraseBoxes
from magnifier.train.callbacks import RegionOcclusion
from magnifier.train.distributed import (Share, gather_rows, join_ranks, mean_over_ranks, n_ranks, on_all_ranks,
                                         rank0_first)
from magnifier.train.learner import magnifier_learner
from magnifier.train.losses import MagnifierLoss
from magnifier.train.monitoring import LossParts
from magnifier.train.runs import train_run

# With nothing drawn, what a batch holds tells which pictures it was made of
LOADING = dict(size=(64, 32), bs=8, n_per_id=2, pad=0, flip=0, erase=0, num_workers=0, device='cpu')


class Watch(Callback):
    "Fingerprints of the training pictures batch by batch, and what was kept of them"
    order = RegionOcclusion.order + .5
    def before_fit(self): self.batches, self.kept = [], []
    def before_batch(self):
        if not self.training: return
        self.batches.append(self.x.double().sum((1, 2, 3)).tolist() if len(self.xb) == 1
                            else self.xb[0].double().sum((1, 2, 3)).tolist())
        self.kept.append(self.xb[2].tolist())


class FirstGradients(Callback):
    "Gradients of the first step with batch norms that do not see the batch, and the batch"
    order = LossParts.order + 1
    def before_batch(self):
        for m in self.model.modules():
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
        if self.training and not hasattr(self, 'batch'): self.batch = (self.xb, self.yb)
    def before_step(self):
        if not hasattr(self, 'found'):
            self.found = {name: p.grad.clone() for name, p in self.learn.net.named_parameters() if p.grad is not None}


class Die(Callback):
    "Nobody says goodbye"
    def after_batch(self): os.kill(os.getpid(), signal.SIGKILL)


class Break(Callback):
    "An error on every rank in the second epoch"
    def before_batch(self):
        if self.training and self.epoch == 1: raise KeyError('broken')


def broken_and_resumed(catalog, out):
    """A run of both of the paper's stages that nothing happened to, and one that was broken and taken up again:
    their weights and figures"""
    how = dict(epochs=3, workers=0, loading={**{k: LOADING[k] for k in ('bs', 'n_per_id', 'device')}, 'size': (32, 16),
                                             'cache': None, 'erase': .5},
               model=dict(arch='resnet18', pretrained=False, hidden=16))
    runs = [train_run(catalog, 'paper', out/'straight', **how)]
    try: train_run(catalog, 'paper', out/'broken', cbs=[Break()], **how)
    except KeyError: runs.append(train_run(catalog, 'paper', out/'broken', resume=True, **how))
    return [(run.learn.model.state_dict(), run.table.to_numpy(float), len(run.record['resumed'])) for run in runs]


def tables(learn, catalog):
    "Embeddings and figures, to compare with one process"
    rows = catalog[catalog.split != 'train']
    odd = rows.iloc[:len(rows) - 1 - len(rows) % 2]  # an odd number, which two processes share unevenly
    assert len(odd) % 2
    values = lambda dl=None: dict(zip(['loss', *(m.name for m in learn.metrics)], learn.validate(dl=dl)))
    preds, targets = learn.get_preds()
    return dict(embeddings=learn.embed(odd, bs=4), few=learn.embed(odd.path.tolist()[:3]), metrics=values(),
                odd_metrics=values(learn.loader(odd, bs=4)),
                preds=preds.embedding, pids=targets[1][:, 1], evaluated=learn.evaluate(rerank=True, bs=4).to_numpy(),
                regions=learn.evaluate(distance='regions', bs=4).to_numpy())


def learner(catalog, out, loss_func=None, **kwargs):
    dls = ReIDDataLoaders.from_df(catalog, path=out, **{**LOADING, **kwargs})
    return magnifier_learner(dls, 'resnet18', pretrained=False, hidden=32, loss_func=loss_func, cbs=[Watch()])


def epoch(learn, catalog):
    "What an epoch of training saw, and the figures after it"
    with learn.no_logging(): learn.fit(1, 1e-3)
    return dict(batches=learn.watch.batches, kept=learn.watch.kept, row=[float(v) for v in learn.recorder.values[-1]],
                losses=len(learn.recorder.losses))


def gradients(catalog, out):
    "The first step's gradients with pairs from all processes"
    torch.manual_seed(1)
    learn = learner(catalog, out, MagnifierLoss(gather_triplets=True, mask_weight=0., gamma=.01))
    watch = FirstGradients()
    with on_all_ranks(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=[watch])
    return dict(batch=watch.batch, gradients=watch.found)


def primitives():
    "Exchanges by themselves"
    r = dist.get_rank()
    drawn = [RegionOcclusion(seed=3, alike=alike) for alike in (True, False)]
    return dict(rows=gather_rows(torch.full((r + 1, 2), float(r))), none=gather_rows(torch.zeros(r, 3)),
                mean=mean_over_ranks(torch.tensor([float(r), 4.])),
                alike=[[o.draw().tolist() for _ in range(5)] for o in drawn])


def first_writes(out):
    "Rank 0 makes, the other finds"
    with rank0_first():
        made = (out/'made').exists()
        if not dist.get_rank():
            time.sleep(.5)
            (out/'made').touch()
    return made


def main(root, out):
    rank = int(os.environ['RANK'])
    assert num_distrib() == 2
    assert not dist.is_initialized()
    mine = out/f'rank{rank}'
    mine.mkdir()
    catalog, found = market1501(root), {}
    torch.manual_seed(rank)  # rank 0's weights become everyone's
    learn = learner(catalog, mine)
    with learn.no_bar():
        join_ranks(cpu=True)
        found['primitives'], found['made'] = primitives(), first_writes(out)
        with learn.distrib_ctx(cpu=True, sync_bn=False):
            assert n_ranks() == 2
            assert Share(learn, learn.dls.valid).shared
            assert learn.logger is print
            found['untrained'] = tables(learn, catalog)
            found['epoch'] = epoch(learn, catalog)
            found['trained'] = {'embeddings': learn.embed(catalog[catalog.split != 'train'])}
            learn.save('weights')
            learn.export('learner.pkl')
            learn.predict_masks(catalog.path.tolist()[:2], mine/'masks')
        found['wrapped'] = (type(learn.model).__name__, type(learn.dls.train).__name__,
                            hasattr(learn, 'distributed_trainer'), hasattr(learn, 'progress'))
        found['files'] = sorted(str(p.relative_to(mine)) for p in mine.rglob('*') if p.is_file())
        cached = learner(catalog, mine, MagnifierLoss(), cache='ram', erase=.5)
        with cached.no_bar(), on_all_ranks(cached):
            found['erasing'] = [t.generator.get_state()
                                for t in cached.dls.train.after_batch.fs if isinstance(t, EraseBoxes)][0]
            found['cached'] = epoch(cached, catalog)
        found['gradients'] = gradients(catalog, mine)
        said = []
        run = train_run(catalog, 'quick', out/'run', epochs=1, say=said.append,
                        then=lambda learn: (out/'run'/f'pictures{rank}').touch(), workers=0,
                        loading={k: LOADING[k] for k in ('size', 'bs', 'n_per_id', 'device')} | dict(cache=None),
                        model=dict(hidden=32))
        found['run'] = run.table.to_numpy(float), bool(said), type(run.learn.model).__name__
        with redirect_stdout(StringIO()) as printed:
            magnifier_eval(str(out/'run'/'learner.pkl'), 'market1501', str(root), json=True, debug=True)
        found['printed'] = printed.getvalue()
        found['resumed'] = broken_and_resumed(catalog, out)
        torch.save(found, out/f'{rank}.pt')
        # The end: one rank dies, which ends the other's work, and torchrun the run
        with learn.distrib_ctx(cpu=True), learn.no_logging():
            (out/'dies').write_text(str(time.time()))
            learn.fit(1, cbs=[Die()] if rank else None)


if __name__ == '__main__':
    torch.set_num_threads(1)
    random.seed(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
