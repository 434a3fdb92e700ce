"""Which variant does this user get, and why?

A flag document (flagd's JSON, with our `bucket` operator) is read strictly once: what is not understood is
refused with the file, the flag, the place and the fix. A request then asks a `FlagSet`, which never blocks
and never raises: it answers with a variant and a `Reason` in OpenFeature's words, from closures compiled at
start-up. A unit's slot is a fixed hash of salt and key, so growing one arm moves nobody of another. Who saw
what goes to telemetry as `Exposure`, once.

A `FlagDelivery` keeps the document up to date from a file or a control plane, and lets nothing broken or older in.

Flags, buckets and the memory of exposures are per process; what processes share is the document.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.flags.bucketing import ALGORITHM, SLOTS, bucket
from fairlead.flags.evaluate import Evaluation, EvaluationContext, Reason
from fairlead.flags.exposure import ExposureLog
from fairlead.flags.flag import Flag, FlagDocument, FlagType, FlagValue
from fairlead.flags.flag_set import FlagSet

if TYPE_CHECKING:
    from fairlead.flags.delivery import DocumentSource, FlagDelivery
    from fairlead.flags.delivery_status import DeliveryNotice, DeliveryStatus
    from fairlead.flags.document_version import DocumentVersion
    from fairlead.flags.watched_file import FlagFile, write_flag_file
else:
    # Imported when first asked for: a service that reads a file once needs no event loop.
    _LATER = {
        "DeliveryNotice": "delivery_status",
        "DeliveryStatus": "delivery_status",
        "DocumentSource": "delivery",
        "DocumentVersion": "document_version",
        "FlagDelivery": "delivery",
        "FlagFile": "watched_file",
        "write_flag_file": "watched_file",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "ALGORITHM",
    "SLOTS",
    "DeliveryNotice",
    "DeliveryStatus",
    "DocumentSource",
    "DocumentVersion",
    "Evaluation",
    "EvaluationContext",
    "ExposureLog",
    "Flag",
    "FlagDelivery",
    "FlagDocument",
    "FlagFile",
    "FlagSet",
    "FlagType",
    "FlagValue",
    "Reason",
    "bucket",
    "write_flag_file",
]
