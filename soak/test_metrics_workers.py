"""Workers that are killed at random moments: the fleet's totals never go down and lose an interval at most.

`make soak` runs this; FAIRLEAD_SOAK_KILLS sets how many workers are killed (default 200).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from fairlead.telemetry import MetricRegistry, WorkerMetrics

KILLS = int(os.environ.get("FAIRLEAD_SOAK_KILLS", "200"))

WORKER = """
import sys, time
from fairlead.telemetry import MetricRegistry, WorkerMetrics
registry = MetricRegistry()
loads = registry.counter("loads_total", "Loads.", labels=("kind",))
waits = registry.histogram("wait_seconds", "Wait.")
workers = WorkerMetrics(registry, sys.argv[1], interval=0.05)
workers.start()
workers._welcomed.wait(30)
count = 0
while True:
    count += 1
    loads.labels(kind=str(count % 300)).add()
    waits.observe(0.001 * (count % 50))
    if count % 10 == 0:
        print(count, flush=True)
    time.sleep(0.002)
"""

RATE = 500.0  # counts a second of one worker, at most
INTERVAL = 0.05


class Worker:
    def __init__(self, directory: Path, log: Path) -> None:
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen([sys.executable, "-c", WORKER, str(directory)], stdout=out)

    def kill(self) -> int:
        """What it had counted, to within ten."""
        self.process.kill()
        self.process.wait()
        lines = self.log.read_text().split()
        return int(lines[-1]) if lines else 0


def test_totals_never_go_down_and_miss_little_whoever_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    rng = random.Random(11)
    running = [Worker(directory, tmp_path / f"{number}.log") for number in range(4)]
    counted, last = 0, (0.0, 0.0)

    def totals() -> tuple[float, float]:
        page = asyncio.run(watcher.scrape())
        loads = sum(float(value) for value in re.findall(r"^loads_total\{.*\} (\S+)$", page, re.MULTILINE))
        waits = re.search(r"^wait_seconds_count (\S+)$", page, re.MULTILINE)
        return loads, float(waits[1]) if waits else 0.0

    with WorkerMetrics(MetricRegistry(), directory, interval=INTERVAL) as watcher:
        for number in range(KILLS):
            time.sleep(rng.uniform(0.0, 0.3))
            now = totals()
            assert now[0] >= last[0]
            assert now[1] >= last[1]
            last = now
            at = rng.randrange(len(running))
            counted += running[at].kill()
            running[at] = Worker(directory, tmp_path / f"new-{number}.log")
        for worker in running:
            counted += worker.kill()
        time.sleep(0.5)
        loads, waits = totals()
    with suppress(ProcessLookupError):
        os.kill(int((directory / "lock").read_text()), signal.SIGTERM)
    assert loads >= last[0]
    killed = KILLS + len(running)
    # Behind: an interval each, and what a busy machine adds to it. Ahead: what a log had not told yet.
    assert counted - killed * RATE * (INTERVAL + 0.1) <= loads <= counted + 10 * killed
    assert counted - killed * RATE * (INTERVAL + 0.1) <= waits <= counted + 10 * killed
