"""Explanations of parameters, read from the comments beside them in the source and added to the docstrings.

`help(f)`, `f?` and `doc(f)` then show every parameter with its text. `magnifier.all` imports this module
last: its import documents all modules of the package that are loaded by then."""
import ast
import inspect
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

__all__ = []


class Parameter(NamedTuple):
    "One parameter of a function, or field of a class"
    name: str
    default: str  # As it is written in a call; empty where there is none
    text: str  # The comment beside it


class _Source(NamedTuple):
    "Comments of one function or class in the source"
    texts: dict  # Name -> comment
    returns: str  # The comment beside the return annotation


@cache
def _of_module(name):
    "Qualified name -> _Source of a module's functions and classes; functions inside functions are left out"
    path = getattr(sys.modules.get(name), '__file__', None)
    source = Path(path).read_text(encoding='utf-8') if path else ''
    return dict(_visit(ast.parse(source).body, '', source.splitlines()))


def _visit(body, prefix, lines):
    for node in body:
        if isinstance(node, ast.ClassDef):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
            yield prefix + node.name, _Source({f.target.id: _comment(lines, f.end_lineno) for f in fields}, '')
            yield from _visit(node.body, f'{prefix}{node.name}.', lines)
        elif isinstance(node, ast.FunctionDef): yield prefix + node.name, _of_function(node, lines)


def _of_function(node, lines):
    a = node.args
    args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    on_line = Counter(arg.lineno for arg in args)
    texts = {arg.arg: '' if on_line[arg.lineno] > 1 else _comment(lines, arg.lineno) for arg in args}
    last = node.returns.end_lineno if node.returns else node.body[0].lineno - 1
    closes = lines[last - 1].lstrip().startswith(')')
    return _Source(texts, _comment(lines, last) if closes else '')


def _comment(lines, number):
    _, mark, text = lines[number - 1].partition('# ')
    return text.strip() if mark else ''


def _source(thing):
    name = getattr(thing, '__qualname__', '')
    known = _of_module(getattr(thing, '__module__', None) or '')
    # fastcore's @patch gives a method the qualified name of a method; the source has a plain function
    return known.get(name) or known.get(name.rpartition('.')[2]) or _Source({}, '')


def parameters(
    function,  # A function or method of the package
) -> list[Parameter]:  # In the order of the signature, without self and cls; delegated ones too
    "What a function takes"
    texts = _texts(function)
    given = inspect.signature(function).parameters.values()
    return [Parameter(_starred(p), _written(p.default), texts.get(p.name, '')) for p in given
            if p.name not in ('self', 'cls')]


def _texts(function):
    "Name -> comment, of the function's own parameters and of those that fastcore's @delegates brought"
    delegated = getattr(function, '__delwrap__', None)
    return {**(_texts(delegated) if delegated else {}), **_source(function).texts}


def _starred(parameter):
    return {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}.get(parameter.kind, '') + parameter.name


def _written(default):
    "A default as one would write it"
    if default is inspect.Parameter.empty: return ''
    if isinstance(default, partial):
        values = ', '.join(f'{k}={_written(v)}' for k, v in default.keywords.items())
        return f'partial({default.func.__name__}, {values})'
    return getattr(default, '__name__', None) or repr(default)


def returned(
    function,  # A function or method of the package
) -> str:  # The comment beside its return; empty where there is none
    "What a function returns"
    return _source(function).returns


def fields(
    cls,  # A class of the package
) -> list[Parameter]:  # Empty for a class without annotated fields
    "What a dataclass or named tuple holds"
    return [Parameter(name, '', text) for name, text in _source(cls).texts.items() if text]


def _described(function):
    "Parameters and what is returned as lines for the docstring; empty where no parameter has a text"
    rows = parameters(function)
    if not any(row.text for row in rows): return ''
    text = _table('Parameters', rows)
    return f'{text}\n\nReturns\n    {returned(function)}' if returned(function) else text


def _table(heading, rows):
    heads = [f'{row.name}={row.default}' if row.default else row.name for row in rows]
    width = min(24, max(map(len, heads)))
    return '\n'.join([heading, *(f'    {head:{width}}  {row.text}'.rstrip() for head, row in zip(heads, rows))])


def _document(module):
    "Adds the tables to the docstrings of a module's own functions and classes"
    for thing in list(vars(module).values()):
        if getattr(thing, '__module__', None) != module.__name__: continue
        if inspect.isfunction(thing): _add(thing, _described(thing))
        elif inspect.isclass(thing): _document_class(thing)


def _document_class(cls):
    if fields(cls): _add(cls, _table('Fields', fields(cls)))
    for method in vars(cls).values():
        method = getattr(method, '__func__', method)
        if inspect.isfunction(method) and method.__module__.startswith('magnifier.'):
            _add(method, _described(method))


def _add(thing, table):
    if table and table not in (thing.__doc__ or ''):
        thing.__doc__ = f'{inspect.cleandoc(thing.__doc__ or "")}\n\n{table}'.strip()


for _name in [name for name in sys.modules if name.startswith('magnifier.')]: _document(sys.modules[_name])
