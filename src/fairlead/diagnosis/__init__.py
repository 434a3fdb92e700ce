"""Where the time goes, and why.

`read_spans` takes recorded traces in. Of one trace, `critical_path` says which spans its duration is made of,
`repeated_calls` finds a query made once per row (N+1), and `waterfalls` finds calls that wait for one another
without need.
"""

from __future__ import annotations

from fairlead.diagnosis.otlp_json import read_spans
from fairlead.diagnosis.trace import (
    RecordedSpan,
    RepeatedCall,
    Step,
    Waterfall,
    critical_path,
    repeated_calls,
    waterfalls,
)

__all__ = [
    "RecordedSpan",
    "RepeatedCall",
    "Step",
    "Waterfall",
    "critical_path",
    "read_spans",
    "repeated_calls",
    "waterfalls",
]
