"""What a walk leaves behind: `result.json`, versioned, with every figure beside its definition.

A figure without definition, n and interval is an anecdote, so none can be written without them: figures
name their metric, the metric's whole definition stands once in `metrics`, and the bytes that the figures
were computed from are listed in `evidence` with their SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fairlead.errors import BrokenDocument, InvalidInput, NoSpace
from fairlead.trial.budgets import BudgetRecord
from fairlead.trial.rollout_record import LetOutRecord
from fairlead.trial.users import UsersRecord

__all__ = [
    "ArmRecord",
    "ChangeRecord",
    "EvidenceFile",
    "Figure",
    "Machine",
    "MetricRecord",
    "PhaseRecord",
    "Result",
    "TargetRecord",
    "ValidityRecord",
    "hash_evidence",
    "read_result",
    "write_atomically",
    "write_result",
]

SCHEMA = "fairlead.trial.result/1"
MAX_RESULT_BYTES = 64 * 1024 * 1024


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number with what it needs to be believed."""

    metric: str
    """Name of an entry of `Result.metrics`."""
    arm: str
    phase: str
    value: float | None
    """None when there is nothing to say, and then `caveat` tells why. Never NaN."""
    low: float | None = None
    high: float | None = None
    """95 % interval, where one is defined."""
    n: int
    """Units of analysis behind the value."""
    caveat: str = ""
    method: str = ""
    """How value and interval were computed, where the definition does not say."""
    evidence: str = ""
    """Id of the entry in the run's ledger that holds it; empty in what older versions wrote."""

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("low", self.low), ("high", self.high)):
            if number is not None and not math.isfinite(number):
                raise InvalidInput(
                    f"figure {self.metric} of {self.arm}, {self.phase}: {name} is {number}, no number"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InvalidInput(
                f"figure {self.metric} of {self.arm}, {self.phase}: low {self.low:g} lies above high {self.high:g}"
            )
        if self.value is None and not self.caveat:
            raise InvalidInput(
                f"figure {self.metric} of {self.arm}, {self.phase}: no value, and no caveat to say why"
            )


class MetricRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's definition, as a sentence and as fields."""

    name: str
    title: str
    role: str
    kind: str
    unit: str
    side: str
    better: str
    definition: str
    definition_sha256: str


class TargetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A target and whether this run met it."""

    metric: str
    phase: str
    statement: str
    source: str
    met: bool | None
    """None when it could not be judged, or the run is not valid."""
    observed: float | None
    wording: str
    caveat: str = ""
    """What to know before relying on the outcome."""


class ArmRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    variant: str
    without: tuple[str, ...] = ()


class PhaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    seconds: float
    measured: bool


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpu: str
    cores: float
    """Usable ones: affinity and quota; a quota may be a fraction."""
    memory_bytes: int
    system: str
    python: str


class EvidenceFile(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """Relative to the run's folder."""
    bytes: int
    sha256: str


class ValidityRecord(msgspec.Struct, frozen=True, kw_only=True):
    valid: bool
    reasons: tuple[str, ...] = ()
    """Why the figures must not be used; empty when valid."""
    left_out: tuple[str, ...] = ()
    """Late turns, for whose sake their cycle is in no figure, of any arm."""
    send_lag_p99_seconds: float = 0.0
    requests: int = 0


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The change file as it was frozen before the run."""

    name: str
    version: int
    sha256: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run, whole."""

    schema: str = SCHEMA
    id: str
    fairlead_version: str
    system: str
    title: str
    summary: str
    seed: int
    quick: bool
    command: tuple[str, ...] = ()
    """What repeats it, word by word; a Redis without its password. Empty in what older versions wrote."""
    rate_per_second: float
    cycles: int
    patience_seconds: float
    started_at_utc_seconds: float
    run_seconds: float
    """From start to the last figure, by the monotonic clock."""
    design: str = "load_test"
    validity: ValidityRecord
    machine: Machine
    workload: dict[str, str]
    arms: tuple[ArmRecord, ...]
    phases: tuple[PhaseRecord, ...]
    metrics: tuple[MetricRecord, ...]
    figures: tuple[Figure, ...]
    targets: tuple[TargetRecord, ...]
    simulated: tuple[str, ...]
    evidence: tuple[EvidenceFile, ...]
    change: ChangeRecord | None = None
    """What was promised; None for a system without a change file."""
    users: UsersRecord | None = None
    """The experiment on made users; None for a system without."""
    budgets: tuple[BudgetRecord, ...] = ()
    """How fast each arm burned the error budget of each objective; empty for a system without objectives."""
    let_out: LetOutRecord | None = None
    """How the change was let out after the comparison; None for a system whose change is not."""
    ledger_head: str = ""
    """The end of the run's ledger when the result was written: `fairlead audit verify --expect` takes it."""

    def figure(self, metric: str, arm: str, phase: str) -> Figure | None:
        """The figure of that metric, arm and phase, if the run has it."""
        for figure in self.figures:
            if (figure.metric, figure.arm, figure.phase) == (metric, arm, phase):
                return figure
        return None


def write_result(result: Result, path: Path) -> None:
    """Writes `result.json`, whole or not at all. Raises NoSpace when the disk or the file-size limit stops
    it.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(result), indent=1))


def read_result(path: Path) -> Result:
    """Raises BrokenDocument for a file that is missing, too large, or not a result of this schema."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would hang the reader, a device might never end
            raise BrokenDocument(f"{path}: not a regular file; name a run's result.json")
        if found.st_size > MAX_RESULT_BYTES:
            raise BrokenDocument(
                f"{path}: larger than {MAX_RESULT_BYTES} bytes, so it is no result of a trial"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise BrokenDocument(
            f"{path}: cannot be read ({error.strerror}); name a run's result.json"
        ) from error
    try:
        result = msgspec.json.decode(raw, type=Result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenDocument(f"{path}: {error}; was it written by this version of Fairlead?") from error
    if result.schema != SCHEMA:
        raise BrokenDocument(f"{path}: schema {result.schema[:64]!r}, this version reads {SCHEMA!r}")
    return result


def write_atomically(path: Path, data: bytes, *, option: str = "--out") -> None:
    """Replaces `path` by `data`; a reader sees the old file or the new one.

    Raises InvalidInput naming the option, NoSpace.
    """
    try:
        # Not tempfile: its files are their owner's alone, and a report is made to be shown.
        name = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise NoSpace(
                f"{path}: {error.strerror} after {len(data)} bytes were to be written: "
                f"free space or choose another {option}"
            ) from error
        raise InvalidInput(f"{path}: {error.strerror}; choose another {option}") from error


def hash_evidence(directory: Path, patterns: Iterable[str]) -> tuple[EvidenceFile, ...]:
    """SHA-256 and size of every file of the run that matches, sorted by path."""
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    return tuple(
        EvidenceFile(path=str(file.relative_to(directory)), bytes=file.stat().st_size, sha256=_sha256(file))
        for file in files
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
