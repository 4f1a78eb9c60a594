"A gallery of people: pictures embedded once, kept in Milvus, searched by picture, camera, time and region"
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
import numpy as np
import pandas as pd
from magnifier.regions import REGIONS, region_indices
from magnifier.gallery.clusters import identity_clusters
from magnifier.gallery.hits import Hits, as_table
from magnifier.gallery.entries import entries, expression, fingerprint_of, identity, is_count, pictures, read_entry, read_part, unit_rows
from magnifier.gallery.region_search import described, nearest_by_regions
from magnifier.gallery.store import INDEXES, LIMIT, MilvusStore
from magnifier.gallery.narrow import narrowed, principal_axes
from magnifier.retrieval.rerank import rerank as rerank_features

__all__ = ['Gallery', 'Added', 'GalleryWarning']

RERANKED = 100  # Hits that re-ranking looks at
KEPT = .9       # Least share of new pictures' squared length along the axes of a narrower gallery
log = logging.getLogger(__name__)


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
    an address that is neither, ImportError where pymilvus is missing, OSError for a gallery that another process holds."""

    def __init__(self,
        uri: str = 'people.db',  # A path that ends in .db, or the address of a server (http://host:19530)
        *,
        name: str = 'people',  # Of the collection: one uri may hold several galleries
        regions: bool = False,  # Also keeps each region's embedding, so that `search(regions=...)` works
        width: int | None = None,  # Narrows embeddings to so many principal axes, learned from the first images; None keeps them whole
        index_past: int = 1_000_000,  # Images past which `add` builds an approximate index (IVF); up to there search is exact
        token: str = '',  # 'user:password' or an API key, for servers that want one
    ):
        if width is not None and not is_count(width): raise ValueError(f'width={width}: a whole number of axes from 1 wanted, or None for whole embeddings')
        self.uri, self._asked, self.index_past = str(uri), (bool(regions), width and int(width)), index_past
        self.store, self._axes, self._table = MilvusStore(self.uri, name, token), None, None
        try: self._check_asked()
        except ValueError:
            self.close()
            raise

    @property
    def regions(self) -> bool:
        "Whether each region's embedding is kept: as the gallery was made, or as it was asked for where it is still empty"
        return about['regions'] > 0 if (about := self.store.about) else self._asked[0]

    @property
    def width(self) -> int | None:
        "Axes of a narrower gallery; None for whole embeddings"
        return about['width'] if (about := self.store.about) else self._asked[1]

    def _check_asked(self):
        regions, width = self._asked
        if width not in (None, self.width):
            raise ValueError(f'{self.uri} keeps {"whole embeddings" if self.width is None else f"{self.width} axes"}: width={width} is for a new gallery')
        if regions and not self.regions: raise ValueError(f'{self.uri} keeps no regions: regions=True is for a new gallery; make it anew, or leave it out')

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
        after a crash, nothing is added twice, and what is known keeps its labels (see `label`). Files that are no pictures are left out,
        with a `GalleryWarning` that names the first. ValueError where all are, and where another model made the gallery"""
        if bs < 1: raise ValueError(f'bs={bs}: at least one image at once')
        self._check_asked()  # another handle may have made the gallery since
        table, added, known, skipped = entries(images, pids=pids, camids=camids, times=times, paths=paths), 0, 0, []
        self._check_model(embedder)
        with ThreadPoolExecutor(4) as pool:
            if self.width and not self.store.about: self._learn_axes(embedder, table, pool, bs)
            for start in _bar(range(0, len(table), bs), progress):
                part, bad = read_part(table.iloc[start:start+bs], pool)
                new = self._new(part)
                if len(new): self._write(embedder, new)
                added, known, skipped = added + len(new), known + len(part) - len(new), skipped + bad
                log.info('%d of %d images: %d added, %d known, %d not readable', start + len(part) + len(bad), len(table), added, known, len(skipped))
        if added: self.store.settle()
        if added and self.store.kind == 'exact' and len(self) > self.index_past: self.index('ivf')
        return _reported(added, known, skipped)

    def _check_model(self, embedder):
        "An embedder whose embeddings can be compared with what is there"
        made_by, own = self.store.about.get('fingerprint'), fingerprint_of(embedder)
        if made_by not in (None, own):
            raise ValueError(f'{self.uri} was made by the model {made_by}, and this one is {own}: their embeddings cannot be compared. '
                             'Use that model, or make another gallery with this one')

    def _learn_axes(self, embedder, table, pool, bs):
        "The axes of a new gallery, from pictures evenly spaced over the first call's"
        wanted = np.unique(np.linspace(0, len(table) - 1, min(len(table), 4*self.width)).astype(int))
        parts = [read_part(table.iloc[wanted[i:i+bs]], pool)[0] for i in range(0, len(wanted), bs)]
        x = np.concatenate([unit_rows(embedder.embed(pictures(part)), len(part)) for part in parts if len(part)] or [np.zeros((0, 1))])
        if len(x) < 2*self.width or self.width >= x.shape[1]:
            raise ValueError(f'width={self.width}: axes are learned from the first images, and of {x.shape[1]} dimensions, of which they must be '
                             f'fewer; {len(x)} readable images were given, at least {2*self.width} are needed. Add more at once, or leave width out')
        kept = float(np.square(x[1::2] @ principal_axes(x[::2], self.width).T).sum(1).mean())  # of pictures that the axes were not learned from
        if kept < KEPT:
            raise ValueError(f'width={self.width}: that many axes keep {kept:.0%} of these embeddings, and under {KEPT:.0%} searches suffer: '
                             'take a larger width, or leave it out')
        self._axes = principal_axes(x, self.width)
        self._create(embedder, self.width, 0 if not self.regions else described(embedder, pictures(parts[0])[:1])[0].shape[1])

    def _create(self, embedder, d, regions):
        self.store.create(dict(fingerprint=fingerprint_of(embedder), d=d, regions=regions, width=self.width), self._axes)

    def _new(self, part):
        "Pictures that are not there yet, each once"
        part = part.assign(key=[p.key for p in part['picture']]).drop_duplicates('key')
        return part[~part['key'].isin(self.store.known(part['key'].tolist()))]

    def _write(self, embedder, part):
        images = pictures(part)
        vectors, more = self._vectors(embedder, images), described(embedder, images) if self.regions else None
        if not self.store.about: self._create(embedder, vectors.shape[1], more[0].shape[1] if more else 0)
        rows = part[['key', 'path', 'pid', 'camid', 'time']].to_dict('records')
        for i, row in enumerate(rows):
            row.update(vector=vectors[i], path=row['path'] or '', **(dict(regions=more[0][i], visible=int(more[1][i])) if more else {}))
        self.store.upsert(rows)

    def _vectors(self, embedder, images):
        "Embeddings as this gallery keeps them"
        x = unit_rows(embedder.embed(images), len(images))
        if self.width:
            if self._axes is None: self._axes = self.store.axes()
            if x.shape[1] == self._axes.shape[1]: return narrowed(x, self._axes)
        d = self._axes.shape[1] if self.width else self.store.about.get('d', x.shape[1])
        if x.shape[1] != d: raise ValueError(f'embeddings of {x.shape[1]} dimensions; those of {self.uri} have {d}')
        return x

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
        """Who is this, and where else were they seen? A picture that is in the gallery is its own first hit. ValueError for an empty
        gallery, another model's embedder, regions that the gallery does not keep, a file that is no picture"""
        if not is_count(k) or k > LIMIT: raise ValueError(f'k={k}: a whole number from 1 to {LIMIT} wanted')
        if threshold is not None and not -1 <= threshold <= 1: raise ValueError(f'threshold={threshold}: a cosine similarity from -1 to 1 wanted')
        if rerank and regions is not None: raise ValueError('re-ranking compares whole persons: leave out rerank or regions')
        if not self.store.about: raise ValueError(f'{self.uri} is empty: add images first, with `add(learn, catalog)`')
        self._check_model(embedder)
        wanted = None if regions is None else region_indices(regions)
        where = expression(not_camera=not_camera, cameras=cameras, since=since, until=until)
        read = read_entry(image)
        if read.image is None: raise ValueError(f'{image if isinstance(image, str) else "the query"} is not a readable image ({read.problem})')
        if wanted is None: rows = self._nearest(self._vectors(embedder, [read.image])[0], k, where, rerank)
        else: rows = self._nearest_by_regions(embedder, read.image, k, where, wanted)
        rows = [row for row in rows if threshold is None or row['similarity'] >= threshold]
        return Hits(as_table(rows, ('similarity',) + ('reranked',)*rerank + ('shared',)*(wanted is not None)), image,
                    None if wanted is None else tuple(REGIONS[r] for r in wanted))

    def _nearest(self, vector, k, where, rerank):
        rows = self.store.search(vector, max(k, RERANKED) if rerank else k, filter=where)
        if not rerank or not rows: return rows
        first, rest = rows[:RERANKED], rows[RERANKED:]
        distances = rerank_features(vector[None], self.store.vectors([row['key'] for row in first]))[0]
        return ([{**first[i], 'reranked': float(distances[i])} for i in np.argsort(distances, kind='stable')] + rest)[:k]

    def _nearest_by_regions(self, embedder, image, k, where, wanted):
        if not self.regions: raise ValueError(f'{self.uri} keeps no regions: make it anew with Gallery(..., regions=True)')
        vectors, visible = described(embedder, [image])
        return nearest_by_regions(self.store, vectors[0], int(visible[0]), wanted, k, where)

    def delete(self,
        *,
        pids=None,  # Identities whose images go
        paths=None,  # Paths, as they were added
        keys=None,  # Keys, as tables of hits and images have them
        until=None,  # Everything up to this time
    ) -> int:  # Images deleted
        """Takes images out of every search: those that fit all that is named. What was written stays in a local gallery's files until
        `compact`. A ValueError where nothing is named"""
        if pids is None and paths is None and keys is None and until is None: raise ValueError('name what to delete: pids, paths, keys or until')
        where = expression(pids=pids, paths=paths, until=until)
        named = None if keys is None else {keys} if isinstance(keys, str) else set(keys)
        found = self.store.rows(where, ['key']) if where else self.store.get(sorted(named), ['key'])
        gone = [r['key'] for r in found if named is None or r['key'] in named]
        self.store.delete(gone)
        return len(gone)

    def compact(self):
        """Writes the gallery anew without what was deleted, so that nothing of it is left on disk. It needs the room of both for a while,
        and a minute for some ten thousand images. A server is told to do so and does it in its own time"""
        if self.store.about: self.store.rewrite()

    def label(self,
        keys,  # Keys, as tables of hits, images and clusters have them
        pids,  # Identities, one a key; None takes one away, and so does -1, which is nobody
    ) -> int:  # Images labelled
        "Names people: after `cluster` and a look. A ValueError for keys that the gallery does not have"
        keys, pids = list(keys), [identity(p) for p in pids]
        if len(keys) != len(pids): raise ValueError(f'{len(pids)} identities for {len(keys)} keys; one a key is needed')
        missing = set(keys) - self.store.known(keys)
        if missing: raise ValueError(f'{len(missing)} of {len(keys)} keys are not in {self.uri} (one is {min(missing)!r}): take them from `images()`')
        self.store.update([dict(key=key, pid=pid) for key, pid in zip(keys, pids)])
        self.store.settle()
        return len(keys)

    def cluster(self,
        eps: float = .5,  # Largest Jaccard distance of neighbours, 0 to 1: lower splits people, higher merges them
        min_images: int = 2,  # Images that make a cluster
        **kwargs  # Passed to `identity_clusters`: k1, k2
    ) -> pd.DataFrame:  # As `images()`, with a column cluster: numbers from 0, the largest first; missing for images in none
        """Proposes identities for all images by DBSCAN on k-reciprocal distances: a starting point for labels, to be looked at before
        `g.label(t['key'], t['cluster'])`"""
        table = self.images()
        if not len(table): raise ValueError(f'{self.uri} is empty: add images first, with `add(learn, catalog)`')
        labels = identity_clusters(self.store.vectors(table['key'].tolist()), eps, min_images, **kwargs)
        return table.assign(cluster=pd.Series(labels).astype('Int64').mask(labels < 0))

    def index(self,
        kind: str,  # 'exact', or an approximate one: 'ivf' (quick to build), 'hnsw' (slow to build, meant for servers)
    ):
        "Changes how vectors are searched; regions are always searched exactly. A ValueError for an unknown kind or an empty gallery"
        if kind not in INDEXES: raise ValueError(f'unknown index {kind!r}: use one of {", ".join(INDEXES)}')
        if not self.store.about: raise ValueError(f'{self.uri} is empty: add images first')
        self.store.index(kind)

    def images(self,
        *,
        pids=None,  # Identity or identities; None for all
        cameras=None,  # Camera or cameras; None for all
        since=None,  # Earliest time
        until=None,  # Latest time
    ) -> pd.DataFrame:  # path, pid, camid, time, key; by identity, camera, time and path
        "What is in the gallery, without embeddings"
        where = expression(pids=pids, cameras=cameras, since=since, until=until)
        state = self.store.state
        if not where and self._table is not None and self._table[0] is state: return self._table[1].copy()
        table = as_table(self.store.rows(where)).sort_values(['pid', 'camid', 'time', 'path'], ignore_index=True, na_position='last')
        if not where and self.store.local: self._table = state, table.copy()  # only this process can write to it
        return table

    def info(self) -> dict:  # uri, images, identities, unlabelled, cameras, first, last, model, dimensions, regions, index
        "The gallery in figures"
        about, t = self.store.about, self.images()
        return dict(uri=self.uri, images=len(t), identities=t['pid'].nunique(), unlabelled=int(t['pid'].isna().sum()),
                    cameras=sorted(t['camid'].dropna().astype(int).unique().tolist()), first=t['time'].min(), last=t['time'].max(),
                    model=about.get('fingerprint'), dimensions=about.get('d'), regions=self.regions,
                    index=self.store.kind if about else None)


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
