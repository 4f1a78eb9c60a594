"The page over a gallery, from a shell"
from magnifier.cli.common import check_gallery, command, open_learner, say

__all__ = ['magnifier_app']


@command()
def magnifier_app(
    gallery:str='people',                   # The gallery: a folder, or a server's address
    learner:str='runs/quick/learner.pkl',   # The learner that made it: its file (a pickle: load only what you trust), or a saved folder
    name:str='people',                      # Of the gallery within that folder or server
    host:str='127.0.0.1',                   # Address to bind to: this machine alone. 0.0.0.0 lets the whole network in, without a password
    port:int=None,                          # Port; the first free one from 7860 on where not given
    debug:bool=False,                       # Shows the traceback of an error
):
    """Serves a page on this machine to search a gallery: drop or pick a person, see where else they were seen, by which regions,
    and why. Nothing that is dropped is kept. Ctrl-C ends it.

    Examples: `magnifier_app --gallery people --learner runs/quick/learner.pkl` · `magnifier_app --port 8000`"""
    import signal
    from threading import Event
    check_gallery(gallery)
    from magnifier.app.server import is_local, serve_page
    from magnifier.gallery.gallery import Gallery
    learn = open_learner(learner)
    if not is_local(host): say(f'warning: whoever reaches {host} can search this gallery and see its pictures; nobody is asked for a password')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is as clean as Ctrl-C
    with Gallery(gallery, name=name) as people, learn.no_bar():
        try:
            with serve_page(learn, people, host=host, port=port) as address:
                say(f'{address} searches {len(people)} pictures of {gallery}; Ctrl-C ends it')
                Event().wait()
        except KeyboardInterrupt: say('closed; nothing that was dropped is kept')
