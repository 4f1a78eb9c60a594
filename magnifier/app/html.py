"The page's pieces as HTML: the query, hits, an explanation, the gallery. Pictures are inside the text, so that no file is ever asked for"
import base64
from html import escape
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image
from magnifier.look.drawing import paint_heat, paint_mask
from magnifier.look.explain import REST
from magnifier.app.rates import UNKNOWN_RATES
from magnifier.look.palette import REGION_COLOURS, region_name
from magnifier.regions import BODY_REGIONS, N_REGIONS, REGIONS
from magnifier.train.parts import VISIBLE

__all__ = ['data_url', 'card', 'said', 'query_html', 'strip_html', 'hits_html', 'status_html', 'rates_html', 'match_html', 'legend_html']

NO_THRESHOLD = 'No threshold: the most similar are shown, whoever they are. Move it to see what it would let through.'
NO_PICTURE = '<span class="mg-none">no picture:<br>its file is gone or was changed</span>'


def data_url(
    picture, # PIL image, or (h,w,3) array in [0,1]
) -> str:  # 'data:image/jpeg;base64,...'
    "A picture as text"
    if isinstance(picture, np.ndarray): picture = Image.fromarray((picture.clip(0, 1)*255).round().astype(np.uint8))
    file = BytesIO()
    picture.save(file, format='JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def said(
    text:str,       # A sentence
    kind:str='note',# note, or alert: read out at once
) -> str:
    "A sentence to whoever uses the page"
    return f'<p class="mg-{kind}" role="{"alert" if kind == "alert" else "status"}">{escape(text)}</p>' if text else ''


def who(
    row, # Of a table of hits or images
) -> list:  # Words: identity, camera, time; what is unknown is said
    "Who, where and when"
    words = ['unknown' if pd.isna(row['pid']) else f'identity {row["pid"]}', '' if pd.isna(row['camid']) else f'camera {row["camid"]}',
             '' if pd.isna(row['time']) else f'{row["time"]:%Y-%m-%d %H:%M:%S}']
    return [w for w in words if w]


def picture_html(
    picture,    # PIL image or (h,w,3) array; None where there is none
    labels=None,# (h,w) part labels to paint over it
    *,
    alt:str='', # What it shows, where nothing beside it says so
) -> str:
    "One picture"
    if picture is None: return NO_PICTURE
    if labels is not None: picture = paint_mask(_array(picture), labels)
    return f'<img alt="{escape(alt)}" src="{data_url(picture)}">'


def _array(picture): return np.asarray(picture, dtype=np.float32)/255 if isinstance(picture, Image.Image) else picture


def card(
    picture,     # PIL image, or None
    key,         # What a click sends
    words,       # Lines under it
    *,
    does:str,    # What a click does, for those who cannot see the page
    first:str='',# A line in bold
    labels=None, # (h,w) part labels to paint over it
) -> str:
    "A picture that is a button"
    lines = ''.join(f'<span>{escape(str(w))}</span>' for w in words)
    name = f'{does}: {", ".join([first, *map(str, words)] if first else map(str, words))}'
    bold = f'<b>{escape(first)}</b>' if first else ''
    return (f'<li><button type="button" class="mg-card" data-key="{escape(str(key))}" aria-label="{escape(name)}">'
            f'{picture_html(picture, labels)}{bold}{lines}</button></li>')


def query_html(
    query=None,    # A `Query`; None for nobody yet
    wrong:str='',  # Why the last file was refused
) -> str:
    "Who is searched, and the place to drop somebody else"
    shown, button = '', ''
    if query is not None:
        what = 'your picture' if query.row is None else ', '.join(who(query.row))
        picked = '' if query.row is None else escape(str(query.row['key']))
        shown = (f'<figure class="mg-query" data-picked="{picked}">{picture_html(query.image, alt="the person who is searched: " + what)}'
                 f'<figcaption>{escape(what)}</figcaption></figure>')
        button = '<button type="button" class="mg-forget">Forget this picture</button>'
    return (f'<div class="mg-drop">{shown}<div><label class="mg-file" for="mg-file"><b>Choose a picture</b> of one person, or drop or paste it here'
            '<input id="mg-file" type="file" accept="image/jpeg,image/png,image/webp,image/bmp" aria-describedby="mg-limits"></label>'
            f'<p id="mg-limits" class="mg-small">JPEG, PNG, WebP or BMP, up to 10 MB. It stays in memory and is written nowhere.</p>{button}</div></div>'
            + said(wrong, 'alert'))


def strip_html(
    rows,     # Of `Gallery.images()`
    pictures, # PIL images or None, one a row
) -> str:
    "A few people of the gallery to begin with"
    cards = ''.join(card(p, row['key'], who(row)[:2], does='Search for') for p, (_, row) in zip(pictures, rows.iterrows()) if p is not None)
    if not cards: return ''
    return f'<p class="mg-small" id="mg-strip">Or pick someone of the gallery:</p><ol class="mg-strip" aria-labelledby="mg-strip">{cards}</ol>'


def hits_html(
    found,               # A `Found`
    threshold:float=0.,  # Least similarity
    masks:bool=False,    # Paints the model's part masks over the pictures; `Finder.label` was called
) -> str:
    "The hits as buttons, most similar first"
    labels = found.labels if masks and found.labels else [None]*len(found.hits)
    shown = enumerate(found.hits[:found.above(threshold)].table.to_dict('records'))
    cards = ''.join(card(found.pictures[i], i + 1, who(row), does='Explain', first=f'{i + 1}. {row["similarity"]:.2f}', labels=labels[i]) for i, row in shown)
    legend = legend_html() if masks and cards else ''
    return f'{legend}<ol class="mg-cards" data-query="{id(found.query)}" aria-label="hits, most similar first">{cards}</ol>'


def status_html(
    found=None,         # A `Found`; None before the first search
    threshold:float=0., # Least similarity
    wrong:str='',       # What went wrong
    *,
    parts:bool=True,    # Whether hits can be explained
) -> str:
    "How many were found, read out when it changes"
    if wrong: return said(wrong, 'alert')
    if found is None: return said('Nobody is searched yet: choose a picture, or pick someone.')
    shown, n = found.above(threshold), len(found.hits)
    if not n: return said('Nobody was found with these filters: widen them.')
    if not shown: return said(f'No hit at this threshold: all of the first {n} are less alike. Lower it.')
    regions = '' if found.hits.regions is None else ' by ' + ', '.join(r.replace('_', ' ') for r in found.hits.regions)
    hidden = f' {n - shown} of the first {n} are less alike than the threshold and not shown.' if shown < n else ''
    return said(f'{shown} hit{"s"*(shown != 1)}{regions}, most similar first.{hidden}' + (' Choose one to see why it was found.' if parts else ''))


def rates_html(
    rates,           # `PairRates`, or None where they are not known
    threshold:float, # Similarity
    images:int,      # In the gallery
) -> str:
    "What the threshold stands for, in words"
    if rates is None: return f'<p class="mg-small">{escape(UNKNOWN_RATES)}</p>'
    if threshold <= 0: return f'<p class="mg-small" role="status">{NO_THRESHOLD}</p>'
    n, far, misses = len(rates.impostor), rates.false_accept(threshold), rates.misses(threshold)
    share = f'{_percent(far)}' if far else f'under {_percent(1/n)}'
    strangers = far*images
    about = f'about {strangers:.0f}' if strangers >= 10 else f'about {strangers:.1f}' if strangers >= .05 else 'hardly one'
    missed = '' if misses is None else f' <b>Misses {_percent(misses)}</b>: so many pairs of one person, seen by two cameras, are less alike.'
    return (f'<p class="mg-small" role="status"><b>False accepts {share}</b>: so many pairs of two people are at least {threshold:.2f} alike, '
            f'in a search {about} of {images:,} images.{missed} Counted over {n:,} pairs of this gallery; other people and cameras give other rates.</p>')


def _percent(share): return f'{100*share:.2g} %' if share < .1 else f'{100*share:.0f} %'


def match_html(
    match,            # A `Match`
    masks:bool=False, # Paints the model's part masks over the pictures
) -> str:
    "Why a hit was found: four pictures, a sentence, a table"
    shown = match.labels if masks else (None, None)
    top = max(float(h.max()) for h in match.heats)
    light = [paint_heat(_array(p), h.clip(min=0)/max(top, 1e-12)) for p, h in zip(match.pictures, match.heats)]
    parts = [(match.pictures[0], shown[0], 'query'), (match.pictures[1], shown[1], f'hit {match.place}'),
             (light[0], None, 'similarity in the query'), (light[1], None, f'similarity in hit {match.place}')]
    figures = ''.join(f'<figure>{picture_html(p, labels, alt=text)}<figcaption>{escape(text)}</figcaption></figure>' for p, labels, text in parts)
    title = escape(f'Hit {match.place}: ' + ', '.join(who(match.row)))
    return (f'<section data-hit="{escape(str(match.row["key"]))}" aria-label="Why this hit"><h3 tabindex="-1">{title}</h3>'
            f'<p>{escape(match.words)}</p><div class="mg-why"><div class="mg-four">{figures}</div>{_table(match.table)}</div>'
            f'{legend_html() if masks else ""}</section>')


def _table(table):
    "Regions with their bars; what a bar shows is written beside it"
    order = [*BODY_REGIONS, REGIONS[0], REST]
    most = max(table['share'].abs().max(), 1e-6)
    rows = ''.join(_row(name, table.loc[name], most) for name in order)
    return ('<table class="mg-table"><caption>Regions that both pictures show, how alike they are (1 the same, 0 unrelated), '
            'and what each adds to the similarity</caption><thead><tr><th scope="col">Region</th><th scope="col">Alike</th><th scope="col">Adds</th></tr></thead>'
            f'<tbody>{rows}</tbody></table>')


def _row(name, row, most):
    if name == REST: alike = ''
    elif np.isnan(row['similarity']): alike = f'<span class="mg-small">{_unseen(row)}</span>'
    else: alike = _bar(row['similarity'], 1., 'alike', '.2f')
    mark = '' if name in (REST, REGIONS[0]) else f'<i class="mg-dot" style="background:{_colour(REGIONS.index(name))}"></i>'
    return f'<tr><th scope="row">{mark}{name.replace("_", " ")}</th><td>{alike}</td><td>{_bar(row["share"], most, "adds", "+.2f")}</td></tr>'


def _unseen(row):
    query, hit = row['seen_query'] >= VISIBLE, row['seen_hit'] >= VISIBLE
    return 'not seen in ' + ('either' if not query and not hit else 'the query' if not query else 'the hit')


def _bar(value, most, kind, form):
    "Its length is the number beside it; what takes away is hatched"
    kind = f'mg-{kind} mg-minus' if value < 0 else f'mg-{kind}'
    return f'<span class="mg-bar"><i class="{kind}" style="width:{min(100., 100*abs(value)/most):.0f}%"></i></span><span class="mg-number">{value:{form}}</span>'


def legend_html() -> str:
    "Which colour is which region"
    return '<ul class="mg-legend" aria-label="colours of the part masks">' + ''.join(
        f'<li><i class="mg-dot" style="background:{_colour(k)}"></i>{region_name(k)}</li>' for k in range(1, N_REGIONS)) + '</ul>'


def _colour(region): return '#' + ''.join(f'{round(255*c):02x}' for c in REGION_COLOURS[region])
