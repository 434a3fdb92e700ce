"""Rules for all tests: in continuous integration a test that did not run is a test that failed."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# Before any test imports it: elsewhere its assertions say what they compared.
pytest.register_assert_rewrite("tests.unit.ledger.contract")

STRICT = os.environ.get("CI", "").lower() in ("1", "true", "yes")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if STRICT and (report.skipped or hasattr(report, "wasxfail")):
        reason = getattr(report, "wasxfail", None) or report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped or expected to fail, which CI does not accept: {reason}"
        # The terminal would go on to count it as expected.
        report.__dict__.pop("wasxfail", None)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if STRICT and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, which CI does not accept: {report.longrepr}"
    return report
