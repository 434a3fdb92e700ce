from __future__ import annotations

from typing import Annotated, Literal

import pytest
from msgspec import Meta

from fairlead.errors import InvalidInput
from fairlead_systems.remote_config.schema import PAGE, Banner, Schema, Setting, check_segment, check_user


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("feed.page_size", 0, "Expected `int` >= 1"),
        ("feed.page_size", 101, "Expected `int` <= 100"),
        ("feed.page_size", "20", "Expected `int`, got `str`"),
        ("feed.page_size", True, "Expected `int`, got `bool`"),
        ("feed.page_size", None, "Expected `int`, got `null`"),
        ("feed.page_size", 10**40, "Expected `int`"),
        ("checkout.express", 1, "Expected `bool`"),
        ("theme", "purple", "Invalid enum value 'purple'"),
        ("checkout.label", "", "Expected `str` of length >= 1"),
        ("checkout.label", "x" * 41, "Expected `str` of length <= 40"),
        ("banner", {"text": "Hello", "levle": "info"}, "unknown field `levle`"),
        ("support.url", "javascript:alert(1)", "matching regex"),
        ("upload.limit_megabytes", float("nan"), "Expected `float`"),
        ("upload.limit_megabytes", float("inf"), "Expected `float`"),
        ("beta.features", ["editor", "unknown"], "Invalid enum value 'unknown'"),
        ("segment", "Not A Segment", "is not a lower-case letter"),
        ("checkout.label", "\ud800", "checkout.label"),
    ],
)
def test_value_that_does_not_fit_is_refused_in_one_line_that_names_the_setting(name, value, said):
    with pytest.raises(InvalidInput) as caught:
        PAGE.encode(name, value)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert name.partition(".")[0] in message


def test_nan_is_refused_also_where_no_bound_would_catch_it():
    schema = Schema([Setting(name="free", type=float, default=0.0)])
    for value in (float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="free"):
            schema.encode("free", value)


def test_value_longer_than_a_setting_should_be_is_refused():
    schema = Schema([Setting(name="text", type=str, default="")])
    assert schema.encode("text", "x" * 4_000)
    with pytest.raises(InvalidInput, match="at most 4096"):
        schema.encode("text", "x" * 5_000)


def test_unknown_name_gets_the_name_that_was_meant():
    with pytest.raises(InvalidInput, match=r"did you mean 'theme'"):
        PAGE.encode("thme", "dark")
    with pytest.raises(InvalidInput, match=r"there are: checkout\.label"):
        PAGE.encode("zzz", 1)


@pytest.mark.parametrize("name", ["", "Theme", "a..b", ".a", "a b", "x" * 65, "segment", "ä"])
def test_setting_that_cannot_be_named_so_is_refused_where_it_is_declared(name):
    with pytest.raises(InvalidInput):
        Schema([Setting(name=name, type=str, default="")])


def test_default_that_is_not_of_its_type_is_refused_where_it_is_declared():
    with pytest.raises(InvalidInput, match="size"):
        Schema([Setting(name="size", type=Annotated[int, Meta(ge=1)], default=0)])


def test_setting_is_declared_once():
    twice = [Setting(name="a", type=Literal["x"], default="x")] * 2
    with pytest.raises(InvalidInput, match="twice"):
        Schema(twice)


def test_what_is_written_is_read_back_typed():
    text = PAGE.encode("banner", {"text": "Hello"})
    assert PAGE.decode("banner", text) == Banner(text="Hello", level="info")


@pytest.mark.parametrize("text", ["", "{", '"purple"', "[" * 100_000, "\ud800"])
def test_what_the_table_holds_is_checked_when_it_is_read(text):
    with pytest.raises(InvalidInput, match="theme"):
        PAGE.decode("theme", text)


@pytest.mark.parametrize("user", ["", "x" * 65, "a b", "../etc", "-a", "ü", "a\n", "u;--"])
def test_user_with_other_characters_is_refused(user):
    with pytest.raises(InvalidInput, match="user"):
        check_user(user)


@pytest.mark.parametrize("user", ["u7", "ana@example.com", "7b0c-11", "A_b.c"])
def test_user_as_services_name_them_is_taken(user):
    assert check_user(user) == user


def test_segment_is_a_short_lower_case_name():
    assert check_segment("power-users2") == "power-users2"
    for segment in ("", "Power", "2x", "x" * 33):
        with pytest.raises(InvalidInput, match="segment"):
            check_segment(segment)
