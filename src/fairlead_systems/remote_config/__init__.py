"""Remote configuration, twice: three services that were proposed, and the one table that does the job.

`python -m fairlead_systems.remote_config.service` is the one process of the treatment,
`python -m fairlead_systems.remote_config.three_services ROLE` one of the control's three; `RemoteConfig` is what
`fairlead try remote_config` plays. Importing this package costs little: what the run needs is imported when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from fairlead.trial import Mechanism
from fairlead_systems.reference_system import ReferenceSystem
from fairlead_systems.remote_config.mechanisms import MECHANISMS

__all__ = ["RemoteConfig"]


class RemoteConfig(ReferenceSystem):
    """The system `remote_config`."""

    name = "remote_config"
    title = "Remote configuration"
    summary = (
        "A page reads its configuration before it can be used. Proposed was a personalisation layer of three services: "
        "profiles, rules, assembly. Control is that layer, well written. Treatment is one process with one table and a "
        "cached response, which gives the same answers. Each arm meets a database that hangs and processes that crash."
    )
    mechanisms: Sequence[Mechanism] = MECHANISMS
    simulated: Sequence[str] = (
        "the database that hangs: every query of the arm's processes waits in its thread; SQLite itself is real, and "
        "on the same disk for both arms",
        "users, segments and their settings: made from the seed; nobody changes any during the run",
        "a crash: SIGKILL, half a second in which the port refuses, then a start; connections wait while it starts",
        "the network: loopback, no loss, no distance; between three services on three machines each hop costs more",
        "the clients: one open-loop load engine on the same machine and the same cores as the services; they keep "
        "nothing between requests and send no ETag",
    )

    inputs: Sequence[str] = ("data/*.db",)
    needs: ClassVar[Mapping[str, str]] = {
        name: name
        for name in (
            "aiohttp",
            "httptools",
            "numpy",
            "psutil",
            "sqlalchemy",
            "starlette",
            "uvicorn",
            "uvloop",
        )
    }
