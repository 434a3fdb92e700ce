"""A small service on virtual time: units arrive, are served an arm, and fail as often as a test says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fairlead.clock import ManualClock
from fairlead.errors import TrafficUnavailable
from fairlead.flags import bucket
from fairlead.metrics import Metric, Reading
from fairlead.rollout import Guardrail, RolloutPlan, Split, Stage
from fairlead.rollout.controller import Controller
from fairlead.rollout.journal import MemoryJournal
from fairlead.rollout.tally import Tally
from fairlead.rollout.traffic import check_replacement
from fairlead.statistics import (
    sequential_difference_bound,
    sequential_quantile_effect,
    sequential_sample_ratio,
)

# Imported before the first test's two seconds begin: it is numpy and scipy that take most of one.
_STATISTICS = (sequential_difference_bound, sequential_quantile_effect, sequential_sample_ratio)

ERRORS = Metric(
    name="errors", title="errors", role="guardrail", kind="proportion", event="request_finished",
    field="status >= 500", unit="ratio", unit_of_analysis="user", unit_field="targeting_key", side="server",
    window="10m", segment="all requests", better="lower", design="controlled",
)  # fmt: skip
LATENCY = Metric(
    name="latency_p99", title="latency p99", role="guardrail", kind="quantile", q=0.99, event="request_finished",
    field="latency_seconds", unit="seconds", unit_of_analysis="user", unit_field="targeting_key", side="server",
    window="10m", segment="all requests", better="lower", design="controlled",
)  # fmt: skip


class ServedInMemory:
    """Traffic that is a variable; it can be made to fail, or to lie."""

    name = "memory"

    def __init__(self) -> None:
        self.served = Split(share=0.0)
        self.sets: list[Split] = []
        self.failing = False

    async def set(self, split: Split) -> None:
        if self.failing:
            raise TrafficUnavailable("memory: does not answer")
        check_replacement(self.served, split, self.name)
        self.sets.append(split)
        self.served = split

    async def read(self) -> Split:
        if self.failing:
            raise TrafficUnavailable("memory: does not answer")
        return self.served

    async def close(self) -> None:
        return None


@dataclass
class Service:
    """Makes the events of the time that passed; each unit has one request."""

    clock: ManualClock
    traffic: ServedInMemory
    rate: float = 20.0
    control_errors: float = 0.01
    treatment_errors: float = 0.01
    slower: float = 1.0
    """Treatment's latency over control's."""
    silent: frozenset[str] = frozenset()
    lost_to_treatment: float = 0.0
    """Share of treatment's units whose events never arrive: a broken split."""
    internal: float = 0.0
    """Share of the units that are of the audience "internal"."""
    names_units: bool = True
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    reading: Callable[[Guardrail], Reading | None] = lambda guardrail: None
    _until: float | None = None
    _number: int = 0

    async def gather(self, tally: Tally) -> None:
        now = self.clock.utc()
        since = now if self._until is None else self._until
        self._until = now
        for index in range(round((now - since) * self.rate)):
            self._number += 1
            unit = f"user-{self._number}"
            split = self.traffic.served
            staff = split.audience == "internal" and bucket("staff", unit) < self.internal * 10_000
            served = staff or bucket("salt", unit) < split.slots
            arm = "treatment" if served else "control"
            lost = served and self.rng.random() < self.lost_to_treatment
            if arm in self.silent or lost:
                continue
            failed = self.rng.random() < (self.treatment_errors if served else self.control_errors)
            tally.see(
                "request_finished",
                {
                    "at_utc_seconds": since + index / self.rate,
                    "targeting_key": unit,
                    "variant": arm,
                    "status": 500 if failed else 200,
                    "latency_seconds": self.rng.lognormvariate(-3, 0.5) * (self.slower if served else 1.0),
                },
            )

    async def read(self, guardrail: Guardrail) -> Reading | None:
        return self.reading(guardrail)


@dataclass
class World:
    """A rollout with everything around it."""

    clock: ManualClock
    traffic: ServedInMemory
    service: Service
    plan: RolloutPlan
    journal: MemoryJournal
    told: list[str] = field(default_factory=list)

    def controller(self, by: str = "first") -> Controller:
        async def tell(what: str, _: object) -> None:
            self.told.append(what)

        return Controller(
            self.plan,
            journal=self.journal,
            traffic=self.traffic,
            facts=self.service,
            clock=self.clock,
            notice=tell,
            by=by,
        )

    def kinds(self) -> list[str]:
        return [str(each.entry.__struct_config__.tag) for each in self.journal.read()]


def plan(**changes: object) -> RolloutPlan:
    """Two stages and an end, looked at every twenty seconds."""
    values: dict[str, object] = {
        "name": "feed", "flag": "feed", "look_every": 20.0, "silence": 120.0, "patience": 600.0,
        "stages": (Stage(share=0.05, bake=200.0), Stage(share=0.5, bake=60.0), Stage(share=1.0, bake=0.0)),
        "guardrails": (Guardrail(metric=ERRORS, worse_by=0.02, relative=False),),
        "advance_on": "no_harm_seen",
    }  # fmt: skip
    return RolloutPlan(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def make_world() -> Callable[..., World]:
    def make(rollout: RolloutPlan | None = None, **service: object) -> World:
        clock = ManualClock()
        traffic = ServedInMemory()
        chosen = rollout or plan()
        return World(
            clock=clock,
            traffic=traffic,
            service=Service(clock, traffic, **service),  # type: ignore[arg-type]
            plan=chosen,
            journal=MemoryJournal("feed/1", chosen, by="ann", clock=clock),
        )

    return make


@pytest.fixture
def make_plan() -> Callable[..., RolloutPlan]:
    return plan
