"The page's pieces as FastHTML components. Images are inside the text, so that no address of an image is ever asked for"
import base64
from io import BytesIO

import numpy as np
import pandas as pd
from fasthtml.common import *
from fasthtml.svg import Rect, Svg
from PIL import Image
from magnifier.app.search import shrunk
from magnifier.app.uploads import MAX_BYTES
from magnifier.look.drawing import paint_heat, paint_mask, spotlight
from magnifier.look.explain import REST
from magnifier.look.palette import REGION_COLOURS, region_name
from magnifier.regions import BODY_REGIONS, N_REGIONS, REGIONS, region_indices
from magnifier.train.parts import VISIBLE

__all__ = ['TABS', 'EVERYBODY', 'whole_page', 'chosen', 'status', 'rates_said', 'hits_list', 'why', 'gallery_page', 'group_choices']

TABS = {'search': 'Search', 'gallery': 'Gallery'}  # a tab's panel has a form of the tab's name, sent when the tab is opened
ORDERS = {'identity': 'pid', 'camera': 'camid'}
EVERYBODY = 'everybody'
PER_PAGE = 48
CARE = ('Hits are the images that a model finds most alike, not proof of who somebody is. '
        'People should be searched only where the law and they allow it.')
NO_THRESHOLD = 'No threshold: the most similar are shown, whoever they are. Move it to see what it would let through.'
NO_RATES = ('What a threshold stands for is not known here: this gallery has no two identities with a name. '
            'Label some people, or read it from a test set.')


def whole_page(
    finder,  # A `Finder`
) -> tuple:  # Header, main and footer
    "The page as it opens"
    tabs = [Button(title, type='button', id=f'tab-{name}', role='tab', aria_controls=f'panel-{name}',
                   aria_selected='true' if name == 'search' else 'false', tabindex=0 if name == 'search' else -1)
            for name, title in TABS.items()]
    forms = {'search': search_form, 'gallery': gallery_form}
    panels = [Section(forms[name](finder), id=f'panel-{name}', role='tabpanel', aria_labelledby=f'tab-{name}', hidden=name != 'search')
              for name in TABS]
    return (Header(H1('magnifier'), Nav(*tabs, role='tablist', aria_label='Views')), Main(*panels), Footer(P(CARE)))


def search_form(
    finder,  # A `Finder`
) -> Form:
    "Who, where and when on the left; hits and why on the right"
    regions = [(r, r.replace('_', ' ')) for r in BODY_REGIONS]
    by_region = boxes('regions', regions, 'Compare only these regions', 'None ticked: the whole person') if finder.by_region else ''
    asked = Section(H2('Who'), drop_zone(), strip(finder), by_region, where(finder), cls='asked')
    threshold = Label('Least similarity of a hit ', Output('0.00', fr='threshold'),
                      Input(type='range', id='threshold', min=0, max=1, step=.01, value=0), fr='threshold')
    masks = Label(Input(type='checkbox', name='masks'), "Show the model's part masks", cls='check') if finder.parts else ''
    tuning = Div(threshold, masks, Div(P(id='rates'), role='status'), cls='tuning')
    found = Section(tuning, Div(P(id='status'), role='status'), Div(id='why'), Div(id='hits'), cls='found', aria_label='Hits')
    return Form(asked, found, id='search', action='search', autocomplete='off')


def drop_zone():
    "The place to drop an image, and who was chosen"
    file = Label(B('Choose an image'), ' of one person, or drop or paste it here',
                 Input(type='file', id='file', name=False, accept='image/jpeg,image/png,image/webp,image/bmp', aria_describedby='limits',
                       data_most=MAX_BYTES), fr='file')
    limits = P(f'JPEG, PNG, WebP or BMP, up to {MAX_BYTES/1e6:.0f} MB. It stays in memory and is written nowhere.', id='limits', cls='small')
    return Div(chosen(), Div(file, limits), id='drop')


def chosen(
    query=None,  # A `Query`; None for nobody
    wrong: str = '',  # Why the last image was refused
) -> Div:
    "Who is searched"
    key = '' if query is None else query.key
    parts = [Input(type='hidden', name='query', value=key)]
    if query is not None:
        what = 'your image' if query.row is None else ', '.join(who(query.row))
        parts += [Figure(picture(shrunk(query.image), alt=f'the person who is searched: {what}'), Figcaption(what)),
                  Button('Forget', type='button', name='query', value='', cls='quiet', aria_label='Forget this image')]
    return Div(*parts, *([alert(wrong)] if wrong else []), id='chosen')


def strip(finder):
    "A few people of the gallery to begin with"
    rows = [(row, finder.image(row['key'])) for _, row in finder.some().iterrows()]
    cards = [card(shrunk(image, 128), 'query', row['key'], who(row)[:2], does='Search for') for row, image in rows if image is not None]
    if not cards: return ''
    return Div(P('Or pick someone of the gallery:', id='some', cls='small'), Ol(*cards, cls='cards small-cards', aria_labelledby='some'))


def where(finder):
    "Cameras and times"
    cameras = [(c, f'camera {c}') for c in finder.cameras]
    parts = []
    if cameras:
        left_out = [Option("the query's own camera", value='own', selected=True), Option('no camera', value='')]
        left_out += [Option(text, value=value) for value, text in cameras]
        parts = [Label('Leave out ', Select(*left_out, name='leave_out')), boxes('cameras', cameras, 'Only these cameras', 'None ticked: all')]
    if finder.has_times:
        times = finder.images['time']
        first, last = (f'{t:%Y-%m-%dT%H:%M}' for t in (times.min(), times.max()))
        parts += [Label(f'Seen {text} (UTC)', Input(type='datetime-local', name=name, min=first, max=last))
                  for name, text in (('since', 'from'), ('until', 'until'))]
    return Details(Summary('Where and when'), *parts, id='where') if parts else ''


def boxes(name, choices, legend, note):
    "A box to tick for each (value, text)"
    ticks = [Label(Input(type='checkbox', name=name, value=value), text, cls='check') for value, text in choices]
    return Fieldset(Legend(legend), P(note, cls='small'), *ticks, id=name)


def who(row):
    "Words on who, where and when"
    words = ['unknown' if pd.isna(row['pid']) else f'identity {row["pid"]}']
    if not pd.isna(row['camid']): words.append(f'camera {row["camid"]}')
    if not pd.isna(row['time']): words.append(f'{row["time"]:%Y-%m-%d\n%H:%M:%S}')  # a narrow card breaks it there
    return words


def picture(image, labels=None, *, alt=''):
    "An image as text, painted with part labels; words where there is no image"
    if image is None: return Span('no image: its file is gone or was changed', cls='none')
    if labels is not None: image = paint_mask(as_array(image), labels)
    return Img(src=data_url(image), alt=alt)


def data_url(image):
    "A PIL image, or (h,w,3) array in [0,1], as 'data:image/jpeg;base64,...'"
    if isinstance(image, np.ndarray): image = Image.fromarray((image.clip(0, 1)*255).round().astype(np.uint8))
    file = BytesIO()
    image.save(file, format='JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def as_array(image): return np.asarray(image, dtype=np.float32)/255


def card(image, name, value, words, *, does, first='', same=None, labels=None):
    "An image that is a button: it sends `name=value`, and its label reads out what is under it"
    mark = {True: '✓ ', False: '✗ ', None: ''}[same]
    read = {True: 'the same person', False: 'another person', None: ''}[same]
    label = f'{does}: ' + ', '.join(w for w in (first, *words, read) if w)
    lines = [Span((mark if i == 0 else '') + word) for i, word in enumerate(words)]
    return Li(Button(picture(image, labels), *([B(first)] if first else []), *lines, type='button', name=name, value=value,
                     form='search', cls='card', aria_label=label))


def alert(text): return P(text, role='alert', cls='alert')


def status(
    found=None,  # A `Found`; None before the first search
    threshold: float = 0.,  # Least similarity
    *,
    wrong: str = '',  # What went wrong
    parts: bool = True,  # Whether hits can be explained
) -> P:
    "How many were found, and what was asked"
    if wrong: return P(wrong, id='status', role='alert', cls='alert')
    return P(status_words(found, threshold, parts), id='status')


def status_words(found, threshold, parts):
    if found is None: return 'Nobody is searched yet: choose an image, or pick someone.'
    shown, n = found.above(threshold), len(found.hits)
    if not n: return 'Nobody was found with these filters: widen them.'
    if not shown: return f'No hit at this threshold: all of the first {n} are less alike. Lower it.'
    regions = ' by ' + ', '.join(found.hits.regions).replace('_', ' ') if found.hits.regions else ''
    words = [f'{shown} hit{"s"*(shown != 1)}{regions}, most similar first.']
    if found.left_out: words.append(f'Left out: camera {", ".join(map(str, found.left_out))}.')
    if shown < n: words.append(f'{n - shown} of the first {n} are less alike than the threshold and not shown.')
    if parts: words.append('Choose one to see why it was found.')
    return ' '.join(words)


def rates_said(
    rates,  # `PairRates`, or None where they are not known
    threshold: float,  # Similarity
    images: int,  # In the gallery
) -> P:
    "What the threshold stands for"
    if rates is None: return P(NO_RATES, id='rates', cls='small')
    if threshold <= 0: return P(NO_THRESHOLD, id='rates', cls='small')
    n, accepts = len(rates.impostor), float(np.mean(rates.impostor >= threshold))
    share = percent(accepts) if accepts else f'under {percent(1/n)}'
    parts = [B(f'False accepts {share}'), f': so many pairs of two people are at least {threshold:.2f} alike, in a search '
             f'{about(accepts*images)} of {images:,} images.']
    if len(rates.genuine):
        parts += [' ', B(f'Misses {percent(float(np.mean(rates.genuine < threshold)))}'), ': so many pairs of one person, seen by two cameras, are less alike.']
    return P(*parts, f' Counted over {n:,} pairs of this gallery; other people and cameras give other rates.', id='rates', cls='small')


def percent(share): return f'{100*share:.2g} %' if share < .1 else f'{100*share:.0f} %'


def about(number):
    if number >= 10: return f'about {number:.0f}'
    return f'about {number:.1f}' if number >= .05 else 'hardly one'


def hits_list(
    found=None,  # A `Found`; None before the first search
    threshold: float = 0.,  # Least similarity
    labels=None,  # (h, w) part labels of each hit, to be painted over it
) -> Div:
    "The hits as buttons, most similar first; marked where their identity is known to be the query's, or another"
    if found is None: return Div(id='hits')
    rows = found.hits.table.head(found.above(threshold)).to_dict('records')
    cards = [card(found.images[i], 'hit', row['key'], who(row), does='Explain', first=f'{i + 1}. {row["similarity"]:.2f}',
                  same=found.query.same(row), labels=labels and labels[i]) for i, row in enumerate(rows)]
    return Div(*([legend()] if labels and cards else []), Ol(*cards, cls='cards', aria_label='hits, most similar first'), id='hits')


def why(
    match=None,  # A `Match`; None for no explanation
    masks: bool = False,  # Paints the model's part masks over the images
    *,
    wrong: str = '',  # Why there is no explanation
) -> Div:
    "Why a hit was found: whether it is the same person, four images, a sentence, a table"
    if match is None: return Div(alert(wrong) if wrong else '', id='why')
    names = ('query', f'hit {match.place}')
    shown = list(zip(names, (picture(image, labels if masks else None, alt=name)
                             for image, labels, name in zip(match.images, match.labels, names))))
    kind = 'compared regions of' if match.regions else 'similarity in'
    shown += [(f'{kind} {name}', Img(src=data_url(image), alt=f'{kind} {name}')) for name, image in zip(names, evidence(match))]
    return Div(Section(H3(f'Hit {match.place}: ' + ', '.join(who(match.row)), tabindex=-1), verdict(match), P(match.words),
                       Div(Div(*(Figure(image, Figcaption(text)) for text, image in shown), cls='four'), region_bars(match), cls='two'),
                       *([legend()] if masks else []), Input(type='hidden', name='hit', value=match.row['key']), aria_label='Why this hit'),
               id='why')


def verdict(match):
    "Whether the hit is the person who was searched, as far as the gallery knows"
    same = match.query.same(match.row)
    if same is None: return P('Nobody has said whether these two are the same person.', cls='small')
    if same: return P('The same person: the gallery gives both images this identity.', cls='small')
    return P(f'Another person: the query is identity {match.query.row["pid"]}, and this hit is identity {match.row["pid"]}. '
             'What follows is why the model finds them alike all the same.', cls='other')


def evidence(match):
    "Where the two are alike: the compared regions alone, or else both similarity maps on one scale"
    images = [as_array(image) for image in match.images]
    if match.regions: return [spotlight(o, labels, region_indices(match.regions)) for o, labels in zip(images, match.labels)]
    most = max(1e-12, *(float(heat.max()) for heat in match.heats))
    return [paint_heat(image, heat.clip(min=0)/most) for image, heat in zip(images, match.heats)]


def region_bars(match):
    "Regions with bars, and beside each bar its number"
    most = max(1e-6, match.table['share'].abs().max())
    rest = [] if match.regions else [REGIONS[0], REST]
    rows = [region_row(name, match.table.loc[name], most, match.regions) for name in (*BODY_REGIONS, *rest)]
    return Table(Caption('How alike the regions are that both images show (1 the same, 0 unrelated), and what each adds to the similarity'),
                 Thead(Tr(*(Th(name, scope='col') for name in ('Region', 'Alike', 'Adds')))), Tbody(*rows))


def region_row(name, row, most, regions):
    alike, adds = Td(), Td()
    if regions and name not in regions: alike = Td('not compared', cls='small')
    elif np.isfinite(row['similarity']): alike = Td(*bar(row['similarity'], 1., '.2f'))
    elif name != REST: alike = Td(unseen(row), cls='small')
    if np.isfinite(row['share']): adds = Td(*bar(row['share'], most, '+.2f'))
    return Tr(Th(*([dot(REGIONS.index(name))] if name in BODY_REGIONS else []), name.replace('_', ' '), scope='row'), alike, adds)


def unseen(row):
    query, hit = row['seen_query'] >= VISIBLE, row['seen_hit'] >= VISIBLE
    if not query and not hit: return 'not seen in either'
    return 'not seen in the hit' if query else 'not seen in the query'


def bar(value, most, form):
    "A bar as long as the number beside it; what takes away is drawn otherwise"
    length = min(100., 100*abs(value)/most)
    return (Svg(Rect(width=f'{length:.0f}', height=10, cls='minus' if value < 0 else 'plus'), viewBox='0 0 100 10',
                preserveAspectRatio='none', aria_hidden='true', cls='bar'), Span(f'{value:{form}}', cls='number'))


def dot(region):
    colour = '#' + ''.join(f'{round(255*c):02x}' for c in REGION_COLOURS[region])
    return Svg(Rect(width=10, height=10, fill=colour), viewBox='0 0 10 10', aria_hidden='true', cls='dot')


def legend():
    "Which colour is which region"
    return Ul(*(Li(dot(k), region_name(k)) for k in range(1, N_REGIONS)), cls='legend', aria_label='colours of the part masks')


def gallery_form(finder):
    "The gallery's tab before it is opened"
    return Form(Div(id='everybody'), id='gallery', action='gallery', autocomplete='off')


def group_choices(
    images,  # `Gallery.images()`
    by: str,  # identity or camera
) -> list:  # `EVERYBODY`, and a name for each group: 'identity 3', 'identity unknown'
    "What the gallery's tab may be narrowed to"
    column = images[ORDERS[by]]
    known = sorted(column.dropna().astype(int).unique())
    return [EVERYBODY, *(f'{by} {i}' for i in known), *([f'{by} unknown'] if column.isna().any() else [])]


def gallery_page(
    finder,  # A `Finder`
    by: str = 'identity',  # Or camera
    only: str = EVERYBODY,  # One of `group_choices`; everybody for what is none
    page: int = 1,  # From 1; beyond the last is the last
) -> Div:
    "One page of the gallery, in groups with headings"
    by = by if by in ORDERS else 'identity'
    choices = group_choices(finder.images, by)
    only = only if only in choices else EVERYBODY
    rows = ordered(finder.images, by)
    if only != EVERYBODY: rows = rows[rows['group'] == only]
    pages = max(1, -(-len(rows)//PER_PAGE))
    page = min(max(1, page), pages)
    start = (page - 1)*PER_PAGE
    begun = set(rows['group'].iloc[:start].tail(1))  # its images go on from the page before
    sizes = rows['group'].value_counts()
    groups = [group(finder, name, part, int(sizes[name]), name in begun, by)
              for name, part in rows.iloc[start:start + PER_PAGE].groupby('group', sort=False)]
    return Div(Div(choice('Order', 'by', [(f'by {o}', o) for o in ORDERS], by), choice('Show', 'only', [(c, c) for c in choices], only),
                   turning(page, pages), cls='tuning'), Div(*groups, cls='groups'), id='everybody')


def choice(label, name, options, value):
    return Label(label, ' ', Select(*(Option(text, value=o, selected=o == value) for text, o in options), name=name))


def turning(page, pages):
    "Buttons for the other pages"
    turns = {'First': 1, 'Previous': page - 1, 'Next': page + 1, 'Last': pages}
    buttons = {text: Button(text, type='button', id=f'page-{text.lower()}', name='page', value=to, cls='quiet', disabled=to == page or not 0 < to <= pages)
               for text, to in turns.items()}
    return Nav(buttons['First'], buttons['Previous'], Span(f'Page {page} of {pages}', role='status'), buttons['Next'], buttons['Last'], aria_label='Pages')


def ordered(images, by):
    "Images in the order of the tab, with the name of each one's group"
    first, second = ORDERS[by], ORDERS['camera' if by == 'identity' else 'identity']
    keys = [first, 'time', second, 'path'] if by == 'camera' else [first, second, 'time', 'path']
    rows = images.sort_values(keys, na_position='last', ignore_index=True)
    return rows.assign(group=[f'{by} unknown' if pd.isna(i) else f'{by} {i}' for i in rows[first]])


def group(finder, name, rows, size, begun, by):
    "A heading and its images; under them what the heading does not say"
    cards = [card(shrunk(finder.image(row['key']), 160), 'query', row['key'], [w for w in who(row) if not w.startswith(by) and w != 'unknown'],
                  does=f'Search for {name}') for _, row in rows.iterrows()]
    more = f'{size} image{"s"*(size != 1)}' + (', continued' if begun else '')
    return Section(H3(name, ' ', Small(more)), Ol(*cards, cls='cards small-cards'), aria_label=name)
