"""What can be found wrong with a run before its load is sent.

A ledger takes no entry that is not whole, and a target about a phase that does not exist can never be judged. Found
after the load, either costs the run; so every entry that the run may make is made once beforehand, without a figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fairlead.change import parse_change
from fairlead.errors import InvalidInput
from fairlead.metrics import Metric
from fairlead.trial.definitions import load_metrics

if TYPE_CHECKING:
    from fairlead.metrics import Target
    from fairlead.trial.system import Plan, System

__all__ = ["WHOLE_RUN", "check_promise", "metrics_of", "places"]

WHOLE_RUN = "run"
"""The name of all measured phases together."""


def metrics_of(system: System, plan: Plan) -> tuple[Metric, ...]:
    """Every metric that the run computes."""
    return (*load_metrics(plan.patience, plan.primary), *system.metrics)


def places(plan: Plan) -> Iterable[tuple[str, str]]:
    """Every arm and phase that has figures; the phase `run` is all measured ones together."""
    phases = [*(phase.name for phase in plan.phases if phase.measured), WHOLE_RUN]
    return ((arm.name, phase) for arm in plan.arms for phase in phases)


def check_promise(
    name: str,
    metrics: Sequence[Metric],
    targets: Iterable[tuple[str, Target]],
    plan: Plan,
    content: bytes | None,
) -> None:
    """Raises InvalidInput for names that collide, and for targets that cannot be judged by what was written."""
    twice = [metric for metric, times in Counter(metric.name for metric in metrics).items() if times > 1]
    if twice:
        raise InvalidInput(f"{name}: metrics {', '.join(twice)}: defined more than once; choose other names")
    computed = {metric.name: _bare(metric) for metric in metrics}
    phases = dict.fromkeys(phase for _, phase in places(plan))
    written = None if content is None else _written(name, content)
    for phase, target in targets:
        about = target.metric.name
        where = f"{name}: the target {target.statement!r} is about {about}"
        if phase not in phases:
            raise InvalidInput(f"{where} in {phase!r}, which is none of the phases {', '.join(phases)}")
        if written is not None and written.get(about) != _bare(target.metric):
            raise InvalidInput(
                f"{where}, which the change file {'defines otherwise' if about in written else 'does not define'}; "
                "a run is judged by what was written"
            )
        if computed.get(about) != _bare(target.metric):
            raise InvalidInput(
                f"{where}, which the run {'computes otherwise' if about in computed else 'does not compute'}"
            )
    for about, metric in (written or {}).items():
        if about in computed and computed[about].definition() != metric.definition():
            raise InvalidInput(
                f"{name}: the change file defines {about} otherwise than the run computes it; a run is judged by what "
                "was written"
            )


def _written(name: str, content: bytes) -> dict[str, Metric]:
    definitions = parse_change(content, f"{name}: change file").definitions()
    return {metric.name: _bare(metric) for metric in definitions}


def _bare(metric: Metric) -> Metric:
    # Today's figure and the one hoped for are the file's own; a run measures both anew.
    return replace(metric, baseline=None, target=None)
