"""What tokens stand for, kept on this machine alone.

To undo a redaction one needs the values somewhere; a reversible cipher in every log line would make the key
the only wall. Here the values lie in one local SQLite file, mode 0600, and nowhere else: delete a row, or the
file, and the tokens in every log that was ever shipped mean nothing any more.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import BrokenDocument

__all__ = ["TokenVault"]

_REMEMBERED = 10_000
_TABLE = """
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, value TEXT NOT NULL, seen_utc_seconds REAL NOT NULL)
WITHOUT ROWID
"""


class TokenVault:
    """Token to value, in a file that several processes of one machine may share.

    `put` writes only what this process has not put lately, and never raises: a value that could not be kept is
    counted in `lost`, and its token cannot be turned back. It waits for the disk, so call it where that does
    no harm: a sink's thread does.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Makes the file. Raises BrokenDocument for one that is no vault."""
        self.path = Path(path)
        self._clock = clock
        self.lost = 0
        """Values not kept, in this process."""
        self.failure: BaseException | None = None
        """The first reason."""
        self._lock = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._pid = -1
        self._connection: sqlite3.Connection | None = None
        _live.add(self)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with self._lock:
            try:
                self._connected()
            except sqlite3.DatabaseError as error:
                raise BrokenDocument(f"{self.path}: not a vault of tokens: {error}") from error

    def put(self, token: str, value: str) -> None:
        """Keeps what the token stands for."""
        with self._lock:
            if token in self._known:
                self._known.move_to_end(token)
                return
            try:
                connection = self._connected()
                with connection:
                    connection.execute(
                        "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?)", (token, value, self._clock.utc())
                    )
            except (sqlite3.Error, OSError, UnicodeEncodeError) as error:
                self.lost += 1
                self.failure = self.failure or error.with_traceback(None)
                return
            self._known[token] = None
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def reveal(self, token: str) -> str | None:
        """What the token stands for; None when it is not, or no longer, kept here."""
        with self._lock:
            row = self._connected().execute("SELECT value FROM tokens WHERE token = ?", (token,)).fetchone()
        return None if row is None else str(row[0])

    def forget(self, value: str) -> int:
        """Deletes every token of one value, so that nothing leads back to it; returns how many."""
        return self._delete("DELETE FROM tokens WHERE value = ?", value)

    def forget_before(self, utc_seconds: float) -> int:
        """Deletes what was last put before that moment; returns how many."""
        return self._delete("DELETE FROM tokens WHERE seen_utc_seconds < ?", utc_seconds)

    def close(self) -> None:
        """Lets go of the file. A later call opens it again."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _delete(self, statement: str, argument: str | float) -> int:
        with self._lock:
            self._known.clear()  # else what is forgotten now would not be put when it is seen again
            connection = self._connected()
            with connection:
                return connection.execute(statement, (argument,)).rowcount

    def _connected(self) -> sqlite3.Connection:
        # A connection must not cross a fork; the parent's is left to the parent, not closed.
        if self._connection is None or self._pid != os.getpid():
            connection = sqlite3.connect(self.path, timeout=1.0, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # What is deleted is overwritten, not only unlinked.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(_TABLE)
            self._connection, self._pid = connection, os.getpid()
        return self._connection


_live: weakref.WeakSet[TokenVault] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that it does not have may hold copies of them."""
    for vault in list(_live):
        vault._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)
