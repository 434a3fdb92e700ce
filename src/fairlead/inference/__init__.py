"""Scores with a model inside a request, without holding up the event loop and without ever failing to answer.

A `Scheduler` runs a `Scorer` on its own thread, bounded by a queue and the caller's deadline, and lets a
`HeuristicScorer` answer, marked as degraded, whenever the model cannot. A `FeatureSchema` fixes the columns;
a `Manifest` says which bytes are the model. The driver for ONNX Runtime is
`fairlead.inference.onnx.OnnxScorer`.
"""

from __future__ import annotations

from fairlead.inference.feature_schema import FeatureSchema, Rows
from fairlead.inference.heuristic import HeuristicScorer
from fairlead.inference.registry import Manifest, load_manifest
from fairlead.inference.scheduler import (
    Placement,
    Scheduler,
    SchedulerSettings,
    SchedulerStats,
)
from fairlead.inference.scored import DegradedBy, Scored
from fairlead.inference.scorer import Scorer

__all__ = [
    "DegradedBy",
    "FeatureSchema",
    "HeuristicScorer",
    "Manifest",
    "Placement",
    "Rows",
    "Scheduler",
    "SchedulerSettings",
    "SchedulerStats",
    "Scored",
    "Scorer",
    "load_manifest",
]
