"""The events of one run, read for a diagnosis: what clients saw, what the services said of themselves.

A run's folder holds `events/load` (one sample per request, as the sender saw it) and a folder per process with its own
events. Arms take turns, so a moment tells whose turn and which phase it was; that is how a service's events, which know
of neither, find theirs. A last line that a crash cut off is left out and counted; any other line that is no event ends
the reading, since a record with holes is no evidence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.telemetry import LoadSample, PolicyActed, ReadReport, RequestFinished, StateChanged, read_events

__all__ = ["Moment", "RunEvents", "read_run_events"]

LARGEST = 2 * 2**30
"""Bytes of events that are read. 200,000 requests an arm in two arms are half of it."""
_FAILED = frozenset({"timeout", "error", "refused"})


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """A phase of one arm's turn, from its begin."""

    began_at: float
    arm: str = field(compare=False)
    cycle: int = field(compare=False)
    phase: str = field(compare=False)


@dataclass(kw_only=True, slots=True)
class RunEvents:
    """All that was read."""

    samples: list[LoadSample] = field(default_factory=list)
    requests: list[tuple[str, RequestFinished]] = field(default_factory=list)
    """With the folder of the process that they come from."""
    states: list[tuple[str, StateChanged]] = field(default_factory=list)
    actions: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)
    """What policies did: arm, phase, policy, action, reason."""
    events: Counter[str] = field(default_factory=Counter)
    """Events by folder."""
    truncated: int = 0
    duplicates: int = 0
    moments: list[Moment] = field(default_factory=list)

    def moment(self, at: float) -> Moment | None:
        """Whose turn and which phase it was; None before the first."""
        place = bisect_right(self.moments, at, key=lambda moment: moment.began_at)
        return self.moments[place - 1] if place else None

    def failed(self, samples: list[LoadSample]) -> NDArray[np.bool_]:
        return np.array([sample.ending in _FAILED for sample in samples], dtype=bool)


def read_run_events(directory: Path) -> RunEvents:
    """Reads `directory/events`.

    Raises InvalidInput for a folder without events, or with more than 2 GiB of them; BrokenDocument, with file and
    line, for a line that is no event.
    """
    root = directory / "events"
    folders = sorted(path for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    if not any(next(folder.glob("*.jsonl"), None) for folder in folders):
        raise InvalidInput(
            f"{root}: holds no events, so there is nothing to diagnose; is {directory} a run's folder?"
        )
    sizes = {path: path.stat().st_size for folder in folders for path in folder.glob("*.jsonl")}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=lambda path: sizes[path])
        raise InvalidInput(
            f"{root}: {sum(sizes.values()):,} bytes of events, the most that is read is {LARGEST:,} (the largest is "
            f"{largest.name}): diagnose a shorter run"
        )
    found = RunEvents()
    acted: list[PolicyActed] = []
    for folder in sorted(folders, key=lambda path: path.name != "load"):
        report = ReadReport()
        for event in read_events(folder, report=report):
            found.events[folder.name] += 1
            if isinstance(event, LoadSample):
                found.samples.append(event)
            elif isinstance(event, RequestFinished):
                found.requests.append((folder.name, event))
            elif isinstance(event, PolicyActed):
                acted.append(event)
            elif isinstance(event, StateChanged):
                found.states.append((folder.name, event))
        if report.malformed or report.unknown:
            first = report.problems[0] if report.problems else "a line that is no event"
            raise BrokenDocument(
                f"{folder}: {report.malformed + report.unknown} lines are no events, so the record has holes; the "
                f"first: {first} (see fairlead events check {folder})"
            )
        found.truncated += report.truncated
        found.duplicates += report.duplicates
    if not found.samples:
        raise InvalidInput(
            f"{root / 'load'}: holds no sample of a request: the run ended before its first turn did"
        )
    found.moments = _moments(found.samples)
    for event in acted:
        moment = found.moment(event.at_utc_seconds)
        arm, phase = (moment.arm, moment.phase) if moment is not None else ("", "")
        found.actions[arm, phase, event.policy, event.action, event.reason] += 1
    return found


def _moments(samples: list[LoadSample]) -> list[Moment]:
    first: dict[tuple[str, int, str], float] = {}
    for sample in samples:
        key = (sample.arm, sample.cycle, sample.phase)
        first[key] = min(first.get(key, float("inf")), sample.at_utc_seconds)
    return sorted(Moment(at, arm, cycle, phase) for (arm, cycle, phase), at in first.items())
