"""The configuration that the guide prints is the one that is generated, and a HAProxy takes it without a warning."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fairlead.rollout.haproxy import haproxy_config

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "traffic.md"


def test_the_configuration_in_the_guide_is_generated_and_valid(tmp_path: Path):
    rules, surroundings = re.findall(r"^```haproxy\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert rules == haproxy_config(
        "feed",
        bind="127.0.0.1:8080",
        map_file="/etc/haproxy/feed.map",
        control=["10.0.0.1:8000", "10.0.0.2:8000"],
        treatment=["10.0.0.3:8000"],
        insiders=["10.0.0.0/8"],
    )
    (tmp_path / "feed.map").touch()
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        f"{surroundings}{rules}".replace("/etc/haproxy", str(tmp_path)).replace("/run/haproxy", str(tmp_path))
    )
    checked = subprocess.run(
        ["haproxy", "-c", "-f", str(path)],
        env={"PATH": "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
