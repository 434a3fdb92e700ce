"""Every example in the docs runs as printed, and every command they show exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.cli.program import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Place and text of each fenced block of that language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match["language"] == language:
                line = text.count("\n", 0, match.start()) + 1
                yield f"{page.relative_to(ROOT)}:{line}", textwrap.dedent(match["body"])


def commands() -> Iterator[tuple[str, str]]:
    for place, block in blocks("console"):
        for number, line in enumerate(block.replace("\\\n", " ").splitlines()):
            if (command := line.removeprefix("$ ").strip()) != line.strip() and re.search(
                r"\bfairlead ", command
            ):
                yield f"{place}+{number + 1}", command


EXAMPLES = dict(blocks("python"))
COMMANDS = dict(commands())


@pytest.mark.parametrize("place", EXAMPLES)
def test_example_runs_as_printed(place: str, tmp_path: Path):
    # Blank lines put the block where it stands in the page, so that a traceback names the page's own line.
    page, _, line = place.rpartition(":")
    script = tmp_path / f"{Path(page).stem}.py"
    script.write_text("\n" * int(line) + EXAMPLES[place], encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, f"{place}\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("place", COMMANDS)
def test_command_in_the_docs_parses(place: str):
    words = shlex.split(COMMANDS[place], comments=True)
    start = next(index for index, word in enumerate(words) if word.rpartition("/")[2] == "fairlead")
    ends = (index for index, word in enumerate(words) if word in ("|", ">", "2>", "&&", ";"))
    parse(words[start + 1 : next(ends, len(words))])


def test_docs_hold_examples_and_commands():
    # The two tests above pass on nothing; a changed fence would silence them.
    assert EXAMPLES
    assert COMMANDS
