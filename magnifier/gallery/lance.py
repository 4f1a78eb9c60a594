"A gallery in a local folder or on object storage: a LanceDB table of versioned columnar files that are never changed"

import json
import os
import re
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np

from magnifier.checks import needs, refuse
from magnifier.files import locked
from magnifier.gallery.milvus import is_old
from magnifier.gallery.store import COLUMNS, EVERYTHING, VECTORS, Store, joined
from magnifier.gallery.sums import Sums

__all__ = ['LanceStore']

os.environ.setdefault('LANCE_LOG', 'error')  # or the engine writes its warnings between what a command says

NO_ENGINE = "a gallery needs pylance, the engine of LanceDB: pip install 'magnifier-reid[gallery]'"
ABOUT = b'magnifier'  # What a table remembers of itself
IN_MEMORY = 1 << 31  # Bytes of vectors that are kept for repeated searches
SCANNED = 1 << 24  # Bytes of vectors that are read at once
SMALL, SMALL_MANY = 1 << 23, 32  # So many fragments of fewer bytes are written together as fewer
LARGE = 1 << 25  # Bytes of a fragment that stays as it is
UNINDEXED = .1  # Share of the rows that an index may lack
PARTITION = 8192  # Rows of an index that share a centre, from which a few bits a dimension tell them
REFINED = 8  # Hits of an index that are compared by their whole vectors, for each hit that is wanted
PATIENCE = 600  # Seconds to wait for another process's write
NOW = timedelta(0)


class Held:
    "The vectors of one version in memory, and their inner products with the last query"

    def __init__(self,
        version: int,  # Of the table
        ids: np.ndarray,  # (n,) of its rows
        vectors: np.ndarray,  # (n, d) float32
    ):
        self.version = version
        self.ids = ids
        self.vectors = vectors
        self._last = None

    def products(self,
        query: np.ndarray,  # (d,) float32
    ) -> np.ndarray:  # (n,)
        "Inner products with all vectors, kept because a search by regions uses the same ones several times"
        last = self._last
        if last is None or not np.array_equal(last[0], query): self._last = last = query.copy(), self.vectors @ query
        return last[1]


class LanceStore(Store):
    """A gallery as a table of Lance files: `lancedb.connect(uri).open_table(name)` opens the same.

    Writers of a local gallery take turns by a lock that ends with its process; on object storage the database detects
    conflicting commits and tries again. Readers need no lock: each sees one complete version. Files of a local gallery
    are checked by `Sums`."""

    def __init__(self,
        uri: str,  # A folder, or the address of one on object storage (s3://bucket/people)
        name: str,  # Of the table
    ):
        self.uri, self.local = uri, '://' not in uri
        self.folder = Path(uri).expanduser().resolve() if self.local else None  # wherever the process goes
        self.address = str(self.folder/f'{name}.lance') if self.local else f'{uri.rstrip("/")}/{name}.lance'
        if self.local: _check_folder(self.folder, uri)
        self.sums = Sums(self.address) if self.local else None
        self._lance = _engine()
        self._opened = None  # The table at the newest version that was seen
        self._asked, self._held = {}, {}  # field -> version searched last, and vectors in memory

    @property
    def about(self) -> dict:
        table = self._newest()
        text = None if table is None else (table.schema.metadata or {}).get(ABOUT, b'')
        if text == b'':
            raise ValueError(f'{self.uri} holds a table that is not a gallery of magnifier: give another `name`')
        return {} if text is None else json.loads(text)

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
            if not self.local:  # nobody waits for us, so that the engine has to tell which keys are new
                told = _merge(table).when_not_matched_insert_all().execute(_arrow(rows, table.schema))
                return told['num_inserted_rows']
            new = _arrow(rows, table.schema)
            there = set(_column(table, 'key', _sql_in('key', rows['key'])))
            if there: new = new.filter([key not in there for key in rows['key']])
            if len(new): table.insert(new)
            return len(new)

    def update(self, rows):
        with self._writing() as table: _merge(table).when_matched_update_all().execute(_arrow(rows, table.schema))

    def delete(self, where):
        with self._writing() as table:
            # by keys, since the engine writes conditions down, and a path may tell who was deleted
            keys = [] if table is None else _column(table, 'key', _sql(where))
            if keys: table.delete(_sql_in('key', keys))
            return len(keys)

    def count(self):
        return self._ask(lambda table: table.count_rows(), 0)

    def scan(self, where=EVERYTHING, columns=COLUMNS):
        table = self._newest()
        if table is None: return
        with self._plain_errors():
            at_once = _scanned(table, columns)
            for batch in table.to_batches(columns=list(columns), filter=_sql(where), batch_size=at_once):
                yield {name: _values(batch.column(name), name) for name in columns}

    def read(self, where=EVERYTHING, columns=COLUMNS):
        def all_rows(table):
            return {name: _values(column, name) for name, column in _read(table, columns, _sql(where)).items()}
        return self._ask(all_rows, joined([], columns))

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
        first, fits = self._asked.get(field) != table.version, table.count_rows() * _bytes(table, field) <= IN_MEMORY
        self._asked[field] = table.version
        if first or not fits: return None
        self._held = {}  # one at a time
        self._held = {field: _loaded(table, field)}
        return self._held[field]

    def index(self, kind):
        with self._writing() as table:
            if kind == 'exact': _drop_index(table)
            else: _build_index(table)

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
        self._opened, self._held = None, {}

    def _newest(self):
        "The newest version of the table, or None if nothing was added yet"
        if self.local: self.sums.check()
        with self._plain_errors():
            if self._opened is not None and self._opened.latest_version == self._opened.version: return self._opened
            self._opened = self._open()
            return self._opened

    def _open(self):
        if self.local and not (Path(self.address)/'_versions').is_dir(): return None
        if self.local: return self._lance.dataset(self.address)
        try: return self._lance.dataset(self.address)
        except ValueError: return None  # that is how the engine says that there is none

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
    while True:
        turn = locked(folder)
        try: turn.__enter__()
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                raise OSError(f'{uri}: cannot be written ({error.strerror or error})') from error
            time.sleep(.02)
        else: break
    try: yield
    finally: turn.__exit__(None, None, None)


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
    "A column as a list, or vectors as an (n, d) array"
    if name not in VECTORS: return column.to_pylist()
    if hasattr(column, 'combine_chunks'): column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _read(table, names, condition):
    found = table.to_table(columns=[n for n in names if n != '_rowid'], filter=condition, with_row_id='_rowid' in names)
    return {name: found[name] for name in names}


def _column(table, name, condition): return _read(table, (name,), condition)[name].to_pylist()


def _taken(table, ids):
    "Columns of some rows, in the order of their ids"
    if not ids: return joined([], COLUMNS)
    columns = _read(table, ('_rowid', *COLUMNS), _sql_in('_rowid', ids))
    found = {name: _values(column, name) for name, column in columns.items()}
    place = {row: i for i, row in enumerate(found['_rowid'])}
    return {name: [found[name][place[row]] for row in ids] for name in COLUMNS}


def _bytes(table, field): return 4 * table.schema.field(field).type.list_size


def _scanned(table, columns):
    "Number of rows to read at once"
    width = sum(_bytes(table, name) for name in columns if name in VECTORS)
    return max(64, SCANNED // max(width, 1024))


def _loaded(table, field):
    n, d = table.count_rows(), table.schema.field(field).type.list_size
    ids = np.empty(n, np.uint64)
    vectors = np.empty((n, d), np.float32)
    at = 0
    for batch in table.to_batches(columns=[field], with_row_id=True, batch_size=_scanned(table, [field])):
        ids[at:at+len(batch)] = batch.column('_rowid').to_numpy()
        vectors[at:at+len(batch)] = _values(batch.column(field), field)
        at += len(batch)
    return Held(table.version, ids, vectors)


def _by_product(table, held, vector, k, condition):
    "Nearest rows by the product with all vectors"
    ids, similarity = held.ids, held.products(vector)
    if condition is not None:
        allowed = _read(table, ('_rowid',), condition)['_rowid'].to_numpy()
        rows = np.flatnonzero(np.isin(ids, allowed, assume_unique=True))
        ids, similarity = ids[rows], similarity[rows]
    ids, similarity = _largest(ids, similarity, k)
    return {**_taken(table, ids.tolist()), 'similarity': similarity.tolist()}


def _largest(ids, similarity, k):
    "The k most similar rows, most similar first"
    if len(ids) > k:
        best = np.argpartition(-similarity, k - 1)[:k]
        ids, similarity = ids[best], similarity[best]
    order = np.argsort(-similarity, kind='stable')
    return ids[order], similarity[order]


def _by_engine(table, vector, k, condition, field, indexed):
    """Nearest rows as the database finds them. With an index: by a few bits per dimension of every row, then by the
    whole vectors of the best. Without one: by the vectors of all rows"""
    nearest = dict(column=field, q=vector, k=k, metric='dot', use_index=indexed)
    if indexed: nearest |= dict(nprobes=2*_partitions(table.count_rows()), refine_factor=REFINED)
    found = table.to_table(columns=[*COLUMNS, '_distance'], nearest=nearest, filter=condition, prefilter=True)
    rows = {name: _values(found[name], name) for name in COLUMNS}
    return {**rows, 'similarity': (1 - found['_distance'].to_numpy()).tolist()}


def _indices(table): return [i.name for i in table.describe_indices() if 'vector' in i.field_names]


def _kind(table): return 'ivf' if _indices(table) else 'exact'


def _drop_index(table):
    for name in _indices(table): table.drop_index(name)


def _build_index(table):
    table.create_index('vector', 'IVF_RQ', metric='dot', num_partitions=_partitions(table.count_rows()), replace=True)


def _partitions(rows): return rows // PARTITION + 1


def _unindexed(table):
    told = table.stats.index_stats(_indices(table)[0])
    return told['num_unindexed_rows'] / max(1, told['num_unindexed_rows'] + told['num_indexed_rows'])


def _compact(table, **kwargs):
    rows = max(1024, LARGE // _bytes(table, 'vector'))
    at_once = _scanned(table, ['vector'])
    table.optimize.compact_files(target_rows_per_fragment=rows, num_threads=1, batch_size=at_once, **kwargs)


def _merge(table): return table.merge_insert('key')


def _sql(where):
    "Conditions as an SQL expression, or None"
    named = dict(key=where.keys, pid=where.pids, camid=where.cameras, visible=where.visible)
    parts = [_sql_in(name, values) for name, values in named.items() if values is not None]
    if where.paths is not None:
        parts.append(f'({_sql_in("path", where.paths)} OR array_has_any(also, [{_sql_list(where.paths)}]))')
    if where.not_cameras is not None: parts.append(f'(camid IS NULL OR NOT {_sql_in("camid", where.not_cameras)})')
    if where.tracklets is not None:
        parts.append(_sql_in('tracklet', where.tracklets) if where.tracklets else 'tracklet IS NOT NULL')
    if where.since is not None: parts.append(f'time >= {where.since!r}')
    if where.until is not None: parts.append(f'time <= {where.until!r}')
    return ' AND '.join(parts) or None


def _sql_in(name, values): return f'{name} IN ({_sql_list(values)})' if len(values) else 'false'


def _sql_list(values):
    return ', '.join(_sql_text(v) if isinstance(v, str) else repr(v) for v in values)


def _sql_text(text): return "'" + text.replace("'", "''") + "'"
