"""Whatever is down, slow or restarted: a spool hands on all that it accepted."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.telemetry import Spool

STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 40)),
    st.tuples(st.just("down"), st.booleans()),
    st.tuples(st.just("takes"), st.integers(1, 9)),
    st.tuples(st.just("drain"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
)


class Target:
    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.down = False
        self.takes = 9

    def write(self, lines: Sequence[bytes]) -> int:
        if self.down:
            raise ConnectionError("down")
        self.lines += lines[: self.takes]
        return min(len(lines), self.takes)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.telemetry.spool._FIRST_PAUSE", 0.0005)
    monkeypatch.setattr("fairlead.telemetry.spool._LONGEST_PAUSE", 0.001)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
def test_every_accepted_line_arrives_across_outages_and_restarts(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        target = Target()
        number = 0

        def opened() -> Spool:
            return Spool(directory, to=target, batch=7, drain_timeout=0.0)

        spool = opened()
        for what, value in steps:
            if what == "write":
                assert spool.write([b"%06d" % each for each in range(number, number + value)]) == value
                number += value
            elif what == "down":
                target.down = bool(value)
            elif what == "takes":
                target.takes = value
            elif what == "drain":
                spool.drain(timeout=0.002)
            else:
                spool.close()
                spool = opened()
        target.down = False
        assert spool.drain(timeout=20.0)
        spool.close()
        assert sorted(set(target.lines)) == [b"%06d" % each for each in range(number)]
        assert len(target.lines) == number, "nothing failed between taking and marking, so nothing came twice"
        assert list(Path(directory).iterdir()) == []
