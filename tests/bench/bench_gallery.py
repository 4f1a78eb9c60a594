"""A gallery of many embeddings: time to add, to open, to search, memory and bytes on disk, beside a bare matrix product and FAISS

    python tests/bench/bench_gallery.py --images 100000 --dim 4096 --csv tests/bench/DATE-gallery.csv
    python tests/bench/bench_gallery.py --images 20000 --cases gallery ivf --width 512
"""
import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import retrieval_bench

K, QUERIES = 10, 20
COLUMNS = ('case images dim mAP mAP_narrow add_s add_cpu_s add_peak_mb open_s index_s first_s median_s median_cpu_s filtered_s memory_mb peak_mb disk_mb '
           'recall_at_10 error').split()
CASES = ('product', 'product16', 'faiss', 'gallery', 'ivf', 'hnsw')


def status(key): return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])//1024  # MiB


def searched(search, queries):
    "Seconds of the first search, median wall and processor seconds of the others, and the hits of all"
    wall, cpu, hits = [], [], []
    for q in queries:
        start, start_cpu = time.perf_counter(), time.process_time()
        hits.append(search(q))
        wall.append(time.perf_counter() - start), cpu.append(time.process_time() - start_cpu)
    return dict(first_s=wall[0], median_s=float(np.median(wall[1:])), median_cpu_s=float(np.median(cpu[1:]))), np.array(hits)


def product(folder, queries, dtype):
    start = time.perf_counter()
    g = np.load(folder/'gallery.npy').astype(dtype, copy=False)
    def search(q):
        if dtype == np.float32: s = g @ q
        else: s = np.concatenate([g[i:i+4096].astype(np.float32) @ q for i in range(0, len(g), 4096)])
        near = np.argpartition(-s, K)[:K]
        return near[np.argsort(-s[near])]
    return dict(open_s=time.perf_counter() - start, disk_mb=g.nbytes >> 20), *searched(search, queries)


def flat(folder, queries):
    import faiss
    g = np.load(folder/'gallery.npy', mmap_mode='r')
    start = time.perf_counter()
    index = faiss.IndexFlatIP(g.shape[1])
    for i in range(0, len(g), 8192): index.add(np.ascontiguousarray(g[i:i+8192]))
    return dict(add_s=time.perf_counter() - start, disk_mb=g.nbytes >> 20), *searched(lambda q: index.search(q[None], K)[1][0], queries)


def add(folder):
    "The gallery of a folder, filled through its store: what embedding costs comes on top"
    from magnifier.gallery.store import MilvusStore
    g = np.load(folder/'gallery.npy', mmap_mode='r')
    start, start_cpu = time.perf_counter(), time.process_time()
    s = MilvusStore(str(folder/'people.db'), 'people')
    s.create(dict(fingerprint='bench', d=g.shape[1], regions=0, width=None))
    for i in range(0, len(g), 256):
        s.upsert([dict(key=f'{j:032d}', vector=g[j], path=f'crops/{j}.jpg', pid=j % 1000, camid=j % 6, time=float(j)) for j in range(i, min(i + 256, len(g)))])
    s.settle()
    row = dict(add_s=time.perf_counter() - start, add_cpu_s=time.process_time() - start_cpu, add_peak_mb=status('VmHWM'))
    s.close()
    return row


def gallery(folder, queries, kind='exact'):
    from magnifier.gallery.store import MilvusStore
    start = time.perf_counter()
    s = MilvusStore(str(folder/'people.db'), 'people')
    row = dict(open_s=time.perf_counter() - start)
    if s.kind != kind:
        start = time.perf_counter()
        s.index(kind)
        row['index_s'] = time.perf_counter() - start
    figures, hits = searched(lambda q: [int(r['key']) for r in s.search(q, K)] , queries)
    start = time.perf_counter()
    for q in queries[:5]: s.search(q, K, filter='camid not in [3]')
    row['filtered_s'] = (time.perf_counter() - start)/5
    s.close()
    return row | dict(disk_mb=sum(f.stat().st_size for f in (folder/'people.db').rglob('*') if f.is_file()) >> 20), figures, hits


def run(case, folder):
    "One case in this process: a row, and the hits in a file"
    queries, before = np.load(folder/'queries.npy')[:QUERIES], status('VmRSS')
    if case == 'add': row, figures, hits = add(folder), {}, None
    elif case.startswith('product'): row, figures, hits = product(folder, queries, np.float16 if case.endswith('16') else np.float32)
    elif case == 'faiss': row, figures, hits = flat(folder, queries)
    else: row, figures, hits = gallery(folder, queries, 'exact' if case == 'gallery' else case)
    if hits is not None: np.save(folder/f'hits_{case}.npy', hits)
    row |= figures | dict(memory_mb=status('VmRSS') - before, peak_mb=status('VmHWM') - before)
    exact = folder/'hits_product.npy'
    if hits is not None and exact.exists(): row['recall_at_10'] = float(np.mean([len(set(a) & set(b))/K for a, b in zip(np.load(exact), hits)]))
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def make(folder, images, dim, width):
    "Clustered features of `retrieval_bench`, narrowed where asked for; with what that costs in mAP"
    from magnifier.gallery.narrow import narrowed, principal_axes
    from magnifier.retrieval.ranking import rank
    retrieval_bench.DIM, retrieval_bench.SIZES['gallery'] = dim, (500, images)
    (q, g), ids = retrieval_bench.features('gallery')
    cost = {}
    if width:
        axes = principal_axes(g[np.linspace(0, len(g) - 1, min(len(g), 4*width)).astype(int)], width)
        cost['mAP'] = rank(q, g, ids[0], ids[1], ids[2], ids[3]).mAP
        q, g = narrowed(q, axes), narrowed(g, axes)
        cost['mAP_narrow'] = rank(q, g, ids[0], ids[1], ids[2], ids[3]).mAP
    np.save(folder/'queries.npy', q), np.save(folder/'gallery.npy', g)
    return {k: round(float(v), 4) for k, v in cost.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=100_000)
    parser.add_argument('--dim', type=int, default=4096)
    parser.add_argument('--width', type=int)
    parser.add_argument('--cases', nargs='*', choices=CASES, default=['product', 'product16', 'faiss', 'gallery'])
    parser.add_argument('--csv')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print('ROW', run(args.one, Path(args.folder)))
    folder, rows = Path(tempfile.mkdtemp(prefix='gallery')), []
    try:
        cost = make(folder, args.images, args.dim, args.width)
        wanted = [c for c in args.cases]
        if {'gallery', 'ivf', 'hnsw'} & set(wanted): wanted.insert(min(wanted.index(c) for c in ('gallery', 'ivf', 'hnsw') if c in wanted), 'add')
        for case in wanted:
            said = subprocess.run([sys.executable, __file__, '--one', case, '--folder', str(folder)], capture_output=True, text=True, env=os.environ)
            row = next((eval(line[4:]) for line in said.stdout.splitlines() if line.startswith('ROW ')), dict(error=said.stderr[-300:]))
            rows.append(dict(case=case, images=args.images, dim=args.width or args.dim, **cost, **row))
            print(rows[-1], flush=True)
    finally: shutil.rmtree(folder)
    if args.csv:
        new = not Path(args.csv).exists()
        with open(args.csv, 'a', newline='') as f:
            writer = csv.DictWriter(f, COLUMNS)
            if new: writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__': main()
