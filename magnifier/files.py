"Files that are there whole or not at all"
import os
from contextlib import contextmanager
from pathlib import Path

__all__ = ['aside', 'clear_leftovers']


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
    except (OSError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'inline_container' not in str(e): raise  # that is how torch says that a disk is full
        why = getattr(e, 'strerror', None) or str(e).splitlines()[0]
        raise OSError(f'cannot write {file}: {why}; make room or name another folder') from e


def clear_leftovers(
    folder,  # Where nobody else writes now; it need not be there
):
    "Removes what `aside` left in a folder when its process was killed"
    for left in Path(folder).glob('.*.part'): left.unlink(missing_ok=True)
