r"""Which part of the loss pulls how hard on the shared layers: norms of the gradients on the backbone, before and after
a training on photographs.

    python tests/bench/bench_photographs.py market1501 PATH --weights FILE --seeds 1 --rows G+M+SAB+SFB --keep FOLDER \
        --csv FILE
    python tests/bench/bench_gradients.py market1501 PATH --weights FILE --trained FOLDER/G+M+SAB+SFB-1.pth --csv FILE

Each line is a mean over batches. `of global triplet` is the norm beside that of the global branch's triplet loss."""
import argparse

import pandas as pd
import torch
from measure import write_csv

from magnifier.all import *
from magnifier.cli.common import read_catalog
from magnifier.train.losses import TRIPLETS


def shares(
    dls,  # Loaders of the training images
    batches,  # Some of their batches, the same for all losses and weights
    triplet,  # Triplet loss of the adversarial branch
    asked,  # The command's arguments
    trained,  # File of a whole network's weights, or None for those that a training starts from
) -> pd.DataFrame:  # As `gradient_shares`, means over the batches
    learn = magnifier_learner(dls, arch=asked.arch, pretrained=False, weights=asked.weights, hidden=asked.hidden,
                              seed=asked.seed, loss_func=MagnifierLoss(sab_triplet=triplet))
    if trained: learn.model.load_state_dict(torch.load(trained, map_location='cpu'))
    tables = [learn.gradient_shares(batch) for batch in batches]
    table = pd.concat(tables).groupby(level=0, sort=False).mean()
    return table.assign(**{'of global triplet': table['gradient']/table['gradient']['global_tri']})


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('data', help='data set, as magnifier_train takes it')
    a.add_argument('path', help='its folder')
    a.add_argument('--weights', help='file of ImageNet weights')
    a.add_argument('--trained', required=True, help='file of a whole network, kept by bench_photographs.py')
    a.add_argument('--arch', default='mobilenetv2_100')
    a.add_argument('--size', default='96x48', help='height x width in pixels')
    a.add_argument('--hidden', type=int, default=512)
    a.add_argument('--seed', type=int, default=0)
    a.add_argument('--batches', type=int, default=8)
    a.add_argument('--csv', required=True)
    asked = a.parse_args()
    torch.set_num_threads(1)
    size = tuple(map(int, asked.size.split('x')))
    catalog = read_catalog(asked.data, asked.path, None)
    dls = ReIDDataLoaders.from_df(catalog, size=size, bs=64, n_per_id=4, pad=5, erase=0., num_workers=0,
                                  seed=asked.seed)
    batches = [batch for _, batch in zip(range(asked.batches), dls.train)]
    about = dict(arch=asked.arch, size=asked.size)
    rows = []
    for state, trained in (('ImageNet', None), ('trained', asked.trained)):
        for triplet in TRIPLETS:
            table = shares(dls, batches, triplet, asked, trained).round(4)
            print(state, triplet, table, sep='\n', flush=True)
            about |= dict(weights=state, sab_triplet=triplet)
            rows += [about | dict(part=part, **figures) for part, figures in table.to_dict('index').items()]
    write_csv(rows, asked.csv)


if __name__ == '__main__': main()
