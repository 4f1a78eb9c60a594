"Stepping through queries: buttons and regions to tick in Jupyter, one static picture elsewhere"
import sys

import numpy as np
from fastai.vision.all import patch
from magnifier.look.palette import region_name
from magnifier.look.ranked import draw_rankings
from magnifier.look.searched import Searched
from magnifier.regions import N_REGIONS, REGIONS
from magnifier.train.learner import ReIDLearner

__all__ = ['Browser']


class Browser:
    "What `learn.browse` steps through: one query after another, by the whole embedding or by some regions"
    def __init__(self,
        learn:ReIDLearner, # The model
        catalog=None,      # Catalog with queries and gallery; None for the validation set
        *,
        order:str='worst', # Which queries come first: 'worst', 'best' or 'random'
        k:int=8,           # Hits
        saliency=True,     # As in `show_ranking`
    ):
        self.learn, self.catalog, self.k, self.saliency, self.at = learn, catalog, k, saliency, 0
        self.searches = {(): Searched.of(learn, catalog)}
        whole = self.searches[()]
        self.order = whole.choose(order, max(1, len(whole.query_rows)))

    def searched(self,
        regions=(), # Names of regions; none for the whole embedding
    ) -> Searched:  # Found once, and kept
        "The search by these regions"
        key = tuple(r for r in REGIONS if r in regions)
        if key not in self.searches: self.searches[key] = Searched.of(self.learn, self.catalog, list(key))
        return self.searches[key]

    def step(self,
        by:int=1, # How far, either way; past the end it starts anew
    ) -> int:  # The query that is shown now, as the ranking counts them
        "On to another query"
        self.at = (self.at + by) % len(self.order)
        return int(self.order[self.at])

    def picture(self,
        regions=(), # Names of regions to search by; none for the whole embedding
        save=None,  # Where to write the picture
        show:bool=True, # Whether a notebook shows it at once
    ):  # Picture
        "The query that is shown now, with its hits"
        return draw_rankings([self.learn], [self.searched(regions)], np.array([self.step(0)]), k=self.k, saliency=self.saliency,
                             regions=list(regions) or None, save=save, show=show)

    def widget(self):  # An ipywidgets box
        "Buttons, regions to tick, and the picture; an ImportError says what to install"
        try: import ipywidgets as w
        except ImportError as e: raise ImportError('browsing with buttons needs ipywidgets: pip install ipywidgets') from e
        ticks = [w.Checkbox(description=region_name(k), indent=False, layout=w.Layout(width='auto')) for k in range(1, N_REGIONS)]
        back, on, where, out = w.Button(description='◀ previous'), w.Button(description='next ▶'), w.Label(), w.Image(format='png')
        if self.learn.model.segmentation is None: ticks = []
        def draw(*_):
            regions = [REGIONS[k] for k, tick in enumerate(ticks, 1) if tick.value]
            where.value = f'query {self.at + 1} of {len(self.order)}' + (f', by {", ".join(regions)} alone' if regions else '')
            out.value = self.picture(regions, show=False).png()
        back.on_click(lambda _: (self.step(-1), draw()))
        on.on_click(lambda _: (self.step(1), draw()))
        for tick in ticks: tick.observe(draw, names='value')
        draw()
        return w.VBox([w.HBox([back, on, where]), w.HBox([w.Label('search by'), *ticks]) if ticks else w.HBox(), out])


@patch
def browse(self:ReIDLearner,
    catalog=None,      # Catalog with queries and gallery; None for the validation set
    *,
    order:str='worst', # Which queries come first: 'worst', 'best' or 'random'
    k:int=8,           # Hits
    saliency=True,     # As in `show_ranking`
    save=None,         # Where to write the static picture; given, it is drawn in any case
):  # An ipywidgets box in Jupyter, where they are installed; else the Picture of the first query
    "Steps through queries and their hits, with regions to tick that the search goes by"
    browser = Browser(self, catalog, order=order, k=k, saliency=saliency)
    return browser.widget() if save is None and _has_widgets() else browser.picture(save=save)


def _has_widgets():
    "Whether this is a notebook that can show buttons"
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell is None or not hasattr(shell, 'kernel'): return False
    try: import ipywidgets  # noqa: F401 - whether it is there is the question
    except ImportError: return False
    return True
