"""What a change file lacks, says vaguely, or promises without being able to tell: line by line, with the next step.

Not a form to be filled: a finding is there because reviews, rollouts and reports have failed for want of just that.
An error keeps the file from being frozen; a warning is for a person to judge.

    missing         a part without which the change cannot be judged, or not be believed
    vague           words in place of a figure: "a lot faster", a goal without a number
    vanity          a count that grows whether or not anyone is better off
    metric          a definition that two people would compute differently
    primary         none, or two: the change is then judged by whichever came out well
    baseline        a target without today's figure
    option          one option only, a choice without a reason, a winner that was not chosen
    unfalsifiable   an assumption that no signal could show to be wrong
    guardrail       a limit on a metric that the file does not define, or in the wrong unit
    stage           shares that do not grow, a stage that does not wait
    untestable      an effect that the expected traffic, or this kind of metric, cannot show
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fairlead.change.choice import choice
from fairlead.change.finding import Finding, Raw
from fairlead.change.letting_out import letting_out
from fairlead.change.parse import line_numbers, parse_change, where
from fairlead.change.sections import ChangeFile, MetricTable
from fairlead.change.sentences import doubts, situation
from fairlead.change.template import PLACEHOLDERS
from fairlead.errors import InvalidInput
from fairlead.metrics.metric import is_metric_name

__all__ = ["check_change"]

_VANITY = re.compile(
    r"(page.?views?|sign.?ups?|downloads?|installs?|registered|registrations?|followers|likes|impressions|\bhits)",
    re.IGNORECASE,
)


def check_change(content: bytes, name: str = "change file") -> tuple[Finding, ...]:
    """Everything there is to say of the file, in its order, parts that are not there last; no error among it: it can
    be frozen.

    Raises BrokenDocument where the bytes are no change file at all.
    """
    file = parse_change(content, name)
    text = content.decode("utf-8-sig").replace("\r\n", "\n")
    left = tuple(
        Finding(
            code="missing",
            severity="error",
            path="",
            line=number,
            message=f"replace {', '.join(marks)}",
        )
        for number, line in enumerate(text.split("\n"), 1)
        if not line.lstrip().startswith("#") and (marks := PLACEHOLDERS.findall(line))
    )
    if left:
        return left
    lines = line_numbers(text)
    found = [
        Finding(code=code, severity=severity, path=path, line=where(lines, path), message=message)
        for code, severity, path, message in _findings(file)
    ]
    return tuple(
        sorted(found, key=lambda finding: (finding.line or len(text), finding.severity, finding.path))
    )


def _findings(file: ChangeFile) -> Iterator[Raw]:
    if not is_metric_name(file.change.name):
        yield "metric", "error", "change.name", "name is not lower case letters, digits and _, up to 64"
    yield from situation(file)
    yield from _metrics(file)
    yield from choice(file)
    yield from doubts(file)
    yield from letting_out(file)
    from fairlead.change.testable import enough_traffic  # SciPy: `new`, `list` and `show` need none of it

    yield from enough_traffic(file)


def _metrics(file: ChangeFile) -> Iterator[Raw]:
    if not file.metrics:
        yield "missing", "error", "metrics", "no metric: add [metrics.NAME], exactly one of role primary"
        return
    primary = [name for name, table in file.metrics.items() if table.role == "primary"]
    if not primary:
        yield (
            "primary",
            "error",
            "metrics",
            "no metric has role primary: choose the one the change is judged by",
        )
    for name in primary[1:]:
        yield (
            "primary", "error", f"metrics.{name}.role",
            f"a second primary metric beside {primary[0]}: the change would be judged by whichever came out well; "
            "make it secondary",
        )  # fmt: skip
    if not any(table.role == "guardrail" for table in file.metrics.values()):
        yield "missing", "error", "metrics", "no guardrail: name at least one metric that must not get worse"
    for name, table in file.metrics.items():
        yield from _metric(name, table)


def _metric(name: str, table: MetricTable) -> Iterator[Raw]:
    at = f"metrics.{name}"
    try:
        table.metric(name)
    except InvalidInput as error:
        yield "metric", "error", at, str(error)
    counted = table.kind in ("count", "rate")
    if (table.kind == "count" and table.better == "higher") or (
        counted and _VANITY.search(f"{name} {table.title}")
    ):
        yield (
            "vanity", "error" if table.role == "primary" else "warning", at,
            f"{name} grows with traffic or time, whether or not anyone is better off: "
            "use a share, or a value per user",
        )  # fmt: skip
    if table.role == "primary":
        for key, wanted in (("baseline", "today's figure"), ("target", "the figure hoped for")):
            if getattr(table, key) is None:
                yield (
                    "baseline", "error", f"{at}.{key}",
                    f"the primary metric has no {key}: {wanted}, in {table.unit}",
                )  # fmt: skip
    elif table.target is not None and table.baseline is None:
        yield (
            "baseline",
            "error",
            f"{at}.target",
            "a target without a baseline: give today's figure beside it",
        )
