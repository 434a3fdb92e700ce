"""A service in a process of its own: asks the flag for each unit, and writes what happened.

python -m tests.integration.rollout.service FLAGS EVENTS TREATMENT_ERRORS RATE SECONDS
"""

from __future__ import annotations

import random
import sys
import time

from fairlead.flags import EvaluationContext, FlagSet
from fairlead.telemetry import BufferedSink, JsonLinesSegments, RequestFinished


def main(flags_path: str, events: str, treatment_errors: float, rate: float, seconds: float) -> None:
    flags = FlagSet.from_file(flags_path)
    sink = BufferedSink(JsonLinesSegments(events))
    rng = random.Random(1)
    until, reloaded, number = time.monotonic() + seconds, 0.0, 0
    try:
        while time.monotonic() < until:
            if time.monotonic() - reloaded > 0.1:
                flags.reload()
                reloaded = time.monotonic()
            number += 1
            unit = f"user-{number}"
            variant = flags.string("feed_path", EvaluationContext(targeting_key=unit), "control")
            failed = rng.random() < (treatment_errors if variant == "treatment" else 0.01)
            sink.emit(
                RequestFinished(
                    at_utc_seconds=time.time(),
                    service="feed",
                    route="/",
                    status=500 if failed else 200,
                    latency_seconds=rng.lognormvariate(-3, 0.4),
                    variant=variant,
                    targeting_key=unit,
                )
            )
            time.sleep(rng.expovariate(rate))
    finally:
        sink.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(float(each) for each in sys.argv[3:6]))
