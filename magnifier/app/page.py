"The page: search a gallery in a browser, and see why. `pip install 'magnifier-reid[app]'`"
from magnifier.app.desk import Desk
from magnifier.app.gallery_tab import EVERYTHING, ORDERS, group_choices
from magnifier.app.html import said
from magnifier.app.search import Finder
from magnifier.app.style import CARDS_SCRIPT, DROP_SCRIPT, HITS_SCRIPT, WHY_SCRIPT
from magnifier.regions import BODY_REGIONS

__all__ = ['make_page']

NO_GRADIO = "the page needs gradio: pip install 'magnifier-reid[app]'"
TITLE = 'magnifier'
# One event after another, in their order: a threshold that moves while a search runs is answered with what that search finds
QUIET = dict(api_visibility='private', show_progress='hidden', concurrency_id='page', concurrency_limit=1)
CARE = ('Hits are the pictures that a model finds most alike, not proof of who somebody is. '
        'People should be searched only where the law and they allow it.')


def make_page(
    learn,   # The ReIDLearner that made the gallery
    gallery, # A Gallery with images
):           # A Gradio `Blocks`; `magnifier.app.server.serve_page` serves it
    "The page over a gallery. ValueError for a gallery without images or of another model, ImportError without gradio"
    try: import gradio as gr
    except ImportError as e: raise ImportError(NO_GRADIO) from e
    desk = Desk(Finder(learn, gallery))
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f'<h1>{TITLE}</h1><p class="mg-small">{CARE}</p>')
        with gr.Tabs(selected='search') as tabs:
            with gr.Tab('Search', id='search'): search = _search_tab(gr, desk)
            with gr.Tab('Gallery', id='gallery') as tab: shown = _gallery_tab(gr, desk)
        _wire_search(gr, desk, page, search)
        _wire_gallery(gr, desk, tab, tabs, shown, search)
    return page


def _search_tab(gr, desk):
    "Who, where and when on the left; the hits and why on the right. A dict of components"
    c = dict(query=gr.State(time_to_live=3600), found=gr.State(time_to_live=3600), match=gr.State(time_to_live=3600))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            c['drop'] = gr.HTML(desk.drop(), js_on_load=DROP_SCRIPT, elem_id='mg-query')
            c['strip'] = gr.HTML(desk.strip(), js_on_load=CARDS_SCRIPT, elem_id='mg-some')
            c['regions'] = gr.CheckboxGroup([(r.replace('_', ' '), r) for r in BODY_REGIONS], label='Compare only these regions', elem_id='mg-regions',
                                            info='None ticked: the whole person', visible=desk.finder.by_region)
            with gr.Accordion('Where and when', open=False, elem_id='mg-where'):
                c['not_camera'] = gr.Dropdown(desk.cameras(), value=None, label="The person's own camera, left out", elem_id='mg-own')
                c['cameras'] = gr.CheckboxGroup(desk.cameras()[1:], label='Only these cameras', info='None ticked: all', elem_id='mg-cameras')
                c['since'] = gr.Textbox(label='Seen from (UTC)', placeholder=desk.times()[0], max_lines=1, visible=desk.finder.has_times, elem_id='mg-since')
                c['until'] = gr.Textbox(label='Seen until (UTC)', placeholder=desk.times()[1], max_lines=1, visible=desk.finder.has_times, elem_id='mg-until')
        with gr.Column(scale=5, min_width=320):
            c['threshold'] = gr.Slider(0, 1, value=0, step=.01, label='Least similarity of a hit', elem_id='mg-threshold')
            c['rates'] = gr.HTML(desk.rates(0.))
            c['masks'] = gr.Checkbox(False, label="Show the model's part masks", visible=desk.finder.parts, elem_id='mg-masks')
            c['status'] = gr.HTML(desk.status(), elem_id='mg-status')
            c['why'] = gr.HTML('', js_on_load=WHY_SCRIPT, elem_id='mg-why')
            c['hits'] = gr.HTML('', js_on_load=HITS_SCRIPT, elem_id='mg-hits')
    return c


def _wire_search(gr, desk, page, c):
    "What happens on the first tab. One event at a time works on the model"
    asked = [c['query'], c['cameras'], c['not_camera'], c['since'], c['until'], c['regions'], c['threshold'], c['masks']]
    answer = [c['found'], c['match'], c['status'], c['hits'], c['rates'], c['why']]
    begin = [c['query'], c['not_camera'], c['drop']]

    def uploaded(event: gr.EventData): return desk.upload(getattr(event, 'data', None), getattr(event, 'size', 0))

    def picked(event: gr.EventData): return desk.pick(getattr(event, 'key', None))

    def explain(found, masks, event: gr.EventData): return desk.explain(found, getattr(event, 'key', None), masks)

    for start in (c['drop'].upload(uploaded, None, begin, **QUIET), c['strip'].select(picked, None, begin, **QUIET)):
        start.success(desk.search, asked, answer, **QUIET)
    c['drop'].clear(desk.forget, None, begin, **QUIET).success(desk.search, asked, answer, **QUIET)
    gr.on([c['regions'].input, c['cameras'].input, c['not_camera'].input, c['since'].submit, c['since'].blur, c['until'].submit, c['until'].blur],
          desk.search, asked, answer, trigger_mode='always_last', **QUIET)
    c['threshold'].change(desk.narrow, [c['found'], c['threshold'], c['masks'], c['regions']], [c['status'], c['hits'], c['rates']],
                          trigger_mode='always_last', **QUIET)
    c['masks'].input(desk.paint, [c['found'], c['match'], c['threshold'], c['masks']], [c['hits'], c['why']], **QUIET)
    c['hits'].select(explain, [c['found'], c['masks']], [c['match'], c['why']], **QUIET)
    page.load(desk.opened, None, [c['strip']], **QUIET)


def _gallery_tab(gr, desk):
    "Everybody, by identity or camera"
    c = {}
    with gr.Row():
        c['by'] = gr.Radio([(f'By {by}', by) for by in ORDERS], value='identity', label='Order', elem_id='mg-by')
        c['only'] = gr.Dropdown(group_choices(desk.finder.images, 'identity'), value=EVERYTHING, label='Show', elem_id='mg-only')
    c['shown'] = gr.HTML(said('One moment.'), js_on_load=CARDS_SCRIPT, elem_id='mg-gallery')
    with gr.Row():
        c['back'] = gr.Button('Previous page', size='sm', elem_id='mg-back')
        c['page'] = gr.Number(1, precision=0, minimum=1, label='Page', elem_id='mg-page')
        c['on'] = gr.Button('Next page', size='sm', elem_id='mg-on')
    return c


def _wire_gallery(gr, desk, tab, tabs, c, search):
    "What happens on the second tab; a click on a picture searches for it on the first"
    asked, answer = [c['by'], c['only'], c['page']], [c['shown'], c['page']]

    def picked(event: gr.EventData): return (gr.Tabs(selected='search'), *desk.pick(getattr(event, 'key', None)))

    tab.select(desk.browse, asked, answer, **QUIET)
    gr.on([c['only'].input, c['page'].submit, c['page'].blur], desk.browse, asked, answer, **QUIET)
    c['by'].input(lambda by: (gr.Dropdown(group_choices(desk.finder.images, by), value=EVERYTHING), *desk.browse(by)), c['by'], [c['only'], *answer], **QUIET)
    c['back'].click(lambda by, only, page: desk.browse(by, only, page, -1), asked, answer, **QUIET)
    c['on'].click(lambda by, only, page: desk.browse(by, only, page, 1), asked, answer, **QUIET)
    c['shown'].select(picked, None, [tabs, search['query'], search['not_camera'], search['drop']], **QUIET).success(
        desk.search, [search[n] for n in ('query', 'cameras', 'not_camera', 'since', 'until', 'regions', 'threshold', 'masks')],
        [search[n] for n in ('found', 'match', 'status', 'hits', 'rates', 'why')], **QUIET)
