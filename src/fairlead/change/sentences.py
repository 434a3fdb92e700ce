"""What a sentence of a change file must say so that it can turn out false: a figure, a metric, a mechanism, a signal.

Words are judged, not grammar. "Much faster: p99 from 380 to 210 ms" says how much, so it is a matter of taste and a
warning; "much faster" alone keeps the file from being frozen. The 99 of p99 is a name and no figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fairlead.change.finding import Raw, Severity
from fairlead.change.sections import ChangeFile

__all__ = ["doubts", "situation"]

_VAGUE = re.compile(
    r"\b(a lot|lots of|much (?:faster|better|slower|lower|higher)|as (?:fast|soon|good|much) as possible|"
    r"(?<!statistically )significant(?:ly)?|substantial(?:ly)?|great(?:ly)?|dramatic(?:ally)?|seamless(?:ly)?|robust|"
    r"world[- ]class|state[- ]of[- ]the[- ]art|user[- ]friendly|nice|etc|and so on)\b",
    re.IGNORECASE,
)
_FIGURE = re.compile(
    r"(?<![\w./])\d|\b(half|halves?|halved|twice|doubled?|third|quarter|fifth|tenth|zero|never|two|three|four|five|six|"
    r"seven|eight|nine|ten|dozen|hundred|thousand|an? (?:second|minute|hour|day))\b",
    re.IGNORECASE,
)
_MECHANISM = re.compile(
    r"\b(because|since|so that|therefore|thanks to|due to|through|no longer|instead of|in place of|by \w+ing)\b",
    re.IGNORECASE,
)
_SITUATION: tuple[tuple[str, Severity, str], ...] = (
    ("title", "error", "how a person calls it"),
    ("problem", "error", "what is wrong today, with a figure"),
    ("users", "error", "who meets it, and in what situation"),
    ("why_now", "warning", "what makes it worth doing before other things"),
    ("goal", "error", "what shall be true afterwards, with a figure"),
    ("hypothesis", "error", "doing what changes which metric by how much, because of which mechanism"),
    ("owner", "error", "who answers for it"),
    ("constraints", "warning", "what must not be touched, spent or exceeded"),
    ("stakeholders", "warning", "who else is concerned, and what each cares about"),
    ("scope_cuts", "warning", "what was left out on purpose, and why it can wait"),
)
_DOUBTS: tuple[tuple[str, Severity, str], ...] = (
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
        "expected load, team size, change frequency, upgrade path: is it more than is needed?",
    ),
    ("privacy", "warning", "what data of people it touches; none is an answer"),
    ("milestones", "warning", "what is there when"),
)


def situation(file: ChangeFile) -> Iterator[Raw]:
    """Findings about `[change]`."""
    change = file.change
    for key, severity, wanted in _SITUATION:
        if not getattr(change, key):
            yield "missing", severity, f"change.{key}", f"{key} is missing: {wanted}"
    for key in ("problem", "goal", "hypothesis"):
        yield from _sentence(f"change.{key}", getattr(change, key))
    if change.hypothesis:
        yield from _hypothesis(file)
    if change.role is None:
        yield (
            "missing", "warning", "change.role",
            "role is missing: what you led, built and decided, and what others did",
        )  # fmt: skip
    elif not change.role.others:
        yield (
            "missing",
            "warning",
            "change.role.others",
            "others is missing: nobody ships alone; say what others did",
        )


def _sentence(path: str, text: str) -> Iterator[Raw]:
    has_figure = _FIGURE.search(text)
    if vague := _VAGUE.search(text):
        said = (
            "is judged by nobody's measure: leave it to the figures"
            if has_figure
            else "is no figure: say how much"
        )
        yield "vague", "warning" if has_figure else "error", path, f"{vague[0]!r} {said}"
    elif text and not has_figure:
        key = path.rpartition(".")[2]
        yield "vague", "error", path, f"{key} holds no number: say how much, so that it can turn out false"


def _hypothesis(file: ChangeFile) -> Iterator[Raw]:
    said = file.change.hypothesis.lower()
    primary = [(name, table) for name, table in file.metrics.items() if table.role == "primary"]
    if primary and not any(
        name.lower() in said or (table.title and table.title.lower() in said) for name, table in primary
    ):
        yield (
            "vague", "error", "change.hypothesis",
            f"the hypothesis does not name {primary[0][0]}, by which the change is judged: say what becomes of it",
        )  # fmt: skip
    if not _MECHANISM.search(said):
        yield (
            "vague", "warning", "change.hypothesis",
            "the hypothesis gives no mechanism: add because of what; else nobody can learn from its failure",
        )  # fmt: skip


def doubts(file: ChangeFile) -> Iterator[Raw]:
    """Findings about what may be wrong: assumptions, risks, complexity, privacy, and what others or machines did."""
    for key, severity, wanted in _DOUBTS:
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
    for index, conflict in enumerate(file.conflicts):
        if not conflict.settled_by:
            yield (
                "missing", "warning", f"conflicts[{index}].settled_by",
                f"{conflict.about[:60]!r}: settled_by is missing: the evidence, or that it is open",
            )  # fmt: skip
    for index, use in enumerate(file.ai_use):
        for key, wanted in (
            ("verified", "how the result was checked"),
            ("data_shared", "what data left for it, or none"),
        ):
            if not getattr(use, key):
                yield "missing", "error", f"ai_use[{index}].{key}", f"{use.task[:60]!r}: say {wanted}"
