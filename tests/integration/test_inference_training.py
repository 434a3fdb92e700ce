"""The training script of the home feed's ranker, on a small part of its data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_home_feed_ranker.py"


def train(*options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, str(SCRIPT), "--feeds", "100", "--epochs", "1", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)


def test_the_same_seed_trains_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first = train("--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    again = train("--out", str(tmp_path), "--check")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    other = train("--out", str(tmp_path), "--check", "--seed", "2")
    assert other.returncode == 1
    assert f"differ from {tmp_path}: manifest.json, ranker.fp32.onnx, ranker.int8.onnx" in other.stderr
