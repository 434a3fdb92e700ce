"""Four CUPED metrics over a table of users, from Parquet: beside the bare sums in DuckDB, tea-tasting, and Spark.

    python -m bench warehouse             1,000,000 and 10,000,000 users (about 3 min)
    python -m bench warehouse --quick     1,000,000 users

The bare sums are what DuckDB needs for the same twelve second moments, written by hand, squares and all; nothing that
computes the metrics can be faster. tea-tasting computes the same four metrics from the same table through Ibis. Spark
is measured where PySpark is installed (`sh scripts/bootstrap soak`).
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import duckdb
import ibis
import tea_tasting as tt

from bench.harness import Bar, interleave, ratio
from fairlead.metrics import Metric
from fairlead.metrics.warehouse import Warehouse
from fairlead.statistics import cuped_effect

__all__ = ["bars"]

METRICS = ("watch", "sessions", "likes", "revenue")
SEED = 0.42


def bars(quick: bool) -> list[Bar]:
    """The ratio to the bare sums, and to tea-tasting; and to Spark where PySpark is installed."""
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder:
        return [
            bar
            for users in ((1_000_000,) if quick else (1_000_000, 10_000_000))
            for bar in _of_users(Path(folder) / f"{users}.parquet", users)
        ]


def _of_users(path: Path, users: int) -> list[Bar]:
    write_users(path, users)
    timings = interleave(
        {
            "fairlead": lambda n: repeated(n, lambda: ours(path)),
            "bare sums": lambda n: repeated(n, lambda: bare_sums(path)),
            "tea-tasting": lambda n: repeated(n, lambda: theirs(path)),
        },
        n=1,
        rounds=9,
    )
    beside_sums = ratio(timings["fairlead"], timings["bare sums"])
    beside_them = ratio(timings["tea-tasting"], timings["fairlead"])
    measured = [
        Bar(
            what=f"four CUPED metrics, {users:,} users in Parquet, over DuckDB's bare sums",
            value=beside_sums[0],
            spread=beside_sums[1],
            limit=1.2,
            unit="×",
            n=9,
            note=f"{timings['fairlead'].median:.2f} s and {timings['bare sums'].median:.2f} s; file opened anew",
        ),
        Bar(
            what=f"four CUPED metrics, {users:,} users in Parquet, tea-tasting over fairlead",
            value=beside_them[0],
            spread=beside_them[1],
            limit=1.5,
            at_most=False,
            unit="×",
            n=9,
            note=f"tea-tasting {tt.__version__}: {timings['tea-tasting'].median:.2f} s",
        ),
    ]
    if importlib.util.find_spec("pyspark") is not None:
        measured.append(spark_bar(path, users))
    return measured


def repeated(n: int, call: object) -> None:
    """Calls it n times."""
    for _ in range(n):
        call()  # type: ignore[operator]  # a function without arguments


def ours(path: Path) -> list[float]:
    """The four effects by fairlead, from the file to the p-value."""
    return effects(Warehouse.of_files([path]))


def effects(warehouse: Warehouse) -> list[float]:
    """The four effects of a table of users."""
    family = warehouse.measure(
        [Metric.from_column(name, "mean", name) for name in METRICS],
        by=["variant"],
        covariates={name: [f"{name}_before"] for name in METRICS},
    )
    return [
        cuped_effect(
            family.moments[name][("0",)], family.moments[name][("1",)], name, [f"before {name}_before"]
        ).effect.effect
        for name in METRICS
    ]


def bare_sums(path: Path) -> list[tuple[object, ...]]:
    """The second moments that four CUPED metrics need, and nothing else."""
    sums = ", ".join(
        f"sum({name}), sum({name}_before), sum({name} * {name}), sum({name}_before * {name}_before), "
        f"sum({name} * {name}_before)"
        for name in METRICS
    )
    with duckdb.connect() as database:
        return database.execute(
            f"SELECT variant, count(*), {sums} FROM read_parquet('{path}') GROUP BY variant"  # noqa: S608 - our file
        ).fetchall()


def theirs(path: Path) -> list[float]:
    """The four effects by tea-tasting, through Ibis on DuckDB."""
    database = ibis.duckdb.connect()
    database.con.execute(f"CREATE TEMP VIEW users AS SELECT * FROM read_parquet('{path}')")  # noqa: S608 - ours
    experiment = tt.Experiment({name: tt.Mean(name, covariate=f"{name}_before") for name in METRICS})
    result = experiment.analyze(database.table("users"))
    return [result[name].effect_size for name in METRICS]


def write_users(path: Path, users: int) -> None:
    """A table of users with skewed metrics, each correlated with its value before."""
    values = ", ".join(
        f"exp(0.8 * b{k} + 0.5 * random()) AS {name}, exp(0.8 * b{k} + 0.5 * random()) AS {name}_before"
        for k, name in enumerate(METRICS)
    )
    levels = ", ".join(f"random() + random() + random() AS b{k}" for k in range(len(METRICS)))
    with duckdb.connect() as database:
        database.execute(f"SELECT setseed({SEED})")
        database.execute(
            f"COPY (SELECT i % 2 AS variant, {values} FROM (SELECT i, {levels} FROM range({users}) r(i))) "  # noqa: S608
            f"TO '{path}' (FORMAT parquet)"
        )


def spark_bar(path: Path, users: int) -> Bar:
    """The same expression on Spark, two workers' threads in one process, beside DuckDB."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .appName("fairlead-bench")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    try:
        session.sparkContext.setLogLevel("ERROR")
        backend = ibis.pyspark.connect(session)
        table = backend.read_parquet(str(path), table_name="users")
        timings = interleave(
            {
                "spark": lambda n: repeated(n, lambda: effects(Warehouse(table))),
                "duckdb": lambda n: repeated(n, lambda: ours(path)),
            },
            n=1,
            rounds=3,
        )
    finally:
        session.stop()
    value, spread = ratio(timings["spark"], timings["duckdb"])
    return Bar(
        what=f"the same expression, {users:,} users, Spark local[2] over DuckDB",
        value=value,
        spread=spread,
        limit=100.0,
        unit="×",
        n=3,
        note=f"no bar: {timings['spark'].median:.2f} s and {timings['duckdb'].median:.2f} s",
    )
