"""The page of rules names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "rules.md"

NAMED = re.compile(r"`((?:tests|soak)/[\w/]+\.py)::(test_\w+)`")


def rules() -> list[str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| rule |")]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_rule_names_a_test() -> None:
    assert len(rules()) > 30
    assert [rule for rule in rules() if not NAMED.search(rule)] == []


def test_every_test_that_a_rule_names_exists() -> None:
    named = {match.groups() for rule in rules() for match in NAMED.finditer(rule)}
    assert sorted((file, test) for file, test in named if test not in names_in(ROOT / file)) == []
