"""What an arm's own `/metrics` said at the edges of its phases, kept beside the events.

Latencies say that an arm was slow; why is in its gauges: processor, loop lag, calls to others. They are gone when the
processes end, so the walk asks for the page whenever a phase begins and when a turn is over: eight small requests a
turn. A service without `/metrics`, or one too busy to answer in time, leaves a gap and stops nothing.

    metrics/<arm>-<cycle>.jsonl.gz      one page a line, in the order of time
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import msgspec

from fairlead.clock import SYSTEM_CLOCK
from fairlead.errors import BrokenDocument, NoSpace

__all__ = ["FOLDER", "MetricsPage", "fetch_page", "read_pages", "write_pages"]

FOLDER = "metrics"
_PATIENCE = 0.5  # seconds: a page that takes longer tells of another moment than it was asked for
_LARGEST = 4 * 2**20
_LARGEST_FILE = 256 * 2**20  # unpacked


class MetricsPage(msgspec.Struct, frozen=True, kw_only=True):
    """One scrape of one arm."""

    arm: str
    cycle: int
    phase: str
    """The phase that began; empty when the turn was over."""
    at_utc_seconds: float
    """When the page was there."""
    text: str
    """In Prometheus' text format."""


async def fetch_page(
    session: aiohttp.ClientSession, url: str, arm: str, cycle: int, phase: str
) -> MetricsPage | None:
    """The page of the service at `url`; None when it has none, or gives none in half a second."""
    try:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with session.get(f"{url}/metrics", timeout=timeout) as response:
            body = await response.content.read(_LARGEST + 1) if response.status == 200 else b""
            while body and len(body) <= _LARGEST and (more := await response.content.read(_LARGEST)):
                body += more
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    if not body or len(body) > _LARGEST:
        return None
    return MetricsPage(
        arm=arm,
        cycle=cycle,
        phase=phase,
        at_utc_seconds=SYSTEM_CLOCK.utc(),
        text=body.decode("utf-8", "replace"),
    )


def write_pages(directory: Path, pages: Iterable[MetricsPage | None]) -> None:
    """Writes the pages of one turn into the run's folder; nothing when there are none. Raises NoSpace."""
    found = [page for page in pages if page is not None]
    if not found:
        return
    path = directory / FOLDER / f"{found[0].arm}-{found[0].cycle}.jsonl.gz"
    lines = b"".join(msgspec.json.encode(page) + b"\n" for page in found)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(lines, compresslevel=1, mtime=0))
    except OSError as error:
        raise NoSpace(f"{path}: {error.strerror}; make room, or choose another --out") from error


def read_pages(directory: Path) -> list[MetricsPage]:
    """The pages of a run in the order of time; none for a run that kept none. Raises BrokenDocument naming the file."""
    pages: list[MetricsPage] = []
    for path in sorted((directory / FOLDER).glob("*.jsonl.gz")):
        try:
            with gzip.open(path, "rb") as file:
                data = file.read(_LARGEST_FILE + 1)
            if len(data) > _LARGEST_FILE:
                raise BrokenDocument(
                    f"{path}: larger than {_LARGEST_FILE} bytes, so it is no record of a run"
                )
            pages += msgspec.json.Decoder(MetricsPage).decode_lines(data)
        except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BrokenDocument(
                f"{path}: cannot be read ({error}); remove it to go on without its figures"
            ) from error
    return sorted(pages, key=lambda page: page.at_utc_seconds)
