"""Where the time goes, and why.

`read_spans` takes recorded traces in. Of one trace, `critical_path` says which spans its duration is made of,
`repeated_calls` finds a query made once per row (N+1), and `waterfalls` finds calls that wait for one another
without need. `find_bottleneck` tells from `Measured` facts what holds a process up: processor, loop, lock, files or
somebody else; the facts come from `measured_between` two scrapes and from `measured_in_spans`. `SlowQueries` keeps the
slowest statements of a database without their values, and `fairlead.diagnosis.sqlalchemy` explains them.
"""

from __future__ import annotations

from fairlead.diagnosis.bottleneck import Bottleneck, Suspect, Verdict, find_bottleneck
from fairlead.diagnosis.measured import Measured, measured_between, measured_in_spans
from fairlead.diagnosis.otlp_json import read_spans
from fairlead.diagnosis.query_plan import QueryPlan
from fairlead.diagnosis.slow_queries import SlowQueries, SlowQuery, normalised_statement
from fairlead.diagnosis.trace import (
    RecordedSpan,
    RepeatedCall,
    Step,
    Waterfall,
    critical_path,
    repeated_calls,
    waterfalls,
)
from fairlead.diagnosis.waits import WaitSampler

__all__ = [
    "Bottleneck",
    "Measured",
    "QueryPlan",
    "RecordedSpan",
    "RepeatedCall",
    "SlowQueries",
    "SlowQuery",
    "Step",
    "Suspect",
    "Verdict",
    "WaitSampler",
    "Waterfall",
    "critical_path",
    "find_bottleneck",
    "measured_between",
    "measured_in_spans",
    "normalised_statement",
    "read_spans",
    "repeated_calls",
    "waterfalls",
]
