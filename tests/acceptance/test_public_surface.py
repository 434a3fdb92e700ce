"""What a stranger meets: names that the docs explain, and imports that cost only what is used."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("public_names", ROOT / "scripts" / "public_names.py")
PUBLIC = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(PUBLIC)

REQUEST_PATH = [
    name
    for name in PUBLIC.public_modules()
    if name.split(".")[1]
    in (
        "admission",
        "cache",
        "calls",
        "clock",
        "context",
        "deadline",
        "errors",
        "flags",
        "inference",
        "migration",
        "shadow",
        "telemetry",
    )
    and name.count(".") == 1
]

LOADED = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in sys.modules after the statement, less those that our two dependencies load."""

    def run(code: str) -> set[str]:
        # Not -S or -I: the environment's own start-up hooks are the baseline.
        return set(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()
        )

    # msgspec takes typing_extensions along where it is installed.
    return run(f"{statement}; {LOADED}") - run(f"import msgspec, xxhash; {LOADED}")


@pytest.mark.parametrize("module", REQUEST_PATH)
def test_importing_a_room_of_the_request_path_loads_no_third_party_package(module: str):
    strangers = loaded_by(f"import {module}") - set(sys.stdlib_module_names) - {"fairlead"}
    assert strangers == set()


def test_help_loads_the_parser_and_no_command():
    code = (
        "import contextlib, io, sys; from fairlead.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert main(['--help']) == 0\n"
        "print(*(name for name in sys.modules if name.startswith(('fairlead.', 'rich', 'numpy', 'aiohttp'))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {
        *(
            "fairlead.cli",
            "fairlead.cli.exit_codes",
            "fairlead.cli.outcome",
            "fairlead.cli.program",
            "fairlead.errors",
        ),
    }


DOCS = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
)


@pytest.mark.parametrize("module", sorted(PUBLIC.public_modules()))
def test_every_public_name_is_in_the_docs(module: str):
    names = PUBLIC.names_in(PUBLIC.public_modules()[module])
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", DOCS)] == []
