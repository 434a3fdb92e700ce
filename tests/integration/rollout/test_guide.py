"""The configuration that the guide prints is the one that is generated, and a HAProxy takes it without a warning."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fairlead.rollout.haproxy import haproxy_config

GUIDES = Path(__file__).resolve().parents[3] / "docs" / "guides"
KEY = "YSBzZWNyZXQgb2YgdGhpcyB0ZXN0"


def blocks(guide: str) -> list[str]:
    text = (GUIDES / guide).read_text(encoding="utf-8")
    return re.findall(r"^```haproxy\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def check(tmp_path: Path, text: str, map_name: str) -> tuple[int, str]:
    """What HAProxy says of a configuration."""
    (tmp_path / map_name).touch()
    path = tmp_path / "haproxy.cfg"
    for folder in ("/etc/haproxy", "/run/haproxy", "/var/lib/fairlead"):
        text = text.replace(folder, str(tmp_path))
    path.write_text(text)
    checked = subprocess.run(
        ["haproxy", "-c", "-f", str(path)],
        env={"PATH": "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin", "FAIRLEAD_LOG_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return checked.returncode, checked.stderr


def test_the_configuration_in_the_guide_is_generated_and_valid(tmp_path: Path):
    rules, surroundings = blocks("traffic.md")
    assert rules == haproxy_config(
        "feed",
        bind="127.0.0.1:8080",
        map_file="/etc/haproxy/feed.map",
        control=["10.0.0.1:8000", "10.0.0.2:8000"],
        treatment=["10.0.0.3:8000"],
        insiders=["10.0.0.0/8"],
    )
    assert check(tmp_path, surroundings + rules, "feed.map") == (0, "")


def test_the_configuration_of_the_walk_is_generated_and_valid(tmp_path: Path):
    (rules,) = blocks("black-box.md")
    assert rules == haproxy_config(
        "site",
        bind="127.0.0.1:8080",
        map_file="/var/lib/fairlead/site.map",
        control=["127.0.0.1:8001"],
        treatment=["127.0.0.1:8002"],
        log="127.0.0.1:5140",
    )
    assert check(tmp_path, blocks("traffic.md")[1] + rules, "site.map") == (0, "")
