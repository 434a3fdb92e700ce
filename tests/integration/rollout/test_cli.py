"""`fairlead rollout` as a person uses it: a real service, a real flag file, commands in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fairlead.change import new_change, parse_change
from fairlead.cli.rollout_setting import open_to, with_places
from fairlead.ledger import Ledger
from fairlead.store import Database

ROOT = Path(__file__).resolve().parents[3]
METRIC = """
[metrics.user_errors]
role = "guardrail"
kind = "proportion"
event = "request_finished"
field = "status >= 500"
unit = "ratio"
unit_of_analysis = "user"
unit_field = "targeting_key"
side = "server"
window = "10m"
segment = "all requests"
better = "lower"
baseline = 0.01
design = "controlled"

[rollout]
flag = "feed_path"
look_every = "1s"
stale_after = "30s"
silence = "60s"
advance_on = "no_harm_seen"
dependencies = ["feature service"]
stages = [
    { share = 0.25, bake = "3s", longest = "4s" },
    { share = 1.0 },
]

[[rollout.guardrails]]
metric = "user_errors"
worse_by = "1 pp"
runbook = "https://runbooks/feed"

[experiment]"""
CHANGE = re.sub(
    "[«»]",
    "",
    re.sub(r"\[rollout\].*?\[experiment\]", lambda _: METRIC.strip("\n"), new_change("feed"), flags=re.S)
    .replace('metrics."«latency_p99»"', "metrics.latency_p99")
    .replace('metrics."«errors»"', "metrics.errors")
    .replace("«what shall be true afterwards, with a figure»", "p99 at most 210 ms")
    .replace(
        "«doing what changes which metric by how much, because of which mechanism»",
        "coalescing lowers latency_p99 from 380 to 210 ms, because misses no longer queue",
    )
    .replace("units_per_day = 1000 ", "units_per_day = 1000000 "),
)
FLAGS = {
    "flags": {
        "feed_path": {
            "state": "ENABLED",
            "variants": {"control": "control", "treatment": "treatment"},
            "defaultVariant": "control",
        }
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "feed.toml").write_text(CHANGE, encoding="utf-8")
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS), encoding="utf-8")
    return tmp_path


def command(folder: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fairlead.cli",
        "rollout",
        *arguments,
        "--store",
        str(folder / "fairlead.db"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def served(folder: Path, treatment_errors: float) -> Iterator[None]:
    """The service, until the block ends."""
    arguments = ["flags.json", "events", str(treatment_errors), "300", "90"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.rollout.service", *arguments], cwd=folder, env=environment()
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def lead(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(folder, "start", "feed.toml", *more),
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


WHERE = ("--flags", "flags.json", "--events", "events")


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def share_served(folder: Path) -> int:
    document = json.loads((folder / "flags.json").read_text(encoding="utf-8"))
    slots = document["flags"]["feed_path"].get("targeting", {}).get("bucket", {}).get("slots", [])
    return sum(end - start for label, start, end in slots if label == "treatment")


def test_a_harmful_change_is_taken_back_and_its_incident_written(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    with served(folder, treatment_errors=0.5):
        process = lead(*WHERE)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "user_errors worse_by 1 pp" in said
    assert share_served(folder) == 0
    change = parse_change((folder / "feed.toml").read_bytes())
    assert "rolled back at stage 25 %" in change.incidents[0].what
    with Database(folder / "fairlead.db") as database:
        decisions = [entry.body for entry in Ledger(database).decisions("feed")]
        assert [each.verdict for each in decisions] == ["rollback"]
        assert len(Ledger(database).evidence_by_ids(decisions[0].evidence)) == 3
    again = run(folder, "status", "feed.toml", "--json")
    assert json.loads(again.stdout)["state"] == "rolled_back"


def test_a_harmless_change_reaches_everybody_though_its_controller_is_killed(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    with served(folder, treatment_errors=0.01):
        first = lead(*WHERE)
        until(lambda: share_served(folder) == 2_500)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        second = lead()  # it knows from the journal where everything is
        watched = run(folder, "status", "feed.toml", "--watch", "--timeout", "40s")
        assert watched.returncode == 0, watched.stdout + watched.stderr
        assert second.wait(20) == 0
    assert share_served(folder) == 10_000


def test_a_person_takes_it_back_while_a_controller_runs_and_while_none_does(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    with served(folder, treatment_errors=0.01):
        running = lead(*WHERE)
        until(lambda: share_served(folder) == 2_500)
        taken = run(folder, "rollback", "feed.toml", "--why", "a bad feeling")
        assert taken.returncode == 0, taken.stderr
        assert share_served(folder) == 0
        assert running.wait(20) == 3
        alone = lead(*WHERE)
        until(lambda: share_served(folder) == 2_500)
        alone.send_signal(signal.SIGKILL)
        alone.wait(10)
        taken = run(folder, "rollback", "feed.toml", "--json")
        record = json.loads(taken.stdout)
        assert record["state"] == "rolled_back"
        assert record["rollout"] == "feed/2"
        assert share_served(folder) == 0


def abandoned(folder: Path, lead: Callable[..., subprocess.Popen[str]]) -> None:
    """A rollout that serves its first stage, and whose controller was killed."""
    running = lead(*WHERE)
    until(lambda: share_served(folder) == 2_500)
    running.kill()
    running.wait(10)


@pytest.mark.parametrize("damage", ["broken", "shortened", "gone"])
def test_it_is_taken_back_by_the_plan_it_was_started_with_whatever_became_of_the_file(
    folder: Path, lead: Callable[..., subprocess.Popen[str]], damage: str
) -> None:
    abandoned(folder, lead)
    file = folder / "feed.toml"
    text = file.read_text(encoding="utf-8")
    if damage == "broken":
        file.write_text(text.replace("[rollout]", "[rollout"), encoding="utf-8")
    elif damage == "shortened":
        file.write_text(re.sub(r"\n.*share = 0.25.*\n", "\n", text), encoding="utf-8")
    else:
        file.unlink()
    stands = run(folder, "status", "feed.toml")
    assert "stage 25 % (1 of 2)" in stands.stdout, stands.stderr
    taken = run(folder, "rollback", "feed.toml", "--why", "a bad feeling")
    assert taken.returncode == 0, taken.stderr
    assert share_served(folder) == 0


def test_each_rollback_writes_one_incident_whoever_takes_it_back(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    running = lead(*WHERE)
    until(lambda: share_served(folder) == 2_500)
    assert run(folder, "rollback", "feed.toml", "--why", "a bad feeling").returncode == 0
    assert running.wait(20) == 3
    alone = lead(*WHERE)
    until(lambda: share_served(folder) == 2_500)
    alone.kill()
    alone.wait(10)
    assert run(folder, "rollback", "feed.toml", "--why", "another").returncode == 0
    assert run(folder, "rollback", "feed.toml", "--why", "and again").returncode == 0
    said = [each.what for each in parse_change((folder / "feed.toml").read_bytes()).incidents]
    assert [what.split(":")[0] for what in said] == [
        "feed/1 was rolled back at stage 25 %",
        "feed/2 was rolled back at stage 25 %",
    ]


def test_a_rollout_goes_on_where_its_traffic_is(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    abandoned(folder, lead)
    (folder / "other.json").write_text(json.dumps(FLAGS), encoding="utf-8")
    refused = run(folder, "start", "feed.toml", "--flags", "other.json")
    assert refused.returncode == 2
    assert "feed/1 moves" in refused.stderr
    assert run(folder, "rollback", "feed.toml").returncode == 0
    assert share_served(folder) == 0


def test_a_drill_practises_the_way_back(folder: Path) -> None:
    done = run(folder, "drill", "feed.toml", "--flags", "flags.json", "--any-time", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["share"] == 0.25
    assert 0 < record["rollback_seconds"] < 30
    with Database(folder / "fairlead.db") as database:
        (kept,) = Ledger(database).evidence("feed", "rollback_seconds")
        assert round(kept.body.value, 9) == round(record["rollback_seconds"], 9)
    assert share_served(folder) == 0
    assert "drill" in run(folder, "status", "feed.toml").stdout


def test_the_plan_is_shown_before_anything_starts(folder: Path) -> None:
    shown = run(folder, "start", "feed.toml", "--plan")
    assert shown.returncode == 0, shown.stderr
    assert "2,500 of 10,000 slots" in shown.stdout
    assert "feature service" in shown.stdout
    assert not (folder / "fairlead.db").exists()


PROXY = ("--haproxy", "/run/a.sock", "--map", "a.map")
LOG = ("--haproxy-log", "127.0.0.1:5140")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "feed.toml"), "what splits the traffic?"),
        (("start", "feed.toml", "--flags", "flags.json"), "name their folder, --events DIR"),
        (("start", "feed.toml", "--haproxy", "socket", "--events", "events"), "add --map"),
        (("start", "feed.toml", "--flags", "flags.json", *LOG, "--events", "e"), "--haproxy SOCKET"),
        (("start", "feed.toml", *PROXY, *LOG), "add --events DIR"),
        (("start", "feed.toml", *PROXY, "--haproxy-log", "5140", "--events", "e"), "for example 127.0.0.1:5140"),
        (("status", "feed.toml"), "fairlead rollout start begins one"),
        (("drill", "feed.toml", "--any-time", "--flags", "flags.json", "--share", "0.00001"), "serves nobody"),
    ],
    ids=["no traffic", "no events", "no map", "no proxy", "no folder", "no host", "no rollout", "no share"],
)  # fmt: skip
def test_what_is_missing_is_named(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    with Database(folder / "fairlead.db") as database:
        database.migrate()
    refused = run(folder, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_file_that_is_not_filled_in_is_named(folder: Path) -> None:
    (folder / "empty.toml").write_text(new_change("feed"), encoding="utf-8")
    refused = run(folder, "start", "empty.toml", "--plan")
    assert refused.returncode == 2
    assert refused.stderr.startswith("fairlead: empty.toml: metric name '«latency_p99»'")
    assert "fairlead change check empty.toml" in refused.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:5140", False), ("[::1]:5140", False), ("10.0.0.5:5140", True), ("[fd00::5]:5140", True)],
)
def test_a_log_that_others_can_reach_is_said_at_the_start(address: str, said: bool) -> None:
    assert ("whoever can send to it is believed" in open_to(address)) is said


def test_traffic_that_is_named_now_takes_the_place_of_what_was_named_before() -> None:
    before = {"haproxy": "/run/a.sock", "map": "/etc/a.map", "events": "/events", "flag": "feed"}
    assert with_places(before, {"flags": "/f.json"}) == {
        "flags": "/f.json",
        "events": "/events",
        "flag": "feed",
    }
    assert with_places(before, {"events": "/other"}) == {**before, "events": "/other"}
    logged = {**before, "haproxy_log": "127.0.0.1:5140"}
    assert "haproxy_log" not in with_places(logged, {"flags": "/f.json"})
    moved = {"haproxy": "/run/b.sock", "map": "/etc/b.map"}
    assert with_places(logged, moved) == {**logged, **moved}


def held(folder: Path) -> subprocess.Popen[str]:
    """Another writer, which has the store and does not give it back."""
    code = (
        "import sqlite3, time; c = sqlite3.connect('fairlead.db', isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("store", ["held", "gone"])
def test_treatment_is_taken_away_though_the_store_does_not_answer(
    folder: Path, lead: Callable[..., subprocess.Popen[str]], store: str
) -> None:
    abandoned(folder, lead)
    if store == "held":
        holder = held(folder)
        rollback = subprocess.Popen(
            command(folder, "rollback", "feed.toml"), cwd=folder, env=environment(),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: share_served(folder) == 0, 8.0)  # long before the store has answered, or not
        _, said = rollback.communicate(timeout=60)
        holder.kill()
        holder.communicate()
        code = rollback.returncode
    else:
        (folder / "fairlead.db").rename(folder / "away.db")
        nowhere = run(folder, "rollback", "feed.toml")
        assert "--flags FILE" in nowhere.stderr
        taken = run(folder, "rollback", "feed.toml", "--flags", "flags.json")
        code, said = taken.returncode, taken.stderr
        (folder / "away.db").rename(folder / "fairlead.db")
    assert (code, share_served(folder)) == (1, 0)
    assert "nobody is served treatment any more" in said
    again = run(folder, "rollback", "feed.toml")
    assert again.returncode == 0, again.stderr
    assert json.loads(run(folder, "status", "feed.toml", "--json").stdout)["state"] == "rolled_back"


def test_without_its_store_a_rollback_leaves_the_traffic_of_another_change(
    folder: Path, lead: Callable[..., subprocess.Popen[str]]
) -> None:
    abandoned(folder, lead)
    (folder / "fairlead.db").rename(folder / "away.db")
    text = (folder / "feed.toml").read_text(encoding="utf-8")
    (folder / "other.toml").write_text(text.replace('name = "feed"', 'name = "other"'), encoding="utf-8")
    refused = run(folder, "rollback", "other.toml", "--flags", "flags.json")
    assert refused.returncode == 2
    assert "moved by feed/1" in refused.stderr
    assert share_served(folder) == 2_500
