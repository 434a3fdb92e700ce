"""The page that lists every metric lists the metrics that there are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("metrics_reference", ROOT / "scripts" / "metrics_reference.py")
REFERENCE = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(REFERENCE)


def test_the_page_is_what_a_registry_with_everything_says():
    written = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert written == REFERENCE.page(), "python scripts/metrics_reference.py > docs/reference/metrics.md"


def test_every_metric_that_the_source_names_is_on_the_page():
    # What a registry makes by a literal name; those made from a prefix are found by the test above.
    made = re.compile(r"\.(?:counter|gauge|histogram)\(\s*\"([a-z_]+)\"")
    named = {
        name
        for path in (ROOT / "src" / "fairlead").rglob("*.py")
        for name in made.findall(path.read_text(encoding="utf-8"))
        if not name.startswith("feed_")  # examples in docstrings
    }
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert len(named) > 20
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []
