"""What a decision of a rollout stood on, as the ledger keeps it.

Each guardrail leaves the figures of both arms and what was compared; the decision names them by id. Looks that decided
nothing are in the journal only.

A decision is recorded before it is carried out. Its controller may end in between, so the one after it asks for the
last decision here, and says so where the journal does not know it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from fairlead.ledger import Decision, Evidence, Ledger
from fairlead.metrics import Metric
from fairlead.metrics.metric import Design, percentile
from fairlead.rollout.entry import Looked, one_line
from fairlead.rollout.guardrail import Evaluation
from fairlead.rollout.judgement import Judgement
from fairlead.rollout.plan import Guardrail, RolloutPlan

__all__ = ["DecisionLog", "Recorded"]


class Recorded(NamedTuple):
    """Ids in the ledger."""

    decision: str = ""
    evidence: tuple[str, ...] = ()


class DecisionLog:
    """Records decisions and their evidence in a ledger. Blocks; call it in a thread."""

    def __init__(
        self, ledger: Ledger, *, by: str, caveats: tuple[str, ...] = (), simulated: bool = False
    ) -> None:
        """by: who decides, with its version. caveats: of all figures, such as that time was virtual. simulated: whether
        users, time or events were made, so that no figure says what the change causes.
        """
        self._ledger = ledger
        self._simulated = simulated
        self._by = by
        self._caveats = caveats

    def record(
        self, plan: RolloutPlan, rollout: str, judgement: Judgement, looked: Looked, at_utc_seconds: float
    ) -> Recorded:
        """The ids of the decision and of its evidence. Recording the same twice records it once."""
        ids = [
            self._ledger.record_evidence(evidence)
            for evaluation in looked.evaluations
            for evidence in self._evidence(plan, evaluation, looked, at_utc_seconds)
        ]
        ids = list(dict.fromkeys(ids))
        ground = f" (ground: {judgement.ground})" if judgement.ground == "no_harm_seen" else ""
        stage = plan.stages[looked.stage].name
        decision = self._decide(
            plan,
            rollout,
            judgement.verdict,
            f"stage {stage}: {judgement.reason}{ground}",
            at_utc_seconds,
            ids,
        )
        return Recorded(decision=decision, evidence=tuple(ids))

    def unknown(self, plan: RolloutPlan, rollout: str, last: str) -> tuple[Recorded, Decision] | None:
        """The last advance or rollback of this rollout, unless it is the one of this id, or was taken back."""
        found: tuple[str, Decision] | None = None
        for entry in self._ledger.decisions(plan.name):
            if isinstance(entry.body, Decision) and entry.body.reason.startswith(f"{rollout}, "):
                found = entry.id, entry.body
        if found is None or found[0] == last or found[1].verdict == "hold":
            return None
        return Recorded(decision=found[0], evidence=found[1].evidence), found[1]

    def take_back(self, plan: RolloutPlan, rollout: str, decision: Decision, at_utc_seconds: float) -> None:
        """Records that a decision was not carried out."""
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(decision.decided_at_utc_seconds))
        reason = f"the {decision.verdict} of {at} was not carried out: its controller ended before, or could not write"
        self._decide(plan, rollout, "hold", reason, at_utc_seconds, decision.evidence)

    def _decide(
        self, plan: RolloutPlan, rollout: str, verdict: str, reason: str, at: float, evidence: Iterable[str]
    ) -> str:
        return self._ledger.record_decision(
            Decision(
                change=plan.name,
                decided_by=self._by,
                verdict=verdict,
                reason=one_line(f"{rollout}, {reason}"),
                decided_at_utc_seconds=at,
                evidence=tuple(evidence),
            )
        )

    def _evidence(
        self, plan: RolloutPlan, found: Evaluation, looked: Looked, at: float
    ) -> Iterator[Evidence]:
        guardrail = plan.guardrail(found.guardrail)
        metric = guardrail.metric
        statistic = percentile(metric.q) if metric.q is not None else metric.kind
        arms = (
            (plan.control, found.control, found.n_control),
            (plan.treatment, found.treatment, found.n_treatment),
        )
        for arm, value, n in arms:
            if arm == plan.control and value is None and not guardrail.is_relative:
                continue  # nobody asked for control's
            yield self._one(
                plan, guardrail, found, looked, at, arm, statistic, value, n, metric.unit, None, None
            )
        if guardrail.is_relative:
            what = "treatment / control − 1" if guardrail.relative else "treatment − control"
            low, high = (None, found.bound) if metric.better == "lower" else (_negative(found.bound), None)
            effect = found.effect if metric.better == "lower" else _negative(found.effect)
            yield self._one(
                plan,
                guardrail,
                found,
                looked,
                at,
                what.replace("treatment", plan.treatment).replace("control", plan.control),
                f"{'relative ' if guardrail.relative else ''}effect on the {statistic}",
                effect,
                found.n_control + found.n_treatment,
                "ratio" if guardrail.relative else metric.unit,
                low,
                high,
            )

    def _one(
        self,
        plan: RolloutPlan,
        guardrail: Guardrail,
        found: Evaluation,
        looked: Looked,
        at: float,
        arm: str,
        statistic: str,
        value: float | None,
        n: int,
        unit: str,
        low: float | None,
        high: float | None,
    ) -> Evidence:
        metric: Metric = guardrail.metric
        design: Design = "controlled" if plan.stages[looked.stage].compares else "before_after"
        has_interval = low is not None or high is not None
        verdict = f"guardrail {found.guardrail}: {found.verdict}"
        verdict += f", {found.reason}" if found.reason else ""
        verdict += f": {found.detail}" if found.detail else ""
        caveats = [*self._caveats, one_line(verdict)]
        if guardrail.is_relative:
            caveats.append(f"log e-value {found.log_e_value:.3f} in this stage; one-sided")
        if guardrail.is_relative and metric.kind == "quantile":
            caveats.append(
                f"the e-value counts units beyond the quantile of {plan.control} a moment before: "
                f"{found.beyond_control} of {plan.control}, {found.beyond_treatment} of {plan.treatment}"
            )
        return Evidence(
            change=plan.name,
            metric=metric.name,
            definition=metric.definition(),
            statistic=statistic,
            arm=arm,
            value=value if value is None or math.isfinite(value) else None,
            unit=unit,
            side=metric.side,
            window=f"stage {plan.stages[looked.stage].name}, {looked.guarded_seconds:.0f} s under guard",
            segment=metric.segment,
            unit_of_analysis=metric.unit_of_analysis,
            n=n,
            low=low,
            high=high,
            confidence=1 - plan.alpha_each if has_interval else None,
            design="simulated" if self._simulated else design,
            method="anytime-valid, per unit"
            if guardrail.is_relative
            else "figure of the last seconds, every event",
            query_sha256=hashlib.sha256(found.query.encode()).hexdigest(),
            data_sha256=hashlib.sha256(msgspec.json.encode(looked)).hexdigest(),
            measured_at_utc_seconds=at,
            caveats=tuple(dict.fromkeys(caveats)),
        )


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
