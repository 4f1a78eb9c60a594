"Where a gallery lies: rows with vectors in Milvus, as a local folder or a cluster, through one client"
import json
import logging
from contextlib import contextmanager
from pathlib import Path
import numpy as np

__all__ = ['MilvusStore', 'FIELDS', 'LIMIT']

FIELDS = ('key', 'path', 'pid', 'camid', 'time')
LIMIT = 16_384   # Rows that Milvus gives in one answer
CHUNK = 2_000    # Rows asked for at once where all are wanted
NO_CLIENT = "a gallery needs pymilvus: pip install 'magnifier-reid[gallery]'"


class MilvusStore:
    """Rows of one gallery: `FIELDS`, a unit vector, and where the gallery searches by region also the regions' vectors side by side.

    What the gallery remembers (its model's fingerprint, sizes) are properties of the collection, so that both appear at once."""

    def __init__(self,
        uri: str,  # A path that ends in .db, or the address of a server (http://host:19530)
        name: str,  # Of the collection
        token: str = '',  # 'user:password' or an API key, for servers that want one
    ):
        self.uri, self.name, self.local = uri, name, '://' not in uri
        self.client = _connect(uri, token)
        self._about = None
        if self.about: self.client.load_collection(name)

    @property
    def about(self) -> dict:  # Empty where nothing was added yet
        "What the gallery remembers"
        if self._about is None:
            there = self.client.has_collection(self.name)
            text = self.client.describe_collection(self.name).get('properties', {}).get('magnifier') if there else '{}'
            if text is None: raise ValueError(f'{self.uri} holds a collection {self.name!r} that is no gallery of magnifier: give another `name`')
            self._about = json.loads(text)
        return self._about

    def create(self,
        about: dict,  # What to remember, 'd' among it: dimensions of a vector; 'regions': of the regions' vectors, or 0
    ):
        "Makes the collection, with exact search"
        from pymilvus import DataType, MilvusClient
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field('key', DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field('vector', DataType.FLOAT_VECTOR, dim=about['d'])
        schema.add_field('path', DataType.VARCHAR, max_length=4096)
        for field in ('pid', 'camid'): schema.add_field(field, DataType.INT64, nullable=True)
        schema.add_field('time', DataType.DOUBLE, nullable=True)
        index = MilvusClient.prepare_index_params()
        index.add_index('vector', index_type='FLAT', metric_type='IP')
        if about['regions']:
            schema.add_field('regions', DataType.FLOAT_VECTOR, dim=about['regions'])
            schema.add_field('visible', DataType.INT64)
            index.add_index('regions', index_type='FLAT', metric_type='IP')
        self.client.create_collection(self.name, schema=schema, index_params=index, properties={'magnifier': json.dumps(about)})
        self.client.load_collection(self.name)
        self._about = about

    def upsert(self,
        rows: list,  # Dicts of `FIELDS`, 'vector', and 'regions' and 'visible' where the gallery has them
    ):
        "Writes rows: a key that is there is replaced. When this returns they outlive the process"
        self.client.upsert(self.name, rows)

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
        if not self.about: return []
        parts = [keys[i:i+CHUNK] for i in range(0, len(keys), CHUNK)]
        return [r for part in parts for r in self.client.get(self.name, ids=part, output_fields=fields)]

    def rows(self,
        filter: str = '',  # A Milvus expression
        fields: list = FIELDS,  # Names
    ) -> list:  # Dicts
        "All rows that fit"
        if not self.about: return []
        with _quiet():
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
    ) -> list:  # Dicts of `FIELDS` and 'similarity', the most similar first
        "Nearest rows by inner product"
        hits = self.client.search(self.name, data=[vector], anns_field=field, limit=k, filter=filter,
                                  output_fields=[*FIELDS[1:], *also], search_params={'metric_type': 'IP'})[0]
        return [{'key': h['key'], **h['entity'], 'similarity': h['distance']} for h in hits]

    def delete(self,
        keys: list,  # Keys
    ):
        "Takes rows out"
        for i in range(0, len(keys), CHUNK): self.client.delete(self.name, ids=keys[i:i+CHUNK])

    def close(self):
        "Lets go of the files or the connection"
        self.client.close()
        if self.local:
            from milvus_lite.server_manager import server_manager_instance
            server_manager_instance.release_server(self.uri)


@contextmanager
def _quiet():
    "Without the client's warning that the local engine gives no time stamp: one process has no other's writes to be told from"
    log = logging.getLogger('pymilvus')
    before, log.level = log.level, logging.ERROR
    try: yield
    finally: log.level = before


def _connect(uri, token):
    "A client; mistakes and a gallery that is open elsewhere are said in words"
    try: from pymilvus import MilvusClient
    except ImportError as e: raise ImportError(NO_CLIENT) from e
    if '://' in uri: return MilvusClient(uri, token=token)
    if not uri.endswith('.db'): raise ValueError(f'{uri}: a local gallery is a folder whose name ends in .db; a cluster is http://host:19530')
    if Path(uri).is_file(): raise ValueError(f'{uri} is a file; a local gallery is a folder: give another name')
    try: from milvus_lite.server_manager import server_manager_instance as servers
    except ImportError as e: raise ImportError(NO_CLIENT) from e
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    if servers.start_and_get_uri(uri) is None:
        raise OSError(f'{uri} cannot be opened: another process holds it (one at a time; for several run '
                      f'`milvus-lite server --data-dir {uri}` and give its address), or it is no gallery')
    return MilvusClient(uri)
