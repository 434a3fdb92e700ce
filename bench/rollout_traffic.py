"""How long treatment is still served after the decision to roll back, through HAProxy and through a flag file.

From the moment before `Traffic.set` to the last request that was sent and still met treatment, under load from a
process of its own on the same processors. The load is open-loop, so a proxy that stands still hides nothing.

    python -m bench.rollout_traffic proxy URL RATE SECONDS     asks as users do
    python -m bench.rollout_traffic flags FILE RATE SECONDS    is a service itself

Each prints a line when it has begun, then a row a request: when it was sent, and whether it met treatment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import Bar
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.lab import RequestSpec, Schedule, Zipf, drive
from fairlead.rollout import FlagTraffic, Split, Traffic
from fairlead.rollout.haproxy import HaproxyTraffic, haproxy_config
from fairlead.testing import HaproxyServer

__all__ = ["Served", "bars", "behind_haproxy", "rolled_back_under_load"]

_UNITS = 1_000
_POLL = 0.1  # seconds between two reloads of the flag file in the process that serves
_ROOT = Path(__file__).resolve().parent.parent
_SERVICE = """
frontend {port}_{arm}
    bind abns@fairlead-{port}-{arm}
    http-request return status 200 hdr x-treatment {treated} content-type text/plain string {arm}
"""
_FLAG = {"state": "ENABLED", "variants": {"control": "c", "treatment": "t"}, "defaultVariant": "control"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What a load met around one rollback; moments are of `time.monotonic`."""

    decided_at: float
    done_at: float
    """When `set` had returned."""
    treated_at: tuple[float, ...]
    """When each request was sent that met treatment."""
    treated_at_the_end: bool
    """Whether any of the last 50 requests met treatment."""
    requests: int
    failed: int

    @property
    def lasted(self) -> float:
        """Seconds from the decision to the last request that met treatment."""
        return max(0.0, max(self.treated_at) - self.decided_at)


@contextlib.contextmanager
def behind_haproxy(map_file: Path) -> Iterator[HaproxyServer]:
    """A HAProxy in front of two services that say in a header whether they are treatment."""

    def configuration(port: int) -> str:
        control, treatment = ([f"abns@fairlead-{port}-{arm}"] for arm in ("control", "treatment"))
        text = haproxy_config(
            "feed", bind=f"127.0.0.1:{port}", map_file=str(map_file), control=control, treatment=treatment
        )
        services = (
            _SERVICE.format(port=port, arm=arm, treated=n) for n, arm in enumerate(("control", "treatment"))
        )
        return text + "".join(services)

    map_file.touch()
    with HaproxyServer(configuration) as server:
        yield server


async def rolled_back_under_load(
    traffic: Traffic,
    where: str,
    address: str,
    *,
    rate: float,
    seconds: float,
    rollout: str,
    rng: random.Random,
) -> Served:
    """Serves half of the units treatment, and nobody from a moment in the middle of the load on."""
    await traffic.set(Split(share=0.5, rollout=rollout, epoch=1))
    load = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.rollout_traffic", where, address, str(rate), str(seconds)),
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    assert load.stdout is not None
    await load.stdout.readline()
    # At no fixed moment between two reloads of a flag file, which begin with the load.
    await asyncio.sleep(seconds / 2 + rng.uniform(0.0, _POLL))
    decided_at = time.monotonic()
    await traffic.set(Split(share=0.0, rollout=rollout, epoch=1, latched=True))
    done_at = time.monotonic()
    rows = json.loads(await load.stdout.readline())
    await load.wait()
    return Served(
        decided_at=decided_at,
        done_at=done_at,
        treated_at=tuple(sent_at for sent_at, treated in rows if treated),
        treated_at_the_end=any(treated for _, treated in rows[-50:]),
        requests=len(rows),
        failed=sum(treated is None for _, treated in rows),
    )


def bars(quick: bool) -> list[Bar]:
    """Both drivers, several rollbacks each."""
    rounds, seconds = (3, 2.0) if quick else (15, 4.0)
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        flags, map_file = Path(name, "flags.json"), Path(name, "feed.map")
        flags.write_text(json.dumps({"flags": {"feed": _FLAG}}))
        with behind_haproxy(map_file) as server:
            return [
                _bar(
                    "HAProxy",
                    HaproxyTraffic(map_file, sockets=[server.socket]),
                    ("proxy", server.url),
                    rate=1_000.0,
                    rounds=rounds,
                    seconds=seconds,
                ),
                _bar(
                    f"a flag file that is read again every {_POLL:g} s",
                    FlagTraffic(flags, "feed"),
                    ("flags", str(flags)),
                    rate=1_000.0,
                    rounds=rounds,
                    seconds=seconds,
                ),
            ]


def _bar(
    what: str, traffic: Traffic, load: tuple[str, str], *, rate: float, rounds: int, seconds: float
) -> Bar:
    rng = random.Random(7)

    async def play() -> list[Served]:
        return [
            await rolled_back_under_load(
                traffic, *load, rate=rate, seconds=seconds, rollout=f"feed/{turn}", rng=rng
            )
            for turn in range(rounds)
        ]

    served = asyncio.run(play())
    lasted = sorted(each.lasted for each in served)
    quartiles = statistics.quantiles(lasted, n=4)
    return Bar(
        what=f"from the decision to roll back to the last request that met treatment, through {what}, slowest",
        value=lasted[-1],
        limit=1.0,
        unit="s",
        n=rounds,
        spread=(quartiles[0], quartiles[2]),
        note=f"under {rate:,.0f} requests a second from another process",
        figures={
            "median_seconds": statistics.median(lasted),
            "set_returned_after_seconds": statistics.median(
                each.done_at - each.decided_at for each in served
            ),
            "requests": float(sum(each.requests for each in served)),
            "failed": float(sum(each.failed for each in served)),
        },
    )


async def _ask(url: str, rate: float, seconds: float) -> list[tuple[float, bool | None]]:
    rng = np.random.default_rng(7)
    schedule = Schedule.poisson(rate=rate, duration=seconds, popularity=Zipf(1), users=_UNITS, rng=rng)
    requests = [RequestSpec(path="/", headers={"x-user-id": f"user-{n}"}) for n in range(_UNITS)]
    began: list[float] = []

    def on_start(moment: float) -> None:
        began.append(moment)
        print("started", flush=True)

    samples = await drive(
        schedule,
        lambda row: requests[schedule.users[row]],
        base_url=url,
        read_headers={"treatment": "x-treatment"},
        on_start=on_start,
    )
    sent = began[0] + samples.offset + samples.lag
    treatment = samples.headers["treatment"]
    return [
        (at, None if np.isnan(treated) else bool(treated))
        for at, treated in zip(sent.tolist(), treatment.tolist(), strict=True)
    ]


async def _serve(path: str, rate: float, seconds: float) -> list[tuple[float, bool | None]]:
    flags = FlagSet.from_file(path)

    async def follow() -> None:
        while True:
            await asyncio.sleep(_POLL)
            await asyncio.to_thread(flags.reload)

    following = asyncio.create_task(follow())
    rows: list[tuple[float, bool | None]] = []
    print("started", flush=True)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        context = EvaluationContext(targeting_key=f"user-{len(rows) % _UNITS}")
        rows.append((now, flags.string("feed", context, "none") == "t"))
        await asyncio.sleep(1 / rate)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return rows


def main() -> None:
    where, address, rate, seconds = sys.argv[1:]
    play = _ask if where == "proxy" else _serve
    print(json.dumps(asyncio.run(play(address, float(rate), float(seconds)))))


if __name__ == "__main__":
    main()
