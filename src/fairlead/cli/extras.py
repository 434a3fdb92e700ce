"""Which packages each extra of this distribution asks for, and which of them are here.

Read from the installed metadata, so that the answer cannot drift from pyproject.toml. Nothing is imported: a
package that is installed and broken shows when its room is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["Need", "extra_with", "needs_of_extras", "parse_needs"]

_REQUIREMENT = re.compile(
    r"^(?P<package>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?P<constraint>[^;]*)"
    r";.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """One package that an extra asks for."""

    package: str
    at_least: str
    """Lowest version that is known to do; empty for any."""
    installed: str | None
    """The version that is here, or None."""

    @property
    def satisfied(self) -> bool:
        return self.installed is not None and _release(self.installed) >= _release(self.at_least)


def needs_of_extras() -> dict[str, list[Need]]:
    """Needs by extra, in the order of pyproject.toml; an extra that gathers others has the needs of all."""
    try:
        return parse_needs(requires("fairlead") or [])
    except PackageNotFoundError:  # run from a bare source tree: there is no metadata to read
        return {}


def parse_needs(requirements: list[str]) -> dict[str, list[Need]]:
    """As `needs_of_extras`, from the lines of `Requires-Dist`."""
    direct: dict[str, list[Need]] = {}
    gathered: dict[str, list[str]] = {}
    for line in requirements:
        if not (match := _REQUIREMENT.match(line)):
            continue  # a plain dependency: without it this program would not run
        extra = match["extra"]
        direct.setdefault(extra, [])
        if match["package"] == "fairlead":
            gathered.setdefault(extra, []).extend(name.strip() for name in (match["extras"] or "").split(","))
        else:
            direct[extra].append(_need(match["package"], match["constraint"]))
    return {extra: _closed(extra, direct, gathered, frozenset()) for extra in direct}


def extra_with(package: str, needs: dict[str, list[Need]]) -> str | None:
    """The extra that brings this package and the fewest others; None where none does."""
    found = [extra for extra, each in needs.items() if any(need.package == package for need in each)]
    return min(found, key=lambda extra: len(needs[extra]), default=None)


def _closed(
    extra: str, direct: dict[str, list[Need]], gathered: dict[str, list[str]], above: frozenset[str]
) -> list[Need]:
    if extra in above:
        return []
    needs = {need.package: need for need in direct.get(extra, [])}
    for part in gathered.get(extra, []):
        needs |= {need.package: need for need in _closed(part, direct, gathered, above | {extra})}
    return list(needs.values())


def _need(package: str, constraint: str) -> Need:
    lowest = re.search(r">=\s*([^,\s)]+)", constraint)
    try:
        installed: str | None = version(package)
    except PackageNotFoundError:
        installed = None
    return Need(package=package, at_least=lowest[1] if lowest else "", installed=installed)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version: enough to compare with the plain lower bounds that pyproject.toml uses."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:  # 2.0 and 2 are one version
        numbers.pop()
    return tuple(numbers)
