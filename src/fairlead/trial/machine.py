"""The machine a figure was measured on: what it depends on apart from the code."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from fairlead.trial.result import Machine

__all__ = ["this_machine", "usable_cores"]


def this_machine() -> Machine:
    """Processor, cores, memory, system and Python of this process."""
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and the quota of its control group, which may be a fraction."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores  # no control group, or an older layout: the affinity is all there is to know


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
