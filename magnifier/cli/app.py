"The page over a gallery, from a shell"
from magnifier.cli.common import check_gallery, command, open_learner, say

__all__ = ['magnifier_app']


@command()
def magnifier_app(
    gallery: str = 'people',  # The gallery: a folder, or a server's address
    learner: str = 'runs/quick/learner.pkl',  # What made it: a saved folder, or a file (load what you trust)
    name: str = 'people',  # Of the gallery within that folder or server
    host: str = '127.0.0.1',  # Address to bind to: this machine alone. 0.0.0.0 lets the network in, without a password
    port: int = None,  # Port; the first free one from 7860 on where not given
    public_host: str = '',  # The name that visitors type, as people.example.org; other names are refused
    debug: bool = False,  # Shows the traceback of an error
):
    """Serves a page on this machine to search a gallery: drop or pick a person, see where else they were seen, by which
    regions, and why. Nothing that is dropped is kept. Ctrl-C ends it.

    Examples: `magnifier_app --gallery people --learner runs/quick/learner.pkl` · `magnifier_app --port 8000`

    For others to use it, put a proxy before it that asks for a password and speaks HTTPS, and give the name that they
    type: `magnifier_app --port 8000 --public-host people.example.org`. In nginx, this is enough:
    `location / { proxy_pass http://127.0.0.1:8000/; client_max_body_size 11m; auth_basic people;
    auth_basic_user_file ...; }`. The page answers under that name and this machine's own, and no other. In a network
    without a proxy, everybody who reaches it may search: `magnifier_app --host 0.0.0.0 --public-host 192.168.0.2`"""
    import signal
    from threading import Event
    check_gallery(gallery)
    from magnifier.app.server import LOCAL, serve_page
    from magnifier.gallery.gallery import Gallery
    learn = open_learner(learner)
    if host not in LOCAL:
        say(f'warning: whoever reaches {host} can search this gallery; nobody is asked for a password')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is as clean as Ctrl-C
    with Gallery(gallery, name=name) as people, learn.no_bar():
        try:
            with serve_page(learn, people, host=host, port=port, public_host=public_host) as address:
                say(f'{address} searches {len(people)} images of {gallery}; Ctrl-C ends it')
                Event().wait()
        except KeyboardInterrupt: say('closed; nothing that was dropped is kept')
