from __future__ import annotations

import json

import pytest

from fairlead_systems.remote_config.documents import OwnEntries, SharedLayers, make_document, matches
from fairlead_systems.remote_config.schema import PAGE
from fairlead_systems.remote_config.table import Entry


def shared(*entries: Entry) -> SharedLayers:
    return SharedLayers(PAGE, 7, entries)


def values(document) -> dict:
    return json.loads(document.body)["values"]


LAYERS = (
    Entry("all", "", "theme", '"dark"'),
    Entry("all", "", "feed.page_size", "30"),
    Entry("segment", "power", "feed.page_size", "50"),
)


def test_later_layers_win():
    layers = shared(*LAYERS)
    own = OwnEntries("power", (("theme", '"light"'),))
    assert (values(layers.document(None))["theme"], values(layers.document(None))["feed.page_size"]) == (
        "dark",
        30,
    )
    assert values(layers.document(OwnEntries("power")))["feed.page_size"] == 50
    assert values(layers.document(own))["theme"] == "light"
    assert values(layers.document(own))["feed.page_size"] == 50


def test_document_holds_every_declared_setting_in_the_order_of_declaration():
    assert list(values(shared().document(None))) == list(PAGE)
    own = OwnEntries("power", (("theme", '"light"'),))
    assert list(values(shared(*LAYERS).document(own))) == list(PAGE)


def test_users_without_entries_of_their_own_share_one_document():
    layers = shared(*LAYERS)
    assert layers.document(None) is layers.document(None)
    assert layers.document(OwnEntries("power")) is layers.document(OwnEntries("power"))
    assert layers.document(OwnEntries("power")).etag != layers.document(None).etag


def test_segments_that_nobody_configured_do_not_fill_the_memory():
    layers = shared()
    for number in range(3_000):
        assert json.loads(layers.document(OwnEntries(f"s{number}")).body)["segment"] == f"s{number}"
    assert len(layers._documents) <= 1_000


def test_entry_that_does_not_fit_is_left_out_and_told():
    layers = shared(Entry("all", "", "theme", '"purple"'), Entry("all", "", "gone.setting", "1"), *LAYERS[1:])
    assert values(layers.document(None))["theme"] == "system"
    assert values(layers.document(None))["feed.page_size"] == 30
    assert len(layers.misfits) == 2
    own = OwnEntries("", (("feed.page_size", '"many"'),))
    assert values(layers.document(own))["feed.page_size"] == 30


def test_misfits_do_not_grow_without_bound():
    layers = shared()
    own = OwnEntries("", (("feed.page_size", '"many"'),))
    for _ in range(500):
        layers.document(own)
    assert len(layers.misfits) <= 100


def test_user_of_whom_the_table_says_nothing_is_none():
    assert OwnEntries.of([]) is None
    assert OwnEntries.of([Entry("user", "u", "segment", '"power"')]) == OwnEntries("power", ())
    assert OwnEntries.of([Entry("user", "u", "segment", "7")]) is None  # no segment, and nothing else


def test_etag_is_of_the_bytes():
    one, same = make_document("a", {"x": 1}), make_document("a", {"x": 1})
    other = make_document("a", {"x": 2})
    assert one.etag == same.etag != other.etag
    assert one.etag.startswith('"')
    assert one.etag.endswith('"')


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (None, False),
        ("", False),
        ('"e"', True),
        ('W/"e"', True),
        ('"a", "e"', True),
        ('"a",W/"e" ', True),
        ("*", True),
        ('"a"', False),
        ("e", False),
        ("," * 10_000, False),
    ],
)
def test_conditional_request_is_compared_as_http_says(header, known):
    assert matches(header, '"e"') is known
