"""A gallery of many embeddings, side by side: time to add, open and search, memory and bytes on disk

    python tests/bench/bench_gallery.py --images 100000 --dim 4096 --csv tests/bench/DATE-gallery.csv
    python tests/bench/bench_gallery.py --images 1000000 --dim 512 --cases read product add gallery ivf --csv ...
    python tests/bench/bench_gallery.py --images 10000 --dim 4096 --cases milvus-lite --csv ...

Each case runs in a process of its own. `read` reads the vectors once, `product` is NumPy's with all of them in
memory, `faiss` its flat index, `lancedb` LanceDB alone, `add` fills our gallery through its store (what
embedding costs comes on top), `gallery` searches it, `cold` is `magnifier_search` from a shell with an .onnx
embedder, `ivf` builds and uses the index, `regions` searches by three of eight regions.
"""
import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

K, QUERIES, AT_ONCE = 10, 20, 1 << 24  # hits, searches, bytes that are added at once
CASES = ('read', 'product', 'faiss', 'lancedb', 'add', 'gallery', 'cold', 'ivf', 'regions', 'milvus-lite')
FIGURES = ('add_s add_cpu_s open_s index_s first_s median_s median_cpu_s filtered_s '
           'memory_mb peak_mb disk_mb recall_at_10 error').split()


def status(key): return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) // 1024  # MiB


def size(folder): return sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file()) >> 20  # MiB


def timed(function):
    "Seconds and processor seconds of a call, and its result"
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - start, time.process_time() - cpu, result


def searched(search, queries):
    "Seconds of the first search, medians of the others, and the hits of all"
    runs = [timed(lambda: search(q)) for q in queries]
    figures = dict(first_s=runs[0][0], median_s=float(np.median([r[0] for r in runs[1:]])))
    return figures | dict(median_cpu_s=float(np.median([r[1] for r in runs[1:]]))), np.array([r[2] for r in runs])


def parts(file):
    "Positions and rows of what is added at once; what was read before is not held"
    n, d = np.load(file, mmap_mode='r').shape
    step = max(1, AT_ONCE // (4*d))
    for i in range(0, n, step): yield range(i, min(i + step, n)), np.array(np.load(file, mmap_mode='r')[i:i+step])


def width(file): return np.load(file, mmap_mode='r').shape[1]


def labels(numbers):
    return dict(
        key=[f'{j:032d}' for j in numbers],
        path=[f'crops/{j}.jpg' for j in numbers],
        pid=[j % 1000 for j in numbers],
        camid=[j % 6 for j in numbers],
        time=[float(j) for j in numbers],
    )


def nearest(scores):
    near = np.argpartition(-scores, K)[:K]
    return near[np.argsort(-scores[near])]


def read(folder, file, queries):
    def all_once():
        buffer = bytearray(1 << 23)
        with open(file, 'rb', buffering=0) as f:
            while f.readinto(buffer): pass
    seconds, cpu, _ = timed(all_once)
    return dict(open_s=seconds, median_cpu_s=cpu), None


def product(folder, file, queries):
    seconds, _, g = timed(lambda: np.load(file))
    figures, hits = searched(lambda q: nearest(g @ q), queries)
    return dict(open_s=seconds, disk_mb=g.nbytes >> 20) | figures, hits


def faiss(folder, file, queries):
    import faiss
    index = faiss.IndexFlatIP(width(file))
    seconds, cpu, _ = timed(lambda: [index.add(x) for _, x in parts(file)])
    figures, hits = searched(lambda q: index.search(q[None], K)[1][0], queries)
    return dict(add_s=seconds, add_cpu_s=cpu) | figures, hits


def lancedb(folder, file, queries):
    import lancedb
    import pyarrow as pa
    def add():
        db, table = lancedb.connect(folder/'lancedb'), None
        for numbers, x in parts(file):
            columns = labels(numbers) | dict(vector=pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1]))
            if table is None: table = db.create_table('people', pa.table(columns))
            else: table.add(pa.table(columns))
        return table
    seconds, cpu, _ = timed(add)
    peak = status('VmHWM')
    opening, _, table = timed(lambda: lancedb.connect(folder/'lancedb').open_table('people'))
    def search(q, **kwargs):
        return [int(r['key']) for r in table.search(q).metric('dot').limit(K).select(['key', '_distance']).to_list()]
    figures, hits = searched(search, queries)
    shutil.rmtree(folder/'lancedb')
    return dict(add_s=seconds, add_cpu_s=cpu, peak_mb=peak, open_s=opening) | figures, hits


def store(folder):
    from magnifier.gallery.lance import LanceStore
    return LanceStore(str(folder/'people'), 'people')


def add(folder, file, queries):
    s = store(folder)  # imports the engine
    def fill():
        s.create(dict(fingerprint='bench', d=width(file), regions=0))
        for numbers, x in parts(file): s.add(labels(numbers) | dict(also=[[] for _ in numbers], vector=x))
        s.settle()
    seconds, cpu, _ = timed(fill)
    return dict(add_s=seconds, add_cpu_s=cpu, disk_mb=size(folder/'people')), None


def gallery(folder, file, queries):
    from magnifier.gallery.store import where
    opening, _, s = timed(lambda: store(folder))
    counting, _, _ = timed(s.count)  # files are checked at the first question
    figures, hits = searched(lambda q: [int(key) for key in s.search(q, K)['key']], queries)
    filtered = timed(lambda: [s.search(q, K, where(not_camera=3)) for q in queries[:5]])[0] / 5
    return dict(open_s=opening + counting, filtered_s=filtered, disk_mb=size(folder/'people')) | figures, hits


def ivf(folder, file, queries):
    s = store(folder)
    building, cpu, _ = timed(lambda: s.index('ivf'))
    figures, hits = gallery(folder, file, queries)
    s.index('exact')
    return figures | dict(index_s=building, add_cpu_s=cpu), hits


def cold(folder, file, queries):
    "From a shell to the printed answer"
    from PIL import Image
    make_embedder(folder/'model.onnx', width(file))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 64, 3)).astype(np.uint8)).save(folder/'query.png')
    code = 'import sys; from magnifier.cli.gallery import magnifier_search; ' \
           f'magnifier_search({str(folder/"query.png")!r}, gallery={str(folder/"people")!r}, ' \
           f'learner={str(folder/"model.onnx")!r}); ' \
           'assert "torch" not in sys.modules'
    runs, before = [], children_cpu()
    command = [sys.executable, '-c', code]
    for _ in range(3): runs.append(timed(lambda: subprocess.run(command, check=True, capture_output=True))[0])
    return dict(first_s=runs[0], median_s=float(np.median(runs)), median_cpu_s=(children_cpu() - before) / 3), None


def children_cpu():
    import resource
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_embedder(file, d):
    "An .onnx file that embeds by the mean colours, into many dimensions"
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from magnifier.data.preprocess import Preprocessing
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, d)).astype(np.float32), 'w')
    nodes = [helper.make_node('ReduceMean', ['images'], ['mean'], axes=[2, 3], keepdims=0),
             helper.make_node('MatMul', ['mean', 'w'], ['x']),
             helper.make_node('LpNormalization', ['x'], ['embedding'], axis=1, p=2)]
    inputs = [helper.make_tensor_value_info('images', TensorProto.FLOAT, ['n', 3, 128, 64])]
    outputs = [helper.make_tensor_value_info('embedding', TensorProto.FLOAT, ['n', d])]
    graph = helper.make_graph(nodes, 'colours', inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    about = dict(fingerprint='bench', preprocessing=Preprocessing(size=(128, 64)).to_json())
    helper.set_model_props(model, dict(magnifier=json.dumps(about)))
    onnx.save(model, file)


def regions(folder, file, queries):
    "Vectors taken for eight regions side by side, of which each image shows some; beside the product with them"
    from magnifier.gallery.lance import LanceStore
    from magnifier.gallery.hits import nearest_by_regions
    s, rng = LanceStore(str(folder/'regions'), 'people'), np.random.default_rng(0)
    s.create(dict(fingerprint='bench', d=8, regions=width(file)))
    for numbers, x in parts(file):
        visible = rng.integers(0, 256, len(numbers)).tolist()
        s.add(labels(numbers) | dict(also=[[] for _ in numbers], vector=x[:, :8], regions=x, visible=visible))
    def search(q): return [int(key) for key in nearest_by_regions(s, q, 255, [1, 5, 7], K)['key']]
    figures, hits = searched(search, queries)
    shutil.rmtree(folder/'regions')
    return figures, None


def milvus_lite(folder, file, queries):
    "The engine of earlier versions, through its own client"
    from pymilvus import DataType, MilvusClient
    client = MilvusClient(str(folder/'old.db'))
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field('vector', DataType.FLOAT_VECTOR, dim=width(file))
    index = MilvusClient.prepare_index_params()
    index.add_index('vector', index_type='FLAT', metric_type='IP')
    client.create_collection('people', schema=schema, index_params=index)
    def fill():
        for numbers, x in parts(file):
            for i in range(0, len(x), 256):
                rows = [dict(key=f'{numbers[i + j]:032d}', vector=v) for j, v in enumerate(x[i:i+256])]
                client.upsert('people', rows)
        client.flush('people')
    seconds, cpu, _ = timed(fill)
    def search(q): return [int(hit['key']) for hit in client.search('people', [q], limit=K, anns_field='vector')[0]]
    figures, hits = searched(search, queries)
    return dict(add_s=seconds, add_cpu_s=cpu, disk_mb=size(folder/'old.db')) | figures, hits


def run(case, folder):
    "One case in this process: a row, and the hits in a file"
    queries, before = np.load(folder/'queries.npy')[:QUERIES], status('VmRSS')
    row, hits = globals()[case.replace('-', '_')](folder, folder/'gallery.npy', queries)
    row = dict(memory_mb=status('VmRSS') - before, peak_mb=status('VmHWM')) | row
    if hits is None: return row
    np.save(folder/f'hits_{case}.npy', hits)
    exact = folder/'hits_product.npy'
    if exact.exists():
        row['recall_at_10'] = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(np.load(exact), hits)]))
    return row


def make(folder, images, dim, noise):
    "Clustered features of `retrieval_bench`; the less noise, the more they are like a trained model's"
    import retrieval_bench
    retrieval_bench.DIM, retrieval_bench.SIZES['gallery'] = dim, (500, images)
    (queries, vectors), _ = retrieval_bench.features('gallery', noise=noise)
    np.save(folder/'queries.npy', queries)
    np.save(folder/'gallery.npy', vectors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=100_000)
    parser.add_argument('--dim', type=int, default=4096)
    parser.add_argument('--noise', type=float, default=2.5)
    parser.add_argument('--cases', nargs='*', choices=CASES, default=CASES[:-1])
    parser.add_argument('--csv')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print('ROW', json.dumps(run(args.one, Path(args.folder))))
    folder = Path(tempfile.mkdtemp(prefix='gallery'))
    try:
        with get_context('spawn').Pool(1) as other:  # the features are not this process's to hold
            other.apply(make, (folder, args.images, args.dim, args.noise))
        for case in args.cases:
            command = [sys.executable, __file__, '--one', case, '--folder', str(folder)]
            said = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            told = [line[4:] for line in said.stdout.splitlines() if line.startswith('ROW ')]
            row = json.loads(told[0]) if told else dict(error=said.stderr.strip().splitlines()[-1])
            row = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            about = dict(case=case, images=args.images, dim=args.dim, noise=args.noise)
            row = about | {name: row.get(name) for name in FIGURES}
            print({name: value for name, value in row.items() if value is not None}, flush=True)
            if args.csv: write(row, args.csv)
    finally: shutil.rmtree(folder)


def write(row, file):
    "Adds a row, with the date and the hardware"
    import csv
    from measure import hardware
    about = dict(date=datetime.date.today().isoformat(), hardware=hardware('cpu'))
    new = not Path(file).exists()
    with open(file, 'a', newline='') as f:
        writer = csv.DictWriter(f, [*about, *row])
        if new: writer.writeheader()
        writer.writerow(about | row)


if __name__ == '__main__': main()
