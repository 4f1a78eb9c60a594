"""Writes the API reference, `nbs/api/*.md`: a page a wing, every public name with its parameters and its import.

    python nbs/api.py
"""
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import magnifier
import magnifier.all  # noqa: F401, gives objects all their methods
from magnifier.docs import fields, parameters, returned

HERE = Path(__file__).resolve().parent
WINGS = {
    'regions': 'The eight regions',
    'data': 'Data sets, masks and batches',
    'walkers': 'The built-in data set',
    'model': 'The network',
    'train': 'Training and evaluation',
    'look': 'Figures',
    'gallery': 'Galleries',
    'retrieval': 'Retrieval: features in, ranks out',
    'app': 'The page',
    'cli': 'Commands',
}


def modules(wing):
    "Modules of a wing that have public names, as (name, module)"
    found = importlib.import_module(f'magnifier.{wing}')
    if not hasattr(found, '__path__'): return [found]
    names = sorted(m.name for m in pkgutil.iter_modules(found.__path__, f'magnifier.{wing}.')
                   if m.name.rpartition('.')[2] != 'all')
    return [m for m in map(importlib.import_module, names) if m.__all__ or patches(m)]


def patches(module):
    "Methods that a module gives to classes of others, as (class, method)"
    found = []
    for cls in PATCHED:
        for method in vars(cls).values():
            method = getattr(method, 'fget', None) or getattr(method, '__func__', method)
            if inspect.isfunction(method) and method.__module__ == module.__name__ != cls.__module__:
                found.append((cls, method))
    return found


PATCHED = [magnifier.all.ReIDLearner, magnifier.all.ReIDDataLoaders, magnifier.all.IdentityBatches, magnifier.all.Hits]


def page(wing, title):
    "A wing as Markdown"
    made = f'Wing `magnifier.{wing}`, written from the source by `python nbs/api.py`.'
    parts = [f'# {title}', f'{made} `from magnifier.all import *` brings what a notebook uses.']
    for module in modules(wing):
        parts += [f'## {module.__name__}', first_part(module.__doc__)]
        if module.__all__: parts.append(f'```python\nfrom {module.__name__} import {", ".join(module.__all__)}\n```')
        for name in module.__all__: parts += entry(name, getattr(module, name))
        for cls, method in patches(module): parts += call(f'{cls.__name__}.{method.__name__}', method)
    return '\n\n'.join(part for part in parts if part) + '\n'


def entry(name, thing):
    "One public name"
    if inspect.isclass(thing): return of_class(name, thing)
    if callable(thing) and hasattr(thing, '__code__'): return call(name, thing)
    return [f'### {name}', f'`{short(repr(thing))}`']


def of_class(name, cls):
    parts = [f'### {name}', first_part(cls.__doc__)]
    if fields(cls): parts.append(table(fields(cls)))
    elif inspect.isfunction(vars(cls).get('__init__')): parts.append(table(parameters(vars(cls)['__init__'])))
    for key, method in vars(cls).items():
        method = getattr(method, '__func__', method)
        ours = inspect.isfunction(method) and method.__module__ == cls.__module__ and not key.startswith('_')
        if ours and method.__doc__: parts += call(f'{name}.{key}', method, level=4)
    return parts


def call(name, function, level=3):
    "A function or method, its parameters and what it returns"
    parts = [f'{"#"*level} {name}', first_part(function.__doc__), table(parameters(function))]
    if returned(function): parts.append(f'Returns: {escaped(returned(function))}')
    return parts


def first_part(doc):
    "A docstring without the tables that `magnifier.docs` added"
    text = inspect.cleandoc(doc or '')
    return re.split(r'\n\n(?:Parameters|Returns|Fields)\n', text)[0].removeprefix('Parameters\n')


def table(rows):
    rows = [row for row in rows if row.text or row.default]
    if not rows: return ''
    lines = [f'| {code(row.name)} | {code(row.default)} | {escaped(row.text)} |' for row in rows]
    return '\n'.join(['| parameter | default | what it is |', '|---|---|---|', *lines])


def code(text): return f'`{escaped(short(text))}`' if text else ''

def escaped(text): return text.replace('|', '\\|')


def short(text):
    "One line of moderate length, without addresses in memory"
    text = re.sub(r' at 0x[0-9a-f]+', '', ' '.join(text.split()))
    return text if len(text) <= 100 else text[:97] + '...'


def write(folder=HERE/'api'):
    "All pages"
    folder.mkdir(exist_ok=True)
    for wing, title in WINGS.items(): (folder/f'{wing}.md').write_text(page(wing, title), encoding='utf-8')
    lines = [f'- [{title}]({wing}.md): `magnifier.{wing}`' for wing, title in WINGS.items()]
    heading = '# Reference\n\nEvery public name, its parameters, and the line that imports it.\n\n'
    (folder/'README.md').write_text(heading + '\n'.join(lines) + '\n')


if __name__ == '__main__': write()
