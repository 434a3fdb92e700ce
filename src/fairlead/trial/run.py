"""One run from start to finish: a folder of its own, the walk, the result, the report."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

from fairlead.errors import InvalidInput, RunInvalid
from fairlead.experiment import render_report
from fairlead.trial.conclude import conclude
from fairlead.trial.live import canary_to_its_end, check_let_out
from fairlead.trial.progress import Progress
from fairlead.trial.promise import freeze_promise, record_result
from fairlead.trial.report import EXPERIMENT_PAGE, write_report
from fairlead.trial.result import Result, write_atomically, write_result
from fairlead.trial.rollout_record import LetOutRecord, RolloutRecord
from fairlead.trial.rollout_words import rollout_in_words
from fairlead.trial.system import Settings, System
from fairlead.trial.validity import judge
from fairlead.trial.virtual_rollout import play_virtual
from fairlead.trial.walk import Recorded, play

__all__ = ["make_run_directory", "run_trial"]


def make_run_directory(out: Path, system: str, seed: int) -> Path:
    """A new folder in `out`, named after the moment, the system and the seed. Raises InvalidInput."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        directory = out / f"{stamp}-{system}-seed{seed}{'' if number == 1 else f'-{number}'}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if not out.is_dir():
                raise InvalidInput(
                    f"--out {out}: a file of that name exists; choose another folder"
                ) from None
            continue  # two runs began within one second
        except OSError as error:
            raise InvalidInput(
                f"--out {out}: {error.strerror}; choose a folder that can be written"
            ) from error
        return directory
    raise InvalidInput(f"--out {out}: no free name for a run; remove old runs")


def run_trial(
    system: System, settings: Settings, directory: Path, progress: Progress | None = None
) -> Result:
    """Plays `system` and writes result.json, report.html, ledger.db, events/ and logs/ into `directory`.

    The system's change file is frozen in the ledger before anything starts; the result is read back from it.

    Blocks until done; runs its own event loop (uvloop). Whatever ends it early, even Ctrl-C, a result of
    the complete turns is written, marked invalid, before the exception goes on. The processes have ended in
    any case.
    """
    import uvloop

    plan = system.plan(settings)
    if plan.let_out is not None:
        check_let_out(system.name, system.change)
    promise = freeze_promise(system, plan, directory)
    recorded = Recorded(plan=plan, started_at=time.time())
    rollout: RolloutRecord | None = None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(play(system, settings, directory, recorded, progress))
            rollout, missing = runner.run(_whole_plan(system, settings, recorded, directory))
        let_out = _let_out(recorded, rollout, missing)
        if progress is not None and let_out is not None:
            became = missing if rollout is None else rollout_in_words(rollout)
            progress.said(f"the whole plan on virtual time: {became}")
        result = conclude(system, settings, recorded, directory, let_out=let_out)
    except BaseException as error:
        why = _why(error)
        try:
            let_out = _let_out(recorded, rollout, "" if rollout else why)
            result = conclude(system, settings, recorded, directory, let_out=let_out, ended_early=why)
            _write(record_result(result, promise, directory), recorded, directory)
        except Exception as second:  # what ended the run is the news, and often the cause of this too
            error.add_note(f"no result could be written: {second}")
        raise
    result = record_result(result, promise, directory)
    _write(result, recorded, directory)
    return result


async def _whole_plan(
    system: System, settings: Settings, recorded: Recorded, directory: Path
) -> tuple[RolloutRecord | None, str]:
    """The rollout, or why there is none; neither for a system that is not let out."""
    let_out, content = recorded.plan.let_out, system.change
    if recorded.live is None or let_out is None or content is None:
        return None, ""
    try:
        return await play_virtual(judge(recorded).kept, settings, let_out, content, directory), ""
    except RunInvalid as error:  # the comparison, and what was played live, stand
        return None, f"not played: {error}"


def _let_out(recorded: Recorded, rollout: RolloutRecord | None, missing: str) -> LetOutRecord | None:
    """What was played to its end; None where nothing was begun."""
    live = recorded.live
    if live is None:
        return None
    return LetOutRecord(shadow=live.shadow, canary=canary_to_its_end(live), rollout=rollout, missing=missing)


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "ended early: interrupted"
    if isinstance(error, SystemExit):
        return f"ended early: asked to end (exit code {error.code})"
    return f"ended early: {str(error) or type(error).__name__}"


def _write(result: Result, recorded: Recorded, directory: Path) -> None:
    write_result(result, directory / "result.json")
    write_report(result, recorded, directory / "report.html")
    if result.users is not None:
        write_atomically(directory / EXPERIMENT_PAGE, render_report(result.users.experiment).encode())
