"Who was where, from a shell"
import re

from magnifier.cli.common import check_gallery, command, say

__all__ = ['magnifier_people']


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
    from magnifier.gallery.video import write_mot
    from magnifier.gallery.tracklets import people_boxes
    for name, boxes in people_boxes(g.store).items(): write_mot(boxes, Path(folder)/f'{name}.txt')
