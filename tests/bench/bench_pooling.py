"""Region max pooling, forward and backward, beside its floor (one global max pool) and the naive ways.

    python tests/bench/bench_pooling.py [--device cuda] [--dtype bfloat16] [--out pooling.csv]"""

import argparse
import time

import torch
from measure import peak_memory, timed, write_csv
from torch.nn import functional as F

from magnifier.model.pooling import region_max_pool
from magnifier.model.pooling import labels_to_masks

N, C, H, W, K = 64, 1024, 24, 12, 8


def global_max_pool(maps, masks): return F.adaptive_max_pool2d(maps, 1).flatten(1)[:, None].expand(-1, K, -1)
def product(maps, masks): return (maps[:, None] * masks[:, :, None]).amax((3, 4))
def loop(maps, masks): return torch.stack([(maps * masks[:, k, None]).amax((2, 3)) for k in range(K)], 1)


def body_labels(n, height, width, g):  # seven bands of a body on a background, where a person would stand
    y, x = torch.arange(height)[:, None], torch.arange(width)
    centre = width * (0.4 + 0.2 * torch.rand(n, 1, 1, generator=g))
    inside = (x - centre).abs() < 0.25 * width * (1 - 0.3 * (y / height - 0.5).abs())
    return torch.where(inside, 1 + y * 7 // height, 0)


WAYS = {f.__name__: f for f in (global_max_pool, product, loop, region_max_pool)}


def make(way, masks, layout, dtype, device):
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(N, C, H, W, generator=g).relu().to(device, getattr(torch, dtype),
                                                          memory_format=getattr(torch, layout))
    if masks == 'soft': weights = torch.randn(N, K, H, W, generator=g).softmax(1)
    else: weights = labels_to_masks(body_labels(N, 16 * H, 16 * W, g), (H, W), masks)
    weights, grad = weights.to(maps), torch.rand(N, K, C, generator=g).to(maps)
    fn = WAYS[way]

    def step(): fn(maps.detach().requires_grad_(), weights).backward(grad)
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--cpu-clock', action='store_true', help='processor seconds instead of wall clock')
    parser.add_argument('--out')
    args, rows = parser.parse_args(), []
    clock = time.process_time if args.cpu_clock else time.perf_counter
    for layout in ('contiguous_format', 'channels_last'):
        floor = None
        for way, masks in [*((way, 'bilinear') for way in WAYS), ('region_max_pool', 'nearest'),
                           ('region_max_pool', 'soft')]:
            setting = (way, masks, layout, args.dtype, args.device)
            seconds = timed(make(*setting), device=args.device, repeats=args.repeats, clock=clock)
            memory = peak_memory(make, *setting, device=args.device)
            floor = floor or (seconds['median'], memory)
            rows.append(dict(way=way, masks=masks, layout=layout, dtype=args.dtype,
                             **{k: round(v, 5) for k, v in seconds.items()},
                             mib=round(memory), times_floor=round(seconds['median'] / floor[0], 2),
                             memory_of_floor=round(memory / floor[1], 2)))
    write_csv(rows, args.out, args.device)


if __name__ == '__main__': main()
