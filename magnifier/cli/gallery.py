"A gallery from a shell: add people, look for one, see who was where, delete one, and serve the page"

import re
import sys
import warnings

from magnifier.checks import refuse
from magnifier.cli.common import check_gallery, command, open_embedder, open_learner, say

__all__ = ['magnifier_index', 'magnifier_search', 'magnifier_people', 'magnifier_delete', 'magnifier_app']


@command('src')
def magnifier_index(
    src: str = None,  # Folder of crops, at any depth, or a CSV table with columns path, pid, camid, time
    gallery: str = 'people',  # A folder, object storage (s3://bucket/people), or a Milvus server (http://host:19530)
    learner: str = 'runs/quick/learner.pkl',  # What embeds: learner (pickle: load what you trust), .onnx, saved folder
    pattern: str = None,  # For file names, with groups pid, camid, time; else as 0172_c4s3_.., cam4, 20260131_134500
    regions: bool = False,  # Keeps regions too, for magnifier_search --regions; for a new gallery
    bs: int = 64,  # Images embedded at once
    from_old: str = None,  # Brings a gallery of an earlier version over instead: OLD.db
    video: str = None,  # Adds who a tracker followed in a video file, or a folder of frames, instead of crops
    boxes: str = None,  # The tracker's MOTChallenge file for --video; without it people are detected and followed here
    camera: int = None,  # Number of the camera that took the video
    start: str = None,  # When its first frame was taken, in UTC: 2026-01-31T08:00
    fps: float = None,  # Frames a second; a folder of frames needs it
    every: int = 1,  # Embeds each track's first box and every so-many-th after it
    crops: str = None,  # Folder that keeps the people cut out of the video; without it none is kept
    tracker: str = 'bytetrack',  # Links the boxes found here: bytetrack or sort
    weights: str = None,  # The detector's (torchvision's Faster R-CNN); downloaded on first use if not given
    json: bool = False,  # Prints JSON
    debug: bool = False,  # Shows the traceback of an error
):
    """Adds images of people to a gallery. If it was stopped, run it again: images that are already in the gallery, by
    their content, are skipped.

    Examples: `magnifier_index crops --gallery people` · `magnifier_index crops.csv --learner model.onnx` ·
    `magnifier_index crops --pattern 'cam(?P<camid>\\d+)/t(?P<time>\\d+)'` · `magnifier_index --from OLD.db --gallery
    people` · `magnifier_index --video cam1.mp4 --boxes cam1.txt --camera 1 --start 2026-01-31T08:00 --gallery
    people`"""
    refuse({
        'name one of a folder of crops or a CSV table, a video with --video, or an old gallery with --from':
            sum(x is not None for x in (src, from_old, video)) != 1,
        f'{video}: name the camera that took it, as --camera 1': video is not None and camera is None,
    })
    from magnifier.gallery.gallery import Gallery, GalleryWarning
    adding = dict(bs=bs, progress=not json and sys.stderr.isatty())
    if src is not None: table = _crops(src, pattern)
    if video is not None: boxes = _boxes(video, boxes, fps, tracker, weights)
    embedder = None if from_old is not None else open_embedder(learner)
    with Gallery(gallery, regions=regions) as g, warnings.catch_warnings():
        warnings.simplefilter('ignore', GalleryWarning)  # said below
        if src is not None: result = g.add(embedder, table, **adding)
        elif video is not None:
            adding |= dict(camera=camera, start=start, fps=fps, every=every, crops=crops)
            result = g.add_video(embedder, video, boxes, **adding)
        else: result = _bring_over(from_old, g)
        told = dict(gallery=gallery, added=result.added, known=result.known)
        told |= dict(unreadable=result.skipped['path'].tolist(), images=len(g))
    if json: return _json(told)
    say(f'{gallery}: {result.added} images added, {result.known} known{_unreadable(result)}; it holds {told["images"]}')


def _unreadable(result):
    "How many files were no images, and the first of them; empty for none"
    if not len(result.skipped): return ''
    first = result.skipped.iloc[0]
    return f'; {len(result.skipped)} unreadable (first: {first.path}: {first.problem})'


def _crops(src, pattern):
    "The table of a folder of crops, or of a CSV file"
    from pathlib import Path
    from magnifier.gallery.entries import CROP_PATTERN, crops_csv, crops_folder
    return crops_csv(src) if Path(src).suffix.lower() == '.csv' else crops_folder(src, pattern or CROP_PATTERN)


def _boxes(video, boxes, fps, tracker, weights):
    "Boxes of people as given, or found in the video"
    from magnifier.gallery.video import Video, person_network, track_people
    frames = Video(video, fps=fps)
    return track_people(frames, person_network(weights), tracker=tracker) if boxes is None else boxes


def _bring_over(old, gallery):
    import pandas as pd
    from magnifier.gallery.gallery import Added
    from magnifier.gallery.milvus import bring_over
    return Added(bring_over(old, gallery.store), 0, pd.DataFrame(columns=['path', 'problem']))


@command('image')
def magnifier_search(
    image: str,  # An image of a person
    gallery: str = 'people',  # The gallery
    learner: str = 'runs/quick/learner.pkl',  # The model that made the gallery, as for magnifier_index
    k: int = 10,  # Hits at most
    not_camera: str = None,  # Cameras to leave out, as the image's own: 3 or 3,4
    cameras: str = None,  # Cameras to search in: 1 or 1,2
    since: str = None,  # Earliest time, in UTC: 2026-01-31 or 2026-01-31T13:45:00
    until: str = None,  # Latest time
    regions: str = None,  # Regions to compare, as foot or foot,lower_leg; the gallery must keep them
    rerank: bool = False,  # Re-orders the first hundred by k-reciprocal encoding
    threshold: float = None,  # Least similarity, -1 to 1
    by_identity: bool = False,  # One line an identity
    save: str = None,  # Writes the hits as a figure, as hits.png
    json: bool = False,  # Prints JSON
    debug: bool = False,  # Shows the traceback of an error
):
    """Who is this, and where else were they seen? Prints the hits, most similar first; exit code 1 for a
    mistake, 0 also without hits.

    Examples: `magnifier_search person.jpg --not-camera 3 --save hits.png` · `magnifier_search person.jpg
    --since 2026-01-31T13:00 --regions foot --json`"""
    from magnifier.gallery.gallery import Gallery
    check_gallery(gallery)
    with Gallery(gallery) as g:
        hits = g.search(
            open_embedder(learner),
            image,
            k=k,
            not_camera=_numbers(not_camera, 'not-camera'),
            cameras=_numbers(cameras, 'cameras'),
            since=since,
            until=until,
            regions=None if regions is None else _names(regions),
            rerank=rerank,
            threshold=threshold,
        )
    if save is not None:
        import magnifier.look  # noqa: F401, hits get their method that draws
        hits.show(k=k, save=save)
    table = hits.by_identity() if by_identity else hits.table
    if json: return _json(_records(table))
    say(table.drop(columns='key').to_string() if len(table) else 'no hits')


@command('gallery')
def magnifier_people(
    gallery: str = 'people',  # A gallery with tracklets: made by `magnifier_index --video`
    threshold: float = None,  # Least mean similarity of one person's tracklets, -1 to 1; without it one is found
    far: float = .01,  # Without a threshold: share of strangers, and of looks of one person, taken for exceptions
    travel: str = None,  # Least seconds between cameras, as 1-2:30,2-3:45
    anew: bool = False,  # Forgets who is who; else new tracklets join the people that exist
    csv: str = None,  # Writes the table: person, camera, from, to, tracklet, certainty
    mot: str = None,  # Folder that gets a MOTChallenge file for each video, with the people's numbers as ids
    save: str = None,  # Writes the timeline as a figure, as people.png
    debug: bool = False,  # Shows the traceback of an error
):
    """Joins the tracklets of all cameras to people, and says who was where, when. The images are labelled with their
    person.

    Examples: `magnifier_people people --csv people.csv --save people.png` · `magnifier_people people --threshold 0.6
    --travel 1-2:30`"""
    from magnifier.gallery.gallery import Gallery
    check_gallery(gallery)
    with Gallery(gallery) as g:
        table = g.people(threshold, far=far, travel=_travel(travel), anew=anew)
        if mot is not None: _write_mot(g, mot)
    if csv is not None: _write_csv(table, csv)
    if save is not None:
        from magnifier.look.gallery import show_timeline
        show_timeline(table, save=save)
    say(_summary(table).to_string(index=False))


def _travel(text):
    "(camera, camera) -> seconds"
    if text is None: return None
    found = [re.fullmatch(r'(\d+)-(\d+):(\d+(?:\.\d+)?)', part.strip()) for part in text.split(',')]
    if None in found: raise ValueError(f'--travel {text}: cameras and seconds wanted, as 1-2:30,2-3:45')
    return {(int(pair[1]), int(pair[2])): float(pair[3]) for pair in found}


def _summary(table):
    "One line a person"
    import pandas as pd
    return pd.DataFrame([
        dict(
            person=person,
            tracklets=len(rows),
            cameras=', '.join(str(camera) for camera in sorted(rows['camid'].unique())),
            first=f'{rows["start"].min():%Y-%m-%d %H:%M:%S}',
            last=f'{rows["end"].max():%Y-%m-%d %H:%M:%S}',
            certainty=round(rows['certainty'].mean(), 2),
        ) for person, rows in table.groupby('person')])


def _write_csv(table, file):
    from magnifier.files import aside
    renamed = table.rename(columns=dict(camid='camera', start='from', end='to'))
    with aside(file) as part: renamed.drop(columns=['path', 'key']).to_csv(part, index=False)


def _write_mot(g, folder):
    "A file for each camera's video: its boxes, with the person as id"
    from pathlib import Path
    from magnifier.gallery.people import people_boxes
    from magnifier.gallery.video import write_mot
    for name, boxes in people_boxes(g.store).items(): write_mot(boxes, Path(folder)/f'{name}.txt')


@command('gallery')
def magnifier_delete(
    gallery: str = 'people',  # The gallery
    pids: str = None,  # Identities whose images go: 7 or 7,12
    paths: str = None,  # Files that were added: one, or several with commas between
    until: str = None,  # Everything up to this time, in UTC
    older_than: str = None,  # Everything older than this: 30d, 12h or 90m
    debug: bool = False,  # Shows the traceback of an error
):
    """Deletes people from a gallery, and rewrites its files, so that nothing of them is left there. The image files
    themselves stay. If it was stopped, run it again to finish. Exit code 1 if no image matches.

    Examples: `magnifier_delete people --pids 7` · `magnifier_delete people --until 2026-01-01` · `magnifier_delete
    people --older-than 30d`"""
    from magnifier.gallery.gallery import Gallery
    check_gallery(gallery)
    if until is not None and older_than is not None:
        raise ValueError('--until and --older-than both limit the time: give one of them')
    with Gallery(gallery) as g:
        n = g.delete(
            pids=_numbers(pids, 'pids'),
            paths=None if paths is None else _paths(paths, g),
            until=until if older_than is None else _before(older_than),
        )
        g.compact()  # always: an earlier call may have been stopped between the two
        if not n and (pids, paths) != (None, None):
            raise ValueError(f'no image of {gallery} matches, or no longer; '
                             f'what earlier calls deleted has left its files too. It holds {len(g)}')
        timeless = int(g.images()['time'].isna().sum())
        aged = until is not None or older_than is not None
        kept = f', {timeless} of them without a time, which no age applies to' if timeless and aged else ''
        say(f'{gallery}: {n} images deleted; it holds {len(g)}{kept}')


def _names(text): return [t.strip() for t in text.split(',') if t.strip()]


def _paths(text, gallery):
    """One path, even with commas, if the gallery has it; else several paths separated by commas. Each as typed, and as
    `magnifier_index` adds it"""
    from pathlib import Path
    def both(name): return [name, str(Path(name).expanduser().absolute())]
    if len(gallery.images(paths=both(text))): return both(text)
    return [path for name in _names(text) for path in both(name)]


def _before(age):
    "The time that long ago, in seconds since 1970"
    import time
    wanted = re.fullmatch(r'(\d+(?:\.\d+)?)([dhm])', age.strip())
    if not wanted: raise ValueError(f'--older-than {age}: days, hours or minutes wanted, as 30d, 12h or 90m')
    return time.time() - float(wanted[1]) * dict(d=86400, h=3600, m=60)[wanted[2]]


def _numbers(text, name):
    if text is None: return None
    try: return [int(t) for t in _names(text)]
    except ValueError as e: raise ValueError(f'--{name} {text}: whole numbers wanted, as 3 or 3,4') from e


@command()
def magnifier_app(
    gallery: str = 'people',  # The gallery: a folder, or a server's address
    learner: str = 'runs/quick/learner.pkl',  # What made it: a saved folder, or a file (load what you trust)
    name: str = 'people',  # Of the gallery within that folder or server
    host: str = '127.0.0.1',  # Address to bind to: this machine alone. 0.0.0.0 lets the network in, without a password
    port: int = None,  # Port; the first free one from 7860 on where not given
    public_host: str = '',  # The name that visitors type, as people.example.org; other names are refused
    debug: bool = False,  # Shows the traceback of an error
):
    """Serves a page on this machine to search a gallery: drop or pick a person, see where else they were seen, by which
    regions, and why. Nothing that is dropped is kept. Ctrl-C ends it.

    Examples: `magnifier_app --gallery people --learner runs/quick/learner.pkl` · `magnifier_app --port 8000`

    For others to use it, put a proxy before it that asks for a password and speaks HTTPS, and give the name that they
    type: `magnifier_app --port 8000 --public-host people.example.org`. In nginx, this is enough:
    `location / { proxy_pass http://127.0.0.1:8000/; client_max_body_size 11m; auth_basic people;
    auth_basic_user_file ...; }`. The page answers under that name and this machine's own, and no other. In a network
    without a proxy, everybody who reaches it may search: `magnifier_app --host 0.0.0.0 --public-host 192.168.0.2`"""
    import signal
    from threading import Event
    check_gallery(gallery)
    from magnifier.app.server import LOCAL, serve_page
    from magnifier.gallery.gallery import Gallery
    learn = open_learner(learner)
    if host not in LOCAL:
        say(f'warning: whoever reaches {host} can search this gallery; nobody is asked for a password')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is as clean as Ctrl-C
    with Gallery(gallery, name=name) as people, learn.no_bar():
        try:
            with serve_page(learn, people, host=host, port=port, public_host=public_host) as address:
                say(f'{address} searches {len(people)} images of {gallery}; Ctrl-C ends it')
                Event().wait()
        except KeyboardInterrupt: say('closed; nothing that was dropped is kept')


def _records(table):
    "Rows for JSON: times as ISO texts in UTC, null where unknown"
    return [{c: _plain(x) for c, x in zip(table.columns, row)} for row in table.itertuples(index=False)]


def _plain(x):
    import pandas as pd
    if isinstance(x, list): return x
    if pd.isna(x): return None
    return x.isoformat() if isinstance(x, pd.Timestamp) else getattr(x, 'item', lambda: x)()


def _json(told):
    import json
    say(json.dumps(told))
