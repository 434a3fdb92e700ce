"""From a change file to the plan of its experiment: the only place that knows both.

The rooms below take plain plans. What the file leaves open has one meaning, written here: flag and control are those of
the rollout; guardrails may be as much worse as the rollout tolerates, or else as `non_inferiority` says; only metrics
of a controlled design are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.change.sections import ChangeFile, ExperimentTable, parse_limit
from fairlead.errors import InvalidInput
from fairlead.experiment import ExperimentPlan, Fairness, Margin, Trigger
from fairlead.metrics import Metric, parse_duration

if TYPE_CHECKING:
    from fairlead.experiment.design import Spread

__all__ = ["experiment_plan", "stages_of", "written_spreads"]


def experiment_plan(change: ChangeFile) -> ExperimentPlan:
    """The experiment that a change file describes.

    Raises InvalidInput where it has none, or says things that contradict each other.
    """
    name = change.change.name
    experiment = change.experiment
    if experiment is None:
        raise InvalidInput(f"{name}: the change file has no [experiment]; say what is randomised, and how")
    metrics = tuple(metric for metric in change.definitions() if metric.design == "controlled")
    if not metrics:
        raise InvalidInput(
            f"{name}: no metric has the design `controlled`, so an experiment has nothing to compare; the others are "
            "measured by load tests and before/after"
        )
    units = (
        experiment.units_per_day * experiment.days if experiment.units_per_day and experiment.days else None
    )
    return ExperimentPlan(
        name=name,
        metrics=metrics,
        flag=(change.rollout.flag or name) if change.rollout else "",
        control=_control(change, experiment),
        treatment_share=experiment.split,
        alpha=experiment.alpha,
        power=experiment.power,
        mde=experiment.mde,
        planned_units=units,
        sequential=experiment.sequential,
        conversion_window=_seconds(experiment.conversion_window),
        pre_period=_seconds(experiment.pre_period),
        covariates={
            metric.name: (experiment.covariate,)
            for metric in metrics
            if experiment.covariate and metric.kind not in ("quantile", "formula")
        },
        caps=experiment.caps,
        segments=experiment.segments,
        margins=_margins(change, metrics),
        trigger=None
        if experiment.trigger is None
        else Trigger(
            event=experiment.trigger.event,
            unit_field=experiment.trigger.unit_field,
            where=experiment.trigger.where,
        ),
        fairness=tuple(
            Fairness(metric=one.metric, group=one.group, limit=one.limit) for one in experiment.fairness
        ),
    )


def _control(change: ChangeFile, experiment: ExperimentTable) -> str:
    if change.rollout is None:
        return experiment.control or "control"
    if experiment.control and experiment.control != change.rollout.control:
        raise InvalidInput(
            f"{change.change.name}: experiment.control is {experiment.control!r:.60}, and rollout.control "
            f"{change.rollout.control!r:.60}; one flag has one control: leave the experiment's out"
        )
    return change.rollout.control


def _seconds(text: str) -> float | None:
    return parse_duration(text) if text else None


def _margins(change: ChangeFile, metrics: tuple[Metric, ...]) -> dict[str, Margin]:
    """The tightest limit beside control of each guardrail; without one, the file's `non_inferiority`."""
    margins: dict[str, Margin] = {}
    limits = change.rollout.guardrails if change.rollout else ()
    tolerated = change.experiment.non_inferiority if change.experiment else None
    for metric in metrics:
        said = [
            parse_limit(limit.worse_by) for limit in limits if limit.metric == metric.name and limit.worse_by
        ]
        if said:
            baseline = abs(change.metrics[metric.name].baseline or 0.0)
            if len({limit.relative for limit in said}) > 1 and not baseline:
                raise InvalidInput(
                    f"metrics.{metric.name}: limits in points and in percent, and no baseline to compare them by; "
                    "give one, or keep one kind of limit"
                )
            tightest = min(said, key=lambda limit: limit.amount * (baseline if limit.relative else 1.0))
            margins[metric.name] = Margin(by=tightest.amount, relative=tightest.relative)
        elif metric.role == "guardrail" and tolerated:
            margins[metric.name] = Margin(by=tolerated, relative=True)
    return margins


def stages_of(change: ChangeFile) -> list[tuple[float, float | None]]:
    """Treatment's share and days of each stage of the rollout in which there is anybody to compare with, and the
    experiment's own split for all its days.
    """
    stages: list[tuple[float, float | None]] = []
    for stage in change.rollout.stages if change.rollout else ():
        if stage.share is not None and 0 < stage.share < 1:
            seconds = _seconds(stage.bake)
            stages.append((stage.share, seconds / 86400 if seconds else None))
    if change.experiment is not None:
        days = change.experiment.days
        stages.append((change.experiment.split, float(days) if days else None))
    return list(dict.fromkeys(stages))


def written_spreads(change: ChangeFile) -> dict[str, Spread | str]:
    """How much units vary, as the file says it, where there is no history to measure it on."""
    from fairlead.change.testable import deviation_of
    from fairlead.experiment.design import Spread

    spreads: dict[str, Spread | str] = {}
    for name, table in change.metrics.items():
        if table.baseline is None or not table.baseline > 0:
            spreads[name] = "no baseline above 0 in the change file; give history by --data"
            continue
        try:
            deviation = deviation_of(table)
        except InvalidInput as error:
            spreads[name] = str(error)
            continue
        spreads[name] = (
            "neither standard_deviation nor density in the change file; give history by --data"
            if deviation is None
            else Spread(figure=table.baseline, deviation=deviation)
        )
    return spreads
