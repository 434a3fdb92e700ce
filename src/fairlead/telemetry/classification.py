"""How much harm a field can do when it is seen: written beside its type, so that nobody need remember it.

A list of personal fields in some other file is out of date from the first field that nobody added to it. Here
a field's annotation says what it holds, an event whose fields do not all say so is refused when its kind is
registered, and whatever copies events out of the service (logs, recordings, exports) asks the annotation.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

__all__ = ["Classification", "Internal", "Personal", "Public", "classifications"]

Classification = Literal["public", "internal", "personal"]
"""public: may be shown to anyone; internal: to those who run the service; personal: tells of a person, or is the
handle by which one is found (user id, address, device).
"""

_Value = TypeVar("_Value")


def _marked(classification: Classification) -> msgspec.Meta:
    return msgspec.Meta(
        extra={"classification": classification}, extra_json_schema={"x-classification": classification}
    )


Public = Annotated[_Value, _marked("public")]
"""`route: Public[str]`: a field that may be shown to anyone."""
Internal = Annotated[_Value, _marked("internal")]
"""`error: Internal[str]`: a field for those who run the service."""
Personal = Annotated[_Value, _marked("personal")]
"""`user: Personal[str]`: a field that tells of a person, and is replaced by a token wherever events are redacted."""


def classifications(kind: type[msgspec.Struct]) -> dict[str, Classification | None]:
    """Each field's classification, by its name; None where the annotation says none."""
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)  # noqa: S101  # what msgspec says of a Struct
    return {field.name: _said(field.type) for field in described.fields}


def _said(described: msgspec.inspect.Type) -> Classification | None:
    # Annotated around Annotated comes as Metadata around Metadata: a bound on the number, say, inside a class.
    while isinstance(described, msgspec.inspect.Metadata):
        said: Classification | None = (described.extra or {}).get("classification")
        if said is not None:
            return said
        described = described.type
    return None
