"""What a migration has to remember across processes, as small notes in the stores that it moves between."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fairlead.errors import BrokenDocument
from fairlead.migration.stage import Stage
from fairlead.migration.store import Key, MigrationStore

__all__ = ["BackfillNote", "Notes", "VerificationNote"]

_T = TypeVar("_T")


class BackfillNote(msgspec.Struct, frozen=True, kw_only=True):
    """How far a backfill is; it is the checkpoint from which the next process goes on."""

    after: Key | None = None
    """The last key whose batch is in the new store."""
    copied: int = 0
    """Rows offered to the new store so far."""
    done: bool = False
    at: float = 0.0
    """When this was noted, UTC seconds since the epoch."""


class VerificationNote(msgspec.Struct, frozen=True, kw_only=True):
    """What the last whole verification found."""

    compared: int
    differences: int
    at: float
    """When it began, UTC seconds since the epoch."""


class _StageNote(msgspec.Struct, frozen=True, kw_only=True):
    stage: Stage
    permits: tuple[Stage, ...] = ()


class Notes:
    """The notes of one migration in one store."""

    def __init__(self, store: MigrationStore, name: str) -> None:
        self._store = store
        self._name = name

    async def stage(self) -> Stage | None:
        """The stage that was last taken up, by any process."""
        note = await self._stage_note()
        return note.stage if note is not None else None

    async def take_up(self, stage: Stage) -> None:
        """Notes the stage. Going back takes away the permits of the stages ahead: they were given for another day."""
        note = await self._stage_note()
        kept = (
            tuple(each for each in note.permits if each.number <= stage.number + 1)
            if note is not None
            else ()
        )
        new = _StageNote(stage=stage, permits=kept)
        if new != note:
            await self._keep("stage", new)

    async def permit(self, stage: Stage) -> None:
        note = await self._stage_note()
        if note is not None and stage not in note.permits:
            await self._keep("stage", _StageNote(stage=note.stage, permits=(*note.permits, stage)))

    async def permitted(self, stage: Stage) -> bool:
        note = await self._stage_note()
        return note is not None and stage in note.permits

    async def backfill(self) -> BackfillNote | None:
        return await self._read("backfill", BackfillNote)

    async def keep_backfill(self, note: BackfillNote) -> None:
        await self._keep("backfill", note)

    async def verification(self) -> VerificationNote | None:
        return await self._read("verification", VerificationNote)

    async def keep_verification(self, note: VerificationNote) -> None:
        await self._keep("verification", note)

    async def _stage_note(self) -> _StageNote | None:
        return await self._read("stage", _StageNote)

    async def _read(self, kind: str, of: type[_T]) -> _T | None:
        text = await self._store.recall(f"{self._name}/{kind}")
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=of)
        except msgspec.MsgspecError as error:
            raise BrokenDocument(
                f"{self._name}: the note {kind!r} of the migration cannot be read: {error}; "
                f"delete it from fairlead_notes if nothing else wrote it"
            ) from error

    async def _keep(self, kind: str, note: msgspec.Struct) -> None:
        await self._store.remember(f"{self._name}/{kind}", msgspec.json.encode(note).decode())
