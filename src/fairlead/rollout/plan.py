"""How a change is let out: stages that grow, and what would stop them.

A plan is plain data, made from a change file (`fairlead.change`) or by hand. It says nothing of how traffic is moved
or where figures come from: those are ports that the controller is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput
from fairlead.metrics import Metric

__all__ = ["Guardrail", "RolloutPlan", "Stage"]

_MOST_STAGES = 50
_MOST_GUARDRAILS = 50
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a rollout: whom it lets in, and how long it waits."""

    share: float = 0.0
    """Of the units, 0–1, in whole slots of 1/10,000. 0 with no audience is a dark launch."""
    audience: str = ""
    """Whom it lets in whatever their slot, by the context's attribute `audience`: "internal". Empty: nobody."""
    bake: float = 3600.0
    """Seconds under guard before it may end. Time in which no guardrail was evaluated does not count."""
    longest: float | None = None
    """Seconds under guard after which it has to end, one way or the other; None: three times `bake`."""
    minimum_units: int = 0
    """Units of the smaller arm before it may end."""
    gate: Literal["automatic", "manual"] = "automatic"
    """manual: a person says when it may end, within `patience` of the plan."""

    def __post_init__(self) -> None:
        check_number("share", self.share, low=0, high=1)
        if abs(self.share * 10_000 - round(self.share * 10_000)) > 1e-6:
            raise InvalidInput(f"share {self.share:g} is no whole number of slots; a slot is 0.0001")
        if self.audience and not (self.audience.isprintable() and len(self.audience) <= 64):
            raise InvalidInput("audience: write one printable line of up to 64 characters")
        check_number("bake", self.bake, low=0, high=366 * _DAY)
        if self.longest is not None:
            check_number("longest", self.longest, low=self.bake, high=366 * _DAY)
        check_whole("minimum_units", self.minimum_units, low=0, high=10**9)
        if self.gate not in ("automatic", "manual"):
            raise InvalidInput(f"gate {self.gate!r:.40}: automatic or manual")

    @property
    def most(self) -> float:
        """Seconds under guard after which it has to end."""
        return self.longest if self.longest is not None else 3 * self.bake

    @property
    def compares(self) -> bool:
        """Whether both arms have units that were drawn: only then can treatment be judged beside control."""
        return 0 < self.share < 1

    @property
    def name(self) -> str:
        """How people call it: "internal", "5 %", "dark".

        >>> Stage(share=0.05).name, Stage(audience="internal").name, Stage().name
        ('5 %', 'internal', 'dark')
        """
        if self.share:
            return f"{self.share * 100:.10g} %"
        return self.audience or "dark"


@dataclass(frozen=True, kw_only=True, slots=True)
class Guardrail:
    """A limit that ends a rollout. Beside control (`worse_by`), or absolute (`above` or `below`, `for_seconds`)."""

    metric: Metric
    """What is watched, with its whole definition."""
    worse_by: float | None = None
    """Beside control: how much worse is too much. A share of control's figure (0.1 is 10 %) where `relative`, else in
    the metric's unit."""
    relative: bool = True
    """Whether `worse_by` is a share of control's figure."""
    above: float | None = None
    """Absolute: too much is above this, in the metric's unit."""
    below: float | None = None
    """Absolute: too little is below this, in the metric's unit."""
    for_seconds: float = 600.0
    """Absolute: how long it has to be beyond the limit, at every look."""
    runbook: str = ""
    """What to read when it trips: one printable line of up to 256 characters. It is told with the rollback."""
    query: str = ""
    """Absolute: PromQL whose one number is treatment's figure, for a service whose events name no units. Empty: from
    events."""

    def __post_init__(self) -> None:
        limits = [each is not None for each in (self.worse_by, self.above, self.below)]
        if sum(limits) != 1:
            raise InvalidInput(
                f"guardrail {self.metric.name}: give one of worse_by, above or below, and only one"
            )
        for name in ("worse_by", "above", "below"):
            if (value := getattr(self, name)) is not None:
                check_number(f"guardrail {self.metric.name}: {name}", value, low=-1e300, high=1e300)
        if self.worse_by is not None and self.worse_by <= 0:
            raise InvalidInput(
                f"guardrail {self.metric.name}: worse_by is {self.worse_by:g}, which chance alone exceeds half the "
                "time; allow a margin above 0"
            )
        check_number(f"guardrail {self.metric.name}: for_seconds", self.for_seconds, low=0, high=366 * _DAY)
        if self.runbook and not (self.runbook.isprintable() and len(self.runbook) <= 256):
            raise InvalidInput(
                f"guardrail {self.metric.name}: runbook: write one printable line of up to 256 characters"
            )
        if self.query and self.worse_by is not None:
            raise InvalidInput(
                f"guardrail {self.metric.name}: a query counts no units, so it serves absolute limits only; "
                "write above or below"
            )
        kind = self.metric.kind
        if self.worse_by is not None and kind not in ("proportion", "quantile", "mean"):
            raise InvalidInput(
                f"guardrail {self.metric.name}: a {kind} cannot be watched beside control; use a proportion, a "
                "quantile or a mean, or an absolute limit"
            )
        if self.worse_by is not None and not self.relative and kind == "quantile":
            raise InvalidInput(
                f"guardrail {self.metric.name}: a quantile is compared by its ratio; write a share such as 10 %"
            )

    @property
    def is_relative(self) -> bool:
        """Whether it compares the arms."""
        return self.worse_by is not None

    @property
    def name(self) -> str:
        """Metric and limit: what tells two guardrails of one metric apart."""
        if self.worse_by is not None:
            margin = f"{self.worse_by * 100:.10g} %" if self.relative else f"{self.worse_by:.10g}"
            if not self.relative and self.metric.unit == "ratio":
                margin = f"{self.worse_by * 100:.10g} pp"
            return f"{self.metric.name} worse_by {margin}"
        word, value = ("above", self.above) if self.above is not None else ("below", self.below)
        return f"{self.metric.name} {word} {value:.10g} for {self.for_seconds:g} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPlan:
    """Everything a controller needs to know of a rollout. Raises InvalidInput for what cannot work."""

    name: str
    """The change's name: lower case, digits and _."""
    flag: str
    """The flag that lets the change out."""
    stages: tuple[Stage, ...]
    """In their order; shares only grow."""
    guardrails: tuple[Guardrail, ...]
    """At least one."""
    treatment: str = "treatment"
    """The variant that is let out."""
    control: str = "control"
    """The variant it is compared with."""
    alpha: float = 0.05
    """Chance that a treatment no worse than control is rolled back by any guardrail beside control, over the whole
    rollout and however often one looks. Shared by those guardrails and by the stages."""
    advance_on: Literal["pass", "no_harm_seen"] = "pass"
    """pass: a stage ends well when each guardrail has shown that treatment is within its limit. no_harm_seen: after its
    longest bake it also ends well when none has shown harm; the ledger records the weaker ground."""
    look_every: float = 10.0
    """Seconds between looks. Looking more often costs no error rate, only queries."""
    stale_after: float = 60.0
    """Seconds without events after which an arm counts as silent."""
    silence: float = 300.0
    """Seconds that treatment may be silent while control reports; then it is rolled back."""
    patience: float = 7 * _DAY
    """Seconds that a gate waits for a person, a pause for its end, a freeze for data; then it is rolled back."""
    settle: float = 60.0
    """Seconds within which traffic has to be where it was sent; a forward step that is not is rolled back."""
    expected_rate: float | None = None
    """Units a second in both arms, if known: what evaluations are tuned for, and what `blast_radius` reckons with."""
    dependencies: tuple[str, ...] = ()
    """What else feels the change: services, stores, queues."""

    def __post_init__(self) -> None:
        for name in ("name", "flag", "treatment", "control"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 128:
                raise InvalidInput(
                    f"rollout: {name} is missing, or no printable line of up to 128 characters"
                )
        if self.treatment == self.control:
            raise InvalidInput(f"rollout {self.name}: treatment and control are both {self.control!r}")
        if not 1 <= len(self.stages) <= _MOST_STAGES:
            raise InvalidInput(f"rollout {self.name}: give 1 to {_MOST_STAGES} stages")
        if not 1 <= len(self.guardrails) <= _MOST_GUARDRAILS:
            raise InvalidInput(f"rollout {self.name}: give 1 to {_MOST_GUARDRAILS} guardrails")
        before = -1.0
        for index, stage in enumerate(self.stages):
            if stage.share < before or (
                stage.share == before and not stage.audience and index and before > 0
            ):
                raise InvalidInput(
                    f"rollout {self.name}: stage {index + 1} has a share of {stage.share:g} after {before:g}; "
                    "stages only grow"
                )
            before = stage.share
        names = [guardrail.name for guardrail in self.guardrails]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"rollout {self.name}: guardrail {twice} stands twice; keep one")
        check_number("alpha", self.alpha, above=0, high=0.5)
        if self.advance_on not in ("pass", "no_harm_seen"):
            raise InvalidInput(f"advance_on {self.advance_on!r:.40}: pass or no_harm_seen")
        for name in ("look_every", "stale_after", "silence", "patience", "settle"):
            check_number(name, getattr(self, name), above=0, high=366 * _DAY)
        if self.expected_rate is not None:
            check_number("expected_rate", self.expected_rate, above=0, high=1e9)

    @property
    def comparing(self) -> tuple[int, ...]:
        """Indices of the stages in which arms are compared."""
        return tuple(index for index, stage in enumerate(self.stages) if stage.compares)

    @property
    def alpha_each(self) -> float:
        """What one guardrail beside control may spend of alpha."""
        return self.alpha / max(1, sum(each.is_relative for each in self.guardrails))

    def guardrail(self, name: str) -> Guardrail:
        """The guardrail of that name. Raises InvalidInput."""
        for each in self.guardrails:
            if each.name == name:
                return each
        raise InvalidInput(f"rollout {self.name}: no guardrail {name!r:.80}")
