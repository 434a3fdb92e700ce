"""The walk against a system made here: two small servers in this process, and faults on request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import NoSpace, ProcessDied, RunInvalid
from fairlead.lab import Samples, Schedule, Zipf
from fairlead.telemetry import LoadSample, LoadWindow
from fairlead.telemetry.jsonl import read_events
from fairlead.trial import Arm, Phase, Plan, Settings
from fairlead.trial import walk as walk_module
from fairlead.trial.pages import read_pages
from fairlead.trial.progress import Live
from fairlead.trial.result import Figure, read_result
from fairlead.trial.run import run_trial
from fairlead.trial.walk import Recorded, _Turn, play

ARMS = (Arm(name="control", variant="control"), Arm(name="treatment", variant="treatment"))
PHASES = (
    Phase(name="lead_in", title="lead-in", seconds=0.05, measured=False),
    Phase(name="calm", title="calm", seconds=0.15),
    Phase(name="storm", title="storm", seconds=0.15),
)


class Service:
    """Answers every path with 200 and the headers of the walk; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append(request.split()[1].decode())
                headers = b"x-degraded: 0\r\nx-staleness-seconds: 0.1\r\nx-age-seconds: 0.2\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + headers + b"\r\nok")
                await writer.drain()
        writer.close()

    async def __aenter__(self) -> Service:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()


class FakeSystem:
    """`enters` and `observes` hold what was asked of it, in order; hooks make one of them misbehave."""

    name = "fake"
    title = "Fake"
    summary = "Nothing was wrong, and nothing was changed."
    mechanisms = ()
    simulated = ("all of it",)
    inputs = ()
    change = None
    metrics = ()
    targets = ()
    objectives = ()

    def __init__(self, cycles: int = 1, rate: float = 100.0) -> None:
        self._cycles = cycles
        self._rate = rate
        self.calls: list[tuple[str, str, str]] = []
        self.services: dict[str, Service] = {}
        self.entered_at: list[float] = []
        self.on_enter: Callable[[Arm, Phase], None] = lambda arm, phase: None
        self.on_observe: Callable[[Arm], None] = lambda arm: None
        self.died = asyncio.Event()
        self.ended = False
        self.enter_takes = 0.0

    def plan(self, settings: Settings) -> Plan:
        return Plan(arms=ARMS, phases=PHASES, cycles=self._cycles, rate=self._rate, patience=0.5)

    @contextlib.asynccontextmanager
    async def start(self, plan: Plan, settings: Settings, directory: Path) -> AsyncIterator[FakeSystem]:
        try:
            async with Service() as one, Service() as other:
                self.services = {"control": one, "treatment": other}
                yield self
        finally:
            self.ended = True

    def schedule(self, cycle: int) -> Schedule:
        parts = [
            Schedule.poisson(
                rate=self._rate,
                duration=phase.seconds,
                popularity=Zipf(10),
                users=10,
                rng=np.random.default_rng([cycle, number]),
            )
            for number, phase in enumerate(PHASES)
        ]
        return Schedule.concatenate(parts)

    def url(self, arm: Arm) -> str:
        return f"http://127.0.0.1:{self.services[arm.name].port}"

    def paths(self, schedule: Schedule) -> Sequence[str]:
        return [f"/{key}?n={number}" for number, key in enumerate(schedule.keys.tolist())]

    async def enter(self, arm: Arm, phase: Phase) -> None:
        self.calls.append(("enter", arm.name, phase.name))
        self.entered_at.append(time.monotonic())
        await asyncio.sleep(self.enter_takes)
        self.on_enter(arm, phase)

    async def observe(self, arm: Arm) -> Mapping[str, float]:
        self.calls.append(("observe", arm.name, ""))
        self.on_observe(arm)
        return {"observed": float(len(self.calls))}

    async def failure(self) -> None:
        await self.died.wait()
        raise ProcessDied("origin died with signal SIGKILL; log origin.log is empty")

    def measure(
        self,
        arm: Arm,
        phase: Phase,
        observed: Sequence[Mapping[str, float]],
        samples: Samples,
        slices: np.ndarray,
    ) -> list[Figure]:
        return []

    def respond(self, *told: object) -> None:
        return None


class Watcher:
    """Progress that runs `on_moved` whenever the load has moved."""

    def __init__(self, on_moved: Callable[[Live], None] = lambda live: None) -> None:
        self._on_moved = on_moved
        self.finishes: list[tuple[str, int]] = []
        self.lives: list[Live] = []

    def began(self, plan: Plan) -> None: ...

    def moved(self, live: Live) -> None:
        self.lives.append(live)
        self._on_moved(live)

    def finished(self, arm: Arm, cycle: int, text: str) -> None:
        self.finishes.append((arm.name, cycle))


async def walk(system: FakeSystem, directory: Path, watcher: Watcher | None = None) -> Recorded:
    recorded = Recorded(plan=system.plan(Settings()), started_at=time.time())
    await play(system, Settings(), directory, recorded, watcher)
    return recorded


def load_events(directory: Path) -> list[LoadSample]:
    return [event for event in read_events(directory / "events" / "load") if isinstance(event, LoadSample)]


async def test_arms_take_turns_and_the_order_is_reversed_every_other_cycle(tmp_path: Path):
    system, watcher = FakeSystem(cycles=3), Watcher()
    await walk(system, tmp_path, watcher)
    assert watcher.finishes == [
        ("control", 0), ("treatment", 0),
        ("treatment", 1), ("control", 1),
        ("control", 2), ("treatment", 2),
    ]  # fmt: skip


async def test_every_arm_meets_the_same_requests_at_the_same_moments(tmp_path: Path):
    system = FakeSystem(cycles=2)
    recorded = await walk(system, tmp_path)
    assert sorted(system.services["control"].asked) == sorted(system.services["treatment"].asked)
    by_cycle = {(turn.arm.name, turn.cycle): turn.samples for turn in recorded.turns}
    for cycle in (0, 1):
        control, treatment = by_cycle["control", cycle], by_cycle["treatment", cycle]
        assert len(control) > 0
        assert control.offset.tolist() == treatment.offset.tolist()
        assert control.key.tolist() == treatment.key.tolist()
    assert by_cycle["control", 0].offset.tolist() != by_cycle["control", 1].offset.tolist()


async def test_each_phase_is_entered_in_order_and_observed_when_it_is_over(tmp_path: Path):
    system = FakeSystem()
    recorded = await walk(system, tmp_path)
    of_control = [call for call in system.calls if call[1] == "control"]
    assert of_control == [
        ("observe", "control", ""),
        ("enter", "control", "lead_in"),
        ("observe", "control", ""),
        ("enter", "control", "calm"),
        ("observe", "control", ""),
        ("enter", "control", "storm"),
        ("observe", "control", ""),
    ]
    assert list(recorded.turns[0].observed) == ["lead_in", "calm", "storm"]


async def test_slow_enter_does_not_push_the_later_phases_back(tmp_path: Path):
    system = FakeSystem()
    system.enter_takes = 0.04
    await walk(system, tmp_path)
    first, _, third = system.entered_at[:3]
    # 0.05 + 0.15 by the plan; each enter that delayed the next would add 0.04 more.
    assert third - first == pytest.approx(0.20, abs=0.035)


async def test_every_request_becomes_one_event_that_says_arm_phase_and_cycle(tmp_path: Path):
    system = FakeSystem(cycles=2)
    recorded = await walk(system, tmp_path)
    events = load_events(tmp_path)
    assert len(events) == sum(len(turn.samples) for turn in recorded.turns)
    assert len({event.request_id for event in events}) == len(events)
    assert {(event.arm, event.cycle) for event in events} == {
        (arm.name, cycle) for arm in ARMS for cycle in (0, 1)
    }
    bounds = {phase.name: (start, end) for phase, start, end in recorded.phase_bounds()}
    for event in events:
        start, end = bounds[event.phase]
        assert start <= event.intended_seconds < end
        assert event.staleness_seconds == pytest.approx(0.1)


async def test_what_the_system_counted_is_kept_as_events_too(tmp_path: Path):
    recorded = await walk(FakeSystem(), tmp_path)
    windows = [event for event in read_events(tmp_path / "events" / "load") if isinstance(event, LoadWindow)]
    kept = {(event.arm, event.cycle, event.phase): event.values for event in windows}
    assert kept == {
        (turn.arm.name, turn.cycle, phase): values
        for turn in recorded.turns
        for phase, values in turn.observed.items()
    }


async def test_phases_begin_by_the_clock_of_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zeros: list[float] = []
    started = _Turn._started

    def noted(self: _Turn, zero: float) -> None:
        zeros.append(zero)
        started(self, zero)

    monkeypatch.setattr(_Turn, "_started", noted)
    system = FakeSystem()
    await walk(system, tmp_path)
    first = system.entered_at[:: len(PHASES)]
    # Never before the moment from which requests count; a phase that began early would put its fault on their heads.
    assert all(entered >= zero for entered, zero in zip(first, zeros, strict=True))


async def test_events_that_are_written_in_pieces_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(walk_module, "_EVENTS_AT_ONCE", 7)
    recorded = await walk(FakeSystem(), tmp_path)
    ids = [event.request_id for event in load_events(tmp_path) if event.arm == "control"]
    assert ids == [f"control-0-{row}" for row in range(len(recorded.turns[0].samples))]


async def test_load_is_reported_as_it_moves(tmp_path: Path):
    watcher = Watcher()
    await walk(FakeSystem(), tmp_path, watcher)
    assert watcher.lives[-1].arm == "treatment"
    assert watcher.lives[-1].total == pytest.approx(0.7)
    assert 0.35 <= watcher.lives[-1].elapsed <= 0.7
    assert watcher.lives[-1].answered == watcher.lives[-1].due
    assert watcher.lives[-1].failed == 0


async def test_death_of_a_process_ends_the_run_and_keeps_what_was_answered(tmp_path: Path):
    system = FakeSystem()
    system.on_enter = lambda arm, phase: (
        system.died.set() if (arm.name, phase.name) == ("treatment", "storm") else None
    )
    recorded = Recorded(plan=system.plan(Settings()), started_at=time.time())
    with pytest.raises(ProcessDied, match="origin died"):
        await play(system, Settings(), tmp_path, recorded)
    assert [turn.arm.name for turn in recorded.turns] == ["control"]
    assert system.ended
    events = load_events(tmp_path)
    assert {event.arm for event in events} == {"control", "treatment"}
    assert {event.ending for event in events} == {"ok"}


async def test_failing_enter_ends_the_turn_at_once(tmp_path: Path):
    system = FakeSystem()

    def fail(arm: Arm, phase: Phase) -> None:
        if phase.name == "calm":
            raise RunInvalid("the cache could not be cleared")

    system.on_enter = fail
    with pytest.raises(RunInvalid, match="could not be cleared"):
        await walk(system, tmp_path)
    assert system.calls[-1] == ("enter", "control", "calm")
    asked = len(system.services["control"].asked)
    assert asked < len(system.schedule(0)), "the load went on after the phase had failed"
    assert system.ended


async def test_failing_observe_ends_the_run_with_its_own_error(tmp_path: Path):
    system = FakeSystem()
    count = 0

    def fail(arm: Arm) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("the window could not be taken")

    system.on_observe = fail
    with pytest.raises(OSError, match="could not be taken"):
        await walk(system, tmp_path)
    assert system.ended
    assert len(load_events(tmp_path)) > 0


async def test_failing_observe_before_the_first_request_leaves_no_events(tmp_path: Path):
    system = FakeSystem()

    def fail(arm: Arm) -> None:
        raise RunInvalid("no window")

    system.on_observe = fail
    with pytest.raises(RunInvalid, match="no window"):
        await walk(system, tmp_path)
    assert load_events(tmp_path) == []


async def test_call_that_fails_because_a_process_died_is_told_as_the_death(tmp_path: Path):
    system = FakeSystem()

    def fail(arm: Arm, phase: Phase) -> None:
        asyncio.get_running_loop().call_later(0.05, system.died.set)
        raise ConnectionResetError("broken pipe")

    system.on_enter = fail
    with pytest.raises(ProcessDied, match="origin died"):
        await walk(system, tmp_path)


async def test_cancel_half_way_ends_load_and_system_and_keeps_what_was_answered(tmp_path: Path):
    system = FakeSystem()
    reached = asyncio.Event()
    system.on_enter = lambda arm, phase: (
        reached.set() if (arm.name, phase.name) == ("treatment", "storm") else None
    )
    recorded = Recorded(plan=system.plan(Settings()), started_at=time.time())
    playing = asyncio.create_task(play(system, Settings(), tmp_path, recorded))
    await reached.wait()
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert system.ended
    assert [turn.arm.name for turn in recorded.turns] == ["control"]
    assert {event.arm for event in load_events(tmp_path)} == {"control", "treatment"}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_events_that_cannot_be_written_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full:
        def __init__(self, directory: Path, prefix: str) -> None: ...

        def write(self, lines: Sequence[bytes]) -> int:
            raise NoSpace("events: the disk is full")

        def close(self) -> None: ...

    monkeypatch.setattr(walk_module, "JsonLinesSegments", Full)
    system = FakeSystem()
    with pytest.raises(NoSpace, match="the disk is full"):
        await walk(system, tmp_path)
    assert system.ended
    assert system.services["treatment"].asked == []


async def test_system_that_does_not_start_leaves_an_error_and_no_open_events(tmp_path: Path):
    class Broken(FakeSystem):
        @contextlib.asynccontextmanager
        async def start(self, plan: Plan, settings: Settings, directory: Path) -> AsyncIterator[FakeSystem]:
            raise ProcessDied("origin was not ready within 30 s")
            yield self

    with pytest.raises(ProcessDied, match="not ready"):
        await walk(Broken(), tmp_path)


def test_finished_run_leaves_a_valid_result_and_a_report(tmp_path: Path):
    result = run_trial(FakeSystem(rate=200.0), Settings(), tmp_path)
    assert read_result(tmp_path / "result.json") == result
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert [each.path for each in result.evidence] == [
        str(file.relative_to(tmp_path))
        for file in sorted([*(tmp_path / "events").rglob("*.jsonl"), *(tmp_path / "metrics").iterdir()])
    ]
    assert result.validity.requests == 2 * len(FakeSystem(rate=200.0).schedule(0))
    phases = [phase.name for phase in FakeSystem(rate=200.0).plan(Settings()).phases]
    pages = [page.phase for page in read_pages(tmp_path) if page.arm == "control"]
    assert pages == [*phases, ""] * (len(pages) // (len(phases) + 1))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "ended early: interrupted"),
        (SystemExit(143), "ended early: asked to end (exit code 143)"),
        (ProcessDied("origin died"), "ended early: origin died"),
        (ZeroDivisionError(), "ended early: ZeroDivisionError"),
    ],
)
def test_run_that_ended_early_says_why_and_is_not_valid(tmp_path: Path, error: BaseException, reason: str):
    system = FakeSystem()

    def fail(arm: Arm, phase: Phase) -> None:
        if arm.name == "treatment":
            raise error

    system.on_enter = fail
    with pytest.raises(type(error)):
        run_trial(system, Settings(), tmp_path)
    result = read_result(tmp_path / "result.json")
    assert not result.validity.valid
    assert result.validity.reasons[0] == reason
    assert {figure.arm for figure in result.figures} == {"control"}
    assert (tmp_path / "report.html").exists()
    assert system.ended


def test_error_that_ended_the_run_is_told_even_when_the_result_cannot_be_written(tmp_path: Path):
    system = FakeSystem()

    def fail(arm: Arm, phase: Phase) -> None:
        (tmp_path / "result.json").mkdir()  # nothing can take the place of a folder
        raise ProcessDied("origin died")

    system.on_enter = fail
    with pytest.raises(ProcessDied, match="origin died") as caught:
        run_trial(system, Settings(), tmp_path)
    assert any("result.json" in note for note in caught.value.__notes__)
