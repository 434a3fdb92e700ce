"""Moves traffic by rewriting one flag of a flag file, which every process of a service reads.

A rollout owns the flag's `targeting` and three keys of its `metadata`; every byte outside the flag stays:

    "targeting": {"if": [{"===": [{"var": "audience"}, "internal"]}, "treatment",
                         {"bucket": {"by": "targetingKey", "salt": "feed", "algo": "xxh32/10000@1",
                                     "slots": [["treatment", 0, 500], ["control", 500, 10000]]}}]}
    "metadata": {"fairlead_rollout": "home_feed/3", "fairlead_epoch": 7, "fairlead_latched": false}

Both arms are named by slots, so both are exposed for reason SPLIT and the sample ratio can be tested; an audience is
exposed for TARGETING_MATCH and stays out of it. Salt and `by` are the flag's own. What a rollout would destroy without
understanding it, it refuses; only a rollback replaces it, in a flag that its own rollout has moved before.

Traffic has moved when the service has read the file again (`FlagSet.reload`): `read` says what the file holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from fairlead.calls.bounds import check_number
from fairlead.errors import BrokenDocument, InvalidInput, NoSpace, TrafficUnavailable
from fairlead.flags import ALGORITHM, SLOTS, Flag, FlagSet
from fairlead.flags.flag import MAX_BYTES, closest, quoted
from fairlead.rollout.shared_file import SharedFile
from fairlead.rollout.traffic import Split, check_replacement

__all__ = ["FlagTraffic"]

_ROLLOUT, _EPOCH, _LATCHED = "fairlead_rollout", "fairlead_epoch", "fairlead_latched"
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_LONGEST = 512
_THREADS = 4
Answer = TypeVar("Answer")
_DECODER = json.JSONDecoder()


class FlagTraffic:
    """A `Traffic` on one flag of one file. Safe to use from several tasks and processes at once.

    A call that is cancelled goes on in its thread, and the next one waits for it: the file holds one of both splits,
    whole.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        flag: str,
        *,
        treatment: str = "treatment",
        control: str = "control",
        lock_timeout: float = 1.0,
    ) -> None:
        """path: the flag file; a link is followed. flag, treatment, control: names in it.

        lock_timeout: seconds that another controller may hold the file; a rollback then goes on without the lock.
        """
        check_number("lock_timeout", lock_timeout, low=0, high=3600)
        for what, name in (("flag", flag), ("treatment", treatment), ("control", control)):
            if not isinstance(name, str) or not name:
                raise InvalidInput(f"{what} is missing; name it as in the flag file")
        if treatment == control:
            raise InvalidInput(f"treatment and control are both {quoted(treatment)}; name two variants")
        self._file = SharedFile(path, spare=flag, limit=MAX_BYTES)
        self._flag = flag
        self._treatment = treatment
        self._control = control
        self._lock_timeout = lock_timeout
        self._running: set[asyncio.Future[Any]] = set()
        self.name = f"flag {quoted(flag)} in {self._file.path}"

    async def set(self, split: Split) -> None:
        """Serves this split to whoever reads the file from now on.

        Raises StaleEpoch, TrafficUnavailable; InvalidInput for a rollout or an audience that is not one line.
        Before treatment is let in, the file that a rollback would write lies on the disk beside it.
        """
        for what, text in (("rollout", split.rollout), ("audience", split.audience)):
            if not _is_line(text):
                raise InvalidInput(
                    f"{what} {text[:80]!r}: write one printable line of up to {_LONGEST} characters"
                )
        # A rollback does not wait for a step that hangs; the file's lock keeps them apart.
        if not split.latched:
            await self._finished()
        await self._in_thread(self._set, split)

    async def read(self) -> Split:
        """The split that the file serves, as a FlagSet understands it. Raises TrafficUnavailable.

        Nobody is served treatment by a flag that is DISABLED or killed. Renews the spare when others have edited the
        file.
        """
        await self._finished()
        return await self._in_thread(self._read)

    async def close(self) -> None:
        """Waits for calls that were cancelled."""
        await self._finished()

    async def _in_thread(self, work: Callable[..., Answer], *arguments: object) -> Answer:
        # Rollbacks that are tried again while the disk hangs: some may get through, and not one more thread a second.
        while len(self._running) >= _THREADS:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        answer: Future[Answer] = Future()
        # A daemon of its own: what hangs takes no thread from anybody, and keeps no process from its end.
        threading.Thread(
            target=_run, args=(answer, work, arguments), name="flag-traffic", daemon=True
        ).start()
        running = asyncio.wrap_future(answer)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            running.exception()  # looked at, for a caller who was cancelled

    async def _finished(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    def _read(self) -> Split:
        data = self._file.read()
        flag = self._parse(data)
        split = self._split_of(flag)
        if split.rollout and (split.share or split.audience):
            # At best: who only looks may not be allowed to write, and a full disk is met when it matters.
            with contextlib.suppress(NoSpace, TrafficUnavailable):
                self._renew_spare(data, split)
        return split if flag.enabled else _nobody(split)

    def _renew_spare(self, data: bytes, split: Split) -> None:
        spare = self._rolled_back(data, split)
        if self._file.spare() == spare or (lock := self._file.try_lock()) is None:
            return
        try:
            if self._file.read() == data:
                self._file.keep_spare(spare)
        finally:
            os.close(lock)

    def _rolled_back(self, data: bytes, split: Split) -> bytes:
        return self._rendered(data, replace(_nobody(split), latched=True))

    def _set(self, split: Split) -> None:
        with self._file.locked(self._lock_timeout, regardless=split.latched):
            data = self._file.read()
            try:
                flag = self._parse(data)
            except TrafficUnavailable as error:
                if not (split.latched and isinstance(error.__cause__, BrokenDocument)):
                    raise
                self._replace_broken(split, error)
                return
            current = self._current(flag, split)
            check_replacement(current, split, self.name)
            if not flag.enabled and (split.share or split.audience):
                why = "killed" if flag.killed else "DISABLED"
                fix = "take fairlead_killed back" if flag.killed else 'write "ENABLED"'
                raise TrafficUnavailable(f"{self.name}: it is {why}, so nobody would be served; {fix} first")
            wanted = self._rendered(data, split)
            self._check(wanted, split)
            try:
                if split.share or split.audience:
                    self._file.keep_spare(self._rolled_back(wanted, split))
                if wanted != data:
                    self._file.replace(wanted, instead_of=data)
            except NoSpace as error:
                if not split.latched:
                    raise TrafficUnavailable(str(error)) from error
                self._replace_without_space(data, current, split, error)
                return
            self._check(self._file.read(), split)
            if split.latched:
                self._file.drop_spare()

    def _current(self, flag: Flag, wanted: Split) -> Split:
        try:
            return self._split_of(flag)
        except TrafficUnavailable:
            owned = self._marks(flag)
            if wanted.latched and owned.rollout == wanted.rollout:
                return owned  # somebody has edited it by hand since: a rollback still takes treatment away
            raise

    def _replace_without_space(self, data: bytes, current: Split, split: Split, full: NoSpace) -> None:
        if current.latched and current.rollout == split.rollout:
            return  # it is rolled back; only the newer epoch could not be written
        spare = self._file.spare()
        if spare is None or spare != self._rolled_back(data, current):
            raise TrafficUnavailable(f"{full}; no rollback of this very file was kept beside it") from full
        self._file.use_spare()
        self._check(self._file.read(), replace(split, epoch=current.epoch))

    def _replace_broken(self, split: Split, broken: TrafficUnavailable) -> None:
        """Services still serve what they read before the file was broken, so there is something to take away."""
        spare = self._file.spare()
        if spare is not None:
            kept = self._split_of(self._parse(spare))
            if kept.latched and kept.rollout == split.rollout:
                self._file.use_spare()
                return
        raise TrafficUnavailable(f"{broken}; no rollback was kept beside it: repair the file") from broken

    def _check(self, data: bytes, split: Split) -> None:
        found = self._split_of(self._parse(data))
        if not found.serves_as(split) or replace(split, share=found.share) != found:
            raise TrafficUnavailable(
                f"{self.name}: holds {found}, not {split}; somebody else writes this file"
            )

    def _parse(self, data: bytes) -> Flag:
        """The flag, with all its document compiled as a service compiles it."""
        try:
            document = FlagSet.parse(data, source=str(self._file.path)).document
        except BrokenDocument as error:
            raise TrafficUnavailable(str(error)) from error
        flag = document.flags.get(self._flag)
        if flag is None:
            raise TrafficUnavailable(
                f"{self._file.path}: no flag {quoted(self._flag)}{closest(self._flag, document.flags)}"
            )
        for variant in (self._treatment, self._control):
            if variant not in flag.variants:
                raise TrafficUnavailable(
                    f"{self.name}: no variant {quoted(variant)}{closest(variant, flag.variants)}"
                )
        if flag.default_variant != self._control:
            raise TrafficUnavailable(
                f"{self.name}: defaultVariant is {quoted(flag.default_variant)}, which units without a key would "
                f"meet; make it {quoted(self._control)}"
            )
        return flag

    def _marks(self, flag: Flag) -> Split:
        rollout = flag.metadata.get(_ROLLOUT, "")
        epoch, latched = flag.metadata.get(_EPOCH, 0), flag.metadata.get(_LATCHED, False)
        if (
            not isinstance(rollout, str)
            or not _is_line(rollout)
            or type(epoch) is not int
            or epoch < 0
            or type(latched) is not bool
        ):
            raise TrafficUnavailable(
                f"{self.name}: {_ROLLOUT}, {_EPOCH} and {_LATCHED} in its metadata are not what a rollout writes; "
                "remove all three"
            )
        return Split(share=0.0, rollout=rollout, epoch=epoch, latched=latched)

    def _split_of(self, flag: Flag) -> Split:
        """What the flag serves when it is enabled."""
        marks = self._marks(flag)
        audience, bucket = self._understood(flag)
        slots = 0
        if bucket is not None:
            found = self._slots(bucket["slots"])
            if found is None:
                raise self._refusal()
            slots = found
        if marks.latched and (slots or audience):
            raise TrafficUnavailable(
                f"{self.name}: {marks.rollout} was rolled back, yet its targeting lets treatment in; roll it back again"
            )
        return replace(marks, share=slots / SLOTS, audience=audience)

    def _understood(self, flag: Flag) -> tuple[str, dict[str, Any] | None]:
        """The audience and the bucket of a targeting that a rollout can move."""
        audience, rule = "", flag.targeting
        match rule:
            case {"if": [dict(test), self._treatment, dict(inner)]}:
                audience, rule = _audience(test), inner
                if not audience:
                    raise self._refusal()
            case None:
                return "", None
        match rule:
            case {"bucket": dict(bucket)}:
                return audience, bucket
        raise self._refusal()

    def _slots(self, ranges: list[list[Any]]) -> int | None:
        """How many slots treatment owns, if it owns the lowest ones and control or nobody the rest."""
        owned = sorted((start, end, label) for label, start, end in ranges)
        slots = 0
        if owned[0][2] == self._treatment:
            start, slots, _ = owned.pop(0)
            if start:
                return None
        if owned and owned != [(slots, SLOTS, self._control)]:
            return None
        return slots

    def _refusal(self) -> TrafficUnavailable:
        return TrafficUnavailable(
            f"{self.name}: its targeting is none that a rollout can move without a loss; leave it out, or make "
            f'it {{"bucket": …}} with {quoted(self._treatment)} from slot 0 and {quoted(self._control)} up to {SLOTS}'
        )

    def _rendered(self, data: bytes, split: Split) -> bytes:
        """The document with this split; every byte outside the flag is kept."""
        text = data.decode()
        start, end = _span(text, ["flags", self._flag])
        written = text[start:end]
        flag = json.loads(written)
        flag["targeting"] = self._targeting(flag.get("targeting"), split)
        flag["metadata"] = {
            **flag.get("metadata", {}),
            _ROLLOUT: split.rollout,
            _EPOCH: split.epoch,
            _LATCHED: split.latched,
        }
        return f"{text[:start]}{_in_style_of(written, flag)}{text[end:]}".encode()

    def _targeting(self, targeting: object, split: Split) -> dict[str, Any]:
        match targeting:
            case {"bucket": dict(found)} | {"if": [*_, {"bucket": dict(found)}]}:
                by, salt = found.get("by"), found.get("salt")
            case _:
                by, salt = "targetingKey", _salt(self._flag)
        treatment = [[self._treatment, 0, split.slots]] if split.slots else []
        control = [[self._control, split.slots, SLOTS]] if split.slots < SLOTS else []
        rule = {"bucket": {"by": by, "salt": salt, "algo": ALGORITHM, "slots": [*treatment, *control]}}
        if not split.audience:
            return rule
        return {"if": [{"===": [{"var": "audience"}, split.audience]}, self._treatment, rule]}


def _run(answer: Future[Any], work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        answer.set_result(work(*arguments))
    except BaseException as error:  # carried to who asked
        answer.set_exception(error)


def _salt(flag: str) -> str:
    """The flag's name; where a salt cannot carry it, a hash as well: two flags of one salt draw the same units."""
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", flag):
        return flag
    said = re.sub(r"[^A-Za-z0-9_.-]", "-", flag)[:55]
    return f"{said}-{hashlib.sha256(flag.encode()).hexdigest()[:8]}"


def _is_line(text: str) -> bool:
    return text.isprintable() and len(text) <= _LONGEST


def _audience(test: dict[str, Any]) -> str:
    """Whom a condition lets in by the attribute `audience`; empty for any other condition."""
    for operator in ("===", "=="):
        match test.get(operator):
            case [{"var": "audience"}, str(name)]:
                return name
    return ""


def _nobody(split: Split) -> Split:
    return replace(split, share=0.0, audience="")


def _span(text: str, path: list[str]) -> tuple[int, int]:
    """Where the value at `path` lies in a document that has it."""
    at, end = _skip(text, 0), len(text)
    for wanted in path:
        at = _skip(text, at + 1)  # behind the brace
        while True:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # behind the colon
            _, end = _DECODER.raw_decode(text, at)
            if key == wanted:
                break
            at = _skip(text, _skip(text, end) + 1)  # behind the comma
    return at, end


def _skip(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    return found.end() if found else at


def _in_style_of(written: str, value: object) -> str:
    """`value` as JSON, indented as `written` is."""
    inner = re.search(r"\n([ \t]+)\S", written)
    if inner is None:
        return json.dumps(value, ensure_ascii=False)
    outer = written[written.rfind("\n") + 1 : -1]
    outer = outer if outer.isspace() else ""
    step = inner[1].removeprefix(outer) or "  "
    return json.dumps(value, ensure_ascii=False, indent=step).replace("\n", f"\n{outer}")
