from __future__ import annotations

import hashlib
import json
import os
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BrokenDocument, InvalidInput, UnknownFlag
from fairlead.flags import EvaluationContext, FlagSet, Reason

USER = EvaluationContext(targeting_key="user-1", attributes={"plan": "pro"})


def document(**flags: Any) -> bytes:
    known: dict[str, Any] = {
        "path": {"variants": {"control": "slow", "treatment": "fast"}, "defaultVariant": "control"},
        "shiny": {"variants": {"on": True, "off": False}, "defaultVariant": "on"},
        "rows": {"variants": {"few": 10, "many": 50.5}, "defaultVariant": "few"},
        "limits": {"variants": {"tight": {"rows": 3}}, "defaultVariant": "tight"},
    }
    written = {name: {"state": "ENABLED"} | flag for name, flag in (known | flags).items() if flag}
    return json.dumps({"flags": written}).encode()


def test_each_type_is_asked_for_by_name() -> None:
    flags = FlagSet.parse(document())
    assert flags.string("path", USER, "none") == "slow"
    assert flags.boolean("shiny", USER, False) is True
    assert flags.number("rows", USER, 1) == 10
    assert flags.object("limits", USER, {}) == {"rows": 3}


def test_an_unknown_flag_answers_with_the_default_and_says_so() -> None:
    evaluation = FlagSet.parse(document()).evaluate("pth", USER, "none")
    assert (evaluation.value, evaluation.variant, evaluation.reason) == ("none", None, Reason.ERROR)
    assert evaluation.detail == "no flag 'pth'"


def test_a_wrong_type_answers_with_the_default_and_says_so() -> None:
    flags = FlagSet.parse(document())
    assert flags.string("shiny", USER, "none") == "none"
    assert flags.boolean("path", USER, False) is False
    assert flags.boolean("rows", USER, False) is False
    assert flags.number("shiny", USER, 7) == 7
    assert flags.object("path", USER, {"own": 1}) == {"own": 1}
    assert flags.evaluate("shiny", USER, "none").detail == "flag 'shiny' is a boolean, not a string"


def test_a_default_of_none_accepts_any_type() -> None:
    assert FlagSet.parse(document()).evaluate("rows", USER).value == 10


def test_a_default_of_a_derived_type_counts_as_its_base() -> None:
    class Name(str):
        pass

    flags = FlagSet.parse(document())
    assert flags.string("path", USER, Name("none")) == "slow"
    assert flags.object("limits", USER, UserDict()) == {"rows": 3}  # type: ignore[arg-type]  # a Mapping all the same


def test_a_context_that_fails_when_it_is_read_answers_with_the_default() -> None:
    class Hostile(dict[str, object]):
        def get(self, *_: object) -> object:  # type: ignore[override]  # hostile on purpose
            raise RuntimeError("boom")

    flags = FlagSet.parse(
        document(
            path={"variants": {"a": "x"}, "defaultVariant": "a", "targeting": {"if": [{"var": "b"}, "a"]}}
        )
    )
    evaluation = flags.evaluate("path", EvaluationContext(attributes=Hostile()), "none")
    assert (evaluation.value, evaluation.reason) == ("none", Reason.ERROR)
    assert evaluation.detail == "RuntimeError while evaluating 'path'"


def test_require_names_the_flags_there_are() -> None:
    flags = FlagSet.parse(document(), source="flags.json")
    flags.require("path", "string")
    with pytest.raises(UnknownFlag) as unknown:
        flags.require("pth", "string")
    assert str(unknown.value) == (
        "flags.json: no flag 'pth'; did you mean 'path'? known: limits, path, rows, shiny"
    )


def test_require_refuses_another_type() -> None:
    flags = FlagSet.parse(document(), source="flags.json")
    with pytest.raises(
        InvalidInput, match=r"flags\.json: flag 'path' is a string, but a boolean is required"
    ):
        flags.require("path", "boolean")
    with pytest.raises(InvalidInput, match="'int' is no flag type"):
        flags.require("path", "int")


def test_an_override_forces_its_variant_on_everybody_even_of_a_disabled_flag() -> None:
    flags = FlagSet.parse(
        document(off={"state": "DISABLED", "variants": {"on": True}, "defaultVariant": "on"}),
        overrides={"path": "treatment", "off": "on"},
    )
    evaluation = flags.evaluate("path", USER, "none")
    assert (evaluation.value, evaluation.variant, evaluation.reason) == ("fast", "treatment", Reason.STATIC)
    assert flags.boolean("off", USER, False) is True
    assert flags.overrides == {"path": "treatment", "off": "on"}


def test_an_override_that_the_document_cannot_serve_is_refused() -> None:
    with pytest.raises(UnknownFlag, match="override of unknown flag 'pth'; did you mean 'path'"):
        FlagSet.parse(document(), overrides={"pth": "treatment"})
    with pytest.raises(
        InvalidInput, match="flag 'path' has no variant 'treatmnt' to override with; did you mean"
    ):
        FlagSet.parse(document(), overrides={"path": "treatmnt"})


def test_the_digest_is_that_of_the_bytes() -> None:
    assert FlagSet.parse(document()).digest == hashlib.sha256(document()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flags.json"
    path.write_bytes(document())
    return path


def test_a_reload_serves_the_new_document(path: Path) -> None:
    flags = FlagSet.from_file(path)
    path.write_bytes(document(shiny={"variants": {"on": True, "off": False}, "defaultVariant": "off"}))
    assert flags.reload() is None
    assert flags.boolean("shiny", USER, True) is False
    assert flags.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"{", "line 1"),
        (document(shiny={"variants": {"on": True}, "defaultVariant": "no"}), "'no' is not a variant"),
        (document(path=None), "no flag 'path'"),
        (document(path={"variants": {"treatment": 1}}), "flag 'path' is a number, but a string is required"),
        (document(rows={"variants": {"few": 1}}), "has no variant 'many' to override with"),
    ],
)
def test_a_document_that_cannot_replace_the_last_good_one_does_not(
    path: Path, broken: bytes, message: str
) -> None:
    flags = FlagSet.from_file(path, overrides={"rows": "many"})
    flags.require("path", "string")
    before = flags.document
    path.write_bytes(broken)
    error = flags.reload()
    assert error is not None
    assert message in str(error)
    assert str(path) in str(error)
    assert flags.document is before
    assert flags.string("path", USER, "none") == "slow"


def test_a_file_that_disappears_leaves_the_last_good_document(path: Path) -> None:
    flags = FlagSet.from_file(path)
    path.unlink()
    error = flags.reload()
    assert isinstance(error, BrokenDocument)
    assert "No such file" in str(error)
    assert flags.number("rows", USER, 1) == 10


def test_flags_from_memory_have_no_file_to_reload() -> None:
    with pytest.raises(InvalidInput, match="no file to reload"):
        FlagSet.parse(document()).reload()


def test_a_path_that_is_no_readable_file_is_refused_by_name_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("missing.json", "cannot be read (No such file or directory)"),
        (".", "not a regular file"),
        ("pipe", "not a regular file"),
        ("n\0l", "no usable path"),
        ("new\nline", "cannot be read"),
    ):
        with pytest.raises(BrokenDocument) as refused:
            FlagSet.from_file(tmp_path / name)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_name_that_cannot_be_hashed_is_an_unknown_flag() -> None:
    flags = FlagSet.parse(b'{"flags": {}}')
    assert flags.evaluate([], EvaluationContext(), "default").value == "default"  # type: ignore[arg-type]  # never raises
