"Stepping through queries: buttons, and regions to tick, in Jupyter; one figure elsewhere"
import sys

import numpy as np
from fastai.vision.all import patch
from magnifier.look.figure import Figure
from magnifier.look.drawing import region_name
from magnifier.look.ranked import RankedSet, draw_rankings
from magnifier.regions import BODY_REGIONS, REGIONS
from magnifier.train.learner import ReIDLearner

__all__ = ['Browser']


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
        self.learn, self.catalog, self.k, self.heat = learn, catalog, k, heat
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
        return draw_rankings([(self.learn, self.ranked(regions))], np.array([self.step(0)]), k=self.k, heat=self.heat,
                             regions=list(regions) or None, save=save, show=show)

    def widget(self):  # An ipywidgets box
        "Buttons, regions to tick, and the figure; an ImportError says what to install"
        try: import ipywidgets as w
        except ImportError as e:
            raise ImportError('browsing with buttons needs ipywidgets: pip install ipywidgets') from e
        back, on = w.Button(description='◀ previous'), w.Button(description='next ▶')
        where, out = w.Label(), w.Image(format='png')
        known = BODY_REGIONS if self.learn.model.segmentation is not None else ()
        ticks = [w.Checkbox(description=region_name(r), indent=False, layout=w.Layout(width='auto')) for r in known]

        def draw(*_):
            regions = [r for r, tick in zip(known, ticks) if tick.value]
            alone = f', by {", ".join(map(region_name, regions))} alone' if regions else ''
            where.value = f'query {self.at + 1} of {len(self.order)}{alone}'
            out.value = self.figure(regions, show=False).png()

        back.on_click(lambda _: (self.step(-1), draw()))
        on.on_click(lambda _: (self.step(1), draw()))
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
    return browser.widget() if save is None and _has_widgets() else browser.figure(save=save)


def _has_widgets():
    "Whether this is a notebook that can show buttons"
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell is None or not hasattr(shell, 'kernel'): return False
    try: import ipywidgets  # noqa: F401 - whether it is there is the question
    except ImportError: return False
    return True
