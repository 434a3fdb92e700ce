"""One failure, many waiters: each raises an exception instance of its own.

Raising an instance writes to it: the traceback grows at its head, `__context__` is replaced, notes are added.
Tasks that raise one shared instance therefore corrupt each other's reports and keep frames alive.
`copy.copy` is no way out, because it calls the class again with `args`: a constructor that takes other
arguments than it hands to its base (most of those in libraries) fails, or builds something else.

So nothing written in Python is called here. The instance is made by the `__new__` of the C class beneath it,
then takes over `args`, the attributes, the slots, and the fields of the C class (`errno`, `value`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import TypeVar, cast

__all__ = ["own_instance"]

_Error = TypeVar("_Error", bound=BaseException)


def own_instance(error: _Error) -> _Error:
    """An exception equal to `error` in type, arguments, attributes, notes, cause and traceback so far.

    Attributes are shared, not copied deeply. Returns `error` itself if its class cannot be instantiated from
    outside (a C class whose `__new__` wants arguments): an `except` goes by type, not by identity.
    """
    try:
        copy = _bare_instance(error)
    except TypeError:
        return error
    copy.args = error.args
    for base in type(error).__mro__:
        if base is BaseException or base is object:
            continue
        for name, field in vars(base).items():
            if isinstance(field, MemberDescriptorType | GetSetDescriptorType) and name != "__dict__":
                _take_over(field, error, copy)
    if (attributes := getattr(error, "__dict__", None)) is not None:
        vars(copy).update(attributes)
    if (notes := getattr(error, "__notes__", None)) is not None:
        copy.__notes__ = list(notes)
    copy.__cause__ = error.__cause__
    copy.__context__ = error.__context__
    copy.__suppress_context__ = error.__suppress_context__
    return copy.with_traceback(error.__traceback__)


def _bare_instance(error: _Error) -> _Error:
    kind = type(error)
    if isinstance(error, BaseExceptionGroup):
        # Its members live in C and are read-only afterwards: the one builtin class that needs them at birth.
        new_group: Callable[..., _Error] = BaseExceptionGroup.__new__
        return new_group(kind, error.message, error.exceptions)
    for base in kind.__mro__:
        if isinstance(new := vars(base).get("__new__"), BuiltinFunctionType):
            return cast(_Error, new(kind))
    raise TypeError(kind)


def _take_over(
    field: MemberDescriptorType | GetSetDescriptorType, error: BaseException, copy: BaseException
) -> None:
    kind = type(error)
    try:
        value = field.__get__(error, kind)
    except AttributeError:
        return  # an empty slot
    try:
        if field.__get__(copy, kind) is value:
            return  # a C field that reads None when empty prints otherwise once None is written to it
    except AttributeError:
        pass
    try:
        field.__set__(copy, value)
    except (AttributeError, TypeError, ValueError):
        return  # a read-only view of fields that are taken over by themselves
