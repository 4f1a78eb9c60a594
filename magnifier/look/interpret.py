"ReIDInterpretation: which queries of a model fail, and what they have in common"
import warnings
from itertools import product

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import ClassificationInterpretation, TensorImage, patch
from plum import dispatch
from torch.nn.functional import interpolate

from magnifier.checks import as_count, choose, refuse
from magnifier.data.block import TensorIdentity, TensorPartMask
from magnifier.data.images import read_mask
from magnifier.look.drawing import Figure, finish, plot, put_image, tiles
from magnifier.look.graphs import (draw_bars, draw_cmc, draw_distances, draw_groups, draw_histogram, draw_table,
                                   draw_thumbnails)
from magnifier.look.ranked import RankedSet, draw_rankings
from magnifier.look.saliency import images_of
from magnifier.regions import NO_MASK, N_REGIONS, REGIONS
from magnifier.retrieval.ranking import Ranking, rank
from magnifier.retrieval.verification import verification_pairs, verification_table
from magnifier.train.learner import ReIDLearner
from magnifier.train.metrics import VISIBLE, embed_parts

__all__ = ['ReIDInterpretation']

INSTEAD = ('who is searched for is of no class that training knew: use ReIDInterpretation.from_learner(learn), whose '
           'worst_queries and confused_identities show the mistakes')


class ReIDInterpretation:
    """A set that is ranked once, and figures of the result.

    Every method draws, keeps the figure in `.figure` (`save=` writes it), and returns its numbers as a DataFrame.
    Embeddings are held, images are loaded when they are shown."""

    def __init__(self,
        learn: ReIDLearner,  # The model that ranked
        ranked: RankedSet,  # What it ranked
    ):
        self.learn, self.ranked = learn, ranked
        self.figure: Figure | None = None

    @classmethod
    def from_learner(cls,
        learn: ReIDLearner,  # The model
        catalog=None,  # Catalog with queries and gallery; None for the validation set
        **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
    ) -> 'ReIDInterpretation':
        "Embeds and ranks once"
        return cls(learn, RankedSet.of(learn, catalog, **kwargs))

    @property
    def ranking(self) -> Ranking:
        "The ranking of the queries against the gallery"
        return self.ranked.ranking

    @property
    def _queries(self):
        "One row a query: its catalog row, ap, first_match"
        rows = self.ranked.items.iloc[self.ranked.query_rows].reset_index(drop=True)
        return rows.assign(ap=self.ranking.ap, first_match=self.ranking.first_match)

    def worst_queries(self,
        n: int = 4,  # Queries
        k: int = 8,  # Hits of each
        *,
        heat: bool = False,  # As in `show_ranking`
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Their rows with `ap` and `first_match`, the rank of the first true match; worst first
        "Queries of the lowest average precision, with their hits"
        chosen = self.ranked.choose('worst', n)
        self.figure = draw_rankings([(self.learn, self.ranked)], chosen, k=k, heat=heat, save=save)
        return self._queries.iloc[chosen]

    def confused_identities(self,
        n: int = 8,  # Pairs to draw
        *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # pid, taken_for, times, of (its queries), query and item (an example); most often first
        "Confused identities: wrong first hits, counted by pair of identities"
        n = as_count(n, 'n')
        wrong = np.flatnonzero((self.ranking.first_match > 1) & (self.ranking.n_matches > 0))
        items = np.array([self.ranking.hits(int(query), 1)['item'].iat[0] for query in wrong], dtype=int)
        pids, _ = self.ranked.ids(self.ranked.query_rows)
        taken_for, _ = self.ranked.ids(self.ranked.gallery_rows[items])
        table = pd.DataFrame(dict(pid=pids[wrong], taken_for=taken_for, query=wrong, item=items))
        counted = dict(times=('query', 'size'), query=('query', 'first'), item=('item', 'first'))
        table = table.groupby(['pid', 'taken_for'], as_index=False).agg(**counted)
        table.insert(3, 'of', table['pid'].map(pd.Series(pids).value_counts()).to_numpy(dtype=int))
        table = table.sort_values(['times', 'pid', 'taken_for'], ascending=[False, True, True], ignore_index=True)
        self.figure = finish(self._draw_confused(table.head(n)), save)
        return table

    def _draw_confused(self, table):
        if not len(table):
            figure, ((ax,),) = plot(size=(4, 1))
            ax.set_axis_off()
            ax.text(.5, .5, 'every first hit is right', ha='center', va='center')
            return figure
        rows = np.concatenate([self.ranked.query_rows[table['query']], self.ranked.gallery_rows[table['item']]])
        images = images_of(self.learn, self.ranked.items.iloc[rows])
        figure, axes = tiles(2, len(table), aspect=images.shape[1]/images.shape[2], width=1., above=.32,
                             title='queries, and whom they were taken for')
        for i, pair in enumerate(table.itertuples()):
            taken_for = f'id {pair.taken_for}' if pair.taken_for else 'nobody (id 0)'
            put_image(axes[0, i], images[i], title=f'id {pair.pid}', kind='query')
            put_image(axes[1, i], images[len(table) + i], title=f'{taken_for}\n{pair.times} of {pair.of}', kind='false')
        return figure

    def plot_cmc(self,
        max_rank: int = 20,  # Last rank drawn
        *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Index rank, column share
        "Cumulative match characteristic: share of the queries found by each rank"
        r = self.ranking
        ranks = np.arange(1, min(max_rank, r.shape[1]) + 1)
        table = pd.DataFrame({'share': r.cmc(ranks)}, index=pd.Index(ranks, name='rank'))
        rates = f'R1 {r.cmc(1):.3f}   mAP {r.mAP:.3f}   mINP {r.mINP:.3f}'
        self.figure = finish(draw_cmc(table['share'], title=rates), save)
        return table

    def plot_ap(self,
        bins: int = 20,  # Bins between 0 and 1
        *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # One row a query that counts: pid, camid, path, ap, first_match
        "Histogram of the average precision of the queries"
        self._need_matches()
        table = self._queries.loc[self.ranking.counted, ['path', 'pid', 'camid', 'ap', 'first_match']]
        self.figure = finish(draw_histogram(table['ap'].to_numpy(), bins=bins), save)
        return table

    def _need_matches(self):
        if not (self.ranking.n_matches > 0).any():
            raise ValueError('no query has a true match in the gallery, so nothing to draw: check pids and camids')

    def plot_distances(self,
        false_accept=.01,  # False-accept rate, or several, whose threshold is drawn
        *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Of `verification_table`: the equal error rate, and a row for each rate
        "Distances of true and false pairs, with the threshold at a chosen false-accept rate"
        self._need_matches()
        rates = [false_accept] if isinstance(false_accept, (int, float)) else list(false_accept)
        pairs = verification_pairs(*self._sides(self.ranked.query_rows, self.ranked.gallery_rows))
        table = verification_table(pairs.genuine, pairs.impostor, false_accept=rates)
        self.figure = finish(draw_distances(pairs.genuine, pairs.impostor, table), save)
        return table

    def _sides(self, query_rows, gallery_rows):
        "Embeddings, pids and camids of queries and gallery: the arguments of `rank` and `verification_pairs`"
        q_pids, q_camids = self.ranked.ids(query_rows)
        g_pids, g_camids = self.ranked.ids(gallery_rows)
        embeddings = self.ranked.embeddings
        return embeddings[query_rows], embeddings[gallery_rows], q_pids, g_pids, q_camids, g_camids

    def plot_camera_pairs(self, *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # One row a pair: query_cam, gallery_cam, queries (that have a match there), R1, mAP
        "R1 and mAP for each pair of a query camera and a gallery camera"
        queries = self.ranked.query_rows
        gallery = self.ranked.gallery_rows
        _, q_cams = self.ranked.ids(queries)
        _, g_cams = self.ranked.ids(gallery)
        rows = []
        for query_cam, gallery_cam in product(np.unique(q_cams), np.unique(g_cams)):
            rates = self._rates(queries[q_cams == query_cam], gallery[g_cams == gallery_cam])
            rows.append(dict(query_cam=query_cam, gallery_cam=gallery_cam, **rates))
        table = pd.DataFrame(rows)
        side = .55*max(table['query_cam'].nunique(), 5) + .9
        figure, (axes,) = plot(1, 2, size=(max(side, 3.2), max(side*.85, 2.6)))
        for ax, rate in zip(axes, ('R1', 'mAP')):
            draw_table(ax, table.pivot(index='query_cam', columns='gallery_cam', values=rate), title=rate)
            ax.set_xlabel('camera of the gallery', fontsize=8)
            ax.set_ylabel('camera of the query', fontsize=8)
        self.figure = finish(figure, save)
        return table

    def _rates(self, query_rows, gallery_rows):
        "Queries with a match, R1 and mAP of some queries against some of the gallery"
        how = dict(ap=self.ranking.ap_form, no_match=self.ranking.no_match,
                   separate_cameras=self.ranking.labels.separate_cameras)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='none of .* has a true match')  # a camera with itself
            r = rank(*self._sides(query_rows, gallery_rows), **how)
        return dict(queries=int((r.n_matches > 0).sum()), R1=r.cmc(1), mAP=r.mAP)

    def by(self,
        values,  # One value a query, or the name of a catalog column
        *,
        label: str = '',  # What the values are, for the figure
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Index the values, columns queries, R1, mAP
        "R1 and mAP of groups of queries"
        self._need_matches()
        queries = self._queries
        if isinstance(values, str): label, values = label or values, queries[values]
        values = values if isinstance(values, pd.Categorical) else np.asarray(values)  # a categorical keeps its order
        found = queries.assign(of=values, right=self.ranking.first_match == 1)[self.ranking.counted]
        rates = dict(queries=('right', 'size'), R1=('right', 'mean'), mAP=('ap', 'mean'))
        table = found.groupby('of', observed=True).agg(**rates)
        self.figure = finish(draw_groups(table, label=label), save)
        return table.rename_axis(label or None)

    def plot_occlusion(self,
        edges=(0, .05, .2, .4, 1),  # Edges of the groups, shares of the body
        *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Index the share hidden, columns queries, R1, mAP
        """R1 and mAP by the share of the query's body that is hidden.

        It is the catalog's column `occluded`, if there is one. Otherwise it is estimated: how much smaller the body in
        the part mask is than that of the query at the 90th percentile. People who are small in their image then count
        as hidden too"""
        label = 'share of the body hidden'
        if 'occluded' in self.ranked.items: hidden = pd.to_numeric(self._queries['occluded']).to_numpy()
        else:
            body = 1 - self._areas()[:, 0]
            hidden = (1 - body/max(np.quantile(body, .9), 1e-6)).clip(0, 1)
            label += ' (estimated from masks)'
        names = [f'{low:.0%}–{high:.0%}' for low, high in zip(edges[:-1], edges[1:])]
        groups = pd.cut(hidden, edges, include_lowest=True, labels=names)
        return self.by(groups, label=label, save=save)

    def plot_visible_regions(self, *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Index the number of body regions seen, 0 to 7, columns queries, R1, mAP
        "R1 and mAP by the number of body regions that the query shows"
        return self.by((self._areas()[:, 1:] >= VISIBLE).sum(1), label='body regions that the query shows', save=save)

    def _areas(self):
        "(q,k) areas of the queries' regions: of the data's masks, or where one is missing, of the model's"
        queries = self._queries
        if 'mask' in queries and queries['mask'].notna().all():
            masks = [read_mask(path) for path in queries['mask']]
            return np.stack([np.bincount(mask.ravel(), minlength=N_REGIONS)/mask.size for mask in masks])
        return embed_parts(self.learn, queries[['path']]).areas

    def plot_embeddings(self,
        method: str = 'pca',  # 'pca', or 't-sne' from scikit-learn
        *,
        n_ids: int = 8,  # Identities shown
        n_images: int = 10,  # Images of each
        seed: int = 0,  # Seed of the choice, and of t-SNE
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # One row an image: path, pid, camid, x, y
        "Embeddings of a few identities in two dimensions, as thumbnails"
        choose(method, FLATTEN, 'method')
        pids, _ = self.ranked.ids(self.ranked.query_rows)
        pids = np.unique(pids)
        chosen = np.random.default_rng(seed).permutation(pids)[:n_ids]
        rows = np.concatenate([np.flatnonzero(self.ranked.identity[:, 1] == pid)[:n_images] for pid in chosen])
        refuse({f'{len(rows)} images are too few: choose more identities or images': len(rows) < 3})
        name, flatten = FLATTEN[method]
        points = flatten(self.ranked.embeddings[rows].numpy(), seed)
        items = self.ranked.items.iloc[rows]
        table = items[['path', 'pid', 'camid']].assign(x=points[:, 0], y=points[:, 1])
        title = f'{len(chosen)} of {len(pids)} identities, {name}'
        images = images_of(self.learn, items)
        self.figure = finish(draw_thumbnails(points, images, table['pid'].to_numpy(), title=title), save)
        return table

    def plot_segmentation(self, *,
        save=None,  # Where to write the figure
    ) -> pd.DataFrame:  # Index the true region: iou, pixels, and the share of its pixels seen as each region
        "Quality of the model's part masks: intersection over union by region, and the confused regions"
        items = self.ranked.items
        refuse({
            'this model has no mask module: build the learner with mask=True': self.learn.model.segmentation is None,
            'no image here has a part mask to compare with: name a folder of masks to the reader':
                'mask' not in items or not items['mask'].notna().any(),
        })
        counts = _confusion(self.learn, items)
        true = counts.sum(1)
        seen = counts.sum(0)
        both = counts.diagonal()
        with np.errstate(invalid='ignore', divide='ignore'):
            iou = pd.Series(both/(true + seen - both), index=REGIONS)
            shares = pd.DataFrame(counts/true[:, None], index=REGIONS, columns=REGIONS)
        figure, ((left, right),) = plot(1, 2, size=(4.7, 3.8), width_ratios=(.62, 1))
        draw_bars(left, iou, words=f'IoU (mean {np.nanmean(iou):.2f})')
        draw_table(right, shares, title='share of a true region (row) seen as (column)')
        self.figure = finish(figure, save)
        return pd.DataFrame(dict(iou=iou, pixels=true.astype(int))).rename_axis('region').join(shares.add_prefix('as_'))


def _pca(embeddings, seed):
    "(n,2) first principal components; the seed is not needed"
    left, scale, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
    return left[:, :2]*scale[:2]


def _t_sne(embeddings, seed):
    "(n,2) by scikit-learn"
    from sklearn.manifold import TSNE
    return TSNE(perplexity=min(30, (len(embeddings) - 1)/3), init='pca', random_state=seed).fit_transform(embeddings)


FLATTEN = {'pca': ('principal components', _pca), 't-sne': ('t-SNE', _t_sne)}


def _confusion(learn, items):
    "(k,k) pixels, true region by seen region, over the images that have a mask"
    counts = torch.zeros(N_REGIONS, N_REGIONS, dtype=torch.long)
    with learn.evaluating() as (model, _):
        for x, (labels, *_) in learn.batches_of(learn.loader(items)):
            logits = model.feature_maps(x)['mask_logits'].float()
            seen = interpolate(logits, labels.shape[-2:], mode='bilinear', align_corners=False).argmax(1)
            given = labels != NO_MASK
            pairs = labels[given]*N_REGIONS + seen[given]
            counts += torch.bincount(pairs, minlength=N_REGIONS**2).view(N_REGIONS, N_REGIONS).cpu()
    return counts.numpy()


@patch(cls_method=True)
def from_learner(cls: ClassificationInterpretation,
    learn,  # A learner
    *args,  # As in fastai
    **kwargs,  # As in fastai
):
    "fastai's; a NotImplementedError for a `ReIDLearner`"
    if isinstance(learn, ReIDLearner): raise NotImplementedError(f'ClassificationInterpretation: {INSTEAD}')
    return super(ClassificationInterpretation, cls).from_learner(learn, *args, **kwargs)


@dispatch
def plot_top_losses(x: TensorImage, y: tuple[TensorPartMask, TensorIdentity], *args, **kwargs):
    "Refused, with what to use: fastai finds this function by the types of the batch"
    raise NotImplementedError(f'plot_top_losses: {INSTEAD}')
