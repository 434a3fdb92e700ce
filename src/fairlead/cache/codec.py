"""Values as bytes for a tier that processes share, and back only as what they claim to be.

What lies in a shared tier was written by another process, perhaps by last week's code, perhaps by nobody one
knows. A reader that trusts it hands out objects with fields that mean something else; one that unpickles it
runs it. Here a value is MessagePack behind nine bytes:

    byte 0      the format of this envelope
    bytes 1-8   the schema: a hash of the type's, or of the version that the codec was told
    then        the value, decoded against the type

Whatever does not read as that raises BrokenDocument, which a store counts as a miss. So a changed struct is a
miss after a deploy, on both sides of it, and not a wrong answer.
"""

from __future__ import annotations

import json
from typing import Any, Generic, TypeVar, get_origin

import msgspec
import xxhash
from msgspec import inspect

from fairlead.calls.bounds import check_whole
from fairlead.errors import BrokenDocument, InvalidInput

__all__ = ["Codec"]

_T = TypeVar("_T")

_FORMAT = b"\x01"
_HEAD = 9
_LARGEST = 2**30

_MUTABLE: dict[type[inspect.Type], str] = {
    inspect.ListType: "list",
    inspect.SetType: "set",
    inspect.DictType: "dict",
    inspect.TypedDictType: "dict",
    inspect.ByteArrayType: "bytearray",
    inspect.MemoryViewType: "memoryview",
    inspect.AnyType: "Any",
}
_PLAIN: dict[type[inspect.Type], type] = {
    inspect.NoneType: type(None),
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.StrType: str,
    inspect.BytesType: bytes,
}


class Codec(Generic[_T]):
    """Writes and reads values of one type.

    >>> class Profile(msgspec.Struct, frozen=True):
    ...     name: str
    >>> codec = Codec(Profile)
    >>> codec.decode(codec.encode(Profile("Ada")))
    Profile(name='Ada')
    """

    __slots__ = ("_classes", "_decoder", "_encoder", "_head", "_max_bytes", "_shown")

    def __init__(
        self,
        type: Any,
        *,
        version: int | str | None = None,
        max_bytes: int = 2**20,
        mutable_ok: bool = False,
    ) -> None:
        """type: what values are: a frozen Struct or dataclass, bytes, a tuple, a union, and so on.

        version: of the schema, told by hand. None: derived from the type, its fields, their defaults and their
        order; tell one when a field keeps its type and changes its meaning, or gains a default that old
        readers may ignore. max_bytes: the longest envelope, written or read. 2**20: one large value holds
        the connection up for everyone. mutable_ok: whether the type may hold lists, dicts, sets or structs
        that are not frozen. A decoded value goes into memory and from there to every caller, so one that
        changes it changes it for all; say True when callers only read.

        Raises InvalidInput for a type that MessagePack cannot carry, or that is mutable.
        """
        check_whole("Codec.max_bytes", max_bytes, low=_HEAD + 1, high=_LARGEST)
        if version is not None and (isinstance(version, bool) or not isinstance(version, int | str)):
            raise InvalidInput(f"Codec.version: {version!r} is neither a whole number nor text")
        self._shown = getattr(type, "__qualname__", None) or repr(type)
        try:
            info = inspect.type_info(type)
            self._decoder: msgspec.msgpack.Decoder[_T] = msgspec.msgpack.Decoder(type)
            schema = f"told {version!r}" if version is not None else _schema(type)
        except (TypeError, NameError) as error:
            raise InvalidInput(f"Codec: {self._shown} cannot be written as MessagePack: {error}") from error
        if not mutable_ok and (found := _mutable_part(info, self._shown, set())):
            raise InvalidInput(
                f"Codec: {found}, so one caller's change would reach all: use frozen types, tuples and bytes, "
                "or say mutable_ok=True"
            )
        self._classes = _outer_classes(info)
        self._encoder = msgspec.msgpack.Encoder()
        self._head = _FORMAT + xxhash.xxh64_digest(schema.encode())
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"Codec({self._shown}, schema {self._head[1:].hex()})"

    def encode(self, value: _T) -> bytes:
        """`value` as bytes. Raises InvalidInput if it is of another type, cannot be written, or is too long."""
        if self._classes is not None and type(value) not in self._classes:
            raise InvalidInput(f"{self!r}: a {type(value).__qualname__} is not of that type")
        try:
            data = self._head + self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(f"{self!r}: the value cannot be written: {error}") from error
        if len(data) > self._max_bytes:
            raise InvalidInput(f"{self!r}: {len(data)} bytes are more than max_bytes, {self._max_bytes}")
        return data

    def decode(self, data: bytes) -> _T:
        """The value that `data` holds. Raises BrokenDocument for anything that `encode` has not written."""
        if len(data) > self._max_bytes:
            raise BrokenDocument(f"{self!r}: {len(data)} bytes are more than max_bytes, {self._max_bytes}")
        if data[:_HEAD] != self._head:
            raise BrokenDocument(
                f"{self!r}: another schema wrote this, {bytes(data[1:_HEAD]).hex() or 'none'}"
            )
        try:
            return self._decoder.decode(memoryview(data)[_HEAD:])
        except Exception as error:  # a type's own __post_init__ may raise anything, and it is still a miss
            raise BrokenDocument(f"{self!r}: the bytes are not of that type: {error}") from error


def _schema(type_: Any) -> str:
    return json.dumps(_undescribed(msgspec.json.schema(type_)), sort_keys=True, default=repr)


def _undescribed(schema: Any) -> Any:
    """Without docstrings: a corrected sentence must not empty the cache."""
    if isinstance(schema, dict):
        return {
            name: _undescribed(part)
            for name, part in schema.items()
            if not (name == "description" and isinstance(part, str))
        }
    return [_undescribed(part) for part in schema] if isinstance(schema, list) else schema


def _mutable_part(info: inspect.Type, where: str, seen: set[Any]) -> str:
    """Which part of a type can be changed in place, in words; empty if none."""
    if (name := _MUTABLE.get(type(info))) is not None:
        return f"{where} is {'of any type' if name == 'Any' else f'a {name}'}"
    if isinstance(info, inspect.CustomType):
        return f"{where} is a {info.cls.__qualname__}, which may be mutable"
    if isinstance(info, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        cls = _class_of(info)
        if info.cls in seen:
            return ""
        seen.add(info.cls)
        if not (issubclass(cls, tuple) or _is_frozen(cls)):
            return f"{cls.__qualname__} is not frozen"
        parts = [(each.type, f"{cls.__qualname__}.{each.name}") for each in info.fields]
    elif isinstance(info, inspect.UnionType):
        parts = [(each, where) for each in info.types]
    elif isinstance(info, inspect.TupleType):
        parts = [(each, f"a part of {where}") for each in info.item_types]
    elif isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        parts = [(info.item_type, f"a part of {where}")]
    else:
        return ""
    return next((found for part, place in parts if (found := _mutable_part(part, place, seen))), "")


def _class_of(info: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType) -> type:
    """Without the arguments of a generic, which no value bears."""
    return get_origin(info.cls) or info.cls


def _is_frozen(cls: type) -> bool:
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_config__.frozen
    parameters = getattr(cls, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _outer_classes(info: inspect.Type) -> tuple[type, ...] | None:
    """What class a value must have; None where that does not say it.

    Without the check a loader that returns a dict would be answered with a dict here and a struct elsewhere.
    """
    classes: list[type] = []
    for each in info.types if isinstance(info, inspect.UnionType) else (info,):
        if isinstance(each, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
            classes.append(_class_of(each))
        elif (plain := _PLAIN.get(type(each))) is not None:
            classes.append(plain)
        else:
            return None
    return tuple(classes)
