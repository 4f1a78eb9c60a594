"Ranked lists as pictures: queries, their first hits, and what made them similar (paper, Figure 3)"
from typing import NamedTuple

import pandas as pd
from magnifier.look.drawing import legend_room, paint_heat, paint_mask, put_note, put_picture, region_legend, spotlight
from magnifier.look.picture import finish, tiles
from magnifier.look.saliency import Sight, similarity_maps
from magnifier.look.searched import Searched
from magnifier.regions import region_indices

__all__ = ['Row', 'OVERLAYS', 'ranked_row', 'draw_ranking', 'draw_rankings']

OVERLAYS = (True, False, 'masks')
HEAT_MEANS = 'similarity from here'


class Row(NamedTuple):
    "One query and its hits, as they are drawn"
    pictures: list       # (h,w,3) each, the query first, overlays painted
    hits: pd.DataFrame   # Of `Ranking.hits`
    pid: int             # The query's identity
    camid: int           # Its camera
    note: str            # Under the query: average precision, or why there is none


def ranked_row(
    learn,             # The learner that looks
    searched:Searched, # What it found
    query:int,         # Index of a query
    *,
    k:int=8,                   # Hits
    saliency=True,             # True for similarity maps, 'masks' for the part masks, False for plain pictures
    show_removed:bool=False,   # Also hits that the protocol removes, greyed
    regions=None,              # Regions that the search went by: shown alone in place of a similarity map
) -> Row:  # To be drawn
    "One query with its hits, loaded and looked at"
    hits = searched.ranking.hits(query, k, removed=show_removed)
    sight = Sight.of(learn, searched.rows_of(query, hits))
    pictures = _painted(learn, sight, saliency, regions)
    for i, gone in enumerate(hits['removed'], 1):
        if gone: pictures[i] = .55 + .35*sight.pictures[i].mean(2, keepdims=True).repeat(3, 2)
    _, pid, camid, _ = searched.identity[searched.query_rows[query]]
    ap = searched.ranking.ap[query]
    return Row(pictures, hits, int(pid), int(camid), f'AP {ap:.2f}' if searched.ranking.n_matches[query] else 'no match in gallery')


def _painted(learn, sight, saliency, regions):
    "Pictures with their overlay; the query's map is the one for its first hit"
    if saliency is True and regions is not None: return [spotlight(p, m, region_indices(regions)) for p, m in zip(sight.pictures, sight.seen)]
    if saliency == 'masks':
        return [p if m is None else paint_mask(p, m) for p, m in zip(sight.pictures, sight.seen)]
    if not saliency or len(sight.pictures) < 2: return list(sight.pictures)
    n = len(sight.pictures) - 1
    with learn.evaluating() as (model, _):
        of_query, of_hits = similarity_maps(model, sight.rows([0]*n), sight.rows(slice(1, None)))
    heats = [of_query[0], *of_hits]
    return [paint_heat(p, _stretched(heat.cpu().numpy())) for p, heat in zip(sight.pictures, heats)]


def _stretched(heat):
    "What spoke for the match, 0 to 1; what spoke against it is dark"
    return heat.clip(min=0)/max(heat.max(), 1e-12)


def draw_ranking(
    rows,               # `Row`s, one a query
    *,
    k:int,              # Hits a row has room for
    names=None,         # Names of the rows, left of them
    heat:bool=True,     # Whether maps were painted
    masks:bool=False,   # Whether part masks were painted
    title=None,         # Heading
    save=None,          # Where to write the picture
    show:bool=True,     # Whether a notebook shows it at once
):
    "Rows of a query and its hits; frames tell right from wrong by colour, line and mark"
    aspect = rows[0].pictures[0].shape[0]/rows[0].pictures[0].shape[1]
    removed = any(row.hits['removed'].any() for row in rows)
    frames = [('true', 'same person'), ('false', 'another person')] + [('removed', 'removed: same camera')]*removed
    entries = 7*masks + 2*len(frames) + 2*heat
    width, left = (1.0 if k > 6 else 1.2), (.62 if names else 0.)
    room = legend_room(max(3.4, (k + 1)*(width + .1) + left), entries)
    picture, axes = tiles(len(rows), k + 1, aspect=aspect, width=width, above=.3, below=.2, left=left, bottom=room, split=1, title=title)
    for row, line in zip(rows, axes): _draw_row(row, line)
    for name, line in zip(names or (), axes):
        line[0].text(-.12, .5, name, transform=line[0].transAxes, rotation=90, ha='right', va='center', fontsize=9, weight='bold')
    region_legend(picture, regions=masks, frames=frames, heat=HEAT_MEANS if heat else None)
    return finish(picture, save, show)


def _draw_row(row, line):
    put_picture(line[0], row.pictures[0], title=f'query\nid {row.pid} cam {row.camid}', caption=row.note, kind='query')
    for ax, picture, hit in zip(line[1:], row.pictures[1:], row.hits.itertuples()):
        kind = 'removed' if hit.removed else 'true' if hit.match else 'false'
        number = 'removed' if hit.removed else f'{hit.rank}'
        put_picture(ax, picture, title=f'{number}\nid {hit.pid} cam {hit.camid}', caption=f'{1 - hit.distance:.3f}', kind=kind)
    if not len(row.hits): put_note(line[1], 'no hits:\nall of the\ngallery is\nremoved')


def draw_rankings(
    learns,  # Learners, one or two
    searches,# A `Searched` each
    chosen,  # Indices of the queries to show
    *,
    names=None, # Names of the learners, where there are two
    save=None,  # Where to write the picture
    show:bool=True, # Whether a notebook shows it at once
    **kwargs    # Passed to `ranked_row`: k, saliency, show_removed, regions
):
    "Each query under each learner, one row below the other"
    pairs = [(learn, s, name) for learn, s, name in zip(learns, searches, names or [None]*len(learns))]
    rows = [(ranked_row(learn, s, int(q), **kwargs), name) for q in chosen for learn, s, name in pairs]
    saliency, longest = kwargs.get('saliency', True), max(len(row.hits) for row, _ in rows)
    return draw_ranking([row for row, _ in rows], k=max(1, longest), names=[name for _, name in rows] if names else None,
                        heat=saliency is True and kwargs.get('regions') is None, masks=saliency == 'masks', save=save, show=show)
