"Where a gallery lies: rows with vectors in Milvus, as a local folder or on a server, through one client"
import json
import logging
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
import numpy as np

__all__ = ['MilvusStore', 'FIELDS', 'LIMIT', 'INDEXES']

FIELDS = ('key', 'path', 'pid', 'camid', 'time')
LIMIT = 16_384   # Rows that Milvus gives in one answer
CHUNK = 2_000    # Rows asked for at once where all are wanted
MANY = 512       # Rows written to a local gallery that are worth a segment
LARGE = 5_000    # Images from which a local gallery searches through faiss
OPEN = Counter() # Local galleries of this process: the last to close lets go of the folder
STATES = {}      # Of each gallery: another object after every write of this process, by whichever handle; what one remembers holds until then
OWN = ('_fresh', '_old', '_axes') # Ends of the names of collections that a gallery keeps beside its own
NO_CLIENT = "a gallery needs pymilvus: pip install 'magnifier-reid[gallery]'"
# kind -> (type, what it is built with, what a search is told)
INDEXES = {'exact': ('FLAT', {}, {}), 'ivf': ('IVF_FLAT', {'nlist': 256}, {'nprobe': 32}), 'hnsw': ('HNSW', {'M': 16, 'efConstruction': 200}, {'ef': 256})}


class MilvusStore:
    """Rows of one gallery: `FIELDS`, a unit vector, and where the gallery searches by region also the regions' vectors side by side.

    What the gallery remembers (its model's fingerprint, sizes) are properties of the collection, so that both appear at once."""

    def __init__(self,
        uri: str,  # A path that ends in .db, or the address of a server (http://host:19530)
        name: str,  # Of the collection
        token: str = '',  # 'user:password' or an API key, for servers that want one
    ):
        if not re.fullmatch('[A-Za-z_][A-Za-z0-9_]{0,200}', name): raise ValueError(f'name={name!r}: letters, digits and underscores wanted')
        if name.endswith(OWN): raise ValueError(f'name={name!r}: names that end in {", ".join(OWN)} are a gallery\'s own; take another end')
        self.uri, self.name, self.local = uri, name, '://' not in uri
        self.path = Path(uri).resolve() if self.local else uri  # wherever the process goes
        self.client = _connect(uri, token)
        self._about, self._kind, self._closed, self._written = {}, None, False, 0
        if self.local: OPEN[self.path] += 1
        try:
            self._recover()
            if self.about: self.client.load_collection(name)
        except BaseException:
            self.close()
            raise

    @property
    def about(self) -> dict:  # Empty where nothing was added yet
        "What the gallery remembers"
        if not self._about:  # another handle may have added since
            there = self.client.has_collection(self.name)
            told = self.client.describe_collection(self.name) if there else {}
            text = (told.get('properties') or {}).get('magnifier') or told.get('description') or ('' if there else '{}')
            if not text.startswith('{'):
                raise ValueError(f'{self.uri} holds a collection {self.name!r} that is no gallery of magnifier: give another `name`')
            self._about = json.loads(text)
        return self._about

    def create(self,
        about: dict,  # What to remember, 'd' among it: dimensions of a vector; 'regions': of the regions' vectors, or 0
        axes: np.ndarray | None = None,  # (d, D) that narrow a model's embeddings; None to keep them as they are
    ):
        "Makes the collection, with exact search"
        if axes is not None: self._save_axes(axes)
        self._make(self.name, about)
        self._about = about
        self._wrote()

    @property
    def state(self):  # Another object after each write of this process
        "Stands for the rows and the index as they are"
        return STATES.get((self.path, self.name))

    def _wrote(self, rows=0):
        STATES[self.path, self.name] = object()
        self._written += rows

    def _make(self, name, about):
        from pymilvus import DataType, MilvusClient
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=json.dumps(about))
        schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field('vector', DataType.FLOAT_VECTOR, dim=about['d'])
        schema.add_field('path', DataType.VARCHAR, max_length=4096)
        for field in ('pid', 'camid'): schema.add_field(field, DataType.INT64, nullable=True)
        schema.add_field('time', DataType.DOUBLE, nullable=True)
        index = self._index_params('vector', 'exact')
        if about['regions']:
            schema.add_field('regions', DataType.FLOAT_VECTOR, dim=about['regions'])
            schema.add_field('visible', DataType.INT64)
            self._index_params('regions', 'exact', index)
        self.client.create_collection(name, schema=schema, index_params=index, properties={'magnifier': json.dumps(about)})
        self.client.load_collection(name)

    def _save_axes(self, axes):
        from pymilvus import DataType, MilvusClient
        name = self.name + '_axes'
        if self.client.has_collection(name): self.client.drop_collection(name)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field('vector', DataType.FLOAT_VECTOR, dim=axes.shape[1])
        self.client.create_collection(name, schema=schema, index_params=self._index_params('vector', 'exact'))
        for i in range(0, len(axes), 256):
            self.client.upsert(name, [{'key': f'{j:05d}', 'vector': axes[j]} for j in range(i, min(i + 256, len(axes)))])
        self.client.flush(name)

    def axes(self) -> np.ndarray:  # (d, D)
        "What narrows a model's embeddings in this gallery"
        name = self.name + '_axes'
        self.client.load_collection(name)
        keys = [f'{j:05d}' for j in range(self.about['d'])]
        rows = [r for i in range(0, len(keys), 256) for r in self.client.get(name, ids=keys[i:i+256], output_fields=['key', 'vector'])]
        return np.array([r['vector'] for r in sorted(rows, key=lambda r: r['key'])], dtype=np.float32)

    def upsert(self,
        rows: list,  # Dicts of `FIELDS`, 'vector', and 'regions' and 'visible' where the gallery has them
    ):
        "Writes rows: a key that is there is replaced. When this returns they outlive the process"
        self.client.upsert(self.name, rows)
        self._wrote(len(rows))

    def update(self,
        rows: list,  # Dicts of 'key', which must be there, and the fields that change
    ):
        "Writes some fields of rows"
        for i in range(0, len(rows), CHUNK): self.client.upsert(self.name, rows[i:i+CHUNK], partial_update=True)
        self._wrote(len(rows))

    def settle(self):
        """Turns what was written lately from a log into segments, which are searched more quickly. A few rows wait for more, and a local
        gallery that has grown gets the quicker of the exact searches"""
        if self.local and self._written < MANY: return
        self.client.flush(self.name)
        self._written = 0
        if self.local and self.kind == 'exact' and self._type == 'FLAT' and self.count() >= LARGE: self.index('exact')

    def known(self,
        keys: list,  # Keys
    ) -> set:  # Those that are there
        "Which of some keys the gallery has"
        return {r['key'] for r in self.get(keys, ['key'])}

    def get(self,
        keys: list,  # Keys
        fields: list,  # Names
    ) -> list:  # Dicts, in any order; keys that are not there are left out
        "Rows by key"
        if not self.about or not len(keys): return []
        size = CHUNK if 'vector' not in fields else 256
        parts = [list(keys[i:i+size]) for i in range(0, len(keys), size)]
        return [r for part in parts for r in self.client.get(self.name, ids=part, output_fields=list(fields))]

    def vectors(self,
        keys: list,  # Keys that are there
    ) -> np.ndarray:  # (n, d) float32, in the order of the keys
        "Embeddings by key"
        found = {r['key']: np.asarray(r['vector'], np.float32) for r in self.get(keys, ['key', 'vector'])}
        return np.stack([found[k] for k in keys])

    def rows(self,
        filter: str = '',  # A Milvus expression
        fields: list = FIELDS,  # Names
    ) -> list:  # Dicts
        "All rows that fit"
        if not self.about: return []
        if self.local: return list(self.client.query(self.name, filter=filter or 'key != ""', output_fields=list(fields)))
        found, at = [], self.client.query_iterator(self.name, batch_size=CHUNK, filter=filter, output_fields=list(fields))
        while part := at.next(): found += part
        at.close()
        return found

    def count(self) -> int:  # Rows
        "How many there are"
        if not self.about: return 0
        return int(self.client.query(self.name, filter='', output_fields=['count(*)'])[0]['count(*)'])

    def search(self,
        vector: np.ndarray,  # (d,) float32
        k: int,  # How many at most
        *,
        filter: str = '',  # A Milvus expression
        field: str = 'vector',  # 'vector' or 'regions'
        also: tuple = (),  # Further fields wanted
        params: dict | None = None,  # Told to the index; None for what its kind is told
    ) -> list:  # Dicts of `FIELDS` and 'similarity', the most similar first
        "Nearest rows by inner product"
        params = dict(INDEXES[self.kind if field == 'vector' else 'exact'][2] if params is None else params)
        if 'ef' in params: params['ef'] = max(params['ef'], k)
        hits = self.client.search(self.name, data=[vector], anns_field=field, limit=k, filter=filter, output_fields=[*FIELDS[1:], *also],
                                  search_params={'metric_type': 'IP', 'params': params})[0]
        return [{'key': h['key'], **h['entity'], 'similarity': h['distance']} for h in hits]

    @property
    def _type(self): return self.client.describe_index(self.name, 'vector')['index_type']

    @property
    def kind(self) -> str:  # A name in `INDEXES`
        "How vectors are searched"
        state = self.state
        if self._kind is None or self._kind[0] is not state:
            told = self.client.describe_index(self.name, 'vector')
            type_, lists = told['index_type'], int((told.get('params') or told).get('nlist', 1))
            self._kind = state, 'hnsw' if type_ == 'HNSW' else 'ivf' if type_ == 'IVF_FLAT' and lists > 1 else 'exact'
        return self._kind[1]

    def index(self,
        kind: str,  # 'exact', 'ivf' or 'hnsw'
    ):
        "Replaces the index of the vectors"
        large = self.count() >= LARGE
        self.client.release_collection(self.name)
        self.client.drop_index(self.name, 'vector')
        self.client.create_index(self.name, self._index_params('vector', kind, large=large))
        self.client.load_collection(self.name)
        self._wrote()

    def _index_params(self, field, kind, params=None, large=False):
        """Index of a field, added to `params`. The local engine reads build parameters one level deeper than its client writes them; and
        its exhaustive IVF, of one list, is faster than its FLAT, which copies all vectors at each search"""
        from pymilvus import MilvusClient
        params = MilvusClient.prepare_index_params() if params is None else params
        type_, build, _ = INDEXES[kind]
        if self.local and large and kind == 'exact': type_, build = 'IVF_FLAT', {'nlist': 1}
        params.add_index(field, index_type=type_, metric_type='IP', params={'params': build} if self.local else build)
        return params

    def delete(self,
        keys: list,  # Keys
    ):
        "Takes rows out of every answer; from a local gallery's files with `rewrite`"
        for i in range(0, len(keys), CHUNK): self.client.delete(self.name, ids=list(keys[i:i+CHUNK]))
        self._wrote()

    def rewrite(self):
        """Writes what is there anew and drops the rest for good. Killed on the way, the next opening finds the one or the other whole;
        a server does this itself, when it is told to compact"""
        if not self.local: return self.client.compact(self.name)
        fresh, old, kind = self.name + '_fresh', self.name + '_old', self.kind
        self._make(fresh, self.about)
        fields = [*FIELDS, 'vector', *(['regions', 'visible'] if self.about['regions'] else [])]
        keys = [r['key'] for r in self.rows(fields=['key'])]
        for i in range(0, len(keys), 256): self.client.upsert(fresh, self.get(keys[i:i+256], fields))
        self.client.flush(fresh)
        self.client.rename_collection(self.name, old)
        self._recover()
        self.client.load_collection(self.name)
        if kind != 'exact' or self.count() >= LARGE: self.index(kind)

    def _recover(self):
        "Ends what a kill cut short in `rewrite`"
        if not self.local: return
        fresh, old, there = self.name + '_fresh', self.name + '_old', self.client.has_collection
        if there(old) and there(fresh) and not there(self.name): self.client.rename_collection(fresh, self.name)  # it was whole, or `old` had its name
        for name in (fresh, old):
            if there(name) and there(self.name): self.client.drop_collection(name)  # alone it is nothing that `rewrite` leaves

    def close(self):
        "Lets go of the files or the connection"
        if self._closed: return
        self._closed = True
        self.client.close()
        if not self.local: return
        OPEN[self.path] -= 1
        if not OPEN[self.path]:
            from milvus_lite.server_manager import server_manager_instance
            server_manager_instance.release_server(str(self.path))


def _connect(uri, token):
    "A client; mistakes and a gallery that is open elsewhere are said in words"
    try: from pymilvus import MilvusClient, MilvusException
    except ImportError as e: raise ImportError(NO_CLIENT) from e
    if '://' in uri:
        try: return MilvusClient(uri, token=token)
        except MilvusException as e: raise OSError(f'{uri}: no Milvus server answers there ({e.message})') from e
    if not uri.endswith('.db'): raise ValueError(f'{uri}: a local gallery is a folder whose name ends in .db; a server is http://host:19530')
    if Path(uri).is_file(): raise ValueError(f'{uri} is a file; a local gallery is a folder: give another name')
    try: from milvus_lite.server_manager import server_manager_instance as servers
    except ImportError as e: raise ImportError(NO_CLIENT) from e
    path = str(Path(uri).resolve())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _quiet('milvus_lite'): started = servers.start_and_get_uri(path)
    if started is None:
        raise OSError(f'{uri} cannot be opened: another process holds it (one at a time; for several run '
                      f'`milvus-lite server --data-dir {uri}` and give its address), or it is no gallery')
    return MilvusClient(path, grpc_options={'grpc.keepalive_time_ms': 2**31 - 1, 'grpc.keepalive_permit_without_calls': 0})  # or the local
    # engine, which does not expect to be asked whether it lives, hangs up on a gallery that nobody used for a minute


@contextmanager
def _quiet(name):
    "Without a library's tracebacks in the log, where the error is said in words"
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try: yield
    finally: log.setLevel(before)
