"""Galleries in folders: what is deleted is gone from the disk, what is damaged is noticed, what was killed
goes on, processes share"""
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from gallery_child import N
from gallery_stub import Colours, files, people, person
from PIL import Image
from magnifier.gallery import lance as gallery_lance
from magnifier.gallery.gallery import Gallery
from magnifier.gallery.lance import file_sum

pytest.importorskip('lance')
CHILD = Path(__file__).with_name('gallery_child.py')


def vectors(pids):
    x = Colours().embed([Image.fromarray(person(pid)) for pid in pids])
    return x/np.linalg.norm(x, axis=1, keepdims=True)


def fill(uri, n=40, **kwargs):
    with Gallery(uri, **kwargs) as g:
        paths = [f'secret{i}.png' for i in range(n)]
        g.add(Colours(), people(n), pids=range(n), paths=paths, times=range(n), progress=False)


def holds(folder, *texts):
    "Which texts stand in a file of a folder, or in the name of one"
    there = b'\0'.join(file.name.encode() + file.read_bytes() for file in folder.rglob('*') if file.is_file())
    return [text for text in texts if text in there]


def check_whole(uri, least=0):
    "Every row is whole, once, and found; returns the identities"
    with Gallery(uri) as g:
        images = g.images()
        assert len(images) == len(g) >= least
        assert not images['key'].duplicated().any()
        if not len(g): return set()
        pids = images['pid'].astype(int).tolist()
        np.testing.assert_allclose(g.embeddings(images['key']), vectors(pids), atol=1e-6)
        assert g.search(Colours(), person(pids[0]))[0].pid == pids[0]
        return set(pids)


# ---- what is deleted

@pytest.mark.parametrize('index', ['exact', 'ivf'])
@pytest.mark.parametrize('gone', [[7], pytest.param(list(range(20)), marks=pytest.mark.slow), list(range(39))])
def test_nothing_of_deleted_people_is_left_in_any_file(tmp_path, gone, index):
    uri = tmp_path/'people'
    fill(uri, 20, regions=True)
    fill(uri)
    marks = [mark for pid in gone for mark in (f'secret{pid}.png'.encode(), vectors([pid]).tobytes()[:400])]
    with Gallery(uri) as g:
        g.index(index)
        keys = [key.encode() for key in g.images(pids=gone)['key']]
        assert len(holds(uri, *marks, *keys)) == 3*len(gone)
        assert g.delete(paths=[f'secret{pid}.png' for pid in gone]) == len(gone)
        g.compact()
        assert holds(uri, *marks, *keys) == []
        assert len(g) == 40 - len(gone)
        assert g.store.kind == index
    assert check_whole(uri) == set(range(40)) - set(gone)


def test_what_a_killed_writer_left_goes_with_the_next_compaction(tmp_path):
    uri = tmp_path/'people'
    fill(uri)
    left = uri/'people.lance'/'data'/'left.lance'
    left.write_bytes(b'secret of a killed writer')
    with Gallery(uri) as g: g.compact()
    assert not left.exists()


# ---- what is damaged

def parts(uri): return sorted(file for file in uri.rglob('*') if file.is_file())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A gallery with deletions, labels and an index"
    uri = tmp_path_factory.mktemp('whole')/'people'
    fill(uri, 30)
    fill(uri, 60)
    with Gallery(uri) as g:
        g.index('ivf')
        g.delete(pids=[3, 33])
        g.label(g.images(pids=[4])['key'], [4])
    return uri


def flip(file, rng):
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def cut(file, rng): os.truncate(file, int(rng.integers(file.stat().st_size)))


def blank(file, rng):
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data)))
    data[at:at + 512] = bytes(len(data[at:at + 512]))
    file.write_bytes(data)


def lose(file, rng): file.unlink()


def answers(uri):
    with Gallery(uri) as g:
        hits = g.search(Colours(), person(8), k=60)
        return len(g), g.images().to_csv(), hits.table.assign(similarity=hits.table['similarity'].round(4)).to_csv()


@pytest.mark.parametrize('damage', [flip, lose, *(pytest.param(d, marks=pytest.mark.slow) for d in (cut, blank))])
def test_damage_to_any_file_is_noticed_or_changes_no_answer(whole, tmp_path, damage):
    rng, wanted, noticed = np.random.default_rng(0), answers(whole), 0
    for i, file in enumerate(parts(whole)):
        uri = tmp_path/str(i)
        shutil.copytree(whole, uri)
        damage(uri/file.relative_to(whole), rng)
        try: assert answers(uri) == wanted, file
        except OSError as error:
            noticed += 1
            assert '\n' not in str(error)
    assert noticed > 3


def test_sums_are_those_of_the_bytes(tmp_path):
    file = tmp_path/'x'
    sums = set()
    block = bytes(1 << 20)
    for data in (b'', b'a', b'\0', b'a\0', block, block + block, b'a' + block, block + b'a'):
        file.write_bytes(data)
        sums.add(file_sum(file))
    assert len(sums) == 8


# ---- what was killed

@pytest.mark.slow
@pytest.mark.parametrize('job', ['add', 'delete', 'compact', 'index'])
@pytest.mark.parametrize('seed', range(5))
def test_a_kill_at_any_time_loses_nothing(tmp_path, job, seed):
    uri, rng = tmp_path/'people', np.random.default_rng(seed)
    if job != 'add': fill(uri, N)
    with start(uri, job, seed) as child:
        lines = [child.stdout.readline()]  # it is at work
        time.sleep(float(rng.uniform(0, .8)))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
    there = check_whole(uri)
    if job == 'add':
        reported = int(lines[-1].split()[1])
        assert there >= set(range(reported))
    elif job == 'delete':
        reported = {int(line.split()[1]) for line in lines}
        assert not there & reported
        assert len(there) >= N - len(reported) - 1
    else: assert there == set(range(N))
    with Gallery(uri) as g:
        g.compact()
        g.add(Colours(), people(N), pids=range(N), progress=False)
    assert check_whole(uri) == set(range(N))


def start(uri, job, seed=0):
    command = [sys.executable, CHILD, str(uri), job, str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ---- processes that share

@pytest.mark.slow
def test_processes_add_search_delete_and_compact_at_the_same_time(tmp_path):
    uri = tmp_path/'people'
    fill(uri, 20)
    with ExitStack() as stack:
        jobs = ['add', 'add', 'search', 'compact']
        others = [stack.enter_context(start(uri, job, seed)) for seed, job in enumerate(jobs)]
        try:
            with Gallery(uri) as g:
                for pid in range(10):
                    g.delete(pids=pid)
                    time.sleep(.05)
            for adder in others[:2]:
                told, problem = adder.communicate(timeout=120)
                assert not adder.returncode, problem
            for other in others[2:]:
                assert other.poll() is None, other.stderr.read()
        finally:
            for other in others: other.kill()
        assert len(others[2].stdout.readlines()) > 3
    assert check_whole(uri) >= set(range(20, N))


class Racing:
    "The engine, whose first look at a table finds a version that is removed before it is read"

    def __init__(self, engine, meanwhile):
        self.engine = engine
        self.meanwhile = meanwhile

    def dataset(self, address):
        if self.meanwhile is None: return self.engine.dataset(address)
        meanwhile, self.meanwhile = self.meanwhile, None
        meanwhile()
        raise ValueError('LanceError(IO): Generic N/A error: Not found: 7.manifest')


def test_a_version_that_is_removed_while_it_is_opened(tmp_path):
    uri = tmp_path/'people'
    fill(uri)
    with Gallery(uri) as g, Gallery(uri) as other:
        g.store._lance = Racing(g.store._lance, lambda: other.delete(pids=0))
        assert len(g) == 39
    with Gallery(uri) as g:
        g.store._lance = Racing(g.store._lance, lambda: None)
        with pytest.raises(OSError, match='Not found: 7.manifest'): len(g)


def test_only_the_writer_waits(tmp_path):
    from magnifier.files import locked
    uri = tmp_path/'people'
    fill(uri)
    with locked(uri), Gallery(uri) as g: assert len(g.search(Colours(), person(3))) == 10


def test_no_port_is_listened_on(tmp_path):
    def listening():
        return sum(Path(f'/proc/net/{kind}').read_text().count(' 0A ') for kind in ('tcp', 'tcp6'))
    before = listening()
    with Gallery(tmp_path/'people') as g:
        g.add(Colours(), people(3))
        assert listening() == before


# ---- what cannot be written, other doors

def test_a_full_disk_and_a_folder_that_is_only_read(tmp_path, monkeypatch):
    uri = tmp_path/'people'
    fill(uri)

    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(gallery_lance, '_arrow', full)
    with Gallery(uri) as g, pytest.raises(OSError, match='people: .*No space left on device'):
        g.add(Colours(), people(50))
    monkeypatch.undo()
    assert check_whole(uri) == set(range(40))
    with Gallery('/proc/people') as g, pytest.raises(OSError, match='/proc/people: cannot be written'):
        g.add(Colours(), people(2))


@pytest.mark.slow
def test_lancedb_opens_the_same_table(tmp_path):
    lancedb = pytest.importorskip('lancedb')
    fill(tmp_path/'people')
    table = lancedb.connect(str(tmp_path/'people')).open_table('people')
    assert table.count_rows() == 40
    assert table.search(vectors([7])[0]).metric('dot').limit(1).to_list()[0]['pid'] == 7


def test_the_first_search_reads_and_the_others_are_from_memory(tmp_path, monkeypatch):
    fill(tmp_path/'people')
    with Gallery(tmp_path/'people') as g:
        first = g.search(Colours(), person(5), k=40, since=3)
        assert not g.store._held
        for _ in range(2):
            again = g.search(Colours(), person(5), k=40, since=3)
            assert list(again.table['key']) == list(first.table['key'])
            np.testing.assert_allclose(again.table['similarity'], first.table['similarity'], atol=1e-6)
        assert g.store._held['vector'].vectors.shape == (40, 384)
        g.delete(pids=5)
        assert g.search(Colours(), person(5))[0].pid != 5
        monkeypatch.setattr(gallery_lance, 'IN_MEMORY', 100)
        g.store._held = {}
        for _ in range(3): assert len(g.search(Colours(), person(5), k=40)) == 39
        assert not g.store._held


@pytest.mark.slow
def test_many_small_additions_become_few_files(tmp_path):
    with Gallery(tmp_path/'people') as g:
        for i in range(40): g.add(Colours(), people(1, i), pids=[i])
        assert len(list((tmp_path/'people'/'people.lance'/'data').iterdir())) < 40
        assert len(list((tmp_path/'people'/'people.lance'/'_versions').glob('*.manifest'))) < 5
    assert check_whole(tmp_path/'people') == set(range(40))


def test_object_storage_needs_no_lock(tmp_path):
    address = f'file-object-store://{tmp_path}/people'  # the engine's own store behind the interface of S3
    with Gallery(address) as g, Gallery(address) as other:
        assert len(g) == 0
        assert g.add(Colours(), people(10), pids=range(10))[:2] == (10, 0)
        assert other.add(Colours(), people(12), pids=range(12))[:2] == (2, 10)
        assert g.search(Colours(), person(11))[0].pid == 11
        assert g.delete(pids=3) == 1
        g.compact()
        assert len(other) == 11
    assert not list(tmp_path.rglob('*.sums'))


def test_bad_files_do_not_end_a_run(tmp_path):
    good = files(tmp_path, people(4))
    os.mkfifo(tmp_path/'pipe.png')
    os.symlink('/dev/zero', tmp_path/'zero.png')
    os.symlink(tmp_path/'loop.png', tmp_path/'loop.png')
    (tmp_path/'bad.dds').write_bytes(b'DDS ' + bytes(range(124)))
    (tmp_path/'bad.avif').write_bytes(b'\0\0\0\x1cftypavif' + bytes(40))
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/\xff.png')
    shutil.copy(good[3], odd)
    bad = [tmp_path/name for name in ('pipe.png', 'zero.png', 'loop.png', 'bad.dds', 'bad.avif')]
    told = r'6 of 9 files are no readable images \(first: .*pipe.png: not a regular file'
    with Gallery(tmp_path/'people') as g, pytest.warns(UserWarning, match=told):
        added = g.add(Colours(), [*bad[:3], good[0], odd, *bad[3:], *good[1:3]], bs=2, progress=False)
        assert added.added == 3
        names = ['pipe.png', 'zero.png', 'loop.png', '\\udcff.png', 'bad.dds', 'bad.avif']
        assert added.skipped['path'].map(os.path.basename).tolist() == names
        assert len(g) == 3
