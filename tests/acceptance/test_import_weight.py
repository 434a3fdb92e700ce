"""Naming things costs nothing: what most commands import brings no numpy, no SciPy, no database and no warehouse."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "scipy", "sqlalchemy", "alembic", "ibis", "duckdb", "httpx", "pyarrow", "pandas")


@pytest.mark.parametrize(
    ("room", "may_have"),
    [
        ("metrics", ()),
        ("trial", ()),
        ("change", ()),
        ("cache", ()),
        ("ledger", ("sqlalchemy",)),
        ("store", ("sqlalchemy",)),
    ],
)
def test_a_room_loads_only_what_it_needs(room: str, may_have: tuple[str, ...]) -> None:
    script = f"import sys, fairlead.{room}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= set(may_have)
