"""The entries of a rollout, appended under a fence.

A controller that was paused for a minute must not write, or move traffic, as if it still led. So each one claims a
number, the epoch, higher than any before it in the database; whoever appends with a lower one than the leader of the
change is refused within the same transaction. A person's wish needs no epoch.

    one write transaction:   the highest epoch and the last number -> refused, or the entry under the next number

Methods block; call them in a thread. Any number of processes may use one database at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import InvalidInput, MissingExtra, StaleEpoch
from fairlead.rollout.entry import Asked, Claimed, Entry, Started, Written, decode_entry, encode_entry
from fairlead.rollout.plan import RolloutPlan
from fairlead.rollout.state import RolloutState, fold
from fairlead.store import Database

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise MissingExtra("sqlalchemy", "store") from missing

__all__ = ["Journal", "MemoryJournal", "RolloutJournal", "plan_sha256"]


_whole = sa.BigInteger().with_variant(sa.Integer, "sqlite")
METADATA = sa.MetaData()
ROLLOUT = sa.Table(
    "fairlead_rollout",
    METADATA,
    sa.Column("change", sa.Text, primary_key=True),
    sa.Column("run", _whole, primary_key=True, autoincrement=False),
    sa.Column("number", _whole, primary_key=True, autoincrement=False),
    sa.Column("epoch", _whole, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at_utc_seconds", sa.Double, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
sa.Index("fairlead_rollout_epoch", ROLLOUT.c.change, ROLLOUT.c.epoch)
_INSERT = sa.insert(ROLLOUT)
_OF_CHANGE = ROLLOUT.c.change == sa.bindparam("change")
_OF_RUN = sa.and_(_OF_CHANGE, ROLLOUT.c.run == sa.bindparam("run"))
_LAST_RUN = sa.select(sa.func.max(ROLLOUT.c.run)).where(_OF_CHANGE)
_LAST_NUMBER = sa.select(sa.func.max(ROLLOUT.c.number)).where(_OF_RUN)
_ENDED = sa.select(sa.func.count()).where(_OF_RUN, ROLLOUT.c.kind == "ended")
_STARTED = (
    sa.select(ROLLOUT.c.change, ROLLOUT.c.run, ROLLOUT.c.at_utc_seconds, ROLLOUT.c.payload)
    .where(ROLLOUT.c.number == 1, ROLLOUT.c.change != sa.bindparam("change"))
    .order_by(ROLLOUT.c.run)
)
_EPOCH = sa.select(sa.func.max(ROLLOUT.c.epoch)).where(_OF_CHANGE)
_HIGHEST = sa.select(sa.func.max(ROLLOUT.c.epoch))
_READ = (
    sa.select(ROLLOUT.c.number, ROLLOUT.c.epoch, ROLLOUT.c.at_utc_seconds, ROLLOUT.c.payload)
    .where(_OF_RUN, ROLLOUT.c.number > sa.bindparam("after"))
    .order_by(ROLLOUT.c.number)
)


def plan_sha256(plan: RolloutPlan) -> str:
    """Hash of everything in a plan."""
    return hashlib.sha256(msgspec.json.encode(plan, order="sorted")).hexdigest()


class RolloutJournal(Protocol):
    """The entries of one rollout."""

    rollout: str
    """Which one: the change's name and the number of the run, "home_feed/3"."""
    blocks: bool
    """Whether calls wait for a disk or a server, so that they belong in a thread."""

    def read(self, after: int = 0) -> list[Written]:
        """Entries whose number is above `after`, in order."""
        ...

    def claim(self, by: str) -> int:
        """Takes the lead, and returns the epoch. Raises StaleEpoch where a later rollout has started."""
        ...

    def append(self, entries: Sequence[Entry], epoch: int) -> list[Written]:
        """Writes all of these or none. Raises StaleEpoch where another controller has taken the lead."""
        ...

    def ask(self, wish: Asked) -> Written:
        """Writes a person's wish."""
        ...


class MemoryJournal:
    """Entries in memory: for a rollout on virtual time, which nobody has to remember."""

    blocks = False

    def __init__(self, rollout: str, plan: RolloutPlan, *, by: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.rollout = rollout
        self._clock = clock
        self._entries: list[Written] = []
        self._epoch = 0
        self._write(Started(plan_sha256=plan_sha256(plan), by=by))

    def read(self, after: int = 0) -> list[Written]:
        return self._entries[after:]

    def claim(self, by: str) -> int:
        self._epoch += 1
        self._write(Claimed(by=by))
        return self._epoch

    def append(self, entries: Sequence[Entry], epoch: int) -> list[Written]:
        if epoch != self._epoch:
            raise StaleEpoch(f"{self.rollout}: epoch {epoch} is not the leader's, {self._epoch}")
        return [self._write(entry) for entry in entries]

    def ask(self, wish: Asked) -> Written:
        return self._write(wish)

    def _write(self, entry: Entry) -> Written:
        written = Written(
            number=len(self._entries) + 1, epoch=self._epoch, at_utc_seconds=self._clock.utc(), entry=entry
        )
        self._entries.append(written)
        return written


class Journal:
    """The entries of one rollout in a database that was migrated.

    Raises what `Database` raises; nothing was written then, unless the message says that this is not known.
    """

    blocks = True

    def __init__(self, database: Database, change: str, run: int, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self.change = change
        self._run = run
        self._clock = clock
        self.rollout = f"{change}/{run}"

    @classmethod
    def start(
        cls,
        database: Database,
        plan: RolloutPlan,
        *,
        by: str,
        places: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Journal:
        """A new rollout of this change. Raises InvalidInput while the last one has not ended, or while one of another
        change moves the same flag or map.

        places: where its traffic and its facts are, for commands that come later. Without any, flags of one name are
        taken for one flag.
        """
        target = _target(plan, places or {})
        with database.write() as connection:
            last = _last_run(connection, plan.name)
            # Not folded while everybody waits who writes, unless there is something to say.
            if last and not connection.scalar(_ENDED, {"change": plan.name, "run": last}):
                state = fold(f"{plan.name}/{last}", _read(connection, plan.name, last, 0))
                if not state.ended:
                    raise InvalidInput(
                        f"rollout {plan.name}/{last} is {state.phase.replace('_', ' ')}; end it before another one "
                        "starts, or go on with it"
                    )
            _check_nobody_moves(connection, target, plan.name)
            journal = cls(database, plan.name, last + 1, clock=clock)
            epoch = _epoch(connection, plan.name)
            started = Started(plan_sha256=plan_sha256(plan), by=by, places=dict(places or {}), target=target)
            journal._insert(connection, [started], 0, epoch)
        return journal

    @classmethod
    def last(cls, database: Database, change: str, *, clock: Clock = SYSTEM_CLOCK) -> Journal | None:
        """The last rollout of a change; None where there was none."""
        with database.read() as connection:
            run = _last_run(connection, change)
        return cls(database, change, run, clock=clock) if run else None

    @classmethod
    def all(cls, database: Database, change: str, *, clock: Clock = SYSTEM_CLOCK) -> list[Journal]:
        """Every rollout of a change, from its first."""
        with database.read() as connection:
            last = _last_run(connection, change)
        return [cls(database, change, run, clock=clock) for run in range(1, last + 1)]

    @classmethod
    def last_at(cls, database: Database, place: str, where: str) -> Journal | None:
        """The last rollout that was started with this among its places; None where there was none."""
        found: tuple[float, str, int] | None = None
        with database.read() as connection:
            for row in connection.execute(_STARTED, {"change": ""}):
                started = decode_entry(bytes(row.payload))
                if isinstance(started, Started) and started.places.get(place) == where:
                    this = (row.at_utc_seconds, row.change, row.run)
                    found = this if found is None else max(found, this)
        return None if found is None else cls(database, *found[1:])

    def state(self, after: RolloutState | None = None) -> RolloutState:
        """Where the rollout stands. after: where it stood, so that only what came since is read."""
        return fold(self.rollout, self.read(after.number if after else 0), after=after)

    def read(self, after: int = 0) -> list[Written]:
        with self._database.read() as connection:
            return _read(connection, self.change, self._run, after)

    def claim(self, by: str) -> int:
        with self._database.write() as connection:
            last = _last_run(connection, self.change)
            if last != self._run:
                # Its epoch would outrank the leader of the later one, which nobody would guard then.
                raise StaleEpoch(
                    f"rollout {self.rollout}: rollout {self.change}/{last} has started since; lead that one"
                )
            # Above those of every change: one flag may be moved by several changes, one after another.
            epoch = (connection.scalar(_HIGHEST) or 0) + 1
            self._insert(connection, [Claimed(by=by)], self._number(connection), epoch)
        return epoch

    def append(self, entries: Sequence[Entry], epoch: int) -> list[Written]:
        with self._database.write() as connection:
            leading = _epoch(connection, self.change)
            if epoch != leading:
                raise StaleEpoch(
                    f"rollout {self.rollout}: epoch {epoch} is over, another controller leads with {leading}; "
                    "nothing was written"
                )
            return self._insert(connection, entries, self._number(connection), epoch)

    def ask(self, wish: Asked) -> Written:
        with self._database.write() as connection:
            epoch = _epoch(connection, self.change)
            return self._insert(connection, [wish], self._number(connection), epoch)[0]

    def _number(self, connection: sa.Connection) -> int:
        return connection.scalar(_LAST_NUMBER, {"change": self.change, "run": self._run}) or 0

    def _insert(
        self, connection: sa.Connection, entries: Sequence[Entry], after: int, epoch: int
    ) -> list[Written]:
        now = self._clock.utc()
        written = [
            Written(number=after + index, epoch=epoch, at_utc_seconds=now, entry=entry)
            for index, entry in enumerate(entries, 1)
        ]
        rows = [
            {
                "change": self.change,
                "run": self._run,
                "number": each.number,
                "epoch": epoch,
                "kind": str(each.entry.__struct_config__.tag),
                "at_utc_seconds": now,
                "payload": encode_entry(each.entry),
            }
            for each in written
        ]
        for row in rows:  # one by one: the trigger looks for the number before it
            connection.execute(_INSERT, row)
        return written


def _target(plan: RolloutPlan, places: Mapping[str, str]) -> str:
    """What a rollout moves. Asks the file system, so it belongs before a transaction: links to one file are one."""
    if path := places.get("map"):
        return f"map {os.path.realpath(path)}"
    flag = f"flag {places.get('flag', plan.flag)}"
    return f"{flag} in {os.path.realpath(path)}" if (path := places.get("flags")) else flag


def _check_nobody_moves(connection: sa.Connection, target: str, change: str) -> None:
    last = {row.change: row for row in connection.execute(_STARTED, {"change": change})}
    for row in last.values():
        started = decode_entry(bytes(row.payload))
        if not (isinstance(started, Started) and started.target == target):
            continue
        if connection.scalar(_ENDED, {"change": row.change, "run": row.run}):
            continue
        state = fold(f"{row.change}/{row.run}", _read(connection, row.change, row.run, 0))
        if not state.ended:
            raise InvalidInput(
                f"rollout {state.rollout} is {state.phase.replace('_', ' ')}, and moves {target} too; end it before "
                f"another one starts: fairlead rollout rollback, with the change file of {row.change}"
            )


def _last_run(connection: sa.Connection, change: str) -> int:
    return connection.scalar(_LAST_RUN, {"change": change}) or 0


def _epoch(connection: sa.Connection, change: str) -> int:
    return connection.scalar(_EPOCH, {"change": change}) or 0


def _read(connection: sa.Connection, change: str, run: int, after: int) -> list[Written]:
    rows = connection.execute(_READ, {"change": change, "run": run, "after": after})
    return [
        Written(
            number=row.number,
            epoch=row.epoch,
            at_utc_seconds=row.at_utc_seconds,
            entry=decode_entry(bytes(row.payload)),
        )
        for row in rows
    ]
