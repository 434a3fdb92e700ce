"""`fairlead doctor`: what is installed, reachable and missing here, each with its fix.

A check never raises: what it cannot find out is a finding too. Checks that the main job, `fairlead try`,
needs are `required`; the exit code speaks of those alone. Everything else is told, and why it would matter.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from fairlead import __version__
from fairlead.cli.exit_codes import ExitCode
from fairlead.cli.extras import Need, needs_of_extras
from fairlead.cli.outcome import one_line

__all__ = ["SCHEMA", "Finding", "Report", "command", "examine"]

SCHEMA = "fairlead.doctor/1"

_PYTHON = (3, 11)
_FREE_BYTES = 200_000_000  # events of one full run, twice
_DESCRIPTORS = 1_024
_SLOW_CLOCKS = frozenset({"acpi_pm", "hpet", "jiffies", "refined-jiffies", "xen"})

# command, Debian package, which part of Fairlead asks for it
_TOOLS = (
    ("promtool", "prometheus", "the tests, to check /metrics"),
    ("chromium", "chromium", "the tests, to look at reports"),
)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    area: str
    name: str
    status: Literal["ok", "missing", "warning", "failed"]
    found: str
    fix: str = ""
    required: bool = False
    """True where the main job cannot run without it."""
    wanted_by: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `fairlead doctor --json` prints."""

    schema: str
    fairlead: str
    ready: bool
    """True when nothing required is missing or failed."""
    findings: list[Finding]


def command(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="The folder where runs would be written.")] = Path(
        "runs"
    ),
) -> int:
    """Tells what is installed, reachable and missing here, each with its fix."""

    def progress(area: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"looking at {area} …", err=True)

    report = examine(runs, progress)
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        typer.echo(_as_text(report))
    return ExitCode.OK if report.ready else ExitCode.ERROR


def examine(runs: Path, progress: Callable[[str], object] = lambda area: None) -> Report:
    """Looks at everything. Writes one temporary file into (or beside) `runs` and removes it."""
    findings: list[Finding] = []
    for area, look in (
        ("python", _python),
        ("extras", _extras),
        ("systems", _systems),
        ("machine", lambda: _machine(runs)),
        ("tools", _tools),
    ):
        progress(area)
        findings += look()
    ready = not any(finding.required and finding.status in ("missing", "failed") for finding in findings)
    return Report(schema=SCHEMA, fairlead=__version__, ready=ready, findings=findings)


def _python() -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(
        area="python",
        name="python",
        status="ok" if sys.version_info >= _PYTHON else "failed",
        found=f"{version} at {sys.executable}",
        fix="" if sys.version_info >= _PYTHON else "install Python 3.11 or newer",
        required=True,
    )


def _extras() -> Iterator[Finding]:
    for extra, needs in needs_of_extras().items():
        lacking = [need for need in needs if not need.satisfied]
        yield Finding(
            area="extras",
            name=extra,
            status="missing" if lacking else "ok",
            found=", ".join(_described(need) for need in (lacking or needs)),
            fix=f"pip install 'fairlead[{extra}]'" if lacking else "",
            required=extra == "try",
        )


def _described(need: Need) -> str:
    if need.installed is None:
        return f"{need.package} is not installed"
    return f"{need.package} {need.installed}" + ("" if need.satisfied else f" is older than {need.at_least}")


def _systems() -> Iterator[Finding]:
    from fairlead.trial.system import find_systems, load_system

    working = 0
    broken: list[Finding] = []
    for name in find_systems():
        try:
            title = load_system(name).title
        except (
            Exception,
            SystemExit,
        ) as error:  # somebody else's package may fail in any way, and says so here
            reason = one_line(f"{type(error).__name__}: {error}")
            broken.append(
                Finding(
                    area="systems",
                    name=name,
                    status="failed",
                    found=reason,
                    fix="reinstall the package that brings it, or its missing extra",
                )
            )
        else:
            working += 1
            yield Finding(area="systems", name=name, status="ok", found=title)
    yield from broken
    yield Finding(
        area="systems",
        name="any system",
        status="ok" if working else "missing",
        found=f"{working} usable, {len(broken)} broken",
        fix="" if working else "pip install 'fairlead[try]', or repair what is listed above",
        required=True,
    )


def _machine(runs: Path) -> Iterator[Finding]:
    yield _writable(runs)
    yield _file_size()
    yield _loopback()
    yield _descriptors()
    yield _cores()
    yield _clock_source()


def _writable(runs: Path) -> Finding:
    # The folder may not exist yet; what counts is whether it could be made. A file in its way is told by the write.
    place = next((path for path in (runs, *runs.absolute().parents) if path.exists()), Path("/"))
    fix = "choose another place: fairlead try --out DIR"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        found = f"{place}: {error.strerror}"
        return Finding(area="machine", name="runs", status="failed", found=found, fix=fix, required=True)
    return Finding(
        area="machine",
        name="runs",
        status="ok" if free >= _FREE_BYTES else "warning",
        found=f"{place} is writable, {free / 1e9:.1f} GB free",
        fix=""
        if free >= _FREE_BYTES
        else f"free some space (a run may write {_FREE_BYTES // 1_000_000} MB), or {fix}",
        required=True,
    )


def _file_size() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    enough = limit == resource.RLIM_INFINITY or limit >= _FREE_BYTES
    return Finding(
        area="machine",
        name="file size",
        status="ok" if enough else "warning",
        found="no limit" if limit == resource.RLIM_INFINITY else f"at most {limit} bytes a file",
        fix="" if enough else "ulimit -f unlimited",
    )


def _loopback() -> Finding:
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2),
        ):
            pass
    except OSError as error:
        return Finding(
            area="machine",
            name="loopback",
            status="failed",
            found=f"127.0.0.1: {error.strerror or error}",
            fix="bring the interface up (ip link set lo up), or allow local sockets in the sandbox",
            required=True,
        )
    return Finding(
        area="machine", name="loopback", status="ok", found="127.0.0.1 accepts and connects", required=True
    )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS
    return Finding(
        area="machine",
        name="file descriptors",
        status="ok" if enough else "warning",
        found=f"{soft} (may be raised to {hard})",
        fix="" if enough else f"ulimit -n {_DESCRIPTORS}",
    )


def _cores() -> Finding:
    from fairlead.trial.machine import usable_cores

    cores = usable_cores()
    return Finding(
        area="machine",
        name="cores",
        status="ok" if cores >= 2 else "warning",
        found=f"{cores:g}",
        fix=""
        if cores >= 2
        else "load engine and services disturb each other on one core: lower the load (--rate 50)",
    )


def _clock_source() -> Finding:
    resolution = time.get_clock_info("monotonic").resolution
    try:
        path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        source = path.read_text(encoding="ascii").strip()
    except OSError:
        source = "unknown"
    slow = source in _SLOW_CLOCKS or resolution > 1e-6
    return Finding(
        area="machine",
        name="clock",
        status="warning" if slow else "ok",
        found=f"{source}, resolution {resolution * 1e9:g} ns",
        fix="reading this clock is slow or coarse; latencies under 0.1 ms are not to be trusted"
        if slow
        else "",
    )


def _tools() -> Iterator[Finding]:
    # Daemons lie in sbin, which a user's PATH leaves out.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    for tool, package, wanted_by in _TOOLS:
        place = shutil.which(tool, path=path)
        yield Finding(
            area="tools",
            name=tool,
            status="ok" if place else "missing",
            found=place or "not installed",
            fix="" if place else f"apt-get install {package}",
            wanted_by=wanted_by,
        )


def _as_text(report: Report) -> str:
    width = max(len(finding.name) for finding in report.findings)
    lines = [f"fairlead {report.fairlead}"]
    area = ""
    for finding in report.findings:
        if finding.area != area:
            area = finding.area
            lines += ["", area]
        wanted = f" (for {finding.wanted_by})" if finding.wanted_by else ""
        lines.append(f"  {finding.status:<8}{finding.name:<{width}}  {one_line(finding.found)}{wanted}")
        if finding.fix:
            lines.append(f"  {'':<8}{'':<{width}}  fix: {finding.fix}")
    verdict = (
        "ready: fairlead try can run here"
        if report.ready
        else "not ready: repair what is marked missing or failed above"
    )
    return "\n".join([*lines, "", verdict])
