"""A training step and an embedding of the full MagnifierNet beside the plain backbone with one head (same last
stride), in one run.

    python tests/bench/bench_step.py --bs 8 --size 256 128
    python tests/bench/bench_step.py --device cuda --bs 64 --bf16 --channels-last --compile \\
        --profile step.txt --out step.csv

Heads and losses are float32 in any case. `--compile` compiles the network in place; Adam is fused on a GPU.
`--profile` writes what the time of the last row's steps went to, by operator. On a GPU none of this has been
run so far: the first who has one finds out."""

import argparse
import random
import time
from pathlib import Path

import torch
from measure import hardware, peak_memory, timed, write_csv

from magnifier.model.net import create_magnifier
from magnifier.train.losses import MagnifierLoss

ROWS = {'plain': dict(mask=False, sab=False, sfb=False), 'G+M': dict(sab=False, sfb=False), 'G+M+SAB': dict(sfb=False),
        'G+M+SFB': dict(sab=False), 'full': {}, 'full, maps upsampled': dict(upsample_maps=True),
        'full, stage 3 without stride': dict(stage3_stride=1)}
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
    if args.compile: model.compile()  # in place: keys stay as they are
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


def profile(step, path, device):
    "What three calls do, by operator, into a text file"
    from torch.profiler import ProfilerActivity, profile
    for _ in range(2): step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*(device == 'cuda')
    with profile(activities=activities, record_shapes=True) as found:
        for _ in range(3): step()
        if device == 'cuda': torch.cuda.synchronize()
    by = 'self_device_time_total' if device == 'cuda' else 'self_cpu_time_total'
    table = found.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=40, max_name_column_width=60,
                                                                max_shapes_column_width=60)
    Path(path).write_text(f'{hardware(device)}, three steps\n{table}\n')


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
    parser.add_argument('--profile', metavar='FILE', help='where the time of the last row goes, by operator')
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
                row=row, what='step' if training else 'embed', arch=args.arch, bs=args.bs,
                size='x'.join(map(str, args.size)),
                bf16=args.bf16, channels_last=args.channels_last, compile=args.compile,
                **{k: round(v, 4) for k, v in seconds.items()},
                images_a_second=round(args.bs / seconds['median'], 1), mib=round(memory),
                times_plain=round(seconds['median'] / floor[0], 3), memory_of_plain=round(memory / floor[1], 3)))
    if args.profile: profile(make(args.rows[-1], True, args), args.profile, args.device)
    write_csv(rows, args.out, args.device)


if __name__ == '__main__': main()
