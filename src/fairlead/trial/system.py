"""What a reference system promises, so that one walk can play any of them.

A system is a real service with its downstreams, in at least two arms: `control`, as it was, and
`treatment`, as it should be. The walk knows nothing of feeds or configurations: it asks the system for its
plan, has it start its processes, sends the plan's load at one arm at a time, and tells the system when a
phase begins, so that the system can clear a cache or stall a dependency. What the system measures beside
the load (origin calls, CPU) it hands back as counters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fairlead.errors import InvalidInput, UnknownSystem

if TYPE_CHECKING:
    import numpy as np

    from fairlead.lab.samples import Samples
    from fairlead.lab.schedule import Schedule
    from fairlead.metrics import Metric, Target
    from fairlead.shadow import ShadowReport
    from fairlead.slo import Objective
    from fairlead.trial.result import Figure
    from fairlead.trial.users import Responded

__all__ = [
    "Arm",
    "LetOut",
    "Mechanism",
    "OneService",
    "Phase",
    "Plan",
    "Running",
    "Settings",
    "System",
    "find_systems",
    "load_system",
]

ENTRY_POINT_GROUP = "fairlead.systems"


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{name} {value!r:.40} is not a whole number from {low} to {high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """One thing the treatment does and the control does not, with its own switch."""

    name: str
    summary: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to serve the same requests."""

    name: str
    """As figures and events name it: `control`, `treatment`, `without-batching`."""
    variant: str
    """The variant of the system's flag that this arm is served."""
    without: tuple[str, ...] = ()
    """Mechanisms switched off, for an ablation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of every cycle in which the same thing happens to each arm."""

    name: str
    title: str
    """What happens, as a table heading."""
    seconds: float
    measured: bool = True
    """False for the lead-in, which fills caches and is left out of every figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the person at the terminal chose."""

    seed: int = 1
    """Decides arrivals, keys and the downstreams' service times."""
    quick: bool = False
    """Shorter and fewer phases, and fewer cycles: the same story with wider intervals."""
    rate: float | None = None
    """Requests per second in the normal phase; None takes the system's own."""
    ablate: tuple[str, ...] = ()
    """Mechanisms to switch off, each in an arm of its own beside the full treatment."""
    port: int = 0
    """Port of the treatment's service on 127.0.0.1; 0 takes a free one."""
    redis: str | None = None
    """URL of a Redis that the system may write to; None for none. A system that has no use for one refuses it."""
    cycles: int | None = None
    """How often each arm goes through all phases; None takes the plan's own number."""

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0, 2**32 - 1)
        _check_whole("port", self.port, 0, 65535)
        if self.cycles is not None:
            _check_whole("cycles", self.cycles, 1, 10_000)
        if self.rate is not None and (isinstance(self.rate, bool) or not 1 <= self.rate <= 5_000):
            raise InvalidInput(f"rate {self.rate!r} is not a rate of 1 to 5000 requests per second")

    def command(self, system: str) -> tuple[str, ...]:
        """The words of the command line that plays `system` so; a Redis is named without its user and password."""
        words = ["fairlead", "try", system, "--seed", str(self.seed)]
        words += ["--quick"] * self.quick
        if self.rate is not None:
            words += ["--rate", f"{self.rate:g}"]
        for mechanism in self.ablate:
            words += ["--ablate", mechanism]
        if self.redis is not None:
            scheme, _, rest = self.redis.partition("://")
            words += ["--redis", f"{scheme}://{rest.rpartition('@')[2]}"]
        return tuple(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class LetOut:
    """How the change is let out once the arms were compared: unseen, to a share that it harms, then by its plan."""

    shadow_seconds: float
    """For which live requests are answered by treatment too, unseen."""
    shadow_share: float
    """Of the requests, 0–1."""
    canary_seconds: float
    """At most, until the planted regression is found."""
    canary_share: float
    """Of the users, above 0 and below 1, in whole slots of 1/10,000."""
    regression: str
    """What is planted in the canary, in a sentence."""
    everyday: tuple[str, ...]
    """Phases whose recorded requests the plan is played over: those in which nothing was broken on purpose."""
    users_per_second: float
    """Of virtual time, that the plan is played with."""
    internal: float
    """Of these users, who belong to the audience of the stages that name one, 0–1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be done to each arm, fixed before anything starts."""

    arms: tuple[Arm, ...]
    """`control` first, `treatment` second, ablations behind them."""
    phases: tuple[Phase, ...]
    """One cycle, in order; traffic does not stop between them."""
    cycles: int
    """Times each arm goes through the phases; arms take turns within a cycle."""
    rate: float
    """Arrival rate of the normal phase, requests per second."""
    patience: float
    """Seconds after which the client gives up; counts as a timeout."""
    primary: str = "latency_p99"
    """The latency that the change is judged by, as `load_metrics` names it; the others are secondary."""
    workload: Mapping[str, str] = field(default_factory=dict)
    """The workload in words, for the report: distribution, keys, sizes."""
    let_out: LetOut | None = None
    """None for a system whose change is compared and not let out."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) != len(names):
            raise InvalidInput(f"arms: {names} are not two or more, each with a name of its own")
        phases = [phase.name for phase in self.phases]
        if len(set(phases)) != len(phases) or not any(phase.measured for phase in self.phases):
            raise InvalidInput(f"phases: {phases} need names of their own, and one that is measured")
        if "run" in phases:
            raise InvalidInput("phases: 'run' is the name of all measured phases together; choose another")
        seconds = [(f"seconds of phase {phase.name}", phase.seconds) for phase in self.phases]
        for name, number in (*seconds, ("rate", self.rate), ("patience", self.patience)):
            if isinstance(number, bool) or not 0 < number < float("inf"):
                raise InvalidInput(f"{name} {number!r} is not a positive number")
        _check_whole("cycles", self.cycles, 1, 10_000)
        measured = {phase.name for phase in self.phases if phase.measured}
        if self.let_out is not None and not set(self.let_out.everyday) <= measured:
            raise InvalidInput(f"let_out: {self.let_out.everyday} are not all measured phases")
        from fairlead.trial.definitions import load_metrics  # not needed to list systems

        latencies = [metric.name for metric in load_metrics(self.patience) if metric.unit == "seconds"]
        if self.primary not in latencies:
            raise InvalidInput(f"primary {self.primary!r} is none of {', '.join(latencies)}")

    @property
    def cycle_seconds(self) -> float:
        """One arm's way through all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def seconds(self) -> float:
        """How long the load runs, without start-up and draining."""
        return self.cycle_seconds * self.cycles * len(self.arms)


class Running(Protocol):
    """A started system. Everything here may be awaited while load is in flight."""

    def schedule(self, cycle: int) -> Schedule:
        """Arrivals of one cycle, the same for every arm; a function of the seed and the cycle."""
        ...

    def url(self, arm: Arm) -> str:
        """Base address of the service that serves this arm."""
        ...

    def paths(self, schedule: Schedule) -> Sequence[str]:
        """Path and query of each request of the schedule, in its order."""
        ...

    async def enter(self, arm: Arm, phase: Phase) -> None:
        """Called when `phase` begins for `arm`: set its faults, which must expire by themselves."""
        ...

    async def observe(self, arm: Arm) -> Mapping[str, float]:
        """Counters since the last call for this arm, and gauges, by names that `System.measure` knows."""
        ...

    async def failure(self) -> None:
        """Returns never; raises ProcessDied when a process of the system ends."""
        ...

    @property
    def one_service(self) -> OneService:
        """The service that a change is let out in. Only asked for where the plan has `let_out`."""
        ...


class OneService(Protocol):
    """One service that serves both arms, by a flag, as a service does that lets a change out."""

    url: str
    flags: Path
    """The flag document that it follows while it runs; a rollout moves its flag."""
    events: Path
    """Where it writes what it served, and to whom."""
    regressed: str
    """The variant with the planted regression."""

    def schedule(self, seconds: float, part: str) -> Schedule:
        """Everyday traffic; a function of the seed and of `part`."""
        ...

    def paths(self, schedule: Schedule) -> Sequence[str]:
        """As of `Running`."""
        ...

    async def shadow(self, share: float) -> ShadowReport:
        """Answers this share of control's requests by treatment too, unseen; what was compared until now."""
        ...


class System(Protocol):
    """A reference system, found by the entry point `fairlead.systems`."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def summary(self) -> str:
        """The problem and the change, in two or three sentences."""
        ...

    @property
    def mechanisms(self) -> Sequence[Mechanism]: ...

    @property
    def simulated(self) -> Sequence[str]:
        """What in this run is not real, each in one line."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Globs, within the run's folder, of what the arms were given; kept as evidence beside the events."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """Definitions of what `measure` yields; the walk adds those of the load (`fairlead.trial.figures`)."""
        ...

    @property
    def targets(self) -> Sequence[tuple[str, Target]]:
        """What the treatment should reach, each with the phase in which it is judged."""
        ...

    @property
    def change(self) -> bytes | None:
        """The change file that is frozen before the run; None for a system without one."""
        ...

    @property
    def objectives(self) -> Sequence[Objective]:
        """What the service promises; each arm's budget is counted from the load's events. Empty: nothing."""
        ...

    def plan(self, settings: Settings) -> Plan:
        """Raises InvalidInput for a mechanism it does not have."""
        ...

    def start(self, plan: Plan, settings: Settings, directory: Path) -> AbstractAsyncContextManager[Running]:
        """Starts the system's processes; ends all of them when the block is left, however it is left."""
        ...

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        """Figures of the system's own metrics for one arm and phase.

        observed: what `Running.observe` returned when the phase was over, one per cycle; samples: all
        cycles' rows; slices: shape (n,), the stretch of time each row belongs to: the rows of one vary together.
        """
        ...

    def respond(
        self, samples: Mapping[str, Samples], started_at: float, settings: Settings, directory: Path
    ) -> Responded | None:
        """What made users did about what they met, written as events below `directory`; None for a system without.

        samples: by arm (control and treatment), the rows of all measured phases; started_at: UTC seconds.
        """
        ...


def find_systems() -> dict[str, EntryPoint]:
    """Installed systems by name, not yet imported."""
    return {
        point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name)
    }


def load_system(name: str) -> System:
    """The system of that name. Raises UnknownSystem, naming those that exist."""
    systems = find_systems()
    if name not in systems:
        close = difflib.get_close_matches(name, systems, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"installed: {', '.join(systems) or 'none'}"
        raise UnknownSystem(f"no system named {name[:64]!r}; {hint} (fairlead try --list)")
    factory = systems[name].load()
    system: System = factory()
    return system
