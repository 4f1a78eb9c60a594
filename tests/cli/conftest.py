"A data set for the commands, and a training by them"
from contextlib import redirect_stdout
from io import StringIO

import pytest


@pytest.fixture(scope='session')
def people(tmp_path_factory):
    "A set just large enough for a batch of the quick recipe"
    from magnifier.walkers.dataset import walkers
    return walkers(tmp_path_factory.mktemp('cli')/'people', n_train=16, n_test=4, n_images=4, n_queries=2, n_gallery=3)


@pytest.fixture(scope='session')
def run(people, tmp_path_factory):
    "One short training by the command, and what it printed"
    from magnifier.cli.train import magnifier_train
    out, said = tmp_path_factory.mktemp('run'), StringIO()
    with redirect_stdout(said):
        magnifier_train('walkers', str(people), out=str(out), epochs=2, workers=0, rerank=True)
    return out, said.getvalue()
