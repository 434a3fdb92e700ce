"""The page of an experiment, for someone who was not there.

It begins with what was found and whether it may be believed, then the health of the experiment, the effects as a
forest, the course over time with the interval that holds at all looks, the segments with their warning, and every
definition.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from fairlead.charts import Interval, dot_interval, page, timeline, unit_of
from fairlead.experiment.result import ExperimentResult, MetricResult
from fairlead.experiment.wording import headline, metric_rows, notes_of, p_text, relative_text, stage_rows

__all__ = ["render_report"]

_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


def render_report(result: ExperimentResult) -> str:
    """One HTML file, without scripts, light and dark; the same result gives the same bytes."""
    title = f"Experiment {result.name}"
    parts = [
        _head(result, title),
        _health(result),
        _stages(result),
        _effects(result),
        _course(result),
        _segments(result),
        _fairness(result),
        _definitions(result),
        _ground(result),
    ]
    return page(title, "".join(parts))


def _text(value: object) -> str:
    return html.escape(str(value))


def _head(result: ExperimentResult, title: str) -> str:
    arms = " and ".join([", ".join(result.variants), result.control])
    kind = "invalid" if result.is_void else ""
    return (
        f"<header><h1>{_text(title)}</h1>"
        f'<p class="meta">{result.units:,} units · {_text(arms)} (control) · alpha {result.alpha:g}'
        f"{', watched' if result.sequential else ''} · Fairlead {_text(result.fairlead_version)}</p>"
        f'<p class="verdict {kind}"><b>{_text(headline(result))}</b></p></header>\n'
    )


def _health(result: ExperimentResult) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_MARKS[check.verdict]} {_text(check.name)}</th>'
        f'<td class="{"missed" if check.verdict != "ok" else "met"}">{_text(check.verdict)}</td>'
        f"<td>{_text(check.message)}</td><td class=number>{_text(p_text(check.p_value))}</td></tr>"
        for check in result.health
    )
    excluded = "".join(f"<li>{count:,} {_text(reason)}</li>" for reason, count in result.excluded.items())
    left = f"<p>Left out:</p><ul>{excluded}</ul>" if excluded else ""
    return (
        "<section><h2>Is the experiment sound?</h2><div class=wide><table><thead><tr><th scope=col>question</th>"
        "<th scope=col>answer</th><th scope=col>found</th><th scope=col class=number>p</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{left}</section>\n"
    )


def _stages(result: ExperimentResult) -> str:
    if not result.stages:
        return ""
    arms = "".join(
        f"<th scope=col class=number>{_text(arm)} (expected)</th>"
        for arm in (result.control, *result.variants)
    )
    body = "".join(
        f'<tr><th scope="row">{_text(row.name)}</th><td>{_text(row.start)}</td><td>{_text(row.end)}</td>'
        + "".join(f"<td class=number>{_text(cell)}</td>" for cell in row.units)
        + f"<td class=number>{_text(row.back)}</td><td class=number>{_text(row.p_value)}</td>"
        f"<td>{_text('; '.join(row.left_out))}</td></tr>"
        for row in stage_rows(result)
    )
    return (
        "<section><h2>Stages</h2><p>Compared within each, and among units for whom it drew with the same chances: "
        "those it met first, and those who came back from control. Who has had treatment before is on neither side.</p>"
        "<div class=wide><table><thead><tr><th scope=col>share</th><th scope=col>from</th><th scope=col>until</th>"
        f"{arms}<th scope=col class=number>of them back</th><th scope=col class=number>p of the split</th>"
        f"<th scope=col>drawn, and not counted</th></tr></thead><tbody>{body}</tbody></table></div></section>\n"
    )


def _effects(result: ExperimentResult) -> str:
    rows = metric_rows(result)
    several = len(result.variants) > 1
    body = "".join(
        f'<tr><th scope="row">{_text(row.name)}{f" · {_text(row.variant)}" if several else ""}'
        f"{' <small>(primary)</small>' if found.role == 'primary' else ''}</th>"
        f"<td class=number>{_text(row.control)}</td><td class=number>{_text(row.treatment)}</td>"
        f"<td class=number>{_text(row.effect)}</td><td class=number>{_text(row.relative)}</td>"
        f"<td class=number>{_text(row.p_value)}</td><td>{_text(row.verdict)}</td></tr>"
        for row, found in zip(rows, result.metrics, strict=True)
    )
    notes = "".join(f"<dt>{_text(names)}</dt><dd>{_text(note)}</dd>" for names, note in notes_of(rows))
    treatment = "treatment" if several else result.variants[0]
    return (
        "<section><h2>What changed</h2>"
        f"{_forest(result)}"
        "<div class=wide><table><thead><tr><th scope=col>metric</th>"
        f"<th scope=col class=number>{_text(result.control)}</th><th scope=col class=number>{_text(treatment)}</th>"
        "<th scope=col class=number>effect</th><th scope=col class=number>relative</th>"
        f"<th scope=col class=number>p</th><th scope=col>verdict</th></tr></thead><tbody>{body}</tbody></table></div>"
        f"<p class=note>Intervals of {1 - result.alpha:.4g} coverage. p is adjusted over the metrics of one "
        f"role (Holm); "
        "the primary metric is asked alone.</p>"
        f"<dl>{notes}</dl></section>\n"
    )


def _forest(result: ExperimentResult) -> str:
    groups: dict[str, dict[str, Interval]] = {}
    for found in result.metrics:
        low, high = found.relative_effect_ci or (None, None)
        groups.setdefault(found.name, {})[found.variant] = _interval(
            found.relative_effect, low, high, found.control.n + found.treatment.n
        )
    if len(groups) * max(1, len(result.variants)) > 60 or len(result.variants) > 8:
        return "<p class=note>Too many metrics and variants for one chart; the table has them all.</p>"
    return dot_interval(
        groups,
        title="Relative effects",
        unit="ratio",
        x_name="relative to control",
        description=f"Each with its interval of {1 - result.alpha:.4g} coverage. An interval that reaches over "
        f"zero shows "
        "no difference; it does not show that there is none.",
    ).to_html()


def _interval(value: float | None, low: float | None, high: float | None, n: int) -> Interval:
    if value is None:
        return Interval(None, None, None, n)
    return Interval(
        value,
        low if low is not None and low <= value else None,
        high if high is not None and high >= value else None,
        n,
    )


def _course(result: ExperimentResult) -> str:
    if not result.steps:
        return ""
    first = result.steps[0].end_utc_seconds
    name = result.steps[0].metric
    found = next(one for one in result.metrics if one.name == name)
    parts = []
    for variant in result.variants:
        steps = [step for step in result.steps if step.variant == variant]
        if not steps:
            continue
        lines = {
            "effect": [(step.end_utc_seconds - first, step.effect) for step in steps],
            "upper end": [(step.end_utc_seconds - first, step.ci[1] if step.ci else None) for step in steps],
            "lower end": [(step.end_utc_seconds - first, step.ci[0] if step.ci else None) for step in steps],
        }
        unit = unit_of(found.unit)
        parts.append(
            timeline(
                lines,
                title=f"{name}, {variant} − {result.control}, as units came",
                unit="percentage_points" if unit == "ratio" else unit,
                y_name="effect so far",
                x_name="Time since the first step",
                description="The interval is a confidence sequence: with the stated coverage the truth lies in "
                "it at all "
                "looks together, so one may stop at any.",
            ).to_html()
        )
    return f"<section><h2>As it went</h2>{''.join(parts)}</section>\n"


def _segments(result: ExperimentResult) -> str:
    if not result.segments:
        return ""
    parts = [
        "<section><h2>Segments <small>(exploratory)</small></h2><p>Where to look next, and nothing to decide "
        "by: the more "
        "segments one looks at, the more of them stand out by chance. p is adjusted over all of them (Benjamini and "
        "Hochberg).</p>"
    ]
    for name in dict.fromkeys(row.segment for row in result.segments):
        rows = [row for row in result.segments if row.segment == name]
        asked = {(row.metric, row.variant): row.heterogeneity_p_value for row in rows}
        differ = "; ".join(
            f"{metric}{f' ({variant})' if len(result.variants) > 1 else ''}: p = {p_text(p_value)}"
            for (metric, variant), p_value in asked.items()
            if p_value is not None
        )
        body = "".join(
            f'<tr><th scope="row">{_text(row.value or "(none)")}</th><td>{_text(row.metric)}</td>'
            f"<td>{_text(row.variant)}</td><td class=number>{row.n_control + row.n_treatment:,}</td>"
            f"<td class=number>{_text(relative_text(row))}</td><td "
            f"class=number>{_text(p_text(row.adjusted_p_value))}</td>"
            f"<td>{_text('; '.join(row.caveats))}</td></tr>"
            for row in rows
        )
        parts.append(
            f"<h3>{_text(name)}</h3><p class=note>Do its values differ in their effect at all? "
            f"{_text(differ or 'not known')}</p>"
            "<div class=wide><table><thead><tr><th scope=col>value</th><th scope=col>metric</th><th "
            "scope=col>variant</th>"
            "<th scope=col class=number>units</th><th scope=col class=number>relative effect</th>"
            f"<th scope=col class=number>p</th><th scope=col>note</th></tr></thead><tbody>{body}</tbody></table></div>"
        )
    return "".join(parts) + "</section>\n"


def _fairness(result: ExperimentResult) -> str:
    if not result.fairness:
        return ""
    body = "".join(
        f'<tr><th scope="row">{_text(one.metric)} by {_text(one.group)}</th><td>{_text(one.variant)}</td>'
        f"<td class=number>{_text(_ratio(one.largest_ratio))} {_text(_bounds(one.ci))}</td>"
        f"<td class=number>{one.limit:g}</td><td>{_text(one.verdict.replace('_', ' '))}</td>"
        f"<td>{_text(' over '.join(one.between))}{_text('; '.join(('', *one.caveats)))}</td></tr>"
        for one in result.fairness
    )
    return (
        "<section><h2>Fairness</h2><p>The largest treatment/control of a group over the smallest, with an "
        "interval that "
        "holds for all pairs of groups together.</p><div class=wide><table><thead><tr><th scope=col>metric</th>"
        "<th scope=col>variant</th><th scope=col class=number>ratio</th><th scope=col class=number>limit</th>"
        f"<th scope=col>verdict</th><th "
        f"scope=col>between</th></tr></thead><tbody>{body}</tbody></table></div></section>\n"
    )


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _bounds(ci: tuple[float | None, float | None] | None) -> str:
    return "" if ci is None else f"[{_ratio(ci[0])}, {_ratio(ci[1])}]"


def _definitions(result: ExperimentResult) -> str:
    seen: dict[str, MetricResult] = {}
    for found in result.metrics:
        seen.setdefault(found.name, found)
    items = "".join(
        f"<dt>{_text(found.name)} <small>{_text(found.role)}</small></dt><dd>{_text(found.definition)}."
        f" {_text(_method(found))}</dd>"
        for found in seen.values()
    )
    return f"<section><h2>Definitions</h2><dl>{items}</dl></section>\n"


def _method(found: MetricResult) -> str:
    return f"Compared by {found.method}." if found.method else ""


def _ground(result: ExperimentResult) -> str:
    lines: Sequence[str] = [
        *(f"<li>{_text(caveat)}</li>" for caveat in result.caveats),
        f"<li>queries: sha256 <code>{_text(result.query_sha256)}</code></li>",
        *([f"<li>data: sha256 <code>{_text(result.data_sha256)}</code></li>"] if result.data_sha256 else []),
    ]
    return f"<section><h2>What it stands on</h2><ul>{''.join(lines)}</ul></section>\n"
