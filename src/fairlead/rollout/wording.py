"""How a person reads what a rollout saw: the same words in a terminal and in a report."""

from __future__ import annotations

from fairlead.rollout.guardrail import Evaluation

__all__ = ["evaluation_row", "span"]


def evaluation_row(
    found: Evaluation, unit: str, *, beside_control: bool, relative: bool
) -> tuple[str, str, str, str, str, str]:
    """Verdict, control, treatment, worse by, at most, and n of both. unit: of the metric.

    relative: whether the effect of a guardrail beside control is a share of control's figure.
    """
    verdict = found.verdict + (f" ({found.reason})" if found.reason else "")
    return (
        verdict,
        _figure(found.control, unit),
        _figure(found.treatment, unit),
        _effect(found.effect, unit, relative) if beside_control else "",
        _effect(found.bound, unit, relative) if beside_control else _figure(found.bound, unit),
        f"{found.n_control:,} / {found.n_treatment:,}",
    )


def span(seconds: float) -> str:
    """A duration as a person says it.

    >>> span(45), span(600), span(5400), span(200000)
    ('45s', '10m', '1.5h', '2.3d')
    """
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m")):
        if seconds >= 2 * size or (seconds >= size and unit != "d"):
            return f"{seconds / size:.2g}{unit}" if seconds < 10 * size else f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "ratio":
        return f"{value:.3%}"
    if unit == "seconds":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.4g}"


def _effect(value: float | None, unit: str, relative: bool) -> str:
    if value is None:
        return "–"
    if relative:
        return f"{value:+.1%}"
    if unit == "ratio":
        return f"{value * 100:+.3g} pp"
    return f"{value:+.4g}"
