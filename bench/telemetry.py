"""Telemetry on the request path: what one observation and one event cost, and how wrong a quantile can be."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable

import prometheus_client

from bench.harness import Arm, Bar, interleave, ratio
from bench.telemetry_requests import request_bars
from fairlead.telemetry import BufferedSink, Exposure, Histogram, JsonLinesSegments

__all__ = ["bars"]


def _each(values: list[float], observe: Callable[[float], object]) -> Arm:
    def run(n: int) -> None:
        for _ in range(n // len(values)):
            for value in values:
                observe(value)

    return run


def _observation(latencies: list[float], rounds: int) -> list[Bar]:
    registry = prometheus_client.CollectorRegistry()
    peer = prometheus_client.Histogram("bare_seconds", "Bare.", registry=registry)
    labelled = prometheus_client.Histogram("labelled_seconds", "Labelled.", ["route"], registry=registry)

    timings = interleave(
        {
            "a call that does nothing": _each(latencies, lambda value: None),
            "fairlead": _each(latencies, Histogram().observe),
            "prometheus_client": _each(latencies, peer.observe),
            "prometheus_client, labels looked up": _each(
                latencies, lambda value: labelled.labels(route="/feed").observe(value)
            ),
        },
        n=len(latencies) * 10,
        rounds=rounds,
    )
    ours = timings["fairlead"]
    times, spread = ratio(timings["prometheus_client"], ours)
    figures = {f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()}
    low, high = ours.spread
    return [
        Bar(
            what="one latency observation, loop included",
            value=ours.median * 1e6,
            limit=0.25,
            unit="µs",
            n=len(ours.rounds),
            spread=(low * 1e6, high * 1e6),
            figures=figures,
        ),
        Bar(
            what="prometheus_client's observation, without labels, against ours",
            value=times,
            limit=1.0,
            at_most=False,
            unit="×",
            n=len(ours.rounds),
            spread=spread,
            note="its 15 buckets resolve a factor of 1.3 to 2.5; ours 1.022",
        ),
    ]


def _error(seed: int, draws: int) -> Bar:
    """Largest relative error of p50 to p999 over distributions with light, heavy and mixed tails."""
    rng = random.Random(seed)
    shapes: dict[str, Callable[[], float]] = {
        "lognormal": lambda: rng.lognormvariate(-4.0, 1.0),
        "pareto": lambda: 0.001 * rng.paretovariate(1.1),
        "exponential": lambda: rng.expovariate(100.0),
        "two modes": lambda: rng.gauss(0.002, 0.0001) if rng.random() < 0.98 else rng.gauss(1.0, 0.05),
    }
    figures: dict[str, float] = {}
    for name, draw in shapes.items():
        values = sorted(abs(draw()) for _ in range(draws))
        histogram = Histogram()
        histogram.observe_many(values)
        figures[f"{name}_percent"] = 100 * max(
            abs(histogram.quantile(q / 1000) / values[math.ceil(q / 1000 * draws) - 1] - 1)
            for q in range(500, 1000)
        )
    return Bar(
        what="largest error of p50 … p99.9, four distributions",
        value=max(figures.values()),
        limit=1.1,
        unit="%",
        n=draws,
        figures=figures,
        note="against the exact order statistic; the bound itself is proven by a property test",
    )


def _emission(rounds: int) -> Bar:
    """What `emit` costs its caller while the thread, sharing the interpreter, writes to a real disk."""
    event = Exposure(
        at_utc_seconds=1.0, flag="new_feed", variant="on", targeting_key="user-1", reason="SPLIT"
    )
    n = 20_000
    with (
        tempfile.TemporaryDirectory() as directory,
        BufferedSink(JsonLinesSegments(directory), capacity=1_000_000, flush_interval=0.001) as sink,
    ):

        def ours(count: int) -> None:
            emit = sink.emit
            for _ in range(count):
                emit(event)

        def direct(count: int) -> None:
            with open(f"{directory}/direct", "ab", buffering=0) as file:
                for _ in range(count):
                    file.write(
                        b'{"event":"exposure","at_utc_seconds":1.0,"flag":"new_feed","variant":"on"}\n'
                    )

        def drained(count: int) -> None:
            ours(count)
            sink.flush()

        timings = interleave(
            {"emit": ours, "emit and flush": drained, "write(2)": direct}, n=n, rounds=rounds
        )
        stats = sink.stats
    emit = timings["emit"]
    low, high = emit.spread
    return Bar(
        what="one event emitted, its thread writing meanwhile",
        value=emit.median * 1e6,
        limit=1.0,
        unit="µs",
        n=len(emit.rounds),
        spread=(low * 1e6, high * 1e6),
        figures={f"{name}_ns": timing.median * 1e9 for name, timing in timings.items()}
        | {"written": float(stats.written), "dropped": float(stats.dropped)},
        note="'emit and flush' is the whole cost of an event, encoding and writing included",
    )


def bars(quick: bool) -> list[Bar]:
    """The bars of the telemetry room."""
    rounds = 7 if quick else 25
    rng = random.Random(1)
    latencies = [rng.lognormvariate(-4.0, 1.0) for _ in range(1_000)]
    return [
        *_observation(latencies, rounds),
        _error(seed=1, draws=20_000 if quick else 200_000),
        _emission(rounds),
        *request_bars(rounds),
    ]
