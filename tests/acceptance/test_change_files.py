"""The page that lists every key of the change file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_lists_the_keys_that_the_parser_knows():
    script = ROOT / "scripts" / "change_file_reference.py"
    page = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "reference" / "change-file.md").read_text(encoding="utf-8") == page
