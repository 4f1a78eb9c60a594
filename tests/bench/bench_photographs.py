"""What each part of the method is worth on photographs: a training for each row and seed, ranked branch by branch.

    python tests/bench/bench_photographs.py market1501 PATH --weights FILE --seeds 0,1,2 --csv FILE

Rows are settings of `magnifier_ablate`, or one of `CHOICES` beside the whole network, which any training takes with
`--set`. The CSV has a line for each embedding that a trained network gives. The command continues where it was stopped:
trainings that the CSV holds are left out."""
import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from fastai.vision.all import Callback, CancelValidException
from measure import hardware
from torch.nn.functional import normalize

from magnifier.all import *
from magnifier.cli.common import read_catalog
from magnifier.cli.train import parse_arguments
from magnifier.model.pooling import has_mask, resize_labels
from magnifier.regions import N_REGIONS
from magnifier.train.ablation import SETTINGS, STUDIES
from magnifier.train.callbacks import stage_callbacks
from magnifier.train.learner import recipe_learner
from magnifier.train.metrics import rank_by_role
from magnifier.train.recipes import Stage

WHOLE = 'G+M+SAB+SFB'
CHOICES = {
    'plain triplet of SAB': 'sab_triplet=plain',
    'normalised triplet of SAB': 'sab_triplet=normalised',
    'share of SAB': 'sab_share=true',
    'SAB on originals too': 'sab_original=true',
    'no background in SAB': 'keep_background=false',
    'maps upsampled': 'upsample_maps=true',
    'stage 3 without stride': 'stage3_stride=1',
    'stage 5': 'region_stage=5',
    'region necks x 0.1': 'region_weight=0.1',
    'region necks x 0.5': 'region_weight=0.5',
    "torch's Adam": 'opt_func=adam',
}
TABLES = {
    'Table 2': [name for name in STUDIES['Table 2'] if not name.endswith('SD')],
    'choices': ['stage 4', *CHOICES],
    **{study: list(lines.values()) for study, lines in STUDIES.items() if study.startswith('Figure')},
}
# Second stages from one checkpoint: rate (None for the one that the first stage ended with), schedule, weight of SD
RATES = ((1e-3, 'constant'), (1e-3, 'annealed'), (None, 'constant'))
SECOND = [(*rate, gamma) for rate in RATES for gamma in (0., 2e-3)]
SECOND += [(1e-3, 'annealed', gamma) for gamma in (.5, 5.)]
PART_WEIGHTS = (.25, .5)  # Of SAB and SFB beside 1 for the global branch


class NoRanking(Callback):
    "Leaves out the validation after each epoch"
    def before_validate(self): raise CancelValidException


class Measures:
    "One trained network over the test images"
    def __init__(self):
        self.features = {}
        self.identities = []
        self.cosines = []
        self.both, self.either = np.zeros(N_REGIONS), np.zeros(N_REGIONS)

    def add(self, branches, out, masks, identity):
        "A batch: the network's outputs, true masks and identities"
        for name, branch in branches.items():
            self.features.setdefault(name, []).append(branch.neck.bn(out.features[name]).cpu())
        self.identities.append(identity.as_subclass(torch.Tensor).cpu())
        if out.region_features is not None: self.cosines.append(float(semantic_diversity_loss(out.region_features)))
        if out.mask_logits is not None: self._add_masks(out.mask_logits, masks.as_subclass(torch.Tensor))

    def _add_masks(self, logits, masks):
        known = has_mask(masks)
        true, seen = resize_labels(masks, logits.shape[-2:])[known], logits.argmax(1)[known]
        for k in range(N_REGIONS):
            self.both[k] += int(((true == k) & (seen == k)).sum())
            self.either[k] += int(((true == k) | (seen == k)).sum())

    def rows(self):
        "A dict for each embedding: R1 and mAP in %, mean IoU of the masks, mean cosine between the regions of an image"
        about = dict(mask_iou='', region_cosine='')
        if self.either.any(): about['mask_iou'] = round(float(np.mean(self.both/np.maximum(self.either, 1))), 3)
        if self.cosines: about['region_cosine'] = round(float(np.mean(self.cosines)), 3)
        identity = torch.cat(self.identities)
        for name, embedding in self._embeddings().items():
            ranking = rank_by_role(normalize(embedding), identity)
            yield dict(embedding=name, R1=round(100*float(ranking.cmc(1)), 2), mAP=round(100*ranking.mAP, 2), **about)

    def _embeddings(self):
        raw = {name: torch.cat(parts) for name, parts in self.features.items()}
        unit = {name: normalize(f) for name, f in raw.items()}
        joined = lambda features: torch.cat(list(features), 1)
        found = {'each normalised': joined(unit.values()), 'as it is': joined(raw.values()), **unit}
        for part in list(unit)[1:]: found[f'global + {part}'] = joined([unit['global'], unit[part]])
        for weight in PART_WEIGHTS:
            found[f'parts x {weight:g}'] = joined(f*(1 if name == 'global' else weight) for name, f in unit.items())
        return found


def new_learner(catalog, model, given, asked, seed):
    "An untrained learner of a row"
    dls = ReIDDataLoaders.from_df(
        catalog,
        size=asked.size,
        bs=asked.bs,
        n_per_id=4,
        pad=5,
        erase=0.,
        cache='ram',
        num_workers=0,
        seed=seed,
        **given['loading'],
    )
    model = dict(arch=asked.arch, hidden=asked.hidden, pretrained=False, weights=asked.weights, seed=seed,
                 **model, **given['model'])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        learn = recipe_learner(dls, 'one_cycle', loss=given['loss'], **model)
    learn.model.to(memory_format=torch.channels_last)
    return learn


def train(learn, stage):
    "Seconds: the processor's, or with a GPU those of the clock on the wall"
    clock = time.perf_counter if learn.dls.device.type == 'cuda' else time.process_time
    start = clock()
    with learn.no_bar(), learn.no_logging():
        learn.fit(stage.epochs, stage.lr, cbs=[NoRanking(), *stage_callbacks(stage, learn)])
    return clock() - start


def measure(learn):
    "Rows of `Measures`"
    measures = Measures()
    with learn.evaluating() as (net, _):
        for images, masks, identity in learn.loader(learn.dls.valid.items, bs=128):
            measures.add(net.branches, net(images.as_subclass(torch.Tensor)), masks, identity)
    return list(measures.rows())


class Bench:
    "The trainings of one command, and the CSV of those that are done"
    def __init__(self, catalog, asked):
        self.catalog = catalog
        self.asked = asked
        self.path = Path(asked.csv)
        self.done = set()
        if not self.path.exists(): return
        with open(self.path, newline='') as file:
            self.done = {tuple(row[name] for name in self.keys) for row in csv.DictReader(file)}

    keys = ('row', 'arguments', 'seed', 'arch', 'size', 'epochs')

    def run(self, row, seed, stages, *, model=None, arguments='', start=None):
        "Trains a row and writes its lines"
        asked = self.asked
        arguments = ' '.join(filter(None, [arguments, asked.set]))
        epochs = '+'.join(str(stage.epochs) for stage in stages)
        about = dict(row=row, arguments=arguments, seed=str(seed), arch=asked.arch, size=asked.size_text, epochs=epochs)
        if tuple(about[name] for name in self.keys) in self.done: return
        learn = new_learner(self.catalog, model or {}, parse_arguments(arguments.split()), asked, seed)
        if start is not None: learn.model.load_state_dict(torch.load(start, map_location='cpu'))
        seconds = train(learn, stages[-1])
        if asked.keep and start is None: torch.save(learn.model.state_dict(), self.weights(row, seed))
        device = hardware(learn.dls.device.type)
        about = dict(date=time.strftime('%Y-%m-%d'), hardware=device, **about, train_cpu_s=round(seconds))
        rows = [{**about, **figures} for figures in measure(learn)]
        self.write(rows)
        print(row, seed, *(f'{r["embedding"]}: {r["R1"]} {r["mAP"]},' for r in rows), flush=True)

    def weights(self, row, seed): return Path(self.asked.keep)/f'{row}-{seed}.pth'

    def write(self, rows):
        new = not self.path.exists()
        with open(self.path, 'a', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if new: writer.writeheader()
            writer.writerows(rows)

    def first_stage(self, row, seed):
        "One cycle"
        stage = Stage(self.asked.epochs, self.asked.lr, 'one_cycle')
        model, arguments = (SETTINGS[row].model, '') if row in SETTINGS else ({}, CHOICES[row])
        self.run(row, seed, [stage], model=model, arguments=arguments)

    def second_stages(self, seed):
        "From the weights of the whole network's first stage, which `--keep` has left"
        first = Stage(self.asked.epochs, self.asked.lr, 'one_cycle')
        for rate, schedule, gamma in SECOND:
            said = 'decayed rate' if rate is None else f'{rate:g} {schedule}'
            stage = Stage(self.asked.second, rate or first.last_rate, schedule, gamma=gamma,
                          diversity_from=0. if gamma else 1.)
            self.run(f'second stage: {said}, gamma {gamma:g}', seed, [first, stage], start=self.weights(WHOLE, seed))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('data', help='data set, as magnifier_train takes it')
    a.add_argument('path', help='its folder')
    a.add_argument('--weights', help='file of weights to start from; random ones without it')
    a.add_argument('--arch', default='mobilenetv2_100')
    a.add_argument('--rows', default='Table 2', help=f'{", ".join(TABLES)}, second, or a row, with commas between')
    a.add_argument('--seeds', default='0', help='with commas between')
    a.add_argument('--size', default='96x48', help='height x width in pixels')
    a.add_argument('--epochs', type=int, default=5)
    a.add_argument('--second', type=int, default=1, help='epochs of a second stage')
    a.add_argument('--lr', type=float, default=1e-3, help='highest rate of the cycle')
    a.add_argument('--bs', type=int, default=64)
    a.add_argument('--hidden', type=int, default=512, help='channels of SAB and SFB')
    a.add_argument('--set', default='', help='arguments that every row gets, as name=value, with spaces between')
    a.add_argument('--threads', type=int, default=1)
    a.add_argument('--keep', help='folder for the weights of each training, from which second stages start')
    a.add_argument('--csv', required=True)
    asked = a.parse_args()
    torch.set_num_threads(asked.threads)
    asked.size_text, asked.size = asked.size, tuple(map(int, asked.size.split('x')))
    if asked.keep: Path(asked.keep).mkdir(parents=True, exist_ok=True)
    bench = Bench(read_catalog(asked.data, asked.path, None), asked)
    for seed in map(int, asked.seeds.split(',')):
        for name in asked.rows.split(','):
            if name == 'second': bench.second_stages(seed)
            else:
                for row in TABLES.get(name, [name]): bench.first_stage(row, seed)


if __name__ == '__main__': main()
