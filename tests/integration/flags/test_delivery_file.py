"""Flag files followed on the real clock: by many in one process, and through a writer that is killed."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from fairlead.flags import FlagDelivery, FlagFile, FlagSet, write_flag_file
from tests.integration.flags.servers import until, value_of
from tests.unit.flags.documents import EMPTY, document

FOLLOWERS = 100
WRITER = """
import json, sys
from pathlib import Path
from fairlead.flags import write_flag_file

flag = {"state": "ENABLED", "variants": {"a": "x" * 100_000}, "defaultVariant": "a"}
for version in range(int(sys.argv[2]), 10_000):
    write_flag_file(sys.argv[1], json.dumps({"metadata": {"version": version}, "flags": {"feed": flag}}).encode())
    print(version, flush=True)
"""


async def test_a_hundred_followers_of_a_file_evaluate_every_new_document(tmp_path: Path, capsys):
    path = tmp_path / "flags.json"
    write_flag_file(path, document("v1", version=1))
    async with AsyncExitStack() as stack:
        followers = [FlagDelivery(FlagSet.parse(EMPTY), FlagFile(path)) for _ in range(FOLLOWERS)]
        await asyncio.gather(*(stack.enter_async_context(each) for each in followers))
        took = []
        for version in range(2, 7):
            began = time.monotonic()
            await asyncio.to_thread(write_flag_file, path, document(f"v{version}", version=version))
            await until(lambda version=version: all(value_of(each) == f"v{version}" for each in followers))
            took.append(time.monotonic() - began)
        assert {value_of(each) for each in followers} == {"v6"}
    with capsys.disabled():
        print(
            f"\nwritten → evaluated by {FOLLOWERS} followers of a file: "
            f"median {statistics.median(took) * 1000:.0f} ms, slowest {max(took) * 1000:.0f} ms (n = {len(took)})"
        )


async def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_document(tmp_path: Path):
    path = tmp_path / "flags.json"
    write_flag_file(path, document("v0"))
    delivery = FlagDelivery(FlagSet.parse(EMPTY), FlagFile(path, every=0.01))
    async with delivery:
        said = 0
        for round_ in range(8):
            command = [sys.executable, "-c", WRITER, str(path), str(said + 1)]
            writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            await writer.stdout.readline()
            await asyncio.sleep(0.01 + round_ * 0.003)
            writer.kill()
            lines = (await writer.communicate())[0].split()
            said = max(said + 1, *(int(line) for line in lines)) if lines else said + 1
            # Flushed before it was said: no later than what was said last.
            found = json.loads(path.read_bytes())["metadata"]["version"]
            assert found >= said
            said = found
            await until(lambda found=found: delivery.status.version == found)
            assert delivery.status.refused == 0


LEAVES_IT_OPEN = """
import atexit, logging, sys, time
from fairlead.flags import FlagDelivery, FlagFile, FlagSet

logging.basicConfig()
atexit.register(time.sleep, 0.2)
FlagDelivery(FlagSet.parse(b'{"flags": {}}'), FlagFile(sys.argv[1], every=0.01)).__enter__()
"""


def test_a_program_that_ends_without_leaving_its_delivery_ends_at_once_and_in_silence(tmp_path: Path):
    path = tmp_path / "flags.json"
    write_flag_file(path, document())
    command = [sys.executable, "-W", "error", "-c", LEAVES_IT_OPEN, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
