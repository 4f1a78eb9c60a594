"A gallery of people: pictures embedded once, kept in Milvus, searched by picture, camera, time and region"
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
import numpy as np
import pandas as pd
import torch
from magnifier.regions import REGIONS, region_indices
from magnifier.retrieval.found import Hits, as_table
from magnifier.retrieval.gallery_input import entries, expression, read_entry
from magnifier.retrieval.gallery_regions import described, nearest_by_regions
from magnifier.retrieval.gallery_store import LIMIT, MilvusStore
from magnifier.retrieval.rerank import rerank as rerank_features

__all__ = ['Gallery', 'Added', 'GalleryWarning']

RERANKED = 100  # Hits that re-ranking looks at


class GalleryWarning(UserWarning):
    "Pictures that did not come into a gallery"


class Added(NamedTuple):
    "What became of pictures that were added"
    added: int  # New in the gallery
    known: int  # There already, or twice in the call: left as they were
    skipped: pd.DataFrame  # path, problem: not readable as pictures


class Gallery:
    """Pictures of people that can be searched: `g.add(learn, catalog)`, then `g.search(learn, image, k=10, not_camera=3)`.

    A local gallery is a folder (Milvus Lite) that one process opens at a time; a server's address gives the same gallery in a
    Milvus cluster. What is kept of a picture is its path, identity, camera, time (UTC) and embedding, never its pixels. ValueError for
    an address that is neither, ImportError where pymilvus is missing."""

    def __init__(self,
        uri: str = 'people.db',  # A path that ends in .db, or the address of a server (http://host:19530)
        *,
        name: str = 'people',  # Of the collection: one uri may hold several galleries
        regions: bool = False,  # Also keeps each region's embedding, so that `search(regions=...)` works
        token: str = '',  # 'user:password' or an API key, for servers that want one
    ):
        self.uri, self.regions = str(uri), regions
        self.store = MilvusStore(self.uri, name, token)
        if self.store.about: self.regions = self.store.about['regions'] > 0

    def __enter__(self): return self

    def __exit__(self, *error): self.close()

    def __len__(self): return self.store.count()

    def __repr__(self): return f'Gallery({self.uri!r}): {len(self)} images'

    def close(self):
        "Lets go of the folder, so that another process may open it"
        self.store.close()

    def add(self,
        embedder,  # Has `.embed(images) -> (n,d)` and `.fingerprint`: a learner, or an exported model's Embedder
        images,  # Catalog (columns path, and where known pid, camid, time); or paths, PIL images or (h,w,3) uint8 arrays
        *,
        pids=None,  # Identities, one an image; None where unknown
        camids=None,  # Cameras
        times=None,  # Seconds since 1970 in UTC, ISO texts or datetimes
        paths=None,  # Paths to remember, for pictures that are not given by path
        bs: int = 64,  # Images embedded and written at once: what a crash may lose
        progress: bool = True,  # Shows a bar
    ) -> Added:  # How many are new, how many were known, and what could not be read
        """Embeds what the gallery does not have yet, and writes it batch by batch. A picture is known by its content: run again
        after a crash, nothing is added twice. Files that are no pictures are left out, with a `GalleryWarning` that names the first;
        a ValueError where all are, and where another model made the gallery"""
        table, added, known, skipped = entries(images, pids=pids, camids=camids, times=times, paths=paths), 0, 0, []
        self._check_model(embedder)
        with ThreadPoolExecutor(4) as pool:
            for start in _bar(range(0, len(table), bs), progress):
                part = table.iloc[start:start+bs]
                part = part.assign(picture=list(pool.map(read_entry, part['item'])))
                bad = [not p.image for p in part['picture']]
                skipped += [(str(r.path), r.picture.problem) for r in part[bad].itertuples()]
                new = self._new(part[~np.array(bad)])
                known += len(part) - sum(bad) - len(new)
                if len(new): self._write(embedder, new)
                added += len(new)
        return _reported(added, known, skipped)

    def _check_model(self, embedder):
        "An embedder whose embeddings can be compared with what is there"
        made_by, own = self.store.about.get('fingerprint'), _fingerprint(embedder)
        if made_by not in (None, own):
            raise ValueError(f'{self.uri} was made by the model {made_by}, and this one is {own}: their embeddings cannot be compared. '
                             'Use that model, or make another gallery with this one')
        return own

    def _new(self, part):
        "Pictures that are not there yet, each once"
        part = part.assign(key=[p.key for p in part['picture']]).drop_duplicates('key')
        return part[~part['key'].isin(self.store.known(part['key'].tolist()))]

    def _write(self, embedder, part):
        images = [p.image for p in part['picture']]
        rows = part[['key', 'path', 'pid', 'camid', 'time']].assign(path=part['path'].fillna('')).to_dict('records')
        vectors = _unit(embedder.embed(images), len(images))
        more = described(embedder, images) if self.regions else None
        if not self.store.about:
            self.store.create(dict(fingerprint=_fingerprint(embedder), d=vectors.shape[1], regions=more[0].shape[1] if more else 0))
        self._check_width(vectors)
        for i, row in enumerate(rows):
            row.update(vector=vectors[i], **(dict(regions=more[0][i], visible=int(more[1][i])) if more else {}))
        self.store.upsert(rows)

    def _check_width(self, vectors):
        d = self.store.about['d']
        if vectors.shape[1] != d: raise ValueError(f'embeddings of {vectors.shape[1]} dimensions; those of {self.uri} have {d}')

    def search(self,
        embedder,  # The model that made the gallery
        image,  # A path, PIL image or (h,w,3) uint8 array
        k: int = 10,  # Hits at most
        *,
        not_camera=None,  # Camera or cameras to leave out, as the query's own; images of unknown cameras stay
        cameras=None,  # Camera or cameras to search in
        since=None,  # Earliest time (seconds in UTC, ISO text or datetime); images without a time are left out
        until=None,  # Latest time
        regions=None,  # Regions to compare ('foot', ['head', 'upper_leg'], indices); None for the whole person
        rerank: bool = False,  # Re-orders the first hundred by k-reciprocal encoding
        threshold: float | None = None,  # Least similarity of a hit, -1 to 1; None for all
    ) -> Hits:  # Most similar first; fewer than k where there are no more
        """Who is this, and where else were they seen? ValueError for an empty gallery, another model's embedder, regions that the
        gallery does not keep"""
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= LIMIT: raise ValueError(f'k={k}: a whole number from 1 to {LIMIT} wanted')
        if not self.store.about: raise ValueError(f'{self.uri} is empty: add images first, with `add(learn, catalog)`')
        self._check_model(embedder)
        where = expression(not_camera=not_camera, cameras=cameras, since=since, until=until)
        picture = read_entry(image)
        if picture.image is None: raise ValueError(f'{image}: not a readable image ({picture.problem})')
        if regions is not None:
            if rerank: raise ValueError('re-ranking compares whole persons: leave out rerank or regions')
            return self._search_regions(embedder, image, picture.image, k, where, region_indices(regions), threshold)
        vector = _unit(embedder.embed([picture.image]), 1)
        self._check_width(vector)
        rows = self.store.search(vector[0], max(k, RERANKED) if rerank else k, filter=where, also=('vector',) if rerank else ())
        if rerank: rows = _reranked(vector, rows)
        table = as_table(rows, ['reranked'] if rerank else [])
        if threshold is not None: table = table[table['similarity'] >= threshold]
        return Hits(table.iloc[:k].reset_index(drop=True), image)

    def _search_regions(self, embedder, image, decoded, k, where, wanted, threshold):
        if not self.regions: raise ValueError(f'{self.uri} keeps no regions: make it anew with Gallery(..., regions=True)')
        vectors, visible = described(embedder, [decoded])
        table = as_table(nearest_by_regions(self.store, vectors[0], int(visible[0]), wanted, k, where), ['shared'])
        if threshold is not None: table = table[table['similarity'] >= threshold].reset_index(drop=True)
        return Hits(table, image, tuple(REGIONS[r] for r in wanted))

    def delete(self,
        *,
        pids=None,  # Identities whose images go
        paths=None,  # Paths, as they were added
        keys=None,  # Keys, as tables of hits and images have them
        until=None,  # Everything up to this time
    ) -> int:  # Images deleted
        "Takes images out: those that fit all that is named. A ValueError where nothing is named"
        if pids is None and paths is None and keys is None and until is None: raise ValueError('name what to delete: pids, paths, keys or until')
        where = expression(pids=pids, paths=paths, until=until)
        found = self.store.rows(where, ['key']) if where else self.store.get(_list(keys), ['key'])
        gone = [r['key'] for r in found if keys is None or r['key'] in set(_list(keys))]
        self.store.delete(gone)
        return len(gone)

    def images(self,
        *,
        pids=None,  # Identity or identities; None for all
        cameras=None,  # Camera or cameras; None for all
        since=None,  # Earliest time
        until=None,  # Latest time
    ) -> pd.DataFrame:  # path, pid, camid, time, key; by identity, camera, time and path
        "What is in the gallery, without embeddings"
        table = as_table(self.store.rows(expression(pids=pids, cameras=cameras, since=since, until=until))).drop(columns='similarity', errors='ignore')
        return table.sort_values(['pid', 'camid', 'time', 'path'], ignore_index=True, na_position='last')

    def info(self) -> dict:  # uri, images, identities, cameras, first and last time, model, dimensions, regions
        "The gallery in figures"
        about, t = self.store.about, self.images()
        return dict(uri=self.uri, images=len(t), identities=t['pid'].nunique(), unlabelled=int(t['pid'].isna().sum()),
                    cameras=sorted(t['camid'].dropna().astype(int).unique().tolist()), first=t['time'].min(), last=t['time'].max(),
                    model=about.get('fingerprint'), dimensions=about.get('d'), regions=self.regions)


def _fingerprint(embedder):
    if not hasattr(embedder, 'fingerprint') or not hasattr(embedder, 'embed'):
        raise TypeError(f'{type(embedder).__name__} is no embedder: a learner or an Embedder is wanted, with `.embed` and `.fingerprint`')
    return str(embedder.fingerprint)


def _unit(embeddings, n):
    "Embeddings as float32 rows of length 1; a ValueError for those that have no direction"
    x = torch.as_tensor(embeddings).detach().cpu().float().numpy()
    if x.ndim != 2 or len(x) != n: raise ValueError(f'{n} images gave embeddings of shape {x.shape}: ({n}, d) wanted')
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all(): raise ValueError('the model gives embeddings that are zero, NaN or infinite')
    return x/norms


def _bar(steps, progress):
    if not progress or len(steps) < 2: return steps
    from fastprogress.fastprogress import progress_bar
    return progress_bar(steps, leave=False)


def _reported(added, known, skipped):
    skipped = pd.DataFrame(skipped, columns=['path', 'problem'])
    if len(skipped):
        said = f'{len(skipped)} of {added + known + len(skipped)} files are no readable images (first: {skipped["path"][0]}: {skipped["problem"][0]})'
        if not added + known: raise ValueError(said)
        warnings.warn(said + '; they were left out', GalleryWarning, stacklevel=3)
    return Added(added, known, skipped)


def _reranked(query, rows):
    "Rows in the order of their re-ranked distance, which they then hold"
    if not rows: return rows
    distances = rerank_features(query, np.array([row.pop('vector') for row in rows], dtype=np.float32))[0]
    return [{**rows[i], 'reranked': float(distances[i])} for i in np.argsort(distances, kind='stable')]


def _list(keys): return [keys] if isinstance(keys, str) else list(keys)
