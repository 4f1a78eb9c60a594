"Serves the page: on this machine alone unless told otherwise, from a folder that goes with it"
import os
import shutil
import tempfile
from contextlib import contextmanager

from magnifier.app.page import make_page
from magnifier.app.guard import LOCAL, Guard
from magnifier.app.style import STYLE

__all__ = ['serve_page', 'private_folder', 'is_local']


# What Gradio offers besides, and a page about people should not
NOTHING_MORE = dict(inline=False, inbrowser=False, share=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
                    mcp_server=False, pwa=False)


def is_local(
    host:str, # Name or address that a server binds to
) -> bool:
    "Whether nobody but this machine can reach it"
    return host in LOCAL


@contextmanager
def private_folder():
    """Gradio's own files in a folder that only this user may read, removed at the end. The page gives it none to keep; should another
    version of it write some, they go too. Gives the folder"""
    folder = tempfile.mkdtemp(prefix='magnifier-page-')  # mode 0700
    before = os.environ.get('GRADIO_TEMP_DIR')
    os.environ['GRADIO_TEMP_DIR'] = folder
    try: yield folder
    finally:
        if before is None: os.environ.pop('GRADIO_TEMP_DIR', None)
        else: os.environ['GRADIO_TEMP_DIR'] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serve_page(
    learn,                # The ReIDLearner that made the gallery
    gallery,              # A Gallery with images
    *,
    host:str='127.0.0.1', # Name or address to bind to; 0.0.0.0 lets the whole network in, and nobody is asked for a password
    port:int|None=None,   # Port; None for the first free one from 7860 on
):                        # The address, while the `with` lasts
    "The page, answering in threads of its own. The errors of `make_page`; OSError for a port that is taken"
    with private_folder():
        page = make_page(learn, gallery)
        guard = {'middleware': [_middleware(Guard, hosts=LOCAL if is_local(host) else None)]}
        try:
            page.launch(prevent_thread_lock=True, server_name=host, server_port=port, quiet=True, css=STYLE, theme=_theme(), app_kwargs=guard,
                        max_threads=8, max_file_size=0, state_session_capacity=100, **NOTHING_MORE)
            yield page.local_url
        finally: page.close(verbose=False)


def _theme():
    "Fonts of the browser's own machine"
    from gradio.themes import Default
    return Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])


def _middleware(cls, **kwargs):
    from starlette.middleware import Middleware
    return Middleware(cls, **kwargs)
