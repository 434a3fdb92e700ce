"""Prints the list of public names with what each is: `python scripts/api_reference.py > docs/reference/api.md`.

The sentence beside a name is the first of its docstring, so the page cannot say other than the code. A test compares.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))
from public_names import names_in, public_modules

HEAD = """# Public names

Made by `python scripts/api_reference.py > docs/reference/api.md`. The docstrings say the rest:
`help(fairlead.cache.Cache)`.
What a module lists here is public: it does not change without a line in the changelog.
"""


def main() -> None:
    print(HEAD)
    for name, path in public_modules().items():
        names = names_in(path)
        if not names:
            continue
        module = importlib.import_module(name)
        print(f"## `{name}`\n\n{first_sentence(inspect.getdoc(module) or '')}\n")
        print("| name | what it is |\n|---|---|")
        for each in names:
            print(f"| `{each}` | {described(module, each, path).replace('|', chr(92) + '|')} |")
        print()


def described(module: ModuleType, name: str, path: Path) -> str:
    value = getattr(module, name)
    for source in (path, *sorted(path.parent.glob("*.py"))):
        if (text := text_below(source, name)) is not None:
            return first_sentence(text)
    if inspect.isclass(value) or inspect.isroutine(value):
        return first_sentence(inspect.getdoc(value) or "")
    if choices := get_args(value):
        return f"One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"A constant, `{type(value).__name__}`."


def text_below(path: Path, name: str) -> str | None:
    """The string literal that follows the assignment of `name`, by which constants and aliases are documented."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for statement, below in pairwise(body):
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return inspect.cleandoc(str(below.value.value))
    return None


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.:!?])\s+(?=[A-Z`])", paragraph)[0].rstrip(":")


if __name__ == "__main__":
    main()
