"The third tab: who was where, when, as a timeline and a table"
import base64
from dataclasses import dataclass

import pandas as pd
from fasthtml.common import H3, Caption, Div, Img, P, Section, Table, Tbody, Td, Th, Thead, Tr

from magnifier.look.gallery import show_timeline

__all__ = ['WhoWhere', 'who_was_where', 'people_page']

ROWS = 200  # of the table, at most
COLUMNS = ('person', 'camera', 'from (UTC)', 'to (UTC)', 'tracklet', 'certainty')
NO_TRACKLETS = ('This gallery has single images and no tracklets, so that nobody can say who was where from when to '
                'when. '
                'Add what a tracker followed in a video: magnifier_index --video cam1.mp4 --boxes cam1.txt --camera 1 '
                '--start 2026-01-31T08:00')
CERTAINTY = ('Certainty is near 1 where a tracklet looks much more like its own person than like the next, below 0 '
             'where '
             'it looks more like another, and 0 where it stands alone.')


@dataclass(frozen=True, eq=False)
class WhoWhere:
    "What a gallery knows of tracklets and people"
    table: pd.DataFrame  # As `Gallery.people` gives it, of the tracklets whose person is known
    unjoined: int  # Tracklets that nobody has joined to a person yet
    timeline: bytes  # PNG; empty where the table is


def who_was_where(
    gallery,  # A Gallery
) -> WhoWhere:
    "People as they were joined. Nobody is joined here, and nothing is written"
    tracklets = gallery.tracklets().table
    known = tracklets['tracklet'][tracklets['pid'].notna()]
    if not len(known): return WhoWhere(tracklets.iloc[:0], len(tracklets), b'')
    table = gallery.people(threshold=1, save=False)  # 1 is more alike than two tracklets ever are
    table = table[table['tracklet'].isin(known)].reset_index(drop=True)
    return WhoWhere(table, len(tracklets) - len(known), show_timeline(table).png())


def people_page(
    found: WhoWhere,  # As `who_was_where` gives it
) -> Div:
    "A timeline with a lane a camera, and a table with a row a tracklet; or how to make some"
    if not len(found.table) and not found.unjoined: return Div(P(NO_TRACKLETS), id='people-shown')
    told = (f'Tracklets that are not joined to people yet: {found.unjoined}. Run magnifier_people on this gallery, and '
            'open the page again.')
    parts = [P(told)] if found.unjoined else []
    if len(found.table): parts += [timeline(found), table_of(found.table)]
    return Div(*parts, id='people-shown')


def timeline(found):
    data = 'data:image/png;base64,' + base64.b64encode(found.timeline).decode()
    alt = 'A lane for each camera, a colour and a number for each person; the table below says the same'
    return Section(H3('Who was where'), Img(src=data, alt=alt), aria_label='timeline')


def table_of(people):
    rows = [Tr(*map(Td, words_of(row))) for row in people.head(ROWS).itertuples()]
    more = f' The first {ROWS} of {len(people)} rows.' if len(people) > ROWS else ''
    head = Thead(Tr(*[Th(name, scope='col') for name in COLUMNS]))
    return Table(Caption(CERTAINTY + more), head, Tbody(*rows))


def words_of(row):
    "A row of the table as text, in the order of `COLUMNS`"
    times = [f'{time:%Y-%m-%d %H:%M:%S}' for time in (row.start, row.end)]
    certainty = '' if pd.isna(row.certainty) else f'{row.certainty:.2f}'
    return str(row.person), str(row.camid), *times, row.tracklet, certainty
