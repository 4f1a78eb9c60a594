"The parts of the page as FastHTML components. Images are embedded in the page's text, so no image has an address"
import base64
from io import BytesIO

import numpy as np
import pandas as pd
from fasthtml.common import *
from fasthtml.svg import Rect, Svg
from PIL import Image

from magnifier.app.search import known_identity, shrunk
from magnifier.look.drawing import REGION_COLOURS, paint_heat, paint_mask, region_name, spotlight
from magnifier.look.explain import REST, verdict
from magnifier.regions import BODY_REGIONS, REGIONS, region_indices
from magnifier.train.metrics import VISIBLE

__all__ = []

# Name -> title. When a tab other than the first is opened, the route of its name fills the element `NAME-shown`
TABS = {'search': 'Search', 'gallery': 'Gallery', 'people': 'People'}
MAX_BYTES = 10_000_000  # of an uploaded file; a crop of a person has some tens of thousands
ORDERS = ('identity', 'camera')
EVERYBODY = 'everybody'
PER_PAGE = 48
ROWS = 200  # of the third tab's table, at most
COLUMNS = ('person', 'camera', 'from (UTC)', 'to (UTC)', 'tracklet', 'certainty')
CARE = ('Hits are the images that a model finds most alike, not proof of who somebody is. '
        'People should be searched only where the law and they allow it.')
NO_THRESHOLD = 'No threshold: the most similar are shown, whoever they are. Move it to see what it would let through.'
NO_RATES = ('What a threshold stands for is not known here: this gallery has no two identities with a name. '
            'Label some people, or read it from a test set.')
NO_TRACKLETS = ('This gallery has single images and no tracklets, so that nobody can say who was where from when to '
                'when. Add what a tracker followed in a video: magnifier_index --video cam1.mp4 --boxes cam1.txt '
                '--camera 1 --start 2026-01-31T08:00')
CERTAINTY = ('Certainty is near 1 where a tracklet looks much more like its own person than like the next, below 0 '
             'where it looks more like another, and 0 where it stands alone.')


# The page as it opens

def whole_page(finder) -> tuple:
    "Header, main and footer: all tabs, the first of them open"
    tabs = []
    panels = []
    for name, title in TABS.items():
        first = name == 'search'
        form = search_form(finder) if first else Form(Div(id=f'{name}-shown'), id=name, action=name, autocomplete='off')
        tabs.append(Button(title, type='button', id=f'tab-{name}', role='tab', aria_controls=f'panel-{name}',
                           aria_selected='true' if first else 'false', tabindex=0 if first else -1))
        panels.append(Section(form, id=f'panel-{name}', role='tabpanel', aria_labelledby=f'tab-{name}',
                              hidden=not first))
    header = Header(H1('magnifier'), Nav(*tabs, role='tablist', aria_label='Views'))
    return header, Main(*panels), Footer(P(CARE))


def search_form(finder):
    "Who, where and when on the left; hits and why on the right"
    regions = [(r, region_name(r, stripes=finder.stripes)) for r in BODY_REGIONS]
    by_region = boxes('regions', regions, 'Compare only these regions', 'None ticked: the whole person')
    asked = Section(H2('Who'), drop_zone(), strip(finder), by_region if finder.by_region else '', where(finder),
                    cls='asked')
    threshold = Label('Least similarity of a hit ', Output('0.00', fr='threshold'),
                      Input(type='range', id='threshold', min=0, max=1, step=.01, value=0), fr='threshold')
    masks = Label(Input(type='checkbox', name='masks'), "Show the model's part masks", cls='check')
    tuning = Div(threshold, masks if finder.parts else '', Div(P(id='rates'), role='status'), cls='tuning')
    told = Div(P(id='status'), role='status')
    found = Section(tuning, told, Div(id='why'), Div(id='hits'), cls='found', aria_label='Hits')
    return Form(asked, found, id='search', action='search', autocomplete='off')


def drop_zone():
    "The place to drop an image, and who was chosen"
    kinds = 'image/jpeg,image/png,image/webp,image/bmp'
    file = Input(type='file', id='file', name=False, accept=kinds, aria_describedby='limits', data_most=MAX_BYTES)
    limits = f'JPEG, PNG, WebP or BMP, up to {MAX_BYTES/1e6:.0f} MB. It stays in memory and is written nowhere.'
    label = Label(B('Choose an image'), ' of one person, or drop or paste it here', file, fr='file')
    return Div(chosen(), Div(label, P(limits, id='limits', cls='small')), id='drop')


def strip(finder):
    "A few people of the gallery to begin with"
    rows = [(row, finder.image(row['key'])) for _, row in finder.some().iterrows()]
    cards = [card(shrunk(image, 128), 'query', row['key'], who(row)[:2], does='Search for')
             for row, image in rows if image is not None]
    if not cards: return ''
    title = P('Or pick someone of the gallery:', id='some', cls='small')
    return Div(title, Ol(*cards, cls='cards small-cards', aria_labelledby='some'))


def where(finder):
    "Cameras and times"
    cameras = [(c, f'camera {c}') for c in finder.cameras]
    parts = []
    if cameras:
        left_out = [('own', "the query's own camera"), ('', 'no camera'), *cameras]
        parts = [choice('Leave out', 'leave_out', left_out, 'own'),
                 boxes('cameras', cameras, 'Only these cameras', 'None ticked: all')]
    if finder.has_times:
        times = finder.images['time']
        first, last = (f'{t:%Y-%m-%dT%H:%M}' for t in (times.min(), times.max()))
        parts += [Label(f'Seen {text} (UTC)', Input(type='datetime-local', name=name, min=first, max=last))
                  for name, text in (('since', 'from'), ('until', 'until'))]
    return Details(Summary('Where and when'), *parts, id='where') if parts else ''


# What several pieces are made of

def boxes(name, choices, legend, note):
    "A checkbox for each (value, text)"
    ticks = [Label(Input(type='checkbox', name=name, value=value), text, cls='check') for value, text in choices]
    return Fieldset(Legend(legend), P(note, cls='small'), *ticks, id=name)


def choice(label, name, choices, chosen):
    "A choice of one from several (value, text)"
    options = [Option(text, value=value, selected=value == chosen) for value, text in choices]
    return Label(label, ' ', Select(*options, name=name))


def alert(text): return P(text, role='alert', cls='alert')


def counted(n, noun): return f'{n} {noun}' if n == 1 else f'{n} {noun}s'


def who(row):
    "A hit's identity, camera and time in words"
    words = ['unknown' if pd.isna(row['pid']) else f'identity {row["pid"]}']
    if not pd.isna(row['camid']): words.append(f'camera {row["camid"]}')
    if not pd.isna(row['time']): words.append(f'{row["time"]:%Y-%m-%d\n%H:%M:%S}')  # a narrow card breaks it there
    return words


def card(image, name, value, words, *, does, first='', same=None, labels=None):
    "An image that is a button: it sends `name=value`, and its label reads out what is under it"
    mark, said = {True: ('✓ ', 'the same person'), False: ('✗ ', 'another person'), None: ('', '')}[same]
    label = f'{does}: ' + ', '.join(word for word in (first, *words, said) if word)
    lines = [Span(mark + word) for word in words[:1]] + [Span(word) for word in words[1:]]
    return Li(Button(picture(image, labels), B(first) if first else '', *lines, type='button', name=name, value=value,
                     form='search', cls='card', aria_label=label))


def picture(image, labels=None, *, alt=''):
    "An image inside the page, with its part mask; a text where there is no image"
    if image is None: return Span('no image: its file is gone or was changed', cls='none')
    if labels is not None: image = paint_mask(as_array(image), labels)
    return Img(src=data_url(image), alt=alt)


def data_url(image):
    "A PIL image, or an (h,w,3) array in [0,1], as 'data:image/jpeg;base64,...'"
    if isinstance(image, np.ndarray): image = Image.fromarray((image.clip(0, 1)*255).round().astype(np.uint8))
    file = BytesIO()
    image.save(file, format='JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def as_array(image): return np.asarray(image, dtype=np.float32)/255


def dot(region):
    colour = '#' + ''.join(f'{round(255*c):02x}' for c in REGION_COLOURS[REGIONS.index(region)])
    return Svg(Rect(width=10, height=10, fill=colour), viewBox='0 0 10 10', aria_hidden='true', cls='dot')


def legend(stripes):
    "Which colour is which region"
    regions = [Li(dot(r), region_name(r, stripes=stripes)) for r in BODY_REGIONS]
    return Ul(*regions, cls='legend', aria_label='colours of the part masks')


# The answers of the first tab

def chosen(query=None, wrong='') -> Div:
    "The person who is searched (a `Query`, or None for nobody); `wrong` says why the last image was refused"
    key = Input(type='hidden', name='query', value='' if query is None else query.key)
    if query is None: return Div(key, alert(wrong) if wrong else '', id='chosen')
    what = 'your image' if query.row is None else ', '.join(who(query.row))
    image = picture(shrunk(query.image), alt=f'the person who is searched: {what}')
    forget = Button('Forget', type='button', name='query', value='', cls='quiet', aria_label='Forget this image')
    return Div(key, Figure(image, Figcaption(what)), forget, id='chosen')


def status(found=None, threshold=0., *, wrong='', parts=True) -> P:
    "How many were found (a `Found`, or None before the first search), and what was asked; or what went wrong"
    if wrong: return alert(wrong)(id='status')
    return P(status_words(found, threshold, parts), id='status')


def status_words(found, threshold, parts):
    "`parts` tells whether hits can be explained"
    if found is None: return 'Nobody is searched yet: choose an image, or pick someone.'
    shown, n = found.above(threshold), len(found.hits)
    if not n: return 'Nobody was found with these filters: widen them.'
    if not shown: return f'No hit at this threshold: all of the first {n} are less alike. Lower it.'
    regions = ', '.join(region_name(r, stripes=found.stripes) for r in found.hits.regions or ())
    by = f' by {regions}' if regions else ''
    words = [f'{counted(shown, "hit")}{by}, most similar first.']
    if found.left_out: words.append(f'Left out: camera {", ".join(map(str, found.left_out))}.')
    if shown < n: words.append(f'{n - shown} of the first {n} are less alike than the threshold and not shown.')
    if parts: words.append('Choose one to see why it was found.')
    return ' '.join(words)


def rates_said(rates, threshold, images) -> P:
    """How many other people a threshold accepts, and how many images of the same person it misses, by `PairRates` (None
    where they are not known) of a gallery with so many images"""
    if rates is None: return P(NO_RATES, id='rates', cls='small')
    if threshold <= 0: return P(NO_THRESHOLD, id='rates', cls='small')
    n, accepts = len(rates.impostor), float(np.mean(rates.impostor >= threshold))
    share = percent(accepts) if accepts else f'under {percent(1/n)}'
    words = [B(f'False accepts {share}'), f': so many pairs of two people are at least {threshold:.2f} alike, '
             f'in a search {about(accepts*images)} of {images:,} images. ']
    if len(rates.genuine):
        misses = percent(float(np.mean(rates.genuine < threshold)))
        words += [B(f'Misses {misses}'), ': so many pairs of one person, seen by two cameras, are less alike. ']
    words.append(f'Counted over {n:,} pairs of this gallery; other people and cameras give other rates.')
    return P(*words, id='rates', cls='small')


def percent(share): return f'{100*share:.2g} %' if share < .1 else f'{100*share:.0f} %'


def about(number):
    if number >= 10: return f'about {number:.0f}'
    return f'about {number:.1f}' if number >= .05 else 'hardly one'


def hits_list(found=None, threshold=0., labels=None) -> Div:
    """The hits of a `Found` as buttons, most similar first; a mark says whether a hit is known to be the query's
    identity, or another. `labels` are (h, w) part labels of each hit, to be painted over it"""
    if found is None: return Div(id='hits')
    cards = []
    for i, row in enumerate(found.hits.table.head(found.above(threshold)).to_dict('records')):
        first = f'{i + 1}. {row["similarity"]:.2f}'
        pid = known_identity(row)
        same = None if None in (pid, found.query.pid) else pid == found.query.pid
        cards.append(card(found.images[i], 'hit', row['key'], who(row), does='Explain', first=first, same=same,
                          labels=labels and labels[i]))
    hits = Ol(*cards, cls='cards', aria_label='hits, most similar first')
    return Div(legend(found.stripes) if labels and cards else '', hits, id='hits')


def why(match=None, masks=False, *, wrong='') -> Div:
    """Why a hit was found, by a `Match`: whether it is the same person, a sentence, four images, a table. `masks`
    paints the model's part masks over the images; `wrong` says why there is no explanation"""
    if match is None: return Div(alert(wrong) if wrong else '', id='why')
    names = ('query', f'hit {match.place}')
    images = [picture(image, labels if masks else None, alt=name)
              for image, labels, name in zip(match.images, match.labels, names)]
    shown = [f'compared regions of {name}' if match.regions else f'similarity in {name}' for name in names]
    images += [Img(src=data_url(image), alt=text) for image, text in zip(evidence(match), shown)]
    figures = [Figure(image, Figcaption(text)) for image, text in zip(images, (*names, *shown))]
    title = H3(f'Hit {match.place}: ' + ', '.join(who(match.row)), tabindex=-1)
    two = Div(Div(*figures, cls='four'), region_bars(match), cls='two')
    key = Input(type='hidden', name='hit', value=match.row['key'])
    parts = [title, judged(match), P(match.words), two, legend(match.stripes) if masks else '', key]
    return Div(Section(*parts, aria_label='Why this hit'), id='why')


def judged(match):
    "Whether the hit is the query's person, by the gallery's labels"
    pids = match.query.pid, known_identity(match.row)
    words = verdict(*pids) or 'Nobody has said whether these two are the same person.'
    if None in pids or pids[0] == pids[1]: return P(words, cls='small')
    return P(f'{words} What follows is why the model finds them alike all the same.', cls='other')


def evidence(match):
    "Where the two images are alike: the compared regions, or else both similarity maps on one scale"
    images = [as_array(image) for image in match.images]
    if match.regions:
        regions = region_indices(match.regions)
        return [spotlight(image, labels, regions) for image, labels in zip(images, match.labels)]
    most = max(1e-12, *(float(heat.max()) for heat in match.heats))
    return [paint_heat(image, heat.clip(min=0)/most) for image, heat in zip(images, match.heats)]


def region_bars(match):
    "Regions with bars, and beside each bar its number"
    names = BODY_REGIONS if match.regions else (*BODY_REGIONS, REGIONS[0], REST)
    most = max(1e-6, match.table['share'].abs().max())
    rows = [region_row(name, match.table.loc[name], most, match) for name in names]
    return Table(Caption('How alike the regions are that both images show (1 the same, 0 unrelated), '
                         'and what each adds to the similarity'),
                 Thead(Tr(*(Th(title, scope='col') for title in ('Region', 'Alike', 'Adds')))), Tbody(*rows))


def region_row(name, row, most, match):
    alike = adds = Td()
    if match.regions and name not in match.regions: alike = Td('not compared', cls='small')
    elif np.isfinite(row['similarity']): alike = Td(*bar(row['similarity'], 1., '.2f'))
    elif name != REST: alike = Td(unseen(row), cls='small')
    if np.isfinite(row['share']): adds = Td(*bar(row['share'], most, '+.2f'))
    mark = dot(name) if name in BODY_REGIONS else ''
    return Tr(Th(mark, region_name(name, stripes=match.stripes), scope='row'), alike, adds)


def unseen(row):
    query = row['seen_query'] >= VISIBLE
    hit = row['seen_hit'] >= VISIBLE
    if not query and not hit: return 'not seen in either'
    return 'not seen in the hit' if query else 'not seen in the query'


def bar(value, most, form):
    "A bar as long as the number beside it; a negative number has another style"
    length = Rect(width=f'{min(100., 100*abs(value)/most):.0f}', height=10, cls='minus' if value < 0 else 'plus')
    drawn = Svg(length, viewBox='0 0 100 10', preserveAspectRatio='none', aria_hidden='true', cls='bar')
    return drawn, Span(f'{round(value, 2) + 0.:{form}}', cls='number')  # + 0. makes 0.00 of -0.00


# The second tab

def gallery_page(finder, by='identity', only=EVERYBODY, page=1) -> Div:
    """One page of everybody, in groups by identity or camera; `only` is the name of one group, as 'camera 2'. What
    names no such order, group or page is taken for identity, everybody, and the nearest page"""
    by = by if by in ORDERS else 'identity'
    rows = grouped(finder.images, by)
    sizes = rows['group'].value_counts(sort=False).to_dict()
    if only in sizes: rows = rows[rows['group'] == only]
    pages = max(1, -(-len(rows)//PER_PAGE))
    page = min(max(1, page), pages)
    start = (page - 1)*PER_PAGE
    groups = []
    for name, part in rows.iloc[start:start + PER_PAGE].groupby('group', sort=False):
        size = counted(sizes[name], 'image')
        if start and rows['group'].iloc[start - 1] == name: size += ', continued'  # from the page before
        groups.append(group(finder, name, part, size, by))
    order = choice('Order', 'by', [(o, f'by {o}') for o in ORDERS], by)
    show = choice('Show', 'only', [(name, name) for name in (EVERYBODY, *sizes)], only)
    return Div(Div(order, show, turning(page, pages), cls='tuning'), Div(*groups, cls='groups'), id='gallery-shown')


def grouped(images, by):
    "Images in the order of the tab, with the name of each one's group"
    first, second = ('camid', 'pid') if by == 'camera' else ('pid', 'camid')
    keys = [first, 'time', second, 'path'] if by == 'camera' else [first, second, 'time', 'path']
    rows = images.sort_values(keys, na_position='last', ignore_index=True)
    return rows.assign(group=[f'{by} unknown' if pd.isna(i) else f'{by} {i}' for i in rows[first]])


def group(finder, name, rows, size, by):
    "A heading and its images, each with the labels that the heading does not give"
    cards = []
    for _, row in rows.iterrows():
        words = [word for word in who(row) if not word.startswith(by) and word != 'unknown']
        cards.append(card(shrunk(finder.image(row['key']), 160), 'query', row['key'], words, does=f'Search for {name}'))
    return Section(H3(name, ' ', Small(size)), Ol(*cards, cls='cards small-cards'), aria_label=name)


def turning(page, pages):
    "Buttons for the other pages"
    def turn(text, to):
        disabled = to == page or not 1 <= to <= pages
        return Button(text, type='button', id=f'page-{text.lower()}', name='page', value=to, cls='quiet',
                      disabled=disabled)
    return Nav(turn('First', 1), turn('Previous', page - 1), Span(f'Page {page} of {pages}', role='status'),
               turn('Next', page + 1), turn('Last', pages), aria_label='Pages')


# The third tab

def people_page(found) -> Div:
    "Of a `WhoWhere`: a timeline with a lane a camera, and a table with a row a tracklet; or how to make some"
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
