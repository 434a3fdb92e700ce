"""The home feed's plan: arms, phases, and what the command line may ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput, MissingExtra, NoSpace
from fairlead.trial import Settings, load_system
from fairlead_systems.home_feed import HomeFeed
from fairlead_systems.home_feed.mechanisms import MECHANISMS
from fairlead_systems.home_feed.system import REDIS_FAULT, STALL, HomeFeedRunning, make_plan, start


def test_control_comes_first_and_treatment_second():
    plan = make_plan(Settings())
    assert [(arm.name, arm.variant, arm.without) for arm in plan.arms] == [
        ("control", "control", ()),
        ("treatment", "treatment", ()),
    ]


def test_phases_are_those_of_the_story():
    plan = make_plan(Settings())
    assert [phase.name for phase in plan.phases if phase.measured] == [
        "normal",
        "viral",
        "cleared",
        "stalled",
    ]
    assert not plan.phases[0].measured


@pytest.mark.parametrize("quick", [False, True])
def test_no_request_of_a_measured_phase_is_still_waiting_when_a_fault_begins(quick: bool):
    plan = make_plan(Settings(quick=quick))
    phases = list(plan.phases)
    for fault in ("stalled",) if quick else ("cleared", "stalled"):
        before = phases[[phase.name for phase in phases].index(fault) - 1]
        assert not before.measured
        assert before.seconds >= plan.patience


@pytest.mark.parametrize("quick", [False, True])
def test_load_fits_the_time_that_was_promised(quick: bool):
    # 120 s and 40 s in all; start-up, pauses, the rollouts, the analysis and the report need the rest.
    assert make_plan(Settings(quick=quick)).seconds <= (19 if quick else 77)


@pytest.mark.parametrize("quick", [False, True])
def test_given_a_redis_there_are_phases_in_which_it_hangs_and_is_gone(quick: bool):
    plan = make_plan(Settings(quick=quick, redis="redis://127.0.0.1:6379/0"))
    phases = {phase.name: phase for phase in plan.phases}
    for fault in ("redis_hung", "redis_gone"):
        assert phases[fault].measured
        assert phases[fault].seconds > REDIS_FAULT
        assert not phases[f"before_{fault}"].measured
    assert "is not touched" in plan.workload["faults"]
    assert not {"redis_hung", "redis_gone"} & {
        phase.name for phase in make_plan(Settings(quick=quick)).phases
    }


@pytest.mark.parametrize(
    "url", ["", "localhost", "rediss://h:1", "http://h", "redis://", "redis://h:99999", "redis://h:x"]
)
def test_redis_that_cannot_be_reached_through_the_proxy_is_refused(url: str):
    with pytest.raises(InvalidInput, match="--redis"):
        make_plan(Settings(redis=url))


@pytest.mark.parametrize("quick", [False, True])
def test_stall_ends_within_its_phase(quick: bool):
    (stalled,) = [phase for phase in make_plan(Settings(quick=quick)).phases if phase.name == "stalled"]
    assert stalled.seconds > STALL


def test_each_ablated_mechanism_gets_an_arm_of_its_own():
    plan = make_plan(Settings(ablate=("batching", "jitter")))
    assert [(arm.name, arm.without) for arm in plan.arms[2:]] == [
        ("without-batching", ("batching",)),
        ("without-jitter", ("jitter",)),
    ]
    for ablate in (("all",), ("all", "batching")):
        assert len(make_plan(Settings(ablate=ablate)).arms) == 2 + len(MECHANISMS)


@pytest.mark.parametrize(
    ("ablate", "part"),
    [
        (("batchng",), "'batchng'"),
        (("",), "there are: "),
        (("batching", "batching"), "twice"),
        (("x" * 10_000,), "or all"),
    ],
)
def test_unknown_mechanism_is_refused_with_those_there_are(ablate: tuple[str, ...], part: str):
    with pytest.raises(InvalidInput) as caught:
        make_plan(Settings(ablate=ablate))
    assert part in str(caught.value)
    assert len(str(caught.value)) < 500


def test_rate_and_cycles_of_the_command_line_are_taken():
    plan = make_plan(Settings(rate=20.0, cycles=1))
    assert (plan.rate, plan.cycles) == (20.0, 1)
    assert "20/s" in plan.workload["arrivals"]


@pytest.mark.parametrize("package", ["aiohttp", "starlette", "grpc", "onnxruntime", "uvloop"])
def test_missing_package_is_told_with_the_extra_that_brings_it(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)  # what `import` finds where a package is blocked
    with pytest.raises(MissingExtra, match=r"pip install 'fairlead\[try\]'"):
        HomeFeed().plan(Settings())


def running(seed: int = 1, rate: float = 150.0) -> HomeFeedRunning:
    settings = Settings(seed=seed, rate=rate, quick=True)
    return HomeFeedRunning(make_plan(settings), settings, None, None, None)  # type: ignore[arg-type]  # never started


def test_schedule_is_a_function_of_seed_and_cycle():
    first, again = running().schedule(0), running().schedule(0)
    assert first.offsets.tolist() == again.offsets.tolist()
    assert first.keys.tolist() == again.keys.tolist()
    assert first.offsets.tolist() != running().schedule(1).offsets.tolist()
    assert first.offsets.tolist() != running(seed=2).schedule(0).offsets.tolist()


def test_viral_phase_asks_mostly_for_its_topic():
    plan = make_plan(Settings(quick=True))
    schedule = running().schedule(0)
    start = sum(phase.seconds for phase in plan.phases[:2])
    viral = schedule.slice(start, start + plan.phases[2].seconds)
    normal = schedule.slice(start - plan.phases[1].seconds, start)
    assert len(viral) > 1.5 * len(normal)
    assert (viral.keys == 7).mean() > 0.3 > (normal.keys == 7).mean()


def test_lowest_rate_makes_a_schedule_too():
    seconds = make_plan(Settings(rate=1.0, quick=True)).cycle_seconds
    for cycle in range(20):
        schedule = running(rate=1.0).schedule(cycle)
        assert schedule.duration == pytest.approx(seconds)
        assert len(schedule) < 10 * seconds


def test_paths_follow_the_schedule():
    schedule = running().schedule(0)
    paths = running().paths(schedule)
    assert len(paths) == len(schedule)
    assert paths[0] == f"/feed?user=u{schedule.users[0]}&topic={schedule.keys[0]}"


def test_every_metric_and_target_is_defined():
    system = load_system("home_feed")
    assert all(metric.definition() for metric in system.metrics)
    phases = {phase.name for phase in make_plan(Settings()).phases} | {"run"}
    assert {phase for phase, _ in system.targets} <= phases
    assert len({metric.name for metric in system.metrics}) == len(system.metrics)
    assert system.simulated


async def testflag_document_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path):
    settings = Settings(quick=True)
    (tmp_path / "flags.json").mkdir()  # nothing can be written in its place
    with pytest.raises(NoSpace, match=r"flags\.json: Is a directory; make room, or choose another --out"):
        async with start(make_plan(settings), settings, tmp_path):
            pytest.fail("it was started")
