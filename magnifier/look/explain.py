"Why two images matched: numbers by region that add up to the score, sentences, and a figure"
import textwrap
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import patch

from magnifier.look.saliency import Sight, contributions, learnt_stripes, pixel_shares, smoothed
from magnifier.look.drawing import (REGION_COLOURS, TEXT, Figure, finish, legend_room, outline, paint_heat, put_image,
                                    region_legend, region_name, tiles)
from magnifier.model.pooling import labels_to_masks
from magnifier.regions import BODY_REGIONS, REGIONS
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import NO_REGIONS, VISIBLE, region_areas, region_embeddings, region_masks

__all__ = ['Explanation', 'explain_images', 'match_words']

REST = 'average person'


class Comparison(NamedTuple):
    "Similarity and shares of two images by region"
    score: float  # Cosine similarity, as the ranking has it
    table: pd.DataFrame  # See `Explanation`
    heats: list  # (h,w) of the query and of the hit: which pixels the score comes from
    sight: Sight  # Both images


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    "Why a query and a hit matched; a notebook shows the figure, then this table"
    score: float  # Cosine similarity, as the ranking has it
    table: pd.DataFrame  # A row a region, one for an average person: similarity, seen_query, seen_hit, share, by branch
    words: str  # The same in sentences
    figure: Figure  # Both images with outlines and similarity maps, and the table as bars
    same_person: bool | None = None  # Whether both have the same identity; None where the labels are not known

    def __repr__(self): return f'{self.words}\n{self.table.round(3).to_string()}'

    def _repr_html_(self): return f'<p>{self.words}</p>{self.table.round(3).to_html()}'


def explain_pair(
    model,  # A MagnifierNet in evaluation mode
    query: dict,  # `feature_maps` of one image
    hit: dict,  # `feature_maps` of another
    masks=None,  # Two 1 x k x h x w, for a model that makes none
) -> tuple[float, pd.DataFrame]:  # Score, and the table of `Explanation` without `seen_query` and `seen_hit`
    """Similarity and share of the score for each region.

    `similarity` is the cosine of the two region embeddings (`region_embeddings`), NaN where one image does not show the
    region. `share` is what a region adds to the score, the mean over the two sides of `contributions`: shares add up to
    the score of the ranking. A region can have a share without being visible: that neither image shows feet makes them
    similar."""
    masks = masks or (None, None)
    of_query = contributions(model, query, hit, masks[0])
    of_hit = contributions(model, hit, query, masks[1])
    shares = {b: (_by_region(of_query.parts[b]) + _by_region(of_hit.parts[b]))/2 for b in of_query.parts}
    embeddings = [region_embeddings(model, maps, m)[0] for maps, m in zip((query, hit), masks)]  # k x c
    similarity = (embeddings[0]*embeddings[1]).sum(1).cpu().numpy()
    share = sum(shares.values())
    score = float(of_query.score)
    # float32's rounding goes to the average person's part, so that the column's sum is the score
    rows = np.column_stack([similarity, share, *shares.values()])
    rest = [np.nan, score - share.sum(), *[np.nan]*len(shares)]
    return score, pd.DataFrame([*rows, rest], [*REGIONS, REST], ['similarity', 'share', *shares])


def _by_region(parts): return parts[0].cpu().double().sum((1, 2)).numpy()  # k; some devices have no float64


def explain_images(
    learn: ReIDLearner,  # Whose model compares
    query,  # A path, PIL image, array, or a catalog's row
    hit,  # Another
) -> Comparison:
    "What `ReIDLearner.explain` draws; the same errors"
    sight = Sight.of(learn, _pair(query, hit))
    query_maps, hit_maps = ({name: o[[i]] for name, o in sight.maps.items()} for i in (0, 1))
    with learn.evaluating() as (model, _):
        score, table = explain_pair(model, query_maps, hit_maps, _given_masks(sight))
        pixels = pixel_shares(model, sight.inputs, sight.inputs[[1, 0]], by_branch=False)['all']
    areas = region_areas(sight.maps, None if sight.labels is None else torch.from_numpy(sight.labels))
    table.insert(1, 'seen_query', [*areas[0], np.nan])
    table.insert(2, 'seen_hit', [*areas[1], np.nan])
    table.loc[(table['seen_query'] < VISIBLE) | (table['seen_hit'] < VISIBLE), 'similarity'] = np.nan
    return Comparison(score, table, list(smoothed(pixels).cpu().numpy()), sight)


def _pair(query, hit):
    "Both images as the learner's loader takes them; catalog rows keep their masks only if both images are rows"
    if all(isinstance(o, pd.Series) for o in (query, hit)): return pd.DataFrame([query, hit]).reset_index(drop=True)
    return [o['path'] if isinstance(o, pd.Series) else o for o in (query, hit)]


def _given_masks(sight):
    "The data's region masks for a model without a mask module, else None"
    if region_masks(sight.maps) is not None: return None
    if any(m is None for m in sight.true): raise ValueError(NO_REGIONS)
    feature_map = sight.maps['global']
    return [labels_to_masks(torch.from_numpy(m)[None], feature_map.shape[-2:]).to(feature_map) for m in sight.true]


@patch
def explain(self: ReIDLearner,
    query,  # A path, PIL image, array, or a catalog's row
    hit,  # Another; where both are rows, it says whether they show the same person
    *,
    save=None,  # Where to write the figure
) -> Explanation:  # `.table`, `.words`, `.figure`, `.score`, `.same_person`
    """Which regions matched, how much, and where.

    `similarity` compares a region of one image with the same region of the other. `share` splits the score over the
    regions of the feature maps (`magnifier.look.saliency`); a place of a feature map sees its surroundings, so
    that a part of the background's share is the person's. The figure's maps are by pixels (`pixel_shares`).

    A ValueError for a model without a mask module, unless both are rows of a catalog with masks."""
    compared = explain_images(self, query, hit)
    pids = [o.get('pid') if isinstance(o, pd.Series) else None for o in (query, hit)]
    same = None if pd.isna(pids).any() else bool(pids[0] == pids[1])
    stripes = compared.sight.stripes or learnt_stripes(self)
    words = f'{verdict(*pids)} {match_words(compared.table, compared.score, stripes=stripes)}'.strip()
    figure = draw_explanation(compared, words, same_person=same, stripes=stripes, save=save)
    return Explanation(compared.score, compared.table, words, figure, same)


def verdict(query_pid, hit_pid) -> str:
    "Whether a hit is right, in a sentence; empty where one of the identities is not known"
    if pd.isna(query_pid) or pd.isna(hit_pid): return ''
    if query_pid == hit_pid: return f'Right: both are identity {query_pid}.'
    return f'WRONG: the query is identity {query_pid}, the hit is identity {hit_pid}.'


def match_words(
    table: pd.DataFrame,  # Of `explain_images`
    score: float,  # The similarity
    *,
    stripes: bool = False,  # Whether the regions are horizontal stripes, which are then numbered from the top
) -> str:  # What is most and least alike, what adds most to the score, and what could not be seen
    "The table in sentences"
    def named(regions): return ', '.join(region_name(r, stripes=stripes) for r in regions)

    body = table.loc[list(BODY_REGIONS)]
    sentences = [f'Similarity {score:.2f}.']
    alike = body['similarity'].dropna().sort_values(ascending=False)
    if len(alike): sentences.append(f'Most alike: {named(alike.index[:1])} ({alike.iloc[0]:.2f}).')
    else: sentences.append('No region of the body can be seen in both.')
    if len(alike) > 1: sentences.append(f'Least alike: {named(alike.index[-1:])} ({alike.iloc[-1]:.2f}).')
    largest = table['share'].nlargest(2)
    shares = ', '.join(f'{named([r])} ({share:+.2f})' for r, share in largest[largest > 0].items())
    if shares: sentences.append(f'Largest shares: {shares}.')
    in_query, in_hit = body['seen_query'] >= VISIBLE, body['seen_hit'] >= VISIBLE
    unseen = {'in either': ~in_query & ~in_hit, 'in the query': ~in_query & in_hit, 'in the hit': in_query & ~in_hit}
    missing = [f'{named(body.index[which])} {where}' for where, which in unseen.items() if which.any()]
    if missing: sentences.append(f'Not seen: {"; ".join(missing)}.')
    if stripes: sentences.append('The stripes are horizontal bands, not body parts.')
    return ' '.join(sentences)


WIDTH = 1.3  # Of an image, in inches
WORDS = .55  # Room for the words
BARS = 4.3  # Width of the two columns of bars


def draw_explanation(compared: Comparison, words: str, *, same_person: bool | None, stripes: bool, save) -> Figure:
    "Words above; below them both images with outlines, their similarity maps, and bars of similarity and share"
    images = compared.sight.images
    aspect = min(images.shape[1]/images.shape[2], 3)
    room = legend_room(9.5, 8)
    figure, axes = tiles(1, 4, aspect=aspect, width=WIDTH, above=.25, below=.1, bottom=room,
                         min_width=4*WIDTH + BARS + .6)
    width, height = figure.get_size_inches() + (0, WORDS)
    figure.set_size_inches(width, height)
    top = max(heat.max() for heat in compared.heats)
    painted = [paint_heat(image, heat.clip(min=0)/max(top, 1e-12)) for image, heat in zip(images, compared.heats)]
    hit_kind = {True: 'true', False: 'false', None: None}[same_person]
    titles = ('query', 'hit', 'pixels of the query', 'pixels of the hit')
    kinds = ('query', hit_kind, None, None)
    for i, (ax, image, title, kind) in enumerate(zip(axes[0], (*images, *painted), titles, kinds)):
        ax.set_position([(.1 + i*(WIDTH + .08))/width, (room + .15)/height, WIDTH/width, WIDTH*aspect/height])
        put_image(ax, image, title=title, kind=kind)
        if i < 2: outline(ax, compared.sight.seen[i])
    _draw_bars(figure, compared.table, stripes, left=4*(WIDTH + .08) + 1.05, bottom=room + .2, height=WIDTH*aspect - .1)
    figure.text(.1/width, 1 - .1/height, textwrap.fill(words, int(width*13.5)), va='top', fontsize=TEXT + 1.5)
    frames = [] if same_person is None else [('true', 'same person') if same_person else ('false', 'another person')]
    region_legend(figure, stripes=stripes, frames=frames, heat='similarity comes from here')
    return finish(figure, save)


def _draw_bars(figure, table, stripes, *, left, bottom, height):
    "Two columns of bars, a row a region; places in inches"
    order = [*BODY_REGIONS, REGIONS[0], REST]
    colours = [*REGION_COLOURS[1:], REGION_COLOURS[0], '#bbbbbb']
    total_w, total_h = figure.get_size_inches()
    names = [region_name(r, stripes=stripes) for r in order]
    for i, (column, title, least) in enumerate((('similarity', 'similarity', 1.), ('share', 'share of the score', 0.))):
        ax = figure.add_axes([(left + 1.65*i)/total_w, bottom/total_h, 1.45/total_w, height/total_h])
        _draw_column(ax, table.loc[order, column], colours, least)
        ax.set_title(title, fontsize=TEXT + .5)
        ax.set(xticks=[], yticks=[])
        if i == 0: ax.set_yticks(range(len(order))[::-1], names, fontsize=TEXT)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)


def _draw_column(ax, values, colours, least):
    "Bars with their numbers beside them; the axis reaches `least` or further"
    rows = np.arange(len(values))[::-1]
    lengths = values.fillna(0)
    most = max(least, lengths.abs().max(), 1e-6)
    low = min(0., lengths.min())
    ax.barh(rows, lengths, color=colours, edgecolor='#333333', linewidth=.5, height=.7)
    ax.axvline(0, color='#333333', linewidth=.8)
    ax.set_xlim(low - .45*most*(low < -.005*most), most*1.5)
    for row, (name, value) in zip(rows, values.items()): _write_number(ax, row, name, value, most)


def _write_number(ax, row, name, value, most):
    "A bar's number at its end, left of a negative one"
    if np.isnan(value): text = '' if name == REST else 'not seen'
    else: text = f'{value:.2f}'.replace('-0.00', '0.00')
    if np.isnan(value) or abs(value) < .005: value = 0.
    if value >= 0: ax.text(value + .05*most, row, text, ha='left', va='center', fontsize=TEXT - .5)
    else: ax.text(value - .05*most, row, text, ha='right', va='center', fontsize=TEXT - .5)
