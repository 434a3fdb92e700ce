"""What becomes of HAProxy's lines: which are counted, as what, and which are passed over."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import InvalidInput, NoSpace, TrafficUnavailable
from fairlead.rollout.haproxy_log import HaproxyLog
from fairlead.telemetry import BufferedSink

UNIT = "9F86D081884C7D659A2FEAA0C55AD015"


class Lines:
    """A writer that keeps what it is given; or has a full disk."""

    def __init__(self) -> None:
        self.kept: list[dict[str, object]] = []
        self.full = False

    def write(self, lines: list[bytes]) -> int:
        if self.full:
            raise NoSpace("the disk is full")
        self.kept += [msgspec.json.decode(line) for line in lines]
        return len(lines)

    def close(self) -> None:
        pass


@pytest.fixture
def writer() -> Lines:
    return Lines()


@pytest.fixture
def sink(writer: Lines) -> Iterator[BufferedSink]:
    with BufferedSink(writer) as sink:
        yield sink


@pytest.fixture
def log(sink: BufferedSink) -> HaproxyLog:
    return HaproxyLog(sink, flag="site", control="old", treatment="new")


def line(**changed: object) -> bytes:
    given = {
        "time": 1795822914252, "process": "web1/12/1795822908244860", "line": 0, "request": 0, "unit": UNIT,
        "arm": "treatment", "by": "draw", "status": 200, "timers": "1/2/30/47", "end": "----", **changed,
    }  # fmt: skip
    return (
        (
            "fairlead/1 time={time} from={process} line={line} request={request} unit={unit} arm={arm} by={by} "
            'status={status} timers={timers} end={end} | 10.0.0.9:4711 "GET / HTTP/1.1"\n'
        )
        .format(**given)
        .encode()
    )


def events(log: HaproxyLog, sink: BufferedSink, writer: Lines, *lines: bytes) -> list[dict[str, object]]:
    for each in lines:
        log.take(each)
    assert sink.flush()
    return writer.kept


def finished(log: HaproxyLog, sink: BufferedSink, writer: Lines, **changed: object) -> dict[str, object]:
    return events(log, sink, writer, line(**changed))[-1]


def test_a_line_becomes_an_exposure_and_a_request_that_name_the_unit_and_the_arm(log, sink, writer):
    exposure, request = events(log, sink, writer, line())
    assert exposure["event"] == "exposure"
    assert (exposure["flag"], exposure["variant"], exposure["reason"]) == ("site", "new", "SPLIT")
    assert request["event"] == "request_finished"
    assert (request["variant"], request["status"], request["error"]) == ("new", 200, "")
    assert exposure["targeting_key"] == request["targeting_key"] == UNIT.lower()
    assert request["at_utc_seconds"] == 1795822914.252
    assert request["latency_seconds"] == pytest.approx(0.047)
    assert request["first_byte_seconds"] == pytest.approx(0.033)


def test_a_unit_is_exposed_once_in_a_minute_and_again_when_it_was_let_in_as_an_audience_between(
    log, sink, writer
):
    met = [("control", "draw"), ("control", "draw"), ("treatment", "audience"), ("control", "draw")]
    lines = [line(request=n, line=n, arm=arm, by=by) for n, (arm, by) in enumerate(met)]
    told = [each["reason"] for each in events(log, sink, writer, *lines) if each["event"] == "exposure"]
    assert told == ["SPLIT", "TARGETING_MATCH", "SPLIT"]


def test_a_unit_is_exposed_again_in_each_minute_so_that_a_stage_knows_who_stayed_in_control(
    log, sink, writer
):
    # A minute that has begun before the share changed ends within the minute in which a stage counts nobody.
    began = 1795822920  # a whole minute
    after = (0.0, 20.0, 59.9, 60.0, 61.0, 185.0)
    lines = [line(request=n, line=n, arm="control", timers="0/0/0/0", time=int((began + at) * 1000))
             for n, at in enumerate(after)]  # fmt: skip
    lines.append(line(request=9, line=9, arm="treatment", timers="0/0/0/0", time=(began + 186) * 1000))
    told = [each for each in events(log, sink, writer, *lines) if each["event"] == "exposure"]
    assert [(each["variant"], each["at_utc_seconds"] - began) for each in told] == [
        ("old", 0.0), ("old", 60.0), ("old", 185.0), ("new", 186.0),
    ]  # fmt: skip


def test_a_unit_was_drawn_when_its_request_began(log, sink, writer):
    exposure, request = events(log, sink, writer, line(timers="0/1/2/600000"))
    assert request["at_utc_seconds"] == 1795822914.252
    assert exposure["at_utc_seconds"] == 1795822314.252


@pytest.mark.parametrize(
    ("status", "end", "told", "error"),
    [
        (200, "----", 200, ""),
        (404, "----", 404, ""),
        (500, "----", 500, "ServerError"),
        (503, "SC--", 503, "ServerAborted"),
        (504, "sH--", 504, "ServerTimedOut"),
        (200, "SD--", 200, "ServerAborted"),
        (200, "sD--", 200, "ServerTimedOut"),
        (502, "PH--", 502, "ServerError"),
        (403, "PR--", 403, ""),
        (503, "RC--", 503, "ProxyExhausted"),
        (-1, "CH--", 499, ""),
        (-1, "cH--", 499, ""),
        (200, "CD--", 200, ""),
        (-1, "SH--", 0, "ServerAborted"),
        (-1, "D---", 0, "ServerDown"),
    ],
)
def test_who_ended_it_says_whether_it_is_an_error(log, sink, writer, status, end, told, error):
    request = finished(log, sink, writer, status=status, end=end)
    assert (request["status"], request["error"]) == (told, error)


def test_an_answer_that_never_came_has_no_first_byte(log, sink, writer):
    request = finished(log, sink, writer, status=504, timers="0/1/-1/10000", end="sH--")
    assert (request["first_byte_seconds"], request["latency_seconds"]) == (None, 10.0)


def test_who_has_no_key_or_met_neither_arm_is_no_unit(log, sink, writer):
    found = events(
        log,
        sink,
        writer,
        line(request=1, line=1, unit="-", by="-", arm="control"),
        line(request=2, line=2, unit="-", by="audience"),
        line(request=3, line=3, arm="-"),
    )
    assert found == []
    assert (log.stats.unkeyed, log.stats.elsewhere, log.stats.counted) == (2, 1, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"\xff\xfe\x00" * 2_000,
        b"<134>Nov 27 23:42:00 haproxy[1]: " + line(),
        b'10.0.0.9:4711 "GET /' + line(),
        line()[: line().index(b" | ")],
        line().replace(b"draw", b"chance"),
        line().replace(b"unit=9F", b"unit=\n9"),
        line(unit=UNIT + "A"),
        line(unit="u' OR 1=1"),
        line(time="NaN"),
        line(time="9" * 40),
        line(status="2e9"),
        line(status="٢٠٠"),
        line(timers="1/2/3"),
        line(timers="1/2/3/" + "9" * 400),
        line(process="a b"),
        line(end="-- |"),
        line().replace(b"fairlead/1", b"fairlead/2"),
    ],
    ids=range(19),
)
def test_what_is_no_whole_line_of_this_format_is_counted_and_passed_over(log, sink, writer, text):
    assert events(log, sink, writer, text) == []
    assert (log.stats.other, log.stats.lost) == (1, 0)


@pytest.mark.parametrize("kept", range(0, len(line()), 7))
def test_a_torn_line_is_whole_or_nothing(log, sink, writer, kept: int):
    found = events(log, sink, writer, line()[:kept])
    assert [each["event"] for each in found] == ([] if log.stats.other else ["exposure", "request_finished"])
    if found:
        assert (found[-1]["status"], found[-1]["targeting_key"]) == (200, UNIT.lower())


@given(st.binary(max_size=600), st.integers(0, len(line())))
def test_no_bytes_break_it(noise: bytes, at: int):
    with BufferedSink(Lines()) as sink:
        log = HaproxyLog(sink, flag="site")
        log.take(noise)
        log.take(line()[:at] + noise + line()[at:])
        log.take(b"fairlead/1 " + noise)
    assert sum((log.stats.counted, log.stats.other, log.stats.elsewhere, log.stats.unkeyed)) == 3


def test_twice_counts_once_in_any_order_and_what_is_missing_is_counted_as_lost(log, sink, writer):
    lines = [line(line=n, request=3 * n, unit=f"{n:032X}") for n in range(1_000)]
    rng = random.Random(5)
    missing = set(rng.sample(range(1, 999), 40))
    sent = [each for n, each in enumerate(lines) if n not in missing] * 2
    rng.shuffle(sent)
    found = events(log, sink, writer, *sent)
    assert sum(each["event"] == "request_finished" for each in found) == 960
    assert (log.stats.counted, log.stats.duplicates, log.stats.lost) == (960, 960, 40)


def test_what_is_only_late_is_not_lost(log):
    log.take(line(line=0, request=0))
    log.take(line(line=2, request=2))
    assert log.stats.lost == 1
    log.take(line(line=1, request=1))
    assert log.stats.lost == 0


def test_processes_are_told_apart_though_their_numbers_begin_anew(log):
    """A reload, a second HAProxy, and a container in which each worker has the same process id."""
    for process in (
        "web1/12/1795822908244860",
        "web1/13/1795822999244860",
        "web2/12/1795822908244860",
        "web1/12/1",
    ):
        for n in range(100):
            log.take(line(process=process, line=n, request=n))
    assert (log.stats.counted, log.stats.duplicates, log.stats.lost) == (400, 0, 0)


def test_two_lines_with_one_number_are_both_counted_and_hide_no_loss_for_long(log):
    """Threads of one HAProxy read the counter of lines before they raise it."""
    for request, number in enumerate([0, 1, 1, 3, 4]):
        log.take(line(line=number, request=request))
    assert (log.stats.counted, log.stats.lost) == (5, 0)


def test_a_counter_that_begins_anew_at_its_end_has_lost_nothing(log):
    for n in range(2**32 - 5, 2**32 + 5):
        log.take(line(line=n % 2**32, request=n % 2**32))
    assert (log.stats.counted, log.stats.lost) == (10, 0)


def test_events_that_cannot_be_written_leave_no_figure_until_they_can(log, sink, writer):
    writer.full = True
    log.take(line())
    assert sink.flush()
    with pytest.raises(TrafficUnavailable, match="2 of its events could not be written: the disk is full"):
        log.check()
    writer.full = False
    log.take(line(line=1, request=1))
    assert sink.flush()
    log.check()


def test_where_many_lines_are_missing_there_is_no_figure_for_that_look(log):
    def arrive(first: int, last: int, step: int = 1) -> None:
        for n in range(first, last, step):
            log.take(line(line=n, request=n))

    arrive(0, 1_000)
    log.check()
    arrive(1_000, 2_000, 2)
    with pytest.raises(TrafficUnavailable, match="499 of 999 lines did not arrive since the last look"):
        log.check()
    arrive(2_000, 3_000)
    log.check()
    arrive(3_030, 4_000)  # 30 of 1,000 tell no other story
    log.check()
    arrive(4_015, 4_030)  # 15 may only be late
    log.check()


@pytest.mark.parametrize("address", ["", "5140", "localhost:5140", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999",
                                     "127.0.0.1:٥", "/run/log", "127.0.0.1:5140 len 80", "0.0.0.0:5140",
                                     "[::]:5140", "239.1.2.3:5140"], ids=range(12))  # fmt: skip
def test_an_address_that_haproxy_would_read_otherwise_is_refused(log, address: str):
    with pytest.raises(InvalidInput, match="write an IP address and a UDP port"):
        log.listen(address)
