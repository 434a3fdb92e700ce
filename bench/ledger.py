"""What the ledger costs over the database it lies in, and how long one of eight writers waits.

The peer of an append is the least that SQLite can do for it: the same bytes into one table in WAL mode, committed with
`synchronous=FULL`, by the sqlite3 of the standard library. The peer of verifying is reading the same rows and hashing
them. The peer of waiting is SQLite's own busy handler.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

from bench.harness import Arm, Bar, interleave, ratio
from fairlead.ledger import Evidence, Ledger
from fairlead.store import Database, sqlite

__all__ = ["bars"]

WRITERS = 8


def _figure(n: int) -> Evidence:
    return Evidence(
        change="home_feed",
        metric="feed_p99",
        definition="99th percentile of latency_seconds of load_sample events, measured at the client",
        statistic="0.99 quantile",
        arm="treatment",
        value=0.182,
        unit="seconds",
        side="client",
        window="phase",
        segment="all requests",
        unit_of_analysis="request",
        n=n,
        low=0.171,
        high=0.195,
        confidence=0.95,
        design="load_test",
        method="order statistics",
        query_sha256="ab" * 32,
        data_sha256="cd" * 32,
        measured_at_utc_seconds=1_764_250_000.5,
    )


def _ledger(path: Path) -> Ledger:
    database = Database(path)
    database.migrate()
    return Ledger(database)


def _appending(ledger: Ledger) -> Arm:
    numbers = count()

    def run(n: int) -> None:
        for _ in range(n):
            ledger.record_evidence(_figure(next(numbers)))

    return run


def _inserting(path: Path, payload: bytes) -> Arm:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, payload BLOB)")

    def run(n: int) -> None:
        for _ in range(n):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows (payload) VALUES (?)", (payload,))
            connection.execute("COMMIT")

    return run


def _verifying(ledger: Ledger) -> Arm:
    def run(n: int) -> None:
        assert ledger.verify().entries == n

    return run


def _hashing(path: Path) -> Arm:
    connection = sqlite3.connect(path)

    def run(n: int) -> None:
        rows = connection.execute("SELECT hash, payload FROM fairlead_ledger ORDER BY number")
        assert sum(hashlib.sha256(payload).hexdigest() == found for found, payload in rows) == n

    return run


def _slowest(path: str, look: float, who: int, appends: int) -> float:
    """Seconds of this process's slowest append, the others at work."""
    sqlite._LOOK = look
    ledger = Ledger(Database(path, timeout=60.0))
    slowest = 0.0
    for n in range(appends):
        began = time.perf_counter()
        ledger.record_evidence(_figure(who * appends + n))
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


def _waiting(folder: Path, turns: int, appends: int) -> tuple[list[float], list[float]]:
    """The slowest append of all eight in each turn: ours, and with SQLite's own pauses."""
    slowest: dict[float, list[float]] = {sqlite._LOOK: [], 60.0: []}
    with ProcessPoolExecutor(WRITERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for turn in range(1 + turns):  # the first starts the processes
            for look, found in slowest.items():
                path = folder / f"writers-{turn}-{look}.db"
                _ledger(path)
                each = [pool.submit(_slowest, str(path), look, who, appends) for who in range(WRITERS)]
                found.append(max(future.result() for future in each))
    ours, theirs = slowest.values()
    return ours[1:], theirs[1:]


def bars(quick: bool) -> list[Bar]:
    """What an append and an audit cost beside the least that could be done, and how fair the writer's place is."""
    rounds = 5 if quick else 15
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        ledger = _ledger(folder / "append.db")
        append = interleave(
            {"ledger": _appending(ledger), "sqlite3": _inserting(folder / "rows.db", b"x" * 900)},
            n=20 if quick else 100,
            rounds=rounds,
        )
        entries = 300 if quick else 3_000
        audited = _ledger(folder / "audit.db")
        _appending(audited)(entries)
        verify = interleave(
            {"ledger": _verifying(audited), "sqlite3": _hashing(folder / "audit.db")},
            n=entries,
            rounds=rounds,
        )
        ours, theirs = _waiting(folder, 3 if quick else 9, 25 if quick else 100)
    found = []
    for what, timings, limit, note in (
        (
            "append to the ledger over a bare durable insert into SQLite",
            append,
            6.0,
            "the slower a disk syncs, the nearer to 1: the difference is processor time",
        ),
        (
            "verifying an entry over reading its row and hashing it",
            verify,
            20.0,
            "ours also checks every field",
        ),
    ):
        times, spread = ratio(timings["ledger"], timings["sqlite3"])
        figures = {f"{name}_us": timing.median * 1e6 for name, timing in timings.items()}
        found.append(
            Bar(
                what=what,
                value=times,
                limit=limit,
                unit="×",
                n=rounds,
                spread=spread,
                note=note,
                figures=figures,
            )
        )
    found.append(
        Bar(
            what=f"slowest append of {WRITERS} processes that write without a pause, SQLite's own wait over ours",
            value=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
            limit=1.0,
            at_most=False,
            unit="×",
            n=len(ours),
            figures={"ours_seconds": statistics.median(ours), "sqlite_seconds": statistics.median(theirs)},
        )
    )
    return found
