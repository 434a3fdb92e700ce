"""Who may enter, so that what is let in is served.

`LoadShedder` keeps a service at what it can carry: an adaptive limit, a short queue by priority, refusals
before any work began. `RateLimiter` gives each client its share. `fairlead.admission.asgi` puts both, and the
request's deadline, in front of any ASGI application; `fairlead.admission.redis` counts a client's share over
a fleet. All other state is per process.
"""

from __future__ import annotations

from fairlead.admission.load_shedding import Admission, LoadShedder, Outcome, RefusalReason, ShedderStats
from fairlead.admission.rate_limit import ClientLimiter, RateDecision, RateLimit, RateLimiter

__all__ = [
    "Admission",
    "ClientLimiter",
    "LoadShedder",
    "Outcome",
    "RateDecision",
    "RateLimit",
    "RateLimiter",
    "RefusalReason",
    "ShedderStats",
]
