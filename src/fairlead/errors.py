"""Every error that Fairlead raises on purpose.

    FairleadError
    ├── Refused                    said no before any work began; trying later or elsewhere is safe
    │   ├── CircuitOpen            the dependency failed too often; its breaker is open
    │   ├── Overloaded             no permit was free: the limit protects what lies behind it
    │   ├── RateLimited            this client has used up its share; others are served
    │   └── StageRefused           a migration may not go to this stage, or not yet
    ├── BrokerUnavailable          a message broker did not answer, or gave no receipt
    ├── DatabaseTooNew             the database was written by a newer Fairlead
    ├── DatabaseUnavailable        the control plane's database did not answer, or another process held it
    ├── DeadlineExceeded           the moment passed; also a TimeoutError
    ├── FailedStatus               a dependency answered with a status that counts as its failure
    ├── InvalidInput               a value from outside is wrong; also a ValueError
    │   ├── BrokenDocument         a file or message cannot be read as what it claims to be
    │   ├── OlderDocument          a flag document of a lower version than the one that answers
    │   ├── UnknownEvidence        the ledger holds no evidence of that id; also a KeyError
    │   ├── UnknownFlag            the flag document has no flag of that name; also a KeyError
    │   └── UnknownSystem          no installed system has that name; also a KeyError
    ├── LedgerBroken               an entry of the ledger, or its head, is not what was written
    ├── LoadCancelled              a load that several callers share was cancelled, though this caller was not
    ├── ModelRejected              a model file is not the one its manifest describes
    ├── MissingExtra               an optional dependency is not installed; also an ImportError
    ├── NotEstimable               the data cannot carry this statistic; more or other data might
    │   ├── ConstantCovariate      the covariate does not vary, so it explains nothing
    │   ├── TooFewUnits            fewer independent units than the method needs
    │   ├── UndefinedRatio         the denominator is zero: 0/0 is no figure
    │   └── ZeroVariance           the units do not vary, so there is nothing to judge an effect by
    ├── NoSpace                    the disk, or the file-size limit, stopped a write; also an OSError
    ├── PortInUse                  another process listens there; also an OSError
    ├── ProcessDied                a process that Fairlead started ended, or never became healthy
    ├── RunInvalid                 a measurement broke its own rules (late sends, no samples)
    ├── ScrapeIncomplete           the metrics of all workers could not be had whole
    ├── StaleEpoch                 another controller has taken over, or the rollout was rolled back
    ├── StoreUnavailable           a shared tier of the cache, or a store in migration, did not answer, or refused
    └── TrafficUnavailable         what splits the traffic did not answer, or serves something else

A message names the thing, the value and the limit, and the next step, in one line. The driver's own error stays in
`__cause__`. `INCONCLUSIVE` is a verdict, not an error.
"""

from __future__ import annotations

__all__ = [
    "BrokenDocument",
    "BrokerUnavailable",
    "CircuitOpen",
    "ConstantCovariate",
    "DatabaseTooNew",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "FailedStatus",
    "FairleadError",
    "InvalidInput",
    "LedgerBroken",
    "LoadCancelled",
    "MissingExtra",
    "ModelRejected",
    "NoSpace",
    "NotEstimable",
    "OlderDocument",
    "Overloaded",
    "PortInUse",
    "ProcessDied",
    "RateLimited",
    "Refused",
    "RunInvalid",
    "ScrapeIncomplete",
    "StageRefused",
    "StaleEpoch",
    "StoreUnavailable",
    "TooFewUnits",
    "TrafficUnavailable",
    "UndefinedRatio",
    "UnknownEvidence",
    "UnknownFlag",
    "UnknownSystem",
    "ZeroVariance",
]


class FairleadError(Exception):
    """Root of the tree. Catch it at the edge of a program, something narrower everywhere else."""

    def __str__(self) -> str:
        # KeyError prints repr(message); every error here is read by a person, so print the message itself.
        return str(self.args[0]) if self.args else type(self).__name__


class Refused(FairleadError):
    """The call was turned away before it began, so nothing happened and nothing needs undoing.

    retry_after: seconds until a new attempt makes sense, or None when nobody can know.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CircuitOpen(Refused):
    """The circuit breaker of this dependency is open; `retry_after` is the time to its next probe."""


class Overloaded(Refused):
    """The concurrency limit or the load shedder had no permit for this priority."""


class RateLimited(Refused):
    """This client has asked for more than its rate limit; `retry_after` is when it may ask again."""


class StageRefused(Refused):
    """A migration may not go to this stage from where it is, or not before something is done; the message says what."""


class BrokerUnavailable(FairleadError):
    """A message broker could not be reached, or did not say that it has the message. Sending again is safe."""


class DatabaseTooNew(FairleadError):
    """The tables of this database are of a version that this Fairlead does not know; nothing was read or written."""


class DatabaseUnavailable(FairleadError):
    """The control plane's database did not answer, refused, or was held too long by another writer.

    Nothing was written, unless the message says that this is not known. Recording in the ledger again is safe.
    """


class DeadlineExceeded(FairleadError, TimeoutError):
    """The deadline passed, before the work began or while it ran."""


class FailedStatus(FairleadError):
    """An HTTP answer that counts as the failure of its sender: what a retry or a breaker sees of a 503.

    status: the HTTP status, 0 if there is none. retry_after: seconds that the sender asked to wait, or None.
    overloaded: whether it says that there was no room or no time, which moves a concurrency limit.
    """

    def __init__(
        self, message: str, *, status: int = 0, retry_after: float | None = None, overloaded: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.overloaded = overloaded


class InvalidInput(FairleadError, ValueError):
    """A value handed in from outside is not usable; the message says which, why and what would be."""


class BrokenDocument(InvalidInput):
    """A document (flag file, event, recording, manifest) does not parse or breaks its schema."""


class OlderDocument(InvalidInput):
    """A flag document's epoch and version are lower than those of the document that answers, which stays."""


class UnknownEvidence(InvalidInput, KeyError):
    """A decision names evidence that this ledger does not hold."""


class UnknownFlag(InvalidInput, KeyError):
    """The flag document holds no flag of this name."""


class UnknownSystem(InvalidInput, KeyError):
    """No installed distribution offers a system of this name."""


class LedgerBroken(FairleadError):
    """An entry of the ledger, or its head, is not what was written: it is not handed out, and not continued."""


class LoadCancelled(FairleadError):
    """A shared load ended without an answer: its loader cancelled itself, or the cache was closed.

    Not a CancelledError: the caller that meets it was not cancelled and may go on, or try again.
    """


class NotEstimable(FairleadError):
    """The data cannot carry this statistic. A refusal, not a fault: the message says what is missing."""


class ConstantCovariate(NotEstimable):
    """The covariate has the same value for every unit, so nothing can be adjusted by it."""


class TooFewUnits(NotEstimable):
    """The method needs more independent units than there are."""


class UndefinedRatio(NotEstimable):
    """A denominator is zero, or not told apart from zero; 0/0 is no figure."""


class ZeroVariance(NotEstimable):
    """No unit differs from another, so no interval and no test can be computed."""


class ModelRejected(FairleadError):
    """A model was refused: wrong hash, wrong feature schema, or wrong answers on its golden batch."""


class MissingExtra(FairleadError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'fairlead[{extra}]'", name=package)
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from `args`, which holds the message; the dict carries notes.
        return (type(self), (self.package, self.extra), self.__dict__)


class NoSpace(FairleadError, OSError):
    """A write stopped for lack of disk space or at a file-size limit; what was written before it is kept."""


class PortInUse(FairleadError, OSError):
    """The address is taken by another process."""


class ProcessDied(FairleadError):
    """A process that Fairlead owns ended early, or did not become healthy in time."""


class RunInvalid(FairleadError):
    """The measurement broke its own rules, so its figures would mislead."""


class ScrapeIncomplete(FairleadError):
    """The aggregator of a service's workers did not answer; a sum without it would look like a restart."""


class StaleEpoch(FairleadError):
    """A controller that was paused or cut off came back late: another one leads the rollout now, or it was rolled back.

    Nothing was written, and no traffic was moved.
    """


class StoreUnavailable(FairleadError):
    """A tier that processes share, or a store in migration, could not be asked, or told.

    A cache treats it as a miss. What a store then did with a write is not known; to write again is safe.
    """


class TrafficUnavailable(FairleadError):
    """What splits the traffic did not answer, refused, or serves another split than the one it was given."""
