"""The registry as Prometheus reads it: text exposition format 0.0.4, without its client library.

Source: prometheus.io/docs/instrumenting/exposition_formats. The text format knows only classic buckets, so a
histogram shows a fixed, thinned set of its bounds as cumulative `le` series: fixed, because a set that grows
with the data would break `rate()` and sums over instances; thinned, because each bound is one more series.
Full resolution stays in `Histogram.snapshot()`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from functools import lru_cache
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError, InvalidInput, PortInUse
from fairlead.telemetry.bounds import check_whole
from fairlead.telemetry.histogram import HistogramSnapshot, upper_bound
from fairlead.telemetry.metrics import MetricRegistry
from fairlead.telemetry.snapshot import RegistrySnapshot

__all__ = ["CONTENT_TYPE", "ScrapeServer", "render"]

if TYPE_CHECKING:
    from http.server import HTTPServer

    from fairlead.telemetry.worker import WorkerMetrics

_PATIENCE = 5.0

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(source: MetricRegistry | RegistrySnapshot) -> str:
    """The body of a scrape. Serve it with CONTENT_TYPE.

    Counts go on while it renders; within one histogram the buckets and the count belong together, the sum may
    be a value ahead.
    """
    snapshot = source.snapshot() if isinstance(source, MetricRegistry) else source
    lines: list[str] = []
    for family in snapshot.families:
        name, names = family.name, family.label_names
        lines.append(f"# HELP {name} {_escaped_help(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for values, value in family.values.items():
            lines.append(f"{name}{_braced(_pairs(names, values))} {_number(value)}")
        for values, histogram in family.histograms.items():
            lines.extend(_histogram(name, family.edges, _pairs(names, values), histogram))
    lines.append("")
    return "\n".join(lines)


def _histogram(name: str, edges: tuple[int, ...], pairs: str, histogram: HistogramSnapshot) -> Iterator[str]:
    waiting = sorted(histogram.buckets.items(), reverse=True)
    seen = histogram.zero_count
    head = f"{name}_bucket{{{pairs}," if pairs else f"{name}_bucket{{"
    for edge in edges:
        while waiting and waiting[-1][0] <= edge:
            seen += waiting.pop()[1]
        yield f'{head}le="{_edge(edge)}"}} {seen}'
    seen += sum(count for _, count in waiting)
    yield f'{head}le="+Inf"}} {seen}'
    yield f"{name}_sum{_braced(pairs)} {_number(histogram.sum)}"
    yield f"{name}_count{_braced(pairs)} {seen}"


@lru_cache(maxsize=1024)
def _edge(index: int) -> str:
    # Six digits: the last of seventeen depends on the machine's math library, and instances share series. A power of
    # two is exact everywhere, and observed: the bucket that counts 2 MiB must not say that it ends below.
    if index % 32 == 0:
        return _number(upper_bound(index))
    return _number(float(f"{upper_bound(index):.6g}"))


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join([f'{name}="{_escaped_value(value)}"' for name, value in zip(names, values, strict=True)])


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def _escaped_value(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


class ScrapeServer:
    """Serves the page for a program that has no web server: a queue worker, a batch job.

    `with ScrapeServer(registry, port=9464): …`. Every path shows the page; a sum that cannot be whole is a 503. One
    thread, one request at a time, each for five seconds at most.

    source: the registry of this process, or the WorkerMetrics of all. host: 127.0.0.1 unless a scraper comes from
        elsewhere; nobody is asked who they are. port: 0 takes a free one, then read `port`.
    """

    def __init__(
        self, source: MetricRegistry | WorkerMetrics, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        check_whole("ScrapeServer.port", port, low=0, high=65_535)
        self._source = source
        self._address = (host, port)
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._address[1]

    def start(self) -> None:
        """Begins to serve; returns at once. Raises PortInUse, or InvalidInput for an address that is not ours."""
        if self._server is not None:
            return
        try:
            self._server = _listen(self._source, self._address)
        except OSError as error:
            host, port = self._address
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"port {port} on {host} is taken by another process: choose another"
                ) from error
            raise InvalidInput(f"cannot serve on {host}:{port}: {error.strerror}") from error
        self._address = (self._address[0], self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="fairlead-scrape", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the server, after the request that it answers now."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.server_close()

    def __enter__(self) -> ScrapeServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _listen(source: MetricRegistry | WorkerMetrics, address: tuple[str, int]) -> HTTPServer:
    from http.server import BaseHTTPRequestHandler, HTTPServer  # 20 ms that most programs need not wait for

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE  # a client that says nothing must not keep the others out

        def setup(self) -> None:
            super().setup()
            # Nor one that says a byte at a time: the limit above begins anew with each.
            self._limit = threading.Timer(_PATIENCE, self._cut)
            self._limit.daemon = True
            self._limit.start()

        def finish(self) -> None:
            self._limit.cancel()
            super().finish()

        def _cut(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def do_GET(self) -> None:
            status, body = 200, b""
            try:
                body = render(source if isinstance(source, MetricRegistry) else source.merged()).encode()
            except FairleadError as error:
                status, body = 503, f"{error}\n".encode()
            self.send_response(status)
            self.send_header("content-type", CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A page that is asked for every few seconds is no news."""

    class Server(HTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A scraper that went away is no news either."""

    return Server(address, Handler)
