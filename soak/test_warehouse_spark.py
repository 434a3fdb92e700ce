"""The expression that DuckDB computes, on Spark: a local cluster of two worker processes, the same figures.

PySpark and Java are not needed elsewhere: `make soak` installs the group `spark`, and Debian's openjdk-17-jre-headless.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairlead.metrics import Family, Metric, Window
from fairlead.metrics.warehouse import Warehouse

# Of PySpark beside a newer pandas, and of its sockets when the session is stopped: theirs, not ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def session() -> Iterator[object]:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local-cluster[2,1,1024]")
        .appName("fairlead-soak")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(21)
    n = 200_000
    user = rng.integers(0, 20_000, n)
    before = rng.gamma(2, 10, 20_000)[user]
    seconds = rng.lognormal(size=n)
    holes = np.where(rng.random(n) < 0.01, np.nan, seconds)
    path = tmp_path_factory.mktemp("spark") / "events.parquet"
    pq.write_table(
        pa.table(
            {
                "user": user,
                "variant": np.where(user % 2, "treatment", "control"),
                "watch": before * rng.lognormal(0, 0.3, n),
                "before": before,
                "seconds": seconds,
                "holes": holes,
                "big": np.full(n, 4_000_000_000_000_000_000, dtype=np.int64) - rng.integers(0, 2**41, n),
                "status": pa.array(
                    [None if code == 0 else int(code) for code in rng.choice([0, 200, 500], n)]
                ),
                "at_utc_seconds": 1_764_200_000.0 + np.arange(n) / 10,
            }
        ),
        path,
    )
    return path


def asked(source: Warehouse, unit_field: str | None) -> Family:
    def of(name: str, kind: str, column: str | None = None, **more: str) -> Metric:
        return Metric.from_column(name, kind, column, unit_field=unit_field, **more)  # type: ignore[arg-type]

    return source.measure(
        [
            of("watch", "mean", "watch"),
            of("holes", "mean", "holes"),
            of("big", "mean", "big"),
            of("errors", "proportion", "status >= 500"),
            of("rate", "formula", formula="seconds / (watch + seconds)"),
            of("requests", "count"),
        ],
        by=["variant"],
        covariates={"watch": ["before"]},
        window=Window(start=1_764_200_000.0, end=1_764_200_000.0 + 15_000),
    )


@pytest.mark.parametrize("unit_field", [None, "user"])
def test_spark_says_what_duckdb_says(session: object, file: Path, unit_field: str | None) -> None:
    spark = Warehouse(ibis.pyspark.connect(session).read_parquet(str(file), table_name="events"))
    ours, theirs = asked(Warehouse.of_files([file]), unit_field), asked(spark, unit_field)
    assert ours.units == theirs.units
    assert sum(ours.units.values()) > 10_000
    for name, groups in ours.moments.items():
        for group, arm in groups.items():
            other = theirs.moments[name][group]
            assert (arm.columns, arm.n) == (other.columns, other.n)
            np.testing.assert_allclose(arm.means, other.means, rtol=1e-11)
            scale = math.sqrt(arm.products[0][0] * arm.products[0][0]) + 1e-9
            np.testing.assert_allclose(arm.products, other.products, rtol=1e-8, atol=1e-9 * scale)
    assert ours.caveats == theirs.caveats
