"""The sink takes events without waiting, and accounts for every one of them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest

from fairlead.errors import InvalidInput, NoSpace
from fairlead.telemetry import (
    BufferedSink,
    Event,
    Exposure,
    MemorySink,
    MetricRegistry,
    NullSink,
    StateChanged,
    decode_event,
    event_id,
)
from fairlead.telemetry.prometheus import render


def exposure(number: int = 0, *, targeting_key: Any = None) -> Exposure:
    return Exposure(
        at_utc_seconds=float(number),
        flag="new_feed",
        variant="on",
        targeting_key=f"user-{number}" if targeting_key is None else targeting_key,
        reason="SPLIT",
    )


class ListWriter:
    """Keeps what it is given, at most `most` lines at a time."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.lines: list[bytes] = []
        self.sizes: list[int] = []
        self.closed = 0

    def write(self, lines: Sequence[bytes]) -> int:
        taken = lines[: self.most]
        self.lines.extend(taken)
        self.sizes.append(len(taken))
        return len(taken)

    def close(self) -> None:
        self.closed += 1

    def events(self) -> list[Event]:
        return [decode_event(line) for line in self.lines]


class HangingWriter(ListWriter):
    """Waits inside each write until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def write(self, lines: Sequence[bytes]) -> int:
        self.entered.set()
        self.release.wait()
        return super().write(lines)


class FailingWriter(ListWriter):
    """Raises while it has errors left, then works."""

    def __init__(self, *errors: Exception, on_close: Exception | None = None) -> None:
        super().__init__()
        self.errors = list(errors)
        self.on_close = on_close

    def write(self, lines: Sequence[bytes]) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return super().write(lines)

    def close(self) -> None:
        super().close()
        if self.on_close is not None:
            raise self.on_close


def test_every_event_reaches_the_writer_once_and_in_order() -> None:
    writer = ListWriter()
    sent = [exposure(number) for number in range(1_000)]
    with BufferedSink(writer) as sink:
        for event in sent:
            sink.emit(event)
    assert writer.events() == sent
    assert (sink.stats.written, sink.stats.emitted, sink.stats.pending) == (1_000, 1_000, 0)
    assert sink.failure is None


def test_flush_returns_once_what_was_emitted_before_it_is_written() -> None:
    writer = ListWriter()
    with BufferedSink(writer, flush_interval=60.0) as sink:
        sink.emit(exposure(1))
        assert sink.flush()
        assert writer.events() == [exposure(1)]
        sink.emit(exposure(2))
        assert sink.flush()
        assert writer.events() == [exposure(1), exposure(2)]


def test_flush_of_a_sink_that_was_never_used_returns_at_once_and_starts_no_thread() -> None:
    before = threading.active_count()
    with BufferedSink(ListWriter()) as sink:
        assert sink.flush(timeout=0.0)
        assert threading.active_count() == before


def test_an_event_wakes_the_thread_that_sleeps_without_a_limit() -> None:
    written = threading.Event()

    class Telling(ListWriter):
        def write(self, lines: Sequence[bytes]) -> int:
            written.set()
            return super().write(lines)

    with BufferedSink(Telling(), flush_interval=0.0001) as sink:
        for number in range(10):
            sink.emit(exposure(number))
            assert written.wait(timeout=10.0)
            written.clear()
            # Only a thread that sleeps for good shows whether it is woken; nothing public tells that it does.
            while not sink._idle:
                written.wait(timeout=0.0001)


def test_an_event_that_comes_while_the_thread_falls_asleep_is_not_left_behind() -> None:
    written = threading.Event()

    class Telling(ListWriter):
        def write(self, lines: Sequence[bytes]) -> int:
            written.set()
            return super().write(lines)

    class EmittingWhenFoundEmpty(deque[Event]):
        """Emits once, right after the thread has seen that there is nothing to do and before it acts on that."""

        armed = True

        def __bool__(self) -> bool:
            found = len(self) > 0
            if self.armed and not found and threading.current_thread() is sink._thread:
                self.armed = False
                sink.emit(exposure(7))
            return found

    sink = BufferedSink(Telling(), flush_interval=0.0001)
    sink._buffer = EmittingWhenFoundEmpty()
    sink.emit(exposure(1))
    assert written.wait(timeout=10.0)
    written.clear()
    assert written.wait(timeout=10.0)
    assert sink.close()
    assert sink.stats.written == 2


def test_a_batch_holds_at_most_the_number_asked_for() -> None:
    writer = ListWriter()
    with BufferedSink(writer, batch=10) as sink:
        for number in range(95):
            sink.emit(exposure(number))
    assert max(writer.sizes) <= 10
    assert sum(writer.sizes) == 95


def test_a_full_buffer_drops_the_newest_and_counts_it() -> None:
    writer = HangingWriter()
    sink = BufferedSink(writer, capacity=3, flush_interval=0.001)
    sink.emit(exposure(0))
    assert writer.entered.wait(timeout=10.0)  # from here on the thread is stuck and nobody empties the buffer
    for number in range(1, 11):
        sink.emit(exposure(number))
    assert (sink.stats.dropped, sink.stats.pending, sink.stats.emitted) == (7, 4, 11)
    writer.release.set()
    assert sink.close()
    assert writer.events() == [exposure(number) for number in range(4)]
    assert (sink.stats.written, sink.stats.dropped, sink.stats.pending) == (4, 7, 0)


def test_a_writer_that_hangs_costs_flush_and_close_their_timeout_and_no_more() -> None:
    writer = HangingWriter()
    sink = BufferedSink(writer, flush_interval=0.001)
    sink.emit(exposure(1))
    assert writer.entered.wait(timeout=10.0)
    assert not sink.flush(timeout=0.01)
    assert not sink.close(timeout=0.01)
    assert sink.stats.pending == 1
    assert writer.closed == 0, "a writer must not be closed under a thread that is inside it"
    writer.release.set()
    assert sink.close()
    assert writer.closed == 1
    assert writer.events() == [exposure(1)]


def test_close_is_idempotent_and_what_comes_after_it_is_dropped_and_counted() -> None:
    writer = ListWriter()
    sink = BufferedSink(writer)
    sink.emit(exposure(1))
    assert sink.close()
    assert sink.close()
    sink.emit(exposure(2))
    assert sink.flush(timeout=0.0)
    assert writer.closed == 1
    assert (sink.stats.written, sink.stats.dropped) == (1, 1)


def test_closing_a_sink_that_was_never_used_closes_its_writer_without_a_thread() -> None:
    writer = ListWriter()
    before = threading.active_count()
    sink = BufferedSink(writer)
    assert sink.close()
    assert sink.close()
    assert writer.closed == 1
    assert threading.active_count() == before


def test_a_writer_that_fails_loses_its_batch_keeps_the_first_failure_and_is_tried_again() -> None:
    writer = FailingWriter(NoSpace("first"), OSError("second"))
    with BufferedSink(writer) as sink:
        for number in range(3):
            sink.emit(exposure(number))
            assert sink.flush()
    assert isinstance(sink.failure, NoSpace)
    assert str(sink.failure) == "first"
    assert (sink.stats.lost, sink.stats.written, sink.stats.emitted) == (2, 1, 3)
    assert writer.events() == [exposure(2)]


def test_a_failure_does_not_keep_the_events_alive_that_it_cost() -> None:
    class Payload(str):
        __slots__ = ("__weakref__",)

    key = Payload("user")
    gone = weakref.ref(key)
    with BufferedSink(FailingWriter(NoSpace("full"))) as sink:
        sink.emit(exposure(targeting_key=key))
        del key
        assert sink.flush()
    assert sink.failure is not None
    assert gone() is None


def test_an_error_while_the_writer_closes_is_kept_and_not_raised() -> None:
    sink = BufferedSink(FailingWriter(on_close=OSError("cannot sync")))
    sink.emit(exposure())
    assert sink.close()
    assert str(sink.failure) == "cannot sync"
    assert sink.stats.written == 1


def test_a_writer_that_takes_a_part_is_asked_for_the_rest() -> None:
    writer = ListWriter(most=3)
    with BufferedSink(writer) as sink:
        for number in range(10):
            sink.emit(exposure(number))
    assert writer.events() == [exposure(number) for number in range(10)]
    assert sink.stats.written == 10


def test_a_writer_that_claims_to_have_taken_none_cannot_stop_the_thread_for_ever() -> None:
    class Lazy(ListWriter):
        def write(self, lines: Sequence[bytes]) -> int:
            return 0

    sink = BufferedSink(Lazy())
    sink.emit(exposure())
    assert sink.close()


def test_an_event_that_cannot_be_encoded_is_lost_and_those_around_it_are_not() -> None:
    writer = ListWriter()
    with BufferedSink(writer) as sink:
        sink.emit(exposure(1))
        sink.emit(exposure(2, targeting_key=object()))
        sink.emit(exposure(3))
    assert writer.events() == [exposure(1), exposure(3)]
    assert sink.stats.lost == 1
    assert isinstance(sink.failure, TypeError)


def test_an_event_with_a_lone_surrogate_is_lost_and_counted() -> None:
    with BufferedSink(ListWriter()) as sink:
        sink.emit(exposure(targeting_key="\ud800"))
    assert sink.stats.lost == 1


def test_an_event_beyond_the_size_limit_is_lost_and_the_failure_names_its_size() -> None:
    writer = ListWriter()
    with BufferedSink(writer, max_event_bytes=1_000) as sink:
        sink.emit(exposure(1, targeting_key="x" * 1_000_000))
        sink.emit(exposure(2))
    assert writer.events() == [exposure(2)]
    assert isinstance(sink.failure, InvalidInput)
    assert "Exposure of 1000" in str(sink.failure)


def test_emit_never_raises_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = ListWriter()
    sink = BufferedSink(writer)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        sink.emit(exposure(1))
        sink.emit(exposure(2))
        assert sink.stats.pending == 2
        assert str(sink.failure) == "can't start new thread"
        assert sink.close()
    assert writer.events() == [exposure(1), exposure(2)]
    assert writer.closed == 1


def test_threads_that_emit_together_lose_nothing() -> None:
    writer = ListWriter()
    start = threading.Barrier(4)

    def emit_many(first: int, sink: BufferedSink) -> None:
        start.wait()
        for number in range(first, first + 2_000):
            sink.emit(exposure(number))

    with BufferedSink(writer, flush_interval=0.001) as sink:
        threads = [threading.Thread(target=emit_many, args=(base * 2_000, sink)) for base in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sink.flush()
        assert sink.stats.written == 8_000
    assert {event.at_utc_seconds for event in writer.events()} == set(range(8_000))


@pytest.mark.parametrize("setting", ["capacity", "batch", "max_event_bytes"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, float("nan"), 2**40, "9"])
def test_a_count_that_makes_no_sense_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{setting} = "):
        BufferedSink(ListWriter(), **{setting: value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True])
def test_a_flush_interval_that_makes_no_sense_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="flush_interval = "):
        BufferedSink(ListWriter(), flush_interval=value)


def test_the_memory_sink_keeps_order_and_finds_events_by_kind() -> None:
    sink = MemorySink()
    change = StateChanged(at_utc_seconds=1.0, component="limit", name="x", previous="1", current="2")
    sink.emit(exposure(1))
    sink.emit(change)
    sink.emit(exposure(2))
    assert sink.events == [exposure(1), change, exposure(2)]
    assert sink.of(Exposure) == [exposure(1), exposure(2)]


def test_the_null_sink_takes_anything_and_keeps_nothing() -> None:
    sink = NullSink()
    sink.emit(exposure())
    assert not hasattr(sink, "__dict__") or vars(sink) == {}


class TendedListWriter(ListWriter):
    """Wants to be looked after, as often as it is told to want it."""

    def __init__(self, *pauses: float) -> None:
        super().__init__()
        self.pauses = list(pauses)
        self.tended = 0
        self.enough = threading.Event()

    def tend(self) -> float:
        self.tended += 1
        if not self.pauses:
            self.enough.set()
            return inf
        return self.pauses.pop(0)


def test_an_idle_writer_is_tended_as_often_as_it_asks_and_then_left_alone() -> None:
    writer = TendedListWriter(0.0, 0.001, -1.0, 0.003)
    with BufferedSink(writer, flush_interval=0.001) as sink:
        sink.emit(exposure(1))
        assert writer.enough.wait(timeout=10.0)
        assert sink.stats.written == 1


def test_a_writer_that_fails_while_it_is_tended_is_remembered_and_goes_on_writing() -> None:
    class Failing(TendedListWriter):
        def tend(self) -> float:
            super().tend()
            raise OSError("cannot tend")

    writer = Failing()
    with BufferedSink(writer, flush_interval=0.001) as sink:
        sink.emit(exposure(1))
        assert writer.enough.wait(timeout=10.0)
        sink.emit(exposure(2))
    assert str(sink.failure) == "cannot tend"
    assert sink.stats.written == 2


def test_every_line_has_an_id_of_its_own_and_no_line_that_failed_uses_one_up() -> None:
    writer = ListWriter()
    with BufferedSink(writer) as sink:
        sink.emit(exposure(1))
        sink.emit(exposure(2, targeting_key=object()))
        sink.emit(exposure(3))
    ids = [event_id(line) for line in writer.lines]
    assert [each.rpartition("-")[2] for each in ids] == ["1", "2"]
    assert len({each.rpartition("-")[0] for each in ids}) == 1


def test_the_counts_are_shown_to_a_scraper() -> None:
    registry = MetricRegistry()
    with BufferedSink(ListWriter()) as sink:
        sink.export(registry, name="audit")
        sink.emit(exposure(1))
        sink.emit(exposure(2, targeting_key=object()))
        assert sink.flush()
    sink.emit(exposure(3))
    shown = render(registry)
    for what in ("written", "dropped", "lost"):
        assert f'fairlead_events_total{{sink="audit",what="{what}"}} 1.0\n' in shown
    assert 'fairlead_events_pending{sink="audit"} 0.0\n' in shown
