"""The stub's names, wherever the tests are started from; and the places where galleries lie: a folder, and a
Milvus server"""
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

PLACES = ['folder', pytest.param('server', marks=pytest.mark.slow)]
NUMBERS = count()


@pytest.fixture(scope='session')
def server(tmp_path_factory):
    "Address of a Milvus server, of this machine alone, that speaks the protocol of a cluster"
    pytest.importorskip('milvus_lite')
    pytest.importorskip('pymilvus')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp('server')
    where = ['--data-dir', folder, '--host', '127.0.0.1', '--port', str(port)]
    command = [sys.executable, '-m', 'milvus_lite', 'server', *where]
    with open(folder/'log', 'w') as log: process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(process, port, folder/'log')
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait(20)


def _wait(process, port, log):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try: return socket.create_connection(('127.0.0.1', port), .2).close()
        except OSError: time.sleep(.1)
    raise TimeoutError(log.read_text())


def put(kind, folder, request):
    "Keyword arguments of a gallery that nobody else has"
    if kind == 'folder': return dict(uri=folder/f'people{next(NUMBERS)}')
    return dict(uri=request.getfixturevalue('server'), name=f'people{next(NUMBERS)}')


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    "Where to make a gallery"
    return put(request.param, tmp_path, request)


@pytest.fixture(params=PLACES, scope='module')
def shared_place(request, tmp_path_factory):
    "Where to make a gallery that several tests read"
    return put(request.param, tmp_path_factory.mktemp('gallery'), request)
