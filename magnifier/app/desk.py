"What each event of the page answers: values in, pieces of HTML and states out. Knows no browser and no Gradio"
import pandas as pd
from magnifier.app.gallery_tab import EVERYTHING, gallery_html
from magnifier.app.html import hits_html, match_html, query_html, rates_html, said, status_html, strip_html
from magnifier.app.search import Finder, Query, shrunk
from magnifier.app.upload import MAX_BYTES, read_data_url, too_large

__all__ = ['Desk']


class Desk:
    "Answers to events. A mistake becomes a sentence on the page; states (query, found, match) belong to one visitor and are passed in and out"

    def __init__(self,
        finder:Finder, # Who is asked
    ): self.finder = finder

    def cameras(self) -> list:  # (label, value); the first stands for none
        "Choices of a camera"
        return [('none', None), *((f'camera {c}', c) for c in self.finder.cameras)]

    def times(self) -> tuple:  # Two texts
        "The first and the last time in the gallery, as examples of how to write them"
        times = self.finder.images['time']
        return tuple(f'{t:%Y-%m-%d %H:%M}' if self.finder.has_times else '' for t in (times.min(), times.max()))

    def drop(self,
        query:Query|None=None, # Who is searched
        wrong:str='',          # Why a file was refused
    ) -> str:
        "The query and the place to drop another"
        return query_html(None if query is None else query._replace(image=shrunk(query.image)), wrong)

    def strip(self) -> str:
        "A few people to begin with"
        rows = self.finder.some()
        return strip_html(rows, [shrunk(self.finder.picture(key), 128) for key in rows['key']])

    def opened(self) -> str:
        "The page was opened: the gallery is read anew"
        self.finder.refresh()
        return self.strip()

    def status(self, *args, **kwargs) -> str:
        "`status_html` for this model"
        return status_html(*args, parts=self.finder.parts, **kwargs)

    def rates(self,
        threshold:float, # Similarity
        regions=(),      # That are compared
    ) -> str:
        "What the threshold stands for"
        return rates_html(self.finder.rates(regions), threshold, len(self.finder.images))

    def upload(self,
        data=None,  # Data URL of a file; None where the browser found it too large
        size:int=0, # Its bytes, as the browser says
    ) -> tuple:  # query, its own camera (unknown: None), HTML
        "A file came: a query, or a sentence that refuses it and no query"
        try:
            if data is None and size > MAX_BYTES: raise ValueError(too_large(size))
            query = Query(read_data_url(data))
        except ValueError as e: return None, None, self.drop(wrong=_sentence(e))
        return query, None, self.drop(query)

    def pick(self,
        key, # Of an image of the gallery
    ) -> tuple:  # query, its own camera, HTML
        "Somebody of the gallery was picked"
        try: query = self.finder.pick(str(key))
        except ValueError as e: return None, None, self.drop(wrong=_sentence(e))
        own = query.row['camid']
        return query, None if pd.isna(own) or own not in self.finder.cameras else int(own), self.drop(query)

    def forget(self) -> tuple:  # None, None, HTML
        "The query is let go of"
        return None, None, self.drop()

    def search(self,
        query,     # `Query`, or None
        cameras,   # To search in
        not_camera,# To leave out
        since,     # Text
        until,     # Text
        regions,   # To compare
        threshold, # Least similarity
        masks,     # Whether part masks are painted
    ) -> tuple:  # found, match, and the HTML of status, hits, rates, explanation
        "Searches, and forgets the last explanation"
        regions = regions or ()
        if query is None: return None, None, self.status(), '', self.rates(threshold, regions), ''
        try:
            found = self.finder.find(query, cameras=cameras or (), not_camera=not_camera, since=since, until=until, regions=regions)
            if masks: self.finder.label(found)
        except ValueError as e: return None, None, self.status(wrong=_sentence(e)), '', self.rates(threshold, regions), ''
        return found, None, self.status(found, threshold), hits_html(found, threshold, masks), self.rates(threshold, regions), ''

    def narrow(self,
        found,     # `Found`, or None
        threshold, # Least similarity
        masks,     # Whether part masks are painted
        regions,   # That are compared
    ) -> tuple:  # HTML of status, hits, rates
        "The threshold moved: nothing is searched again"
        return self.status(found, threshold), '' if found is None else hits_html(found, threshold, masks), self.rates(threshold, regions or ())

    def paint(self,
        found,     # `Found`, or None
        match,     # `Match`, or None
        threshold, # Least similarity
        masks,     # Whether part masks are painted
    ) -> tuple:  # HTML of hits and explanation
        "Part masks on or off"
        if found is None: return '', ''
        if masks: self.finder.label(found)
        return hits_html(found, threshold, masks), '' if match is None else match_html(match, masks)

    def explain(self,
        found, # `Found`, or None
        place, # Of the hit, from 1, as a card sends it
        masks, # Whether part masks are painted
    ) -> tuple:  # match, HTML
        "A hit was chosen"
        try:
            if found is None: raise ValueError('there is no such hit any more: search again')
            match = self.finder.match(found, int(place) if str(place).isdecimal() else 0)
        except ValueError as e: return None, said(_sentence(e), 'alert')
        return match, match_html(match, masks)

    def browse(self,
        by:str='identity',   # Or camera
        only:str=EVERYTHING, # A group
        page=1,              # From 1; None, a field that was emptied, is the first
        turn:int=0,          # Pages on from there, or back
    ) -> tuple:  # HTML, page
        "The gallery's tab"
        html, page, pages = gallery_html(self.finder, by, only or EVERYTHING, (page or 1) + turn)
        return f'<p class="mg-small" role="status">Page {page} of {pages}. Choose a picture to search for that person.</p>{html}', page


def _sentence(error):
    text = str(error)
    return text[:1].upper() + text[1:] + ('' if text.endswith('.') else '.')
