"Why two pictures matched: by region, in numbers that add up to the score, in words, and as a picture"
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import patch
from magnifier.look.drawing import legend_room, outline, paint_heat, put_picture, region_legend
from magnifier.look.palette import REGION_COLOURS
from magnifier.train.parts import NO_REGIONS, VISIBLE, region_areas, region_embeddings, region_masks
from magnifier.look.picture import TEXT, Picture, finish, tiles
from magnifier.look.saliency import Sight, contributions
from magnifier.model.resize import labels_to_masks
from magnifier.regions import REGIONS
from magnifier.train.learner import ReIDLearner

__all__ = ['Explanation', 'explain_pair', 'explained', 'match_words']

REST = 'average person'


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    "Why a query and a hit matched; a notebook shows the picture, then this table"
    score: float         # Cosine similarity, as the ranking has it
    table: pd.DataFrame  # By region, and a last row for what an average person would earn: similarity, seen_query, seen_hit, share, a share by branch
    words: str           # The same in two sentences
    figure: Picture      # Both pictures with outlines and similarity maps, and the table as bars

    def __repr__(self): return f'{self.words}\n{self.table.round(3).to_string()}'

    def _repr_html_(self): return f'<p>{self.words}</p>{self.table.round(3).to_html()}'


def explain_pair(
    model,       # A MagnifierNet in evaluation mode
    query:dict,  # `feature_maps` of one picture
    hit:dict,    # `feature_maps` of another
    masks=None,  # Two 1 x k x h x w, for a model that makes none
) -> tuple:  # Score, table, and the two similarity maps (h,w) in units of the score
    """Similarity, visibility and share of the score for each region.

    `similarity` is the cosine of the two region embeddings (`region_embeddings`), NaN where one picture does not show the region.
    `share` is what a region earned of the score, the mean of the two sides of `contributions`: shares add up to the score that the
    ranking used. A region may earn without being seen: that neither picture shows feet is something they have in common. `seen_query`
    and `seen_hit` are shares of the picture's area, left to the caller.

    Other shoes lower the foot's similarity furthest of the eight in 94 of 100 walkers, and in 71 of 100 seen anew by another camera in another
    pose (nbs/interpretation.ipynb)"""
    masks = masks or (None, None)
    sides = contributions(model, query, hit, masks[0]), contributions(model, hit, query, masks[1])
    shares = {b: sum(_column(s.parts[b]) for s in sides)/2 for b in sides[0].parts}
    table = pd.DataFrame({'similarity': _similarity(model, query, hit, masks), 'share': sum(shares.values()), **shares}, index=list(REGIONS))
    score = float(sides[0].score.double())
    # float32's rounding goes where the average person's part is, so that the column's sum is the score
    table.loc[REST] = [np.nan, score - table['share'].sum(), *[np.nan]*len(shares)]
    return score, table, [s.map()[0].cpu().numpy() for s in sides]


def _column(parts): return parts[0].double().sum((1, 2)).cpu().numpy()  # k

def _similarity(model, query, hit, masks):
    a, b = (region_embeddings(model, maps, m)[0] for maps, m in zip((query, hit), masks))
    return (a*b).sum(1).cpu().numpy()


@patch
def explain(self:ReIDLearner,
    query,     # A path, PIL image, array, or a catalog's row
    hit,       # Another
    *,
    save=None, # Where to write the picture
) -> Explanation:  # `.table`, `.words`, `.figure`, `.score`
    """Which regions matched, how much, and where (`explain_pair`; how the shares are counted: `magnifier.look.saliency.contributions`).

    A ValueError for a model without a mask module, unless both are rows of a catalog with masks."""
    sight, score, table, heats = explained(self, query, hit)
    words = match_words(table, score)
    return Explanation(score, table, words, draw_explanation(sight, table, words, heats, save=save))


def explained(
    learn:ReIDLearner, # Whose model is asked
    query,             # A path, PIL image, array, or a catalog's row
    hit,               # Another
) -> tuple:  # Sight of both, score, table with what each picture shows, the two similarity maps
    "`ReIDLearner.explain` before anything is drawn; the same errors"
    sight = Sight.of(learn, _pair(query, hit))
    masks = _given_masks(sight)
    first, second = sight.rows([0]), sight.rows([1])
    with learn.evaluating() as (model, _): score, table, heats = explain_pair(model, first, second, masks)
    areas = region_areas(sight.maps, None if sight.labels is None else torch.from_numpy(sight.labels))
    for i, name in enumerate(('seen_query', 'seen_hit')): table.insert(1 + i, name, [*areas[i], np.nan])
    table.loc[(table['seen_query'] < VISIBLE) | (table['seen_hit'] < VISIBLE), 'similarity'] = np.nan
    return sight, score, table, heats


def _pair(query, hit):
    rows = [o for o in (query, hit) if isinstance(o, pd.Series)]
    if len(rows) == 1: return [o['path'] if isinstance(o, pd.Series) else o for o in (query, hit)]
    return pd.DataFrame(rows).reset_index(drop=True) if rows else [query, hit]


def _given_masks(sight):
    "Region masks of a model that makes none, from the data; None where the model has its own"
    if region_masks(sight.maps) is not None: return None
    if any(m is None for m in sight.true): raise ValueError(NO_REGIONS)
    return [labels_to_masks(torch.from_numpy(m)[None], sight.maps['global'].shape[-2:]).to(sight.maps['global']) for m in sight.true]


def match_words(
    table:pd.DataFrame, # Of `explain_pair`, with `seen_query` and `seen_hit`
    score:float,        # The similarity
) -> str:  # What matched best, what least, and what could not be seen
    "The table in sentences"
    body = table.loc[list(REGIONS[1:])]
    both = body['similarity'].dropna().sort_values(ascending=False)
    said = lambda regions: ', '.join(r.replace('_', ' ') for r in regions)
    parts = [f'Similarity {score:.2f}.']
    if len(both):
        best = both.index[0]
        parts.append(f'Best match: {said([best])} ({both.iloc[0]:.2f}, {body.share[best]:+.2f} of the score).')
        if len(both) > 1: parts.append(f'Least alike: {said(both.index[-1:])} ({both.iloc[-1]:.2f}, {body.share[both.index[-1]]:+.2f}).')
        earner = table['share'].idxmax()
        if earner != best and table.share[earner] > 0: parts.append(f'Largest share: {said([earner])} ({table.share[earner]:+.2f}).')
    else: parts.append('No region of the body can be seen in both.')
    query, hit = body.seen_query >= VISIBLE, body.seen_hit >= VISIBLE
    unseen = {'in either': ~query & ~hit, 'in the query': ~query & hit, 'in the hit': query & ~hit}
    gone = [f'{said(body.index[which])} {where}' for where, which in unseen.items() if which.any()]
    if gone: parts.append(f'Not seen: {"; ".join(gone)}.')
    return ' '.join(parts)


def draw_explanation(
    sight:Sight,        # Of the two pictures
    table:pd.DataFrame, # Of `explain_pair`
    words:str,          # Over the picture
    heats,              # The two similarity maps (h,w)
    *,
    save=None,          # Where to write the picture
) -> Picture:
    "Outlines, similarity maps, and bars of similarity and share"
    h, w = sight.pictures.shape[1:3]
    width, right = 1.3, 4.3
    room = legend_room(9.5, 8)
    sheet, axes = tiles(1, 4, aspect=min(h/w, 3), width=width, above=.25, below=.1, bottom=room, min_width=4*width + right + .6)
    size = np.array(sheet.get_size_inches()) + (0, .55)
    sheet.set_size_inches(size)
    top = max(o.max() for o in heats)
    paint = [sight.pictures[0], sight.pictures[1], *(paint_heat(p, o.clip(min=0)/max(top, 1e-12)) for p, o in zip(sight.pictures, heats))]
    for i, (ax, picture, title) in enumerate(zip(axes[0], paint, ('query', 'hit', 'in the query', 'in the hit'))):
        ax.set_position([(.1 + i*(width + .08))/size[0], (room + .15)/size[1], width/size[0], width*min(h/w, 3)/size[1]])
        put_picture(ax, picture, title=title)
        if i < 2: outline(ax, sight.seen[i])
    _draw_bars(sheet, table, [(4*(width + .08) + 1.05)/size[0], (room + .2)/size[1], 1/size[0], (width*min(h/w, 3) - .1)/size[1]])
    sheet.text(.1/size[0], 1 - .1/size[1], _wrapped(words, size[0]), va='top', fontsize=TEXT + 1.5)
    region_legend(sheet, heat='similarity from here')
    return finish(sheet, save)


def _wrapped(words, inches):
    import textwrap
    return textwrap.fill(words, int(inches*13.5))


def _draw_bars(sheet, table, box):
    "Two columns of bars, a row a region"
    order = [*REGIONS[1:], REGIONS[0], REST]
    colours = [REGION_COLOURS[REGIONS.index(r)] if r in REGIONS else '#bbbbbb' for r in order]
    left, bottom, inch, height = box
    for i, (column, title) in enumerate((('similarity', 'similarity'), ('share', 'share of the score'))):
        ax = sheet.add_axes([left + i*1.65*inch, bottom, 1.45*inch, height])
        _draw_column(ax, table.loc[order, column], colours, least=1. if i == 0 else 0.)
        ax.set_yticks(range(len(order))[::-1], [r.replace('_', ' ') for r in order] if i == 0 else [], fontsize=TEXT)
        ax.set_title(title, fontsize=TEXT + .5)
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)


def _draw_column(ax, values, colours, least):
    "Bars with their numbers beside them; the axis reaches `least` or further"
    y, known = np.arange(len(values))[::-1], values.dropna()
    most = max(least, known.abs().max() if len(known) else 0., 1e-6)
    ax.barh(y, values.fillna(0), color=colours, edgecolor='#333333', linewidth=.5, height=.7)
    ax.axvline(0, color='#333333', linewidth=.8)
    low = min(0., known.min() if len(known) else 0.)
    ax.set_xlim(low - .45*most*(low < -.005*most), most*1.5)
    for at, (name, v) in zip(y, values.items()):
        if np.isfinite(v): text = f'{v + 0.:.2f}'.replace('-0.00', '0.00')
        else: text = '' if name == REST else 'not seen'
        v = 0. if not np.isfinite(v) or abs(v) < .005 else v
        ax.text(v + (.05 if v >= 0 else -.05)*most, at, text, ha='left' if v >= 0 else 'right', va='center', fontsize=TEXT - .5)
