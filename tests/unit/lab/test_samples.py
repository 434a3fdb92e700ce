from __future__ import annotations

import numpy as np
import pytest

from fairlead.errors import InvalidInput, RunInvalid
from fairlead.lab import Ending, Samples


def _samples(*outcomes: Ending, lag: float = 0.001, headers: dict[str, list[float]] | None = None) -> Samples:
    n = len(outcomes)
    return Samples(
        offset=np.arange(n, dtype=np.float64),
        lag=np.full(n, lag),
        latency=np.full(n, 0.1),
        status=np.full(n, 200, dtype=np.int16),
        ending=np.array(outcomes, dtype=np.uint8),
        failure=np.zeros(n, dtype=np.uint8),
        key=np.arange(n),
        user=np.arange(n),
        headers={name: np.array(values) for name, values in (headers or {}).items()},
    )


def test_a_punctual_run_is_valid_even_when_the_service_failed() -> None:
    verdict = _samples(Ending.OK, Ending.ERROR, Ending.TIMEOUT, Ending.REFUSED).validity()
    assert verdict.valid
    assert verdict.reason == ""
    verdict.require()


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (_samples(), "no request was due"),
        (_samples(Ending.OK, Ending.NOT_SENT), "1 of 2 requests were never sent"),
        (_samples(Ending.OK, Ending.UNFINISHED), "1 of 2 requests were unfinished"),
        (_samples(Ending.OK, lag=0.0123), "lag p99 12.3 ms, limit 10 ms"),
    ],
)
def test_a_run_that_broke_its_rules_says_which(samples: Samples, reason: str) -> None:
    verdict = samples.validity()
    assert not verdict.valid
    assert reason in verdict.reason
    with pytest.raises(RunInvalid, match=reason):
        verdict.require()


def test_lag_p99_is_a_lag_that_occurred() -> None:
    samples = _samples(*[Ending.OK] * 100)
    samples.lag[:] = np.arange(100) / 1000
    assert samples.lag_p99 == 0.098


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), 11.0])
def test_a_lag_limit_outside_its_range_is_refused(limit: float) -> None:
    with pytest.raises(InvalidInput, match=r"^max_lag_p99: "):
        _samples(Ending.OK).validity(max_lag_p99=limit)


def test_selecting_rows_keeps_every_column_aligned() -> None:
    samples = _samples(Ending.OK, Ending.TIMEOUT, Ending.OK, headers={"age": [1.0, 2.0, 3.0]})
    chosen = samples.select(samples.ending == Ending.OK)
    assert chosen.key.tolist() == [0, 2]
    assert chosen.headers["age"].tolist() == [1.0, 3.0]
    assert chosen.count(Ending.TIMEOUT) == 0


def test_runs_are_joined_row_by_row() -> None:
    joined = Samples.concatenate([_samples(Ending.OK), _samples(Ending.ERROR, Ending.OK)])
    assert joined.ending.tolist() == [Ending.OK, Ending.ERROR, Ending.OK]


def test_runs_that_read_different_headers_are_not_joined() -> None:
    with pytest.raises(InvalidInput, match="different headers"):
        Samples.concatenate([_samples(Ending.OK), _samples(Ending.OK, headers={"age": [1.0]})])
