"""Notices from PostgreSQL: a connection that listens, and comes back when it is cut.

The one file that speaks to PostgreSQL beside SQLAlchemy. A connection that is cut misses what is sent meanwhile, and
one to a server that hangs hears nothing and sees no error. Neither is repaired here: whoever follows the table also
polls.
"""

from __future__ import annotations

from collections.abc import Callable

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import MissingExtra

try:
    import psycopg
except ImportError as missing:
    raise MissingExtra("psycopg", "postgres") from missing

__all__ = ["Listener"]

_LOGIN_WITHIN = 2
_AGAIN_AFTER = 1.0


class Listener:
    """Calls `on_notice` for every notification of a channel, and whenever it begins to listen."""

    def __init__(
        self, url: str, channel: str, on_notice: Callable[[], object], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """url: as libpq takes it. channel: an SQL name."""
        self._url = url
        self._channel = channel
        self._on_notice = on_notice
        self._clock = clock
        self.listening = False
        self.cut = 0
        """Times that a connection could not be had, or was lost."""

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError):
                self.cut += 1
            finally:
                self.listening = False
            await self._clock.sleep(_AGAIN_AFTER)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=_LOGIN_WITHIN,
            application_name="remote_config listener",
        )
        async with connection:
            await connection.execute(f"LISTEN {self._channel}")
            self.listening = True
            self._on_notice()  # something may have come while nobody listened
            async for _ in connection.notifies():
                self._on_notice()
