"""From a change file to the plan of its rollout: the only place that knows both."""

from __future__ import annotations

from fairlead.change.sections import ChangeFile, GuardrailTable, RolloutTable, StageTable, parse_limit
from fairlead.errors import InvalidInput
from fairlead.metrics import Metric, parse_duration
from fairlead.rollout import Guardrail, RolloutPlan, Stage
from fairlead.rollout.presets import preset_guardrails

__all__ = ["rollout_plan"]

_DAY = 86_400.0


def rollout_plan(change: ChangeFile) -> RolloutPlan:
    """The rollout that a change file describes. Raises InvalidInput where it has none, or one that cannot work."""
    name, rollout = change.change.name, change.rollout
    if rollout is None:
        raise InvalidInput(
            f"{name}: the change file has no [rollout]; say which stages, and what would stop them"
        )
    metrics = {metric.name: metric for metric in change.definitions()}
    guardrails = [_guardrail(each, metrics, name) for each in rollout.guardrails]
    for preset in rollout.presets:
        for word, metric in (("errors", preset.errors), ("latency", preset.latency)):
            if metric and metric not in metrics:
                raise InvalidInput(
                    f"{name}: preset {preset.name}: {word} {metric!r:.60} is no metric of this file"
                )
        guardrails += preset_guardrails(
            preset.name,
            errors=metrics.get(preset.errors),
            latency=metrics.get(preset.latency),
            runbook=preset.runbook,
        )
    experiment = change.experiment
    per_day = experiment.units_per_day if experiment else None
    return RolloutPlan(
        name=name,
        flag=rollout.flag or name,
        stages=tuple(_stage(stage) for stage in rollout.stages),
        guardrails=tuple(guardrails),
        treatment=rollout.treatment,
        control=rollout.control,
        alpha=rollout.alpha,
        advance_on=rollout.advance_on,
        dependencies=rollout.dependencies,
        expected_rate=per_day / _DAY if per_day else None,
        **_durations(rollout),
    )


def _durations(rollout: RolloutTable) -> dict[str, float]:
    names = ("look_every", "stale_after", "silence", "patience")
    return {name: _seconds(f"rollout.{name}", getattr(rollout, name)) for name in names}


def _seconds(where: str, text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _stage(stage: StageTable) -> Stage:
    return Stage(
        share=stage.share or 0.0,
        audience=stage.audience,
        bake=_seconds("rollout.stages: bake", stage.bake) if stage.bake else 0.0,
        longest=_seconds("rollout.stages: longest", stage.longest) if stage.longest else None,
        minimum_units=stage.minimum_units,
        gate=stage.gate,
    )


def _guardrail(table: GuardrailTable, metrics: dict[str, Metric], name: str) -> Guardrail:
    metric = metrics.get(table.metric)
    if metric is None:
        raise InvalidInput(f"{name}: guardrail {table.metric!r:.60} is no metric of this file")
    held = _seconds(f"guardrail {table.metric}: for", table.for_) if table.for_ else 600.0
    if table.worse_by:
        limit = parse_limit(table.worse_by)
        return Guardrail(metric=metric, worse_by=limit.amount, relative=limit.relative, runbook=table.runbook)
    above = table.above
    if table.burn_rate is not None:
        if table.target is None or not 0 < table.target < 1:
            raise InvalidInput(f"{name}: guardrail {table.metric}: burn_rate needs a target between 0 and 1")
        # Rounded: 14.4 times 0.001 is 0.014400000000000003 in floating point.
        above = round(table.burn_rate * (1 - table.target), 12)
    return Guardrail(
        metric=metric,
        above=above,
        below=table.below,
        for_seconds=held,
        runbook=table.runbook,
        query=table.query,
    )
