"""How a new flag document reaches a running service, and why a bad one never does.

A flag is only worth its speed of change: a rollback that reaches the fleet after ten minutes was no rollback. But what
brings changes can also bring an outage: a control plane that hangs, a file half written, a replica restored from
yesterday. So one place takes in every document, wherever it comes from:

    source (file | http | none) → receive: whole? flags that are required? not older? → FlagSet (one assignment) → disk

What is refused changes nothing, neither in memory nor on disk. What was good is kept on disk (`last_known_good`), so
that a service starts and serves for ever without its source. Evaluation never waits for any of this.

    ready ⇄ stale     the source has not confirmed the document for `stale_after` seconds
    ready ⇄ error     the source has brought a document that was refused
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from fairlead.calls.bounds import check_number
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.errors import FairleadError, InvalidInput, OlderDocument
from fairlead.flags.delivery_status import DeliveryNotice, DeliveryStatus, NoticeKind, SourceKind
from fairlead.flags.document_version import DocumentVersion
from fairlead.flags.flag import FlagDocument
from fairlead.flags.flag_set import FlagSet
from fairlead.flags.last_known_good import Kept, keep, read_kept
from fairlead.telemetry import MetricRegistry
from fairlead.telemetry.loop_thread import LoopThread

__all__ = ["DocumentSource", "FlagDelivery"]

_log = logging.getLogger(__name__)

_RESTART_AFTER = 5.0  # seconds, when a source failed in a way that it does not know
_CLOSE_WITHIN = 5.0
_NO_MORE_THREADS = "cannot schedule new futures"  # what an executor says once its program ends


class DocumentSource(Protocol):
    """Brings documents: the port that `FlagFile` and `HttpFlags` implement."""

    kind: SourceKind
    place: str

    async def follow(self, delivery: FlagDelivery) -> None:
        """Until it is cancelled, hands each document to `delivery.receive` (in a thread: it blocks), says with
        `confirm` that it is still the present one, and with `report` that it could not be asked."""
        ...


class FlagDelivery:
    """Keeps `flags` up to date from `source` while it is entered, with `async with` or, without a loop, `with`.

    flags: with the document that a service ships with; it answers until something better has come.
    source: a FlagFile, an HttpFlags, or None when documents are handed to `receive`.
    last_known_good: a path, of this service's own, for what was delivered last. Written in one step, readable by its
        owner only, checked by hash when it is read. None: without its source a restart knows only `flags`.
    start_timeout: seconds that entering waits for the source's first answer, 0 to 60; it is entered in any case.
    stale_after: seconds without confirmation, above 0 up to a day, after which `status.stale` is set. Stale flags
        are served for ever.

    Per process, and safe to use from several threads. In a service that forks, enter it in the workers.
    """

    def __init__(
        self,
        flags: FlagSet,
        source: DocumentSource | None = None,
        *,
        last_known_good: str | os.PathLike[str] | None = None,
        start_timeout: float = 2.0,
        stale_after: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_number("FlagDelivery.start_timeout", start_timeout, low=0.0, high=60.0)
        check_number("FlagDelivery.stale_after", stale_after, above=0.0, high=86_400.0)
        self.flags = flags
        self.clock = clock
        self._from = source
        self._kept_at = None if last_known_good is None else Path(last_known_good)
        self._start_timeout = start_timeout
        self._stale_after = stale_after
        # Reentrant: a listener may ask for the status.
        self._lock = threading.RLock()
        self._listeners: list[Callable[[DeliveryNotice], object]] = []
        self._source: SourceKind = "initial"
        self._place = flags.document.source
        self._confirmed_at = clock.now()
        self._state: NoticeKind = "ready"
        self._error: FairleadError | None = None
        self._refused = 0
        self._kept = b""
        self._on_answer: Callable[[], object] | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: LoopThread | None = None

    @property
    def source(self) -> DocumentSource | None:
        """As it was given."""
        return self._from

    @property
    def running(self) -> bool:
        """Whether it is entered."""
        return self._task is not None

    @property
    def error(self) -> FairleadError | None:
        """Why the latest attempt did not confirm the document; None when it did."""
        return self._error

    @property
    def status(self) -> DeliveryStatus:
        """One look; costs about as much as an evaluation."""
        with self._lock:
            epoch, version = DocumentVersion.of(self.flags.document)
            age = self._age()
            return DeliveryStatus(
                source=self._source,
                place=self._place,
                epoch=epoch,
                version=version,
                digest=self.flags.digest,
                age_seconds=age,
                stale=age > self._stale_after,
                error="" if self._error is None else str(self._error),
                refused=self._refused,
            )

    def _age(self) -> float:
        return max(0.0, self.clock.now() - self._confirmed_at)

    def listen(self, listener: Callable[[DeliveryNotice], object]) -> Callable[[], None]:
        """Calls `listener` with each notice, from whichever thread it happens in, until the answer is called.

        It must not block. What it raises is logged.
        """
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return stop

    def receive(self, data: bytes, source: DocumentSource | None = None) -> InvalidInput | None:
        """Has `data` answer; None, or why the document that answered before still does. Blocks on the disk.

        Refused are: what `FlagSet` refuses, a document without a required flag, and an older one.
        """
        kind: SourceKind = "memory" if source is None else source.kind
        place = "memory" if source is None else source.place
        with self._lock:
            refused = self._take(data, kind, place)
            if refused is None and self._kept_at is not None and data != self._kept:
                self._keep(data, self._kept_at)
        self._answered()
        return refused

    def _take(self, data: bytes, kind: SourceKind, place: str) -> InvalidInput | None:
        before = self.flags.document
        if data != self.flags.data:
            refused = self.flags.replace(data, source=place, check=self._not_older)
            if refused is not None:
                self._refused += 1
                repeated = str(refused) == str(self._error) and self._state == "error"
                self._error = refused
                if not repeated:
                    self._go("error", str(refused))
                return refused
        self._source, self._place, self._confirmed_at = kind, place, self.clock.now()
        self._error = None
        self._tell_changed(before)
        self._recover()
        return None

    def _tell_changed(self, before: FlagDocument) -> None:
        after = self.flags.document
        if after is not before:
            self._tell(DeliveryNotice(kind="changed", flags=_changed(before, after)))

    def _not_older(self, document: FlagDocument) -> None:
        answers, offered = DocumentVersion.of(self.flags.document), DocumentVersion.of(document)
        if offered < answers:
            raise OlderDocument(
                f"{document.source}: {offered} is older than {answers}, which answers; count the version up, or "
                f"raise metadata.epoch above {answers.epoch} where counting began anew"
            )

    def confirm(self, digest: str) -> None:
        """The source's present document is the one of that SHA-256. Counts only if it is the one that answers."""
        with self._lock:
            if digest == self.flags.digest:
                if self._from is not None:
                    self._source, self._place = self._from.kind, self._from.place
                self._confirmed_at = self.clock.now()
                self._error = None
                self._recover()
        self._answered()

    def report(self, error: FairleadError) -> None:
        """The source could not be asked."""
        with self._lock:
            self._error = error
        self._answered()

    def export(self, registry: MetricRegistry, *, name: str = "default") -> None:
        """Shows age, staleness, version and refusals in `registry`, under the label `flags`; read at each scrape."""
        gauges: tuple[tuple[str, str, Literal["max", "min"], Callable[[], float]], ...] = (
            ("age_seconds", "Since the flag document was last confirmed by its source.", "max", self._age),
            (
                "stale",
                "1 when the flag document has not been confirmed for longer than is allowed.",
                "max",
                lambda: float(self.status.stale),
            ),
            (
                "version",
                "Version of the flag document that answers; 0 when it has none.",
                "min",
                lambda: float(self.status.version),
            ),
        )
        for gauge, meaning, merge, read in gauges:
            family = registry.gauge(f"fairlead_flags_{gauge}", meaning, labels=("flags",), merge=merge)
            family.labels(flags=name).track(read)
        registry.counter(
            "fairlead_flags_refused_total",
            "Flag documents that were refused: broken, without a required flag, or older.",
            labels=("flags",),
        ).labels(flags=name).track(lambda: float(self._refused))

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise InvalidInput("this FlagDelivery is entered already; make another one")
        await asyncio.to_thread(self._read_kept)
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        self._on_answer = lambda: loop.call_soon_threadsafe(answered.set)
        # In a context of its own: started within a request, it would inherit that request's deadline.
        self._task = loop.create_task(self._run(), name="flag delivery", context=Context())
        try:
            if self._from is not None:
                timer = self.clock.call_at(self.clock.now() + self._start_timeout, answered.set)
                await answered.wait()
                timer.cancel()
        except BaseException:
            await self._stop()
            raise
        finally:
            self._on_answer = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise InvalidInput("this FlagDelivery is entered already; make another one")
        self._thread = LoopThread("fairlead-flags")
        try:
            self._thread.run(self.__aenter__(), self._start_timeout + _CLOSE_WITHIN)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_running:
            with contextlib.suppress(TimeoutError):
                thread.run(self._stop(), _CLOSE_WITHIN)
            thread.close(_CLOSE_WITHIN)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_age(), name="flag age")
            if self._from is not None:
                group.create_task(self._follow(self._from), name="flag source")

    async def _follow(self, source: DocumentSource) -> None:
        while True:
            try:
                await source.follow(self)
                error: Exception | None = None
            # A source's mistake must not leave a service without updates for ever.
            except Exception as unforeseen:
                if isinstance(unforeseen, RuntimeError) and _NO_MORE_THREADS in str(unforeseen):
                    return  # the program is on its way out, and nobody has left this delivery
                error = unforeseen
            _log.error("flags from %s: the source ended; it is started again", source.place, exc_info=error)
            self.report(
                FairleadError(f"{source.place}: the source ended with {type(error).__name__}; see the log")
            )
            await self.clock.sleep(_RESTART_AFTER)

    async def _watch_age(self) -> None:
        while True:
            left = self._stale_after - self._age()
            if left < 0.0:
                with self._lock:
                    if self._state == "ready" and self._age() > self._stale_after:
                        why = "" if self._error is None else f": {self._error}"
                        self._go("stale", f"{self._place}: not confirmed for {self._age():.0f} s{why}")
                left = self._stale_after
            # A loop's timers may be early by a millisecond or two.
            await self.clock.sleep(left + 0.005)

    def _answered(self) -> None:
        tell = self._on_answer
        if tell is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                tell()

    def _go(self, kind: NoticeKind, message: str) -> None:
        self._state = kind
        self._tell(DeliveryNotice(kind=kind, message=message))

    def _recover(self) -> None:
        if self._state != "ready" and self._age() <= self._stale_after:
            self._state = "ready"
            self._tell(DeliveryNotice(kind="ready"))

    def _tell(self, notice: DeliveryNotice) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(notice)
            except Exception:  # the listener is the caller's
                _log.exception("a listener to flag delivery raised at %s", notice.kind)

    def _keep(self, data: bytes, path: Path) -> None:
        try:
            keep(path, Kept(data=data, at_utc_seconds=self.clock.utc(), place=self._place))
        except InvalidInput as error:
            _log.warning("%s", error)
            self._error = error
        else:
            self._kept = data

    def _report_kept(self, error: InvalidInput) -> None:
        # The status says it only until the source has answered, or could not; that the disk has a fault must stay said.
        _log.warning("%s", error)
        self.report(error)

    def _read_kept(self) -> None:
        if self._kept_at is None:
            return
        try:
            kept = read_kept(self._kept_at)
        except InvalidInput as error:
            self._report_kept(error)
            return
        if kept is None:
            return
        with self._lock:
            before = self.flags.document
            place = str(self._kept_at)
            if kept.data != self.flags.data:
                refused = self.flags.replace(kept.data, source=place, check=self._not_older)
                if isinstance(refused, OlderDocument):
                    return  # a new release has brought a newer document with it
                if refused is not None:
                    self._report_kept(refused)
                    return
            # The wall clock may have been set back since: an age is never below zero.
            age = max(0.0, self.clock.utc() - kept.at_utc_seconds)
            self._source, self._place, self._confirmed_at = "last_known_good", place, self.clock.now() - age
            self._tell_changed(before)


def _changed(before: FlagDocument, after: FlagDocument) -> tuple[str, ...]:
    names = before.flags.keys() | after.flags.keys()
    return tuple(sorted(name for name in names if before.flags.get(name) != after.flags.get(name)))
