"""The house's figures: how much there is, how long its lines are, how winding its functions.

    python tests/bench/house.py --worst 20 --names
"""

import argparse
import ast
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2]/'magnifier'
COLUMNS = 120  # Longest line allowed
WINDING = 10   # Complexity that asks for a function to be taken apart
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    "A function and its cyclomatic complexity"
    complexity: int
    place: str  # file:line name


def complexity(
    function: ast.AST,  # Its definition; functions inside it count with it
) -> int:  # 1 for a straight path
    "One, and one more for each branch, loop, handler, comprehension, its conditions, and further part of `and`, `or`"
    total = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES): total += 1
        elif isinstance(node, ast.BoolOp): total += len(node.values) - 1
        elif isinstance(node, ast.comprehension): total += 1 + len(node.ifs)
    return total


def functions(
    path: Path,  # A module
    tree: ast.AST,  # Its content
) -> list[Function]:  # All of it, methods too; those inside others only with these
    "The module's functions with their complexity"
    inner = {id(n) for outer in ast.walk(tree) if isinstance(outer, FUNCTIONS)
             for n in ast.walk(outer) if n is not outer}
    return [Function(complexity(n), f'{path.relative_to(PACKAGE.parent)}:{n.lineno} {n.name}')
            for n in ast.walk(tree) if isinstance(n, FUNCTIONS) and id(n) not in inner]


def said(tree: ast.AST) -> set[int]:
    "Lines of docstrings, and of parameters that stand on a line of their own with their text"
    lines = set()
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, FUNCTIONS):
            parameters = [*node.args.args, *node.args.kwonlyargs]
            lines |= {parameter.lineno for parameter in parameters if parameter.lineno > node.lineno}
    return lines


def n_code(text: str, tree: ast.AST) -> int:
    "Lines that are neither blank, a comment, a docstring, nor a documented parameter"
    other = said(tree)
    return sum(bool(line.strip()) and not line.lstrip().startswith('#') and i not in other
               for i, line in enumerate(text.splitlines(), 1))


def n_table_checks(tree: ast.AST) -> int:
    "Checks in the tables of `refuse`, which one `raise` serves"
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'refuse']
    return sum(len(call.args[0].keys) for call in calls if isinstance(call.args[0], ast.Dict))


def figures(
    package: Path = PACKAGE,  # Folder of the modules
) -> tuple[dict, list[Function]]:  # The figures by name, and all functions, the most winding first
    "Read every module and count"
    texts = {p: p.read_text('utf-8') for p in sorted(package.rglob('*.py'))}
    texts = {p: t for p, t in texts.items() if t.strip() and p.name != '__init__.py'}
    trees = {p: ast.parse(t) for p, t in texts.items()}
    lines = [line for t in texts.values() for line in t.splitlines()]
    found = sorted((f for p, t in trees.items() for f in functions(p, t)), reverse=True)
    over = [f for f in found if f.complexity > WINDING]
    n_raises = sum(isinstance(n, ast.Raise) for t in trees.values() for n in ast.walk(t))
    table = {
        'modules': len(texts),
        'lines': len(lines),
        'lines of code': sum(n_code(t, trees[p]) for p, t in texts.items()),
        f'lines over {COLUMNS}': sum(len(line) > COLUMNS for line in lines),
        f'functions of complexity over {WINDING}': len(over),
        'largest complexity': found[0].complexity,
        'raise for each 1,000 lines': round(1000 * n_raises / len(lines), 1),
        'checks in tables, for 1,000 lines': round(1000 * sum(map(n_table_checks, trees.values())) / len(lines), 1),
    }
    return table, found


def names() -> dict:  # Figures by name
    "What `from magnifier.all import *` brings of ours, and which of these names hide one of fastai's"
    import fastai.vision.all as fastai
    import magnifier.all as ours
    shown = getattr(ours, '__all__', None) or [n for n in vars(ours) if not n.startswith('_')]
    foreign = {n for n in shown if getattr(fastai, n, None) is getattr(ours, n)}
    own = sorted(set(shown) - foreign)
    hidden = [n for n in own if hasattr(fastai, n)]
    return {'names in magnifier.all': len(own), "of these over fastai's": ', '.join(hidden) or 'none'}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--names', action='store_true', help='also the names of magnifier.all, which imports fastai')
    parser.add_argument('--worst', type=int, default=0, metavar='N', help='also the N most winding functions')
    given = parser.parse_args()
    table, found = figures()
    if given.names: table |= names()
    for name, value in table.items(): print(f'{name:34} {value:>9}')
    for function in found[:given.worst]: print(f'{function.complexity:4} {function.place}')


if __name__ == '__main__': main()
