"""What lies in a run's folder beside its events: traces, dead letters, and what the processes printed.

Nothing here is needed, so nothing here ends a diagnosis but a file of traces that is broken: it was asked for, and
leaving it out in silence would look like a service without findings.
"""

from __future__ import annotations

import re
from pathlib import Path

from fairlead.diagnosis.measured import Measured, measured_in_spans
from fairlead.diagnosis.otlp_json import read_spans
from fairlead.diagnosis.run_facts import FolderFindings
from fairlead.diagnosis.trace import RecordedSpan, critical_path, repeated_calls, waterfalls
from fairlead.errors import InvalidInput

__all__ = ["read_folder"]

_NO_TRACES = (
    "no file of spans (*spans*.jsonl, *traces*.jsonl) in the run's folder: which call a slow request waited for is "
    "known from gauges only"
)
_USUAL = re.compile(r"^(?:INFO\b.*|listening on .*|\s*)$")
_ALARMING = re.compile(r"error|exception|traceback|critical|killed|refused", re.IGNORECASE)
_TRACES_SHOWN = 3
_LINES_SHOWN = 5
_LOG_TAIL = 2**20


def read_folder(directory: Path) -> tuple[FolderFindings, Measured | None]:
    """The findings, and what the traces know of the requests' time. Raises BrokenDocument for a broken trace file."""
    files = sorted(
        {
            path
            for pattern in ("**/*spans*.json*", "**/*traces*.json*")
            for path in directory.glob(pattern)
            if path.is_file() and path.suffix in (".json", ".jsonl")
        }
    )
    traces: dict[str, list[RecordedSpan]] = {}
    for path in files:
        for trace_id, spans in read_spans(path).items():
            traces.setdefault(trace_id, []).extend(spans)
    said, measured = _of_traces(traces) if traces else ((_NO_TRACES,), None)
    return FolderFindings(
        dead_letters=_dead_letters(directory), log_lines=_log_lines(directory), traces=said
    ), measured


def _of_traces(traces: dict[str, list[RecordedSpan]]) -> tuple[tuple[str, ...], Measured | None]:
    def longest(spans: list[RecordedSpan]) -> float:
        return max(span.seconds for span in spans)

    slowest = sorted(traces, key=lambda trace_id: -longest(traces[trace_id]))[:_TRACES_SHOWN]
    said = [f"{len(traces):,} traces; the slowest:"]
    for trace_id in slowest:
        spans = traces[trace_id]
        try:
            steps = critical_path(spans)
        except InvalidInput as error:
            said.append(f"{trace_id}: {error}")
            continue
        by_name: dict[str, float] = {}
        for step in steps:
            by_name[step.span.name] = by_name.get(step.span.name, 0.0) + step.seconds
        top = sorted(by_name.items(), key=lambda pair: -pair[1])[:3]
        parts = ", ".join(f"{seconds * 1000:.0f} ms in {name}" for name, seconds in top)
        line = f"{trace_id}: {sum(by_name.values()) * 1000:.0f} ms, of which {parts}"
        if repeated := repeated_calls(spans):
            line += f"; {repeated[0].name} {repeated[0].count} times under {repeated[0].parent.name} (N+1?)"
        if chains := waterfalls(spans):
            line += f"; {len(chains[0].calls)} calls one after the other under {chains[0].parent.name}, side by side "
            line += f"{chains[0].saved_seconds * 1000:.0f} ms less"
        said.append(line)
    try:
        return tuple(said), measured_in_spans(traces.values())
    except InvalidInput:
        return tuple(said), None


def _dead_letters(directory: Path) -> tuple[str, ...]:
    found = []
    for path in sorted(directory.glob("**/*dead*letter*")):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                found.append(
                    f"{path.relative_to(directory)}: {sum(1 for _ in file):,} lines that were no events"
                )
    return tuple(found)


def _log_lines(directory: Path) -> tuple[str, ...]:
    """The last alarming lines of each log, or the last of any kind that is not usual."""
    found = []
    for path in sorted((directory / "logs").glob("*.log")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            lines = [
                line for line in file.read().decode("utf-8", "replace").splitlines() if not _USUAL.match(line)
            ]
        if lines:
            chosen = [line for line in lines if _ALARMING.search(line)] or lines
            found.append(f"{path.name}: {len(lines):,} lines that are not usual; the last:")
            found += [f"  {line[:200]}" for line in chosen[-_LINES_SHOWN:]]
    return tuple(found)
