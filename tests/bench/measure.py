"Time and memory of a function: warm-up, synchronisation, median and spread; peak memory in a process of its own"

import csv
import datetime
import re
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import torch

__all__ = ['timed', 'peak_memory', 'hardware', 'write_csv']


def timed(
    fn,  # Called without arguments
    *,
    device: str = 'cpu',  # Where it runs: a GPU is waited for
    repeats: int = 7,  # Calls measured
    warm_up: int = 2,  # Calls before
    clock=time.perf_counter,  # time.process_time, with one thread, is what to compare on a busy machine
) -> dict[str, float]:  # 'median', 'min' and 'max' seconds
    "Seconds of a call"
    wait = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
    seconds = []
    for i in range(warm_up + repeats):
        wait()
        start = clock()
        fn()
        wait()
        if i >= warm_up: seconds.append(clock() - start)
    return dict(median=statistics.median(seconds), min=min(seconds), max=max(seconds))


def _peak(make, args, device, queue):
    fn = make(*args)
    if device == 'cuda':
        fn()
        torch.cuda.reset_peak_memory_stats()
        fn()
        queue.put(torch.cuda.max_memory_allocated() / 2**20)
    else:
        Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
        before = _status('VmRSS')
        fn()
        queue.put(_status('VmHWM') - before)


def _status(key):  # MiB
    return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 2**10


def peak_memory(
    make,  # A module's function; called with `args` it gives the function to measure, its input made
    *args,  # Plain values
    device: str = 'cpu',  # 'cpu' or 'cuda'
) -> float:  # MiB: on a CPU what one call adds to the process, on a GPU all that is allocated at the peak
    "Peak memory of one call, in a fresh process, so that nothing earlier hides it (on a CPU: Linux alone)"
    context = get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(target=_peak, args=(make, args, device, queue))
    process.start()
    process.join()
    if process.exitcode: raise RuntimeError(f'{make.__name__}{args} ended with code {process.exitcode}')
    return queue.get()


def hardware(
    device: str = 'cpu',  # 'cpu' or 'cuda'
) -> str:  # One line
    "What the figures were measured on"
    if device == 'cuda': return f'{torch.cuda.get_device_name()}, torch {torch.__version__}'
    from magnifier.train.runs import environment
    return f'{environment()["hardware"]["cpu"]} x {torch.get_num_threads()} threads, torch {torch.__version__}'


def write_csv(
    rows: list[dict],  # One a measurement, with the same keys
    path: str | None = None,  # A file to write; None for the terminal
    device: str = 'cpu',  # Named in each row
):
    "The rows, with the date and the hardware"
    rows = [dict(date=datetime.date.today().isoformat(), hardware=hardware(device), **r) for r in rows]
    file = open(path, 'w', newline='') if path else sys.stdout
    try:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    finally:
        if path: file.close()
