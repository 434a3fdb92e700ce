"""Which variant does this user get, and why?

A flag document (flagd's JSON, with our `bucket` operator) is read strictly once: what is not understood is
refused with the file, the flag, the place and the fix. A request then asks a `FlagSet`, which never blocks
and never raises: it answers with a variant and a `Reason` in OpenFeature's words, from closures compiled at
start-up. A unit's slot is a fixed hash of salt and key, so growing one arm moves nobody of another. Who saw
what goes to telemetry as `Exposure`, once.

Flags, buckets and the memory of exposures are per process; what processes share is the document.
"""

from __future__ import annotations

from fairlead.flags.bucketing import ALGORITHM, SLOTS, bucket
from fairlead.flags.evaluate import Evaluation, EvaluationContext, Reason
from fairlead.flags.exposure import ExposureLog
from fairlead.flags.flag import Flag, FlagDocument, FlagType, FlagValue
from fairlead.flags.flag_set import FlagSet

__all__ = [
    "ALGORITHM",
    "SLOTS",
    "Evaluation",
    "EvaluationContext",
    "ExposureLog",
    "Flag",
    "FlagDocument",
    "FlagSet",
    "FlagType",
    "FlagValue",
    "Reason",
    "bucket",
]
