"""OpenSLO documents, v1 and v1alpha, as objectives; and what of them could not be taken over, said line by line.

OpenSLO leaves queries to whoever reads them; here a query must come down to a selector, since windows, rates and sums
are ours to add. What does not is left out with its reason, and never guessed. YAML comes from anyone: bounded in size
and depth, without anchors and aliases (a few hundred bytes of them make a billion items), read by the safe loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from fairlead.errors import BrokenDocument, InvalidInput, MissingExtra
from fairlead.metrics.metric import is_metric_name
from fairlead.slo.objective import CalendarPeriod, Counters, Objective, RollingPeriod

try:
    import yaml
except ImportError as missing:
    raise MissingExtra("pyyaml", "slo") from missing

__all__ = ["Imported", "import_openslo"]

MAX_BYTES = 1024 * 1024
_MOST_DOCUMENTS = 200
_MOST_EVENTS = 50_000
_MOST_DEPTH = 50
_VERSIONS = ("openslo/v1", "openslo/v1alpha")
_SELECTOR = r"[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^{}\n]{0,500}\})?"
_QUERY = re.compile(
    rf"\s*(?:sum\s*\(\s*)?(?:(?:rate|increase)\s*\(\s*)?(?P<selector>{_SELECTOR})\s*(?:\[[^\]]{{1,40}}\]\s*)?\)?\s*\)?\s*"
)
_UNITS = {
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
    "month": 30 * 86400,
    "quarter": 91 * 86400,
    "year": 365 * 86400,
}
_DURATION = re.compile(r"(?P<count>\d{1,4})(?P<unit>[mhdwMQY])")
_SHORT = {"m": "minute", "h": "hour", "d": "day", "w": "week", "M": "month", "Q": "quarter", "Y": "year"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an OpenSLO file came to."""

    objectives: tuple[Objective, ...]
    left_out: tuple[str, ...]
    """What was not taken over, and why; a sentence each."""


class _Left(Exception):
    """A document that cannot be an objective; its message is the reason."""


def import_openslo(content: bytes, *, owner: str = "", runbook: str = "", name: str = "OpenSLO") -> Imported:
    """The objectives of a file of OpenSLO documents.

    owner, runbook: for objectives that name none; OpenSLO v1 has no field for an owner, and ours need one. Raises
    BrokenDocument for what is no YAML, is too large or too deep, or holds no SLO of a known version.
    """
    documents = _documents(content, name)
    indicators: dict[str, Mapping[str, Any]] = {}
    slos = []
    left: list[str] = []
    for document in documents:
        version, kind = document.get("apiVersion"), document.get("kind")
        if version not in _VERSIONS:
            left.append(f"a document of apiVersion {str(version)[:40]!r}: {' and '.join(_VERSIONS)} are read")
        elif kind == "SLI":
            indicators[_name(document)] = _mapping(document.get("spec"))
        elif kind == "SLO":
            slos.append(document)
        else:
            left.append(
                f"{_name(document) or 'a document'} of kind {str(kind)[:40]!r}: only SLO and SLI are taken over"
            )
    if not slos:
        raise BrokenDocument(f"{name}: no document of kind SLO with apiVersion {' or '.join(_VERSIONS)}")
    objectives: list[Objective] = []
    for document in slos:
        try:
            for objective in _objectives(document, indicators, owner, runbook, left):
                if any(objective.name == other.name for other in objectives):
                    left.append(f"{objective.name}: a second objective of that name")
                else:
                    objectives.append(objective)
        except (_Left, InvalidInput) as reason:
            left.append(f"{_name(document) or 'an SLO without a name'}: {reason}")
    return Imported(objectives=tuple(objectives), left_out=tuple(left))


def _documents(content: bytes, name: str) -> list[Mapping[str, Any]]:
    if len(content) > MAX_BYTES:
        raise BrokenDocument(f"{name}: larger than {MAX_BYTES:,} bytes; import a file per service")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(content, Loader=loader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise BrokenDocument(
                    f"{name}: line {event.start_mark.line + 1}: anchors and aliases are not read; write it out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEPTH or number > _MOST_EVENTS:
                raise BrokenDocument(f"{name}: nested deeper, or longer, than any SLO is")
        for root in yaml.compose_all(content, Loader=loader):
            _check_keys(root, name)
        found = list(yaml.load_all(content, Loader=loader))
    # The loader trips over tags with values that are none of the kind, each in a way of its own.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, BrokenDocument):
            raise
        raise BrokenDocument(f"{name}: no YAML: {' '.join(str(error).split())[:200]}") from error
    documents = [document for document in found if document is not None]
    if len(documents) > _MOST_DOCUMENTS:
        raise BrokenDocument(f"{name}: {len(documents)} documents, at most {_MOST_DOCUMENTS}")
    for document in documents:
        if not isinstance(document, dict):
            raise BrokenDocument(f"{name}: a document that is no mapping; OpenSLO begins with apiVersion")
    return documents


def _check_keys(root: Any, name: str) -> None:
    """Refuses a key that is given twice: the last would win, and nobody would know."""
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise BrokenDocument(
                            f"{name}: line {key.start_mark.line + 1}: {key.value[:60]!r} is given twice; remove one"
                        )
                    seen.add(key.value)
                stack += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value


def _objectives(
    document: Mapping[str, Any],
    indicators: Mapping[str, Mapping[str, Any]],
    owner: str,
    runbook: str,
    left: list[str],
) -> Iterator[Objective]:
    name, spec = _name(document), _mapping(document.get("spec"))
    method = str(spec.get("budgetingMethod", "Occurrences"))
    if method.lower() != "occurrences":
        raise _Left(f"budgetingMethod {method[:40]}: budgets are counted in events here")
    title = str(
        _mapping(document.get("metadata")).get("displayName") or spec.get("description") or name
    ).strip()
    title = " ".join(title.split())[:200]
    if spec.get("composite"):
        raise _Left(
            "a composite: it is judged by other SLOs together, and an objective counts events of its own"
        )
    period = _period(spec)
    annotations = _mapping(_mapping(document.get("metadata")).get("annotations"))
    left += [
        f"{name}: {key}: alerts are made from the period, and labels are yours to add"
        for key in ("alertPolicies", "labels")
        if spec.get(key)
    ]
    if _mapping(document.get("metadata")).get("labels"):
        left.append(f"{name}: metadata.labels: labels are yours to add")
    found = spec.get("objectives")
    if not isinstance(found, list) or not found:
        raise _Left("no objectives")
    for number, item in enumerate(found, 1):
        one = _mapping(item)
        if one.get("composite"):
            raise _Left(
                "a composite: it is judged by other SLOs together, and an objective counts events of its own"
            )
        if one.get("compositeWeight") is not None:
            left.append(f"{name}: compositeWeight: each objective is judged by itself")
        base = _identifier(name)
        suffix = "" if len(found) == 1 else f"_{_identifier(str(one.get('displayName') or number))}"
        counters = _counters(spec, one, indicators)
        yield Objective(
            name=f"{base}{suffix}"[:64],
            title=title,
            target=_target(one),
            period=period,
            owner=owner
            or str(annotations.get("owner") or _mapping(document.get("metadata")).get("owner") or ""),
            runbook=runbook or str(annotations.get("runbook") or ""),
            prometheus=counters,
        )


def _target(objective: Mapping[str, Any]) -> Decimal:
    for key, scale in (("target", 0), ("targetPercent", -2)):
        if objective.get(key) is not None:
            try:
                # As YAML printed it: the shortest text of a float is what was written.
                return Decimal(str(objective[key])).scaleb(scale)
            except InvalidOperation as error:
                raise _Left(f"{key} {str(objective[key])[:40]!r} is no number") from error
    raise _Left("an objective without target or targetPercent")


def _period(spec: Mapping[str, Any]) -> RollingPeriod | CalendarPeriod:
    windows = spec.get("timeWindow") or spec.get("timeWindows")
    if not isinstance(windows, list) or len(windows) != 1:
        raise _Left("not exactly one timeWindow")
    window = _mapping(windows[0])
    if "duration" in window:
        match = _DURATION.fullmatch(str(window["duration"]))
        if match is None:
            raise _Left(f"duration {str(window['duration'])[:40]!r}")
        count, unit = int(match["count"]), _SHORT[match["unit"]]
    else:
        unit = str(window.get("unit", "")).lower().rstrip("s")
        try:
            count = int(window.get("count", 1))
        except (TypeError, ValueError, OverflowError) as error:
            raise _Left(f"count {str(window.get('count'))[:40]!r} of a timeWindow is no number") from error
    if not 1 <= count <= 10_000:
        raise _Left("a timeWindow of no count from 1 to 10,000")
    if unit not in _UNITS:
        raise _Left(f"a timeWindow of {unit[:40]!r}")
    rolling = window.get("isRolling", "calendar" not in window)
    if not isinstance(rolling, bool):
        raise _Left(f"isRolling {str(rolling)[:40]!r} of a timeWindow is neither true nor false")
    if rolling:
        return RollingPeriod(seconds=float(count * _UNITS[unit]))
    if count != 1 or unit not in ("week", "month", "quarter", "year"):
        raise _Left(f"a calendar window of {count} {unit}s: one week, month, quarter or year")
    zone = str(_mapping(window.get("calendar")).get("timeZone") or "UTC")
    return CalendarPeriod(unit=unit, time_zone=zone)  # type: ignore[arg-type]  # one of the four


def _counters(
    spec: Mapping[str, Any], objective: Mapping[str, Any], indicators: Mapping[str, Mapping[str, Any]]
) -> Counters:
    indicator = _mapping(spec.get("indicator"))
    reference = spec.get("indicatorRef") or objective.get("indicatorRef")
    if reference is not None:
        if str(reference) not in indicators:
            raise _Left(f"indicatorRef {str(reference)[:60]!r} is not in this file")
        inner = indicators[str(reference)]
    else:
        inner = _mapping(indicator.get("spec")) or indicator
    ratio = _mapping(
        inner.get("ratioMetric") or objective.get("ratioMetrics") or objective.get("ratioMetric")
    )
    if not ratio:
        if inner.get("thresholdMetric"):
            raise _Left(
                "a thresholdMetric: give a histogram and its edge by hand ([objectives.NAME.prometheus] histogram, le)"
            )
        raise _Left("no ratioMetric")
    if str(ratio.get("counter")).lower() == "false":
        raise _Left("a ratioMetric with counter: false: rates and increases are taken, which a gauge has not")
    if "good" not in ratio or "total" not in ratio:
        raise _Left("a ratioMetric without good and total: count what is good, not what is bad")
    return Counters(good=_selector(ratio["good"], "good"), valid=_selector(ratio["total"], "total"))


def _selector(metric: object, which: str) -> str:
    inner = _mapping(metric)
    source = _mapping(inner.get("metricSource")) or inner
    if inner.get("metricSourceRef") or source.get("metricSourceRef"):
        raise _Left(f"{which} names its source by metricSourceRef: write type: Prometheus beside its query")
    kind = str(source.get("type") or source.get("source") or "prometheus").lower()
    if kind != "prometheus":
        raise _Left(f"{which} is asked of {kind[:40]}: Prometheus is read")
    query = _mapping(source.get("spec")).get("query") or source.get("query")
    if not isinstance(query, str):
        raise _Left(f"{which} has no query")
    match = _QUERY.fullmatch(query)
    if match is None:
        raise _Left(
            f"{which}: {' '.join(query.split())[:100]!r} is more than a sum of a rate of one selector"
        )
    return match["selector"]


def _name(document: Mapping[str, Any]) -> str:
    return str(_mapping(document.get("metadata")).get("name") or "")[:100]


def _identifier(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    name = name if name and name[0].isalpha() else f"slo_{name}"
    return name[:48] if is_metric_name(name[:48]) else "slo"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
