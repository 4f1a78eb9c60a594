"""Loading with and without a cache, side by side: images a second, memory, and the share of a training step
spent on loading.

    python tests/bench/bench_loading.py --out loading.csv                     # CPU: one thread, processor seconds
    python tests/bench/bench_loading.py --device cuda --bs 64 --out gpu.csv   # GPU: wall-clock seconds

On a CPU seconds are the processor's, which neighbours on the machine disturb least: with one thread an image
costs that much of a core."""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from fastai.vision.all import Callback, CancelFitException
from measure import write_csv

from magnifier.data.loaders import ReIDDataLoaders
from magnifier.data.readers import market1501
from magnifier.walkers.dataset import walkers
from magnifier.train.learner import recipe_learner
from magnifier.train.recipes import recipe

SIZES = {(384, 192): 10, (128, 64): 4}  # size: pad


class StepTimes(Callback):
    "Seconds between steps (loading) and in them, for a few steps"
    order = -1000
    def __init__(self, steps, clock): self.steps, self.clock, self.loading, self.training = steps, clock, [], []
    def before_train(self): self.last = self.clock()

    def before_batch(self):
        now = self.clock()
        self.loading.append(now - self.last)
        self.last = now

    def after_batch(self):
        now = self.clock()
        self.training.append(now - self.last)
        self.last = now
        if len(self.training) > self.steps: raise CancelFitException


def loading_row(catalog, cache, size, args):
    "One pass after another over the training set"
    start = args.clock()
    dls = ReIDDataLoaders.from_df(catalog, cache=cache, size=size, pad=SIZES[size], bs=args.bs,
                                  num_workers=args.workers, device=args.device)
    made, seconds = args.clock() - start, []
    for epoch in range(args.epochs + 1):
        batches, last = iter(dls.train), args.clock()
        for _ in batches:
            now = args.clock()
            if epoch: seconds.append((now - last)/args.bs)
            last = args.clock()
    held = sum(p.nbytes for dl in dls for p in dl.pixels)/2**20 if cache is not None else 0
    return dict(what='loading', size='x'.join(map(str, size)), cache=name(cache), images=len(catalog),
                workers=args.workers or 0,
                images_a_second=round(1/statistics.median(seconds)), slowest=round(1/max(seconds)),
                fastest=round(1/min(seconds)),
                made_in=round(made, 2), cache_mib=round(held, 1), step_seconds='', loading_share='')


def training_row(catalog, cache, name_of_recipe, args, **changed):
    "The recipe's own training, stopped after a few steps"
    plan = recipe(name_of_recipe)
    loading = {**plan.loading, **{k: changed.pop(k) for k in ('bs',) if k in changed}}
    dls = ReIDDataLoaders.from_df(catalog,
                                  **{**loading, 'cache': cache, 'num_workers': args.workers, 'device': args.device})
    learn = recipe_learner(dls, name_of_recipe, **{**changed, 'pretrained': False})
    times = StepTimes(args.steps, args.clock)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(times), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a schedule that is cut short
        learn.fit_recipe(name_of_recipe, 10)
    waited, stepped = (statistics.median(o[1:]) for o in (times.loading, times.training))
    return dict(what=f'training {learn.model.__class__.__name__} {plan.model["arch"]}',
                size='x'.join(map(str, dls.one_batch()[0].shape[-2:])),
                cache=name(cache), images=len(catalog), workers=args.workers or 0,
                images_a_second=round(dls.train.bs/(waited + stepped), 1),
                slowest='', fastest='', made_in='', cache_mib='', step_seconds=round(waited + stepped, 3),
                loading_share=round(waited/(waited + stepped), 4))


def name(cache): return 'none' if cache is None else 'disk' if isinstance(cache, Path) else cache


def after_the_gpu():  # Seconds
    torch.cuda.synchronize()
    return time.perf_counter()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--bs', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--workers', type=int,
                        help='loader processes; on a CPU leave them out: their seconds are not seen')
    parser.add_argument('--big-bs', type=int, default=8, help='images a step of ResNet-50 at 384 x 192')
    parser.add_argument('--out')
    args = parser.parse_args()
    args.workers = args.workers or 0
    torch.set_num_threads(args.threads)
    args.clock = time.process_time if args.device == 'cpu' else after_the_gpu
    with tempfile.TemporaryDirectory() as folder:
        catalog, caches = market1501(walkers(Path(folder)/'walkers', 48, 8)), (None, 'ram', Path(folder))
        rows = [loading_row(catalog, c, size, args) for size in SIZES for c in caches]
        rows += [training_row(catalog, c, 'quick', args) for c in caches[:2]]
        rows += [training_row(catalog, c, 'one_cycle', args, bs=args.big_bs) for c in caches[:2]]
    write_csv(rows, args.out, args.device)


if __name__ == '__main__': main()
