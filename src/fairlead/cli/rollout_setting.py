"""Where the traffic and the facts of a rollout are.

What was named on the command line is kept in the journal, so that later commands need not be told again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fairlead.errors import InvalidInput
from fairlead.metrics import Reading
from fairlead.rollout import (
    EventFacts,
    Facts,
    FlagTraffic,
    ReadingFacts,
    RolloutPlan,
    Traffic,
)
from fairlead.telemetry import BufferedSink, EventTail, JsonLinesSegments

if TYPE_CHECKING:
    from fairlead.rollout.haproxy_log import HaproxyLogStats

__all__ = ["Setting", "log_counts", "open_to", "places_of", "with_places"]

_CAPACITY = 100_000
"""Events of the log that may wait for the disk: whatever the kernel held while this process was busy comes at once."""


@dataclass
class Setting:
    """Where the traffic and the facts of a rollout are."""

    plan: RolloutPlan
    places: Mapping[str, str]

    def traffic(self) -> Traffic:
        """Raises InvalidInput where none was named, or where it cannot be used."""
        if sockets := self.places.get("haproxy"):
            if "map" not in self.places:
                raise InvalidInput("--haproxy: add --map, the map file that its configuration names")
            from fairlead.rollout.haproxy import HaproxyTraffic

            return HaproxyTraffic(self.places["map"], sockets=sockets.split("\n"))
        if flags := self.places.get("flags"):
            return FlagTraffic(
                flags,
                self.places.get("flag", self.plan.flag),
                treatment=self.places.get("treatment", self.plan.treatment),
                control=self.places.get("control", self.plan.control),
            )
        raise InvalidInput("what splits the traffic? name it: --flags FILE, or --haproxy SOCKET --map FILE")

    @contextmanager
    def facts(self) -> Iterator[Facts]:
        """What guardrails look at; while inside, HAProxy's log is received, where one was named.

        Raises InvalidInput where a guardrail would have nothing to look at.
        """
        readings = self._readings()
        events, address = self.places.get("events"), self.places.get("haproxy_log")
        if address:
            if "haproxy" not in self.places:
                raise InvalidInput(
                    "--haproxy-log: it is read where HAProxy splits the traffic: --haproxy SOCKET"
                )
            if not events:
                raise InvalidInput(
                    "--haproxy-log: add --events DIR, the folder that its requests are kept in"
                )
            with self._logged(address, events, readings) as facts:
                yield facts
            return
        if events:
            yield EventFacts(EventTail(events), readings=readings)
            return
        blind = [guardrail.name for guardrail in self.plan.guardrails if not guardrail.query]
        if blind:
            raise InvalidInput(
                f"guardrail {blind[0]} is computed from events: name their folder, --events DIR (or give it a query)"
            )
        yield ReadingFacts(readings)

    def _readings(self) -> dict[str, Callable[[], Reading]]:
        asked = [guardrail for guardrail in self.plan.guardrails if guardrail.query]
        if not asked:
            return {}
        if "prometheus" not in self.places:
            raise InvalidInput(
                f"guardrail {asked[0].name} has a query: name the server that answers it, --prometheus URL"
            )
        from fairlead.metrics.prometheus import PrometheusServer

        server = PrometheusServer(self.places["prometheus"])
        return {guardrail.name: partial(server.value, guardrail.query) for guardrail in asked}

    @contextmanager
    def _logged(
        self, address: str, events: str, readings: Mapping[str, Callable[[], Reading]]
    ) -> Iterator[Facts]:
        from fairlead.rollout.haproxy_log import HaproxyLog, HaproxyLogFacts

        plan = self.plan
        with (
            BufferedSink(JsonLinesSegments(events, prefix="haproxy"), capacity=_CAPACITY) as sink,
            HaproxyLog(sink, flag=plan.flag, control=plan.control, treatment=plan.treatment) as log,
        ):
            log.listen(address)
            if said := open_to(address):
                typer.echo(said, err=True)
            try:
                yield HaproxyLogFacts(log, EventTail(events), readings=readings)
            finally:
                typer.echo(f"log {address}: {log_counts(log.stats)}")


def with_places(before: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Where everything is: as it was, but for what is named now. Another kind of traffic takes the place of the one
    before."""
    kept = dict(before)
    if "flags" in given or "haproxy" in given:
        for name in ("flags", "haproxy", "map"):
            kept.pop(name, None)
    if "flags" in given:
        kept.pop("haproxy_log", None)
    return {**kept, **given}


def places_of(
    plan: RolloutPlan,
    *,
    flags: Path | None = None,
    haproxy: list[str] | None = None,
    map: Path | None = None,
    events: Path | None = None,
    prometheus: str | None = None,
    haproxy_log: str | None = None,
) -> dict[str, str]:
    """What was named on the command line; paths whole, so that later commands find them from anywhere."""
    if flags and haproxy:
        raise InvalidInput("give --flags or --haproxy: one of them splits the traffic")
    places = {"flag": plan.flag, "treatment": plan.treatment, "control": plan.control}
    for name, path in (("flags", flags), ("map", map), ("events", events)):
        if path is not None:
            places[name] = str(path.absolute())
    if haproxy:
        places["haproxy"] = "\n".join(haproxy)
    if prometheus:
        places["prometheus"] = prometheus
    if haproxy_log:
        places["haproxy_log"] = haproxy_log
    return places


def open_to(address: str) -> str:
    """Who is believed at an address that others can reach, in words; empty for the loopback."""
    if ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback:
        return ""
    return f"log {address}: whoever can send to it is believed; let a firewall pass HAProxy's machines alone"


def log_counts(stats: HaproxyLogStats) -> str:
    """What became of the lines, in words."""
    received = stats.counted + stats.unkeyed + stats.elsewhere + stats.duplicates + stats.other
    others = {
        "without a key": stats.unkeyed,
        "of neither arm": stats.elsewhere,
        "twice": stats.duplicates,
        "of another kind": stats.other,
    }
    passed_over = "".join(f", {count} {what}" for what, count in others.items() if count)
    return f"{received} lines received{passed_over}; {stats.lost} lost"
