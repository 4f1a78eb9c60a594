"""Queries and gallery of a set, embedded and ranked once; their ranked lists as figures (paper, Figure 3), and stepping
through them in a notebook"""
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import patch

from magnifier.checks import as_count, refuse
from magnifier.data.block import ROLES
from magnifier.look.drawing import (Figure, finish, legend_room, notebook_cell, paint_heat, paint_mask, put_image,
                                    put_note, region_legend, region_name, spotlight, stack, tiles)
from magnifier.look.saliency import Sight, learnt_stripes, pixel_shares, positive, smoothed
from magnifier.regions import BODY_REGIONS, REGIONS, region_indices
from magnifier.retrieval.ranking import Ranking
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import embed_parts, rank_by_role, rank_parts

__all__ = ['RankedSet', 'CHOICES', 'RankedRow', 'ranked_row', 'draw_rankings', 'Browser']

CHOICES = ('random', 'worst', 'best', 'spread')


@dataclass(frozen=True, eq=False)
class RankedSet:
    "Queries and gallery of a set, ranked by one model. It holds embeddings, and no images"
    items: pd.DataFrame  # The set's rows, in the order of the embeddings
    embeddings: torch.Tensor  # (n,d) on the CPU, L2-normalised; by regions (n,k*c), these side by side
    identity: np.ndarray  # (n,4) class, pid, camid, role
    ranking: Ranking  # Of the queries against the gallery

    @classmethod
    def of(cls,
        learn: ReIDLearner,  # The model
        catalog=None,  # Catalog or loader with queries and gallery; None for the validation set
        regions=None,  # Rank by these regions alone, names or indices; None by the whole embedding
        **kwargs,  # Passed to `rank`
    ) -> 'RankedSet':
        "Embeds and ranks a set; a ValueError if it has no queries or no gallery"
        dl = _loader(learn, catalog)
        if regions is None:
            embeddings, identity = learn.embed(dl, with_identity=True)
            ranking = rank_by_role(embeddings, identity, **kwargs)
        else:
            parts = embed_parts(learn, dl, regions)
            embeddings, identity = parts.embeddings.flatten(1), parts.identity  # (n, k*c)
            ranking = rank_parts(parts, **kwargs).get('regions')
        if ranking is None:
            raise ValueError('nothing to rank: the catalog needs rows of split "query" and of split "gallery"')
        items = dl.dataset.items
        if (identity[:, 1:3].numpy() != items[['pid', 'camid']].to_numpy()).any():
            raise ValueError('this loader shuffles: pass the catalog itself, or a loader that does not shuffle')
        return cls(items, embeddings, identity.numpy(), ranking)

    @property
    def query_rows(self) -> np.ndarray:  # (q,) indices of rows
        "Which rows are queries"
        return np.flatnonzero(self.identity[:, 3] == ROLES.index('query'))

    @property
    def gallery_rows(self) -> np.ndarray:  # (g,) indices of rows
        "Which rows are gallery"
        return np.flatnonzero(self.identity[:, 3] == ROLES.index('gallery'))

    def ids(self,
        rows,  # Indices of rows
    ) -> tuple[np.ndarray, np.ndarray]:  # (n,) pids, (n,) camids
        "Identities and cameras of some rows"
        return self.identity[rows, 1], self.identity[rows, 2]

    def choose(self,
        queries=None,  # None or 'random', 'worst', 'best', 'spread'; or identities and file names, one or several
        n: int = 4,  # Queries; where several are named, at least one of each
        seed: int = 0,  # Seed of the random choice
    ) -> np.ndarray:  # Indices of queries, as the ranking counts them
        "Queries by name, or by their average precision; a ValueError for a name that no query or several queries have"
        if queries is None: queries = 'random'
        wanted = [queries] if isinstance(queries, (str, Path, int, np.integer)) else list(queries)
        n = as_count(n, 'n')
        refuse({f'no queries given: give identities, file names, or one of {", ".join(CHOICES)}': not wanted})
        if isinstance(queries, str) and queries in CHOICES: return self._by_success(queries, n, seed)
        found = [self._by_name(q) for q in wanted]
        in_turns = [rows[i] for i in range(n) for rows in found if i < len(rows)]  # all their first, then their second
        return np.array(list(dict.fromkeys(in_turns)))[:max(n, len(wanted))]

    def _by_success(self, how, n, seed):
        found = np.flatnonzero(self.ranking.n_matches > 0)
        if not len(found): found = np.arange(len(self.query_rows))  # no query has a match: show any
        if how == 'random': return np.random.default_rng(seed).permutation(found)[:n]
        ap = np.nan_to_num(self.ranking.ap[found])
        if how == 'worst': return found[np.argsort(ap, kind='stable')[:n]]
        best_first = found[np.argsort(-ap, kind='stable')]
        if how == 'best': return best_first[:n]
        return best_first[(2*np.arange(n) + 1)*len(found) // (2*n)]  # 'spread': the middle one of each n-th

    def _by_name(self, name):
        "The queries of an identity, or the one query that a file name means"
        by_file = isinstance(name, (str, Path))
        if by_file:
            paths = [Path(p) for p in self.items['path'].iloc[self.query_rows]]
            known = [path.name for path in paths]
            found = np.flatnonzero([_is_called(path, name) for path in paths])
        else:
            pids, _ = self.ids(self.query_rows)
            known = np.unique(pids)
            found = np.flatnonzero(pids == name)
        if not len(found):
            raise ValueError(f'no query {name!r}: the {len(known)} here are {_few(known)}; or use {", ".join(CHOICES)}')
        if by_file and len(found) > 1:
            raise ValueError(f'{len(found)} queries are called {str(name)!r}: {_few([paths[i] for i in found])}; name '
                             'one by its whole path')
        return found

    def rows_of(self,
        query: int,  # Index of a query
        hits: pd.DataFrame,  # Its hits, of `Ranking.hits`
    ) -> pd.DataFrame:  # Catalog rows: the query's, then its hits'
        "The catalog rows of a query and its hits"
        return self.items.iloc[[self.query_rows[query], *self.gallery_rows[hits['item'].to_numpy()]]]


def _is_called(path, name):
    "Whether a path ends as the name does, or has it without its own ending"
    ending = Path(name).parts
    return path.parts[-len(ending):] == ending or path.stem == str(name)


def _few(names, n=5): return ', '.join(map(str, names[:n])) + (', ...' if len(names) > n else '')


def _loader(learn, catalog):
    "Loader of the set to rank"
    if catalog is not None: return learn.loader(catalog)
    if len(learn.dls.loaders) < 2 or not len(learn.dls.valid_ds):
        raise ValueError('this learner has no validation set: pass catalog=..., rows of splits query and gallery')
    return learn.dls.valid


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
    "The images with their overlay; None if no overlay is asked for"
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


def draw_rankings(
    models: list,  # (ReIDLearner, RankedSet) pairs, one or two
    chosen,  # Indices of the queries to show
    *,
    names=None,  # Names of the models, where there are two
    k: int = 8,  # As in `ranked_row`
    heat: bool = False,  # As in `ranked_row`
    masks: bool = False,  # As in `ranked_row`
    show_removed: bool = False,  # As in `ranked_row`
    regions=None,  # As in `ranked_row`
    save=None,  # Where to write the figure
    show: bool = True,  # Whether a notebook shows it at once
) -> Figure:
    "The queries under each model, a row each, with their hits; frames tell right from wrong by colour, line and sign"
    rows = []
    for query in chosen:
        for learn, ranked in models:
            rows.append(ranked_row(learn, ranked, int(query), k=k, heat=heat, masks=masks, show_removed=show_removed,
                                   regions=regions))
    by_place = heat and regions is None
    frames = [('true', 'same person'), ('false', 'another person')]
    if any(row.hits['removed'].any() for row in rows): frames.append(('removed', 'removed: same camera'))
    figure, axes = _tiles_of(rows, 7*masks + 2*len(frames) + 2*by_place, left=.62 if names else 0.)
    for row, line in zip(rows, axes): _draw_row(row, line)
    if names: _name_rows(axes[:, 0], list(names)*len(chosen))
    region_legend(figure, regions=masks, stripes=masks and learnt_stripes(models[0][0]), frames=frames,
                  heat='similarity comes from here' if by_place else None)
    return finish(figure, save, show)


def _tiles_of(rows, entries, left):
    "A figure for the rows, with room for a legend of so many entries"
    cols = 1 + max(1, max(len(row.hits) for row in rows))
    height, breadth = rows[0].images[0].shape[:2]
    width = 1. if cols > 7 else 1.2
    room = legend_room(max(3.4, cols*(width + .1) + left), entries)
    return tiles(len(rows), cols, aspect=height/breadth, width=width, above=.3, below=.2, left=left, bottom=room,
                 split=1)


def _name_rows(axes, names):
    for ax, name in zip(axes, names):
        ax.text(-.12, .5, name, transform=ax.transAxes, rotation=90, ha='right', va='center', fontsize=9, weight='bold')


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


@patch
def show_ranking(self: ReIDLearner,
    queries=None,  # None or 'random', 'worst', 'best', 'spread'; or identities (ints) and file names, one or several
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
    k = as_count(k, 'k')
    refuse({'heat=True and masks=True: choose one, each image has room for one below it': heat and masks})
    mine = RankedSet.of(self, catalog, regions)
    models = [(self, mine)]
    if versus is not None: models.append((versus, RankedSet.of(versus, mine.items, regions)))
    return draw_rankings(models, mine.choose(queries, n, seed), names=names if versus is not None else None, k=k,
                         heat=heat, masks=masks, show_removed=show_removed, regions=regions, save=save)


class Browser:
    "What `learn.browse` steps through: one query after another, by the whole embedding or by some regions"
    def __init__(self,
        learn: ReIDLearner,  # The model
        catalog=None,  # Catalog with queries and gallery; None for the validation set
        *,
        order: str = 'worst',  # Which queries come first: 'worst', 'best' or 'random'
        k: int = 8,  # Hits
        heat: bool = False,  # As in `show_ranking`
    ):
        self.learn = learn
        self.catalog = catalog
        self.k = k
        self.heat = heat
        self.at = 0
        whole = RankedSet.of(learn, catalog)
        self.sets = {(): whole}
        self.order = whole.choose(order, max(1, len(whole.query_rows)))

    def ranked(self,
        regions=(),  # Names of regions; none for the whole embedding
    ) -> RankedSet:  # Ranked once, and kept
        "The set ranked by these regions"
        key = tuple(r for r in REGIONS if r in regions)
        if key not in self.sets: self.sets[key] = RankedSet.of(self.learn, self.catalog, list(key))
        return self.sets[key]

    def step(self,
        by: int = 1,  # How far, either way; past the end it starts anew
    ) -> int:  # The query that is shown now, as the ranking counts them
        "Goes to another query"
        self.at = (self.at + by) % len(self.order)
        return int(self.order[self.at])

    def figure(self,
        regions=(),  # Names of regions to search by; none for the whole embedding
        save=None,  # Where to write the figure
        show: bool = True,  # Whether a notebook shows it at once
    ) -> Figure:
        "The query that is shown now, with its hits"
        return draw_rankings([(self.learn, self.ranked(regions))], [self.order[self.at]], k=self.k, heat=self.heat,
                             regions=list(regions) or None, save=save, show=show)

    def widget(self):  # An ipywidgets box
        "Buttons, regions to tick, and the figure"
        import ipywidgets as w
        back = w.Button(description='◀ previous')
        on = w.Button(description='next ▶')
        where = w.Label()
        out = w.Image(format='png')
        known = BODY_REGIONS if self.learn.model.segmentation is not None else ()
        ticks = [w.Checkbox(description=region_name(r), indent=False, layout=w.Layout(width='auto')) for r in known]

        def draw(*_):
            regions = [r for r, tick in zip(known, ticks) if tick.value]
            alone = f', by {", ".join(map(region_name, regions))} alone' if regions else ''
            where.value = f'query {self.at + 1} of {len(self.order)}{alone}'
            out.value = self.figure(regions, show=False).png()

        def go(by):
            self.step(by)
            draw()

        back.on_click(lambda _: go(-1))
        on.on_click(lambda _: go(1))
        for tick in ticks: tick.observe(draw, names='value')
        draw()
        search_by = w.HBox([w.Label('search by'), *ticks] if ticks else [])
        return w.VBox([w.HBox([back, on, where]), search_by, out])


@patch
def browse(self: ReIDLearner,
    catalog=None,  # Catalog with queries and gallery; None for the validation set
    *,
    order: str = 'worst',  # Which queries come first: 'worst', 'best' or 'random'
    k: int = 8,  # Hits
    heat: bool = False,  # As in `show_ranking`
    save=None,  # Where to write the first query's figure; it is then drawn without buttons
):  # An ipywidgets box in Jupyter, where ipywidgets is installed; else the Figure of the first query
    "Steps through queries and their hits, with checkboxes for the regions to search by"
    browser = Browser(self, catalog, order=order, k=k, heat=heat)
    buttons = save is None and notebook_cell() is not None and find_spec('ipywidgets') is not None
    return browser.widget() if buttons else browser.figure(save=save)
