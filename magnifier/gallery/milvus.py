"A gallery on a Milvus server or cluster, by its address; and galleries of earlier versions, which were Milvus Lite's"

import json
import logging
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from magnifier.checks import needs
from magnifier.gallery.store import COLUMNS, EVERYTHING, MOST_NAMES, Store, VECTORS, joined

__all__ = []

NO_CLIENT = "a gallery on a server needs pymilvus: pip install 'magnifier-reid[milvus]'"
NO_LITE = "an old gallery is read by Milvus Lite: pip install 'magnifier-reid[milvus]' milvus-lite"
OLD_NAME = 'people'  # Of the collection in a gallery of an earlier version
AT_ONCE = {False: 2_000, True: 256}  # Rows in one message, without vectors and with them
# A small server hangs up on a client that asks every few seconds whether it lives, as the client does by default
NO_PINGS = {'grpc.keepalive_time_ms': 2**31 - 1, 'grpc.keepalive_permit_without_calls': 0}
LONGEST = 4_096  # Bytes of a path
# kind -> what the index is built with, and what a search is told
INDEXES = {
    'exact': (dict(index_type='FLAT', params={}), {}),
    'ivf': (dict(index_type='IVF_FLAT', params={'nlist': 1024}), {'nprobe': 64}),
}


class MilvusStore(Store):
    """A gallery as a collection of a Milvus server. What the gallery stores about itself are properties of the
    collection. OSError for an address where no server answers, ImportError without pymilvus"""

    version = None  # Others write too, and the server counts nothing

    def __init__(self, uri: str, name: str, token: str = ''):
        self.uri = uri  # http://host:19530
        self.name = name  # Of the collection
        self._about = {}
        with needs(NO_CLIENT): from pymilvus import MilvusClient, MilvusException
        self._milvus_error = MilvusException
        logging.getLogger('pymilvus.client.iterator').setLevel(logging.ERROR)  # it warns at each scan of a small server
        with self._plain_errors(): self.client = MilvusClient(uri, token=token, grpc_options=NO_PINGS)
        if self.about:
            with self._plain_errors(): self.client.load_collection(name)

    @property
    def about(self):
        if not self._about:  # another may have added since
            with self._plain_errors():
                there = self.client.has_collection(self.name)
                properties = self.client.describe_collection(self.name).get('properties') or {} if there else {}
            if there and 'magnifier' not in properties:
                raise ValueError(f'{self.uri} holds a collection {self.name!r} that is not a gallery of magnifier: '
                                 'give another `name`')
            self._about = json.loads(properties.get('magnifier', '{}'))
        return self._about

    @property
    def kind(self):
        if not self.about: return None
        with self._plain_errors(): told = self.client.describe_index(self.name, 'vector')
        return 'exact' if told['index_type'] == 'FLAT' else 'ivf'

    def create(self, about):
        if self.about: return
        with self._plain_errors():
            indexes = self._indexes('exact')
            if about['regions']: indexes.add_index('regions', metric_type='IP', **INDEXES['exact'][0])
            properties = {'magnifier': json.dumps(about)}
            self.client.create_collection(self.name, schema=_schema(about), index_params=indexes, properties=properties)
            self.client.load_collection(self.name)

    def add(self, rows):
        there = self.known(rows['key'])
        new = [row for row in _as_rows(rows) if row['key'] not in there]
        self._upsert(new)
        return len(new)

    def update(self, rows):
        self._upsert(list(_as_rows(rows)), partial_update=True)

    def _upsert(self, rows, **kwargs):
        at_once = AT_ONCE['vector' in rows[0]] if rows else 1
        with self._plain_errors():
            for i in range(0, len(rows), at_once): self.client.upsert(self.name, rows[i:i+at_once], **kwargs)

    def delete(self, where):
        keys = self.read(where, ('key',))['key']
        with self._plain_errors():
            for i in range(0, len(keys), AT_ONCE[False]): self.client.delete(self.name, ids=keys[i:i+AT_ONCE[False]])
        return len(keys)

    def count(self):
        if not self.about: return 0
        with self._plain_errors():
            return int(self.client.query(self.name, filter='', output_fields=['count(*)'])[0]['count(*)'])

    def read(self, where=EVERYTHING, columns=COLUMNS):
        return joined(list(self._pages(where, columns)), columns)

    def _pages(self, where, columns):
        "The rows of `read`, some thousand at once"
        if not self.about: return
        for part in _parts(where):
            with self._plain_errors():
                pages = self.client.query_iterator(self.name, batch_size=AT_ONCE[bool(set(VECTORS) & set(columns))],
                                                   filter=_expression(part), output_fields=list(columns))
                while rows := pages.next(): yield _as_columns(rows, columns)
                pages.close()

    def search(self, vector, k, where=EVERYTHING, *, field='vector', exact=False):
        if not self.about: return joined([], (*COLUMNS, 'similarity'))
        told = INDEXES[self.kind if field == 'vector' else 'exact'][1]
        if exact and told: told = {'nprobe': INDEXES['ivf'][0]['params']['nlist']}  # every list
        with self._plain_errors():
            hits = self.client.search(
                self.name,
                data=[vector],
                anns_field=field,
                limit=k,
                filter=_expression(where),
                output_fields=list(COLUMNS),
                search_params={'metric_type': 'IP', 'params': told},
            )[0]
        rows = [{**hit['entity'], 'key': hit['key'], 'similarity': hit['distance']} for hit in hits]
        return _as_columns(rows, (*COLUMNS, 'similarity'))

    def index(self, kind):
        with self._plain_errors():
            self.client.release_collection(self.name)
            self.client.drop_index(self.name, 'vector')
            self.client.create_index(self.name, self._indexes(kind))
            self.client.load_collection(self.name)

    def _indexes(self, kind):
        indexes = self.client.prepare_index_params()
        indexes.add_index('vector', metric_type='IP', **INDEXES[kind][0])
        return indexes

    def settle(self):
        with self._plain_errors(): self.client.flush(self.name)

    def compact(self):
        if not self.about: return
        with self._plain_errors():
            self.client.flush(self.name)
            self.client.compact(self.name)

    def close(self):
        self.client.close()

    @contextmanager
    def _plain_errors(self):
        "Turns errors of the server or the connection into one sentence"
        try: yield
        except self._milvus_error as error:
            said = (error.message or str(error)).splitlines()[0]
            raise OSError(f'{self.uri}: the Milvus server does not answer, or refuses ({said})') from error


def _schema(about):
    from pymilvus import DataType, MilvusClient
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field('vector', DataType.FLOAT_VECTOR, dim=about['d'])
    schema.add_field('path', DataType.VARCHAR, max_length=LONGEST)
    schema.add_field('also', DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MOST_NAMES, max_length=LONGEST)
    for field in ('pid', 'camid'): schema.add_field(field, DataType.INT64, nullable=True)
    schema.add_field('time', DataType.DOUBLE, nullable=True)
    schema.add_field('tracklet', DataType.VARCHAR, max_length=LONGEST, nullable=True)
    schema.add_field('visibility', DataType.FLOAT, nullable=True)
    if about['regions']:
        schema.add_field('regions', DataType.FLOAT_VECTOR, dim=about['regions'])
        schema.add_field('visible', DataType.INT64)
    return schema


def _as_rows(columns):
    for row in zip(*columns.values()): yield dict(zip(columns, row))


def _as_columns(rows, names):
    "Dicts, as the client gives them, as columns, the form that a store returns"
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: np.array(values, np.float32) if name in VECTORS else values for name, values in columns.items()}


def _parts(where):
    "The same conditions in parts, each with few enough keys for one message"
    if where.keys is None: return [where]
    keys = list(where.keys)
    return [replace(where, keys=tuple(keys[i:i+AT_ONCE[False]])) for i in range(0, len(keys), AT_ONCE[False])]


def _expression(where): return where.expression(_in, _has_any)


def _in(column, values): return f'{column} in {_list(values)}'


def _has_any(column, values): return f'array_contains_any({column}, {_list(values)})'


def _list(values): return '[' + ', '.join(_quoted(v) if isinstance(v, str) else repr(v) for v in values) + ']'


def _quoted(text): return '"' + re.sub(r'(["\\])', r'\\\1', text).replace('\n', '\\n') + '"'


def is_old(uri: str | Path) -> bool:
    "Whether a path is a gallery of an earlier version"
    return (Path(uri)/'collections').is_dir() and (Path(uri)/'LOCK').exists()


def bring_over(old: str, store: Store) -> int:
    """Copies rows and vectors of an old gallery's folder to a store that is new or of the same model, and returns how
    many are new. FileNotFoundError or ValueError if there is no old gallery or it cannot be used, ImportError without
    Milvus Lite, OSError if another process has it open"""
    if not is_old(old): raise FileNotFoundError(f'{old}: no gallery of an earlier version')
    with needs(NO_LITE):
        from milvus_lite.server_manager import server_manager_instance as servers
        from pymilvus import MilvusClient
    path = str(Path(old).resolve())
    if servers.start_and_get_uri(path) is None:
        raise OSError(f'{old} cannot be opened: another process has it open, or it is damaged')
    client = MilvusClient(path)
    try: return _copy_rows(client, old, store)
    finally:
        client.close()
        servers.release_server(path)


def _copy_rows(client, old, store):
    about = _about_old(client, old)
    if about.get('width'):
        raise ValueError(f'{old} keeps embeddings reduced to {about["width"]} dimensions, which galleries no longer '
                         'do: add its images again')
    about = {key: about[key] for key in ('fingerprint', 'd', 'regions')}
    store.create(about)
    if store.about != about:
        raise ValueError(f'{old} and {store.uri} were made by two models: their embeddings cannot be compared')
    client.load_collection(OLD_NAME)
    keys = [row['key'] for row in client.query(OLD_NAME, filter='key != ""', output_fields=['key'])]
    columns = ['key', 'path', 'pid', 'camid', 'time', 'vector', *(['regions', 'visible'] if about['regions'] else [])]
    added = 0
    for i in range(0, len(keys), AT_ONCE[True]):
        rows = _as_columns(client.get(OLD_NAME, ids=keys[i:i+AT_ONCE[True]], output_fields=columns), columns)
        nothing = [None for _ in rows['key']]
        added += store.add({**rows, 'also': [[] for _ in rows['key']], 'tracklet': nothing, 'visibility': nothing})
    store.settle()
    return added


def _about_old(client, old):
    "What an old gallery stores about itself"
    told = client.describe_collection(OLD_NAME) if client.has_collection(OLD_NAME) else {}
    text = (told.get('properties') or {}).get('magnifier') or told.get('description') or ''
    if not text.startswith('{'): raise ValueError(f'{old} holds no gallery {OLD_NAME!r}')
    return json.loads(text)
