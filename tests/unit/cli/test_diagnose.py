"""`fairlead diagnose`: runs written by hand, in which the cause is known, and folders that are no run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fairlead.cli.outcome import report
from fairlead.cli.program import run
from fairlead.telemetry import LoadSample, MetricRegistry, PolicyActed, RequestFinished, StateChanged
from fairlead.telemetry.event import Event, encode_event
from fairlead.telemetry.prometheus import render
from fairlead.trial.pages import MetricsPage, write_pages
from fairlead.trial.result import (
    ArmRecord,
    Figure,
    Machine,
    MetricRecord,
    PhaseRecord,
    Result,
    ValidityRecord,
    write_result,
)

BEGAN = 1_750_000_000.0
PHASES = ("calm", "storm")
SECONDS = 10.0


def sample(arm: str, cycle: int, phase: str, at: float, latency: float, **more: object) -> LoadSample:
    fields: dict[str, object] = {
        "request_id": f"{arm}-{cycle}-{at:.2f}",
        "key": "1",
        "ending": "ok",
        "status": 200,
        "degraded": False,
        "send_lag_seconds": 0.0005,
    }
    return LoadSample(
        at_utc_seconds=at,
        phase=phase,
        arm=arm,
        cycle=cycle,
        intended_seconds=at - BEGAN,
        latency_seconds=latency,
        staleness_seconds=0.0,
        age_seconds=0.0,
        **{**fields, **more},  # type: ignore[arg-type]
    )


class Written:
    """The folder of a run in which 100 requests a second go to each arm in turn."""

    def __init__(self, directory: Path, *, valid: bool = True, seed: int = 7) -> None:
        self.directory = directory
        self.rng = np.random.default_rng(seed)
        self.load: list[Event] = []
        self.served: list[Event] = []
        at = BEGAN
        for cycle in range(2):
            for arm in ("control", "treatment"):
                for phase in PHASES:
                    for step in range(int(SECONDS * 100)):
                        self.request(arm, cycle, phase, at + step / 100)
                    at += SECONDS
        self.result = Result(
            id=directory.name,
            fairlead_version="0",
            system="paper",
            title="Paper",
            summary="On paper.",
            seed=7,
            quick=True,
            command=("fairlead", "try", "paper", "--seed", "7", "--quick"),
            rate_per_second=100.0,
            cycles=2,
            patience_seconds=1.0,
            started_at_utc_seconds=BEGAN,
            run_seconds=80.0,
            validity=ValidityRecord(
                valid=valid,
                reasons=() if valid else ("control, cycle 1: requests were sent late",),
                requests=8000,
            ),
            machine=Machine(cpu="paper", cores=2, memory_bytes=1, system="paper", python="3"),
            workload={"faults": "the prices hang in the storm"},
            arms=tuple(ArmRecord(name=arm, variant=arm) for arm in ("control", "treatment")),
            phases=tuple(
                PhaseRecord(name=each, title=each, seconds=SECONDS, measured=True) for each in PHASES
            ),
            metrics=(
                MetricRecord(
                    name="latency_p99",
                    title="latency p99",
                    role="primary",
                    kind="quantile",
                    unit="seconds",
                    side="client",
                    better="lower",
                    definition="d",
                    definition_sha256="0",
                ),
            ),
            figures=tuple(
                Figure(
                    metric="latency_p99",
                    arm=arm,
                    phase=phase,
                    value=value,
                    low=value * 0.9,
                    high=value * 1.1,
                    n=2000,
                )
                for arm, phase, value in (
                    ("control", "calm", 0.2),
                    ("control", "storm", 0.4),
                    ("treatment", "calm", 0.1),
                    ("treatment", "storm", 0.9),
                )
            ),
            targets=(),
            simulated=(),
            evidence=(),
        )

    def request(self, arm: str, cycle: int, phase: str, at: float) -> None:
        latency = 0.05 + 0.01 * float(self.rng.random())
        region = ("north", "south", "west")[int(self.rng.integers(3))]
        if arm == "treatment" and region == "west" and self.rng.random() < 0.2:
            latency += 0.5
        self.load.append(sample(arm, cycle, phase, at, latency))
        self.served.append(
            RequestFinished(
                at_utc_seconds=at + latency,
                request_id=f"{arm}-{at}",
                service="paper",
                route="/price",
                status=200,
                latency_seconds=latency,
                attributes={"region": region},
            )
        )

    def save(self) -> Path:
        for name, events in (("load", self.load), ("paper", self.served)):
            folder = self.directory / "events" / name
            folder.mkdir(parents=True)
            (folder / f"{name}-000001.jsonl").write_bytes(
                b"".join(encode_event(each) + b"\n" for each in events)
            )
        write_result(self.result, self.directory / "result.json")
        return self.directory


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Written(tmp_path_factory.mktemp("runs") / "20260101-paper").save()


def diagnosed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert run(["diagnose", *arguments, "--json"]) in (0, 4)
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    run(["diagnose", *arguments])
    return " ".join(capsys.readouterr().out.split())


def test_region_that_is_slow_is_found_and_no_other(written: Path, capsys):
    found = diagnosed(capsys, str(written))
    worse = {
        (cohort["dimension"], cohort["value"])
        for each in found["compared"]
        if "in treatment" in each["what"]
        for cohort in each["cohorts"]
        if cohort["worse"]
    }
    assert worse == {("region", "west")}


def test_arm_without_trouble_has_no_hypothesis(written: Path, capsys):
    found = diagnosed(capsys, str(written), "--arm", "control", "--slow", "0.3")
    assert found["hypotheses"] == []
    assert "no request was slow" in text(capsys, str(written), "--arm", "control", "--slow", "0.3")


def test_report_walks_the_ladder_and_says_what_repeats_the_run(written: Path, capsys):
    said = text(capsys, str(written))
    for rung in ("1 reproduce", "2 look", "3 compare", "4 isolate", "5 suspect", "6 try"):
        assert rung in said
    assert "fairlead try paper --seed 7 --quick" in said
    assert "no file of spans" in said
    assert "region = west" in said
    assert "the run kept no metrics of its services" in said
    assert "latency p99, storm 400 ms → 900 ms worse" in said


def test_every_next_command_differs_in_one_thing(written: Path, capsys):
    steps = diagnosed(capsys, str(written))["next_steps"]
    own = {"--seed 7", "--quick"}
    for step in steps:
        words = step["command"].split()
        options = {
            f"{word} {words[place + 1]}" if word in ("--seed", "--rate", "--ablate") else word
            for place, word in enumerate(words)
            if word.startswith("--")
        }
        changed = {each.split()[0] for each in options ^ own}
        assert len(changed) == 1, step
    assert len({step["command"] for step in steps}) == len(steps) >= 2


def test_breaker_policies_and_gauges_lead_to_the_phase_and_the_downstream(tmp_path: Path, capsys):
    made = Written(tmp_path / "run")
    made.load = [
        msgspec.structs.replace(each, degraded=True, ending="degraded")
        if each.arm == "treatment" and each.phase == "storm" and number % 2
        else each
        for number, each in enumerate(made.load)
        if isinstance(each, LoadSample)
    ]
    storm = BEGAN + 3 * SECONDS
    made.served += [
        StateChanged(
            at_utc_seconds=storm + 1,
            component="circuit_breaker",
            name="prices",
            previous="closed",
            current="open",
        ),
        *(
            PolicyActed(at_utc_seconds=storm + 2, policy="prices", action="refused", reason="CircuitOpen")
            for _ in range(40)
        ),
    ]
    pages = []
    registry = MetricRegistry()
    requests = registry.histogram("http_server_request_duration_seconds", "R.", labels=("route", "method"))
    calls = registry.histogram("fairlead_policy_call_duration_seconds", "C.", labels=("policy",))
    lag = registry.histogram("event_loop_lag_seconds", "L.", smallest=0.001)
    cpu = registry.counter("process_cpu_seconds_total", "P.")
    for phase, at in (("calm", BEGAN + 2 * SECONDS), ("storm", storm), ("", storm + SECONDS)):
        pages.append(
            MetricsPage(arm="treatment", cycle=0, phase=phase, at_utc_seconds=at, text=render(registry))
        )
        for _ in range(200):
            requests.labels(route="/price", method="GET").observe(0.5)
            calls.labels(policy="prices").observe(0.45)
            lag.observe(0.001)
        cpu.add(0.3)
    directory = made.save()
    write_pages(directory, pages)
    said = text(capsys, str(directory))
    assert "treatment is at its worst in phase 'storm'" in said
    assert "circuit_breaker prices closed → open" in said
    assert "treatment, storm: prices refused 40× (CircuitOpen)" in said
    assert "phase = storm" in said
    assert "the plan's faults: the prices hang in the storm" in said
    assert "treatment: downstream (prices) in calm (1 of 1 cycles), storm (1 of 1 cycles)" in said
    claims = [each["claim"] for each in diagnosed(capsys, str(directory))["hypotheses"]]
    assert claims[0] == "what happens in phase 'storm' does it"
    assert "requests of treatment wait for prices" in claims


def test_run_that_was_sent_late_is_suspected_itself_first(tmp_path: Path, capsys):
    directory = Written(tmp_path / "late", valid=False).save()
    assert run(["diagnose", str(directory)]) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "NOT VALID: control, cycle 1: requests were sent late" in said
    assert "1. the machine that measured was too busy" in said


def test_phase_with_all_the_trouble_in_a_run_too_short_to_tell_is_suspected_and_said_to_be_uncertain(
    tmp_path: Path, capsys
):
    made = Written(tmp_path / "short")
    short = [each for each in made.load if isinstance(each, LoadSample) and (each.at_utc_seconds % 10) < 1.5]
    made.load = [
        msgspec.structs.replace(each, ending="error", status=0)
        if each.phase == "storm" and each.cycle == 0
        else each
        for each in short
    ]
    directory = made.save()
    found = diagnosed(capsys, str(directory), "--slow", "1")
    [claim] = [
        each for each in found["hypotheses"] if each["claim"] == "what happens in phase 'storm' does it"
    ]
    at_clients = [each for each in found["compared"] if "server" not in each["what"]]
    assert not any(cohort["worse"] for each in at_clients for cohort in each["cohorts"])
    assert "too short to tell" in claim["against"][0]
    assert "requests of treatment ended: ok 450, error 150" in text(capsys, str(directory), "--slow", "1")


def test_run_of_an_older_version_is_repeated_as_far_as_its_result_says(tmp_path: Path, capsys):
    made = Written(tmp_path / "old")
    made.result = msgspec.structs.replace(made.result, command=())
    assert "fairlead try paper --seed 7 --quick --rate 100" in text(capsys, str(made.save()))


def test_traces_in_the_folder_are_read(written: Path, tmp_path: Path, capsys):
    directory = Written(tmp_path / "traced").save()
    spans = [
        {
            "traceId": "t1",
            "spanId": "a",
            "name": "GET /price",
            "kind": 2,
            "startTimeUnixNano": "0",
            "endTimeUnixNano": "900000000",
        },
        *(
            {
                "traceId": "t1",
                "spanId": f"b{n}",
                "parentSpanId": "a",
                "name": "SELECT price",
                "kind": "SPAN_KIND_CLIENT",
                "startTimeUnixNano": str(n * 10**8),
                "endTimeUnixNano": str(n * 10**8 + 9 * 10**7),
            }
            for n in range(8)
        ),
    ]
    document = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    (directory / "spans.jsonl").write_text(json.dumps(document) + "\n")
    said = text(capsys, str(directory))
    assert "t1: 900 ms, of which 720 ms in SELECT price, 180 ms in GET /price" in said
    assert "SELECT price 8 times under GET /price (N+1?)" in said
    (directory / "spans.jsonl").write_text("{}\n{")
    assert report(run, ["diagnose", str(directory)]) == 2
    assert "spans.jsonl:2: not a trace" in capsys.readouterr().err


def no_folder(directory: Path) -> Path:
    return directory / "nowhere"


def a_file(directory: Path) -> Path:
    (directory / "file").write_text("x")
    return directory / "file"


def empty(directory: Path) -> Path:
    return directory


def parent(directory: Path) -> Path:
    Written(directory / "run-1").save()
    return directory


def still_going_on(directory: Path) -> Path:
    (Written(directory / "run").save() / "result.json").unlink()
    return directory / "run"


def broken_result(directory: Path) -> Path:
    (Written(directory / "run").save() / "result.json").write_text('{"schema": "fairlead.trial.resu')
    return directory / "run"


def broken_line(directory: Path) -> Path:
    path = Written(directory / "run").save() / "events" / "load" / "load-000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"{half a line\n", *lines[5:]]))
    return directory / "run"


def no_events(directory: Path) -> Path:
    for path in (Written(directory / "run").save() / "events").glob("*/*"):
        path.unlink()
    return directory / "run"


def broken_pages(directory: Path) -> Path:
    run_directory = Written(directory / "run").save()
    (run_directory / "metrics").mkdir()
    (run_directory / "metrics" / "control-0.jsonl.gz").write_bytes(gzip.compress(b"{"))
    return run_directory


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_folder, "there is no such folder"),
        (a_file, "is a file; name the folder"),
        (empty, "no result.json, so this is no run"),
        (parent, "did you mean"),
        (still_going_on, "still going on or was killed"),
        (broken_result, "result.json: Input data was truncated"),
        (broken_line, "load-000001.jsonl:6"),
        (no_events, "holds no events"),
        (broken_pages, "control-0.jsonl.gz: cannot be read"),
    ],
)
def test_what_is_no_whole_run_is_one_line_with_the_next_step(make, says: str, tmp_path: Path, capsys):
    assert report(run, ["diagnose", str(make(tmp_path))]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert told.err.count("\n") == 1
    assert "unexpected" not in told.err


def test_last_line_that_a_crash_cut_off_is_left_out_and_said(tmp_path: Path, capsys):
    directory = Written(tmp_path / "cut").save()
    path = directory / "events" / "load" / "load-000001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert "lines cut off at the end of a file: 1" in text(capsys, str(directory))


@pytest.mark.parametrize("arguments", [["--arm", "third"], ["--slow", "-1"], ["--slow", "nan"]])
def test_argument_that_fits_nothing_is_refused(written: Path, arguments: list[str], capsys):
    assert report(run, ["diagnose", str(written), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_name_in_the_record_cannot_drive_the_terminal(tmp_path: Path, capsys):
    made = Written(tmp_path / "hostile")
    made.load.append(sample("treatment", 1, "storm", BEGAN + 79.9, 9.0, key="\x1b[2Jgone"))
    directory = made.save()
    run(["diagnose", str(directory)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out
