"""The checks of settings, which the rooms below need too: `fairlead.telemetry.bounds`."""

from __future__ import annotations

from fairlead.telemetry.bounds import check_number, check_whole

__all__ = ["check_number", "check_whole"]
