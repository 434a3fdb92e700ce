"""A place to try a change under load that behaves as users do.

`Schedule` decides beforehand who asks for what and when (Poisson arrivals, Zipf keys, a viral `Surge`), or
`Recording` takes it from real traffic; `drive` sends it open-loop and returns one row per request, with a verdict
on its own punctuality; `Topology` runs the services as real processes and lets none of them outlive the run;
`TcpProxy` hangs or refuses in place of a server that must not be stopped.
"""

from __future__ import annotations

from fairlead.lab.arrivals import Surge, poisson_arrivals, surge_arrivals
from fairlead.lab.load import Progress, RequestSpec, drive
from fairlead.lab.popularity import Zipf
from fairlead.lab.process import Usage
from fairlead.lab.readiness import HttpReady, TcpReady
from fairlead.lab.recording import Recording
from fairlead.lab.samples import Ending, Failure, Samples, Validity
from fairlead.lab.schedule import Schedule
from fairlead.lab.service import Service
from fairlead.lab.tcp_proxy import TcpProxy
from fairlead.lab.topology import RunningService, Topology

__all__ = [
    "Ending",
    "Failure",
    "HttpReady",
    "Progress",
    "Recording",
    "RequestSpec",
    "RunningService",
    "Samples",
    "Schedule",
    "Service",
    "Surge",
    "TcpProxy",
    "TcpReady",
    "Topology",
    "Usage",
    "Validity",
    "Zipf",
    "drive",
    "poisson_arrivals",
    "surge_arrivals",
]
