"""Letting a change out in a run: a small service in this process follows a real flag file and writes real events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from fairlead.change import parse_change
from fairlead.cli.try_view import print_result
from fairlead.errors import InvalidInput, NoSpace, ProcessDied, RunInvalid
from fairlead.flags import EvaluationContext, FlagSet
from fairlead.lab import Schedule, Zipf
from fairlead.rollout import DecisionLog, Journal, RolloutState
from fairlead.shadow import ShadowReport
from fairlead.shadow.report import FieldCounts
from fairlead.store import Database
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RequestFinished
from fairlead.trial import LetOut, Plan, Settings, live
from fairlead.trial import run as run_module
from fairlead.trial.live import LiveRecord, canary_to_its_end, play_live
from fairlead.trial.promise import LEDGER
from fairlead.trial.result import Result, read_result
from fairlead.trial.rollout_words import canary_in_words
from fairlead.trial.run import run_trial
from tests.integration.test_trial_walk import FakeSystem

CHANGE = files("fairlead_systems.home_feed").joinpath("change.toml").read_bytes()
FLAG = "feed_path"
LET_OUT = LetOut(
    shadow_seconds=0.05,
    shadow_share=0.5,
    canary_seconds=8.0,
    canary_share=0.5,
    regression="every page of the variant ends in an error",
    everyday=("calm",),
    users_per_second=1.0,
    internal=0.1,
)


class Service:
    """Serves control, or an error to whom the flag gives `regressed`, as long as it `does_harm`."""

    regressed = "regressed"

    def __init__(self, directory: Path, *, does_harm: bool = True, rate: float = 200.0) -> None:
        self.flags = directory / "rollout" / "flags.json"
        self.events = directory / "events" / "live"
        self.does_harm = does_harm
        self.url = ""
        self.report = ShadowReport(mirror=FLAG)
        self.served: dict[str, int] = {}
        self.met = asyncio.Event()
        """Somebody was served `regressed`."""
        self._rate = rate
        self._numbers = itertools.count()
        variants = {name: name for name in ("control", "treatment", "regressed")}
        self.flags.parent.mkdir()
        self.flags.write_text(
            json.dumps(
                {"flags": {FLAG: {"state": "ENABLED", "variants": variants, "defaultVariant": "control"}}}
            )
        )

    def schedule(self, seconds: float, part: str) -> Schedule:
        return Schedule.poisson(
            rate=self._rate,
            duration=seconds,
            popularity=Zipf(10),
            users=100_000,
            rng=np.random.default_rng(len(part)),
        )

    def paths(self, schedule: Schedule) -> Sequence[str]:
        return [f"/u{user}" for user in schedule.users.tolist()]

    async def shadow(self, share: float) -> ShadowReport:
        return self.report

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        flags = FlagSet.from_file(self.flags)
        with BufferedSink(JsonLinesSegments(self.events), flush_interval=0.02) as sink:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    while request := await reader.readuntil(b"\r\n\r\n"):
                        flags.reload()
                        user = request.split()[1].decode()
                        variant = flags.string(FLAG, EvaluationContext(targeting_key=user), "control")
                        self.served[variant] = self.served.get(variant, 0) + 1
                        status = 500 if variant == "regressed" and self.does_harm else 200
                        if variant == "regressed":
                            self.met.set()
                        sink.emit(
                            RequestFinished(
                                at_utc_seconds=time.time(),
                                request_id=str(next(self._numbers)),
                                service="live",
                                route="/feed",
                                status=status,
                                latency_seconds=0.001,
                                variant=variant,
                                targeting_key=user,
                            )
                        )
                        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok".encode())
                        await writer.drain()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with server:
                yield self


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with Database(tmp_path / LEDGER) as database:
        database.migrate()
    return tmp_path


async def played(
    directory: Path, service: Service, *, canary_seconds: float = 8.0, record: LiveRecord | None = None
) -> LiveRecord:
    record = record or LiveRecord(events=service.events)
    let_out = replace(LET_OUT, canary_seconds=canary_seconds)
    await play_live(record, service, let_out, 0.5, CHANGE, directory, lambda said: None)
    return record


def state(directory: Path) -> RolloutState:
    with Database(directory / LEDGER) as database:
        journal = Journal.last(database, "home_feed")
        assert journal is not None
        return journal.state()


def marks(service: Service) -> tuple[bool, bool]:
    """Whether the flag is latched, and whether it still serves `regressed` to somebody."""
    flags = FlagSet.from_file(service.flags)
    served = {
        flags.string(FLAG, EvaluationContext(targeting_key=f"u{number}"), "control") for number in range(200)
    }
    return b'"fairlead_latched": true' in flags.data, "regressed" in served


async def test_harm_is_found_by_a_guardrail_and_the_record_says_how_soon_and_on_what(directory: Path) -> None:
    service = Service(directory)
    async with service.running():
        record = await played(directory, service)
    canary = canary_to_its_end(record)
    assert canary is not None
    (decision,) = canary.rollout.decisions
    assert "FAIL" in {each.verdict for each in decision.evaluations}
    assert decision.evidence
    assert canary.decided_seconds is not None
    assert 0 < canary.decided_seconds < 8.0
    assert canary.withdrawn_seconds is not None
    assert 0 <= canary.withdrawn_seconds < 1.0
    assert canary.last_page_seconds is not None
    assert canary.last_page_seconds < 0.5
    assert canary.failed == service.served["regressed"]
    assert canary_in_words(canary).startswith("rolled back by a guardrail ")
    assert marks(service) == (True, False)


async def test_harm_that_no_guardrail_finds_in_time_is_taken_back_and_called_so(directory: Path) -> None:
    service = Service(directory, does_harm=False)
    async with service.running():
        record = await played(directory, service, canary_seconds=0.8)
    canary = canary_to_its_end(record)
    assert canary is not None
    assert canary.decided_seconds is None
    assert canary.rollout.outcome == "rolled_back"
    assert canary_in_words(canary).startswith(
        "NOT rolled back by a guardrail: the run asked for it: no guardrail found the planted regression in 0.8 s; "
    )
    (decision,) = canary.rollout.decisions
    # It stood on no look: those before it said to hold.
    assert (decision.evaluations, decision.evidence) == ((), ())
    assert service.served["regressed"] > 0
    assert marks(service) == (True, False)
    incident = parse_change((directory / "change.toml").read_bytes(), "change.toml").incidents[0]
    assert "no guardrail found the planted regression" in incident.what


async def test_canary_that_is_cancelled_leaves_nobody_the_harm_and_says_so_in_the_journal(
    directory: Path,
) -> None:
    service = Service(directory, does_harm=False)
    record = LiveRecord(events=service.events)
    async with service.running():
        playing = asyncio.create_task(played(directory, service, record=record))
        await service.met.wait()
        playing.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await playing
    assert time.monotonic() - began < 2.0
    assert marks(service) == (True, False)
    found = state(directory)
    assert (found.phase, found.reason) == ("rolled_back", "the run asked for it: it ended early")
    assert record.shadow is not None
    assert record.canary is None


async def test_canary_that_is_cancelled_while_the_ledger_is_full_leaves_nobody_the_harm(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(directory, does_harm=False)

    def full(*given: object) -> None:
        raise NoSpace("ledger.db: the disk is full")

    async with service.running():
        playing = asyncio.create_task(played(directory, service))
        await service.met.wait()
        monkeypatch.setattr(Journal, "append", full)
        monkeypatch.setattr(Journal, "ask", full)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
    assert marks(service) == (True, False)


async def test_rollback_that_the_ledger_does_not_take_ends_the_run_and_leaves_nobody_the_harm(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(directory)

    def full(*given: object) -> None:
        raise NoSpace("ledger.db: the disk is full")

    monkeypatch.setattr(DecisionLog, "record", full)
    monkeypatch.setattr(live, "_ENDED_WITHIN", 0.0)
    monkeypatch.setattr(live, "_ABANDONED_WITHIN", 0.3)
    async with service.running():
        with pytest.raises(RunInvalid, match=r"the ledger cannot be written: ledger\.db: the disk is full"):
            await played(directory, service, canary_seconds=2.0)
    assert marks(service) == (True, False)


async def test_traffic_that_breaks_is_told_and_not_taken_for_a_canary_without_users(directory: Path) -> None:
    service = Service(directory)
    service.paths = lambda schedule: []  # type: ignore[method-assign]  # a defect of the system
    async with service.running():
        with pytest.raises(IndexError):
            await played(directory, service, canary_seconds=0.5)


async def test_rollout_commands_find_the_canary_from_any_folder(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(directory, does_harm=False)
    monkeypatch.chdir(directory)
    service.flags, service.events = Path("rollout", "flags.json"), Path("events", "live")
    async with service.running():
        await played(Path(), service, canary_seconds=0.1)
    assert dict(state(directory).places) == {
        "flag": FLAG,
        "treatment": "regressed",
        "control": "control",
        "flags": str(directory / "rollout" / "flags.json"),
        "events": str(directory / "events" / "live"),
    }


async def test_fields_are_judged_with_all_of_them_in_mind_and_too_few_is_said(directory: Path) -> None:
    service = Service(directory)
    fields = {
        "order[]": FieldCounts(differed=20, only_candidate=9, only_again=2),
        "first": FieldCounts(differed=20, only_candidate=9, only_again=2),
        "missing": FieldCounts(differed=3),
    }
    service.report = ShadowReport(mirror=FLAG, compared=60, compared_twice=32, fields=fields)
    async with service.running():
        record = await played(directory, service, canary_seconds=0.1)
    assert record.shadow is not None
    found = {each.path: each for each in record.shadow.fields}
    # By itself 0.033; that two fields were asked makes it no proof, and the figure beside the verdict says the same.
    assert found["first"].p_value == pytest.approx(2 * 0.0327, abs=0.001)
    assert found["first"].verdict == found["order[]"].verdict == "not shown"
    assert found["missing"].verdict == "too few"


class LetOutSystem(FakeSystem):
    """A fake system whose change is let out in the service above."""

    change = CHANGE  # type: ignore[assignment]  # the other one has none

    def __init__(self, *, does_harm: bool) -> None:
        super().__init__(rate=200.0)
        self._does_harm = does_harm

    def plan(self, settings: Settings) -> Plan:
        return replace(super().plan(settings), patience=1.0, let_out=replace(LET_OUT, canary_seconds=3.0))

    @contextlib.asynccontextmanager
    async def start(self, plan: Plan, settings: Settings, directory: Path) -> AsyncIterator[FakeSystem]:
        service = Service(directory, does_harm=self._does_harm)
        async with super().start(plan, settings, directory), service.running():
            self.one_service = service
            yield self


def test_run_that_recorded_nothing_to_play_the_plan_over_is_whole_but_for_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The arms of this system write no events of their own, as those of a run with few requests may not in a phase.
    result = run_trial(LetOutSystem(does_harm=True), Settings(), tmp_path)
    assert result == read_result(tmp_path / "result.json")
    assert not any("ended early" in reason for reason in result.validity.reasons)
    assert result.let_out is not None
    assert result.let_out.shadow is not None
    assert result.let_out.canary is not None
    assert result.let_out.rollout is None
    assert "control: no request_finished event was recorded" in result.let_out.missing
    page = (tmp_path / "report.html").read_text()
    assert "Not played to its end: the whole plan" in page
    assert "A canary that does harm" in page
    print_result(result, tmp_path)
    shown = capsys.readouterr().out
    assert "not played to its end: the whole plan" in shown
    assert "rolled back by a guardrail" in shown


def test_what_was_played_live_is_kept_when_the_run_is_interrupted_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "play_virtual", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_trial(LetOutSystem(does_harm=True), Settings(), tmp_path)
    result = read_result(tmp_path / "result.json")
    assert result.validity.reasons[0] == "ended early: interrupted"
    assert result.let_out is not None
    assert result.let_out.shadow is not None
    assert result.let_out.canary is not None
    assert result.let_out.canary.decided_seconds is not None
    assert (result.let_out.rollout, result.let_out.missing) == (None, "ended early: interrupted")


def test_result_is_written_and_marked_when_the_run_is_interrupted_while_it_is_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conclude = run_module.conclude

    def interrupted(*given: object, ended_early: str = "", **named: object) -> Result:
        if not ended_early:
            raise KeyboardInterrupt
        return conclude(*given, ended_early=ended_early, **named)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(run_module, "conclude", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_trial(FakeSystem(), Settings(), tmp_path)
    assert read_result(tmp_path / "result.json").validity.reasons[0] == "ended early: interrupted"


def test_what_was_compared_unseen_is_kept_when_a_process_dies_in_the_canary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = LetOutSystem(does_harm=False)
    led = live._led

    async def died(*given: object) -> None:
        asyncio.get_running_loop().call_later(0.5, system.died.set)
        await led(*given)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(live, "_led", died)
    with pytest.raises(ProcessDied, match="origin died"):
        run_trial(system, Settings(), tmp_path)
    result = read_result(tmp_path / "result.json")
    assert result.let_out is not None
    assert result.let_out.shadow is not None
    assert (result.let_out.canary, result.let_out.rollout) == (None, None)
    assert "origin died" in result.let_out.missing
    assert marks(system.one_service) == (True, False)
    assert state(tmp_path).phase == "rolled_back"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "fake: it has no change file"),
        (CHANGE.replace(b'worse_by = "', b'above = 0.5 # "'), "no guardrail compares with control"),
    ],
    ids=["without_a_file", "without_a_comparison"],
)
def test_system_that_cannot_be_let_out_is_refused_before_it_starts(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    system = LetOutSystem(does_harm=True)
    system.change = content
    with pytest.raises(InvalidInput, match=reason):
        run_trial(system, Settings(), tmp_path)
    assert list(tmp_path.iterdir()) == []
