"Ranked lists as figures: queries and their first hits, and what made them similar (paper, Figure 3)"
from typing import NamedTuple

import pandas as pd
from fastai.vision.all import patch
from magnifier.look.drawing import (legend_room, paint_heat, paint_mask, put_image, put_note, region_legend, spotlight,
                                    stack)
from magnifier.look.figure import Figure, finish, tiles
from magnifier.look.ranked_set import RankedSet
from magnifier.look.saliency import Sight, learnt_stripes, pixel_shares, positive, smoothed
from magnifier.regions import region_indices
from magnifier.train.learner import ReIDLearner

__all__ = ['RankedRow', 'ranked_row', 'draw_rows', 'draw_rankings']

HEAT_MEANS = 'similarity comes from here'


class RankedRow(NamedTuple):
    "One query and its hits, as they are drawn"
    images: list  # (h,w,3) each, the query first; with an overlay (2h,w,3): the image, and below it the same painted
    hits: pd.DataFrame  # Of `Ranking.hits`
    pid: int  # The query's identity
    camid: int  # Its camera
    note: str  # Under the query: average precision, or why there is none


def ranked_row(
    learn: ReIDLearner,  # The model
    ranked: RankedSet,  # The set it ranked
    query: int,  # Index of a query
    *,
    k: int = 8,  # Hits
    heat: bool = False,  # Adds, below each image, where the similarity comes from, or the regions compared
    masks: bool = False,  # Adds, below each image, its part mask as the model sees it
    show_removed: bool = False,  # Also hits that the protocol removes, greyed
    regions=None,  # Regions that the search went by; None for the whole embedding
) -> RankedRow:
    "One query with its hits, loaded and painted"
    hits = ranked.ranking.hits(query, k, removed=show_removed)
    sight = Sight.of(learn, ranked.rows_of(query, hits))
    images = list(sight.images)
    for i, removed in enumerate(hits['removed'], 1):
        if removed: images[i] = .55 + .35*images[i].mean(2, keepdims=True).repeat(3, 2)
    painted = _painted(learn, sight, heat, masks, regions)
    if painted: images = [stack(image, below) for image, below in zip(images, painted)]
    _, pid, camid, _ = ranked.identity[ranked.query_rows[query]]
    note = f'AP {ranked.ranking.ap[query]:.2f}' if ranked.ranking.n_matches[query] else 'no match in gallery'
    return RankedRow(images, hits, int(pid), int(camid), note)


def _painted(learn, sight, heat, masks, regions):
    "The images with their overlay; None where none is asked for"
    if masks:
        return [image if labels is None else paint_mask(image, labels)
                for image, labels in zip(sight.images, sight.seen)]
    if not heat: return None
    if regions is not None:
        return [spotlight(image, labels, region_indices(regions)) for image, labels in zip(sight.images, sight.seen)]
    n = len(sight.images) - 1
    if not n: return list(sight.images)
    # each hit compared with the query, and the query with its first hit
    others = sight.inputs[[1] + [0]*n]
    with learn.evaluating() as (model, _): shares = pixel_shares(model, sight.inputs, others, by_branch=False)['all']
    maps = positive(smoothed(shares).cpu().numpy())
    return [paint_heat(image, m) for image, m in zip(sight.images, maps)]


def draw_rows(
    rows: list[RankedRow],  # One a query
    *,
    names=None,  # Names of the rows, left of them
    heat: bool = False,  # Whether similarity maps were painted
    masks: bool = False,  # Whether part masks were painted
    stripes: bool = False,  # Whether these are horizontal stripes
    save=None,  # Where to write the figure
    show: bool = True,  # Whether a notebook shows it at once
) -> Figure:
    "Rows of a query and its hits; frames tell right from wrong by colour, line and mark"
    k = max(1, max(len(row.hits) for row in rows))
    height, breadth = rows[0].images[0].shape[:2]
    removed = any(row.hits['removed'].any() for row in rows)
    frames = [('true', 'same person'), ('false', 'another person')] + [('removed', 'removed: same camera')]*removed
    width = 1. if k > 6 else 1.2
    left = .62 if names else 0.
    entries = 7*masks + 2*len(frames) + 2*heat
    room = legend_room(max(3.4, (k + 1)*(width + .1) + left), entries)
    figure, axes = tiles(len(rows), k + 1, aspect=height/breadth, width=width, above=.3, below=.2, left=left,
                         bottom=room, split=1)
    for row, line in zip(rows, axes): _draw_row(row, line)
    for name, line in zip(names or (), axes):
        line[0].text(-.12, .5, name, transform=line[0].transAxes, rotation=90, ha='right', va='center', fontsize=9,
                     weight='bold')
    region_legend(figure, regions=masks, stripes=stripes, frames=frames, heat=HEAT_MEANS if heat else None)
    return finish(figure, save, show)


def _draw_row(row, line):
    put_image(line[0], row.images[0], title=f'query\nid {row.pid} cam {row.camid}', caption=row.note, kind='query')
    for ax, image, hit in zip(line[1:], row.images[1:], row.hits.itertuples()):
        place = 'removed' if hit.removed else f'{hit.rank}'
        put_image(ax, image, title=f'{place}\nid {hit.pid} cam {hit.camid}', caption=f'{1 - hit.distance:.3f}',
                  kind=_kind(hit))
    if not len(row.hits): put_note(line[1], 'no hits:\nall of the\ngallery is\nremoved')


def _kind(hit):
    if hit.removed: return 'removed'
    return 'true' if hit.match else 'false'


def draw_rankings(
    models: list,  # (ReIDLearner, RankedSet) pairs, one or two
    chosen,  # Indices of the queries to show
    *,
    names=None,  # Names of the models, where there are two
    heat: bool = False,  # As in `ranked_row`
    masks: bool = False,  # As in `ranked_row`
    regions=None,  # As in `ranked_row`
    save=None,  # Where to write the figure
    show: bool = True,  # Whether a notebook shows it at once
    **kwargs,  # Passed to `ranked_row`: k, show_removed
) -> Figure:
    "Each query under each model, one row below the other"
    rows = []
    for query in chosen:
        for learn, ranked in models:
            rows.append(ranked_row(learn, ranked, int(query), heat=heat, masks=masks, regions=regions, **kwargs))
    names = list(names)*len(chosen) if names else None
    stripes = masks and learnt_stripes(models[0][0])
    return draw_rows(rows, names=names, heat=heat and regions is None, masks=masks, stripes=stripes, save=save,
                     show=show)


@patch
def show_ranking(self: ReIDLearner,
    queries=None,  # None or 'random', 'worst', 'best'; or identities (ints) and file names, one or several
    *,
    k: int = 8,  # Hits of each query
    n: int = 4,  # Queries
    seed: int = 0,  # Seed of the random queries
    save=None,  # Where to write the figure
    heat: bool = False,  # Adds, below each image, where the similarity comes from
    masks: bool = False,  # Adds, below each image, its part mask as the model sees it
    catalog=None,  # Catalog with queries and gallery; None for the validation set
    regions=None,  # Search by these regions alone, as ['foot', 'lower_leg']; heat=True then shows them
    show_removed: bool = False,  # Also the hits that the protocol removes (same person, same camera), greyed
    versus: ReIDLearner | None = None,  # Another learner, on the same queries, below this one (paper, Figure 3)
    names=('this', 'other'),  # Names of the two learners
) -> Figure:
    "Queries and their first hits, right and wrong framed apart, with identity, camera and cosine similarity"
    if k < 1: raise ValueError(f'k={k}: show at least one hit')
    if heat and masks: raise ValueError('heat=True and masks=True: there is room for one of them below each image')
    mine = RankedSet.of(self, catalog, regions)
    models = [(self, mine)]
    if versus is not None: models.append((versus, RankedSet.of(versus, mine.items, regions)))
    return draw_rankings(models, mine.choose(queries, n, seed), names=names if versus is not None else None, save=save,
                         k=k, heat=heat, masks=masks, show_removed=show_removed, regions=regions)
