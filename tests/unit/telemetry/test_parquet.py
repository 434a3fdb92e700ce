"""What compaction makes holds every event once, typed, and what it deletes is nowhere else needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import duckdb
import msgspec
import pytest

from fairlead.clock import ManualClock
from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead.telemetry import (
    DeadLetterFile,
    Event,
    EventRegistry,
    EventSchema,
    Exposure,
    Internal,
    JsonLinesSegments,
    LoadSample,
    LoadWindow,
    PolicyActed,
    ReadReport,
    RequestFinished,
    encode_event,
    pin,
    read_dead_letters,
    read_events,
)
from fairlead.telemetry.catalogue import read_catalogue
from fairlead.telemetry.identity import Numbering
from fairlead.telemetry.parquet import compact, parquet_events
from fairlead.telemetry.schema import EVENTS

DAY = 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05


def exposure(at: float, key: str = "u") -> Exposure:
    return Exposure(at_utc_seconds=at, flag="f", variant="on", targeting_key=key, reason="SPLIT")


def segment(directory: Path, *lines: bytes, clock: ManualClock | None = None) -> Path:
    """A finished segment with these lines."""
    writer = JsonLinesSegments(directory, clock=clock or ManualClock(utc=MONDAY))
    writer.write(lines)
    path = writer.current
    assert path is not None
    writer.close()
    return path


def stamped(*events: Event) -> list[bytes]:
    numbering = Numbering()
    return [numbering.stamp(encode_event(event)) for event in events]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def types_in(pattern: Path) -> dict[str, str]:
    table = duckdb.read_parquet(str(pattern))
    return dict(zip(table.columns, map(str, table.types), strict=True))


ONE_OF_EACH: list[Event] = [
    RequestFinished(
        at_utc_seconds=MONDAY + 0.25,
        request_id="r-1",
        service="feed",
        route="/feed/{user}",
        status=200,
        latency_seconds=0.5,
        degraded=True,
        attributes={"region": "eu", "a 'quoted'": "\x00ü\n"},
    ),
    exposure(MONDAY + 1.0),
    PolicyActed(at_utc_seconds=MONDAY, policy="p", action="refused", reason="CircuitOpen", attempt=2**62),
    LoadSample(
        at_utc_seconds=MONDAY,
        phase="p",
        arm="control",
        cycle=0,
        key="k",
        intended_seconds=0.0,
        send_lag_seconds=0.0,
        latency_seconds=0.1,
        status=200,
        degraded=False,
        staleness_seconds=None,
        age_seconds=1.5,
        ending="ok",
    ),
    LoadWindow(at_utc_seconds=MONDAY, phase="p", arm="control", cycle=0, values={"hits": 3.0, "": -0.5}),
]


def test_every_kind_comes_back_as_it_was_from_a_file_of_its_own(tmp_path: Path) -> None:
    segment(tmp_path, *stamped(*ONE_OF_EACH))
    report = compact(tmp_path)
    assert (report.segments, report.events, report.malformed, report.unknown) == (1, 5, 0, 0)
    assert names(tmp_path) == [
        "catalogue.json",
        *(
            f"{kind}-2026-01-05-00000{number}.parquet"
            for number, kind in enumerate(
                ("exposure", "load_sample", "load_window", "policy_acted", "request_finished"), 1
            )
        ),
    ]
    found = list(read_events(tmp_path))
    assert sorted(found, key=repr) == sorted(ONE_OF_EACH, key=repr)


def test_the_columns_have_the_types_of_the_fields(tmp_path: Path) -> None:
    segment(tmp_path, *stamped(*ONE_OF_EACH))
    compact(tmp_path)
    columns = types_in(tmp_path / "request_finished-*.parquet")
    assert columns["at_utc_seconds"] == "DOUBLE"
    assert columns["status"] == "BIGINT"
    assert columns["degraded"] == "BOOLEAN"
    assert columns["route"] == "VARCHAR"
    assert columns["attributes"] == "MAP(VARCHAR, VARCHAR)"
    assert "JSON" not in columns.values()


def test_a_day_is_one_file_however_often_it_is_compacted(tmp_path: Path) -> None:
    for number in range(3):
        segment(tmp_path, *stamped(exposure(MONDAY + number), exposure(MONDAY + DAY + number)))
        compact(tmp_path)
    assert [name for name in names(tmp_path) if name.endswith(".parquet")] == [
        "exposure-2026-01-05-000005.parquet",
        "exposure-2026-01-06-000006.parquet",
    ]
    assert len(list(read_events(tmp_path))) == 6
    days = (
        duckdb.read_parquet(f"{tmp_path}/exposure-2026-01-05-*.parquet").select("at_utc_seconds").fetchall()
    )
    assert days == [(MONDAY + number,) for number in range(3)], "rows are in the order of their time"


def test_an_event_that_was_delivered_twice_is_kept_once_also_across_runs(tmp_path: Path) -> None:
    lines = stamped(exposure(MONDAY), exposure(MONDAY + 1))
    segment(tmp_path, *lines, lines[0])
    assert compact(tmp_path).duplicates == 1
    segment(tmp_path, lines[1], *stamped(exposure(MONDAY + 2)))
    report = compact(tmp_path)
    assert (report.events, report.duplicates) == (1, 1)
    segment(tmp_path, *lines)
    report = compact(tmp_path)
    assert (report.events, report.duplicates, report.files) == (0, 2, ())
    assert [event.at_utc_seconds - MONDAY for event in read_events(tmp_path)] == [0, 1, 2]
    assert [path for path in names(tmp_path) if path.endswith(".jsonl")] == []


def test_lines_without_an_id_are_each_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        segment(tmp_path, encode_event(exposure(MONDAY)), encode_event(exposure(MONDAY)))
        compact(tmp_path)
    assert len(list(read_events(tmp_path))) == 4


def test_an_event_delivered_again_after_its_day_was_compacted_is_read_once(tmp_path: Path) -> None:
    lines = stamped(exposure(MONDAY))
    segment(tmp_path, *lines)
    compact(tmp_path)
    segment(tmp_path, *lines)
    report = ReadReport()
    assert len(list(read_events(tmp_path, report=report))) == 1
    assert report.duplicates == 1


def test_a_segment_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    writer = JsonLinesSegments(tmp_path)
    writer.write(stamped(exposure(MONDAY)))
    assert compact(tmp_path).segments == 0
    writer.write(stamped(exposure(MONDAY + 1)))
    writer.close()
    assert compact(tmp_path).segments == 1
    assert len(list(read_events(tmp_path))) == 2


def test_lines_that_are_no_events_go_to_the_dead_letters_and_are_counted(tmp_path: Path) -> None:
    wide = encode_event(
        PolicyActed(at_utc_seconds=1.0, policy="p", action="refused", reason="r", attempt=2**63)
    )
    path = segment(
        tmp_path, b"{broken", b'{"event":"page_painted","at_utc_seconds":1}', wide, *stamped(exposure(MONDAY))
    )
    with path.open("ab") as file:
        file.write(stamped(exposure(MONDAY))[0][:40])
    report = compact(tmp_path)
    assert (report.events, report.malformed, report.unknown, report.truncated) == (1, 2, 1, 1)
    letters = list(read_dead_letters(tmp_path / "dead-letters"))
    assert [letter.source for letter in letters] == [f"{path.name}:{number}" for number in (1, 2, 3)]
    assert "beyond 64 bits" in letters[2].reason
    assert letters[0].line == b"{broken"
    assert len(list(read_events(tmp_path))) == 1


def test_nothing_is_deleted_when_a_dead_letter_cannot_be_kept(tmp_path: Path) -> None:
    path = segment(tmp_path, *stamped(exposure(MONDAY)), b"{broken")
    with pytest.raises(NoSpace, match="no segment is deleted"):
        compact(tmp_path, dead_letters=DeadLetterFile(tmp_path / "letters", max_bytes=1))
    assert path.exists()
    assert compact(tmp_path).events == 1, "the next run starts afresh"
    assert not (tmp_path / ".compaction").exists()


class Painted(Event, frozen=True, kw_only=True):
    """A kind with fields of every other sort."""

    schema: ClassVar[EventSchema] = EventSchema()

    parts: Internal[list[str]]
    sizes: Internal[dict[str, int]]
    either: Internal[int | str]
    nested: Internal[dict[str, list[int]]]
    maybe: Internal[str | None] = "default"
    level: Internal[int | None] = None


def test_fields_of_any_type_come_back_typed_where_a_column_can_be(tmp_path: Path) -> None:
    registry = EventRegistry([Painted])
    events = [
        Painted(
            at_utc_seconds=MONDAY, parts=["a", "b"], sizes={"x": 1}, either="7", nested={"n": [1]}, maybe=None
        ),
        Painted(at_utc_seconds=MONDAY, parts=[], sizes={}, either=7, nested={}, level=3),
    ]
    segment(tmp_path, *stamped(*events))
    compact(tmp_path, registry=registry)
    assert list(read_events(tmp_path, registry=registry)) == events
    types = types_in(tmp_path / "painted-*.parquet")
    assert types["parts"] == "VARCHAR[]"
    assert types["sizes"] == "MAP(VARCHAR, BIGINT)"
    assert (types["either"], types["nested"]) == ("JSON", "JSON")


def test_fields_of_a_newer_writer_stay_beside_the_known_ones(tmp_path: Path) -> None:
    newer = encode_event(exposure(MONDAY))[:-1] + b',"bucket":17}'
    segment(tmp_path, newer)
    compact(tmp_path)
    [(kept,)] = duckdb.read_parquet(f"{tmp_path}/exposure-*.parquet").select("unknown_fields").fetchall()
    assert msgspec.json.decode(kept) == {"bucket": 17}
    assert list(read_events(tmp_path)) == [exposure(MONDAY)]


def test_a_file_with_the_columns_of_an_older_version_is_left_and_read_beside_the_new_one(
    tmp_path: Path,
) -> None:
    old = tmp_path / "exposure-2026-01-05-000001.parquet"
    duckdb.sql(
        f"COPY (SELECT {MONDAY}::DOUBLE AS at_utc_seconds, 'f' AS flag, 'on' AS variant, 'u' AS targeting_key, "
        f"'SPLIT' AS reason, 'a-1' AS event_id) TO '{old}' (FORMAT parquet)"
    )
    (tmp_path / "catalogue.json").write_bytes(b'{"number":1,"files":["exposure-2026-01-05-000001.parquet"]}')
    again = encode_event(exposure(MONDAY))[:-1] + b',"event_id":"a-1"}'
    segment(tmp_path, again, *stamped(exposure(MONDAY + 1)))
    report = compact(tmp_path)
    assert (report.events, report.duplicates) == (1, 1)
    assert old.exists()
    assert list(read_events(tmp_path)) == [exposure(MONDAY), exposure(MONDAY + 1)]


def test_what_is_pinned_is_neither_compacted_nor_merged(tmp_path: Path) -> None:
    kept = segment(tmp_path, *stamped(exposure(MONDAY)))
    pin(kept, reason="evidence-1")
    assert compact(tmp_path).segments == 0
    segment(tmp_path, *stamped(exposure(MONDAY + 1)))
    [made] = compact(tmp_path).files
    content = (tmp_path / made).read_bytes()
    pin(tmp_path / made, reason="evidence-2")
    again = segment(tmp_path, *stamped(exposure(MONDAY + 2)))
    [beside] = compact(tmp_path).files
    assert not again.exists()
    assert (tmp_path / made).read_bytes() == content
    assert made != beside
    assert sorted(event.at_utc_seconds - MONDAY for event in read_events(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("at", [-1.0, 1e300, 4_102_444_800.0])
def test_a_time_that_no_clock_shows_is_undated_and_not_lost(tmp_path: Path, at: float) -> None:
    segment(tmp_path, *stamped(exposure(at)))
    assert compact(tmp_path).files == ("exposure-undated-000001.parquet",)
    assert list(read_events(tmp_path)) == [exposure(at)]


def test_a_directory_whose_name_looks_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "it's [a] *?"
    segment(odd, *stamped(exposure(MONDAY)))
    compact(odd)
    segment(odd, *stamped(exposure(MONDAY + 1)))
    compact(odd)
    assert len(list(read_events(odd))) == 2


def test_only_the_owner_may_read_what_is_made(tmp_path: Path) -> None:
    segment(tmp_path, *stamped(exposure(MONDAY)))
    compact(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_kind_that_is_not_registered_is_counted_by_readers_and_not_taken_for_absent(tmp_path: Path) -> None:
    segment(tmp_path, *stamped(exposure(MONDAY)))
    compact(tmp_path)
    other = EventRegistry([PolicyActed])
    report = ReadReport()
    assert list(read_events(tmp_path, registry=other, report=report)) == []
    assert report.unknown == 1
    with pytest.raises(BrokenDocument, match="'exposure' is not one of policy_acted"):
        list(read_events(tmp_path, registry=other))


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really"])
def test_a_broken_file_is_reported_with_its_name(tmp_path: Path, content: bytes) -> None:
    segment(tmp_path, *stamped(exposure(MONDAY)))
    [made] = compact(tmp_path).files
    (tmp_path / made).write_bytes(content)
    with pytest.raises(BrokenDocument, match=made):
        list(read_events(tmp_path))
    with pytest.raises(BrokenDocument, match="no kind, day and number"):
        list(parquet_events(tmp_path / "x.parquet", EVENTS))


def test_a_file_that_is_deleted_while_others_are_read_says_to_read_again(tmp_path: Path) -> None:
    for number in range(2):
        segment(tmp_path, *stamped(exposure(MONDAY + number)))
    events = read_events(tmp_path)
    next(events)
    compact(tmp_path)
    with pytest.raises(InvalidInput, match="read again"):
        list(events)
    assert len(list(read_events(tmp_path))) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"files":7}', b'{"later":1}', b"\xff"])
def test_a_broken_catalogue_stops_readers_and_compaction_alike(tmp_path: Path, content: bytes) -> None:
    path = segment(tmp_path, *stamped(exposure(MONDAY)))
    (tmp_path / "catalogue.json").write_bytes(content)
    with pytest.raises(BrokenDocument, match=r"catalogue\.json: not a catalogue"):
        read_events(tmp_path)
    with pytest.raises(BrokenDocument, match=r"catalogue\.json: not a catalogue"):
        compact(tmp_path)
    assert path.exists()


def test_what_a_crash_left_before_and_after_the_moment_is_cleared_by_the_next_run(tmp_path: Path) -> None:
    consumed = segment(tmp_path, *stamped(exposure(MONDAY)))
    [made] = compact(tmp_path).files
    consumed.write_bytes(encode_event(exposure(MONDAY)) + b"\n")
    (tmp_path / "catalogue.json").write_bytes(
        msgspec.json.encode({"number": 1, "files": [made], "consumed": [consumed.name]})
    )
    (tmp_path / "exposure-2026-01-05-000002.parquet").write_bytes(b"half")
    (tmp_path / "not-ours.parquet").write_bytes(b"kept")
    (tmp_path / ".compaction").mkdir()
    (tmp_path / ".compaction" / "exposure-2026-01-05.lines").write_bytes(b"{}\n")
    assert len(list(read_events(tmp_path))) == 1, "readers see neither"
    assert compact(tmp_path).segments == 0
    assert names(tmp_path) == ["catalogue.json", made, "not-ours.parquet"]
    assert read_catalogue(tmp_path).consumed == []


@pytest.mark.parametrize("arguments", [{"memory_bytes": 1}, {"memory_bytes": True}])
def test_a_setting_that_makes_no_sense_is_refused_by_name(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="memory_bytes"):
        compact(tmp_path, **arguments)
    with pytest.raises(InvalidInput, match="no such directory"):
        compact(tmp_path / "missing")
