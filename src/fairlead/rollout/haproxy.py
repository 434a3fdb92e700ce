"""Moves traffic in a running HAProxy, and in the file from which it starts again.

    controller ── flock ──> MAP FILE  slots 500            what a reload, or a restart, starts with
               ── Runtime API ──> every process: a version of the map is prepared, filled, committed, read back

One map is one rollout's: `slots`, `audience`, and the marks `rollout`, `epoch`, `latched`, all replaced in one step.
The configuration that reads it is `haproxy_config`: the buckets are those of the flags, so that a service and its
proxy agree on every unit. What was really served, unit by unit, is in the log: `HaproxyLog`.

Forward, all or none: each process prepares and takes the entries, then the file is written, then all commit; where one
does not, those that did go back. A rollback waits for nobody: all processes at once and the file beside them, each by
itself; who did not answer is named, and finds the rollback in the file when it starts again.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fairlead.calls.bounds import check_number
from fairlead.errors import FairleadError, InvalidInput, NoSpace, StaleEpoch, TrafficUnavailable
from fairlead.flags import SLOTS
from fairlead.rollout.haproxy_config import haproxy_config
from fairlead.rollout.haproxy_log import HaproxyLog, HaproxyLogFacts, HaproxyLogStats
from fairlead.rollout.runtime_api import Entries, RuntimeApi, word_of
from fairlead.rollout.shared_file import SharedFile
from fairlead.rollout.traffic import Split, check_replacement

__all__ = ["HaproxyLog", "HaproxyLogFacts", "HaproxyLogStats", "HaproxyTraffic", "haproxy_config"]

_HEAD = "# Written by a rollout, which also changes it in the running HAProxy; edits are lost.\n"
_LARGEST = 65_536
_LOOK = 0.005  # seconds between two looks at a lock that another process holds
_TRIES = 3  # of a rollback that another controller's commit has overtaken
_NUMBER = re.compile(r"\d{1,16}", re.ASCII)
Answer = TypeVar("Answer")


class HaproxyTraffic:
    """A `Traffic` on one map of one or several HAProxy processes that start from the same file.

    A call that is cancelled goes on to its end, and the next one waits for it; a rollback ends a step forward instead.
    """

    def __init__(
        self,
        map_file: str | os.PathLike[str],
        *,
        sockets: Sequence[str],
        map_name: str | None = None,
        timeout: float = 1.0,
    ) -> None:
        """map_file: here on disk. map_name: as HAProxy's configuration names it, where that differs (a container).

        sockets: of every process, a path or host:port each; `level admin`.
        timeout: seconds that one exchange, or the wait for the file's lock, may take.
        """
        check_number("timeout", timeout, above=0, high=60)
        if isinstance(sockets, str) or not sockets or len(set(sockets)) < len(sockets):
            raise InvalidInput("sockets: list the socket of each HAProxy process once")
        self._file = SharedFile(map_file, spare="map", limit=_LARGEST)
        name = map_name if map_name is not None else str(self._file.path)
        self._processes = [RuntimeApi(each, name, timeout=timeout) for each in sockets]
        self._timeout = timeout
        self._running: builtins.set[asyncio.Task[Any]] = builtins.set()
        self._steps: builtins.set[asyncio.Task[Any]] = builtins.set()
        """Those that go forward; a rollback ends them."""
        self.name = f"HAProxy's map {self._file.path}"

    async def set(self, split: Split) -> None:
        """Serves this split in every process, and writes it to the file. Raises StaleEpoch, TrafficUnavailable.

        A step forward that fails is taken back. A rollback that fails has reached all but those it names.
        Raises InvalidInput for a rollout or an audience that a map cannot carry.
        """
        split = replace(split, share=split.slots / SLOTS)
        entries = _entries_of(split)
        if split.latched:
            for step in self._steps:
                step.cancel()
            await self._to_its_end(self._roll_back(split, entries))
        else:
            await self._finished()
            await self._to_its_end(self._forward(split, entries), self._steps)

    async def read(self) -> Split:
        """The split that every process serves, and that is in the file.

        Raises TrafficUnavailable where one does not answer, and where they do not agree.
        """
        await self._finished()
        found = await self._found()
        if len(set(found.values())) > 1:
            async with self._locked(regardless=True):  # another controller may have been in the middle of it
                found = await self._found()
        if len(set(found.values())) > 1:
            listed = "; ".join(f"{where} {_in_words(split)}" for where, split in found.items())
            raise TrafficUnavailable(f"{self.name}: not all serve the same: {listed}; set it again")
        return next(iter(found.values()))

    async def close(self) -> None:
        """Waits for calls that were cancelled. No connection is held between calls."""
        await self._finished()

    async def _forward(self, split: Split, entries: Mapping[str, str]) -> None:
        async with self._locked(regardless=False):
            prepared = await self._of_all(lambda each: each.prepare())
            versions = {each.address: version for each, (version, _) in self._each_with(prepared)}
            served = {
                each.address: _split_of(found, each.address) for each, (_, found) in self._each_with(prepared)
            }
            before = await _in_thread(self._file.read)
            for current in (*served.values(), _split_of(_entries_in(before), self.name)):
                check_replacement(current, split, self.name)
            await self._of_all(lambda each: each.fill(versions[each.address], entries))
            try:
                if split.share or split.audience:
                    await _in_thread(self._file.keep_spare, _text_of(_entries_of(_rolled_back(split))))
                await _in_thread(lambda: self._file.replace(_text_of(entries), instead_of=before))
            except NoSpace as error:
                raise TrafficUnavailable(str(error)) from error
            try:
                await self._of_all(lambda each: self._commit(each, versions[each.address], split))
            except TrafficUnavailable as error:
                await self._take_back(split, served, before, error)
                raise

    async def _commit(self, process: RuntimeApi, version: int, split: Split) -> None:
        found = await process.commit(version)
        if found is None:
            raise TrafficUnavailable(
                f"{process.address}: another controller has changed its map, or it was reloaded; set it again"
            )
        if (after := _split_of(found, process.address)) != split:
            raise TrafficUnavailable(
                f"{process.address}: {_in_words(after)}, not what it was given; set it again"
            )

    async def _take_back(
        self, split: Split, served: Mapping[str, Split], before: bytes, error: TrafficUnavailable
    ) -> None:
        """Serves what was served before `split`, wherever it is still `split` that is served."""

        async def back(process: RuntimeApi) -> None:
            def still_ours(current: Split) -> None:
                if current != split:
                    raise StaleEpoch(process.address)

            with contextlib.suppress(StaleEpoch):
                await self._alone(process, served[process.address], still_ours)

        with contextlib.suppress(
            TrafficUnavailable, NoSpace
        ):  # where another has replaced the file, it is theirs
            written = _text_of(_entries_of(split))
            await _in_thread(lambda: self._file.replace(before, instead_of=written))
        for process, failed in self._each_with(await self._outcomes(back)):
            if failed is not None:
                error.add_note(f"{process.address}: could not be put back: {failed}")

    async def _roll_back(self, split: Split, entries: Mapping[str, str]) -> None:
        def allowed(current: Split) -> None:
            check_replacement(current, split, self.name)

        async def reach() -> list[BaseException | None]:
            return await self._outcomes(lambda each: self._alone(each, split, allowed))

        if self._is_held():
            await (
                reach()
            )  # at once; and again below, since who holds the lock may have been in the middle of a step
        async with self._locked(regardless=True):
            written, outcomes = await asyncio.gather(
                _in_thread(self._write_rollback, split, _text_of(entries)), reach()
            )
        failures = [each for each in (*outcomes, written) if each is not None]
        for failure in failures:
            if isinstance(failure, StaleEpoch) or not isinstance(failure, FairleadError):
                raise failure
        if failures:
            done = sum(each is None for each in outcomes)
            raise TrafficUnavailable(
                f"{self.name}: rolled back in {done} of {len(outcomes)} processes; "
                + "; ".join(map(str, failures))
            ) from failures[0]

    async def _alone(self, process: RuntimeApi, split: Split, allowed: Callable[[Split], None]) -> None:
        """One process from what it serves to `split`, if `allowed` does not raise."""
        for _ in range(_TRIES):
            version, found = await process.prepare()
            allowed(_split_or_its_own(found, process.address, split))
            await process.fill(version, _entries_of(split))
            after = await process.commit(version)
            if after is not None and _split_of(after, process.address) == split:
                return
        raise TrafficUnavailable(
            f"{process.address}: another controller keeps changing its map; stop one of them"
        )

    def _write_rollback(self, split: Split, text: bytes) -> FairleadError | None:
        """Blocks. What went wrong is returned: it is to stop nobody."""
        try:
            try:
                current = _split_or_its_own(_entries_in(self._file.read()), self.name, split)
            except TrafficUnavailable:  # it is gone; it is written anew
                current = Split(share=0.0)
            check_replacement(current, split, self.name)
            try:
                self._file.replace(text, instead_of=None)
            except NoSpace:
                if current.latched and current.rollout == split.rollout:
                    return None  # only the newer epoch could not be written
                spare = _split_of(_entries_in(self._file.spare() or b""), self.name)
                if not (spare.latched and spare.rollout == split.rollout):
                    raise
                self._file.use_spare()
            self._file.drop_spare()
        except StaleEpoch as error:
            return error
        except FairleadError as error:
            return TrafficUnavailable(f"{error}; a reload would bring treatment back")
        return None

    async def _found(self) -> dict[str, Split]:
        """What each process serves, and what the file holds."""
        answers = await self._of_all(lambda each: each.entries())
        found = {each.address: _split_of(entries, each.address) for each, entries in self._each_with(answers)}
        text = await _in_thread(self._file.read)
        return {**found, str(self._file.path): _split_of(_entries_in(text), str(self._file.path))}

    async def _of_all(self, ask: Callable[[RuntimeApi], Awaitable[Answer]]) -> list[Answer]:
        """Every process's answer. Raises TrafficUnavailable naming each that gave none."""
        outcomes = await asyncio.gather(*map(ask, self._processes), return_exceptions=True)
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, TrafficUnavailable):
                raise failure
        if failures:
            raise TrafficUnavailable(f"{self.name}: {'; '.join(map(str, failures))}") from failures[0]
        return [each for each in outcomes if not isinstance(each, BaseException)]

    async def _outcomes(self, work: Callable[[RuntimeApi], Awaitable[None]]) -> list[BaseException | None]:
        return list(await asyncio.gather(*map(work, self._processes), return_exceptions=True))

    def _each_with(self, answers: list[Answer]) -> list[tuple[RuntimeApi, Answer]]:
        return list(zip(self._processes, answers, strict=True))

    def _is_held(self) -> bool:
        with contextlib.suppress(TrafficUnavailable):
            if (lock := self._file.try_lock()) is None:
                return True
            os.close(lock)
        return False

    @contextlib.asynccontextmanager
    async def _locked(self, *, regardless: bool) -> AsyncIterator[None]:
        lock = None
        try:
            end = time.monotonic() + self._timeout
            while (lock := self._file.try_lock()) is None and time.monotonic() < end:  # noqa: ASYNC110 (as said below)
                await asyncio.sleep(_LOOK)  # another process's lock rings no bell
            if lock is None:
                raise self._file.held(self._timeout)
        except TrafficUnavailable:  # held, or its folder is gone or not ours to write in
            if not regardless:
                raise
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    async def _to_its_end(
        self, work: Coroutine[Any, Any, None], *kinds: builtins.set[asyncio.Task[Any]]
    ) -> None:
        task = asyncio.create_task(work)
        for running in (self._running, *kinds):
            running.add(task)
            task.add_done_callback(running.discard)
        task.add_done_callback(_looked_at)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise TrafficUnavailable(f"{self.name}: a rollback has ended this step") from None
            raise

    async def _finished(self) -> None:
        while self._running:
            await asyncio.wait(self._running)


def _looked_at(task: asyncio.Task[Any]) -> None:
    """So that the error of a call whose caller was cancelled is not reported as forgotten."""
    if not task.cancelled():
        task.exception()


async def _in_thread(work: Callable[..., Answer], *arguments: object) -> Answer:
    """The thread's answer; who is cancelled meanwhile is so when the thread has ended, and not before."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        _looked_at(task)
        raise


def _rolled_back(split: Split) -> Split:
    return replace(split, share=0.0, audience="", latched=True)


def _entries_of(split: Split) -> dict[str, str]:
    """The entries of a map, without those that would be empty."""
    entries = {"slots": str(split.slots), "epoch": str(split.epoch), "latched": str(int(split.latched))}
    for key, text in (("audience", split.audience), ("rollout", split.rollout)):
        if text:
            entries[key] = word_of(key, text)
    return entries


def _text_of(entries: Mapping[str, str]) -> bytes:
    return (_HEAD + "".join(f"{key} {text}\n" for key, text in entries.items())).encode()


def _entries_in(text: bytes) -> Entries:
    """The entries of a map's file, as HAProxy reads it."""
    lines = (line.strip() for line in text.decode(errors="replace").split("\n"))
    words = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(key, rest.strip()) for key, _, rest in words]


def _split_of(entries: Entries, where: str) -> Split:
    """What a map serves. Raises TrafficUnavailable for one that no rollout has written."""
    found = dict(entries)
    if len(found) < len(entries):
        raise TrafficUnavailable(f"{where}: its map has a key twice; roll back, or empty its file and reload")
    slots, epoch, latched = found.get("slots", "0"), found.get("epoch", "0"), found.get("latched", "0")
    if not (
        _NUMBER.fullmatch(slots)
        and int(slots) <= SLOTS
        and _NUMBER.fullmatch(epoch)
        and latched in ("0", "1")
    ):
        raise TrafficUnavailable(
            f"{where}: slots {slots[:20]!r}, epoch {epoch[:20]!r}, latched {latched[:20]!r} in its map are not what a "
            "rollout writes; roll back, or empty its file and reload"
        )
    audience, rollout = found.get("audience", ""), found.get("rollout", "")
    try:
        for key in ("audience", "rollout"):
            word_of(f"{key} in its map", found.get(key, "-"))
        return Split(
            share=int(slots) / SLOTS,
            audience=audience,
            rollout=rollout,
            epoch=int(epoch),
            latched=latched == "1",
        )
    except InvalidInput as error:
        raise TrafficUnavailable(f"{where}: {error}; roll back, or empty its file and reload") from error


def _split_or_its_own(entries: Entries, where: str, wanted: Split) -> Split:
    """What a map serves; what a rollback may replace where that cannot be told."""
    try:
        return _split_of(entries, where)
    except TrafficUnavailable:
        if wanted.latched:
            return Split(share=0.0, rollout=wanted.rollout)
        raise


def _in_words(split: Split) -> str:
    marks = f"{split.rollout or 'no rollout'}, epoch {split.epoch}{', rolled back' if split.latched else ''}"
    return f"serves {split.slots} slots{f' and {split.audience}' if split.audience else ''} ({marks})"
