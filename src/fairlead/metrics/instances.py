"""Live figures for hard limits from the instances' own /metrics, where there is no Prometheus.

Two snapshots of all pages, a known time apart, say what was counted in between: per instance, added up. An instance
that restarted counts from zero. One that did not give its page makes the reading a `query_error`: the rest is not
the whole, and a limit that the missing one breaks would look kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fairlead.calls.bounds import check_number
from fairlead.errors import BrokenDocument, InvalidInput, MissingExtra
from fairlead.metrics.reading import Reading, Reason, selector
from fairlead.telemetry.scrape import Scrape

try:
    import httpx
except ImportError as missing:
    raise MissingExtra("httpx", "http") from missing

__all__ = ["Instances", "Snapshot"]

_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pages of all instances at one moment; made by `Instances.scrape`."""

    pages: Mapping[str, Scrape]
    """By instance; those that did not answer are missing."""
    problems: Mapping[str, str]
    """By instance: why there is no page."""
    at_utc_seconds: float
    at_monotonic_seconds: float


class Instances:
    """Reads the instances' own /metrics, for services without a Prometheus. Blocks; call it in a thread.

    Two snapshots make a reading: what each instance counted between them, added up. An instance that restarted in
    between counts from zero; one that is missing from either makes the reading a `query_error`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float = 2.0,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """urls: of the pages, one for each instance. timeout: seconds for each page; 2: they lie near.

        Raises InvalidInput for none, or two that are equal.
        """
        check_number("timeout", timeout, above=0, high=600)
        if not urls or len(set(urls)) < len(urls):
            raise InvalidInput("urls: give the address of at least one page of metrics, and each once")
        self._urls = tuple(urls)
        self._timeout = timeout
        self._monotonic = monotonic
        self._client = httpx.Client(timeout=timeout, transport=transport, trust_env=False)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Instances:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def scrape(self) -> Snapshot:
        """The pages as they are now. Raises nothing for an instance that does not answer."""
        pages: dict[str, Scrape] = {}
        problems: dict[str, str] = {}
        for url in self._urls:
            try:
                answer = self._page(url)
                pages[url] = Scrape(answer)
            except (httpx.HTTPError, httpx.InvalidURL, BrokenDocument, UnicodeDecodeError) as error:
                problems[url] = f"{type(error).__name__}: {str(error)[:200]}"
        return Snapshot(pages, problems, time.time(), self._monotonic())

    def _page(self, url: str) -> str:
        end = self._monotonic() + self._timeout
        with self._client.stream("GET", url) as answer:
            answer.raise_for_status()
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > _MOST_BYTES or self._monotonic() > end:
                    raise BrokenDocument(f"{url}: too large, or not whole within {self._timeout:g} s")
        return body.decode("utf-8")

    def rate(
        self, before: Snapshot, after: Snapshot, counter: str, where: Mapping[str, str] | None = None
    ) -> Reading:
        """Events a second between two snapshots."""
        query = selector(counter, where)
        seconds, problem = self._span(before, after)
        counted = _increase(before, after, counter, where)
        problem = problem or _not_finite(counted, query)
        if problem or counted is None:
            return self._reading(None, query, seconds, problem, f"no instance has {query}")
        return self._reading(counted / seconds, query, seconds, "", "", n=counted)

    def ratio(
        self,
        before: Snapshot,
        after: Snapshot,
        numerator: str,
        denominator: str,
        *,
        where: Mapping[str, str] | None = None,
        of: Mapping[str, str] | None = None,
    ) -> Reading:
        """Increase of one counter over that of another between two snapshots."""
        query = f"{selector(numerator, where)} / {selector(denominator, of)}"
        seconds, problem = self._span(before, after)
        below = _increase(before, after, denominator, of)
        above = _increase(before, after, numerator, where) or 0.0
        problem = problem or _not_finite(above, numerator) or _not_finite(below, denominator)
        if problem or not below:
            return self._reading(
                None, query, seconds, problem, f"nothing was counted by {selector(denominator, of)}"
            )
        return self._reading(above / below, query, seconds, "", "", n=below)

    def quantile(
        self,
        before: Snapshot,
        after: Snapshot,
        histogram: str,
        q: float,
        where: Mapping[str, str] | None = None,
    ) -> Reading:
        """The q-quantile of what a classic histogram counted in between, linear within its bucket.

        Beyond the last finite edge there is only a lower bound, which is given, and said in `detail`.
        """
        if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 1:
            raise InvalidInput(f"q {q!r} is not a number between 0 and 1, both excluded")
        query = f"{q:g} quantile of {selector(histogram, where)}"
        seconds, problem = self._span(before, after)
        buckets, mixed = _bucket_increases(before, after, histogram, where)
        total = buckets.get(math.inf, 0.0)
        problem = problem or mixed or _not_finite(sum(buckets.values()), histogram)
        if problem or total <= 0:
            return self._reading(None, query, seconds, problem, f"nothing was counted by {histogram}")
        rank = q * total
        low, below = 0.0, 0.0
        for edge, cumulated in sorted(buckets.items()):
            if cumulated >= rank:
                if math.isinf(edge):
                    return self._reading(
                        low, query, seconds, "", f"at least {low:g}: beyond the last bucket", n=total
                    )
                if below == 0 and edge <= 0:
                    return self._reading(
                        edge, query, seconds, "", f"at most {edge:g}: in the first bucket", n=total
                    )
                share = (rank - below) / (cumulated - below) if cumulated > below else 1.0
                return self._reading(low + (edge - low) * share, query, seconds, "", "", n=total)
            low, below = edge, cumulated
        return self._reading(None, query, seconds, f"{histogram}: its buckets do not add up", "")

    def _span(self, before: Snapshot, after: Snapshot) -> tuple[float, str]:
        seconds = after.at_monotonic_seconds - before.at_monotonic_seconds
        if seconds <= 0:
            return seconds, "the second snapshot is not later than the first"
        missing = {url: why for each in (before, after) for url, why in each.problems.items()}
        if missing:
            url, why = next(iter(missing.items()))
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return seconds, f"{url}{more} did not give its page: {why}"
        return seconds, ""

    def _reading(
        self,
        value: float | None,
        query: str,
        seconds: float,
        problem: str,
        nothing: str,
        *,
        n: float | None = None,
    ) -> Reading:
        reason: Reason | None = "query_error" if problem else "no_data" if value is None else None
        return Reading(
            value=value if reason is None else None,
            reason=reason,
            detail=problem or nothing,
            n=n,
            query=query,
            window_seconds=max(0.0, seconds),
            at_utc_seconds=time.time(),
        )


def _matching(
    page: Scrape, name: str, where: Mapping[str, str] | None
) -> dict[tuple[tuple[str, str], ...], float]:
    wanted = (where or {}).items()
    return {
        tuple(sorted(labels.items())): value
        for labels, value in page.samples(name)
        if all(labels.get(label) == value for label, value in wanted)
    }


def _increase(before: Snapshot, after: Snapshot, name: str, where: Mapping[str, str] | None) -> float | None:
    """What all instances counted in between; None where no instance has the series."""
    found = False
    total = 0.0
    for url, page in after.pages.items():
        then = _matching(before.pages[url], name, where) if url in before.pages else {}
        for labels, value in _matching(page, name, where).items():
            found = True
            # A counter that fell began anew: all that it has now was counted since.
            previous = then.get(labels, 0.0)
            total += value - previous if value >= previous else value
    return total if found else None


def _not_finite(counted: float | None, name: str) -> str:
    return (
        "" if counted is None or math.isfinite(counted) else f"{name}: an instance counts what is not finite"
    )


def _bucket_increases(
    before: Snapshot, after: Snapshot, histogram: str, where: Mapping[str, str] | None
) -> tuple[dict[float, float], str]:
    """What was counted up to each edge, or a problem: counts up to other edges cannot be added."""
    name = f"{histogram}_bucket"
    spelled: dict[str, float] = {}
    layouts: dict[tuple[str, tuple[tuple[str, str], ...]], set[float]] = {}
    for url, page in after.pages.items():
        for labels in _matching(page, name, where):
            edge = dict(labels).get("le", "")
            try:
                bound = float(edge)
            except ValueError:
                return {}, f"{histogram}: {edge[:40]!r} is no edge of a bucket"
            if math.isnan(bound):
                return {}, f"{histogram}: {edge[:40]!r} is no edge of a bucket"
            spelled[edge] = bound
            layouts.setdefault((url, tuple(pair for pair in labels if pair[0] != "le")), set()).add(bound)
    if len({frozenset(edges) for edges in layouts.values()}) > 1:
        return {}, f"{histogram}: its series have different buckets, which cannot be added up"
    found: dict[float, float] = {}
    for edge, bound in spelled.items():
        counted = _increase(before, after, name, {**(where or {}), "le": edge})
        found[bound] = found.get(bound, 0.0) + (counted or 0.0)
    return found, ""
