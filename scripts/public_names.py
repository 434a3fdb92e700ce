"""Prints every public name, one a line: `python scripts/public_names.py > tests/acceptance/public_names.txt`.

Public are the names in `__all__` of a room (`fairlead.cache`), of a module beside the rooms
(`fairlead.clock`) and of a driver (`fairlead.inference.onnx`), a file that is named after its technology.
The source is read, not imported, so that a missing extra hides nothing.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"

DRIVERS = frozenset(
    {
        *(
            "aiohttp",
            "asgi",
            "broker",
            "grpc",
            "haproxy",
            "http",
            "httpx",
            "jsonl",
            "kafka",
            "kserve_v2",
            "locust",
            "nats",
        ),
        *(
            "onnx",
            "openslo",
            "openfeature",
            "otlp",
            "opentelemetry",
            "parquet",
            "postgres",
            "prometheus",
            "redis",
            "sqlalchemy",
            "sqlite",
            "torch",
            "warehouse",
        ),
    }
)
"""Files that carry the name of a technology and are imported by their own path."""

UNLISTED = frozenset({"fairlead.cli", "fairlead"})
"""The command line is used by its commands; the top package exports only its version."""


def names_in(path: Path) -> list[str]:
    """The names in the module's `__all__`; empty if it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets) and node.value:
            return list(ast.literal_eval(node.value))
    return []


def public_modules(source: Path = SOURCE) -> dict[str, Path]:
    """Every module that strangers may import from, by its dotted name."""
    package = source / "fairlead"
    found: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        elif len(parts) > 2 and parts[-1] not in DRIVERS:
            continue
        name = ".".join(parts)
        if name not in UNLISTED and not any(name.startswith(f"{each}.") for each in UNLISTED - {"fairlead"}):
            found[name] = path
    return found


def main() -> int:
    for module, path in public_modules().items():
        for name in names_in(path):
            print(f"{module}.{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
