"ReIDInterpretation: where a model fails, and what its failures have in common"
import warnings

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import to_device
from magnifier.data.masks import read_mask
from magnifier.look.drawing import put_picture
from magnifier.look.graphs import draw_cmc, draw_distances, draw_groups, draw_histogram, draw_table, draw_thumbnails
from magnifier.train.parts import NO_REGIONS, VISIBLE, embed_parts
from magnifier.look.picture import finish, plot, tiles
from magnifier.look.ranked import draw_rankings
from magnifier.look.saliency import pictures_of
from magnifier.look.searched import Searched
from magnifier.regions import NO_MASK, N_REGIONS, REGIONS
from magnifier.retrieval.ranking import rank
from magnifier.retrieval.verification import verification_pairs, verification_table
from magnifier.train.learner import ReIDLearner

__all__ = ['ReIDInterpretation']


class ReIDInterpretation:
    """A set searched once, and pictures of what was found.

    Every method draws, keeps the picture in `.figure` (`save=` writes it), and returns its numbers as a DataFrame. Embeddings are held,
    pictures are loaded when they are shown."""

    def __init__(self,
        learn:ReIDLearner, # Whose search it was
        searched:Searched, # What it found
    ): self.learn, self.searched, self.figure = learn, searched, None

    @classmethod
    def from_learner(cls,
        learn:ReIDLearner, # The model
        catalog=None,      # Catalog with queries and gallery; None for the validation set
        **kwargs           # Passed to `rank`: ap, no_match, separate_cameras
    ):  # ReIDInterpretation
        "Embeds and ranks once"
        return cls(learn, Searched.of(learn, catalog, **kwargs))

    @property
    def ranking(self):
        "The `Ranking` of the queries against the gallery"
        return self.searched.ranking

    def _show(self, picture, save): self.figure = finish(picture, save)

    def _ids(self, rows, column): return self.searched.identity[rows, column]

    @property
    def _queries(self):
        "One row a query: its catalog row, ap, first_match"
        s = self.searched
        return s.items.iloc[s.query_rows].reset_index(drop=True).assign(ap=s.ranking.ap, first_match=s.ranking.first_match)

    def worst_queries(self,
        n:int=4,   # Queries
        k:int=8,   # Hits of each
        *,
        saliency=True, # As in `show_ranking`
        save=None, # Where to write the picture
    ) -> pd.DataFrame:  # Their catalog rows with `ap` and `first_match` (rank of the first true match), worst first; index: the query's number
        "Queries of the lowest average precision, with their hits"
        chosen = self.searched.choose('worst', n)
        self.figure = draw_rankings([self.learn], [self.searched], chosen, k=k, saliency=saliency, save=save)
        return self._queries.iloc[chosen]

    def confused_identities(self,
        n:int=8,   # Pairs to draw
        *,
        save=None, # Where to write the picture
    ) -> pd.DataFrame:  # Columns pid, taken_for, times, of (the identity's queries), query and item (an example); most often first
        "Who is taken for whom: wrong first hits, counted by pair of identities"
        if n < 1: raise ValueError(f'n={n}: draw at least one pair')
        s, wrong = self.searched, np.flatnonzero((self.ranking.first_match > 1) & (self.ranking.n_matches > 0))
        items = [self.ranking.hits(int(q), 1)['item'].iat[0] for q in wrong]
        table = pd.DataFrame(dict(pid=self._ids(s.query_rows[wrong], 1), taken_for=self._ids(s.gallery_rows[items], 1), query=wrong, item=items))
        table = table.groupby(['pid', 'taken_for'], as_index=False).agg(times=('query', 'size'), query=('query', 'first'), item=('item', 'first'))
        queries = pd.Series(self._ids(s.query_rows, 1)).value_counts()
        table.insert(3, 'of', table['pid'].map(queries).to_numpy(dtype=int))
        table = table.sort_values(['times', 'pid', 'taken_for'], ascending=[False, True, True], ignore_index=True)
        self._show(self._draw_confused(table.head(n)), save)
        return table

    def _draw_confused(self, table):
        s = self.searched
        if not len(table):
            sheet, ((ax,),) = plot(size=(4, 1))
            ax.set_axis_off()
            ax.text(.5, .5, 'every first hit is right', ha='center', va='center')
            return sheet
        rows = np.concatenate([s.query_rows[table['query']], s.gallery_rows[table['item']]])
        pictures = pictures_of(self.learn, s.items.iloc[rows])
        sheet, axes = tiles(2, len(table), aspect=pictures.shape[1]/pictures.shape[2], width=1., above=.32,
                            title='queries, and whom they were taken for')
        for i, pair in enumerate(table.itertuples()):
            put_picture(axes[0, i], pictures[i], title=f'id {pair.pid}', kind='query')
            words = f'{_called(pair.taken_for)}\n{pair.times} of {pair.of}'
            put_picture(axes[1, i], pictures[len(table) + i], title=words, kind='false')
        return sheet

    def plot_cmc(self,
        max_rank:int=20, # Last rank drawn
        *,
        save=None,       # Where to write the picture
    ) -> pd.DataFrame:  # Index rank, column share
        "Cumulative match characteristic: share of the queries found by each rank"
        ranks = np.arange(1, min(max_rank, self.ranking.shape[1]) + 1)
        table = pd.DataFrame({'share': self.ranking.cmc(ranks)}, index=pd.Index(ranks, name='rank'))
        r = self.ranking
        self._show(draw_cmc(table, f'R1 {r.cmc(1):.3f}   mAP {r.mAP:.3f}   mINP {r.mINP:.3f}'), save)
        return table

    def plot_ap(self,
        bins:int=20, # Bins between 0 and 1
        *,
        save=None,   # Where to write the picture
    ) -> pd.DataFrame:  # One row a query that counts: pid, camid, path, ap, first_match
        "Histogram of the queries' average precision"
        self._need_matches()
        table = self._queries.loc[self.ranking.counted, ['path', 'pid', 'camid', 'ap', 'first_match']]
        self._show(draw_histogram(table['ap'].to_numpy(), np.linspace(0, 1, bins + 1)), save)
        return table

    def _need_matches(self):
        if not (self.ranking.n_matches > 0).any():
            raise ValueError('no query has a true match in the gallery, so there are no figures to draw: check pids and camids')

    def plot_distances(self,
        false_accept=.01, # False-accept rate, or several, whose threshold is drawn
        *,
        save=None,        # Where to write the picture
    ) -> pd.DataFrame:  # Of `verification_table`: equal error rate and each rate's threshold, false_accept, false_reject, true_accept
        "Distances of true and false pairs, with the threshold at a chosen false-accept rate"
        self._need_matches()
        s, rates = self.searched, [false_accept] if isinstance(false_accept, (int, float)) else list(false_accept)
        q, g = s.query_rows, s.gallery_rows
        pairs = verification_pairs(s.embeddings[q], s.embeddings[g], *(self._ids(rows, column) for column in (1, 2) for rows in (q, g)))
        table = verification_table(pairs.genuine, pairs.impostor, false_accept=rates)
        self._show(draw_distances(pairs.genuine, pairs.impostor, table), save)
        return table

    def plot_camera_pairs(self, *,
        save=None, # Where to write the picture
    ) -> pd.DataFrame:  # One row a pair: query_cam, gallery_cam, queries (that have a match there), R1, mAP
        "R1 and mAP with the gallery cut down to one camera, for each camera of the queries"
        s, rows = self.searched, []
        q_cams, g_cams = (self._ids(r, 2) for r in (s.query_rows, s.gallery_rows))
        for qc in np.unique(q_cams):
            for gc in np.unique(g_cams):
                rows.append(dict(query_cam=qc, gallery_cam=gc, **self._figures(s.query_rows[q_cams == qc], s.gallery_rows[g_cams == gc])))
        table = pd.DataFrame(rows)
        side = .55*max(table['query_cam'].nunique(), 5) + .9
        sheet, ((left, right),) = plot(1, 2, size=(max(side, 3.2), max(side*.85, 2.6)))
        for ax, figure in ((left, 'R1'), (right, 'mAP')):
            draw_table(ax, table.pivot(index='query_cam', columns='gallery_cam', values=figure), title=figure)
            ax.set_xlabel('camera of the gallery', fontsize=8)
            ax.set_ylabel('camera of the query', fontsize=8)
        self._show(sheet, save)
        return table

    def _figures(self, q, g):
        "Queries with a match, R1 and mAP of some queries against some of the gallery"
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='none of .* queries has a true match')  # a camera's pair with itself
            r = rank(self.searched.embeddings[q], self.searched.embeddings[g], *(self._ids(rows, column) for column in (1, 2) for rows in (q, g)),
                     ap=self.ranking.ap_form, no_match=self.ranking.no_match, separate_cameras=self.ranking.labels.separate_cameras)
        return dict(queries=int((r.n_matches > 0).sum()), R1=r.cmc(1), mAP=r.mAP)

    def by(self,
        values,        # One value a query, or the name of a catalog column
        *,
        label:str='',  # What the values are, for the picture
        save=None,     # Where to write the picture
    ) -> pd.DataFrame:  # Index the values, columns queries, R1, mAP
        "R1 and mAP of the queries by any property they have"
        self._need_matches()
        if isinstance(values, str):
            if values not in self._queries:
                raise ValueError(f'no column {values!r} in the catalog: it has {", ".join(map(str, self.searched.items))}')
            label, values = label or values, self._queries[values]
        if len(values) != len(self._queries): raise ValueError(f'{len(values)} values for {len(self._queries)} queries: give one for each')
        values = values if isinstance(values, pd.Categorical) else np.asarray(values)  # a categorical keeps its order
        found = self._queries.assign(of=values, right=self.ranking.first_match == 1)[self.ranking.counted]
        table = found.groupby('of', observed=True).agg(queries=('right', 'size'), R1=('right', 'mean'), mAP=('ap', 'mean')).rename_axis(label or None)
        self._show(draw_groups(table, label=label), save)
        return table

    def plot_occlusion(self,
        edges=(0, .05, .2, .4, 1), # Edges of the groups, shares of the body
        *,
        save=None,                 # Where to write the picture
    ) -> pd.DataFrame:  # Index the share hidden, columns queries, R1, mAP
        """R1 and mAP by the share of the query's body that is hidden: the catalog's column `occluded`, if it has one; else an estimate,
        how much less body the part mask holds than that of the query at the 90th percentile, which small figures raise too"""
        known = 'occluded' in self.searched.items
        if known: hidden = pd.to_numeric(self._queries['occluded']).to_numpy()
        else:
            body = 1 - self._areas()[:, 0]
            hidden = (1 - body/max(np.quantile(body, .9), 1e-6)).clip(0, 1)
        groups = pd.cut(hidden, edges, include_lowest=True, labels=[f'{a:.0%}–{b:.0%}' for a, b in zip(edges[:-1], edges[1:])])
        return self.by(groups, label='share of the body hidden' + ('' if known else ' (estimated from masks)'), save=save)

    def plot_visible_regions(self, *,
        save=None, # Where to write the picture
    ) -> pd.DataFrame:  # Index the number of body regions seen, 0 to 7, columns queries, R1, mAP
        "R1 and mAP by the number of body regions that the query shows"
        return self.by((self._areas()[:, 1:] >= VISIBLE).sum(1), label='body regions that the query shows', save=save)

    def _areas(self):
        "(q,k) areas of the queries' regions: of the data's masks, or where one is missing, of the model's"
        queries = self._queries
        if 'mask' in queries and queries['mask'].notna().all():
            return np.stack([np.bincount(m.ravel(), minlength=N_REGIONS)/m.size for m in map(read_mask, queries['mask'])])
        if self.learn.model.segmentation is None: raise ValueError(NO_REGIONS)
        return embed_parts(self.learn, queries[['path']]).areas

    def plot_embeddings(self,
        method:str='pca', # 'pca', or 't-sne' from scikit-learn
        *,
        n_ids:int=8,      # Identities shown: thousands would be a cloud
        n_images:int=10,  # Images of each
        seed:int=0,       # Seed of the choice, and of t-SNE
        save=None,        # Where to write the picture
    ) -> pd.DataFrame:  # One row an image: path, pid, camid, x, y
        "Embeddings of a few identities in two dimensions, as thumbnails"
        if method not in ('pca', 't-sne'): raise ValueError(f"method={method!r}: use 'pca' or 't-sne'")
        s, rng = self.searched, np.random.default_rng(seed)
        pids = np.unique(self._ids(s.query_rows, 1))
        chosen = rng.permutation(pids)[:n_ids]
        rows = np.concatenate([np.flatnonzero(s.identity[:, 1] == pid)[:n_images] for pid in chosen])
        points = _flattened(s.embeddings[rows].numpy(), method, seed)
        table = s.items.iloc[rows][['path', 'pid', 'camid']].assign(x=points[:, 0], y=points[:, 1])
        words = f'{len(chosen)} of {len(pids)} identities, {"principal components" if method == "pca" else "t-SNE"}'
        self._show(draw_thumbnails(points, list(pictures_of(self.learn, s.items.iloc[rows])), list(table['pid']), words), save)
        return table

    def plot_segmentation(self, *,
        save=None, # Where to write the picture
    ) -> pd.DataFrame:  # Index the true region: iou, pixels, and the share of its pixels seen as each region
        "How well the model parses: intersection over union by region, and which region is taken for which"
        if self.learn.model.segmentation is None: raise ValueError('this model has no mask module: build the learner with mask=True')
        counts = _confusion(self.learn, self.searched.items)
        if not counts.sum(): raise ValueError('no image here has a part mask to compare with: name a folder of masks to the reader (masks=...)')
        true, seen, both = counts.sum(1), counts.sum(0), counts.diagonal()
        with np.errstate(invalid='ignore', divide='ignore'): iou, shares = both/(true + seen - both), counts/true[:, None]
        shares = pd.DataFrame(shares, index=list(REGIONS), columns=list(REGIONS))
        sheet, ((left, right),) = plot(1, 2, size=(4.7, 3.8), width_ratios=(.62, 1))
        left.barh(range(N_REGIONS), np.nan_to_num(iou), color='#56B4E9', edgecolor='#333333', linewidth=.5)
        for i, v in enumerate(iou): left.text(np.nan_to_num(v) + .02, i, f'{v:.2f}', va='center', fontsize=8)
        left.set_yticks(range(N_REGIONS), [r.replace('_', ' ') for r in REGIONS])
        left.set(xlim=(0, 1.15), xlabel=f'IoU (mean {np.nanmean(iou):.2f})')
        left.invert_yaxis()
        draw_table(right, shares, title='share of a true region (row) seen as (column)')
        self._show(sheet, save)
        return pd.DataFrame(dict(iou=iou, pixels=true.astype(int)), index=pd.Index(REGIONS, name='region')).join(shares.add_prefix('as_'))


def _called(pid): return f'id {pid}' if pid else 'nobody (id 0)'


def _flattened(embeddings, method, seed):
    "(n,2) by principal components or t-SNE"
    if len(embeddings) < 3: raise ValueError(f'{len(embeddings)} images make no map: choose more identities or images')
    if method == 'pca':
        left, scale, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
        return left[:, :2]*scale[:2]
    from sklearn.manifold import TSNE
    return TSNE(perplexity=min(30, (len(embeddings) - 1)/3), init='pca', random_state=seed).fit_transform(embeddings)


def _confusion(learn, items):
    "(k,k) pixels, true region by seen region, over the images that have a mask"
    counts = torch.zeros(N_REGIONS, N_REGIONS, dtype=torch.long)
    dl = learn.loader(items)
    with learn.evaluating() as (model, device):
        for x, labels, *_ in learn.with_progress(dl):
            x, labels = to_device((x, labels.as_subclass(torch.Tensor)), device)
            logits = model.feature_maps(x)['mask_logits'].float()
            seen = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode='bilinear', align_corners=False).argmax(1)
            given = labels != NO_MASK
            counts += torch.bincount(labels[given]*N_REGIONS + seen[given], minlength=N_REGIONS**2).view(N_REGIONS, N_REGIONS).cpu()
    return counts.numpy()
