"""A change file to begin with: every part with a word on why it is asked for, and nothing that could be left standing.

What is filled in is an example of the form, numbers too, marked by «»; `check` refuses it while a mark is there.
"""

from __future__ import annotations

import re

from fairlead.errors import InvalidInput
from fairlead.metrics.metric import is_metric_name

__all__ = ["PLACEHOLDERS", "new_change"]

_TEMPLATE = """# One change, from problem to proof; to be frozen before the first figure: fairlead change freeze FILE
# Replace what stands in «», and the number beside it; fairlead change check FILE says what is missing or vague.

[change]
name = "{name}"
title = "«what a person calls it»"
problem = "«what is wrong today, with a figure: p99 of the feed is 380 ms»"
users = "«who meets it, and in what situation»"
why_now = "«what makes it worth doing before other things»"
constraints = ["«what must not be touched, spent or exceeded»"]
goal = "«what shall be true afterwards, with a figure»"
hypothesis = "«doing what changes which metric by how much, because of which mechanism»"
owner = "«who answers for it»"
stakeholders = [{{ name = "«a team, a group of users»", cares_about = "«what they may win or lose»" }}]
scope_cuts = [{{ what = "«left out on purpose»", because = "«why it can wait»" }}]

[change.role]
led = "«what you led»"
built = "«what you built»"
decided = "«what you decided»"
others = "«what others did»"

# Exactly one metric is primary; at least one is a guardrail. A definition is whole, or two people compute two numbers.
[metrics.«latency_p99»]
role = "primary"
kind = "quantile"                        # quantile proportion mean maximum ratio rate count formula
event = "request_finished"
field = "duration_seconds"
q = 0.99
unit = "seconds"
unit_of_analysis = "user"                # what is randomised, or intervals are too short
unit_field = "user_id"                   # whose events vary together
side = "server"                          # or client: a server does not see the queue in front of it
window = "10m"
segment = "«all requests of the route»"
better = "lower"
baseline = 0.38                          # «today's figure»
target = 0.21                            # «the figure hoped for»
density = 0.3                            # «0.6 % of last week's values lie between 0.37 and 0.39: 0.006 / 0.02»
# For a mean or a ratio in its place: standard_deviation, of one unit. A proportion needs neither.

[metrics.«errors»]
role = "guardrail"
kind = "proportion"
event = "request_finished"
field = "status >= 500"
unit = "ratio"
unit_of_analysis = "user"
unit_field = "user_id"
side = "server"
window = "10m"
segment = "«all requests of the route»"
better = "lower"
baseline = 0.001                         # «today's share»

# 2 to 4 options. Scores run from 1 (bad) to 5 (good). The rejected ones say why.
[[options]]
name = "«take what exists»"
kind = "adopt"
scores = {{ time_to_ship = 4, operating_cost = 3, risk = 4, maintainability = 3, fit = 2 }}  # «your scores»
because = "«why not»"

[[options]]
name = "«build it»"
kind = "build"
scores = {{ time_to_ship = 2, operating_cost = 4, risk = 3, maintainability = 4, fit = 5 }}  # «your scores»
chosen = true
because = "«why this one»"
accepting = "«what it costs us»"
mitigation = "«what softens that»"

[weights]
fit = 2                                  # «what matters more»; those left out weigh 1

[[assumptions]]
statement = "«what must be true for it to work»"
falsified_by = "«the metric and the value that would show it is not»"

[complexity]                             # is it more than is needed?
expected_load = "«requests per second in a year»"
team_size = 3                            # «people who will maintain it»
change_frequency = "«how often it will be changed»"
upgrade_path = "«what comes when it is outgrown»"

[[milestones]]
what = "«what is there»"
by = "«when»"

[rollout]
flag = "{name}"
shadow = false
stages = [
    {{ audience = "internal", bake = "1h" }},
    {{ share = 0.01, bake = "1h" }},
    {{ share = 0.05, bake = "6h" }},
    {{ share = 0.25, bake = "24h" }},
    {{ share = 1.0 }},
]

[[rollout.guardrails]]
metric = "«errors»"
worse_by = "0.2 pp"                      # percentage points; "10 %" would be a share of control's figure
runbook = "«a link for whoever is paged at night»"

[experiment]
unit = "user"
split = 0.5
mde = 0.05                               # «the smallest relative effect on the primary metric worth finding»
units_per_day = 1000                     # «new users a day, both arms together»
days = 14                                # «how long it may run»

[[risks]]
what = "«what may go wrong»"
signal = "«how one would notice»"
mitigation = "«what is done then»"

[highest_risk]
assumption = "«the one that would hurt most if it were wrong»"
test = "«how it is tested first»"

[privacy]
data = "«what data of people it touches, or none»"
review = "«who looked at it»"

# Written afterwards: these may grow without breaking what was promised.
#
# [[incidents]]
# at = "2026-01-31"
# what = "…"
# cause = "…"
# fix = "…"
# learning = "…"
#
# [reflection]
# surprised = "…"
# next_time = "…"
"""

PLACEHOLDERS = re.compile("|".join(sorted(map(re.escape, set(re.findall("«[^»]*»", _TEMPLATE))))))
"""What of the template was not yet replaced; other text in «» is somebody's language."""


def new_change(name: str) -> str:
    """The text of a new change file. Raises InvalidInput for a name that no flag or file could have."""
    if not is_metric_name(name):
        raise InvalidInput(f"change {str(name)[:80]!r}: a name is lower case letters, digits and _, up to 64")
    # Bare keys of TOML cannot hold the marks.
    text = _TEMPLATE.format(name=name)
    return text.replace("[metrics.«latency_p99»]", '[metrics."«latency_p99»"]').replace(
        "[metrics.«errors»]", '[metrics."«errors»"]'
    )
