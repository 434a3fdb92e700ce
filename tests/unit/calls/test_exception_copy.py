"""own_instance: waiters of one failure do not share one exception."""

from __future__ import annotations

import asyncio
import errno

import pytest

from fairlead.calls.exception_copy import own_instance
from fairlead.errors import MissingExtra, Overloaded


class KeywordOnly(Exception):
    def __init__(self, *, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Slotted(Exception):
    __slots__ = ("__secret", "code", "unset")

    def __init__(self, code: int, extra: object) -> None:
        super().__init__()
        self.code = code
        self.__secret = extra

    def secret(self) -> object:
        return self.__secret


class NewTakesArguments(OSError):
    def __new__(cls, host: str, port: int) -> NewTakesArguments:
        return super().__new__(cls, errno.ECONNREFUSED, f"{host}:{port}")

    def __init__(self, host: str, port: int) -> None:
        self.host = host


class ConstructorWithSideEffect(Exception):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1


def decode_error() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"ok\xff".decode()
    return caught.value


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (ValueError("no", 3), ()),
        (KeyError("k"), ()),
        (
            FileNotFoundError(errno.ENOENT, "gone", "/a", None, "/b"),
            ("errno", "strerror", "filename", "filename2"),
        ),
        (decode_error(), ("start", "end", "object", "encoding", "reason")),
        (StopAsyncIteration(1), ()),
        (StopIteration(7), ("value",)),
        (SystemExit(3), ("code",)),
        (ImportError("x", name="n", path="p"), ("name", "path", "msg")),
        (AttributeError("x", name="n", obj=1), ("name", "obj")),
        (SyntaxError("bad", ("f.py", 1, 2, "text")), ("msg", "filename", "lineno", "offset", "text")),
        (KeywordOnly(status=503), ("status",)),
        (NewTakesArguments("h", 1), ("host", "errno", "strerror")),
        (Overloaded("full", retry_after=0.5), ("retry_after",)),
        (MissingExtra("numpy", "analysis"), ("package", "extra")),
        (asyncio.CancelledError("why"), ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_type_arguments_and_fields_are_those_of_the_original(
    error: BaseException, fields: tuple[str, ...]
) -> None:
    copy = own_instance(error)
    assert copy is not error
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert str(copy) == str(error)
    assert [getattr(copy, name) for name in fields] == [getattr(error, name) for name in fields]


def test_slots_are_taken_over_and_unset_ones_stay_unset() -> None:
    marker = object()
    copy = own_instance(Slotted(4, marker))
    assert (copy.code, copy.secret()) == (4, marker)
    assert not hasattr(copy, "unset")


def test_constructors_written_in_python_are_not_run_again() -> None:
    error = ConstructorWithSideEffect()
    before = ConstructorWithSideEffect.made
    own_instance(error)
    assert ConstructorWithSideEffect.made == before


def test_exception_groups_keep_their_members_and_class() -> None:
    class Several(ExceptionGroup[ValueError]):
        pass

    members = [ValueError(1), ValueError(2)]
    copy = own_instance(Several("two", members))
    assert type(copy) is Several
    assert (copy.message, list(copy.exceptions)) == ("two", members)


def test_raising_one_copy_changes_neither_the_original_nor_another_copy() -> None:
    with pytest.raises(ValueError, match="boom") as caught:
        raise ValueError("boom")
    original = caught.value
    traceback = original.__traceback__
    first, second = own_instance(original), own_instance(original)
    assert first.__traceback__ is traceback
    try:
        raise KeyError("other")
    except KeyError:
        with pytest.raises(ValueError, match="boom"):
            raise first  # noqa: B904 - the implicit context is what is under test
    first.add_note("mine")
    assert isinstance(first.__context__, KeyError)
    assert second.__context__ is None
    assert original.__context__ is None
    assert original.__traceback__ is traceback
    assert second.__traceback__ is traceback
    assert not hasattr(second, "__notes__")


def test_notes_cause_and_suppression_are_taken_over_and_notes_are_not_shared() -> None:
    original = ValueError("x")
    original.add_note("first")
    original.__cause__ = KeyError("cause")
    copy = own_instance(original)
    copy.add_note("second")
    assert original.__notes__ == ["first"]
    assert copy.__notes__ == ["first", "second"]
    assert copy.__cause__ is original.__cause__
    assert copy.__suppress_context__ is True
