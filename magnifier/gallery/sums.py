"Checksums that find damage to a gallery's files before a search uses them"

import os
import re
import zlib
from pathlib import Path

import numpy as np

from magnifier.files import aside

__all__ = ['Sums', 'file_sum']

MANIFEST = re.compile(r'_versions/\d+\.manifest')
BLOCK = 1 << 20  # Bytes that are summed at once
PASSING = ('_transactions', 'latest_version_hint.json')  # What no answer depends on


class Sums:
    """Checksums of the files of a Lance table, in a text file beside it. The files of such a table never change once
    they are written, so each process checks each of them once, before its first answer.

    This finds shortened files, changed bytes or blocks, and a missing newest version. (The database finds a missing
    data file.) It does not find words of eight bytes that changed places within one megabyte, damage to a file before
    its checksum was computed, or the loss of the checksums themselves."""

    def __init__(self,
        table: str | Path,  # Folder of the table
    ):
        self.table = Path(table)
        self.file = self.table.with_suffix('.sums')
        self._checked = {}  # name -> (sum, size), of files found whole

    def check(self):
        "An OSError that names a damaged file"
        sums = self._read()
        self._check_newest(sums)
        for name, told in sums.items():
            if self._checked.get(name) == told: continue
            try: seen = file_sum(self.table/name)
            except FileNotFoundError: continue  # of an old version; the engine says if it is needed
            if seen != told:
                raise OSError(f'{self.table/name} is damaged: restore it from a copy, or make the gallery again')
            self._checked[name] = told

    def record(self):
        "Adds the checksums of new files; only the process with the lock for writing calls this"
        known = self._read()
        new = {name: file_sum(self.table/name) for name in self._files() if name not in known}
        self._checked |= new
        lines = ''.join(_line(name, told) for name, told in new.items())
        with open(self.file, 'a', encoding='utf-8') as f: f.write('\n' + lines)  # whatever a kill cut short ends here

    def forget_removed(self):
        "Drops the checksums of removed files; only the process with the lock for writing calls this"
        there, known = set(self._files()), self._read()
        with aside(self.file) as part:
            lines = [_line(name, told) for name, told in known.items() if name in there]
            part.write_text(''.join(lines), encoding='utf-8')

    def _read(self):
        "name -> (sum, size); an incomplete last line, after a kill, is skipped"
        try: text = self.file.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError: return {}
        lines = [line.split(' ', 2) for line in text.split('\n')[:-1]]
        return {name: (crc, size) for crc, size, name in (line for line in lines if len(line) == 3)}

    def _files(self):
        for folder, folders, files in os.walk(self.table):
            folders[:] = [f for f in folders if f not in PASSING]
            for file in files:
                if file not in PASSING: yield (Path(folder)/file).relative_to(self.table).as_posix()

    def _check_newest(self, sums):
        "Versions are numbered downwards, so the newest has the smallest number"
        told = _newest(sums)
        if told is None: return
        there = _newest(self._files())
        if there is None or there > told:
            raise OSError(f'{self.table} lacks its newest version: restore it from a copy, or make the gallery again')


def file_sum(
    file,  # Path
) -> tuple[str, str]:  # Checksum and size
    "CRC-32 of the sums of each megabyte's words: as quick as reading"
    crc = 0
    size = 0
    block = np.zeros(BLOCK // 8, np.uint64)
    with open(file, 'rb', buffering=0) as f:
        while read := f.readinto(block):
            block.view(np.uint8)[read:] = 0
            crc = zlib.crc32(block.sum().tobytes(), crc)
            size += read
    return f'{crc:08x}', str(size)


def _newest(names): return min((name for name in names if MANIFEST.fullmatch(name)), default=None)


def _line(name, told): return f'{told[0]} {told[1]} {name}\n'
