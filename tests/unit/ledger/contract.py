"""What the ledger does on every database; `ledger` and `database` come from who runs it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import sqlalchemy as sa

from fairlead.clock import ManualClock
from fairlead.errors import InvalidInput, LedgerBroken, UnknownEvidence
from fairlead.ledger import Decision, Evidence, Head, Ledger
from fairlead.store import Database


def figure(**changed: Any) -> Evidence:
    """Evidence that is valid, but for what is changed."""
    given: dict[str, Any] = {
        "change": "home_feed",
        "metric": "feed_p99",
        "definition": "99th percentile of latency_seconds of load_sample events",
        "statistic": "0.99 quantile",
        "arm": "treatment",
        "value": 0.182,
        "unit": "seconds",
        "side": "client",
        "window": "phase",
        "segment": "all requests",
        "unit_of_analysis": "request",
        "n": 12_000,
        "low": 0.171,
        "high": 0.195,
        "confidence": 0.95,
        "design": "load_test",
        "method": "order statistics",
        "query_sha256": "ab" * 32,
        "data_sha256": "cd" * 32,
        "measured_at_utc_seconds": 1_764_250_000.5,
    }
    return Evidence(**(given | changed))


def decision(*evidence: str, **changed: Any) -> Decision:
    given: dict[str, Any] = {
        "change": "home_feed",
        "decided_by": "ana",
        "verdict": "advance",
        "reason": "p99 fell and nothing else moved.",
        "decided_at_utc_seconds": 1_764_250_060.0,
        "evidence": evidence,
    }
    return Decision(**(given | changed))


class LedgerContract:
    def test_evidence_is_read_back_as_it_was_recorded(self, ledger: Ledger):
        evidence = figure(caveats=("one run\nof an hour", "Überlast – 4 Kerne"))
        id = ledger.record_evidence(evidence)
        assert ledger.evidence_by_ids([id]) == {id: evidence}
        (entry,) = ledger.entries()
        assert (entry.number, entry.id, entry.body) == (1, id, evidence)

    def test_the_same_evidence_recorded_again_is_one_entry(self, ledger: Ledger):
        id = ledger.record_evidence(figure())
        assert ledger.record_evidence(figure()) == id
        assert ledger.record_evidence(figure(n=12_001)) != id
        assert [entry.number for entry in ledger.entries()] == [1, 2]

    def test_a_decision_names_evidence_that_is_there(self, ledger: Ledger):
        id = ledger.record_evidence(figure())
        decided = ledger.record_decision(decision(id))
        assert ledger.record_decision(decision(id)) == decided
        (entry,) = ledger.decisions("home_feed")
        assert (entry.id, entry.body) == (decided, decision(id))

    def test_a_decision_on_unknown_evidence_is_refused_and_not_recorded(self, ledger: Ledger):
        id = ledger.record_evidence(figure())
        decided = ledger.record_decision(decision(id))
        for ids in [("0" * 64,), (id, "f" * 64), (decided,)]:
            with pytest.raises(UnknownEvidence, match=ids[-1]):
                ledger.record_decision(decision(*ids))
        assert ledger.verify().entries == 2

    def test_many_ids_are_looked_up_at_once(self, ledger: Ledger):
        ids = [ledger.record_evidence(figure(n=n)) for n in range(20)]
        shuffled = [*ids[7:], *ids[:7], ids[3]]
        assert list(ledger.evidence_by_ids(shuffled)) == shuffled[:-1]
        assert ledger.evidence_by_ids([]) == {}
        with pytest.raises(UnknownEvidence):
            ledger.evidence_by_ids([*ids, "0" * 64])

    def test_evidence_is_found_by_change_and_by_metric(self, ledger: Ledger):
        ledger.record_evidence(figure())
        ledger.record_evidence(figure(metric="feed_errors"))
        ledger.record_evidence(figure(change="other"))
        ledger.record_decision(decision())
        assert [entry.number for entry in ledger.evidence("home_feed")] == [1, 2]
        assert [entry.number for entry in ledger.evidence("home_feed", "feed_p99")] == [1]
        assert list(ledger.evidence("none")) == list(ledger.decisions("other")) == []

    def test_freezing_the_same_bytes_again_changes_nothing(self, ledger: Ledger):
        first = ledger.freeze("home_feed", b"[change]\n")
        assert (first.version, first.follows, first.content) == (1, None, b"[change]\n")
        assert first.sha256 == hashlib.sha256(b"[change]\n").hexdigest()
        assert ledger.freeze("home_feed", b"[change]\n") == first == ledger.frozen("home_feed")
        assert ledger.verify().entries == 1

    def test_other_bytes_are_a_version_that_follows_the_last_and_the_first_stays(self, ledger: Ledger):
        first = ledger.freeze("home_feed", b"one")
        second = ledger.freeze("home_feed", b"two\x00\xff")
        again = ledger.freeze("home_feed", b"one")
        other = ledger.freeze("other", b"one")
        assert [each.version for each in (first, second, again, other)] == [1, 2, 3, 1]
        assert (second.follows, again.follows, other.follows) == (first.sha256, second.sha256, None)
        assert list(ledger.history("home_feed")) == [first, second, again]
        assert ledger.frozen("home_feed") == again

    def test_a_name_that_was_never_frozen_has_no_version(self, ledger: Ledger):
        assert ledger.frozen("home_feed") is None
        assert list(ledger.history("home_feed")) == []

    def test_entries_are_read_in_pages_and_from_any_number_on(self, ledger: Ledger):
        for n in range(150):
            ledger.record_evidence(figure(n=n))
        assert [entry.body.n for entry in ledger.entries()] == list(range(150))
        assert [entry.number for entry in ledger.entries(after=140)] == list(range(141, 151))
        assert list(ledger.entries(after=150)) == []

    @pytest.mark.parametrize(
        "name",
        [
            "' OR 1=1 --",
            '"; DROP TABLE fairlead_ledger; --',
            "100 % of _users_",
            "back\\slash",
            ":name %(name)s %s ? $1",
            "[bold]red[/bold]",
            "שלום 🚢 café cafe\u0301",
            "\u202egnp.exe",
            "\U0010ffff",
            "x" * 200,
        ],
    )
    def test_any_name_is_a_name(self, ledger: Ledger, name: str):
        ledger.record_evidence(figure(change="other", metric="other"))
        id = ledger.record_evidence(figure(change=name, metric=name, segment=name, definition=name))
        ledger.record_decision(decision(id, change=name))
        ledger.freeze(name, name.encode())
        assert [entry.body.segment for entry in ledger.evidence(name, name)] == [name]
        assert [entry.number for entry in ledger.entries(change=name)] == [2, 3, 4]
        assert ledger.frozen(name).name == name
        assert ledger.verify().problems == ()

    def test_entries_are_narrowed_by_change_and_kind(self, ledger: Ledger):
        ledger.record_evidence(figure())
        ledger.record_decision(decision())
        ledger.freeze("other", b"x")
        ledger.record_evidence(figure(change="other"))

        def numbers(**narrowed: Any) -> list[int]:
            return [entry.number for entry in ledger.entries(**narrowed)]

        assert numbers(change="other") == [3, 4]
        assert numbers(kind="evidence") == [1, 4]
        assert numbers(change="other", kind="evidence", after=3) == [4]
        for wrong in ({"kind": "rumour"}, {"change": ""}, {"after": -1}):
            with pytest.raises(InvalidInput):
                ledger.entries(**wrong)

    def test_an_entry_is_found_by_number_by_id_and_by_its_beginning(self, ledger: Ledger):
        id = ledger.record_evidence(figure())
        assert ledger.entry(1) == ledger.entry(id) == ledger.entry(id[:8])
        assert ledger.entry(2) is None
        assert ledger.entry("0" * 8) is None
        for wrong in ("", "abc", "not hexadecimal", id + "0", id[:7] + "%", -1, True):
            with pytest.raises(InvalidInput):
                ledger.entry(wrong)

    def test_the_whole_chain_verifies_against_every_head_it_had(self, ledger: Ledger):
        heads = [ledger.head()]
        for n in range(5):
            ledger.record_evidence(figure(n=n))
            heads.append(ledger.head())
        assert heads[0] == Head(0, "0" * 64)
        for head in heads:
            report = ledger.verify(Head.parse(str(head)))
            assert (report.is_whole, report.entries, report.head) == (True, 5, heads[-1])

    def test_a_head_of_another_chain_is_told(self, ledger: Ledger):
        ledger.record_evidence(figure())
        ahead = ledger.verify(Head(2, "ab" * 32))
        assert ahead.problems == ("entry 2: the kept head names it, and it is not here: the end was cut off",)
        anew = ledger.verify(Head(1, "ab" * 32))
        assert anew.problems == ("entry 1: is not the one that the kept head names: it was written anew",)

    def test_entries_keep_their_order_when_the_clock_goes_backwards(self, database: Database):
        clock = ManualClock(utc=1_764_250_000.0)
        ledger = Ledger(database, clock=clock)
        ledger.record_evidence(figure(n=1))
        clock.set_utc(-5.0)
        ledger.record_evidence(figure(n=2))
        ledger.freeze("home_feed", b"x")
        entries = list(ledger.entries())
        assert [entry.number for entry in entries] == [1, 2, 3]
        assert [entry.recorded_at_utc_seconds for entry in entries] == [1_764_250_000.0, -5.0, -5.0]
        assert ledger.verify().is_whole

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE fairlead_ledger SET metric = 'better' WHERE number = 1",
            "DELETE FROM fairlead_ledger WHERE number = 2",
            "DELETE FROM fairlead_ledger",
            "UPDATE fairlead_ledger_head SET number = 1",
            "UPDATE fairlead_ledger_head SET hash = 'x'",
            "DELETE FROM fairlead_ledger_head",
            "INSERT INTO fairlead_ledger_head VALUES (2, 2, 'x')",
            "INSERT INTO fairlead_ledger VALUES (4, 'h', '', 'i', 'evidence', '', '')",
            "INSERT INTO fairlead_ledger VALUES (0, 'h', '', 'i', 'evidence', '', '')",
            "INSERT INTO fairlead_ledger VALUES (NULL, 'h', '', 'i', 'evidence', '', '')",
            "INSERT INTO fairlead_ledger SELECT 3, hash, payload, id, kind, change, metric FROM fairlead_ledger",
        ],
    )
    def test_the_database_itself_refuses_to_change_the_past(
        self, database: Database, ledger: Ledger, statement: str
    ):
        ledger.record_evidence(figure(n=1))
        ledger.record_evidence(figure(n=2))
        with pytest.raises(sa.exc.DBAPIError, match=r"ledger"), database.write() as connection:
            connection.exec_driver_sql(statement)
        assert ledger.verify().is_whole
        assert ledger.verify().entries == 2

    def test_nothing_is_added_behind_an_end_that_was_cut_off(self, database: Database, ledger: Ledger):
        for n in range(3):
            ledger.record_evidence(figure(n=n))
        self.without_triggers(database, "DELETE FROM fairlead_ledger WHERE number = 3")
        for attempt in (ledger.head, lambda: ledger.record_evidence(figure(n=9))):
            with pytest.raises(LedgerBroken, match="names entry 3, and the last one is entry 2"):
                attempt()
        report = ledger.verify()
        assert report.problems == (
            "the ledger's own head names entry 3, the last one is 2: the end was cut off",
        )

    def test_an_edited_entry_is_not_handed_out(self, database: Database, ledger: Ledger):
        id = ledger.record_evidence(figure(value=0.182))
        edit = "CAST(replace(CAST(payload AS TEXT), '0.182', '0.012') AS BLOB)"
        if not database.name.endswith(".db"):
            edit = "convert_to(replace(convert_from(payload, 'UTF8'), '0.182', '0.012'), 'UTF8')"
        self.without_triggers(database, f"UPDATE fairlead_ledger SET payload = {edit}")  # noqa: S608 - of these two
        for reading in (
            lambda: list(ledger.entries()),
            lambda: ledger.evidence_by_ids([id]),
            lambda: ledger.entry(1),
        ):
            with pytest.raises(
                LedgerBroken, match="entry 1: it was edited or moved; run fairlead audit verify"
            ):
                reading()
        assert ledger.verify().problems == (
            "entry 1: its bytes do not have its hash: one of the two was edited",
            "entry 1: what it is looked up by is not what it says: a column was edited",
        )

    @staticmethod
    def without_triggers(database: Database, *statements: str) -> None:
        """Runs them as somebody would who owns the database."""
        with database.write() as connection:
            if connection.dialect.name == "sqlite":
                query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
                for name in connection.exec_driver_sql(query).scalars().all():
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
            else:
                for table in ("fairlead_ledger", "fairlead_ledger_head"):
                    connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            for statement in statements:
                connection.exec_driver_sql(statement)
