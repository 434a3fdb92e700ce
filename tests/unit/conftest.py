"""Rules for unit tests: no network, and two seconds of work at most."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from typing import Any

import pytest

WORK_SECONDS = 2.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    # Time of the processor, not of the wall: a busy machine must not fail a test.
    start = time.process_time()
    result = yield
    worked = time.process_time() - start
    if worked > WORK_SECONDS:
        pytest.fail(
            f"a unit test works {WORK_SECONDS:g} s at most, this one worked {worked:.1f} s", pytrace=False
        )
    return result


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bind", "connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, real: Any = real, name: str = name) -> Any:
            if self.family != socket.AF_UNIX:
                raise AssertionError(f"unit tests have no network: socket.{name}({address!r})")
            return real(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)
