"Files and folders are written whole or not at all, and a folder is kept by one process at a time"
import errno
import multiprocessing as mp
import os
import resource
import signal

import pytest
import torch
from magnifier import files
from magnifier.files import aside, aside_folder, clear_leftovers, locked

FULL = OSError(errno.ENOSPC, 'No space left on device')
forked = mp.get_context('fork')


def names(folder): return sorted(f.name for f in folder.iterdir())


def raising(error):
    def call(*args, **kwargs): raise error
    return call


def write_and_hang(kind, path, ready):
    with dict(file=aside, folder=aside_folder)[kind](path) as part:
        (part/'one' if kind == 'folder' else part).write_text('half')
        ready.set()
        signal.pause()


def keep_and_hang(folder, ready):
    with locked(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def start():
    "Starts a process that says when it has come so far, and is killed at the latest when the test ends"
    begun = []
    def start(target, *args):
        ready = forked.Event()
        process = forked.Process(target=target, args=(*args, ready))
        begun.append(process)
        process.start()
        assert ready.wait(20)
        return process
    yield start
    for process in begun: kill(process)


def kill(process):
    process.kill()
    process.join()


# Files

def test_aside_replaces_once_it_is_whole(tmp_path):
    file = tmp_path/'new/a.txt'
    with aside(file) as part:
        part.write_text('one')
        assert not file.exists()
    assert file.read_text() == 'one'
    with pytest.raises(KeyError), aside(file) as part:
        part.write_text('two')
        raise KeyError
    assert file.read_text() == 'one'
    assert names(file.parent) == ['a.txt']


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with aside(tmp_path/'a.txt') as first, aside(tmp_path/'a.txt') as second:
        first.write_text('first')
        second.write_text('second')
    assert (tmp_path/'a.txt').read_text() == 'first', 'the last to end'
    assert names(tmp_path) == ['a.txt']


def test_what_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', raising(FULL))
    with pytest.raises(OSError,
                       match='cannot write .*a.txt: No space left on device; make room or name another folder'):
        with aside(tmp_path/'a.txt') as part: part.write_text('one')
    assert names(tmp_path) == []


def test_a_full_disk_is_told_where_torch_has_no_error_for_it(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match='cannot write .*a.pth: File too large; make room'):
            with aside(tmp_path/'a.pth') as part: torch.save(torch.zeros(100_000), part)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_errors_of_other_things_pass(tmp_path):
    with pytest.raises(RuntimeError, match='shapes'), aside(tmp_path/'a.txt'):
        raise RuntimeError('inline_container: shapes differ')
    with pytest.raises(FileNotFoundError, match='elsewhere'), aside(tmp_path/'a.txt'):
        (tmp_path/'elsewhere').read_text()
    assert names(tmp_path) == []


def test_a_name_that_cannot_be_a_file_is_refused_before_anything_is_made(tmp_path):
    (tmp_path/'a').write_text('a file')
    with pytest.raises(OSError, match='cannot write .*a/b.txt: .*name another folder'), aside(tmp_path/'a'/'b.txt'):
        pytest.fail('nothing to write to')
    with pytest.raises(OSError, match='cannot write .*a/b/c/d.txt'), aside(tmp_path/'a/b/c/d.txt'):
        pytest.fail('nothing to write to')
    with pytest.raises(OSError, match='cannot write'), aside(tmp_path) as part: part.write_text('one')
    assert names(tmp_path) == ['a']


@pytest.mark.parametrize('synced', [True, False])
def test_the_disk_is_waited_for_where_that_is_asked(tmp_path, monkeypatch, synced):
    waited = []
    monkeypatch.setattr(os, 'fsync', waited.append)
    with aside(tmp_path/'a.txt', synced=synced) as part: part.write_text('one')
    assert len(waited) == synced


# Folders

def test_aside_folder_is_there_once_it_is_filled(tmp_path):
    folder = tmp_path/'new/set'
    with aside_folder(folder) as part:
        (part/'deep').mkdir()
        (part/'deep/a.txt').write_text('one')
        assert not folder.exists()
        assert part.name not in os.listdir(tmp_path/'new')
        assert all(n.startswith('.') for n in os.listdir(tmp_path/'new'))
    assert (folder/'deep/a.txt').read_text() == 'one'
    assert names(folder.parent) == ['set']
    assert folder.stat().st_mode == folder.parent.stat().st_mode, 'not the owner\'s alone'


def test_a_folder_that_failed_is_not_there(tmp_path):
    with pytest.raises(KeyError), aside_folder(tmp_path/'set') as part:
        (part/'a.txt').write_text('one')
        raise KeyError
    assert names(tmp_path) == []


@pytest.mark.parametrize('holds', ['files', 'a file'])
def test_a_folder_that_holds_something_is_refused_at_once(tmp_path, holds):
    if holds == 'files':
        (tmp_path/'set').mkdir()
        (tmp_path/'set/mine.txt').write_text('mine')
    else: (tmp_path/'set').write_text('mine')
    with pytest.raises(FileExistsError, match='set exists and is not empty: name another folder'):
        with aside_folder(tmp_path/'set'): pytest.fail('hours of work for nothing')
    assert names(tmp_path) == ['set']


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path/'set').mkdir()
    with aside_folder(tmp_path/'set') as part: (part/'a.txt').write_text('one')
    assert names(tmp_path/'set') == ['a.txt']


def test_of_two_that_fill_a_folder_the_first_wins(tmp_path):
    with pytest.raises(FileExistsError, match='set exists and is not empty'), aside_folder(tmp_path/'set') as slow:
        (slow/'slow.txt').write_text('one')
        with aside_folder(tmp_path/'set') as quick: (quick/'quick.txt').write_text('two')
    assert names(tmp_path/'set') == ['quick.txt']
    assert names(tmp_path) == ['set']


def test_files_join_a_folder_where_that_is_allowed(tmp_path):
    for text in ('one', 'two'):
        with aside_folder(tmp_path/'set', exist_ok=True) as part:
            (part/'a.txt').write_text(text)
            (part/'b.txt').write_text(text)
        (tmp_path/'set/mine.txt').touch()
    assert (tmp_path/'set/a.txt').read_text() == 'two'
    assert names(tmp_path/'set') == ['a.txt', 'b.txt', 'mine.txt']
    assert names(tmp_path) == ['set']


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path/'a').write_text('a file')
    with pytest.raises(OSError, match='cannot write .*a/set: '), aside_folder(tmp_path/'a/set'):
        pytest.fail('nothing to write to')
    monkeypatch.setattr(os, 'rename', raising(FULL))
    with pytest.raises(OSError,
                       match='cannot write .*set: No space left on device; make room'), aside_folder(tmp_path/'set'):
        pass
    assert names(tmp_path) == ['a']


# What killed processes left

@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path, start, kind):
    process = start(write_and_hang, kind, tmp_path/'a')
    clear_leftovers(tmp_path)
    assert len(names(tmp_path)) == 1, 'still at work'
    kill(process)
    assert len(names(tmp_path)) == 1, 'killed while writing'
    clear_leftovers(tmp_path, 'b')
    assert len(names(tmp_path)) == 1, 'not asked for'
    clear_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_new_folder_removes_what_was_left_of_an_old_one(tmp_path, start):
    kill(start(write_and_hang, 'folder', tmp_path/'a[1]'))
    working = start(write_and_hang, 'folder', tmp_path/'a[1]')
    with aside_folder(tmp_path/'a[1]') as part: (part/'one').write_text('whole')
    assert len(names(tmp_path)) == 2
    kill(working)
    clear_leftovers(tmp_path, 'a[1]')
    assert names(tmp_path) == ['a[1]']


def test_clearing_knows_a_writer_of_the_same_process(tmp_path):
    with aside(tmp_path/'a') as file, aside_folder(tmp_path/'b') as folder:
        file.write_text('one')
        clear_leftovers(tmp_path)
        assert file.exists()
        assert folder.exists()


def test_clearing_needs_no_folder(tmp_path): clear_leftovers(tmp_path/'none')


# One process at a time

def test_a_folder_is_kept_by_one_and_free_afterwards(tmp_path):
    with locked(tmp_path/'run'):
        with pytest.raises(BlockingIOError, match='run: another process is using this folder. Wait until it ends'):
            with locked(tmp_path/'run'): pytest.fail('two in one folder')
    assert names(tmp_path/'run') == []
    with pytest.raises(KeyError), locked(tmp_path/'run'): raise KeyError
    with locked(tmp_path/'run'): assert names(tmp_path/'run') == ['.lock']


def test_a_lock_dies_with_its_process(tmp_path, start):
    process = start(keep_and_hang, tmp_path)
    with pytest.raises(BlockingIOError), locked(tmp_path): pytest.fail('two in one folder')
    kill(process)
    with locked(tmp_path): pass
    assert names(tmp_path) == []


def keep_and_leave_a_child(folder, ready):
    "As a training with loader workers, which live on for seconds after it was killed"
    with locked(folder):
        child = forked.Process(target=signal.pause)
        child.start()
        (folder/'child').write_text(str(child.pid))
        ready.set()
        signal.pause()


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path, start):
    process = start(keep_and_leave_a_child, tmp_path)
    with pytest.raises(BlockingIOError), locked(tmp_path): pytest.fail('two in one folder')
    kill(process)
    child = int((tmp_path/'child').read_text())
    os.kill(child, 0)  # is alive
    try:
        with locked(tmp_path): pass
    finally: os.kill(child, signal.SIGKILL)


def test_without_locks_of_the_file_system_work_goes_on_and_nothing_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, 'flock', raising(OSError(errno.ENOLCK, 'No locks available')))
    (tmp_path/'.old-1.part').touch()
    with locked(tmp_path), aside(tmp_path/'a') as part: part.write_text('one')
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ['.old-1.part', 'a']
