"""The page that a run leaves behind: one file, no network, light and dark, fit to print.

It is read by someone who was not there. So it begins with what was compared and whether it may be believed,
says each figure's definition, and puts a table behind each picture.
"""

from __future__ import annotations

import html
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from fairlead.charts import (
    Band,
    Figure,
    Interval,
    bars,
    cdf,
    dot_interval,
    format_value,
    page,
    timeline,
)
from fairlead.experiment.wording import metric_rows, notes_of
from fairlead.lab.samples import Ending
from fairlead.trial.figures import latencies, of_phase
from fairlead.trial.report_let_out import let_out_section
from fairlead.trial.result import Result, write_atomically
from fairlead.trial.summary import (
    PhaseTable,
    ablations,
    burn_in_words,
    causes_in_words,
    outcome_in_words,
    phase_tables,
    planted_in_words,
)
from fairlead.trial.system import Arm, Phase
from fairlead.trial.validity import judge
from fairlead.trial.walk import Recorded

__all__ = ["EXPERIMENT_PAGE", "p99_by_phase", "render_report", "write_report"]

EXPERIMENT_PAGE = "experiment.html"
"""The page of the experiment on made users, beside the report."""

_BIN = 0.25  # seconds of a timeline's points
_FEWEST = 5  # requests in a bin below which its p95 is left out


def write_report(result: Result, recorded: Recorded, path: Path) -> None:
    """Raises NoSpace; the file is whole or absent."""
    write_atomically(path, render_report(result, recorded).encode())


def render_report(result: Result, recorded: Recorded) -> str:
    """The page as text. `recorded` gives the charts the single requests that `result` only sums up."""
    recorded = judge(recorded).kept
    title = f"{result.title}: {' against '.join(arm.name for arm in result.arms[1::-1])}"
    return page(
        title,
        "".join(
            (
                _head(result, title),
                _verdict(result),
                _targets(result),
                _charts(result, recorded),
                _ablations(result),
                _budgets(result),
                _users(result),
                let_out_section(result),
                _tables(result),
                _conditions(result),
                _definitions(result),
                _evidence(result),
            )
        ),
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _head(result: Result, title: str) -> str:
    started = datetime.fromtimestamp(result.started_at_utc_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"<header><h1>{_text(title)}</h1>"
        f'<p class="meta">run <code>{_text(result.id)}</code> · {started} · seed {result.seed} · '
        f"Fairlead {_text(result.fairlead_version)} · load test, not an experiment on users</p>"
        f"<p>{_text(result.summary)}</p></header>\n"
    )


def _verdict(result: Result) -> str:
    validity = result.validity
    lag = format_value(validity.send_lag_p99_seconds, "seconds")
    left_out = "".join(f"<br>Left out, for every arm: {_text(turn)}." for turn in validity.left_out)
    if validity.valid:
        return (
            f'<p class="verdict"><b>The run is valid.</b> {validity.requests:,} requests were sent open-loop, with a '
            f"p99 send lag of {lag}. Latency counts from the moment each request was due.{left_out}</p>\n"
        )
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in validity.reasons)
    return (
        '<div class="verdict invalid"><b>The run is not valid: do not use its figures.</b>'
        f"<ul>{reasons}</ul></div>\n"
    )


def _targets(result: Result) -> str:
    titles = {phase.name: phase.title for phase in result.phases} | {"run": "whole run"}
    rows = "".join(
        f'<tr><th scope="row">{_text(target.statement)}</th><td>{_text(titles.get(target.phase, target.phase))}</td>'
        f"<td>{_text(outcome_in_words(target))}</td><td>{_mark(target.met)}</td></tr>"
        for target in result.targets
    )
    sources = "".join(
        f"<p class=note>Source: {_text(source)}.</p>"
        for source in dict.fromkeys(t.source for t in result.targets)
    )
    return (
        "<section><h2>Targets</h2><div class=wide><table><thead><tr><th scope=col>target</th><th scope=col>phase</th>"
        "<th scope=col>control → treatment</th><th scope=col>outcome</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{sources}</section>\n"
    )


def _mark(met: bool | None) -> str:
    if met is None:
        return "not judged"
    return '<span class="met">✓ met</span>' if met else '<span class="missed">✗ missed</span>'


def p99_by_phase(result: Result) -> Figure:
    """The two arms side by side, phase by phase."""
    groups = {}
    for phase in result.phases:
        if not phase.measured:
            continue
        groups[phase.title] = {
            arm.name: Interval(figure.value, figure.low, figure.high, figure.n)
            for arm in result.arms[:2]
            if (figure := result.figure("latency_p99", arm.name, phase.name)) is not None
            and figure.value is not None
        }
    return dot_interval(
        groups,
        title="p99 latency by phase",
        unit="seconds",
        x_name="p99 latency",
        x_scale="log",
        description=(
            f"95 % intervals. A failed request counts as at least {result.patience_seconds:g} s, the client's patience."
        ),
    )


def _charts(result: Result, recorded: Recorded) -> str:
    arms = recorded.plan.arms[:2]
    parts = ["<section><h2>What users would have met</h2>\n", p99_by_phase(result).to_html()]
    parts.append(_timelines(recorded, arms))
    parts.extend(_cdf(recorded, arms, phase) for phase in recorded.plan.phases if phase.measured)
    parts.append("</section>\n")
    return "".join(parts)


def _cdf(recorded: Recorded, arms: tuple[Arm, ...], phase: Phase) -> str:
    series = {}
    for arm in arms:
        part = of_phase(recorded, arm, phase)
        if part is not None:
            series[arm.name] = latencies(part.samples, recorded.plan.patience).tolist()
    return cdf(
        series,
        title=f"Latency in the phase “{phase.title}”",
        description=f"All requests; a failed one counts as at least {recorded.plan.patience:g} s.",
    ).to_html()


def _timelines(recorded: Recorded, arms: tuple[Arm, ...]) -> str:
    """p95 and answers per quarter second of a cycle, all cycles of an arm laid over one another."""
    edges = np.arange(0.0, recorded.plan.cycle_seconds + _BIN / 2, _BIN)
    slow: dict[str, list[tuple[float, float | None]]] = {}
    answered: dict[str, list[tuple[float, float | None]]] = {}
    for arm in arms:
        turns = recorded.of_arm(arm)
        if not turns:
            continue
        offset = np.concatenate([turn.samples.offset for turn in turns])
        latency = np.concatenate([latencies(turn.samples, recorded.plan.patience) for turn in turns])
        good = np.concatenate([turn.samples.ending == Ending.OK for turn in turns])
        slow[arm.name], answered[arm.name] = [], []
        for start, end in pairwise(edges):
            rows = (offset >= start) & (offset < end)
            middle = float(start + end) / 2
            enough = np.count_nonzero(rows) >= _FEWEST
            p95 = float(np.quantile(latency[rows], 0.95, method="inverted_cdf")) if enough else None
            slow[arm.name].append((middle, p95))
            answered[arm.name].append((middle, float(np.count_nonzero(good & rows)) / _BIN / len(turns)))
    bands = [Band(name=phase.title, start=start, end=end) for phase, start, end in recorded.phase_bounds()]
    note = f"By the moment a request was due, in bins of {_BIN * 1000:g} ms, over all cycles of the arm."
    return (
        timeline(
            slow, title="p95 latency through a cycle", y_name="p95 latency", unit="seconds", y_scale="log",
            bands=bands, x_name="Time in the cycle", description=note,
        ).to_html()
        + timeline(
            answered, title="Answers through a cycle", y_name="answers per second", unit="rate",
            bands=bands, x_name="Time in the cycle", description=f"{note} Degraded answers included.",
        ).to_html()
    )  # fmt: skip


def _budgets(result: Result) -> str:
    """How fast each arm burned the error budgets."""
    if not result.budgets:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(one.objective)}</th><td '
        f"class=number>{format_value(float(one.target), 'ratio')}</td>"
        f"<td>{_text(one.arm)}</td><td class=number>{one.valid:,}</td><td class=number>{one.bad:,}</td>"
        f"<td class=number>{_text(burn_in_words(one))}</td><td>{_text(causes_in_words(one))}</td></tr>"
        for one in result.budgets
    )
    return (
        "<section><h2>Error budget, before and after</h2><p>How many times too fast an arm burned its budget: "
        "at 1 it would be "
        f"spent exactly in its period ({_text(result.budgets[0].period)}). A run has more faults a minute than "
        f"a month has, on "
        "purpose: compare the arms with each other.</p><div class=wide><table><thead><tr><th scope=col>objective</th>"
        "<th scope=col class=number>target</th><th scope=col>arm</th><th scope=col class=number>requests</th>"
        "<th scope=col class=number>bad</th><th scope=col class=number>burn rate</th><th scope=col>spent "
        "on</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>\n"
    )


def _users(result: Result) -> str:
    """The experiment on made users: what was planted, and whether it was found."""
    users = result.users
    if users is None:
        return ""
    planted = {one.metric: one for one in users.planted}
    rows = []
    for row, found in zip(metric_rows(users.experiment), users.experiment.metrics, strict=True):
        one = planted.get(found.name)
        truth = "not planted: as the clients met it" if one is None else planted_in_words(one, found.unit)
        rows.append(
            f'<tr><th scope="row">{_text(found.name.replace("_", " "))}</th><td class=number>{_text(row.control)}</td>'
            f"<td class=number>{_text(row.treatment)}</td><td class=number>{_text(row.effect)}</td>"
            f"<td class=number>{_text(row.relative)}</td><td>{_text(row.verdict)}</td><td>{_text(truth)}</td></tr>"
        )
    notes = "".join(
        f"<dt>{_text(names)}</dt><dd>{_text(note)}</dd>"
        for names, note in notes_of(metric_rows(users.experiment))
    )
    return (
        "<section><h2>What users would have done <small>(simulated)</small></h2>"
        f"<p>{users.experiment.units:,} made users, divided by the flag, respond to the latency that each "
        f"really met in this "
        "run, as declared below. The effect is known, so what is tried here is the analysis: does the interval "
        "hold it? "
        f'The whole analysis: <a href="{EXPERIMENT_PAGE}">{EXPERIMENT_PAGE}</a>.</p>'
        "<div class=wide><table><thead><tr><th scope=col>metric</th><th scope=col class=number>control</th>"
        "<th scope=col class=number>treatment</th><th scope=col class=number>effect</th>"
        "<th scope=col class=number>relative</th><th scope=col>verdict</th><th scope=col>planted</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><dl>{notes}</dl></section>\n"
    )


def _ablations(result: Result) -> str:
    table = ablations(result)
    if table is None:
        return ""
    heads = "".join(f'<th scope="col" class="number">{_text(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th>'
        + "".join(f'<td class="number">{_text(each)}</td>' for each in cells)
        + "</tr>"
        for name, cells in table.rows
    )
    parts = [
        "<section><h2>What each mechanism contributes</h2><p>Each arm is the full treatment without one mechanism, "
        "in the same run: what a figure loses without it is what the mechanism contributes.</p>"
        f"<div class=wide><table><thead><tr><th scope=col>arm</th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>\n"
    ]
    for phase in result.phases:
        full = result.figure("latency_p99", result.arms[1].name, phase.name)
        if not phase.measured or full is None or full.value is None:
            continue
        values = {
            ", ".join(arm.without): figure.value - full.value
            for arm in result.arms
            if arm.without
            and (figure := result.figure("latency_p99", arm.name, phase.name)) is not None
            and figure.value is not None
        }
        chart = bars(
            values,
            title=f"p99 without the mechanism, less p99 with all: {phase.title}",
            unit="seconds",
            x_name="added p99",
            description="Point estimates; the intervals of both are in result.json.",
        )
        parts.append(chart.to_html())
    parts.append("</section>\n")
    return "".join(parts)


def _tables(result: Result) -> str:
    return (
        "<section><h2>All figures</h2><p class=note>Value and 95 % interval, taken over half-second slices, because "
        "neighbours in a queue are slow together. “Change” is treatment against control.</p>"
        + "".join(_table(table) for table in phase_tables(result))
        + "</section>\n"
    )


def _table(table: PhaseTable) -> str:
    heads = "".join(
        f'<th scope="col" class="number">{_text(arm)}<br>n = {n:,}</th>'
        for arm, n in zip(table.arms, table.requests, strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{_text(title)}</th>'
        + "".join(f'<td class="number">{_with_interval(cell)}</td>' for cell in cells)
        + f'<td class="number">{_text(change)}</td></tr>'
        for title, cells, change in table.rows
    )
    return (
        f"<h3>{_text(table.title)}</h3><div class=wide><table><thead><tr><th scope=col>figure</th>{heads}"
        f'<th scope="col" class="number">change</th></tr></thead><tbody>{rows}</tbody></table></div>\n'
        + "".join(f"<p class=note>† {_text(caveat)}</p>" for caveat in table.caveats)
    )


def _with_interval(cell: str) -> str:
    value, bracket, rest = cell.partition(" [")
    interval, _, dagger = rest.partition("]")
    return f"{_text(value + dagger)}<small>{_text(interval)}</small>" if bracket else _text(value)


def _conditions(result: Result) -> str:
    workload = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in result.workload.items()
    )
    simulated = "".join(f"<li>{_text(line)}</li>" for line in result.simulated)
    machine = result.machine
    return (
        f"<section><h2>How it was measured</h2><dl>{workload}"
        f"<dt>order</dt><dd>arms take turns, {result.cycles} cycles each, the order reversed every other cycle</dd>"
        f"<dt>machine</dt><dd>{_text(machine.cpu)}, {machine.cores:g} cores, "
        f"{format_value(float(machine.memory_bytes), 'bytes')}, {_text(machine.system)}, "
        f"Python {_text(machine.python)}</dd>"
        f"</dl><h2>simulated:</h2><ul>{simulated}</ul></section>\n"
    )


def _definitions(result: Result) -> str:
    entries = "".join(
        f"<dt>{_text(metric.title)} <code>{_text(metric.name)}</code></dt><dd>{_text(metric.definition)}.</dd>"
        for metric in result.metrics
    )
    return f"<section><h2>Definitions</h2><dl>{entries}</dl></section>\n"


def _promise(result: Result) -> str:
    """What was frozen before the run, and how to see that nothing was changed since."""
    change = result.change
    frozen = (
        f"Before the run, the change file <b>{_text(change.name)}</b> was frozen (version {change.version}, SHA-256 "
        f"<code>{_text(change.sha256)}</code>): what the targets measure is defined there. "
        if change
        else ""
    )
    if not result.ledger_head:
        return f"<p>{frozen}</p>" if frozen else ""
    return (
        f"<p>{frozen}Each figure was read from the run's ledger, where it stands with its definition and the hash of "
        "its data; targets, limits and plan were in it before the first request was sent. Nothing in it was edited "
        "since, if this says so (who may write the whole folder can write this line too: keep it elsewhere):</p>"
        f"<p><code>fairlead audit verify --store ledger.db --expect {_text(result.ledger_head)}</code></p>"
    )


def _evidence(result: Result) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{_text(each.path)}</code></th><td class="number">{each.bytes:,}</td>'
        f"<td><code>{_text(each.sha256)}</code></td></tr>"
        for each in result.evidence
    )
    return (
        "<section><h2>Evidence</h2>"
        + _promise(result)
        + "<p class=note>Every request and answer of the run, beside this page. The figures "
        "were computed from these files' contents.</p><div class=wide><table><thead><tr><th scope=col>file</th>"
        f'<th scope="col" class="number">bytes</th><th scope=col>SHA-256</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>\n"
    )
