"Copying galleries of earlier versions (Milvus Lite files) to new ones"

import json
from pathlib import Path

from magnifier.gallery.milvus import as_columns
from magnifier.gallery.store import Store

__all__ = ['is_old', 'bring_over']

NO_CLIENT = "an old gallery is read by Milvus Lite: pip install 'magnifier-reid[milvus]' milvus-lite"
AT_ONCE = 256  # Rows


def is_old(
    uri: str | Path,  # Of a local gallery
) -> bool:
    "Whether a path is a gallery of an earlier version"
    return (Path(uri)/'collections').is_dir() and (Path(uri)/'LOCK').exists()


def bring_over(
    old: str,  # Folder of an old gallery
    store: Store,  # Of a gallery, new or of the same model
    name: str = 'people',  # Of the collection in the old one
) -> int:  # Rows that are new
    """Copies rows and vectors; the old gallery is not changed. FileNotFoundError or ValueError if there is none or it
    cannot be used, ImportError without Milvus Lite, OSError if another process has it open"""
    if not is_old(old): raise FileNotFoundError(f'{old}: no gallery of an earlier version')
    try:
        from milvus_lite.server_manager import server_manager_instance as servers
        from pymilvus import MilvusClient
    except ImportError as e: raise ImportError(NO_CLIENT) from e
    path = str(Path(old).resolve())
    if servers.start_and_get_uri(path) is None:
        raise OSError(f'{old} cannot be opened: another process has it open, or it is damaged')
    client = MilvusClient(path)
    try: return _copied(client, old, store, name)
    finally:
        client.close()
        servers.release_server(path)


def _copied(client, old, store, name):
    about = _about(client, old, name)
    if about.get('width'):
        raise ValueError(f'{old} keeps embeddings reduced to {about["width"]} dimensions, which galleries no longer '
                         'do: add its images again')
    about = {key: about[key] for key in ('fingerprint', 'd', 'regions')}
    store.create(about)
    if store.about != about:
        raise ValueError(f'{old} and {store.uri} were made by two models: '
                                              'their embeddings cannot be compared')
    client.load_collection(name)
    keys = [row['key'] for row in client.query(name, filter='key != ""', output_fields=['key'])]
    columns = ['key', 'path', 'pid', 'camid', 'time', 'vector', *(['regions', 'visible'] if about['regions'] else [])]
    added = 0
    for i in range(0, len(keys), AT_ONCE):
        rows = as_columns(client.get(name, ids=keys[i:i+AT_ONCE], output_fields=columns), columns)
        nothing = [None for _ in rows['key']]
        added += store.add({**rows, 'also': [[] for _ in rows['key']], 'tracklet': nothing, 'visibility': nothing})
    store.settle()
    return added


def _about(client, old, name):
    "What an old gallery stores about itself"
    told = client.describe_collection(name) if client.has_collection(name) else {}
    text = (told.get('properties') or {}).get('magnifier') or told.get('description') or ''
    if not text.startswith('{'): raise ValueError(f'{old} holds no gallery {name!r}')
    return json.loads(text)
