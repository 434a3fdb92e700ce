from __future__ import annotations

import asyncio
import os
import random
import threading
from pathlib import Path

import pytest

from fairlead.clock import ManualClock, settle
from fairlead.errors import BrokenDocument, FailedStatus, FairleadError, InvalidInput, OlderDocument
from fairlead.flags import (
    DeliveryNotice,
    DocumentVersion,
    EvaluationContext,
    FlagDelivery,
    FlagSet,
)
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.prometheus import render
from tests.unit.flags.documents import BROKEN, EMPTY, document, until


class Silent:
    """A source that never answers."""

    kind = "http"
    place = "http://control/flags"

    async def follow(self, delivery: FlagDelivery) -> None:
        await asyncio.Event().wait()


class Says:
    """A source that hands over one document and is then out of reach."""

    kind = "http"
    place = "http://control/flags"

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def follow(self, delivery: FlagDelivery) -> None:
        delivery.receive(self._data, self)
        delivery.report(FailedStatus(f"{self.place}: ConnectError"))
        await asyncio.Event().wait()


def served(delivery: FlagDelivery) -> str:
    return delivery.flags.string("feed", EvaluationContext(), "none")


def make(
    data: bytes = EMPTY, source=None, **options
) -> tuple[FlagDelivery, ManualClock, list[DeliveryNotice]]:
    clock = ManualClock()
    delivery = FlagDelivery(FlagSet.parse(data, source="shipped"), source, clock=clock, **options)
    notices: list[DeliveryNotice] = []
    delivery.listen(notices.append)
    return delivery, clock, notices


def test_a_document_that_was_received_answers_and_names_what_changed():
    delivery, _, notices = make(document("slow", names=("feed", "gone", "same")))
    assert (
        delivery.receive(document("slow", names=("feed", "new", "same")).replace(b"slow", b"fast", 1)) is None
    )
    assert served(delivery) == "fast"
    assert notices == [DeliveryNotice(kind="changed", flags=("feed", "gone", "new"))]


def test_the_same_document_again_changes_nothing_and_is_as_good_as_a_confirmation():
    delivery, clock, notices = make(document())
    clock.advance(30.0)
    assert delivery.receive(document()) is None
    assert notices == []
    assert delivery.status.age_seconds == 0.0


@pytest.mark.parametrize(
    "data", [BROKEN, b"{", b"", b"\xff", b"x" * 1_048_577], ids=["variant", "cut", "empty", "latin", "huge"]
)
def test_a_broken_document_replaces_a_good_one_neither_in_memory_nor_on_disk(data: bytes, tmp_path: Path):
    kept = tmp_path / "flags.kept"
    delivery, _, notices = make(document(), last_known_good=kept)
    assert delivery.receive(document("fast")) is None
    on_disk = kept.read_bytes()
    assert isinstance(delivery.receive(data), BrokenDocument)
    assert served(delivery) == "fast"
    assert kept.read_bytes() == on_disk
    assert delivery.status.refused == 1
    assert [each.kind for each in notices] == ["changed", "error"]
    assert delivery.receive(document("fast")) is None
    assert notices[-1].kind == "ready"
    assert delivery.status.error == ""


def test_a_document_without_a_required_flag_is_refused():
    delivery, _, _ = make(document())
    delivery.flags.require("feed", "string")
    assert isinstance(delivery.receive(EMPTY), InvalidInput)
    assert served(delivery) == "slow"


@pytest.mark.parametrize(
    ("held", "offered", "taken"),
    [
        ((0, 7), (0, 8), True),
        ((0, 7), (0, 7), True),
        ((0, 7), (0, 6), False),
        ((0, 7), (1, 1), True),
        ((1, 1), (0, 900), False),
        ((0, 7), (None, None), False),
        ((None, None), (0, 1), True),
        ((None, None), (None, None), True),
        ((0, 7), (0, "8"), False),
        ((0, "v7"), (0, "v6"), True),
        ((0, 7), (0, True), False),
        ((0, 7), (0, 8.0), False),
        ((0, -5), (None, None), True),
    ],
    ids=str,
)
def test_a_document_goes_forward_by_epoch_and_then_by_version(held, offered, taken):
    delivery, _, _ = make(document("held", epoch=held[0], version=held[1]))
    refused = delivery.receive(document("offered", epoch=offered[0], version=offered[1]))
    assert (refused is None) is taken
    assert served(delivery) == ("offered" if taken else "held")
    if refused is not None:
        assert isinstance(refused, OlderDocument)
        assert "older than" in str(refused)


def test_a_version_reads_as_a_person_would_say_it():
    assert [str(DocumentVersion(*each)) for each in ((0, 0), (0, 7), (2, 7))] == [
        "no version",
        "version 7",
        "epoch 2, version 7",
    ]


async def test_a_service_starts_from_the_last_known_good_when_its_source_is_silent(tmp_path: Path):
    kept = tmp_path / "flags.kept"
    first, clock, _ = make(last_known_good=kept)
    first.receive(document("fast", version=3))
    assert kept.stat().st_mode & 0o777 == 0o600

    second, clock, _ = make(EMPTY, Silent(), last_known_good=kept, start_timeout=2.0)
    clock.set_utc(clock.utc() + 3600.0)
    entering = asyncio.create_task(second.__aenter__())
    await until(lambda: second.status.source != "initial")
    await clock.run_for(2.1)
    await entering
    status = second.status
    assert served(second) == "fast"
    assert (status.source, status.version, status.stale) == ("last_known_good", 3, True)
    assert 3600.0 <= status.age_seconds < 3610.0
    await second.__aexit__(None, None, None)


async def test_a_wall_clock_that_was_set_back_makes_no_age_below_zero_and_none_that_lasts(tmp_path: Path):
    kept = tmp_path / "flags.kept"
    first, clock, _ = make(last_known_good=kept)
    first.receive(document("fast"))
    second, clock, _ = make(last_known_good=kept, stale_after=60.0)
    clock.set_utc(1_000.0)
    async with second:
        assert second.status.age_seconds == 0.0
        clock.set_utc(2e9)
        clock.advance(61.0)
        assert second.status.age_seconds == 61.0
        assert second.status.stale


@pytest.mark.parametrize("harm", ["cut", "flipped", "head", "empty", "no head", "folder", "world"])
async def test_a_damaged_last_known_good_is_refused_and_said(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    kept = tmp_path / "flags.kept"
    first, _, _ = make(last_known_good=kept)
    first.receive(document("fast"))
    whole = kept.read_bytes()
    if harm == "folder":
        kept.unlink()
        kept.mkdir()
    elif harm == "world":
        kept.chmod(0o666)
    else:
        kept.write_bytes(
            {
                "cut": whole[:-1],
                "flipped": whole.replace(b"fast", b"fasd"),
                "head": b"{}\n" + document(),
                "empty": b"",
                "no head": document(),
            }[harm]
        )
    second, _, _ = make(document("shipped"), last_known_good=kept)
    async with second:
        assert served(second) == "shipped"
        assert second.status.source == "initial"
        assert str(kept) in second.status.error
        second.report(FairleadError("the source: ConnectError"))  # which is what the status says from now on
    assert str(kept) in caplog.text


async def test_a_last_known_good_that_is_older_than_what_was_shipped_is_left_alone(tmp_path: Path):
    kept = tmp_path / "flags.kept"
    first, _, _ = make(last_known_good=kept)
    first.receive(document("kept", version=3))
    second, _, notices = make(document("shipped", version=4), last_known_good=kept)
    async with second:
        assert served(second) == "shipped"
        assert (second.status.error, second.status.refused, notices) == ("", 0, [])


def test_a_document_is_kept_once_however_often_it_is_received(tmp_path: Path):
    kept = tmp_path / "flags.kept"
    delivery, clock, _ = make(last_known_good=kept)
    delivery.receive(document("fast"))
    kept.unlink()
    clock.advance(1.0)
    delivery.receive(document("fast"))
    assert not kept.exists()


def test_a_disk_that_cannot_keep_the_document_does_not_stop_it_from_answering(tmp_path: Path):
    delivery, _, _ = make(last_known_good=tmp_path / "no such folder" / "flags.kept")
    assert delivery.receive(document("fast")) is None
    assert served(delivery) == "fast"
    assert "cannot be kept" in delivery.status.error


async def test_flags_turn_stale_after_their_bound_say_why_and_recover():
    delivery, clock, notices = make(EMPTY, Says(document("fast")), stale_after=60.0)
    async with delivery:
        await clock.run_for(59.0)
        assert [each.kind for each in notices] == ["changed"]
        await clock.run_for(2.0)
        assert delivery.status.stale
        assert [each.kind for each in notices] == ["changed", "stale"]
        assert "not confirmed for 60 s: http://control/flags: ConnectError" in notices[-1].message
        assert served(delivery) == "fast"
        await clock.run_for(600.0)
        assert len(notices) == 2
        delivery.confirm(delivery.flags.digest)
        assert notices[-1].kind == "ready"
        await clock.run_for(61.0)
        assert notices[-1].kind == "stale"


def test_confirming_another_document_confirms_nothing():
    delivery, clock, _ = make(document(), Silent())
    clock.advance(10.0)
    delivery.confirm("0" * 64)
    assert (delivery.status.age_seconds, delivery.status.source) == (10.0, "initial")


async def test_entering_waits_for_a_silent_source_no_longer_than_it_was_told():
    delivery, clock, _ = make(document(), Silent(), start_timeout=3.0)
    entering = asyncio.create_task(delivery.__aenter__())
    await until(lambda: clock._timers)
    await clock.run_for(2.9)
    assert not entering.done()
    await clock.run_for(0.2)
    await entering
    await delivery.__aexit__(None, None, None)


async def test_a_source_that_fails_unforeseen_is_started_again(caplog: pytest.LogCaptureFixture):
    starts = []

    class Fails(Silent):
        async def follow(self, delivery: FlagDelivery) -> None:
            starts.append(delivery.clock.now())
            raise ZeroDivisionError

    delivery, clock, _ = make(document(), Fails())
    async with delivery:
        await clock.run_for(11.0)
        assert starts == [0.0, 5.0, 10.0]
        assert "ZeroDivisionError" in delivery.status.error
        assert served(delivery) == "slow"


async def test_cancelled_on_entry_it_leaves_no_task():
    before = asyncio.all_tasks()
    delivery, _, _ = make(document(), Silent())
    entering = asyncio.create_task(delivery.__aenter__())
    await until(lambda: len(asyncio.all_tasks()) >= len(before) + 3)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await settle()
    assert asyncio.all_tasks() == before


async def test_it_is_entered_once_at_a_time():
    delivery, _, _ = make(document())
    async with delivery:
        with pytest.raises(InvalidInput, match="entered already"):
            await delivery.__aenter__()
    async with delivery:
        pass


def test_a_listener_that_raises_is_logged_and_harms_no_other(caplog: pytest.LogCaptureFixture):
    delivery, _, notices = make(document())

    def raises(_: DeliveryNotice) -> None:
        raise RuntimeError

    stop = delivery.listen(raises)
    later: list[DeliveryNotice] = []
    delivery.listen(later.append)
    delivery.receive(document("fast"))
    assert len(notices) == len(later) == 1
    assert "a listener to flag delivery raised" in caplog.text
    stop()
    stop()
    delivery.receive(document("faster"))
    assert caplog.text.count("raised at") == 1


def test_metrics_tell_age_staleness_version_and_refusals():
    delivery, clock, _ = make(document(version=7), stale_after=60.0)
    registry = MetricRegistry()
    delivery.export(registry, name="feed")
    delivery.receive(BROKEN)
    clock.advance(61.0)
    page = render(registry)
    assert 'fairlead_flags_age_seconds{flags="feed"} 61' in page
    assert 'fairlead_flags_stale{flags="feed"} 1' in page
    assert 'fairlead_flags_version{flags="feed"} 7' in page
    assert 'fairlead_flags_refused_total{flags="feed"} 1' in page


@pytest.mark.parametrize(
    "options",
    [
        {"start_timeout": -1.0},
        {"start_timeout": float("nan")},
        {"stale_after": 0.0},
        {"stale_after": float("inf")},
    ],
    ids=str,
)
def test_settings_outside_their_bounds_are_refused(options):
    with pytest.raises(InvalidInput, match="FlagDelivery"):
        FlagDelivery(FlagSet.parse(EMPTY), **options)


def test_without_a_loop_it_follows_on_a_thread_of_its_own():
    delivery = FlagDelivery(FlagSet.parse(EMPTY), Says(document("fast")), start_timeout=10.0)
    with delivery:
        assert served(delivery) == "fast"
    with delivery:
        assert served(delivery) == "fast"


def test_the_owner_of_a_last_known_good_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = tmp_path / "flags.kept"
    first, _, _ = make(last_known_good=kept)
    first.receive(document("fast"))
    stranger = kept.stat().st_uid + 1
    os.chown(kept, stranger, -1) if os.geteuid() == 0 else monkeypatch.setattr(
        os, "geteuid", lambda: stranger
    )
    second, _, _ = make(last_known_good=kept)
    with second:
        assert "others may write it" in second.status.error


def test_documents_that_come_from_many_threads_at_once_only_ever_go_forward(tmp_path: Path):
    kept = tmp_path / "flags.kept"
    delivery, _, _ = make(last_known_good=kept)
    seen: list[int] = []
    delivery.listen(lambda notice: seen.append(delivery.status.version) if notice.kind == "changed" else None)
    versions = list(range(1, 201))
    random.Random(7).shuffle(versions)

    def bring(part: list[int]) -> None:
        for version in part:
            delivery.receive(document(f"v{version}", version=version))

    threads = [threading.Thread(target=bring, args=(versions[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == sorted(set(seen))
    assert served(delivery) == "v200"
    assert kept.read_bytes().endswith(document("v200", version=200))
    assert len(seen) + delivery.status.refused == 200
