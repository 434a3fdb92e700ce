"""Whatever is done to the table by somebody who drops the triggers, `verify` finds it.

One chain is made once; each example works on a copy of its rows. What the ledger cannot find without a kept head is
written out here too, so that the docs can say so.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.ledger import Head, Ledger
from fairlead.ledger.entry import GENESIS, identified, open_payload, sealed
from fairlead.store import Database
from tests.unit.ledger.contract import decision, figure

COUNT = 12
COLUMNS = ("number", "hash", "payload", "id", "kind", "change", "metric")
Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "fairlead.db"
    with Database(path) as database:
        database.migrate()
        ledger = Ledger(database)
        for n in range(COUNT // 3):
            id = ledger.record_evidence(figure(n=n))
            ledger.record_decision(decision(id))
            ledger.freeze("home_feed", b"version %d" % n)
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    connection.close()
    return path


@pytest.fixture(scope="module")
def rows(path: Path) -> list[Row]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT * FROM fairlead_ledger ORDER BY number").fetchall()
    connection.close()
    assert len(found) == COUNT
    return found


@pytest.fixture(scope="module")
def database(path: Path) -> Iterator[Database]:
    with Database(path) as database:
        yield database


def head_of(rows: list[Row]) -> Head:
    return Head(rows[-1][0], rows[-1][1]) if rows else Head(0, GENESIS)


def is_found(
    database: Database, path: Path, rows: list[Row], expect: Head | None, head: Head | None = None
) -> bool:
    """Whether a ledger of these rows, in which the ledger's own head is `head`, fails its audit."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM fairlead_ledger")
        connection.executemany("INSERT INTO fairlead_ledger VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        if head is not None:
            connection.execute(
                "UPDATE fairlead_ledger_head SET number = ?, hash = ?", (head.number, head.hash)
            )
    connection.close()
    try:
        return not Ledger(database).verify(expect).is_whole
    except BrokenDocument:
        return True


def chained_anew(rows: list[Row], after: int) -> list[Row]:
    """The rows, of which those beyond `after` are computed anew, as one would who knows how."""
    chain = rows[:after]
    for row in rows[after:]:
        body = msgspec.json.encode(open_payload(row[2]).body)
        head, payload = sealed(body, head_of(chain), 1.0)
        chain.append((head.number, head.hash, payload, hashlib.sha256(body).hexdigest(), *row[4:]))
    return chain


places = st.integers(0, COUNT - 1)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_an_untouched_chain_is_whole(database: Database, path: Path, rows: list[Row]):
    assert not is_found(database, path, rows, head_of(rows), head_of(rows))


@fuzz
@given(place=places, column=st.integers(1, 6), data=st.data())
def test_any_edit_of_any_field_is_found(
    database: Database, path: Path, rows: list[Row], place: int, column: int, data: st.DataObject
):
    old = rows[place][column]
    pieces = st.one_of(
        st.text(max_size=20), st.binary(max_size=20), st.integers(-5, 2**62), st.floats(allow_nan=False)
    )
    flipped = st.integers(0, max(0, len(old) - 1)).map(lambda at: _flip(old, at))
    others = st.sampled_from([row[column] for row in rows])
    new = data.draw(st.one_of(pieces, flipped, others).filter(lambda value: value != old))
    row = tuple(new if index == column else value for index, value in enumerate(rows[place]))
    edited = [*rows[:place], row, *rows[place + 1 :]]
    try:
        assert is_found(database, path, edited, None, head_of(rows))
    except sqlite3.IntegrityError:  # an id that is there already
        assert column == 3


@fuzz
@given(gone=st.sets(places, min_size=1))
def test_any_deletion_is_found(database: Database, path: Path, rows: list[Row], gone: set[int]):
    left = [row for place, row in enumerate(rows) if place not in gone]
    assert is_found(database, path, left, None, head_of(rows))


@fuzz
@given(order=st.permutations(range(COUNT)))
def test_any_other_order_is_found(database: Database, path: Path, rows: list[Row], order: list[int]):
    moved = [(number, *rows[place][1:]) for number, place in enumerate(order, 1)]
    changed = moved != rows
    assert is_found(database, path, moved, None, head_of(moved)) == changed


@fuzz
@given(left=st.integers(0, COUNT - 1))
def test_a_cut_at_the_end_is_found_by_the_ledgers_own_head(
    database: Database, path: Path, rows: list[Row], left: int
):
    assert is_found(database, path, rows[:left], None, head_of(rows))


@fuzz
@given(left=st.integers(0, COUNT - 1))
def test_a_cut_with_the_head_moved_back_is_found_by_a_kept_head_alone(
    database: Database, path: Path, rows: list[Row], left: int
):
    cut = rows[:left]
    assert not is_found(database, path, cut, None, head_of(cut))
    assert is_found(database, path, cut, head_of(rows), head_of(cut))


@fuzz
@given(after=st.integers(0, COUNT - 1))
def test_a_chain_computed_anew_is_found_by_a_kept_head_alone(
    database: Database, path: Path, rows: list[Row], after: int
):
    anew = chained_anew(rows, after)
    assert not is_found(database, path, anew, None, head_of(anew))
    assert is_found(database, path, anew, head_of(rows), head_of(anew))
    assert not is_found(database, path, anew, head_of(rows[:after]), head_of(anew))


@fuzz
@given(place=st.integers(0, COUNT), number=st.integers(-3, COUNT + 3), source=places)
def test_any_insertion_is_found(
    database: Database, path: Path, rows: list[Row], place: int, number: int, source: int
):
    shifted = [(row[0] + (row[0] > place), *row[1:]) for row in rows]
    _, payload = sealed(b'{"kind":"decision"}', Head(place, "ab" * 32), 1.0)
    added = (place + 1, "ab" * 32, payload, "cd" * 32, "decision", "home_feed", "")
    assert is_found(database, path, [*shifted, added], None, None)
    if number not in range(1, COUNT + 1):
        again = (number, *rows[source][1:3], "cd" * 32, *rows[source][4:])
        assert is_found(database, path, [*rows, again], None, None)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=250), number=st.floats() | st.integers())
def test_whatever_is_accepted_comes_back_as_it_was(text: str, number: float):
    try:
        evidence = figure(
            definition=text, caveats=(text,), value=number, low=None, high=None, confidence=None
        )
    except InvalidInput:
        return
    id, encoded = identified(evidence)
    entry = open_payload(sealed(encoded, Head(0, GENESIS), 1.0)[1])
    assert (entry.body, entry.id) == (evidence, id)


def _flip(value: str | bytes, at: int) -> str | bytes:
    if isinstance(value, bytes):
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
    return value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if value else "x"
