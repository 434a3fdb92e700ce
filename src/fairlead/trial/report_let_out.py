"""The report's section on how the change was let out: each decision with the figures that it stood on."""

from __future__ import annotations

import html
from collections.abc import Sequence

from fairlead.trial.result import Result
from fairlead.trial.rollout_record import CanaryRecord, RolloutRecord, ShadowRecord
from fairlead.trial.rollout_words import (
    DECISION_COLUMNS,
    FIELD_COLUMNS,
    canary_in_words,
    decision_rows,
    field_rows,
    parts_missing,
    rollout_in_words,
    shadow_in_words,
)

__all__ = ["let_out_section"]


def let_out_section(result: Result) -> str:
    """HTML; empty for a run in which the change was not let out."""
    found = result.let_out
    if found is None:
        return ""
    return (
        "<section><h2>Letting it out</h2>"
        "<p>One service serves both paths by a flag; the rollout moves that flag, looks at the service's own events, "
        "and writes each decision with its evidence into the run's ledger.</p>"
        + (_shadow(found.shadow) if found.shadow is not None else "")
        + (_canary(found.canary) if found.canary is not None else "")
        + (_whole_plan(found.rollout) if found.rollout is not None else "")
        + (f"<p><b>{_text(_sentence(parts_missing(found)))}.</b></p>" if found.missing else "")
        + "</section>\n"
    )


def _shadow(shadow: ShadowRecord) -> str:
    return (
        "<h3>Unseen beside control <small>(shadow, live)</small></h3>"
        f"<p>{_text(shadow_in_words(shadow))}.</p>"
        + (_table(FIELD_COLUMNS, field_rows(shadow), words=1) if shadow.fields else "")
        + "<p class=note>Control's second answer comes from its cache, so it hardly differs from the first.</p>"
    )


def _canary(canary: CanaryRecord) -> str:
    incident = (
        f"<p class=note>Written into the run's copy of the change file, <code>change.toml</code>: "
        f"{_text(canary.incident)}</p>"
        if canary.incident
        else ""
    )
    return (
        f"<h3>A canary that does harm <small>(live, {canary.share * 100:g} % of the users)</small></h3>"
        f"<p>Planted: {_text(canary.planted)}. <b>{_text(_sentence(canary_in_words(canary)))}.</b></p>"
        + _decisions(canary.rollout)
        + incident
    )


def _whole_plan(rollout: RolloutRecord) -> str:
    return (
        "<h3>The whole plan <small>(virtual time, recorded events)</small></h3>"
        f"<p><b>{_text(_sentence(rollout_in_words(rollout)))}.</b> Users are made; what each meets is a "
        "request that this run recorded of the arm that the flag gave him, drawn by lot from the phases in which "
        "nothing was broken on purpose. Users who come back, days that differ and services that tire are not in it.</p>"
        + _decisions(rollout)
        + _watched(rollout)
    )


def _decisions(rollout: RolloutRecord) -> str:
    reasons = "".join(
        f"<li>{_text(each.stage)}: {_text(each.reason)}"
        + (f" <small>({len(each.evidence)} entries of evidence)</small>" if each.evidence else "")
        + "</li>"
        for each in rollout.decisions
    )
    return _table(DECISION_COLUMNS, decision_rows(rollout), words=5) + f"<ul>{reasons}</ul>"


def _watched(rollout: RolloutRecord) -> str:
    entries = "".join(
        f"<dt>{_text(each.name)}</dt><dd>{_text(each.definition)}.</dd>" for each in rollout.guardrails
    )
    return f"<h4>What was watched</h4><dl>{entries}</dl>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """words: how many of the first columns hold no figures."""
    heads = "".join(
        f"<th scope=col{'' if number < words else ' class=number'}>{_text(column)}</th>"
        for number, column in enumerate(columns)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if number < words else ' class=number'}>{_text(cell)}</td>"
            for number, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _text(value: object) -> str:
    return html.escape(str(value))
