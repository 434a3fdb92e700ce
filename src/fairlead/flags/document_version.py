"""Which of two documents is the newer one, wherever they have been: docs/decisions/0183."""

from __future__ import annotations

from typing import NamedTuple

from fairlead.flags.flag import FlagDocument

__all__ = ["DocumentVersion"]


class DocumentVersion(NamedTuple):
    """Where a document stands in the order of documents: by epoch, then by version."""

    epoch: int
    """`metadata.epoch`; a control plane raises it when it begins to count anew. 0 when there is none."""
    version: int
    """`metadata.version`; counted up with each change. 0 when there is none, or it is no whole number."""

    @classmethod
    def of(cls, document: FlagDocument) -> DocumentVersion:
        return cls(_count(document, "epoch"), _count(document, "version"))

    def __str__(self) -> str:
        epoch = f"epoch {self.epoch}, " if self.epoch else ""
        return f"{epoch}version {self.version}" if self.version else f"{epoch}no version"


def _count(document: FlagDocument, name: str) -> int:
    # flagd leaves metadata free, and a text such as "v12" is common there: it has no order, so it counts as none.
    value = document.metadata.get(name)
    return value if type(value) is int and value > 0 else 0
