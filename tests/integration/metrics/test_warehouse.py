"""The warehouse's figures are those of the rows: by DuckDB, compared with the same metric computed in plain Python."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.metrics import Metric, Window, parse_condition
from fairlead.metrics.warehouse import Warehouse
from fairlead.statistics import Moments, cuped_effect, mean_effect, ratio_effect, smooth_effect
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RequestFinished
from fairlead.telemetry.parquet import compact
from fairlead.telemetry.schema import UnknownEvent


def warehouse(columns: dict[str, Any], **options: Any) -> Warehouse:
    return Warehouse(ibis.memtable(pa.table(columns)), **options)


def metric(name: str, kind: str, column: str | None = None, **more: Any) -> Metric:
    where = more.pop("where", "")
    made = Metric.from_column(name, kind, column, **more)  # type: ignore[arg-type]
    return made if not where else Metric(**{f: getattr(made, f) for f in made.__slots__} | {"where": where})


@pytest.fixture(scope="module")
def people() -> dict[str, Any]:
    rng = np.random.default_rng(11)
    n = 5000
    before = rng.gamma(2, 10, n)
    return {
        "variant": rng.choice(["control", "treatment"], n),
        "watch": before * rng.lognormal(0, 0.3, n),
        "before": before,
        "clicks": rng.integers(0, 5, n),
        "views": rng.integers(1, 30, n),
        "country": rng.choice(["AT", "DE", "CH"], n),
        "failed": rng.random(n) < 0.02,
    }


def rows_of(people: dict[str, Any], variant: str, *columns: str) -> np.ndarray:
    kept = people["variant"] == variant
    return np.column_stack([np.asarray(people[name], dtype=np.float64)[kept] for name in columns])


def same(ours: Moments, rows: np.ndarray) -> None:
    expected = Moments.from_rows(ours.columns, rows)
    assert ours.n == expected.n
    np.testing.assert_allclose(ours.means, expected.means, rtol=1e-12)
    np.testing.assert_allclose(ours.products, expected.products, rtol=1e-9, atol=1e-9)


def test_a_family_is_what_its_rows_say(people: dict[str, Any]) -> None:
    family = warehouse(people).measure(
        [
            metric("watch", "mean", "watch"),
            metric("ctr", "ratio", "clicks", denominator="views"),
            metric("failures", "proportion", "failed"),
            metric("rate", "formula", formula="clicks / (views - clicks)"),
            metric("rows", "count"),
        ],
        by=["variant"],
        covariates={"watch": ["before"]},
    )
    for variant in ("control", "treatment"):
        group = (variant,)
        same(family.moments["watch"][group], rows_of(people, variant, "watch", "before"))
        same(family.moments["ctr"][group], rows_of(people, variant, "clicks", "views"))
        same(family.moments["failures"][group], rows_of(people, variant, "failed"))
        same(family.moments["rate"][group], rows_of(people, variant, "clicks", "views"))
        assert family.moments["rows"][group].mean("rows") == 1.0
        assert family.units[group] == int((people["variant"] == variant).sum())
    assert family.columns["watch"] == ("watch", "before before")
    assert family.ratio("ctr") == ("ctr", "ctr below")
    assert family.ratio("watch") is None
    assert family.caveats == {}


def test_the_effect_from_the_warehouse_is_that_of_the_rows(people: dict[str, Any]) -> None:
    family = warehouse(people).measure(
        [metric("watch", "mean", "watch")], by=["variant"], covariates={"watch": ["before"]}
    )
    arms = [family.moments["watch"][(variant,)] for variant in ("control", "treatment")]
    direct = [
        Moments.from_rows(("watch", "before"), rows_of(people, v, "watch", "before"))
        for v in ("control", "treatment")
    ]
    ours = cuped_effect(*arms, "watch", ["before before"]).effect
    theirs = cuped_effect(*direct, "watch", ["before"]).effect
    assert (ours.effect, ours.p_value) == pytest.approx((theirs.effect, theirs.p_value), rel=1e-9)


def test_where_a_user_has_many_events_the_user_is_the_unit() -> None:
    rng = np.random.default_rng(12)
    user = rng.integers(0, 300, 4000)
    events = {
        "user": user,
        "variant": np.where(user % 2, "treatment", "control"),
        "seconds": rng.lognormal(size=4000),
        "status": rng.choice([200, 500], 4000, p=[0.97, 0.03]),
    }
    family = warehouse(events).measure(
        [
            metric("mean_seconds", "mean", "seconds", unit_field="user"),
            metric("errors", "proportion", "status >= 500", unit_field="user", where="seconds < 5"),
            metric("requests", "count", unit_field="user"),
        ],
        by=["variant"],
    )
    for variant, odd in (("control", 0), ("treatment", 1)):
        per_user = [np.flatnonzero(user == each) for each in np.unique(user) if each % 2 == odd]
        kept = events["seconds"] < 5
        same(
            family.moments["mean_seconds"][(variant,)],
            np.array([[events["seconds"][rows].sum(), len(rows)] for rows in per_user]),
        )
        same(
            family.moments["errors"][(variant,)],
            np.array([[((events["status"][r] >= 500) & kept[r]).sum(), kept[r].sum()] for r in per_user]),
        )
        assert family.moments["requests"][(variant,)].mean("requests") == pytest.approx(
            np.mean([len(r) for r in per_user])
        )
        assert family.units[(variant,)] == len(per_user)
    arms = [family.moments["errors"][(variant,)] for variant in ("control", "treatment")]
    assert ratio_effect(*arms, *family.ratio("errors")).n_control == family.units[("control",)]


def test_sampled_events_weigh_as_many_as_they_stand_for() -> None:
    events = {
        "user": [1, 1, 2, 2],
        "failed": [True, False, True, False],
        "inclusion_probability": [1.0, 0.1, 1.0, 0.5],
    }
    family = warehouse(events).measure([metric("failures", "proportion", "failed", unit_field="user")])
    arm = family.moments["failures"][()]
    assert arm.mean("failures") == pytest.approx(1.0)
    assert arm.mean("failures events") == pytest.approx((11 + 3) / 2)


def test_squares_of_large_integers_do_not_overflow() -> None:
    big = 4_000_000_000_000_000_000
    family = warehouse({"x": np.array([big, big - 2**40, big - 2**41], dtype=np.int64)}).measure(
        [metric("x", "mean", "x")]
    )
    expected = Moments.from_rows("x", [[float(big)], [float(big - 2**40)], [float(big - 2**41)]])
    assert family.moments["x"][()].variance("x") == pytest.approx(expected.variance("x"), rel=1e-6)


def test_a_huge_mean_does_not_drown_the_variance() -> None:
    values = 1e9 + np.random.default_rng(13).normal(0, 1, 100_000)
    family = warehouse({"x": values}).measure([metric("x", "mean", "x")])
    assert family.moments["x"][()].variance("x") == pytest.approx(float(values.var(ddof=1)), rel=1e-6)


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_a_value_that_is_missing_or_not_finite_is_left_out_and_counted(hole: float | None) -> None:
    family = warehouse(
        {"v": ["a", "a", "a", "b"], "x": pa.array([1.0, hole, 3.0, 5.0], pa.float64())}
    ).measure([metric("x", "mean", "x"), metric("rows", "count")], by=["v"])
    assert family.moments["x"][("a",)].mean("x") == 2.0
    assert family.moments["x"][("a",)].n == 2
    assert family.moments["rows"][("a",)].n == 3
    assert family.caveats["x"] == ("1 units without a finite value are left out",)


def test_holes_in_a_parquet_file_are_seen_though_its_statistics_hide_them(tmp_path: Path) -> None:
    # A writer leaves NaN out of the least and the largest value, and a reader may believe that there is none.
    table = pa.table({"user": [1, 1, 2, 2], "x": [1.0, math.nan, 3.0, math.inf]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = Warehouse.of_files([tmp_path / "t.parquet"])
    rows = source.measure([metric("x", "mean", "x")])
    assert (rows.moments["x"][()].n, rows.moments["x"][()].mean("x")) == (2, 2.0)
    assert rows.caveats["x"] == ("2 units without a finite value are left out",)
    users = source.measure([metric("x", "mean", "x", unit_field="user")])
    assert (users.moments["x"][()].n, users.moments["x"][()].mean("x")) == (2, 2.0)
    assert users.caveats["x"] == ("2 events without a finite value do not count",)
    counted = source.measure([metric("small", "proportion", "not (x > 2)")])
    assert counted.moments["small"][()].mean("small") == 0.25
    assert source.measure([metric("q", "quantile", "x", q=0.5)]).quantiles["q"][()].n == 3


CONDITIONS = [
    "status >= 500",
    "status in (500, 503) or country is None",
    'not country == "AT"',
    'country != "AT" and seconds < 1.5',
    "failed",
    "not failed",
    "seconds > 1",
    'status == "500"',
    "country in (1, 2)",
    "0.5 <= seconds < 2",
]


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_means_the_same_in_python_and_in_the_warehouse(text: str) -> None:
    events = {
        "status": pa.array([200, 500, None, 503, 200, 500]),
        "country": pa.array(["AT", None, "DE", "AT", "CH", "DE"]),
        "seconds": pa.array([0.5, 1.0, math.nan, None, 1.5, 9.0], pa.float64()),
        "failed": pa.array([True, False, None, True, False, True]),
    }
    table = pa.table(events)
    condition = parse_condition(text)
    expected = [condition.holds(row) is True for row in table.to_pylist()]
    family = Warehouse(ibis.memtable(table)).measure([metric("share", "proportion", text)])
    arm = family.moments["share"][()]
    assert round(arm.mean("share") * arm.n) == sum(expected)
    if any(expected):
        counted = (
            Warehouse(ibis.memtable(table)).measure([metric("rows", "count", where=text)]).moments["rows"][()]
        )
        assert round(counted.mean("rows") * counted.n) == sum(expected)


def test_quantiles_of_rows_and_of_users() -> None:
    rng = np.random.default_rng(14)
    user = np.repeat(np.arange(400), 5)
    seconds = np.exp(rng.normal(0, 1, 400)[user]) * rng.lognormal(0, 0.1, 2000)
    table = {"user": user, "v": np.where(user % 2, "t", "c"), "s": seconds}
    rows = warehouse(table).measure([metric("p90", "quantile", "s", q=0.9)], by=["v"]).quantiles["p90"]
    users = (
        warehouse(table)
        .measure([metric("p90", "quantile", "s", q=0.9, unit_field="user")], by=["v"])
        .quantiles["p90"]
    )
    for group in (("c",), ("t",)):
        here = seconds[table["v"] == group[0]]
        assert rows[group].value == pytest.approx(float(np.quantile(here, 0.9)))
        assert rows[group].low < rows[group].value < rows[group].high
        assert users[group].high - users[group].low > 1.5 * (rows[group].high - rows[group].low)
        assert (rows[group].clusters, users[group].clusters) == (None, 200)


@pytest.mark.parametrize("kind", ["seconds", "naive", "utc", "offset"])
def test_a_window_is_half_open_and_in_utc(kind: str) -> None:
    midnight = datetime(2026, 11, 27, tzinfo=UTC)
    moments = [midnight + timedelta(seconds=each) for each in (-0.5, 0, 43_200, 86_399.5, 86_400)]
    columns: dict[str, Any] = {
        "seconds": [moment.timestamp() for moment in moments],
        "naive": pa.array([moment.replace(tzinfo=None) for moment in moments], pa.timestamp("us")),
        "utc": pa.array(moments, pa.timestamp("us", tz="UTC")),
        "offset": pa.array(
            [m.astimezone(timezone(timedelta(hours=9))) for m in moments], pa.timestamp("us", tz="Asia/Tokyo")
        ),
    }
    day = Window(start=midnight.timestamp(), end=midnight.timestamp() + 86_400)
    found = warehouse({"at": columns[kind]}, time_column="at").measure([metric("rows", "count")], window=day)
    assert found.moments["rows"][()].n == 3
    assert found.window == day


def test_files_are_read_and_hostile_names_are_only_names(tmp_path: Path) -> None:
    column = 'x"); DROP TABLE t; --'
    table = pa.table({column: [1.0, 3.0], "v": ["a", "b"]})
    folder = tmp_path / "it's [a] *folder*"
    folder.mkdir()
    pq.write_table(table, folder / "part.parquet")
    pacsv.write_csv(table, folder / "part.csv")
    for name in ("part.parquet", "part.csv"):
        family = Warehouse.of_files([folder / name]).measure([metric("x", "mean", column)], by=["v"])
        assert {group: arm.mean("x") for group, arm in family.moments["x"].items()} == {
            ("a",): 1.0,
            ("b",): 3.0,
        }


def test_the_same_question_has_the_same_hash_and_another_has_not(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0]}), tmp_path / "t.parquet")
    asked = [
        Warehouse.of_files([tmp_path / "t.parquet"]).measure([metric("x", "mean", "x", where=w)])
        for w in ("", "", "x < 3")
    ]
    hashes = [family.query_sha256 for family in asked]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_empty_table_has_no_units_and_no_figure() -> None:
    table = pa.table({"x": pa.array([], pa.float64()), "v": pa.array([], pa.string())})
    family = Warehouse(ibis.memtable(table)).measure(
        [metric("x", "mean", "x"), metric("q", "quantile", "x", q=0.5)]
    )
    assert family.moments["x"][()].n == 0
    assert family.quantiles["q"][()].value is None
    assert Warehouse(ibis.memtable(table)).measure([metric("x", "mean", "x")], by=["v"]).moments["x"] == {}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metrics": []}, "at least one"),
        ({"metrics": [metric("x", "mean", "nope")]}, "no column 'nope'; there are v, x"),
        ({"metrics": [metric("x", "mean", "x"), metric("x", "count")]}, "each name once"),
        (
            {"metrics": [metric("x", "mean", "x"), metric("y", "mean", "x", unit_field="v")]},
            "measure them apart",
        ),
        ({"metrics": [metric("x", "mean", "x")], "by": ["nope"]}, "no column 'nope'"),
        ({"metrics": [metric("x", "maximum", "x")]}, "maximum"),
        ({"metrics": [metric("x", "mean", "x")], "covariates": {"y": ["x"]}}, "is no metric of this family"),
        (
            {"metrics": [metric("q", "quantile", "x", q=0.5)], "covariates": {"q": ["x"]}},
            "takes no covariates",
        ),
        ({"metrics": [metric("x", "mean", "x")], "window": Window(start=0, end=1)}, "needs a time column"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        warehouse({"v": ["a"], "x": [1.0]}).measure(**asked)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(BrokenDocument, match=r"a\.parquet: cannot be read"):
        Warehouse.of_files([tmp_path / "a.parquet"])
    with pytest.raises(BrokenDocument, match="no such file"):
        Warehouse.of_files([tmp_path / "b.parquet"])
    for paths in ([], [tmp_path / "a.json"], [tmp_path / "a.parquet", tmp_path / "a.csv"]):
        with pytest.raises(InvalidInput, match=r"all of them \.parquet or all \.csv"):
            Warehouse.of_files(paths)
    with pytest.raises(InvalidInput, match="the end must come after"):
        Window(start=2.0, end=1.0)
    with pytest.raises(InvalidInput, match="no column 'at'"):
        warehouse({"x": [1.0]}, time_column="at")


def test_a_formula_from_the_warehouse_is_compared_by_its_gradient(people: dict[str, Any]) -> None:
    rate = metric("rate", "formula", formula="clicks / (views - clicks)")
    family = warehouse(people).measure([rate], by=["variant"])
    arms = [family.moments["rate"][(variant,)] for variant in ("control", "treatment")]
    effect = smooth_effect(*arms, lambda arm: rate.parsed_formula.at(arm.mean))
    control = rows_of(people, "control", "clicks", "views").sum(axis=0)
    assert effect.control == pytest.approx(control[0] / (control[1] - control[0]))
    assert mean_effect(*arms, "clicks").n_control == effect.n_control


def test_events_in_segments_and_in_parquet_count_once(tmp_path: Path) -> None:
    def finished(number: int) -> RequestFinished:
        return RequestFinished(
            at_utc_seconds=1_764_200_000.0 + number,
            service="feed",
            route="/feed",
            status=200 if number % 10 else 503,
            latency_seconds=0.1 + number / 1000,
        )

    folder = tmp_path / "it's events"
    for start in (0, 100):
        with BufferedSink(JsonLinesSegments(folder, max_bytes=4_000)) as sink:
            for number in range(start, start + 100):
                sink.emit(finished(number))
        if start == 0:
            assert compact(folder).events == 100
    segments = sorted(folder.glob("*.jsonl"))
    copy = folder / f"{segments[0].stem}0.jsonl"
    copy.write_bytes(
        segments[0].read_bytes() + b'{"event":"request_finished","at_utc'
    )  # delivered twice, and cut
    errors = metric("errors", "proportion", "status >= 500")
    source = Warehouse.of_events(folder, "request_finished")
    family = source.measure([errors, metric("mean", "mean", "latency_seconds")])
    weighted = family.moments["mean"][()]
    assert round(weighted.n * weighted.mean("mean events")) == 200
    assert weighted.mean("mean") / weighted.mean("mean events") == pytest.approx(0.1 + 99.5 / 1000)
    arm = family.moments["errors"][()]
    assert arm.mean("errors") / arm.mean("errors events") == pytest.approx(0.1)
    first = source.measure([metric("n", "count")], window=Window(start=1_764_200_000.0, end=1_764_200_010.0))
    assert first.moments["n"][()].n == 10


def test_a_folder_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenDocument, match="no segments, and no request_finished in Parquet"):
        Warehouse.of_events(tmp_path, "request_finished")
    with pytest.raises(UnknownEvent):
        Warehouse.of_events(tmp_path, "nothing_like_it")


@pytest.mark.parametrize("mean", [1e9, 1.005e9, 1.7649e9])
def test_the_spread_survives_a_mean_that_no_short_number_is_near(mean: float) -> None:
    values = mean + np.random.default_rng(5).standard_normal(20_000)
    found = warehouse({"x": values}).measure([metric("x", "mean", "x")]).moments["x"][()]
    assert found.variance("x") == pytest.approx(values.var(ddof=1), rel=1e-6)


def test_a_group_far_from_the_first_rows_keeps_its_spread() -> None:
    far = 1e9 + np.random.default_rng(6).standard_normal(20_000)
    table = {"arm": ["a"] * 1000 + ["b"] * 20_000, "x": np.concatenate([np.zeros(1000), far])}
    found = warehouse(table).measure([metric("x", "mean", "x")], by=["arm"]).moments["x"]
    assert found[("b",)].variance("x") == pytest.approx(far.var(ddof=1), rel=1e-6)
    assert found[("a",)].variance("x") == 0.0


def test_a_constant_has_no_spread_whatever_its_digits() -> None:
    for constant in (math.pi, 0.1, 1.23456789e9):
        found = warehouse({"x": [constant] * 5000}).measure([metric("x", "mean", "x")]).moments["x"][()]
        assert found.variance("x") == 0.0


def test_squares_beyond_a_float_are_refused_and_no_spread_of_zero() -> None:
    with pytest.raises(InvalidInput, match="sum of squares"):
        warehouse({"x": [1e200, -1e200, 3e200]}).measure([metric("x", "mean", "x")])


def test_metrics_of_one_family_do_not_share_a_column_by_name() -> None:
    table = warehouse(
        {"land": ["AT", "DE", "AT", "DE"], "p": [1.0, 2.0, 3.0, 4.0], "a": [2.0, 4.0, 4.0, 4.0]}
    )
    every = metric("every", "formula", formula="p / a")
    some = metric("some", "formula", formula="p / a", where='land == "AT"')
    found = table.measure([every, some, metric("p", "mean", "a")])
    assert found.columns["every"] == found.columns["some"] == ("p", "a")
    assert found.moments["every"][()].means == (2.5, 3.5)
    assert found.moments["some"][()].means == (1.0, 1.5)
    assert found.moments["p"][()].means == (3.5,)


def test_a_group_without_a_name_is_one_group_in_all_figures() -> None:
    table = warehouse({"arm": [None, "", None, "x", "x"], "x": [1.0, 2.0, 3.0, 4.0, 5.0]})
    found = table.measure([metric("mean", "mean", "x"), metric("half", "quantile", "x", q=0.5)], by=["arm"])
    assert found.units == {("",): 3, ("x",): 2}
    assert found.moments["mean"][("",)].means == (2.0,)
    assert found.quantiles["half"][("",)].value == 2.0


@pytest.mark.parametrize("name", ["n", "value", "arm"])
def test_groups_of_any_kind_and_name_are_called_alike_for_means_and_quantiles(name: str) -> None:
    table = warehouse({name: [True, False] * 50, "x": [float(i) for i in range(100)]})
    found = table.measure([metric("mean", "mean", "x"), metric("half", "quantile", "x", q=0.5)], by=[name])
    assert set(found.quantiles["half"]) == set(found.moments["mean"]) == {("true",), ("false",)}


def test_events_that_name_no_unit_are_not_one_large_unit() -> None:
    table = warehouse({"user": [None] * 6 + ["a", "b"], "x": [1.0] * 8})
    found = table.measure([metric("x", "mean", "x", unit_field="user")])
    assert found.units == {(): 2}
    assert found.caveats[""] == ("6 events without user do not count",)


def test_a_quantile_says_what_it_leaves_out_and_that_there_is_nothing() -> None:
    found = warehouse({"x": [1.0, math.nan, None]}).measure([metric("half", "quantile", "x", q=0.5)])
    assert found.caveats["half"] == ("2 events without a value do not count",)
    nobody = {"user": pa.array([], pa.string()), "x": pa.array([], pa.float64())}
    empty = warehouse(nobody).measure([metric("half", "quantile", "x", q=0.5, unit_field="user")])
    assert (empty.quantiles["half"][()].value, empty.quantiles["half"][()].caveat) == (None, "no data")


def test_an_event_that_is_not_asked_for_is_not_said_to_lack_a_value() -> None:
    table = warehouse({"land": ["AT", "DE", "DE"], "x": [1.0, None, None]})
    assert table.measure([metric("x", "mean", "x", where='land == "AT"')]).caveats == {}


def test_a_field_that_a_line_lacks_has_its_default(tmp_path: Path) -> None:
    # As an older writer wrote it, or one that leaves defaults out: without degraded, error, inclusion_probability.
    line = (
        '{"event": "request_finished", "at_utc_seconds": 1.0, "service": "feed", "route": "/feed", "status": 200, '
        '"latency_seconds": %s}\n'
    )
    (tmp_path / "events-1.jsonl").write_text("".join(line % seconds for seconds in (0.1, 0.3)))
    source = Warehouse.of_events(tmp_path, "request_finished")
    family = source.measure(
        [
            metric("latency", "mean", "latency_seconds"),
            metric("whole", "proportion", 'not degraded and error == ""'),
        ]
    )
    whole = family.moments["whole"][()]
    assert whole.mean("whole") / whole.mean("whole events") == 1.0
    latency = family.moments["latency"][()]
    assert latency.mean("latency") / latency.mean("latency events") == pytest.approx(0.2)


def test_a_thousand_groups_far_from_zero_are_no_tower_of_conditions() -> None:
    group = np.repeat(np.arange(1500), 2)
    values = 1e9 + group + np.tile([0.0, 2.0], 1500)
    people = ibis.memtable(pa.table({"city": [f"c{g}" for g in group], "v": values}))
    family = Warehouse(people).measure([Metric.from_column("v", "mean", "v")], by=["city"])
    assert len(family.moments["v"]) == 1500
    assert {part.variance("v") for part in family.moments["v"].values()} == {2.0}
