"What all commands do: a mistake is one line, before anything heavy is imported; --help teaches by example"
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from magnifier.cli.evaluate import magnifier_eval
from magnifier.cli.train import magnifier_ablate, magnifier_train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('call, message', [
    (lambda: magnifier_train('marked', 'x'), "unknown data set 'marked': use walkers or one of .*market1501"),
    (lambda: magnifier_train('market1501'), 'magnifier_train market1501 PATH'),
    (lambda: magnifier_train(size='256'), "size '256': give height x width"),
    (lambda: magnifier_train(branches='sab'), "unknown branches 'sab': use one of global, all"),
    (lambda: magnifier_train(cache='tape'), "unknown cache 'tape': use one of ram, disk, none"),
    (lambda: magnifier_train(epochs=0), 'epochs=0: train one or more'),
    (lambda: magnifier_train(recipe='slow'), "unknown recipe 'slow': use one of quick"),
    (lambda: magnifier_train('market1501', '/no/such/folder'), 'no/such/folder'),
    (lambda: magnifier_eval('/no/learner.pkl'), 'no/learner.pkl'),
    (lambda: magnifier_train(set=['keep']), '--set keep: give name=value'),
    (lambda: magnifier_train(set=['kep=6']), "unknown argument 'kep': use one of"),
    (lambda: magnifier_train(weights='/no/weights.pth'), '/no/weights.pth: no such file'),
    (lambda: magnifier_ablate(recipe='slow'), "unknown recipe 'slow'"),
])
def test_mistakes_are_one_line(call, message):
    with pytest.raises(SystemExit, match=message) as e: call()
    assert str(e.value).startswith('magnifier_')
    assert '\n' not in str(e.value)


QUICK_NO = """import sys
from magnifier.cli.evaluate import magnifier_eval, magnifier_export
from magnifier.cli.train import magnifier_ablate, magnifier_train
learner = sys.argv[1]
calls = [
    lambda: magnifier_train('marked', 'x'),
    lambda: magnifier_train('market1501', '/no/such/folder'),
    lambda: magnifier_train(recipe='slow'),
    lambda: magnifier_eval('/no/learner.pkl'),
    lambda: magnifier_eval(learner),
    lambda: magnifier_eval(learner, 'marked', 'x'),
    lambda: magnifier_ablate('marked', 'x'),
    lambda: magnifier_export('/no/learner.pkl'),
]
for i, call in enumerate(calls):
    try: call()
    except SystemExit as e: assert str(e).startswith('magnifier_'), e
    else: sys.exit(f'{i} ran')
    assert not {'torch', 'fastai', 'matplotlib'} & set(sys.modules), i
"""


def test_mistakes_are_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path/'learner.pkl').touch()
    (tmp_path/'quick.py').write_text(QUICK_NO)
    told = subprocess.run([sys.executable, tmp_path/'quick.py', tmp_path/'learner.pkl'], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_debug_shows_where_it_arose():
    with pytest.raises(ValueError, match='unknown data set'): magnifier_train('marked', 'x', debug=True)


HELP = """import sys
from importlib import import_module
for command in sys.argv[1:]:
    module, name = command.split(':')
    sys.argv = [name, '--help']
    try: getattr(import_module(module), name)()
    except SystemExit as e: assert not e.code, e.code
    else: sys.exit(f'{name} ran')
    heavy = {'torch', 'fastai', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_help_teaches_by_example_and_imports_nothing_heavy(tmp_path):
    "Every installed command's own --help, one after the other in one process"
    settings = ConfigParser()
    settings.read(ROOT/'settings.ini')
    commands = dict(line.split('=') for line in settings['DEFAULT']['console_scripts'].split())
    (tmp_path/'help.py').write_text(HELP)
    told = subprocess.run([sys.executable, tmp_path/'help.py', *commands.values()], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    told = told.stdout.split('usage: ')[1:]
    assert [t.split()[0] for t in told] == list(commands)
    assert all('Example' in t for t in told)
    assert all('--debug' in t for t in told)
