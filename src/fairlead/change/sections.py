"""The change file as data: one struct per table of the TOML file, and a docstring per key.

Everything that a person wrote is kept as it was written; what it means for other rooms (metrics, shares, seconds)
is read by the methods here, once. Keys that are not listed are errors: a misspelt `basline` would otherwise be a
plan without one.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from fairlead.errors import InvalidInput
from fairlead.metrics import Metric
from fairlead.metrics.metric import Better, Design, Kind, Role, Side

__all__ = ["ChangeFile", "Limit", "parse_limit"]

ALWAYS = ("time_to_ship", "operating_cost", "risk", "maintainability", "fit")
"""Criteria that matter in every choice."""
CRITERIA = (
    *ALWAYS,
    "latency",
    "correctness",
    "consistency",
    "reliability",
    "scalability",
    "privacy_safety",
    "residency",
    "explainability",
)
"""What options may be scored by, 1 (bad) to 5 (good); the first five always matter, the others where they do."""

_LIMIT = re.compile(r"(?P<number>\d{1,6}(\.\d{1,6})?)\s*(?P<unit>%|pp)", re.ASCII)


class Stakeholder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    """Who: a person, a team, a group of users."""
    cares_about: str
    """What this change may win or cost them."""


class RoleOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who did what. Nobody ships alone, and a report that says so is not believed."""

    led: str = ""
    """What the author led."""
    built: str = ""
    """What the author built."""
    decided: str = ""
    """What the author decided."""
    others: str = ""
    """What others did."""


class ScopeCut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    what: str
    """What was left out."""
    because: str
    """Why it can wait, or need not come."""


class Situation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[change]`: what this is about."""

    name: str
    """How files, flags and the ledger call it: lower case, digits and _."""
    title: str = ""
    """How a person calls it."""
    problem: str = ""
    """What is wrong today, with a figure."""
    users: str = ""
    """Who meets it, and in what situation."""
    why_now: str = ""
    """What makes it worth doing before other things."""
    constraints: tuple[str, ...] = ()
    """What must not be touched, spent or exceeded."""
    goal: str = ""
    """What shall be true afterwards, with a figure."""
    hypothesis: str = ""
    """Doing what changes which metric by how much, because of which mechanism."""
    owner: str = ""
    """Who answers for it."""
    stakeholders: tuple[Stakeholder, ...] = ()
    """Who else is concerned."""
    role: RoleOf | None = None
    """Who did what."""
    scope_cuts: tuple[ScopeCut, ...] = ()
    """What was left out on purpose."""


class MetricTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metrics.NAME]`: the fields of `fairlead.metrics.Metric`, and what is known of one unit's spread."""

    role: Role
    """primary (exactly one), secondary or guardrail."""
    kind: Kind
    """The statistic."""
    event: str
    """The kind of event it is computed from."""
    unit: str
    """Unit of the number."""
    unit_of_analysis: str
    """What one observation is: request, user, session."""
    side: Side
    """server or client."""
    window: str
    """The span of one figure: "10m", or a name such as "phase"."""
    segment: str
    """Whom it covers."""
    better: Better
    """lower or higher."""
    title: str = ""
    """How a person calls it; empty: the name."""
    design: Design = "controlled"
    """What the figure can prove."""
    field: str | None = None
    """The field, or a proportion's condition."""
    denominator: str | None = None
    """For a ratio."""
    formula: str | None = None
    """For a formula."""
    q: float | None = None
    """For a quantile, 0 to 1."""
    where: str = ""
    """A condition: which events count."""
    unit_field: str | None = None
    """The field that names the unit, where one unit has many events."""
    measured: str = ""
    """How the value is taken."""
    baseline: float | None = None
    """Today's figure, in `unit`."""
    target: float | None = None
    """The figure hoped for, in `unit`."""
    standard_deviation: float | None = None
    """Of one unit of analysis, in `unit`: what the sample size hangs on; with a covariate, of what it leaves. Not for a
    proportion, which needs none, nor for a quantile."""
    density: float | None = None
    """For a quantile in place of it: the share of values between two near the quantile, over their distance."""

    def metric(self, name: str) -> Metric:
        """The metric. Raises InvalidInput naming what is missing or contradictory."""
        fields = {
            field: getattr(self, field)
            for field in self.__struct_fields__
            if field not in ("standard_deviation", "density")
        }
        return Metric(name=name, **{**fields, "title": self.title or name.replace("_", " ")})


class OptionTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[options]]`: one way to do it."""

    name: str
    kind: Literal["adopt", "extend", "build"]
    """adopt what exists, extend what we have, or build our own."""
    summary: str = ""
    """What it would be, in a sentence."""
    scores: dict[str, float] = {}
    """1 (bad) to 5 (good) by criterion."""
    chosen: bool = False
    """Exactly one is."""
    because: str = ""
    """Why it was chosen, or rejected."""
    accepting: str = ""
    """For the chosen one: what it costs us."""
    mitigation: str = ""
    """For the chosen one: what softens that."""


class Assumption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    statement: str
    falsified_by: str = ""
    """The signal that would show it is wrong: a metric and a value."""


class Complexity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[complexity]`: is it more than is needed?"""

    expected_load: str = ""
    """What must be carried in a year, with a figure."""
    team_size: int = 0
    """People who will maintain it."""
    change_frequency: str = ""
    """How often it will be changed."""
    upgrade_path: str = ""
    """What comes after it when it is outgrown."""


class Conflict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    about: str
    between: tuple[str, ...] = ()
    settled_by: str = ""
    """The evidence that settled it."""


class Milestone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    what: str
    by: str = ""
    """When it was planned for."""
    done: str = ""
    """When it was done; filled in afterwards."""


class StageTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    share: float | None = None
    """Of units, 0–1; 0 is a dark launch."""
    audience: str = ""
    """Whom a stage without a share lets in: "internal"."""
    bake: str = ""
    """How long it stays under guard: "1h"."""
    longest: str = ""
    """After how long it has to end, one way or the other; empty: three times `bake`."""
    minimum_units: int = 0
    """Units of the smaller arm before it may end."""
    gate: Literal["automatic", "manual"] = "automatic"
    """manual: a person says when it may end."""


class PresetTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[rollout.presets]]`: guardrails that are common practice, for metrics of this file."""

    name: str
    """canary, latency_budget, availability or sustained_latency."""
    errors: str = ""
    """The metric that is a share of failures."""
    latency: str = ""
    """The metric that is a quantile of latency, in seconds."""
    runbook: str = ""
    """What to read when one of them trips."""


class GuardrailTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[rollout.guardrails]]`: either relative to control or an absolute limit held for a while."""

    metric: str
    worse_by: str = ""
    """Beside control: "10 %" of its figure, or "0.2 pp" for a proportion."""
    above: float | None = None
    """In the metric's unit; with `for`."""
    below: float | None = None
    """In the metric's unit; with `for`."""
    for_: str = msgspec.field(default="", name="for")
    """How long beyond the limit: "10m"."""
    burn_rate: float | None = None
    """In place of `above`: how fast the error budget of `target` may be spent; 14.4 spends 2 % of 30 days in an
    hour."""
    target: float | None = None
    """With `burn_rate`: the objective, such as 0.999."""
    query: str = ""
    """With an absolute limit: PromQL whose one number is treatment's figure, where no event names its unit."""
    runbook: str = ""
    """What to read when it trips."""


class RolloutTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    flag: str = ""
    """The flag that lets it out."""
    shadow: bool = False
    """Whether it answers unseen beside control first; then no rollout starts without a recorded comparison."""
    stages: tuple[StageTable, ...] = ()
    guardrails: tuple[GuardrailTable, ...] = ()
    presets: tuple[PresetTable, ...] = ()
    """Guardrails that are common practice."""
    dependencies: tuple[str, ...] = ()
    """What else feels it: services, stores, queues."""
    treatment: str = "treatment"
    """The variant that is let out."""
    control: str = "control"
    """The variant that it is compared with."""
    alpha: float = 0.05
    """Chance that a treatment no worse than control is rolled back by a guardrail beside control, in the whole
    rollout."""
    advance_on: Literal["pass", "no_harm_seen"] = "pass"
    """pass: a stage ends well when every guardrail passed. no_harm_seen: after its longest bake, when none has
    failed."""
    look_every: str = "10s"
    """How often guardrails are evaluated."""
    stale_after: str = "60s"
    """Without events for so long, an arm may be silent."""
    silence: str = "5m"
    """Treatment silent for so long while control reports: rolled back."""
    patience: str = "7d"
    """How long a gate, a pause or a freeze waits for somebody; then it is rolled back."""


class TriggerTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[experiment.trigger]`: the event that shows a unit could have met the difference; logged alike in both arms."""

    event: str
    unit_field: str
    """Its field that names the unit."""
    where: str = ""
    """A condition: which of them; empty: all."""


class FairnessTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[experiment.fairness]]`: how unequally groups may be treated."""

    metric: str
    group: str
    """The column that names the group."""
    limit: float = 1.25
    """Largest ratio between two groups of treatment/control, above 1."""


class ExperimentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    unit: str = ""
    """What is randomised: user, device, shop."""
    split: float = 0.5
    """Treatment's share in the experiment, 0–1."""
    control: str = ""
    """The variant that others are compared with; empty: the rollout's, or `control`."""
    covariate: str = ""
    """What is known of a unit beforehand, for CUPED: a column of the file about units."""
    pre_period: str = ""
    """How far back before a unit's first exposure its own past is taken as a covariate: "14d"; empty: not at all."""
    conversion_window: str = ""
    """How long after its first exposure a unit's outcomes count: "7d"; empty: as long as there are data."""
    caps: dict[str, float] = {}
    """By metric the quantile at which values are capped: `revenue = 0.999`."""
    trigger: TriggerTable | None = None
    fairness: tuple[FairnessTable, ...] = ()
    alpha: float = 0.05
    power: float = 0.8
    mde: float | None = None
    """The smallest relative effect on the primary metric that is worth finding: 0.02 is 2 %."""
    sequential: bool = False
    """Whether it is looked at before the end."""
    segments: tuple[str, ...] = ()
    """Looked at afterwards, exploratory."""
    non_inferiority: float | None = None
    """How much worse guardrails may be, relative."""
    units_per_day: int | None = None
    """New units of the experiment each day, both arms together."""
    days: int | None = None
    """How long it may run."""


class Risk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    what: str
    mitigation: str = ""
    signal: str = ""
    """How one would notice."""


class HighestRisk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[highest_risk]`: the assumption that would hurt most if it were wrong, and how it is tested first."""

    assumption: str = ""
    test: str = ""
    result: str = ""
    """Filled in when it was tested."""


class Privacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    data: str = ""
    """What data of people it touches; "none" is an answer."""
    review: str = ""
    """Who looked at it, and what they said."""


class AiUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task: str
    verified: str = ""
    """How the result was checked."""
    data_shared: str = ""
    """What data left for it."""


class Incident(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    what: str
    at: str = ""
    cause: str = ""
    fix: str = ""
    learning: str = ""


class Reflection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    surprised: str = ""
    next_time: str = ""


class ChangeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One change, as its file says it."""

    change: Situation
    metrics: dict[str, MetricTable] = {}
    options: tuple[OptionTable, ...] = ()
    weights: dict[str, float] = {}
    """Of the criteria, any scale; those left out weigh 1."""
    assumptions: tuple[Assumption, ...] = ()
    complexity: Complexity | None = None
    conflicts: tuple[Conflict, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    rollout: RolloutTable | None = None
    experiment: ExperimentTable | None = None
    risks: tuple[Risk, ...] = ()
    highest_risk: HighestRisk | None = None
    privacy: Privacy | None = None
    ai_use: tuple[AiUse, ...] = ()
    incidents: tuple[Incident, ...] = ()
    reflection: Reflection | None = None

    def definitions(self) -> tuple[Metric, ...]:
        """Every metric. Raises InvalidInput for the first that is not whole."""
        return tuple(table.metric(name) for name, table in self.metrics.items())

    def chosen(self) -> OptionTable | None:
        """The chosen option; None while there is none."""
        return next((option for option in self.options if option.chosen), None)


class Limit(msgspec.Struct, frozen=True):
    """How much worse than control is too much."""

    amount: float
    """A ratio: 0.1 for "10 %", 0.002 for "0.2 pp"."""
    relative: bool
    """Whether it is relative to control's figure; else percentage points of it."""


def parse_limit(text: str) -> Limit:
    """ "10 %" or "0.2 pp"; they are different units. Raises InvalidInput.

    >>> parse_limit("10 %"), parse_limit("0.2 pp")
    (Limit(amount=0.1, relative=True), Limit(amount=0.002, relative=False))
    """
    match = _LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise InvalidInput(
            f"worse_by {str(text)[:40]!r}: write a share of control's figure such as 10 %, or percentage points "
            "such as 0.2 pp"
        )
    return Limit(round(float(match["number"]) / 100, 12), match["unit"] == "%")
