"""Whatever a flag file looks like, a step changes one flag and nothing else."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.flags import FlagSet
from fairlead.rollout import FlagTraffic, Split

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
METADATA = st.dictionaries(
    NAMES, st.text(st.characters(codec="utf-8"), max_size=8) | st.booleans() | NUMBERS, max_size=3
)
OTHERS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"state": st.just("ENABLED"), "variants": st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=3)}
    ),
    max_size=3,
)
STYLES = st.sampled_from([{}, {"indent": 0}, {"indent": 3}, {"indent": "\t"}, {"separators": (",", ":")}])
SPLITS = st.builds(
    Split,
    share=st.integers(0, 10_000).map(lambda slots: slots / 10_000),
    audience=NAMES.filter(str.isprintable) | st.just(""),
    rollout=NAMES.filter(str.isprintable),
    epoch=st.integers(0, 2**53),
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, str, str]:
    """What stands before the flag "feed", the flag, and what follows."""
    style, escaped = draw(STYLES), draw(st.booleans())
    feed = {"state": "ENABLED", "variants": {"control": "c", "treatment": "t"}, "defaultVariant": "control"}
    if draw(st.booleans()):
        feed["metadata"] = draw(METADATA)
    others = [(name, flag) for name, flag in draw(OTHERS).items() if name != "feed"]
    at = draw(st.integers(0, len(others)))
    mark = "\ue000here\ue000"
    flags = dict([*others[:at], ("feed", mark), *others[at:]])
    document = {"flags": flags, "metadata": draw(METADATA)}
    if draw(st.booleans()):
        document = dict(reversed(document.items()))
    text = json.dumps(document, ensure_ascii=escaped, **style)
    before, after = text.split(json.dumps(mark, ensure_ascii=escaped))
    space = draw(st.sampled_from(["", " ", "\n\t ", "\r\n"]))
    return space + before + space, json.dumps(feed, ensure_ascii=escaped, **style), space + after + space


@settings(max_examples=300, deadline=None)
@given(document=documents(), first=SPLITS, second=SPLITS)
def test_a_step_changes_its_flag_and_not_a_byte_of_the_rest(
    document: tuple[str, str, str], first: Split, second: Split
):
    before, feed, after = document
    data = (before + feed + after).encode()
    FlagSet.parse(data)
    traffic = FlagTraffic("flags.json", "feed")
    for split in (first, second):
        data = traffic._rendered(data, split)
        assert data.startswith(before.encode())
        assert data.endswith(after.encode())
        assert traffic._split_of(traffic._parse(data)) == split
        assert traffic._rendered(data, split) == data
        flag = json.loads(data)["flags"]["feed"]
        given_metadata = json.loads(feed).get("metadata", {})
        assert {**flag["metadata"], **given_metadata} == flag["metadata"]
        assert list(flag)[: len(json.loads(feed))] == list(json.loads(feed))
