"""Compaction killed at every step that it takes on the disk: no event is lost, and none is there twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fairlead.telemetry import JsonLinesSegments, encode_event, read_events
from fairlead.telemetry.event import Exposure
from fairlead.telemetry.identity import Numbering

EACH_STEP = """
import os, signal, sys
from pathlib import Path
from fairlead.telemetry import read_events
from fairlead.telemetry.parquet import compact

STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
directory = Path(sys.argv[1])
step = 0
while True:
    step += 1
    child = os.fork()
    if child == 0:
        left = step

        def before(event, arguments):
            global left
            if event in STEPS and str(arguments[0]).startswith(str(directory)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        compact(directory)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    # Readers are right at every step, and not only once the next run has cleared up.
    found = sorted(event.at_utc_seconds for event in read_events(directory))
    assert found == list(range(int(sys.argv[2]))), (step, len(found))
    if ended == 0:
        break
    assert os.WTERMSIG(ended) == signal.SIGKILL, ended
print(step)
"""


def segment(directory: Path, first: int, count: int, *, identified: bool) -> None:
    numbering = Numbering()
    lines = [
        encode_event(
            Exposure(at_utc_seconds=float(number), flag="f", variant="on", targeting_key="u", reason="SPLIT")
        )
        for number in range(first, first + count)
    ]
    writer = JsonLinesSegments(directory)
    writer.write([numbering.stamp(line) for line in lines] if identified else lines)
    writer.close()


def killed_at_each_step(directory: Path, count: int) -> int:
    command = [sys.executable, "-c", EACH_STEP, str(directory), str(count)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_a_compaction_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    segment(tmp_path, 0, 50, identified=True)
    segment(tmp_path, 50, 50, identified=False)  # nothing but the catalogue keeps these from counting twice
    assert killed_at_each_step(tmp_path, 100) > 10
    segment(tmp_path, 100, 50, identified=False)
    assert killed_at_each_step(tmp_path, 150) > 10, "the second run merges with the file of the first"
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix == ".jsonl"] == []
    assert len(list(tmp_path.glob("exposure-1970-01-01-*.parquet"))) == 1
    assert sum(1 for _ in read_events(tmp_path)) == 150
