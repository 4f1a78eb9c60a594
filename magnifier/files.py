"Files and folders that appear only when they are complete, and locks that reserve a folder for one process"

import errno
import glob
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

try: import fcntl
except ImportError: import msvcrt

__all__ = ['aside', 'aside_folder', 'clear_leftovers', 'locked', 'fastai_folder']

WINDOWS = os.name == 'nt'
FAR = 1 << 40  # The byte that is locked on Windows, where nobody reads a locked byte: beyond the end of any file
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Errors of a file system without locks
FILLED = (errno.ENOTEMPTY, errno.EEXIST)  # Errors of a rename to a folder that is not empty

_held = set()  # Open files whose locks are ours


@contextmanager
def aside(
    file,  # What is to be written; its folder is made
    *,
    synced: bool = True,  # Wait for the disk, so that a power cut loses nothing; False for thousands of small files
):  # Path to write to, hidden, in the same folder and of this call alone
    """A temporary file beside `file` that replaces it when the block ends; if writing fails or is killed, `file` stays
    as it was. An OSError names a `file` that cannot be written"""
    file = Path(file)
    part = _part_of(file)
    with _named(file, part):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _new_lock(part)
    try:
        with _named(file, part):
            yield part
            if synced:
                with open(part, 'rb+') as f: os.fsync(f.fileno())
            if WINDOWS: _release(lock)  # an open file cannot be renamed there
            os.replace(part, file)
    finally: _drop(lock, part)


@contextmanager
def aside_folder(
    folder,  # What is to be filled; its parent is made
    *,
    exist_ok: bool = False,  # The files join a folder that is there, and replace those of their names one by one
):  # Path to an empty hidden folder, beside `folder` and of this call alone
    """A temporary folder that replaces `folder` when the block ends; if the block fails or is killed, nothing changes.
    What killed processes left beside `folder` is removed. A FileExistsError if `folder` is not empty; an OSError names
    a `folder` that cannot be written"""
    folder = Path(folder)
    part = _part_of(folder)
    whole = part/'whole'
    if not exist_ok: _refuse_filled(folder)
    with _named(folder, part):
        whole.mkdir(parents=True)
        lock = _new_lock(part/'lock')
    try:
        clear_leftovers(folder.parent, folder.name)
        with _named(folder, part):
            yield whole
            _settle(whole, folder, exist_ok)
    finally: _drop(lock, part)


def clear_leftovers(
    folder,  # Where to look; it need not be there
    name: str = None,  # Of the file or folder that was written; None for all
):
    "Removes what killed processes left of `aside` and `aside_folder`; what a running process is writing stays"
    for part in Path(folder).glob(f'.{"*" if name is None else glob.escape(name)}-*.part'):
        lock_file = part/'lock' if part.is_dir() else part
        with suppress(FileNotFoundError):  # another process clears as well
            lock = _take_lock(lock_file, unsupported=False) if lock_file.exists() else None
            if lock: _drop(lock, part)


@contextmanager
def locked(
    folder,  # Made where it is not there
):
    """Reserves `folder` for this process until the block or the process ends. A BlockingIOError if another process, or
    another thread of this one, has reserved it"""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder/'.lock'
    lock = _take_lock(file, unsupported=True)
    if not lock:
        raise BlockingIOError(f'{folder}: another process is using this folder. Wait until it ends, or name another '
                              'folder')
    try: yield
    finally: _drop(lock, file)


def fastai_folder(
    name: str,  # Such as 'data'
) -> Path:
    "The folder of this name among fastai's own: in `FASTAI_HOME`, or in ~/.fastai"
    return Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser()/name


def _part_of(path): return path.with_name(f'.{path.name}-{secrets.randbelow(10**9)}.part')


def _refuse_filled(folder):
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f'{folder} exists and is not empty: name another folder, or remove it')


def _settle(whole, folder, exist_ok):
    "Moves a filled folder to its place, or its files into the existing folder"
    if exist_ok and folder.is_dir():
        for file in sorted(whole.iterdir()): os.replace(file, folder/file.name)
        return
    try:
        if folder.is_dir(): folder.rmdir()
        os.rename(whole, folder)
    except OSError as error:
        if error.errno not in FILLED: raise
        _refuse_filled(folder)  # another process was first
        raise


@contextmanager
def _named(path, part):
    "Errors of writing `part` become an OSError that names `path`; errors about other files are not changed"
    try: yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else _refusal(part)
        if cause is None or not _concerns(cause, part): raise
        raise OSError(f'cannot write {path}: {cause.strerror}; make room or name another folder') from error


def _refusal(part):
    "The disk's error on writing one more megabyte, or None: torch raises no specific error for a full disk"
    if not part.is_file(): return None
    try:
        with open(part, 'ab') as f: f.write(bytes(1 << 20))
    except OSError as error: return error


def _concerns(error, part):
    "Whether this system error is about `part`, something in it, or a folder above it"
    if error.strerror is None: return False
    if not isinstance(error.filename, (str, os.PathLike)): return True
    there, here = Path(os.path.abspath(error.filename)), Path(os.path.abspath(part))
    return there.is_relative_to(here) or here.is_relative_to(there)


def _new_lock(file):
    "The lock of a new file; tries again if another process removes the file as a leftover before it is locked"
    lock = None
    while not lock: lock = _take_lock(file, unsupported=True)
    return lock


def _take_lock(file, unsupported):
    """An open file that holds the lock of `file`, or None if another process holds it. `unsupported` says whether this
    succeeds on a file system without locks"""
    handle = open(file, 'ab', buffering=0)
    if _lock(handle, unsupported) and _is_at(file, handle):
        _held.add(handle)
        return handle
    handle.close()
    return None


def _lock(handle, unsupported):
    try:
        if WINDOWS:
            os.lseek(handle.fileno(), FAR, os.SEEK_SET)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError): return False
    except OSError as error:
        if error.errno not in NO_LOCKS: raise
        return unsupported
    return True


def _is_at(file, handle):
    "Whether `file` is still the opened file: its last owner may have removed it in between"
    try: return os.path.samestat(os.stat(file), os.fstat(handle.fileno()))
    except FileNotFoundError: return False


def _release(lock):
    _held.discard(lock)
    lock.close()


def _drop(lock, path):
    """Removes `path`, file or folder, and then releases its lock: in this order, so that nobody takes the lock of a
    removed file"""
    if WINDOWS: _release(lock)  # an open file cannot be removed there
    if path.is_dir(): shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(PermissionError): path.unlink(missing_ok=True)  # Windows: another has just opened it
    _release(lock)


def _release_all():
    for lock in tuple(_held): _release(lock)


# A child shares the locks of its parent and would keep them after the parent's death
if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=_release_all)
