"""How the change was let out, as rows and sentences: the same for the terminal and for the page."""

from __future__ import annotations

from fairlead.charts import format_value
from fairlead.rollout.wording import evaluation_row, span
from fairlead.trial.rollout_record import CanaryRecord, LetOutRecord, RolloutRecord, ShadowRecord

__all__ = [
    "DECISION_COLUMNS",
    "FIELD_COLUMNS",
    "canary_in_words",
    "decision_rows",
    "field_rows",
    "parts_missing",
    "rollout_in_words",
    "shadow_in_words",
]

FIELD_COLUMNS = ("field", "differed", "treatment only", "control's second only", "p", "more than noise?")
DECISION_COLUMNS = (
    *("after", "stage", "decision", "guardrail", "verdict", "control", "treatment", "worse by", "at most"),
    "n: control / treatment",
)


def shadow_in_words(shadow: ShadowRecord) -> str:
    """How many were compared, how many alike, what was dropped, and how long both took."""
    alike = shadow.outcomes.get("same", 0)
    said = (
        f"{shadow.requests:,} live requests in {shadow.seconds:g} s, {shadow.failed} failed; treatment answered "
        f"{shadow.compared:,} of them too, after the reader had control's page: {alike} alike in all that is shown"
    )
    for outcome, count in shadow.outcomes.items():
        if outcome not in ("same", "different"):
            said += f", {count} {outcome}"
    dropped = {why: count for why, count in shadow.dropped.items() if why != "sampled_out"}
    if dropped:
        said += "; not compared: " + ", ".join(f"{count} {why}" for why, count in dropped.items())
    if shadow.p50_seconds:
        times = (
            f"{arm} p50 {format_value(shadow.p50_seconds[arm], 'seconds')}, p99 "
            f"{format_value(shadow.p99_seconds[arm], 'seconds')}"
            for arm in shadow.p50_seconds
        )
        said += f"; {'; '.join(times)}"
    return said


def field_rows(shadow: ShadowRecord) -> list[tuple[str, ...]]:
    """A row per field that differed; see FIELD_COLUMNS."""
    return [
        (
            field.path,
            f"{field.differed:,} of {shadow.compared:,}",
            f"{field.only_treatment:,} of {shadow.compared_twice:,}",
            f"{field.only_control:,} of {shadow.compared_twice:,}",
            f"{field.p_value:.2g}",
            field.verdict,
        )
        for field in shadow.fields
    ]


def canary_in_words(canary: CanaryRecord) -> str:
    """How soon the regression was found, and gone."""
    if canary.decided_seconds is None:
        said = f"NOT rolled back by a guardrail: {canary.rollout.reason or 'not ended'}"
    else:
        said = f"rolled back by a guardrail {canary.decided_seconds:.2f} s after it was first served"
    if canary.withdrawn_seconds is not None:
        said += f"; its flag was read back as serving nobody {format_value(canary.withdrawn_seconds, 'seconds')} later"
    if canary.last_page_seconds is not None:
        moment = format_value(abs(canary.last_page_seconds), "seconds")
        side = "after" if canary.last_page_seconds > 0 else "before"
        said += f"; its last page was begun {moment} {side} the decision"
    return f"{said}; {canary.failed:,} of {canary.requests:,} live requests failed, of both arms"


def rollout_in_words(rollout: RolloutRecord) -> str:
    """What became of it, and in how long a time; of a virtual one, how much it was drawn from."""
    how = f"{span(rollout.seconds)} of virtual time" if rollout.virtual else f"{rollout.seconds:.1f} s"
    said = f"{rollout.outcome.replace('_', ' ') or 'not ended'} after {how}"
    if rollout.outcome == "completed":  # its reason is the last stage's alone
        weaker = [each.stage for each in rollout.decisions if each.ground == "no_harm_seen"]
        said += f", in {len(rollout.decisions)} stages; "
        said += (
            f"{' and '.join(weaker)} on the weaker ground that no guardrail had shown harm"
            if weaker
            else "every guardrail passed in each"
        )
    elif rollout.reason:
        said += f": {rollout.reason}"
    if rollout.drawn_from:
        counts = " and ".join(f"{count:,} of {arm}" for arm, count in rollout.drawn_from.items())
        said += f"; drawn from recorded requests: {counts}"
    return said


def decision_rows(rollout: RolloutRecord) -> list[tuple[str, ...]]:
    """A row per decision and guardrail, the decision named in its first; see DECISION_COLUMNS."""
    known = {guardrail.name: guardrail for guardrail in rollout.guardrails}
    rows: list[tuple[str, ...]] = []
    for decision in rollout.decisions:
        after = span(decision.after_seconds) if rollout.virtual else f"{decision.after_seconds:.2f} s"
        ground = f" ({decision.ground.replace('_', ' ')})" if decision.ground else ""
        head = (after, decision.stage, f"{decision.verdict}{ground}")
        for found in decision.evaluations:
            guardrail = known[found.guardrail]
            figures = evaluation_row(
                found, guardrail.unit, beside_control=guardrail.beside_control, relative=guardrail.relative
            )
            rows.append((*head, found.guardrail, *figures))
            head = ("", "", "")
        if not decision.evaluations:
            rows.append((*head, decision.reason, *[""] * 6))
    return rows


def parts_missing(let_out: LetOutRecord) -> str:
    """Which parts were not played to their end, and why."""
    parts = {"shadow": let_out.shadow, "the canary": let_out.canary, "the whole plan": let_out.rollout}
    missing = [name for name, part in parts.items() if part is None]
    return f"not played to its end: {', '.join(missing)}: {let_out.missing}"
