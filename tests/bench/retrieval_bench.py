"""What the benchmarks of ranking and re-ranking share: features that look like a test set's, and one tool at a
time in a process of its own"""

import argparse
import importlib.util
import re
import statistics
import time
from multiprocessing import get_context
from pathlib import Path
import numpy as np
import torch
from measure import write_csv

SIZES = dict(small=(300, 1500), n10000=(1747, 8253), market=(3368, 15913), msmt=(11659, 82161))  # queries, gallery
DIM = 2048


def features(size, noise=2.5, camera=0.7, seed=0):
    """Clustered unit features: an identity has about 21 gallery images over six cameras, each camera moves all
    of its images, and some images are clearer than others"""
    (q, g), rng = SIZES[size], np.random.default_rng(seed)
    n_ids = max(2, (q + g) // 25)
    pids = rng.integers(0, max(2, (q + g) // 25), q + g)
    camids = rng.integers(0, 6, q + g)
    centres = rng.standard_normal((n_ids, DIM), dtype=np.float32)
    cameras = rng.standard_normal((6, DIM), dtype=np.float32)
    feats = np.empty((q + g, DIM), np.float32)
    for rows in np.array_split(np.arange(q + g), max(1, (q + g) // 4096)):
        spread = noise * rng.gamma(4, 0.25, (len(rows), 1)).astype(np.float32)
        x = centres[pids[rows]] + camera * cameras[camids[rows]]
        x += spread * rng.standard_normal((len(rows), DIM), dtype=np.float32)
        feats[rows] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (feats[:q].copy(), feats[q:].copy()), (pids[:q], pids[q:], camids[:q], camids[q:])


def squared(x, y):
    "Squared distances of unit features, made in place"
    return torch.addmm(torch.full((1,), 2.), torch.from_numpy(x), torch.from_numpy(y).T, alpha=-2).clamp_(min=0).numpy()


def _status(key):  # MiB
    return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 2**10


def _child(make, size, repeats, threads, queue):
    torch.set_num_threads(threads)
    make('small')()  # libraries loaded, threads started
    fn, wall, cpu = make(size), [], []
    Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
    before = _status('VmRSS')
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        figures = fn()
        wall.append(time.perf_counter() - start), cpu.append(time.process_time() - start_cpu)
    peak = _status('VmHWM') - before
    if hasattr(fn, 'figures'): figures = fn.figures()
    queue.put(dict(runs=repeats, wall_s=statistics.median(wall), wall_min=min(wall), wall_max=max(wall),
                   cpu_s=statistics.median(cpu), cpu_min=min(cpu), peak_mb=peak, **figures))


def measured(case, tool, make, size, repeats, threads):
    """One tool's row: `make(size)` gives a function that is timed and returns figures; its input is made
    before, and is not in the peak memory"""
    context = get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(make, size, repeats, threads, queue))
    process.start()
    process.join()
    if process.exitcode: raise SystemExit(f'{case} {tool}: ended with code {process.exitcode}')
    row = dict(case=case, size=size, tool=tool,
               **{k: round(v, 6 if k in ('R1', 'mAP') else 3) for k, v in queue.get().items()})
    print(*(f'{k}={v}' for k, v in row.items()), flush=True)
    return row


def installed(*names):
    "Whether the peers can be imported at all"
    return all(importlib.util.find_spec(n) for n in names)


def main(doc, cases):
    """Run the cases asked for, one tool after the other, and write one CSV. `cases`: (case, tool, module needed
    or None, make)"""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument('--size', choices=SIZES, default='market')
    parser.add_argument('--tools', nargs='*', help='all that are installed by default')
    parser.add_argument('--cases', nargs='*', choices=sorted({c[0] for c in cases}))
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--csv', help='file to write, say 2026-01-31-ranking-market.csv; the terminal by default')
    args = parser.parse_args()
    rows = [measured(case, tool, make, args.size, args.repeats, args.threads) for case, tool, needs, make in cases
            if (not args.tools or tool in args.tools) and (not args.cases or case in args.cases)
            and (needs is None or installed(needs))]
    write_csv([dict(threads=args.threads, **r) for r in rows], args.csv)
