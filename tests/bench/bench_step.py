"""A training step and an embedding of the full MagnifierNet beside the plain backbone with one head (same last stride), in one run.

    python tests/bench/bench_step.py --bs 8 --size 256 128
    python tests/bench/bench_step.py --device cuda --bs 64 --bf16 --channels-last --compile --out step.csv"""

import argparse
import time
import random

import torch
from measure import peak_memory, timed, write_csv

from magnifier.model.net import create_magnifier
from magnifier.train.losses import MagnifierLoss

ROWS = {'plain': dict(mask=False, sab=False, sfb=False), 'G+M': dict(sab=False, sfb=False), 'G+M+SAB': dict(sfb=False),
        'G+M+SFB': dict(sab=False), 'full': {}}
N_CLASSES, PER_IDENTITY = 751, 4


def make(row, training, args):
    torch.manual_seed(0)
    model = create_magnifier(args.arch, N_CLASSES, False, **ROWS[row]).to(args.device).train(training)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(args.bs, 3, *args.size).to(args.device, memory_format=layout)
    bands = (torch.arange(args.size[0]) * 8 // args.size[0])[:, None].expand(args.size)
    labels = bands.expand(args.bs, -1, -1).contiguous().to(args.device)
    identity = (torch.arange(args.bs) // PER_IDENTITY)[:, None].expand(-1, 4).to(args.device)
    loss, draw = MagnifierLoss(gamma=2e-3), random.Random(0)
    if args.compile: model.compile()
    amp = torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16)
    if not training:
        @torch.inference_mode()
        def embed():
            with amp: model(images)
        return embed
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4, fused=args.device == 'cuda')

    def step():
        kept = torch.tensor([True] + [draw.random() < 0.5 for _ in range(7)])
        with amp: output = model(images, labels, kept)
        loss(output, labels, identity).backward()
        opt.step()
        opt.zero_grad()
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--bs', type=int, default=64)
    parser.add_argument('--size', type=int, nargs=2, default=(384, 192))
    parser.add_argument('--rows', nargs='+', default=['plain', 'full'], choices=list(ROWS))
    parser.add_argument('--repeats', type=int, default=7)
    for flag in ('bf16', 'channels-last', 'compile'): parser.add_argument(f'--{flag}', action='store_true')
    parser.add_argument('--cpu-clock', action='store_true', help='processor seconds instead of wall clock')
    parser.add_argument('--out')
    args, rows = parser.parse_args(), []
    clock = time.process_time if args.cpu_clock else time.perf_counter
    for training in (True, False):
        floor = None
        for row in args.rows:
            seconds = timed(make(row, training, args), device=args.device, repeats=args.repeats, clock=clock)
            memory = peak_memory(make, row, training, args, device=args.device)
            floor = floor or (seconds['median'], memory)
            rows.append(dict(
                row=row, what='step' if training else 'embed', arch=args.arch, bs=args.bs, size='x'.join(map(str, args.size)),
                bf16=args.bf16, channels_last=args.channels_last, compile=args.compile, **{k: round(v, 4) for k, v in seconds.items()},
                images_a_second=round(args.bs / seconds['median'], 1), mib=round(memory),
                times_plain=round(seconds['median'] / floor[0], 3), memory_of_plain=round(memory / floor[1], 3)))
    write_csv(rows, args.out, args.device)


if __name__ == '__main__': main()
