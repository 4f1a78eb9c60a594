"A gallery from a shell: add people, look for one, delete one"
import sys
import warnings

from magnifier.cli.common import check_gallery, command, open_embedder, say

__all__ = ['magnifier_index', 'magnifier_search', 'magnifier_delete']


@command('src')
def magnifier_index(
    src:str,                       # Folder of crops, at any depth, or a CSV table with columns path, pid, camid, time
    gallery:str='people.db',       # The gallery: a name that ends in .db, or a Milvus server's address (http://host:19530)
    learner:str='runs/quick/learner.pkl', # What embeds: a learner's file (a pickle: load only what you trust), an .onnx file, or a saved folder
    pattern:str=None,              # Regular expression for file names, with groups pid, camid, time; by default 0172_c4s3_.., cam4, 20260131_134500 are read
    regions:bool=False,            # Keeps regions too, for magnifier_search --regions; for a new gallery
    width:int=None,                # Narrows embeddings to so many dimensions; for a new gallery with twice as many images or more
    bs:int=64,                     # Images embedded and written at once
    json:bool=False,               # Prints JSON
    debug:bool=False,              # Shows the traceback of an error
):
    """Adds pictures of people to a gallery. Run again after it was stopped, it goes on where it was: a picture is known by its content.

    Examples: `magnifier_index crops --gallery people.db` · `magnifier_index crops.csv --learner model.onnx` ·
    `magnifier_index crops --pattern 'cam(?P<camid>\\d+)/t(?P<time>\\d+)'`"""
    from pathlib import Path
    from magnifier.gallery.crops import CROP_PATTERN, crops_csv, crops_folder
    from magnifier.gallery.gallery import Gallery, GalleryWarning
    table = crops_csv(src) if Path(src).suffix.lower() == '.csv' else crops_folder(src, pattern or CROP_PATTERN)
    embedder = open_embedder(learner)
    with Gallery(gallery, regions=regions, width=width) as g, warnings.catch_warnings():
        warnings.simplefilter('ignore', GalleryWarning)  # said below
        result = g.add(embedder, table, bs=bs, progress=sys.stderr.isatty() and not json)
        told = dict(gallery=gallery, added=result.added, known=result.known, unreadable=result.skipped['path'].tolist(), images=len(g))
    if json: return _json(told)
    said = f'; {len(result.skipped)} unreadable (first: {result.skipped["path"][0]}: {result.skipped["problem"][0]})' if len(result.skipped) else ''
    say(f'{gallery}: {result.added} images added, {result.known} known{said}; it holds {told["images"]}')


@command('image')
def magnifier_search(
    image:str,                     # A picture of a person
    gallery:str='people.db',       # The gallery
    learner:str='runs/quick/learner.pkl', # The model that made the gallery: a learner's file, an .onnx file, or a saved folder
    k:int=10,                      # Hits at most
    not_camera:str=None,           # Cameras to leave out, as the picture's own: 3 or 3,4
    cameras:str=None,              # Cameras to search in: 1 or 1,2
    since:str=None,                # Earliest time, in UTC: 2026-01-31 or 2026-01-31T13:45:00
    until:str=None,                # Latest time
    regions:str=None,              # Regions to compare, as foot or foot,lower_leg; the gallery must keep them
    rerank:bool=False,             # Re-orders the first hundred by k-reciprocal encoding
    threshold:float=None,          # Least similarity, -1 to 1
    by_identity:bool=False,        # One line an identity
    save:str=None,                 # Writes the hits as a picture, as hits.png
    json:bool=False,               # Prints JSON
    debug:bool=False,              # Shows the traceback of an error
):
    """Who is this, and where else were they seen? Prints the hits, most similar first; exit code 1 for a mistake, 0 also without hits.

    Examples: `magnifier_search person.jpg --not-camera 3 --save hits.png` ·
    `magnifier_search person.jpg --since 2026-01-31T13:00 --regions foot --json`"""
    from magnifier.gallery.gallery import Gallery
    check_gallery(gallery)
    with Gallery(gallery) as g:
        hits = g.search(open_embedder(learner), image, k=k, not_camera=_numbers(not_camera, 'not-camera'), cameras=_numbers(cameras, 'cameras'),
                        since=since, until=until, regions=None if regions is None else _names(regions), rerank=rerank, threshold=threshold)
    if save is not None:
        import magnifier.look.found  # noqa: F401, hits learn to draw themselves
        hits.show(k=k, save=save)
    table = hits.by_identity() if by_identity else hits.table
    if json: return _json(_records(table))
    say(table.drop(columns='key').to_string() if len(table) else 'no hits')


@command('gallery')
def magnifier_delete(
    gallery:str='people.db',       # The gallery
    pids:str=None,                 # Identities whose images go: 7 or 7,12
    paths:str=None,                # Files that were added: one, or several with commas between
    until:str=None,                # Everything up to this time, in UTC
    debug:bool=False,              # Shows the traceback of an error
):
    """Deletes people from a gallery, and rewrites a local one so that nothing of them is left in its files. The pictures themselves stay.
    That takes a minute for some ten thousand images. Run again after it was stopped, it ends what it began. Exit code 1 where no image is of the people or files that were named.

    Examples: `magnifier_delete people.db --pids 7` · `magnifier_delete people.db --until 2026-01-01`"""
    from magnifier.gallery.gallery import Gallery
    check_gallery(gallery)
    with Gallery(gallery) as g:
        n = g.delete(pids=_numbers(pids, 'pids'), paths=None if paths is None else _paths(paths), until=until)
        g.compact()  # always: an earlier call may have been stopped between the two
        if not n and (pids, paths) != (None, None): raise ValueError(
            f'no image of {gallery} is of what was named, or none any more; what earlier calls deleted is gone from its files too. It holds {len(g)}')
        say(f'{gallery}: {n} images deleted; it holds {len(g)}')


def _names(text): return [t.strip() for t in text.split(',') if t.strip()]


def _paths(text):
    "As typed, and as `magnifier_index` adds them"
    from pathlib import Path
    return [p for name in _names(text) for p in (name, str(Path(name).expanduser().absolute()))]


def _numbers(text, name):
    if text is None: return None
    try: return [int(t) for t in _names(text)]
    except ValueError as e: raise ValueError(f'--{name} {text}: whole numbers wanted, as 3 or 3,4') from e


def _records(table):
    "Rows for JSON: times as ISO texts in UTC, null where unknown"
    import pandas as pd
    plain = lambda x: x if isinstance(x, list) else None if pd.isna(x) else x.isoformat() if isinstance(x, pd.Timestamp) else getattr(x, 'item', lambda: x)()
    return [{c: plain(x) for c, x in zip(table.columns, row)} for row in table.itertuples(index=False)]


def _json(told):
    import json
    say(json.dumps(told))
