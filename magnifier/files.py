"Files that are there whole or not at all"
import os
from contextlib import contextmanager
from pathlib import Path

__all__ = ['aside']


@contextmanager
def aside(
    file,  # What is to be written; its folder is made
    *,
    synced: bool = True,  # Wait for the disk, so that a power cut cannot leave the name on old blocks; False for thousands of small files
):  # Path to write to, hidden, in the same folder and this process's own
    """A file beside `file` that takes its place once it is whole and on the disk; where writing fails or is killed, `file` stays as it
    was. An OSError that names `file` where it cannot be written"""
    file = Path(file)
    part = file.with_name(f'.{file.name}-{os.getpid()}.part')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if synced:
                with open(part, 'rb+') as f: os.fsync(f.fileno())
            os.replace(part, file)
        finally: part.unlink(missing_ok=True)
    except OSError as e: raise OSError(f'cannot write {file}: {e.strerror or e}; make room or name another folder') from e
