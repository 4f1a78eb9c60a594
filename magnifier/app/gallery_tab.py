"The page's second tab: everybody in the gallery, by identity or by camera, page by page"
from html import escape

import pandas as pd
from magnifier.app.html import card, said, who
from magnifier.app.search import shrunk

__all__ = ['ORDERS', 'group_choices', 'gallery_html']

ORDERS = {'identity': 'pid', 'camera': 'camid'}
PER_PAGE = 48
EVERYTHING = 'everybody'


def group_choices(
    images, # `Gallery.images()`
    by:str, # identity or camera
) -> list:  # EVERYTHING, and a name for each group: 'identity 3', 'identity unknown'
    "What the tab may be narrowed to"
    column = images[ORDERS[by]]
    return [EVERYTHING, *(f'{by} {i}' for i in sorted(column.dropna().astype(int).unique())), *([f'{by} unknown'] if column.isna().any() else [])]


def gallery_html(
    finder,         # A `Finder`
    by:str='identity', # Or camera
    only:str=EVERYTHING, # One of `group_choices`
    page:int=1,     # From 1; beyond the last is the last
) -> tuple:  # HTML, the page that it is, how many there are
    "One page of the gallery, in groups with headings"
    rows = _ordered(finder.images, by)
    if only != EVERYTHING: rows = rows[rows['_group'] == only]
    pages = max(1, -(-len(rows)//PER_PAGE))
    page = min(max(1, int(page)), pages)
    sizes = rows['_group'].value_counts()
    part = rows.iloc[(page - 1)*PER_PAGE:page*PER_PAGE]
    begun = set(rows['_group'].iloc[:(page - 1)*PER_PAGE].iloc[-1:])  # its pictures go on from the page before
    groups = ''.join(_group(finder, name, group, int(sizes[name]), name in begun, by) for name, group in part.groupby('_group', sort=False))
    if not groups: groups = said(f'Nobody is here: {only} has no images.')
    return f'<div class="mg-groups mg-{by}">{groups}</div>', page, pages


def _ordered(images, by):
    first, second = (ORDERS[by], ORDERS['camera' if by == 'identity' else 'identity'])
    rows = images.sort_values([first, 'time', second, 'path'] if by == 'camera' else [first, second, 'time', 'path'], na_position='last', ignore_index=True)
    return rows.assign(_group=[f'{by} unknown' if pd.isna(i) else f'{by} {i}' for i in rows[first]])


def _group(finder, name, rows, size, begun, by):
    "A heading and its pictures; under it what the heading does not say"
    cards = ''.join(card(shrunk(finder.picture(row['key']), 160), row['key'], [w for w in who(row) if not w.startswith(by) and w != 'unknown'],
                         does=f'Search for {name}') for _, row in rows.iterrows())
    more = f'{size} image{"s"*(size != 1)}' + (', continued' if begun else '')
    return f'<section aria-label="{escape(name)}"><h3>{escape(name)} <small>{more}</small></h3><ol class="mg-cards mg-little">{cards}</ol></section>'
