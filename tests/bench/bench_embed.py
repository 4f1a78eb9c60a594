"""Embedding: the whole model's forward and the embedding network beside the plain backbone's forward, in one
run and in turns.

    python tests/bench/bench_embed.py --size 256 128 --bs 16 --out tests/bench/DATE-embed.csv
    python tests/bench/bench_embed.py --onnx                                   # and the exported file, by onnxruntime
    python tests/bench/bench_embed.py --device cuda --bs 256 --bf16 --compile  # GPU: never run on one so far

The floor, `backbone`, is stages 1 to 4 as torch has them (same last stride, batch norms as they are,
contiguous); `backbone, folded` is what is left of it after the same folding and layout as the embedding
network's. Every row but those two gives embeddings; `cosine` is against the model's own in float32. The batch
norms have seen random pictures first, so that folding them is no identity; weights are random."""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from measure import timed, write_csv
from torch.nn import functional as F

from magnifier.model.heads import fold_norms
from magnifier.model.net import EmbeddingNet, create_magnifier


def lived_in(args):
    torch.manual_seed(0)
    model = create_magnifier(args.arch, 751, False)
    with torch.no_grad():
        for _ in range(2): model(torch.randn(4, 3, 128, 64))
    return model.eval().to(args.device)


def ways(model, images, args):
    "What is measured, by name: functions without arguments"
    net, folded = EmbeddingNet(model), fold_norms(model.backbone).to(memory_format=torch.channels_last)
    last = images.contiguous(memory_format=torch.channels_last)
    if args.compile: net.compile()
    half = lambda: torch.autocast(args.device, torch.bfloat16)
    def in_half(fn):
        with half(): return fn()
    found = {'backbone': lambda: model.backbone(images), 'backbone, folded': lambda: folded(last),
             'model': lambda: model(images).embedding, 'embedding network': lambda: net(images)}
    if args.bf16:
        found |= {'backbone, bf16': lambda: in_half(lambda: model.backbone(last)),
                  'embedding network, bf16': lambda: in_half(lambda: net(images))}
    if args.onnx: found['onnxruntime'] = onnx_session(net, images, args)
    return found


def onnx_session(net, images, args):
    import onnxruntime as ort
    from magnifier.model.saved import _to_onnx
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        _to_onnx(net, args.size).save(Path(folder)/'m.onnx', external_data=False)
        session = ort.InferenceSession(str(Path(folder)/'m.onnx'), options, providers=['CPUExecutionProvider'])
    return lambda: torch.from_numpy(session.run(['embedding'], {'images': images.numpy()})[0])


def main():
    warnings.simplefilter('ignore')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--bs', type=int, default=16)
    parser.add_argument('--size', type=int, nargs=2, default=(256, 128))
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int)
    for flag in ('bf16', 'compile', 'onnx'): parser.add_argument(f'--{flag}', action='store_true')
    parser.add_argument('--cpu-clock', action='store_true', help='processor seconds of one thread, for a busy machine')
    parser.add_argument('--out')
    args = parser.parse_args()
    if args.threads or args.cpu_clock: torch.set_num_threads(args.threads or 1)
    clock, model = time.process_time if args.cpu_clock else time.perf_counter, lived_in(args)
    images = torch.randn(args.bs, 3, *args.size).to(args.device)
    with torch.inference_mode():
        found = ways(model, images, args)
        cosine = {name: F.cosine_similarity(fn().float(), model(images).embedding).min().item()
                  if 'backbone' not in name else None
                  for name, fn in found.items()}
        # In turns, so that what else the machine does falls on all alike
        turns = [{name: timed(fn, device=args.device, repeats=1, warm_up=int(turn == 0), clock=clock)['median']
                  for name, fn in found.items()}
                 for turn in range(args.repeats)]
    rows = []
    for name in found:
        seconds, ratios = [t[name] for t in turns], [t[name]/t['backbone'] for t in turns]
        rows.append(dict(row=name, arch=args.arch, bs=args.bs, size='x'.join(map(str, args.size)),
                         clock='processor' if args.cpu_clock else 'wall',
                         median=round(statistics.median(seconds), 4), min=round(min(seconds), 4),
                         max=round(max(seconds), 4),
                         images_a_second=round(args.bs/statistics.median(seconds), 1),
                         times_backbone=round(statistics.median(ratios), 3),
                         cosine=None if cosine[name] is None else round(cosine[name], 7)))
    write_csv(rows, args.out, args.device)


if __name__ == '__main__': main()
