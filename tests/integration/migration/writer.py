"""A process that writes orders through a migration until it is killed: `python writer.py CONFIG SEED`.

CONFIG is a JSON file with the two URLs and the file of the flags. Each process has keys of its own, and prints what
was acknowledged, so that a test can say which row each of them must have in the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from fairlead.errors import FairleadError
from fairlead.flags import FlagSet
from fairlead.migration import Migration, Value, flag_stage
from fairlead.migration.sqlalchemy import TableStore
from tests.integration.migration.tables import ORDERS


def order(rng: random.Random) -> Value:
    return {
        "customer": f"customer {rng.randrange(1000)} é",
        "cents": rng.randrange(100_000),
        "paid": rng.random() < 0.5,
        "rate": rng.choice([None, 0.1, 1.5, 2.0]),
        "payload": rng.choice([None, rng.randbytes(6)]),
    }


async def write_until_killed(settings: dict[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    flags = FlagSet.from_file(settings["flags"])
    stores = [TableStore(settings[side], ORDERS, threads=2) for side in ("old", "new")]
    keys = [key for key in range(1, settings["rows"] + 500) if key % settings["writers"] == seed]
    async with Migration(
        "orders", old=stores[0], new=stores[1], stage=flag_stage(flags, "orders"), second_timeout=5.0
    ) as migration:
        while True:
            await asyncio.to_thread(flags.reload)
            key = rng.choice(keys)
            value = None if rng.random() < 0.2 else order(rng)
            print(json.dumps({"begins": key}), flush=True)
            try:
                if value is None:
                    await migration.delete(key)
                else:
                    await migration.write(key, value)
            except FairleadError as error:
                print(json.dumps({"failed": key, "because": str(error)}), flush=True)
                continue
            cents = None if value is None else value["cents"]
            print(json.dumps({"done": key, "cents": cents, "stage": migration.stage}), flush=True)


if __name__ == "__main__":
    asyncio.run(write_until_killed(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
