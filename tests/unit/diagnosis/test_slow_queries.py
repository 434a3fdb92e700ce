"""Slow statements: kept within a bound and without values; and plans read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.diagnosis import SlowQueries, normalised_statement
from fairlead.diagnosis.query_plan import postgres_plan, sqlite_plan
from fairlead.errors import InvalidInput

VALUES = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=30
)


class TestTheStatement:
    @pytest.mark.parametrize(
        ("statement", "style", "kept"),
        [
            (
                "SELECT a -- for Ann\nFROM t /* x /* y */ z */ WHERE b = ?;",
                "qmark",
                "SELECT a FROM t WHERE b = $1",
            ),
            ("SELECT x FROM t WHERE id IN (?, ?, ?)", "qmark", "SELECT x FROM t WHERE id IN ($1)"),
            (
                "SELECT x FROM t WHERE id IN (%(a_1)s::INTEGER, %(a_2)s::INTEGER) AND j ? 'key'",
                "pyformat",
                "SELECT x FROM t WHERE id IN ($1::INTEGER) AND j ? $2",
            ),
            (
                "SELECT x FROM t WHERE a LIKE '%%x' AND b %% 2 = %s",
                "format",
                "SELECT x FROM t WHERE a LIKE $1 AND b % $2 = $3",
            ),
            (
                "SELECT x FROM t WHERE a = :a AND b = c::int",
                "named",
                "SELECT x FROM t WHERE a = $1 AND b = c::int",
            ),
            ("SELECT x FROM t WHERE a = $7", "numeric_dollar", "SELECT x FROM t WHERE a = $1"),
            ("INSERT INTO t VALUES (1, 'a'), (2, 'b')", "qmark", "INSERT INTO t VALUES ($1, $2)"),
            ("SELECT -5, a-3 FROM t1 WHERE b > - 2.5e3", "qmark", "SELECT $1, a-$2 FROM t1 WHERE b > $3"),
            (
                "SELECT cast(a AS numeric(10, 2)) FROM t GROUP BY 1, 2 ORDER BY 3 DESC, 1 LIMIT 10",
                "qmark",
                "SELECT cast(a AS numeric(10, 2)) FROM t GROUP BY 1, 2 ORDER BY 3 DESC, 1 LIMIT $1",
            ),
            ("SELECT now() - interval '1 day'", "pyformat", "SELECT now() - $1::interval"),
            (r"SELECT E'it\'s', 'it''s', $tag$it's$tag$, $$x$$", "pyformat", "SELECT $1, $2, $3, $4"),
            (
                'SELECT * FROM "Order Lines" WHERE "ann@x.org" = b',
                "qmark",
                'SELECT * FROM "Order Lines" WHERE $1 = b',
            ),
        ],
    )
    def test_has_numbers_in_place_of_values(self, statement: str, style: str, kept: str) -> None:
        assert normalised_statement(statement, style) == kept

    @given(VALUES, st.sampled_from(["'", "$$", "--", "/*"]))
    def test_holds_nothing_of_what_was_written_as_a_value(self, value: str, quote: str) -> None:
        secret = f"s3cret{value}"
        written = {
            "'": "'" + secret.replace("'", "''") + "'",
            "$$": "$q$" + secret.replace("$", "") + "$q$",
            "--": "--" + secret.replace("\n", "") + "\n",
            "/*": "/*" + secret.replace("*/", "") + "*/",
        }[quote]
        assert "s3cret" not in normalised_statement(f"SELECT a FROM t WHERE b = {written} ORDER BY c")  # noqa: S608  # sent nowhere

    @given(
        st.text(max_size=200),
        st.sampled_from(["qmark", "format", "pyformat", "named", "numeric", "numeric_dollar"]),
    )
    def test_of_any_text_is_a_text(self, statement: str, style: str) -> None:
        assert "\0" not in normalised_statement(statement, style)

    @pytest.mark.parametrize("cut", ["'s3cret", "E's3cret", "$q$s3cret", "/* s3cret", '"s3cret@x'])
    def test_that_was_cut_off_in_a_value_shows_none_of_it(self, cut: str) -> None:
        assert "s3cret" not in normalised_statement(f"SELECT a FROM t WHERE b = {cut}")  # noqa: S608  # sent nowhere

    def test_too_long_is_cut_and_says_so(self) -> None:
        found = normalised_statement("SELECT " + ", ".join(f"column_{n}" for n in range(5_000)))
        assert len(found) < 10_100
        assert found.endswith("…")

    def test_in_a_style_that_is_none_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="paramstyle"):
            normalised_statement("SELECT 1", "dollar")


class TestWhatIsKept:
    def test_runs_of_one_statement_with_other_values_are_one(self) -> None:
        slow = SlowQueries()
        slow.add("SELECT a FROM t WHERE b = 'x'", 0.2)
        slow.add("SELECT a FROM t  WHERE b = 'y'", 0.5)
        [query] = slow.slowest()
        assert (query.slow_runs, query.slow_seconds, query.slowest_seconds) == (2, 0.7, 0.5)

    def test_a_run_in_time_is_not_looked_at(self) -> None:
        slow = SlowQueries(slower_than=0.1)
        slow.add("SELECT 1", 0.099)
        slow.add("SELECT 1", float("nan"))
        assert slow.slowest() == []

    def test_the_slowest_stay_when_there_are_too_many(self) -> None:
        slow = SlowQueries(capacity=3)
        for seconds in (0.5, 0.2, 0.9, 0.3, 0.7, 0.1):
            slow.add(f"SELECT a{seconds * 10:.0f} FROM t", seconds)  # noqa: S608  # sent nowhere
        assert [query.slowest_seconds for query in slow.slowest()] == [0.9, 0.7, 0.5]
        slow.clear()
        assert slow.slowest() == []

    def test_a_statement_that_is_kept_stays_when_a_run_of_it_was_less_slow(self) -> None:
        slow = SlowQueries(capacity=2)
        for name, seconds in (("a", 0.9), ("b", 0.5), ("a", 0.2), ("b", 0.2)):
            slow.add(f"SELECT {name} FROM t", seconds)  # noqa: S608  # sent nowhere
        assert [(query.slow_runs, query.slowest_seconds) for query in slow.slowest()] == [(2, 0.9), (2, 0.5)]

    def test_what_explaining_sends_is_no_query_of_the_service(self) -> None:
        slow = SlowQueries()
        for statement in (
            "EXPLAIN SELECT 1",
            " prepare x AS SELECT 1",
            "SET LOCAL a = 1",
            "PRAGMA query_only",
        ):
            slow.add(statement, 5.0)
        assert slow.slowest() == []

    @pytest.mark.parametrize(
        "setting", [{"slower_than": 0.0}, {"slower_than": float("nan")}, {"capacity": 0}]
    )
    def test_a_setting_out_of_bounds_is_refused(self, setting: dict[str, float]) -> None:
        with pytest.raises(InvalidInput, match="SlowQueries"):
            SlowQueries(**setting)


def scan(table: str, rows: float, **more: object) -> dict[str, object]:
    return {"Node Type": "Seq Scan", "Relation Name": table, "Schema": "s", "Plan Rows": rows, **more}


def node(kind: str, rows: float, *plans: dict[str, object], **more: object) -> dict[str, object]:
    return {"Node Type": kind, "Plan Rows": rows, "Plans": list(plans), **more}


def troubles(plan: dict[str, object], **tables: float | None) -> tuple[str, ...]:
    known = {f"s.{name}": rows for name, rows in tables.items()}
    return postgres_plan("SELECT 1", [{"Plan": plan}], known).troubles


class TestAPlanOfPostgres:
    def test_says_how_few_of_a_tables_rows_pass_the_filter(self) -> None:
        [said] = troubles(scan("big", 12.0, Filter="(a = $1)"), big=1e6)
        assert said == "full scan of table s.big of about 1,000,000 rows for about 12 that pass (a = $1)"

    def test_counts_the_rows_of_all_processes_of_a_parallel_scan(self) -> None:
        shared = scan("big", 100_000.0, Filter="(a > $1)", **{"Parallel Aware": True})
        [said] = troubles(node("Gather", 300_000.0, shared, **{"Workers Planned": 2}), big=1e6)
        assert "about 300,000 of them, which no index would spare" in said

    def test_puts_a_scan_that_is_repeated_before_one_that_is_not(self) -> None:
        inner = scan("big", 50_000.0)
        plan = node("Nested Loop", 1e6, scan("other", 5_000.0, Filter="x"), node("Materialize", 5e4, inner))
        said = troubles(plan, big=50_000.0, other=200_000.0)
        assert said[0] == "scans table s.big of about 50,000 rows anew for each of about 5,000 rows"
        assert any("full scan of table s.other" in each for each in said)

    def test_tells_a_subquery_of_each_row_from_one_that_is_hashed(self) -> None:
        below = scan("big", 5_000.0, **{"Parent Relationship": "SubPlan", "Subplan Name": "SubPlan 1"})
        assert (
            "anew"
            in troubles(scan("outer", 900.0, Filter="(SubPlan 1)", Plans=[below]), big=5e3, outer=900.0)[0]
        )
        hashed = troubles(
            scan("outer", 900.0, Filter="(hashed SubPlan 1)", Plans=[below]), big=5e3, outer=900.0
        )
        assert not any("anew" in said for said in hashed)

    def test_says_what_a_sort_under_a_limit_keeps(self) -> None:
        plan = node("Limit", 10.0, node("Sort", 1e5, scan("big", 1e5), **{"Sort Key": ["at DESC"]}))
        assert "sorts about 100,000 rows by at DESC without an index, to keep 10" in troubles(plan, big=1e5)

    def test_of_an_index_or_a_small_table_has_no_trouble(self) -> None:
        assert troubles(node("Index Scan", 1.0)) == ()
        assert troubles(scan("small", 10.0), small=10.0) == ()

    @pytest.mark.parametrize("document", [[], {}, None, [{"Plan": {}}]])
    def test_that_is_empty_is_no_error(self, document: object) -> None:
        assert postgres_plan("SELECT 1", document, {}).troubles == ()


class TestAPlanOfSqlite:
    def test_names_the_table_behind_an_alias(self) -> None:
        plan = sqlite_plan("SELECT 1 FROM orders AS o", [(2, 0, 0, "SCAN o")], {"orders": 5e4})
        assert plan.summary == "full scan of table orders of about 50,000 rows"

    def test_says_that_an_index_is_built_for_every_run(self) -> None:
        rows = [(3, 0, 0, "SCAN a"), (17, 0, 0, "SEARCH b USING AUTOMATIC COVERING INDEX (note=?)")]
        assert sqlite_plan("SELECT 1 FROM a, b", rows, {"a": 10.0, "b": 9e3}).summary == (
            "builds an index over table b of about 9,000 rows for every run, since none on (note) exists"
        )

    def test_puts_a_loop_in_a_loop_first_and_prints_the_tree(self) -> None:
        rows = [(2, 0, 0, "SCAN c"), (8, 0, 0, "CORRELATED SCALAR SUBQUERY 1"), (13, 8, 0, "SCAN o")]
        plan = sqlite_plan("SELECT 1 FROM c", rows, {"c": 5e3, "o": 2e4})
        assert plan.summary == "for each row of the outer query, scans table o of about 20,000 rows"
        assert plan.plan == "SCAN c\nCORRELATED SCALAR SUBQUERY 1\n  SCAN o"

    def test_takes_words_for_its_own_rows_as_they_come(self) -> None:
        rows = [(1, 0, 0, "SCAN CONSTANT ROW"), (2, 0, 0, "SCAN 3"), (5, 0, 0, "COMPOUND QUERY")]
        assert sqlite_plan("SELECT 1", rows, {}).troubles == ()
