from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead import errors
from fairlead.errors import CircuitOpen, FairleadError, MissingExtra, Refused, UnknownFlag

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "errors.md"
CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def ours(kind: type[BaseException]) -> set[str]:
    return {base.__name__ for base in kind.__bases__ if issubclass(base, FairleadError)}


def foreign(kind: type[BaseException]) -> set[str]:
    return {base.__name__ for base in kind.__bases__ if not issubclass(base, FairleadError)} - {"Exception"}


def drawn() -> Iterator[tuple[str, set[str], set[str]]]:
    """Name, parent and foreign parents of each line of the tree in the module's docstring."""
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ((?:[│├└ ][─ ]{2} )*)([A-Z]\w+)( .*)?$", line):
            branches, name, meaning = match.groups()
            depth = len(branches) // 4
            del above[depth:]
            yield name, set(above[-1:]), set(re.findall(r"also an? (\w+)", meaning or ""))
            above.append(name)


def test_drawn_tree_is_the_tree():
    assert sorted(drawn()) == sorted((kind.__name__, ours(kind), foreign(kind)) for kind in CLASSES)


def test_every_error_is_public():
    assert sorted(kind.__name__ for kind in CLASSES) == errors.__all__


def test_documented_table_names_every_error_and_what_else_it_is():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*)\|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", also)) for name, also in rows}
    assert documented == {
        kind.__name__: (ours(kind) - {"FairleadError"}) | foreign(kind)
        for kind in CLASSES
        if kind is not FairleadError
    }


def made(kind: type[FairleadError]) -> FairleadError:
    if issubclass(kind, MissingExtra):
        return kind("numpy", "lab")
    return kind("what happened, and what to do")


def carried(error: FairleadError) -> FairleadError:
    return pickle.loads(pickle.dumps(error))  # noqa: S301  # written in the same line


WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, carried]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CLASSES)
def test_copy_has_the_type_the_message_and_the_notes(kind: type[FairleadError], way: Callable[[Any], Any]):
    error = made(kind)
    error.add_note("while loading the profile")
    twin = way(error)
    assert twin is not error
    assert (type(twin), str(twin), twin.args, vars(twin)) == (kind, str(error), error.args, vars(error))


@pytest.mark.parametrize("way", WAYS)
def test_copy_of_a_refusal_knows_when_to_retry(way: Callable[[Any], Any]):
    twin = way(CircuitOpen("profiles: open", retry_after=2.5))
    assert (str(twin), twin.retry_after) == ("profiles: open", 2.5)


class MissingDriver(MissingExtra):
    """What a package built on Fairlead may derive."""


def test_copy_of_a_derived_error_keeps_its_type():
    assert type(copy.copy(MissingDriver("redis", "redis"))) is MissingDriver


@pytest.mark.parametrize("kind", CLASSES)
def test_message_is_printed_as_it_was_written(kind: type[FairleadError]):
    error = made(kind)
    assert str(error) == error.args[0]


def test_lookup_error_prints_its_message_without_quotes():
    message = "flags.json: no flag 'pth'; did you mean 'path'?"
    with pytest.raises(KeyError) as caught:
        raise UnknownFlag(message)
    assert str(caught.value) == message


def test_error_without_a_message_prints_its_name():
    assert str(FairleadError()) == "FairleadError"


def test_refusal_does_not_know_when_to_retry_unless_told():
    assert Refused("no").retry_after is None


def test_missing_extra_says_what_to_install():
    error = MissingExtra("numpy", "lab")
    assert str(error) == "numpy is not installed: pip install 'fairlead[lab]'"
    assert (error.package, error.extra, error.name) == ("numpy", "lab", "numpy")
