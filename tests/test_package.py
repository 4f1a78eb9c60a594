"The house's rules: floors, exports, documentation, packaging"
import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import magnifier
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'magnifier'
# The floors, ground first: a module imports only from its own wing and those below it, and no circle
FLOORS = ['regions', 'files', 'checks', 'docs', 'retrieval', 'data', 'walkers', 'model', 'gallery', 'train', 'look',
          'app', 'cli', 'all']
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], 'magnifier.') if not m.ispkg)


@cache
def imports(module):
    "Own modules that a module imports, wherever in it"
    return set(_imports(module))


def _imports(module):
    tree = ast.parse((ROOT/Path(*module.split('.'))).with_suffix('.py').read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith('magnifier.'))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'absolute imports'
            base = node.module or ''
            if base.startswith('magnifier.') or base == 'magnifier':
                for a in node.names:
                    if f'{base}.{a.name}' in MODULES: yield f'{base}.{a.name}'
                    elif base != 'magnifier': yield base  # the root holds the version alone


def wing(module): return module.split('.')[1]


@pytest.mark.parametrize('module', MODULES)
def test_a_module_imports_only_from_below(module):
    for other in imports(module):
        assert FLOORS.index(wing(other)) <= FLOORS.index(wing(module)), f'{module} imports {other}, of a higher wing'


def test_no_module_stands_on_itself():
    from graphlib import TopologicalSorter
    # raises CycleError, and names the circle
    list(TopologicalSorter({m: imports(m) - {m} for m in MODULES}).static_order())


def test_no_name_is_undefined_or_for_nothing():
    pytest.importorskip('ruff')
    found = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--quiet', '--output-format',
                            'concise', ROOT], capture_output=True, text=True)
    assert not found.returncode, found.stdout + found.stderr


def test_retrieval_knows_no_fastai():
    for path in (PACKAGE/'retrieval').glob('*.py'): assert 'fastai' not in path.read_text(), path.name


def documented(module):
    "Public functions, classes and their public methods, as (name, object)"
    for name in importlib.import_module(module).__all__:
        thing = getattr(importlib.import_module(module), name)
        if inspect.isclass(thing):
            yield name, thing
            for key, method in vars(thing).items():
                method = getattr(method, '__func__', method)
                above = any(hasattr(base, key) for base in thing.__mro__[1:] if base.__module__.startswith('magnifier'))
                if above and key != '__init__': continue  # documented where it is declared
                if inspect.isfunction(method) and (not key.startswith('_')
                                                   or key == '__init__') and method.__module__.startswith('magnifier'):
                    yield f'{name}.{key}', method
        elif inspect.isfunction(thing) and thing.__module__ == module: yield name, thing


@pytest.mark.parametrize('module', [m for m in MODULES if m != 'magnifier.all'])
def test_everything_public_is_documented(module):
    from fastcore.docments import docments
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert hasattr(loaded, '__all__')
    missing = []
    for name, thing in documented(module):
        thing = inspect.unwrap(thing)
        is_hook = '.' in name and name.split('.')[1] in _FASTAI_HOOKS  # documented where fastai defines them
        if not inspect.getdoc(thing) and not is_hook and not name.endswith('__init__'): missing.append(name)
        # a dataclass writes its own __init__
        if inspect.isclass(thing) or is_hook or thing.__code__.co_filename.startswith('<'): continue
        code = thing.__code__
        # @delegates adds others, documented where they come from
        own = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]
        own = [p for p in own if p not in ('self', 'cls')]
        comments = docments(thing, full=True, returns=False) if own else {}
        missing += [f'{name}({p})' for p in own if not (p in comments and comments[p].docment)]
    assert not missing, f'without documentation: {missing}'


_FASTAI_HOOKS = {'setups', 'encodes', 'decodes', 'before_call', 'new', 'reset', 'accumulate', 'value', 'name', 'create',
                 'show', 'forward', 'backward', 'decode', 'do_batch', 'create_batch', 'create_item', 'get_idxs'}


def settings():
    parser = ConfigParser()
    parser.read(ROOT/'settings.ini')
    return parser['DEFAULT']


def test_one_version(): assert settings()['version'] == magnifier.__version__


def test_requirements_admit_the_newest():
    for requirement in settings()['requirements'].split(): assert not re.search('[<!~]|==', requirement), requirement


def test_every_command_is_installed():
    "tests/cli runs the --help of each"
    targets = [line.split('=') for line in settings()['console_scripts'].split()]
    installed = {tuple(target.split(':')) for _, target in targets}
    commands = {(m, name) for m in MODULES if wing(m) == 'cli'
                for name in importlib.import_module(m).__all__ if name.startswith('magnifier_')}
    assert installed == commands
    assert all(name == target.split(':')[1] for name, target in targets)


def test_ci_runs_the_readmes_own_test_command():
    readme = (ROOT/'README.md').read_text()
    command = next(line for line in readme.splitlines() if 'pytest' in line and '.venv' in line).strip()
    assert command in (ROOT/'.ci/run').read_text()


def test_all_is_star_imports_and_nothing_else():
    body = ast.parse((PACKAGE/'all.py').read_text()).body[1:]
    assert {type(node) for node in body} == {ast.ImportFrom}
    assert {name.name for node in body for name in node.names} == {'*'}
    assert not any('magnifier.all' in imports(m) for m in MODULES)


def test_all_brings_what_a_notebook_uses_and_hides_no_name_of_fastais():
    fastais = vars(importlib.import_module('fastai.vision.all'))
    brought = vars(importlib.import_module('magnifier.all'))
    ours = {n for n, thing in brought.items() if not n.startswith('_') and fastais.get(n) is not thing}
    assert not ours & set(fastais)
    assert 120 <= len(ours) <= 150, len(ours)


def test_what_is_cited_can_be_read():
    "The paper is public; notes that are not in this repository are of no use to a reader"
    notes = re.compile(r'\b(METHOD|PROTOCOLS|DESIGN|STYLE|FASTAI)\b')
    files = [f for folder in ('magnifier', 'tests', 'nbs') for f in (ROOT/folder).rglob('*')
             if f.suffix in ('.py', '.ipynb', '.md') and f != Path(__file__).resolve()]
    assert len(files) > 150
    citing = [str(f) for f in [*files, ROOT/'README.md'] if notes.search(f.read_text('utf-8'))]
    assert not citing


def test_the_outside_holds():
    "The names that users type"
    names = '''walkers ReIDDataLoaders magnifier_learner resnet50 Gallery load_learner rank evaluate_distances Ranking
        rerank rerank_distances market1501 create_magnifier MagnifierNet MagnifierOutput region_max_pool
        semantic_diversity_loss batch_hard_triplet MagnifierLoss TeacherMasks RegionOcclusion SemanticDiversityPhase
        TensorPartMask TensorIdentity ReIDDataBlock'''.split()
    everything = vars(importlib.import_module('magnifier.all'))
    assert not {n for n in names if n not in everything}
    learner = everything['magnifier_learner'].__globals__['ReIDLearner']
    for method in 'fit_semantic_diversity show_results evaluate show_ranking explain embed export'.split():
        assert callable(getattr(learner, method))
