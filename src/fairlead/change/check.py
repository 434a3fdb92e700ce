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
    untestable      an effect that the expected traffic cannot show
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fairlead.change.parse import line_numbers, parse_change, where
from fairlead.change.scorecard import Scorecard, scorecard
from fairlead.change.sections import ChangeFile, GuardrailTable, MetricTable, parse_limit, parse_window
from fairlead.change.template import MARK
from fairlead.change.testable import untestable
from fairlead.errors import InvalidInput
from fairlead.metrics.metric import is_metric_name

__all__ = ["Finding", "check_change"]

Severity = Literal["error", "warning"]

_VAGUE = re.compile(
    r"\b(a lot|lots of|much (?:faster|better|slower|lower|higher)|as (?:fast|soon|good) as possible|significant(?:ly)?|"
    r"substantial(?:ly)?|greatly|dramatic(?:ally)?|seamless(?:ly)?|robust|world[- ]class|state[- ]of[- ]the[- ]art|"
    r"user[- ]friendly|nice|etc\b|and so on)",
    re.IGNORECASE,
)
_VANITY = re.compile(
    r"(page.?views?|sign.?ups?|downloads?|installs?|registered|followers|likes|impressions|hits)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d")
_BECAUSE = re.compile(r"\b(because|since|as |so that|by |through|therefore|which|instead of)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to mend."""

    code: str
    """The kind of finding, stable: see the list above."""
    severity: Severity
    path: str
    """Where in the file: ``metrics.feed_p99.q``."""
    line: int | None
    """Its line, or that of its table; None where neither is in the file."""
    message: str
    """What is wrong, and what to write."""


def check_change(content: bytes, name: str = "change file") -> tuple[Finding, ...]:
    """Everything there is to say of the file, in its order; no error among it: it can be frozen.

    Raises BrokenDocument where the bytes are no change file at all.
    """
    file = parse_change(content, name)
    text = content.decode("utf-8-sig").replace("\r\n", "\n")
    left = [
        Finding(
            code="missing",
            severity="error",
            path="",
            line=number,
            message=f"{line.strip()[:60]}: replace what stands in «»",
        )
        for number, line in enumerate(text.split("\n"), 1)
        if MARK in line and not line.lstrip().startswith("#")
    ]
    if left:
        return tuple(left)
    lines = line_numbers(text)
    found = [
        Finding(code=code, severity=severity, path=path, line=where(lines, path), message=message)
        for code, severity, path, message in _findings(file)
    ]
    return tuple(sorted(found, key=lambda finding: (finding.line or 0, finding.severity, finding.path)))


_Raw = tuple[str, Severity, str, str]


def _findings(file: ChangeFile) -> Iterator[_Raw]:
    if not is_metric_name(file.change.name):
        yield "metric", "error", "change.name", "name is not lower case letters, digits and _, up to 64"
    yield from _situation(file)
    yield from _metrics(file)
    yield from _options(file)
    yield from _doubts(file)
    yield from _rollout(file)
    yield from _experiment(file)


def _situation(file: ChangeFile) -> Iterator[_Raw]:
    change = file.change
    asked: tuple[tuple[str, Severity, str], ...] = (
        ("title", "error", "how a person calls it"),
        ("problem", "error", "what is wrong today, with a figure"),
        ("users", "error", "who meets it, and in what situation"),
        ("why_now", "warning", "what makes it worth doing before other things"),
        ("goal", "error", "what shall be true afterwards, with a figure"),
        ("hypothesis", "error", "doing what changes which metric by how much, because of which mechanism"),
        ("owner", "error", "who answers for it"),
        (
            "constraints",
            "warning",
            "what must not be touched, spent or exceeded; an empty promise is found here",
        ),
        ("stakeholders", "warning", "who else is concerned, and what each cares about"),
        ("scope_cuts", "warning", "what was left out on purpose, and why it can wait"),
    )
    for key, severity, wanted in asked:
        if not getattr(change, key):
            yield "missing", severity, f"change.{key}", f"{key} is missing: {wanted}"
    for key in ("problem", "goal", "hypothesis"):
        text = getattr(change, key)
        if vague := _VAGUE.search(text):
            yield (
                "vague",
                "error",
                f"change.{key}",
                f"{vague[0]!r} is no figure: say how much, in which statistic",
            )
        elif text and not _NUMBER.search(text):
            yield (
                "vague",
                "error",
                f"change.{key}",
                f"{key} holds no number: say how much, so that it can turn out false",
            )
    if change.hypothesis:
        names = set(file.metrics) | {table.title for table in file.metrics.values() if table.title}
        if file.metrics and not any(name.lower() in change.hypothesis.lower() for name in names):
            yield (
                "vague", "error", "change.hypothesis",
                f"the hypothesis names no metric ({', '.join(sorted(file.metrics)[:4])}): say which one moves",
            )  # fmt: skip
        if not _BECAUSE.search(change.hypothesis):
            yield (
                "vague", "warning", "change.hypothesis",
                "the hypothesis gives no mechanism: add because of what; else nobody can learn from its failure",
            )  # fmt: skip
    role = change.role
    if role is None:
        yield (
            "missing",
            "warning",
            "change.role",
            "role is missing: what you led, built and decided, and what others did",
        )
    elif not role.others:
        yield (
            "missing",
            "warning",
            "change.role.others",
            "others is missing: nobody ships alone; say what others did",
        )


def _metrics(file: ChangeFile) -> Iterator[_Raw]:
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


def _metric(name: str, table: MetricTable) -> Iterator[_Raw]:
    at = f"metrics.{name}"
    try:
        table.metric(name)
    except InvalidInput as error:
        yield "metric", "error", at, str(error)
    only_grows = table.kind == "count" and table.better == "higher"
    if only_grows or (table.kind != "ratio" and _VANITY.search(f"{name} {table.title}")):
        yield (
            "vanity", "error" if table.role == "primary" else "warning", at,
            f"{name} grows with traffic or time, whether or not anyone is better off: "
            "use a rate, a share, or a value per user",
        )  # fmt: skip
    if table.role == "primary":
        for key, wanted in (("baseline", "today's figure"), ("target", "the figure hoped for")):
            if getattr(table, key) is None:
                yield (
                    "baseline",
                    "error",
                    f"{at}.{key}",
                    f"the primary metric has no {key}: {wanted}, in {table.unit}",
                )
    elif table.target is not None and table.baseline is None:
        yield (
            "baseline",
            "error",
            f"{at}.target",
            "a target without a baseline: give today's figure beside it",
        )


def _options(file: ChangeFile) -> Iterator[_Raw]:
    options = file.options
    if len(options) < 2:
        yield (
            "option", "error", "options",
            f"{len(options)} option(s): give 2 to 4, doing nothing or adopting what exists among them",
        )  # fmt: skip
    elif len(options) > 4:
        yield (
            "option",
            "warning",
            "options",
            f"{len(options)} options: more than 4 are rarely weighed, only listed",
        )
    if len({option.name for option in options}) < len(options):
        yield "option", "error", "options", "two options have one name"
    chosen = [option for option in options if option.chosen]
    if options and len(chosen) != 1:
        yield (
            "option",
            "error",
            "options",
            f"{len(chosen)} options are chosen: mark exactly one with chosen = true",
        )
    for index, option in enumerate(options):
        at = f"options[{index}]"
        if not option.because:
            what = "chosen" if option.chosen else "rejected"
            yield "option", "error", f"{at}.because", f"{option.name} is {what} without a reason: add because"
        if option.chosen and not option.accepting:
            yield (
                "option",
                "error",
                f"{at}.accepting",
                f"{option.name}: every choice costs something: add accepting",
            )
        if option.chosen and option.accepting and not option.mitigation:
            yield "option", "warning", f"{at}.mitigation", f"{option.name}: say what softens what you accept"
    for criterion in file.weights:
        if not any(criterion in option.scores for option in options):
            yield (
                "option",
                "error",
                f"weights.{criterion}",
                f"a weight for {criterion}, by which no option is scored",
            )
    if any(option.scores for option in options):
        try:
            card = scorecard(options, file.weights)
        except InvalidInput as error:
            yield "option", "error", "options", str(error)
        else:
            yield from _scored(card, file)
    elif options:
        yield (
            "missing",
            "warning",
            "options",
            "no scores: weigh the options by time_to_ship, operating_cost, risk, maintainability, fit",
        )


def _scored(card: Scorecard, file: ChangeFile) -> Iterator[_Raw]:
    chosen = file.chosen()
    if chosen is not None and card.totals[chosen.name] < max(card.totals.values()) - 1e-9:
        index = file.options.index(chosen)
        yield (
            "option", "warning", f"options[{index}]",
            f"{chosen.name} is chosen with {card.totals[chosen.name]:.2f}, "
            f"{card.winner} has {card.totals[card.winner]:.2f}: "
            "either a criterion is missing from the scores, or because must say why the scores do not decide",
        )  # fmt: skip
    for missing in ("time_to_ship", "operating_cost", "risk", "maintainability", "fit"):
        if missing not in card.criteria:
            yield "missing", "warning", "options", f"no option is scored by {missing}"


def _doubts(file: ChangeFile) -> Iterator[_Raw]:
    asked: tuple[tuple[str, Severity, str], ...] = (
        (
            "assumptions",
            "error",
            "what must be true for it to work, each with the signal that would show it is not",
        ),
        ("risks", "error", "what may go wrong, how one would notice, and what is done then"),
        ("highest_risk", "error", "the assumption that would hurt most, and how it is tested first"),
        (
            "complexity",
            "warning",
            "expected load, team size, change frequency and upgrade path: is it more than is needed?",
        ),
        ("privacy", "warning", "what data of people it touches; none is an answer"),
        ("milestones", "warning", "what is there when"),
    )
    for key, severity, wanted in asked:
        if not getattr(file, key):
            yield "missing", severity, key, f"{key} is missing: {wanted}"
    for index, assumption in enumerate(file.assumptions):
        if not assumption.falsified_by:
            yield (
                "unfalsifiable", "error", f"assumptions[{index}]",
                f"nothing could show that {assumption.statement[:60]!r} is wrong: add falsified_by, "
                "a metric and a value",
            )  # fmt: skip
    for index, risk in enumerate(file.risks):
        for key, wanted in (("signal", "how one would notice"), ("mitigation", "what is done then")):
            if not getattr(risk, key):
                yield (
                    "missing",
                    "warning",
                    f"risks[{index}].{key}",
                    f"{risk.what[:60]!r}: {key} is missing: {wanted}",
                )
    if file.highest_risk is not None:
        for key in ("assumption", "test"):
            if not getattr(file.highest_risk, key):
                yield "missing", "error", f"highest_risk.{key}", f"highest_risk: {key} is missing"
    if file.complexity is not None:
        for key in ("expected_load", "team_size", "change_frequency", "upgrade_path"):
            if not getattr(file.complexity, key):
                yield "missing", "warning", f"complexity.{key}", f"complexity: {key} is missing"
    for index, use in enumerate(file.ai_use):
        if not use.verified:
            yield (
                "missing",
                "error",
                f"ai_use[{index}].verified",
                f"{use.task[:60]!r}: say how the result was checked",
            )
        if not use.data_shared:
            yield (
                "missing",
                "error",
                f"ai_use[{index}].data_shared",
                f"{use.task[:60]!r}: say what data left for it, or none",
            )


def _rollout(file: ChangeFile) -> Iterator[_Raw]:
    rollout = file.rollout
    controlled = any(table.design == "controlled" for table in file.metrics.values())
    if rollout is None:
        if controlled:
            yield (
                "missing",
                "error",
                "rollout",
                "rollout is missing: stages with a share and a bake, and guardrails",
            )
        return
    before = -1.0
    for index, stage in enumerate(rollout.stages):
        at = f"rollout.stages[{index}]"
        if (stage.share is None) == (not stage.audience):
            yield "stage", "error", at, "a stage has either a share, 0 to 1, or an audience"
        if stage.share is not None:
            if not 0 <= stage.share <= 1:
                yield (
                    "stage",
                    "error",
                    f"{at}.share",
                    f"share is {stage.share:g}, outside 0 to 1; 5 % is 0.05",
                )
            elif stage.share <= before:
                yield (
                    "stage",
                    "error",
                    f"{at}.share",
                    f"share {stage.share:g} after {before:g}: stages only grow",
                )
            before = max(before, stage.share)
        if index < len(rollout.stages) - 1 or stage.bake:
            try:
                parse_window(stage.bake)
            except InvalidInput as error:
                yield "stage", "error", f"{at}.bake", f"bake: {error}"
    if not rollout.stages:
        yield "stage", "error", "rollout.stages", "no stage: give shares that grow, each with a bake"
    if not rollout.guardrails:
        yield "guardrail", "error", "rollout", "no guardrail: nothing would stop this rollout"
    for index, guardrail in enumerate(rollout.guardrails):
        yield from _guardrail(f"rollout.guardrails[{index}]", guardrail, file)


def _guardrail(at: str, guardrail: GuardrailTable, file: ChangeFile) -> Iterator[_Raw]:
    table = file.metrics.get(guardrail.metric)
    if table is None:
        known = ", ".join(sorted(file.metrics)[:6])
        yield (
            "guardrail",
            "error",
            f"{at}.metric",
            f"{guardrail.metric!r} is no metric of this file; there are {known}",
        )
    limits = [guardrail.worse_by != "", guardrail.above is not None, guardrail.below is not None]
    if sum(limits) != 1:
        yield (
            "guardrail",
            "error",
            at,
            "give one of worse_by (beside control), above or below (an absolute limit)",
        )
    if guardrail.worse_by:
        try:
            limit = parse_limit(guardrail.worse_by)
        except InvalidInput as error:
            yield "guardrail", "error", f"{at}.worse_by", str(error)
        else:
            if not limit.relative and table is not None and table.kind != "proportion":
                yield (
                    "guardrail", "error", f"{at}.worse_by",
                    f"percentage points of {guardrail.metric}, which is no proportion: write a share such as 10 %",
                )  # fmt: skip
    elif any(limits[1:]):
        try:
            parse_window(guardrail.for_)
        except InvalidInput as error:
            yield "guardrail", "error", f"{at}.for", f"an absolute limit needs how long: {error}"
    if not guardrail.runbook:
        yield (
            "guardrail",
            "warning",
            f"{at}.runbook",
            f"{guardrail.metric}: no runbook for whoever is paged at night",
        )


def _experiment(file: ChangeFile) -> Iterator[_Raw]:
    experiment = file.experiment
    primary = next(((n, t) for n, t in file.metrics.items() if t.role == "primary"), None)
    if experiment is None:
        if primary is not None and primary[1].design == "controlled":
            yield "missing", "error", "experiment", "experiment is missing: unit, mde, units_per_day and days"
        return
    for key, low, high in (("alpha", 0.0, 0.5), ("power", 0.5, 1.0), ("split", 0.0, 1.0)):
        value = getattr(experiment, key)
        if not low < value < high:
            yield (
                "untestable",
                "error",
                f"experiment.{key}",
                f"{key} is {value:g}, outside {low:g} to {high:g}",
            )
            return
    if not experiment.unit:
        yield "missing", "error", "experiment.unit", "unit is missing: what is randomised, such as user"
    yield from untestable(file, experiment)
