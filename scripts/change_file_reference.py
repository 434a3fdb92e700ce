"""Prints every key of the change file: `python scripts/change_file_reference.py > docs/reference/change-file.md`.

Read from the docstrings under the fields, so the page cannot list a key that the parser does not know.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import msgspec

from fairlead.change import sections

SOURCE = Path(sections.__file__)
HEAD = """# The change file, key by key

Made by `python scripts/change_file_reference.py` from the parser's own docstrings. How to write one:
[the guide](../guides/change-file.md). TOML, UTF-8, at most 256 KiB. Any other key is an error.

"""


def docstrings() -> dict[str, dict[str, str]]:
    """By class and field, the sentence under it."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        said = found.setdefault(node.name, {"": ast.get_docstring(node) or ""})
        for field, text in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                said[field.target.id] = " ".join(str(text.value.value).split()) if is_text else ""
    return found


def main() -> int:
    """Prints the page."""
    said = docstrings()
    print(HEAD, end="")
    for field in msgspec.structs.fields(sections.ChangeFile):
        kind = inner(field.type)
        if kind is None:
            print(f"## `[{field.encode_name}]`\n\n{said['ChangeFile'][field.name]}\n")
            print(f"Criteria: {', '.join(f'`{name}`' for name in sections.CRITERIA)}.\n")
            continue
        table(field.encode_name, kind, said, many=is_array(field.type), named="dict" in str(field.type))
    return 0


def table(
    path: str, kind: type[msgspec.Struct], said: dict[str, dict[str, str]], *, many: bool, named: bool
) -> None:
    """One table and those within it."""
    heading = f"[[{path}]]" if many else f"[{path}.NAME]" if named else f"[{path}]"
    summary = said[kind.__name__][""].partition(": ")[2] or said[kind.__name__][""]
    print(f"## `{heading}`\n")
    if summary:
        print(f"{summary[:1].upper()}{summary[1:]}\n")
    print("| key | needed to parse | meaning |\n|---|---|---|")
    within = []
    for field in msgspec.structs.fields(kind):
        if deeper := inner(field.type):
            within.append((field, deeper))
        needed = "yes" if field.required else ""
        text = said[kind.__name__].get(field.name, "").replace("|", "\\|")
        print(f"| `{field.encode_name}` | {needed} | {text} |")
    print()
    for field, deeper in within:
        table(f"{path}.{field.encode_name}", deeper, said, many=is_array(field.type), named=False)


def inner(kind: object) -> type[msgspec.Struct] | None:
    """The struct within an optional, a tuple or a dict; None where there is none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for part in getattr(kind, "__args__", ()):
        if found := inner(part):
            return found
    return None


def is_array(kind: object) -> bool:
    """Whether the file writes it with double brackets."""
    return getattr(kind, "__origin__", None) is tuple


if __name__ == "__main__":
    sys.exit(main())
