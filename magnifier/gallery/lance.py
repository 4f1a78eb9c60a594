"""A gallery in a local folder or on object storage: a LanceDB table of versioned columnar files that are never changed,
and checksums that find damage to them"""

import json
import os
import re
import time
import warnings
import zlib
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np

from magnifier.checks import needs, refuse
from magnifier.files import aside, locked
from magnifier.gallery.milvus import is_old
from magnifier.gallery.store import COLUMNS, EVERYTHING, VECTORS, Store, joined

__all__ = []

os.environ.setdefault('LANCE_LOG', 'error')  # or the engine writes its warnings between what a command says

NO_ENGINE = "a gallery needs pylance, the engine of LanceDB: pip install 'magnifier-reid[gallery]'"
ABOUT = b'magnifier'  # Key of the table's metadata that holds what the gallery stores about itself
IN_MEMORY = 1 << 31  # Bytes of vectors that are kept for repeated searches
SCANNED = 1 << 24  # Bytes of vectors that are read at once
SMALL = 1 << 23  # Bytes of vectors: a fragment of fewer is small
SMALL_MANY = 32  # Small fragments; if there are more, they are written together as fewer
LARGE = 1 << 25  # Bytes of a fragment that stays as it is
UNINDEXED = .1  # Share of the rows that an index may lack
PARTITION = 8192  # Rows of an index that share a centre, from which each is told by a few bits a dimension
REFINED = 8  # Hits of an index that are compared by their whole vectors, for each hit that is wanted
PATIENCE = 600  # Seconds to wait for another process's write
NOW = timedelta(0)
MANIFEST = re.compile(r'_versions/\d+\.manifest')
WITHOUT_SUMS = ('_transactions', 'latest_version_hint.json')  # No answer depends on them
BLOCK = 1 << 20  # Bytes that are summed at once


class LanceStore(Store):
    """A gallery as a table of Lance files: `lancedb.connect(uri).open_table(name)` opens the same.

    Writers of a local gallery take turns by a lock that ends with its process; on object storage the database detects
    conflicting commits and tries again. Readers need no lock: each sees one complete version. Files of a local gallery
    are checked by `Sums`."""

    def __init__(self, uri: str, name: str):
        self.uri = uri  # A folder, or the address of one on object storage (s3://bucket/people)
        self.local = '://' not in uri
        self.address = f'{uri.rstrip("/")}/{name}.lance'
        if self.local:
            self.folder = Path(uri).expanduser().resolve()  # the same one wherever the process goes
            _check_folder(self.folder, uri)
            self.address = str(self.folder/f'{name}.lance')
            self.sums = Sums(self.address)
        self._lance = _engine()
        self._opened = None  # The table at the newest version that was seen
        self._searched = {}  # field -> version that was searched last
        self._held = {}  # field -> `Held`: all its vectors in memory

    @property
    def about(self) -> dict:
        table = self._newest()
        if table is None: return {}
        text = (table.schema.metadata or {}).get(ABOUT)
        if text is None:
            raise ValueError(f'{self.uri} holds a table that is not a gallery of magnifier: give another `name`')
        return json.loads(text)

    @property
    def version(self):
        table = self._newest()
        return 0 if table is None else table.version

    @property
    def kind(self):
        table = self._newest()
        return None if table is None else _kind(table)

    def create(self, about):
        with self._writing() as table:
            if table is not None: return
            schema = _schema(about).with_metadata({ABOUT: json.dumps(about).encode()})
            self._lance.write_dataset(schema.empty_table(), self.address, mode='create')

    def add(self, rows):
        with self._writing() as table:
            new = _arrow(rows, table.schema)
            if not self.local:  # others may be writing, so that the engine has to tell which keys are new
                return table.merge_insert('key').when_not_matched_insert_all().execute(new)['num_inserted_rows']
            there = set(_read(table, ('key',), _in('key', rows['key']))['key'])
            if there: new = new.filter([key not in there for key in rows['key']])
            if len(new): table.insert(new)
            return len(new)

    def update(self, rows):
        with self._writing() as table:
            table.merge_insert('key').when_matched_update_all().execute(_arrow(rows, table.schema))

    def delete(self, where):
        with self._writing() as table:
            if table is None: return 0
            # by keys, since the engine writes conditions down, and a path may tell who was deleted
            keys = _read(table, ('key',), _sql(where))['key']
            if keys: table.delete(_in('key', keys))
            return len(keys)

    def count(self):
        return self._ask(lambda table: table.count_rows(), 0)

    def read(self, where=EVERYTHING, columns=COLUMNS):
        return self._ask(lambda table: _read(table, columns, _sql(where)), joined([], columns))

    def search(self, vector, k, where=EVERYTHING, *, field='vector', exact=False):
        def nearest(table):
            indexed = field == 'vector' and not exact and _kind(table) == 'ivf'
            held = None if indexed else self._in_memory(table, field)
            if held is None: return _by_engine(table, vector, k, _sql(where), field, indexed)
            return _by_product(table, held, vector, k, _sql(where))
        return self._ask(nearest, joined([], (*COLUMNS, 'similarity')))

    def _in_memory(self, table, field):
        "All vectors from the second search on, if they fit into memory; else None"
        held = self._held.get(field)
        if held is not None and held.version == table.version: return held
        again = self._searched.get(field) == table.version
        self._searched[field] = table.version
        if not again or table.count_rows() * _bytes(table, field) > IN_MEMORY: return None
        self._held = {}  # the old vectors go before the new ones come
        self._held = {field: Held(table, field)}
        return self._held[field]

    def index(self, kind):
        with self._writing() as table:
            if kind == 'ivf':
                table.create_index('vector', 'IVF_RQ', metric='dot', num_partitions=_partitions(table), replace=True)
                return
            for name in _indices(table): table.drop_index(name)

    def settle(self):
        with self._writing() as table:
            if table is None: return
            small = sum(f.count_rows() * _bytes(table, 'vector') < SMALL for f in table.get_fragments())
            if small > SMALL_MANY: _compact(table)
            if _kind(table) == 'ivf' and _unindexed(table) > UNINDEXED: table.optimize.optimize_indices()
            self._clean(table)

    def compact(self):
        with self._writing() as table:
            if table is None: return
            _compact(table, materialize_deletions_threshold=0.)  # the index loses deleted rows with it
            table.update_config({'magnifier.compacted': str(time.time())})  # a version whose writing tells of nobody
            self._clean(table)

    def _clean(self, table):
        "Removes old versions and, if no other process can be writing, what killed writers left"
        table.cleanup_old_versions(older_than=NOW, delete_unverified=self.local, error_if_tagged_old_versions=False)
        if self.local: self.sums.forget_removed()

    def close(self):
        self._opened = None
        self._held = {}

    def _newest(self):
        "The newest version of the table, or None if nothing was added yet"
        if self.local: self.sums.check()
        with self._plain_errors():
            if self._opened is None or self._opened.latest_version != self._opened.version: self._opened = self._open()
            return self._opened

    def _open(self):
        if self.local: return self._open_folder()
        try: return self._lance.dataset(self.address)
        except ValueError: return None  # that is how the engine says that there is none

    def _open_folder(self):
        "Once more if another process removes the version that the engine has found before it is read"
        versions = Path(self.address)/'_versions'
        while versions.is_dir():
            before = set(os.listdir(versions))
            try: return self._lance.dataset(self.address)
            except (OSError, ValueError):
                if set(os.listdir(versions)) == before: raise
        return None

    def _ask(self, read, otherwise):
        "The result of `read` on the newest version; if another process removes that version meanwhile, on the next one"
        while True:
            table = self._newest()
            if table is None: return otherwise
            try:
                with self._plain_errors(): return read(table)
            except OSError:
                if table.latest_version == table.version: raise

    @contextmanager
    def _writing(self):
        "The table, locked for writing if it is local; None if nothing was added yet"
        if not self.local:
            with self._plain_errors(): yield self._open()
            return
        with _alone(self.folder, self.uri):
            self.sums.check()
            with self._plain_errors(): yield self._open()
            self.sums.record()

    @contextmanager
    def _plain_errors(self):
        "Turns errors of the database into one sentence"
        try: yield
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            said = re.sub(r', \S+\.rs:\d+:\d+', '', str(error)).splitlines()[0]
            raise OSError(f'{self.uri}: {said}') from error


def _engine():
    with needs(NO_ENGINE): import lance
    # The engine warns at every fork. Loaders' processes are forks, and they never touch a gallery
    warnings.filterwarnings('ignore', message='lance is not fork-safe', category=UserWarning)
    return lance


def _check_folder(folder, uri):
    there = sorted(f.name for f in folder.iterdir() if f.name != '.lock') if folder.is_dir() else []
    others = bool(there) and not any(name.endswith('.lance') for name in there)
    refuse({
        f'{uri} is a file; a local gallery is a folder: give another name': folder.is_file(),
        f'{uri} is a gallery of an earlier version: copy it with `magnifier_index --from {uri} --gallery NEW`, or add '
        'its images again': is_old(folder),
        f'{uri} is a folder of other files ({"".join(there[:1])} among them), not a gallery: give another name': others,
    })


@contextmanager
def _alone(folder, uri):
    "Waits for the lock for writing"
    until = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(folder))
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                    raise OSError(f'{uri}: cannot be written ({error.strerror or error})') from error
                time.sleep(.02)
        yield


# Tables: their columns in Arrow's form, their index, their fragments

def _schema(about):
    import pyarrow as pa
    fields = [
        pa.field('key', pa.string(), nullable=False),
        pa.field('path', pa.string()),
        pa.field('also', pa.list_(pa.string())),
        pa.field('pid', pa.int64()),
        pa.field('camid', pa.int64()),
        pa.field('time', pa.float64()),
        pa.field('tracklet', pa.string()),
        pa.field('visibility', pa.float32()),
        pa.field('vector', pa.list_(pa.float32(), about['d'])),
    ]
    if about['regions']:
        fields += [pa.field('regions', pa.list_(pa.float32(), about['regions'])), pa.field('visible', pa.int64())]
    return pa.schema(fields)


def _arrow(rows, schema):
    "Columns as an Arrow table"
    import pyarrow as pa
    def column(name):
        field = schema.field(name)
        if name not in VECTORS: return pa.array(rows[name], field.type)
        numbers = pa.array(np.ascontiguousarray(rows[name], np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(numbers, type=field.type)
    names = [name for name in schema.names if name in rows]
    return pa.table([column(name) for name in names], schema=pa.schema([schema.field(name) for name in names]))


def _values(column, name):
    "A column as a list; vectors as an (n, d) array, row ids as an (n,) array"
    if name == '_rowid': return column.to_numpy()
    if name not in VECTORS: return column.to_pylist()
    if hasattr(column, 'combine_chunks'): column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _read(table, names, condition):
    "Columns of the rows that meet a condition, '_rowid' among them if it is named"
    stored = [name for name in names if name != '_rowid']
    found = table.to_table(columns=stored, filter=condition, with_row_id='_rowid' in names)
    return {name: _values(found[name], name) for name in names}


def _bytes(table, field): return 4 * table.schema.field(field).type.list_size


def _rows_at_once(table, field): return max(64, SCANNED // max(_bytes(table, field), 1024))


def _indices(table): return [i.name for i in table.describe_indices() if 'vector' in i.field_names]


def _kind(table): return 'ivf' if _indices(table) else 'exact'


def _partitions(table): return table.count_rows() // PARTITION + 1


def _unindexed(table):
    told = table.stats.index_stats(_indices(table)[0])
    return told['num_unindexed_rows'] / max(1, told['num_unindexed_rows'] + told['num_indexed_rows'])


def _compact(table, **kwargs):
    rows = max(1024, LARGE // _bytes(table, 'vector'))
    at_once = _rows_at_once(table, 'vector')
    table.optimize.compact_files(target_rows_per_fragment=rows, num_threads=1, batch_size=at_once, **kwargs)


# Searching: by the database, or by the product with all vectors in memory

class Held:
    "The vectors of one version of a table in memory"

    def __init__(self, table, field):
        self.version = table.version
        n, d = table.count_rows(), table.schema.field(field).type.list_size
        self.ids = np.empty(n, np.uint64)  # Of the rows
        self.vectors = np.empty((n, d), np.float32)
        self._last = None  # The last query and its products
        at = 0
        for batch in table.to_batches(columns=[field], with_row_id=True, batch_size=_rows_at_once(table, field)):
            end = at + len(batch)
            self.ids[at:end] = _values(batch.column('_rowid'), '_rowid')
            self.vectors[at:end] = _values(batch.column(field), field)
            at = end

    def products(self, query):
        "(n,) inner products with a query, kept because a search by regions asks for the same ones several times"
        if self._last is None or not np.array_equal(self._last[0], query):
            self._last = query.copy(), self.vectors @ query
        return self._last[1]


def _by_product(table, held, vector, k, condition):
    "Nearest rows by the product with all vectors"
    ids, similarity = held.ids, held.products(vector)
    if condition is not None:
        allowed = _read(table, ('_rowid',), condition)['_rowid']
        rows = np.flatnonzero(np.isin(ids, allowed, assume_unique=True))
        ids, similarity = ids[rows], similarity[rows]
    if len(ids) > k:
        best = np.argpartition(-similarity, k - 1)[:k]
        ids, similarity = ids[best], similarity[best]
    order = np.argsort(-similarity, kind='stable')
    return {**_rows_by_id(table, ids[order].tolist()), 'similarity': similarity[order].tolist()}


def _rows_by_id(table, ids):
    "Columns of some rows, in the order of their ids"
    if not ids: return joined([], COLUMNS)
    found = _read(table, ('_rowid', *COLUMNS), _in('_rowid', ids))
    place = {row: i for i, row in enumerate(found['_rowid'].tolist())}
    return {name: [found[name][place[row]] for row in ids] for name in COLUMNS}


def _by_engine(table, vector, k, condition, field, indexed):
    """Nearest rows as the database finds them. With an index: by a few bits per dimension of every row, then by the
    whole vectors of the best. Without one: by the vectors of all rows"""
    nearest = dict(column=field, q=vector, k=k, metric='dot', use_index=indexed)
    if indexed: nearest |= dict(nprobes=2*_partitions(table), refine_factor=REFINED)
    found = table.to_table(columns=[*COLUMNS, '_distance'], nearest=nearest, filter=condition, prefilter=True)
    rows = {name: _values(found[name], name) for name in COLUMNS}
    return {**rows, 'similarity': (1 - found['_distance'].to_numpy()).tolist()}


def _sql(where): return where.expression(_in, _has_any) or None


def _in(column, values): return f'{column} in ({_listed(values)})' if values else 'false'


def _has_any(column, values): return f'array_has_any({column}, [{_listed(values)}])'


def _listed(values):
    texts = ["'" + v.replace("'", "''") + "'" if isinstance(v, str) else repr(v) for v in values]
    return ', '.join(texts)


# Damage

class Sums:
    """Checksums of the files of a Lance table, in a text file beside it. The files of such a table never change once
    they are written, so each process checks each of them once, before its first answer.

    This finds shortened files, changed bytes or blocks, and a missing newest version. (The database finds a missing
    data file.) It does not find words of eight bytes that changed places within one megabyte, damage to a file before
    its checksum was computed, or the loss of the checksums themselves."""

    def __init__(self, table):
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

    def _check_newest(self, sums):
        "Versions are numbered downwards, so the newest has the smallest number"
        told = [name for name in sums if MANIFEST.fullmatch(name)]
        if not told: return
        there = [name for name in self._files() if MANIFEST.fullmatch(name)]
        if not there or min(there) > min(told):
            raise OSError(f'{self.table} lacks its newest version: restore it from a copy, or make the gallery again')

    def record(self):
        "Adds the checksums of new files; only the process with the lock for writing calls this"
        known = self._read()
        new = {name: file_sum(self.table/name) for name in self._files() if name not in known}
        self._checked |= new
        with open(self.file, 'a', encoding='utf-8') as f: f.write('\n' + _lines(new))  # ends what a kill cut short

    def forget_removed(self):
        "Drops the checksums of removed files; only the process with the lock for writing calls this"
        known = self._read()
        kept = {name: known[name] for name in self._files() if name in known}
        with aside(self.file) as part: part.write_text(_lines(kept), encoding='utf-8')

    def _read(self):
        "name -> (sum, size); an incomplete last line, after a kill, is skipped"
        try: text = self.file.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError: return {}
        lines = [line.split(' ', 2) for line in text.split('\n')[:-1]]
        return {line[2]: (line[0], line[1]) for line in lines if len(line) == 3}

    def _files(self):
        for folder, folders, files in os.walk(self.table):
            folders[:] = [f for f in folders if f not in WITHOUT_SUMS]
            for file in files:
                if file not in WITHOUT_SUMS: yield (Path(folder)/file).relative_to(self.table).as_posix()


def file_sum(file):
    "CRC-32 of the sums of each megabyte's words, and the size, both as text: as quick as reading"
    crc = 0
    size = 0
    block = np.zeros(BLOCK // 8, np.uint64)
    with open(file, 'rb', buffering=0) as f:
        while read := f.readinto(block):
            block.view(np.uint8)[read:] = 0
            crc = zlib.crc32(block.sum().tobytes(), crc)
            size += read
    return f'{crc:08x}', str(size)


def _lines(sums): return ''.join(f'{crc} {size} {name}\n' for name, (crc, size) in sums.items())
