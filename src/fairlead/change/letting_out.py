"""Whether a rollout can be stopped by what it watches: shares that grow, stages that wait, limits on what is there."""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.change.finding import Raw
from fairlead.change.sections import ChangeFile, GuardrailTable, RolloutTable, StageTable, parse_limit
from fairlead.errors import InvalidInput
from fairlead.metrics import parse_duration

__all__ = ["letting_out"]


def letting_out(file: ChangeFile) -> Iterator[Raw]:
    """Findings about `[rollout]`."""
    rollout = file.rollout
    if rollout is None:
        if any(table.design == "controlled" for table in file.metrics.values()):
            yield (
                "missing",
                "error",
                "rollout",
                "rollout is missing: stages with a share and a bake, and guardrails",
            )
        return
    if not rollout.flag:
        yield (
            "missing",
            "error",
            "rollout.flag",
            "flag is missing: what lets the change out, and takes it back",
        )
    if not rollout.stages:
        yield "stage", "error", "rollout.stages", "no stage: give shares that grow, each with a bake"
    yield from _stages(rollout)
    if not rollout.guardrails and not rollout.presets:
        yield "guardrail", "error", "rollout", "no guardrail: nothing would stop this rollout"
    for index, guardrail in enumerate(rollout.guardrails):
        yield from _guardrail(f"rollout.guardrails[{index}]", guardrail, file)


def _stages(rollout: RolloutTable) -> Iterator[Raw]:
    before = -1.0
    for index, stage in enumerate(rollout.stages):
        at = f"rollout.stages[{index}]"
        if (stage.share is None) == (not stage.audience):
            yield "stage", "error", at, "a stage has either a share, 0 to 1, or an audience"
        if stage.share is not None and not 0 <= stage.share <= 1:
            yield "stage", "error", f"{at}.share", f"share is {stage.share:g}, outside 0 to 1; 5 % is 0.05"
        elif stage.share is not None:
            if stage.share <= before:
                yield (
                    "stage",
                    "error",
                    f"{at}.share",
                    f"share {stage.share:g} after {before:g}: stages only grow",
                )
            before = max(before, stage.share)
        if index < len(rollout.stages) - 1 or stage.bake:
            yield from _bake(at, stage)


def _bake(at: str, stage: StageTable) -> Iterator[Raw]:
    try:
        seconds = parse_duration(stage.bake)
    except InvalidInput as error:
        yield "stage", "error", f"{at}.bake", f"bake: {error}"
    else:
        if seconds == 0:
            yield "stage", "error", f"{at}.bake", "bake is 0: a stage that does not wait shows nothing"


def _guardrail(at: str, guardrail: GuardrailTable, file: ChangeFile) -> Iterator[Raw]:
    table = file.metrics.get(guardrail.metric)
    if table is None:
        known = ", ".join(sorted(file.metrics)[:6])
        yield (
            "guardrail", "error", f"{at}.metric",
            f"{guardrail.metric!r} is no metric of this file; there are {known or 'none'}",
        )  # fmt: skip
    limits = [guardrail.worse_by != "", guardrail.above is not None, guardrail.below is not None]
    if (guardrail.burn_rate is None) != (guardrail.target is None):
        yield "guardrail", "error", at, "burn_rate and target go together: burn_rate = 14.4, target = 0.999"
    if sum(limits) + (guardrail.burn_rate is not None) != 1:
        yield (
            "guardrail",
            "error",
            at,
            "give one of worse_by (beside control), above, below or burn_rate (an absolute limit)",
        )
    elif guardrail.worse_by:
        yield from _relative(f"{at}.worse_by", guardrail, file)
    absolute = [guardrail.above, guardrail.below, guardrail.burn_rate]
    if guardrail.for_ or any(limit is not None for limit in absolute):
        try:
            parse_duration(guardrail.for_)
        except InvalidInput as error:
            wanted = "for" if guardrail.for_ else "an absolute limit needs how long"
            yield "guardrail", "error", f"{at}.for", f"{wanted}: {error}"
    wrong = "below" if guardrail.above is not None else "above"
    if table is not None and sum(limits[1:]) == 1 and (guardrail.above is None) == (table.better == "lower"):
        yield (
            "guardrail", "error", at,
            f"{guardrail.metric} is better {table.better}, and this would stop the rollout for being good: "
            f"write {wrong}",
        )  # fmt: skip
    if not guardrail.runbook:
        yield (
            "guardrail", "warning", f"{at}.runbook", f"{guardrail.metric}: no runbook for whoever is paged at night"
        )  # fmt: skip


def _relative(at: str, guardrail: GuardrailTable, file: ChangeFile) -> Iterator[Raw]:
    table = file.metrics.get(guardrail.metric)
    try:
        limit = parse_limit(guardrail.worse_by)
    except InvalidInput as error:
        yield "guardrail", "error", at, str(error)
        return
    if limit.amount == 0:
        yield (
            "guardrail",
            "error",
            at,
            "worse_by is 0, which chance alone exceeds half the time: allow a margin",
        )
    if table is None:
        return
    if not limit.relative and table.kind != "proportion":
        yield (
            "guardrail", "error", at,
            f"percentage points of {guardrail.metric}, which is no proportion: write a share such as 10 %",
        )  # fmt: skip
    if limit.relative and table.baseline == 0:
        yield (
            "guardrail", "error", at,
            f"a share of {guardrail.metric}, which is 0 today: nothing is relative to 0; "
            "write percentage points or an absolute limit",
        )  # fmt: skip
