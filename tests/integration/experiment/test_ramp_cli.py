"""`fairlead experiment analyze` during a rollout: stages come from its journal, a period from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairlead.cli import main
from fairlead.cli.exit_codes import ExitCode
from fairlead.clock import ManualClock
from fairlead.flags import EvaluationContext, ExposureLog, FlagSet, bucket
from fairlead.ledger import Ledger
from fairlead.metrics import Metric
from fairlead.rollout import Guardrail, Journal, RolloutPlan, Stage
from fairlead.rollout.entry import Asked, Decided, Ended, Entry, Had, Wanted
from fairlead.rollout.haproxy import HaproxyLog
from fairlead.store import Database
from fairlead.telemetry import BufferedSink, JsonLinesSegments, MemorySink, encode_event
from tests.integration.experiment.test_cli import CHANGE, EVENTS

Run = Callable[..., tuple[int, str, str]]
START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
DAY = 86_400.0
SHARES = (0.01, 0.05, 0.25, 0.5)
WINDOWLESS = CHANGE.replace('conversion_window = "7d"\n', "").replace(
    "{ share = 0.05, bake", "{ share = 0.01, bake = '1h' }, { share = 0.05, bake"
)
PLAN = RolloutPlan(
    name="player",
    flag="player_path",
    stages=tuple(Stage(share=share) for share in SHARES),
    guardrails=(Guardrail(metric=Metric.from_column("failures", "proportion", "failed"), worse_by=0.1),),
)


@pytest.fixture
def fairlead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("player_events.py").write_text(EVENTS)
    Path("player.toml").write_text(WINDOWLESS)

    def called(*words: str) -> tuple[int, str, str]:
        code = main(
            [
                "experiment",
                "analyze",
                "player.toml",
                "--events",
                "events",
                "--schemas",
                "player_events",
                *words,
            ]
        )
        return code, *capsys.readouterr()

    return called


def served(at: float, shares: tuple[tuple[float, float], ...]) -> float:
    """The share at this moment; shares: from when on which."""
    return next((share for start, share in reversed(shares) if at >= start), 0.0)


def flag_document(share: float) -> bytes:
    edge = round(share * 10_000)
    slots = [["treatment", 0, edge], ["control", edge, 10_000]] if edge else [["control", 0, 10_000]]
    flag = {
        "state": "ENABLED",
        "variants": {"control": "control", "treatment": "treatment"},
        "defaultVariant": "control",
        "targeting": {
            "bucket": {"by": "targetingKey", "salt": "player", "algo": "xxh32/10000@1", "slots": slots}
        },
    }
    return json.dumps({"flags": {PLAN.flag: flag}}).encode()


def reported(visits: list[tuple[float, str]], shares: tuple[tuple[float, float], ...]) -> list[str]:
    """What services write of these visits, each in a process of three, whose flags are moved beneath them."""
    sink, clock = MemorySink(), ManualClock(utc=START - DAY)
    processes = [
        FlagSet.parse(flag_document(0.0), exposures=ExposureLog(sink, clock=clock)) for _ in range(3)
    ]
    # Each reads its file when it comes to it, a while after it was written.
    reads = [(at + 20.0 * late, late, share) for at, share in shares for late in range(3)]
    steps = [(at, "", late, share) for at, late, share in reads]
    steps += [(at, user, number % 3, 0.0) for number, (at, user) in enumerate(visits)]
    for at, user, process, share in sorted(steps):
        clock.advance(at - clock.utc())
        if user:
            processes[process].string(PLAN.flag, EvaluationContext(targeting_key=user), "")
        else:
            assert processes[process].replace(flag_document(share), source="flags") is None
    return [encode_event(event).decode() for event in sink.events]


def logged(visits: list[tuple[float, str]], shares: tuple[tuple[float, float], ...]) -> list[str]:
    """What a rollout writes of these visits by the log of a HAProxy."""
    sink = BufferedSink(JsonLinesSegments("log"), capacity=100_000)
    log = HaproxyLog(sink, flag=PLAN.flag)
    with sink:
        for number, (at, user) in enumerate(sorted(visits)):
            arm = "treatment" if bucket("player", user) < served(at, shares) * 10_000 else "control"
            log.take(
                f"fairlead/1 time={at * 1000:.0f} from=web1/1/1 line={number} request={number} unit={user.upper()} "
                f"arm={arm} by=draw status=200 timers=0/0/1/1 end=---- | \n".encode()
            )
    assert log.stats.counted == len(visits)
    lines = "".join(each.read_text() for each in sorted(Path("log").iterdir())).splitlines()
    return [line for line in lines if '"event":"exposure"' in line]


def write_events(
    *shares: tuple[float, float],
    days: int = 4,
    users: int = 3000,
    exposures: Callable[..., list[str]] | None = None,
) -> None:
    """Users who come on most days, and are served by their slot.

    exposures: who reports them, of the visits; None: one for each.
    """
    rng = np.random.default_rng(31)
    lines: list[dict[str, object]] = []
    for number in range(users):
        user, level, loyal = f"{number:032x}", rng.lognormal(4.0, 0.6), rng.beta(3.0, 1.5)
        slot = bucket("player", user) / 10_000
        for day in range(days):
            if rng.random() > loyal:
                continue
            for moment in (START + DAY * (day + rng.random() * 0.99) for _ in range(2)):
                treated = slot < served(moment, shares)
                lines.append(
                    {
                        "event": "exposure", "at_utc_seconds": moment, "flag": "player_path", "reason": "SPLIT",
                        "variant": "treatment" if treated else "control", "targeting_key": user,
                    }
                )  # fmt: skip
                lines.append(
                    {
                        "event": "player_day", "at_utc_seconds": moment + 1.0, "player": user,
                        "seconds": level * (1 + day % 3) * (1.2 if treated else 1.0), "failed": False,
                    }
                )  # fmt: skip
    if exposures is None:
        written = [json.dumps(line) for line in lines]
    else:
        shown = [line for line in lines if line["event"] == "exposure"]
        written = [json.dumps(line) for line in lines if line["event"] != "exposure"]
        written += exposures(
            [(float(str(line["at_utc_seconds"])), str(line["targeting_key"])) for line in shown], shares
        )
    Path("events").mkdir()
    Path("events/events-1.jsonl").write_text("".join(f"{line}\n" for line in written))


def write_journal(
    *steps: tuple[float, Entry | float],
    change: str = "player",
    end: bool = False,
    clock: ManualClock | None = None,
) -> None:
    """A journal in which shares were moved, and other entries written, at these moments."""
    clock = clock or ManualClock()
    with Database("ledger.db") as database:
        database.migrate()
        ledger = Ledger(database)
        if ledger.frozen("player") is None:
            ledger.freeze("player", Path("player.toml").read_bytes())
        clock.set_utc(steps[0][0] - 10.0)
        plan = PLAN if change == "player" else RolloutPlan(
            name=change, flag=PLAN.flag, stages=PLAN.stages, guardrails=PLAN.guardrails
        )  # fmt: skip
        journal = Journal.start(database, plan, by="ann", clock=clock)
        epoch = journal.claim("p")
        for stage, (at, step) in enumerate(steps):
            clock.set_utc(at)
            if isinstance(step, Asked):
                journal.ask(step)
            elif isinstance(step, float):
                journal.append([Wanted(stage=stage, share=step), Had(stage=stage, share=step)], epoch)
            else:
                journal.append([step], epoch)
        if end:
            journal.append([Ended(outcome="completed")], epoch)


RAMP = tuple((START + DAY * day, share) for day, share in enumerate(SHARES))


def test_the_stages_come_from_the_journal_and_stand_in_words_json_page_and_evidence(fairlead: Run) -> None:
    write_events(*RAMP)
    write_journal(*RAMP)
    code, out, err = fairlead("--store", "ledger.db", "--html", "page.html")
    assert (code, err) == (ExitCode.OK, "")
    assert out.startswith("player: watch of treatment is better: +")
    assert "25 %   2023-11-16 22:14:20 UTC  2023-11-17 22:13:20 UTC" in out
    assert "50 %   2023-11-17 22:14:20 UTC  now" in out
    assert "25 %: drawn, and not counted: " in out
    assert "had had treatment before" in out
    assert "<h2>Stages</h2>" in Path("page.html").read_text()
    code, out, _ = fairlead("--store", "ledger.db", "--json")
    document = json.loads(out)
    assert document["schema"] == "fairlead.experiment.analysis/1"
    assert [each["shares"]["treatment"] for each in document["stages"]] == pytest.approx(SHARES)
    assert document["excluded"].get("units in two arms", 0) < 10
    low, high = document["metrics"][0]["relative_effect_ci"]
    assert low < 0.2 < high
    with Database("ledger.db") as database:
        (effect,) = Ledger(database).evidence_by_ids(document["metrics"][0]["evidence"][2:3]).values()
    assert any("counted in the stages 1 % from 2023-11-14 22:14:20 UTC" in each for each in effect.caveats)
    # Without the journal most of them are in two arms.
    code, out, _ = fairlead("--json")
    assert code == ExitCode.INCONCLUSIVE
    assert json.loads(out)["stages"] == []
    assert json.loads(out)["excluded"]["units in two arms"] > 500


@pytest.mark.parametrize("exposures", [reported, logged], ids=["services", "haproxy"])
def test_the_exposures_that_are_really_reported_say_who_came_in_each_stage(
    fairlead: Run, exposures: Callable[..., list[str]]
) -> None:
    # A unit is reported now and then, and not at each visit: also whoever stays in control in stage after stage.
    write_events(*RAMP, exposures=exposures)
    write_journal(*RAMP)
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    staged = json.loads(out)
    low, high = staged["metrics"][0]["relative_effect_ci"]
    assert low < 0.2 < high
    # As many as of a service that reports every visit; the few that come while processes read the file are missing.
    Path("events/events-1.jsonl").unlink()
    Path("events").rmdir()
    write_events(*RAMP)
    every = json.loads(fairlead("--store", "ledger.db", "--json")[1])
    for mine, theirs in zip(staged["stages"], every["stages"], strict=True):
        assert mine["observed"] == pytest.approx(theirs["observed"], rel=0.02, abs=2)


def test_a_rollout_that_was_rolled_back_counts_until_then_and_the_next_goes_on_without_the_treated(
    fairlead: Run,
) -> None:
    shares = (*RAMP[:2], (START + DAY * 1.5, 0.0), (START + DAY * 2, 0.05), (START + DAY * 3, 0.5))
    write_events(*shares)
    stop = START + DAY * 1.5
    write_journal(
        *RAMP[:2],
        (stop, Decided(stage=1, verdict="rollback", reason="harm")),
        (stop, Wanted(stage=1, share=0.0, latched=True)),
        (stop, Ended(outcome="rolled_back")),
    )
    write_journal((START + DAY * 2, 0.05), (START + DAY * 3, 0.5))
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    stages = json.loads(out)["stages"]
    assert [each["shares"]["treatment"] for each in stages] == pytest.approx([0.01, 0.05, 0.05, 0.5])
    assert stages[1]["end_utc_seconds"] == stop
    # 5 % again: it has nothing to draw for those whom 5 % had left in control.
    assert stages[2]["back"] < stages[1]["back"]
    left = stages[2]["left_out"]
    assert left["had no draw left: control already at this share or a larger one"] > 500
    assert left["had had treatment before"] > 20
    low, high = json.loads(out)["metrics"][0]["relative_effect_ci"]
    assert low < 0.2 < high


def test_a_pause_is_nothing_and_a_stage_that_was_served_for_seconds_is_left_out(fairlead: Run) -> None:
    write_events(RAMP[0], RAMP[2], RAMP[3])
    pause, resume = Asked(what="pause", by="ann"), Asked(what="resume", by="ann")
    write_journal(
        RAMP[0], (START + 100.0, pause), (START + 9000.0, resume),
        (RAMP[2][0] - 30.0, Wanted(stage=1, share=0.05)), (RAMP[2][0] - 25.0, Had(stage=1, share=0.05)),
        (RAMP[2][0], Wanted(stage=2, share=0.25)), (RAMP[2][0], Had(stage=2, share=0.25)),
        (RAMP[3][0], Wanted(stage=3, share=0.5)), (RAMP[3][0], Had(stage=3, share=0.5)),
    )  # fmt: skip
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    document = json.loads(out)
    assert [each["shares"]["treatment"] for each in document["stages"]] == pytest.approx([0.01, 0.25, 0.5])
    assert any("1 of 4 stages were served for less than the 60 s" in each for each in document["caveats"])


def test_a_clock_that_was_moved_back_costs_the_time_that_two_stages_claim(fairlead: Run) -> None:
    write_events(*RAMP)
    write_journal(
        *RAMP[:2],
        # By now the clock of the controller goes two hours late, for a while.
        (RAMP[1][0] - 7200.0, Asked(what="pause", by="ann")),
        (RAMP[1][0] - 7200.0, Decided(stage=1, verdict="hold", reason="paused")),
        (RAMP[2][0], Wanted(stage=2, share=0.25)), (RAMP[2][0], Had(stage=2, share=0.25)),
        (RAMP[3][0], Wanted(stage=3, share=0.5)), (RAMP[3][0], Had(stage=3, share=0.5)),
    )  # fmt: skip
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    document = json.loads(out)
    assert document["stages"][0]["end_utc_seconds"] == RAMP[1][0] - 7200.0
    assert any("clock was moved back: 7,200 s" in each for each in document["caveats"])


def test_one_stage_is_a_period_with_its_own_share(fairlead: Run) -> None:
    write_events((START + DAY, 0.5))
    write_journal((START + DAY, 0.5), end=True)
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    document = json.loads(out)
    (stage,) = document["stages"]
    assert (stage["start_utc_seconds"], stage["end_utc_seconds"]) == (START + DAY + 60.0, None)
    assert stage["shares"] == {"control": 0.5, "treatment": 0.5}
    assert document["metrics"][0]["verdict"] == "better"
    assert document["steps"] != []  # nothing is stratified, so the course over time is shown


def test_stages_that_are_shorter_than_the_conversion_window_count_nobody_and_say_why(fairlead: Run) -> None:
    Path("player.toml").write_text(WINDOWLESS.replace("pre_period", 'conversion_window = "7d"\npre_period'))
    write_events(*RAMP, users=300)
    write_journal(*RAMP)
    code, _, err = fairlead("--store", "ledger.db")
    assert code not in (ExitCode.OK, ExitCode.INCONCLUSIVE)
    assert "conversion windows are over before the stage or the period ends" in err


def test_the_journal_of_another_change_says_nothing(fairlead: Run) -> None:
    write_events((0.0, 0.5))
    write_journal(*RAMP, change="other")
    code, out, err = fairlead("--store", "ledger.db", "--json")
    assert (code, err) == (ExitCode.OK, "")
    assert json.loads(out)["stages"] == []


def test_a_period_by_hand_in_any_zone_with_the_shares_of_it(fairlead: Run) -> None:
    write_events(*RAMP)
    found = []
    for since, until in (
        ("2023-11-16T22:14", "2023-11-17T22:13"),
        ("2023-11-16T22:14Z", "2023-11-17 22:13+00:00"),
        ("2023-11-16T23:14+01:00", "2023-11-17T12:13-10:00"),
    ):
        code, out, err = fairlead(
            "--since", since, "--until", until, "--share", "control=3", "--share", "treatment=1", "--json"
        )
        assert (code, err) == (ExitCode.OK, "")
        found.append(json.loads(out))
    assert all(each["stages"] == found[0]["stages"] for each in found)
    (stage,) = found[0]["stages"]
    assert stage["shares"] == {"control": 0.75, "treatment": 0.25}
    assert stage["start_utc_seconds"] == START + 2 * DAY + 40.0
    assert found[0]["excluded"]["units that were drawn outside the stages or the period only"] > 100
    assert any("chosen by hand" in each for each in found[0]["caveats"])
    # Without the shares it is asked for the change file's half and half.
    code, out, _ = fairlead("--since", "2023-11-16T22:14Z", "--until", "2023-11-17T22:13Z")
    assert code == ExitCode.INCONCLUSIVE
    assert "Void: the sample ratio is broken" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "yesterday"), "--since 'yesterday': write a time such as 2026-11-27T14:00+01:00"),
        (("--until", "9999-12-31T23:59:59-23:59"), ""),
        (("--until", ""), "--until '': write a time"),
        (("--since", "2023-11-17", "--until", "2023-11-17"), "--until 2023-11-17: it is not after --since"),
        (("--since", "2023-11-17T01:00+02:00", "--until", "2023-11-16T23:00Z"), "it is not after --since"),
        (("--since", "2030-01-01"), "no unit counts of"),
        (("--share", "treatment=0.5"), "--share is for --data: with a change file, [experiment] says it"),
        (("--since", "2023-11-14", "--share", "treatment"), "write NAME=VALUE"),
        (("--since", "2023-11-14", "--share", "treatment=0"), "share of treatment"),
        (("--since", "2023-11-14", "--share", "treatment=1"), "variants control have no share in the plan"),
    ],
)
def test_words_that_are_wrong_are_named(fairlead: Run, words: tuple[str, ...], said: str) -> None:
    write_events((0.0, 0.5), users=200, days=1)
    code, out, err = fairlead(*words)
    if said:
        assert code not in (ExitCode.OK, ExitCode.INCONCLUSIVE)
        assert said in err
        assert len(err.strip().splitlines()) == 1
    else:
        assert (code, err) == (ExitCode.OK, "")
        assert "253402387139" in out  # beyond the years that have a name
