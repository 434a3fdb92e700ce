"""A flag file that a rollout rewrites: what it serves, what it keeps, what it refuses."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fairlead.errors import InvalidInput, StaleEpoch, TrafficUnavailable
from fairlead.flags import EvaluationContext, FlagSet, Reason
from fairlead.rollout import FlagTraffic, Split
from fairlead.rollout.shared_file import SharedFile
from fairlead.testing import TrafficContract, TrafficTarget

ROOT = Path(__file__).resolve().parents[3]
FILE = """{
  "$schema": "https://flagd.dev/schema/v0/flags.json",
  "flags": {
    "other":   {"state": "ENABLED", "variants": {"a": 1.50, "b": 2e3}, "defaultVariant": "a"},
    "feed": {
      "state": "ENABLED",
      "variants": {
        "control": "control",
        "treatment": "treatment"
      },
      "defaultVariant": "control",
      "metadata": {
        "owner": "fêed-team"
      }
    }
  },
  "metadata": {"version": "7"}
}
"""
FORWARD = Split(share=0.05, audience="internal", rollout="feed/1", epoch=3)
ROLLBACK = Split(share=0.0, rollout="feed/1", epoch=3, latched=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flags.json"
    path.write_text(FILE)
    return path


def text_of(path: Path) -> str:
    return path.read_text()


def overwrite(path: Path, text: str | bytes) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def flag_in(path: Path) -> dict:
    return json.loads(path.read_text())["flags"]["feed"]


def written(path: Path, **flag: object) -> None:
    """The file with the flag's members changed; None takes one out."""
    document = json.loads(FILE)
    document["flags"]["feed"].update(flag)
    document["flags"]["feed"] = {k: v for k, v in document["flags"]["feed"].items() if v is not None}
    path.write_text(json.dumps(document))


def bucket_rule(*slots: list[object], salt: str = "s1", by: str = "targetingKey") -> dict[str, object]:
    return {"bucket": {"by": by, "salt": salt, "algo": "xxh32/10000@1", "slots": list(slots)}}


class TestFlagTraffic(TrafficContract):
    @pytest.fixture
    async def target(self, path: Path) -> TrafficTarget:
        async def serves(unit: str, audience: str) -> bool:
            flags = FlagSet.from_file(path)
            context = EvaluationContext(
                targeting_key=unit, attributes={"audience": audience} if audience else {}
            )
            return flags.string("feed", context, "none") == "treatment"

        return TrafficTarget(FlagTraffic(path, "feed"), FlagTraffic(path, "feed"), salt="feed", serves=serves)


async def test_everything_outside_the_flag_stays_byte_for_byte(path: Path):
    await FlagTraffic(path, "feed").set(FORWARD)
    text = text_of(path)
    start, end = FILE.index('"feed": {'), FILE.index('\n  },\n  "metadata"')
    assert text.startswith(FILE[:start])
    assert text.endswith(FILE[end:])
    flag = json.loads(text)["flags"]["feed"]
    assert list(flag) == ["state", "variants", "defaultVariant", "metadata", "targeting"]
    assert flag["metadata"]["owner"] == "fêed-team"
    assert '\n      "variants": {\n        "control": "control",' in text


async def test_overrides_of_staff_stay_while_a_rollout_moves_the_flag(path: Path):
    document = json.loads(FILE)
    document["$evaluators"] = {"staff": {"if": [{"==": [{"var": "targetingKey"}, "ann"]}, "treatment"]}}
    document["flags"]["feed"]["metadata"]["fairlead_overrides"] = "staff"
    overwrite(path, json.dumps(document))
    traffic = FlagTraffic(path, "feed")
    for split in (FORWARD, ROLLBACK):
        await traffic.set(split)
        assert await traffic.read() == split
        flags = FlagSet.from_file(path)
        ann = flags.evaluate("feed", EvaluationContext(targeting_key="ann"), "none")
        assert (ann.variant, ann.reason) == ("treatment", Reason.TARGETING_MATCH)
    assert flags.string("feed", EvaluationContext(targeting_key="other"), "none") == "control"


@pytest.mark.parametrize(
    "style", [{}, {"indent": 1}, {"indent": "\t"}, {"separators": (",", ":")}], ids=range(4)
)
async def test_a_file_of_any_style_is_written_again_without_drift(path: Path, style: dict):
    overwrite(path, json.dumps(json.loads(FILE), **style))
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    first = text_of(path)
    await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
    await traffic.set(FORWARD)
    assert text_of(path) == first


async def test_both_arms_are_exposed_by_split_and_an_audience_is_not(path: Path):
    await FlagTraffic(path, "feed").set(Split(share=0.5, audience="internal", rollout="feed/1"))
    flags = FlagSet.from_file(path)
    drawn = {flags.evaluate("feed", EvaluationContext(targeting_key=f"u{n}")).reason for n in range(50)}
    staff = EvaluationContext(targeting_key="u1", attributes={"audience": "internal"})
    assert drawn == {Reason.SPLIT}
    assert flags.evaluate("feed", staff).reason is Reason.TARGETING_MATCH


@pytest.mark.parametrize(
    ("one", "other"),
    [("лента", "поиск"), ("feed/a", "feed-a"), ("f" * 70 + "1", "f" * 70 + "2")],
    ids=["letters", "signs", "long"],
)
async def test_two_flags_never_draw_by_one_salt(path: Path, one: str, other: str):
    flag = flag_in(path)
    overwrite(path, json.dumps({"flags": {"feed": flag, one: flag, other: flag}}))
    salts = []
    for name in (one, other, "feed"):
        await FlagTraffic(path, name).set(Split(share=0.5, rollout=f"{name}/1"))
        rule = json.loads(text_of(path))["flags"][name]["targeting"]["bucket"]
        salts.append(rule["salt"])
    assert len(set(salts)) == 3
    assert salts[2] == "feed"


async def test_the_salt_and_the_key_of_the_flag_are_kept(path: Path):
    written(
        path, targeting=bucket_rule(["treatment", 0, 10], ["control", 10, 10_000], salt="mine", by="shop")
    )
    traffic = FlagTraffic(path, "feed")
    assert await traffic.read() == Split(share=0.001)
    await traffic.set(FORWARD)
    rule = flag_in(path)["targeting"]["if"][2]["bucket"]
    assert (rule["salt"], rule["by"], rule["slots"][0]) == ("mine", "shop", ["treatment", 0, 500])


@pytest.mark.parametrize(
    "targeting",
    [
        {"if": [{"in": [{"var": "country"}, ["DE"]]}, bucket_rule(["treatment", 0, 500])]},
        {"if": [{"===": [{"var": "audience"}, "x"]}, "control", bucket_rule(["treatment", 0, 500])]},
        {"if": [{"===": [{"var": "plan"}, "x"]}, "treatment", bucket_rule(["treatment", 0, 500])]},
        {"if": [{"===": [{"var": "audience"}, "x"]}, "treatment"]},
        bucket_rule(["treatment", 500, 1000]),
        bucket_rule(["treatment", 0, 500], ["control", 600, 10_000]),
        bucket_rule(["treatment", 0, 500], ["third", 500, 10_000]),
        {"var": "variant"},
    ],
    ids=range(8),
)
async def test_a_targeting_that_would_be_lost_is_refused_and_stays(path: Path, targeting: dict):
    variants = {"control": "c", "treatment": "t", "third": "x"}
    written(path, targeting=targeting, variants=variants)
    before = text_of(path)
    traffic = FlagTraffic(path, "feed")
    with pytest.raises(
        TrafficUnavailable, match=r"flag 'feed' in .*: its targeting is none that a rollout can move"
    ):
        await traffic.set(FORWARD)
    with pytest.raises(TrafficUnavailable, match="leave it out, or make it"):
        await traffic.read()
    assert text_of(path) == before


async def test_a_rollback_takes_treatment_away_even_from_a_rule_edited_by_hand(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    marks = flag_in(path)["metadata"]
    written(path, targeting={"if": [True, "treatment"]}, metadata=marks)
    with pytest.raises(TrafficUnavailable, match="a rollout can move"):
        await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
    with pytest.raises(TrafficUnavailable, match="a rollout can move"):
        await traffic.set(Split(share=0.0, rollout="feed/2", epoch=3, latched=True))
    await traffic.set(ROLLBACK)
    assert FlagSet.from_file(path).string("feed", EvaluationContext(targeting_key="u"), "none") == "control"
    assert await traffic.read() == ROLLBACK


async def test_treatment_that_came_back_by_hand_after_a_rollback_is_told(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(ROLLBACK)
    marks = flag_in(path)["metadata"]
    written(path, targeting=bucket_rule(["treatment", 0, 500]), metadata=marks)
    with pytest.raises(
        TrafficUnavailable, match="feed/1 was rolled back, yet its targeting lets treatment in"
    ):
        await traffic.read()
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ({"defaultVariant": "treatment"}, "defaultVariant is 'treatment', .* make it 'control'"),
        ({"defaultVariant": None}, "defaultVariant is 'null', .* make it 'control'"),
        ({"variants": {"control": 1, "on": 2}}, "no variant 'treatment'; known: control, on"),
        ({"state": "DISABLED"}, "it is DISABLED"),
        ({"metadata": {"fairlead_killed": True}}, "it is killed, .*take fairlead_killed back first"),
        (
            {"metadata": {"fairlead_epoch": "7"}},
            "in its metadata are not what a rollout writes; remove all three",
        ),
        ({"metadata": {"fairlead_epoch": True}}, "in its metadata are not what a rollout writes"),
        ({"metadata": {"fairlead_latched": 1}}, "in its metadata are not what a rollout writes"),
        ({"metadata": {"fairlead_rollout": 1}}, "in its metadata are not what a rollout writes"),
        ({"metadata": {"fairlead_rollout": "\x1b[2J"}}, "in its metadata are not what a rollout writes"),
        ({"targeting": {"fractional": []}}, "fairlead flags import"),
    ],
    ids=range(11),
)
async def test_a_flag_that_cannot_be_moved_is_refused_with_the_fix(path: Path, flag: dict, words: str):
    written(path, **flag)
    before = text_of(path)
    with pytest.raises(TrafficUnavailable, match=words):
        await FlagTraffic(path, "feed").set(FORWARD)
    assert text_of(path) == before


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\ud800", "x" * 513], ids=range(4))
async def test_a_name_that_is_no_line_is_refused_before_anything_is_written(path: Path, text: str):
    before = text_of(path)
    for split in (Split(share=0.1, rollout=text), Split(share=0.1, audience=text)):
        with pytest.raises(InvalidInput, match="write one printable line"):
            await FlagTraffic(path, "feed").set(split)
    assert text_of(path) == before


async def test_a_disabled_flag_serves_nobody_and_can_be_rolled_back(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    overwrite(
        path,
        text_of(path).replace('"feed": {\n      "state": "ENABLED"', '"feed": {\n      "state": "DISABLED"'),
    )
    assert await traffic.read() == Split(share=0.0, rollout="feed/1", epoch=3)
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK
    assert '"DISABLED"' in text_of(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read .*create it or correct the path"),
        (b"{", "line 1, column 2"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"flags": {}}', "no flag 'feed'; known: none"),
        (b" " * 1_048_577, "larger than 1048576 bytes"),
    ],
    ids=range(5),
)
async def test_a_file_that_cannot_be_used_is_one_error_naming_it(
    path: Path, content: bytes | None, words: str
):
    if content is None:
        os.unlink(path)
    else:
        overwrite(path, content)
    traffic = FlagTraffic(path, "feed")
    for call in (traffic.read(), traffic.set(FORWARD), traffic.set(ROLLBACK)):
        with pytest.raises(TrafficUnavailable, match=rf"flags\.json.*{words}") as caught:
            await call
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"flag": ""},
        {"treatment": ""},
        {"treatment": "control"},
        {"lock_timeout": float("nan")},
        {"path": "a\nb"},
    ],
    ids=range(5),
)
def test_unusable_arguments_are_refused(arguments: dict):
    with pytest.raises(InvalidInput):
        FlagTraffic(**{"path": "flags.json", "flag": "feed", **arguments})


async def test_a_broken_file_is_rolled_back_from_what_was_kept_beside_it(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    overwrite(path, text_of(path)[:-20])  # an editor that does not write beside
    with pytest.raises(TrafficUnavailable):
        await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_what_others_change_in_the_file_is_in_the_rollback_that_is_kept(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    overwrite(path, text_of(path).replace('"version": "7"', '"version": "8"'))
    await traffic.read()
    overwrite(path, b"{")
    await traffic.set(ROLLBACK)
    assert '"version": "8"' in text_of(path)


async def test_a_rollback_leaves_no_spare_and_nothing_half_written(path: Path):
    traffic = FlagTraffic(path, "feed")
    await traffic.set(FORWARD)
    assert {each.name for each in path.parent.iterdir()} == {
        "flags.json",
        "flags.json.lock",
        "flags.json.feed.rollback",
    }
    await traffic.set(ROLLBACK)
    assert {each.name for each in path.parent.iterdir()} == {"flags.json", "flags.json.lock"}


async def test_mode_and_link_of_the_file_stay(path: Path, tmp_path: Path):
    link = tmp_path / "current.json"
    os.chmod(path, 0o640)
    os.symlink("flags.json", link)
    await FlagTraffic(link, "feed").set(FORWARD)
    assert (os.readlink(link), os.stat(path).st_mode & 0o777) == ("flags.json", 0o640)
    assert await FlagTraffic(path, "feed").read() == FORWARD


async def test_a_file_that_is_held_is_refused_but_for_a_rollback(path: Path):
    traffic = FlagTraffic(path, "feed", lock_timeout=0.02)
    await traffic.set(FORWARD)
    with (path.parent / "flags.json.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            TrafficUnavailable, match=r"flags\.json\.lock: held by another process for 0\.02 s"
        ):
            await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
        assert await traffic.read() == FORWARD
        await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_rollbacks_on_a_disk_that_hangs_take_a_bounded_number_of_threads_of_their_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    disk = threading.Event()
    reading = SharedFile.read
    monkeypatch.setattr(SharedFile, "read", lambda file: disk.wait(20) and reading(file))
    traffic = FlagTraffic(path, "feed", lock_timeout=0.0)
    before = threading.active_count()
    try:
        for _ in range(40):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002):
                    await traffic.set(ROLLBACK)
        assert threading.active_count() - before <= 4
        async with asyncio.timeout(0.5):
            assert await asyncio.to_thread(str, 7) == "7"  # others are served
    finally:
        disk.set()
    await traffic.set(ROLLBACK)
    assert await traffic.read() == ROLLBACK


async def test_a_controller_that_was_stopped_in_the_middle_does_not_undo_a_rollback(path: Path, monkeypatch):
    late, other = FlagTraffic(path, "feed"), FlagTraffic(path, "feed", lock_timeout=0.0)
    await late.set(FORWARD)
    keep = late._file.keep_spare

    def stopped_here(data: bytes) -> None:
        keep(data)
        other._set(ROLLBACK)

    monkeypatch.setattr(late._file, "keep_spare", stopped_here)
    with pytest.raises(TrafficUnavailable, match="another process has replaced it meanwhile"):
        await late.set(Split(share=0.3, rollout="feed/1", epoch=3))
    assert await late.read() == ROLLBACK
    with pytest.raises(StaleEpoch):
        await late.set(Split(share=0.3, rollout="feed/1", epoch=3))


FULL = """
import asyncio, resource, sys
from fairlead.errors import NoSpace, TrafficUnavailable
from fairlead.rollout import FlagTraffic, Split

traffic = FlagTraffic(sys.argv[1], "feed")
forward = Split(share=0.05, rollout="feed/1", epoch=3)
rollback = Split(share=0.0, rollout="feed/1", epoch=5, latched=True)

async def main():
    await traffic.set(forward)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        await traffic.set(Split(share=0.3, rollout="feed/1", epoch=3))
    except TrafficUnavailable as error:
        print(error)
        assert isinstance(error.__cause__, NoSpace)
    assert await traffic.read() == forward
    await traffic.set(rollback)
    held = await traffic.read()
    assert (held.share, held.rollout, held.epoch, held.latched) == (0.0, "feed/1", 3, True)
    await traffic.set(rollback)

asyncio.run(main())
"""


def test_a_full_disk_refuses_treatment_and_lets_a_rollback_through(path: Path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}/src", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{path}: File too large; the old file stands")
    assert FlagSet.from_file(path).string("feed", EvaluationContext(targeting_key="u"), "none") == "control"
    assert '"other":   {' in text_of(path)
