"""What would the new one answer? Asked of real requests, beside the real answer, without their senders noticing.

A `Mirror` asks a candidate what control has just answered, and counts in which fields they differ, beside how often
control differs from itself. `fairlead.shadow.asgi` mirrors the requests of a service, to an application in the same
process or, by `fairlead.shadow.httpx`, to another; `is_shadow()` tells code that it runs for nobody.

`ShadowReport` is counts only, per process; reports of processes, and recorded events, add up in a `ShadowTally`.
`fairlead.statistics.discordant_pairs` says which of its fields differ by more than noise.
"""

from __future__ import annotations

from fairlead.shadow.comparison import Answer
from fairlead.shadow.diff import Differences, FieldDiff, RawJson, Tolerance
from fairlead.shadow.mark import SHADOW_HEADER, LiveSink, is_shadow, shadow_context
from fairlead.shadow.mirror import Mirror, MirrorDrop
from fairlead.shadow.report import FieldCounts, FieldExample, ShadowReport, ShadowTally

__all__ = [
    "SHADOW_HEADER",
    "Answer",
    "Differences",
    "FieldCounts",
    "FieldDiff",
    "FieldExample",
    "LiveSink",
    "Mirror",
    "MirrorDrop",
    "RawJson",
    "ShadowReport",
    "ShadowTally",
    "Tolerance",
    "is_shadow",
    "shadow_context",
]
