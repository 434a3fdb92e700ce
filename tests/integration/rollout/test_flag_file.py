"""A flag file whose controllers are other processes: killed in the middle, and several at once."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from fairlead.flags import FlagSet
from fairlead.rollout import FlagTraffic, Split

FLAG = {"state": "ENABLED", "variants": {"control": "c", "treatment": "t"}, "defaultVariant": "control"}
OTHER = '"other": {"state": "ENABLED", "variants":   {"on": true}, "defaultVariant": "on"}'
SETTER = """
import asyncio, sys
from fairlead.errors import StaleEpoch
from fairlead.rollout import FlagTraffic, Split

path, epoch, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
traffic = FlagTraffic(path, "feed", lock_timeout=30.0)

async def main():
    print("ready", flush=True)
    for turn in range(turns):
        await traffic.set(Split(share=(1 + turn % 5_000) / 10_000, rollout="feed/1", epoch=epoch))

try:
    asyncio.run(main())
except StaleEpoch:
    sys.exit(5)
"""


def made(folder: Path) -> Path:
    path = folder / "flags.json"
    path.write_text(f'{{"flags": {{{OTHER}, "feed": {json.dumps(FLAG)}}}}}')
    return path


def text_of(path: Path) -> str:
    return path.read_text()


async def setter(path: Path, epoch: int, turns: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SETTER, str(path), str(epoch), str(turns)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def test_a_controller_that_is_killed_leaves_one_split_whole_and_no_lock(tmp_path: Path):
    path, rng = made(tmp_path), random.Random(5)
    traffic = FlagTraffic(path, "feed", lock_timeout=0.0)
    for turn in range(10):
        process = await setter(path, turn, 1_000_000)
        await asyncio.sleep(rng.uniform(0.0, 0.02))
        process.kill()
        await process.wait()
        assert FlagSet.from_file(path).document.flags.keys() == {"other", "feed"}
        assert (await traffic.read()).share <= 0.5
        await traffic.set(Split(share=0.3, rollout="feed/1", epoch=turn))
        assert await traffic.read() == Split(share=0.3, rollout="feed/1", epoch=turn)
    assert OTHER in text_of(path)


async def test_of_several_processes_the_latest_epoch_stands_and_the_others_are_told(tmp_path: Path):
    path = made(tmp_path)
    processes = [await setter(path, epoch, 1_000_000 if epoch < 4 else 20) for epoch in (1, 2, 3, 4)]
    assert [await process.wait() for process in processes] == [5, 5, 5, 0]
    assert await FlagTraffic(path, "feed").read() == Split(share=20 / 10_000, rollout="feed/1", epoch=4)
    assert OTHER in text_of(path)
