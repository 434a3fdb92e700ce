"""Did it work? Exposures joined with outcomes, the health of the experiment, and effects with their intervals.

    plan → units (who was exposed, and what became of each) → health (is the split sound?) → effects → result

A plan is written before the data; what is not in it is exploratory and says so. Every figure is computed from sums
per arm (`fairlead.statistics.Moments`) that the warehouse takes in one pass. `design_experiment` and
`simulate_experiment` say beforehand what an experiment of a given size can find, from one's own history. What needs
numpy and Ibis is imported on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.experiment.calendar import CalendarEntry, read_calendar
from fairlead.experiment.plan import ExperimentPlan, Fairness, Margin, Stage, Trigger
from fairlead.experiment.result import ExperimentResult, read_result

if TYPE_CHECKING:
    from fairlead.experiment.analysis import analyse
    from fairlead.experiment.before_after import BeforeAfter, analyse_before_after
    from fairlead.experiment.design import Design, Spread, design_experiment, spreads_of
    from fairlead.experiment.exposures import units_of_events
    from fairlead.experiment.report import render_report
    from fairlead.experiment.simulate import Simulated, simulate_experiment
    from fairlead.experiment.switchback import Switchback, units_of_switchback
    from fairlead.experiment.unit_table import units_of_files, units_of_table
    from fairlead.experiment.units import Units
else:
    # Imported when first asked for: a plan is made where there is neither numpy nor Ibis.
    _LATER = {
        "BeforeAfter": "before_after",
        "Design": "design",
        "Simulated": "simulate",
        "Spread": "design",
        "Switchback": "switchback",
        "Units": "units",
        "analyse": "analysis",
        "analyse_before_after": "before_after",
        "design_experiment": "design",
        "render_report": "report",
        "simulate_experiment": "simulate",
        "spreads_of": "design",
        "units_of_events": "exposures",
        "units_of_files": "unit_table",
        "units_of_switchback": "switchback",
        "units_of_table": "unit_table",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "BeforeAfter",
    "CalendarEntry",
    "Design",
    "ExperimentPlan",
    "ExperimentResult",
    "Fairness",
    "Margin",
    "Simulated",
    "Spread",
    "Stage",
    "Switchback",
    "Trigger",
    "Units",
    "analyse",
    "analyse_before_after",
    "design_experiment",
    "read_calendar",
    "read_result",
    "render_report",
    "simulate_experiment",
    "spreads_of",
    "units_of_events",
    "units_of_files",
    "units_of_switchback",
    "units_of_table",
]
