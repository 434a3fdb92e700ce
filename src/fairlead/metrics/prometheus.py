"""Live figures for hard limits from a Prometheus, by its HTTP API.

Counters, and histograms of either kind (classic buckets, native). A reading never raises for what the server does: a
server that refuses, hangs or answers nonsense is a reason, told apart from a service at rest.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from fairlead.calls.bounds import check_number
from fairlead.errors import InvalidInput, MissingExtra
from fairlead.metrics.reading import Reading, Reason, selector

try:
    import httpx
except ImportError as missing:
    raise MissingExtra("httpx", "http") from missing

__all__ = ["PrometheusServer"]

_MOST_BYTES = 16 * 2**20
_SELECTOR = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}(\{[^{}\n]{0,500}\})?", re.ASCII)


class PrometheusServer:
    """Asks a Prometheus by its HTTP API. Blocks; call it in a thread. May be shared by threads.

    Series are chosen by name and labels, ``server.rate("jobs_total", 600.0, {"state": "failed"})``; values are compared
    exactly, and several series are summed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        stale_after: float = 60.0,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """url: such as ``http://127.0.0.1:9090``. timeout: seconds for a reading; 5: guardrails read every few seconds.

        stale_after: seconds since the newest sample beyond which a reading is stale; 60: four scrapes of a usual 15 s.
        token: a bearer token; in no message. Raises InvalidInput.
        """
        check_number("timeout", timeout, above=0, high=600)
        check_number("stale_after", stale_after, above=0, high=86_400)
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidInput(f"url {str(url)[:80]!r}: write one such as http://127.0.0.1:9090") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidInput(
                f"url {parsed.scheme}://{parsed.host}: write one such as http://127.0.0.1:9090"
            )
        if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
            # Not sent, so that no error of the connection quotes it.
            raise InvalidInput(
                "token: it has a space, a line break or a letter that no header carries; strip it"
            )
        self._stale_after = float(stale_after)
        self._timeout = float(timeout)
        self._name = f"{parsed.scheme}://{parsed.host}" + (f":{parsed.port}" if parsed.port else "")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=parsed, timeout=timeout, headers=headers, transport=transport, trust_env=False
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> PrometheusServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rate(self, counter: str, window: float, where: Mapping[str, str] | None = None) -> Reading:
        """Events a second over the last `window` seconds; resets of the counter are seen by the server."""
        series = selector(counter, where)
        counted = f"sum(increase({series}[{_range(window)}]))"
        return self._read(f"sum(rate({series}[{_range(window)}]))", window, series, counted)

    def increase(self, series: str, window: float) -> Reading:
        """Events over the last `window` seconds of what a whole selector chooses: ``jobs_total{state=~"failed|dead"}``.

        Raises InvalidInput for what is no single selector.
        """
        if not _SELECTOR.fullmatch(series):
            raise InvalidInput(
                f'series {series[:80]!r} is no selector; write one such as jobs_total{{state="failed"}}'
            )
        counted = f"sum(increase({series}[{_range(window)}]))"
        return self._read(counted, window, series, counted)

    def ratio(
        self,
        numerator: str,
        denominator: str,
        window: float,
        *,
        where: Mapping[str, str] | None = None,
        of: Mapping[str, str] | None = None,
    ) -> Reading:
        """Increase of one counter over that of another. No event below the line is no data; none above it is 0.

        where: labels of the numerator; of: labels of the denominator.
        """
        above, below = selector(numerator, where), selector(denominator, of)
        span = _range(window)
        counted = f"sum(increase({below}[{span}]))"
        # A series that has never counted an error does not exist: that is 0, not "nobody knows".
        query = f"(sum(increase({above}[{span}])) or vector(0)) / {counted}"
        return self._read(query, window, below, counted)

    def quantile(
        self,
        histogram: str,
        q: float,
        window: float,
        *,
        where: Mapping[str, str] | None = None,
        native: bool = False,
    ) -> Reading:
        """The q-quantile of a histogram: classic (`_bucket` with `le`), or native. As exact as its buckets."""
        if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 1:
            raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
        span = _range(window)
        if native:
            series = selector(histogram, where)
            query = f"histogram_quantile({q:g}, sum(rate({series}[{span}])))"
            counted = f"histogram_count(sum(increase({series}[{span}])))"
        else:
            series = selector(f"{histogram}_count", where)
            buckets = selector(f"{histogram}_bucket", where)
            query = f"histogram_quantile({q:g}, sum by (le) (rate({buckets}[{span}])))"
            counted = f"sum(increase({series}[{span}]))"
        return self._read(query, window, series, counted)

    def value(self, query: str) -> Reading:
        """The one number that a query of PromQL yields now; no result, or NaN, is no data.

        Whether it is fresh is the query's own matter: Prometheus takes samples of up to five minutes ago. Raises
        InvalidInput for a query that is empty or beyond 4,000 characters.
        """
        if not isinstance(query, str) or not query.strip() or len(query) > 4_000:
            raise InvalidInput("query: write PromQL of up to 4,000 characters")
        now = time.time()
        found, problem = self._ask(query, time.monotonic() + self._timeout)
        reason: Reason | None = "query_error" if problem else None
        if not problem and (found is None or not math.isfinite(found)):
            reason, problem = "no_data", f"{self._name}: the query yields nothing"
        return Reading(
            value=found if reason is None else None,
            reason=reason,
            detail=problem,
            query=query,
            at_utc_seconds=now,
        )

    def _read(self, query: str, window: float, series: str, counted: str) -> Reading:
        now = time.time()

        def reading(
            value: float | None, reason: Reason | None, detail: str, n: float | None = None
        ) -> Reading:
            return Reading(
                value=value,
                reason=reason,
                detail=detail,
                n=n,
                query=query,
                window_seconds=window,
                at_utc_seconds=now,
            )

        end = time.monotonic() + self._timeout
        age, problem = self._ask(f"time() - max(timestamp({series}))", end)
        if problem:
            return reading(None, "query_error", problem)
        if age is None:
            return reading(None, "no_data", f"{self._name} has no series {series} of the last minutes")
        if age > self._stale_after:
            return reading(None, "stale", f"the newest sample of {series} is {age:.0f} s old")
        n, problem = self._ask(counted, end)
        if problem:
            return reading(None, "query_error", problem)
        value, problem = self._ask(query, end)
        if problem:
            return reading(None, "query_error", problem)
        if value is None or not math.isfinite(value):
            return reading(None, "no_data", f"nothing was counted by {series} in {window:g} s", n)
        return reading(value, None, "", n)

    def _ask(self, query: str, end: float) -> tuple[float | None, str]:
        """The single value of an instant query, or a problem. NaN and several series come back as they are said."""
        left = end - time.monotonic()
        if left <= 0:
            return None, f"{self._name}: no answer within {self._timeout:g} s"
        try:
            with self._client.stream("POST", "/api/v1/query", data={"query": query}, timeout=left) as answer:
                body = bytearray()
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > _MOST_BYTES:
                        return None, f"{self._name}: an answer of more than {_MOST_BYTES:,} bytes"
                    if time.monotonic() > end:
                        return None, f"{self._name}: no whole answer within {self._timeout:g} s"
                status = answer.status_code
        except httpx.TimeoutException:
            return None, f"{self._name}: no answer within {self._timeout:g} s"
        except httpx.HTTPError as error:
            return None, f"{self._name}: {type(error).__name__}: {str(error)[:200]}"
        try:
            said: Any = msgspec.json.decode(bytes(body))
            if said.get("status") != "success":
                return None, f"{self._name} refused ({status}): {str(said.get('error', 'no reason'))[:200]}"
            result = said["data"]["result"]
            if said["data"]["resultType"] == "scalar":
                return float(result[1]), ""
            if len(result) > 1:
                return None, f"{self._name}: {len(result)} series where one was asked for"
            return (float(result[0]["value"][1]) if result else None), ""
        except (
            msgspec.MsgspecError,
            AttributeError,
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            RecursionError,
        ):
            return None, f"{self._name}: status {status}, no answer of a Prometheus"


def _range(window: float) -> str:
    if (
        isinstance(window, bool)
        or not isinstance(window, int | float)
        or not 0.001 <= window <= 10 * 366 * 86_400
    ):
        raise InvalidInput(f"window {window!r} is not a number of seconds from 0.001 to ten years")
    return f"{round(window * 1000)}ms"
