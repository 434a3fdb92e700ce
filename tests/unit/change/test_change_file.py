from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.change import (
    check_change,
    compare_changes,
    freeze_change,
    madr,
    moved_promises,
    new_change,
    parse_change,
    read_change,
)
from fairlead.change.parse import line_numbers, where
from fairlead.change.sections import (
    ChangeFile,
    ExperimentTable,
    GuardrailTable,
    MetricTable,
    RolloutTable,
    parse_limit,
)
from fairlead.change.testable import enough_traffic
from fairlead.errors import BrokenDocument, InvalidInput
from fairlead.ledger import Ledger
from fairlead.metrics.metric import Kind, Role
from fairlead.store import Database
from tests.unit.ledger.contract import figure

GOOD = (
    new_change("feed_latency")
    .replace('metrics."«latency_p99»"', "metrics.latency_p99")
    .replace('metrics."«errors»"', "metrics.errors")
    .replace("«what shall be true afterwards, with a figure»", "p99 at most 210 ms")
    .replace(
        "«doing what changes which metric by how much, because of which mechanism»",
        "coalescing lowers latency_p99 from 380 to 210 ms, because misses no longer queue",
    )
    .replace("units_per_day = 1000 ", "units_per_day = 100000 ")
)
GOOD = re.sub("[«»]", "", GOOD)


def codes(text: str) -> list[tuple[str, str]]:
    return [(finding.code, finding.path) for finding in check_change(text.encode())]


def test_a_good_file_has_nothing_to_mend() -> None:
    assert codes(GOOD) == []


def test_a_new_file_is_refused_until_every_mark_is_replaced() -> None:
    findings = check_change(new_change("feed_latency").encode())
    assert len(findings) > 40
    assert (findings[0].line, findings[0].message) == (6, "replace «what a person calls it»")
    assert "replace «today's figure»" in [finding.message for finding in findings]
    assert {finding.code for finding in findings} == {"missing"}
    assert all(finding.line for finding in findings)


@pytest.mark.parametrize(
    ("old", "new", "code", "path"),
    [
        ("p99 at most 210 ms", "a lot faster", "vague", "change.goal"),
        ("p99 at most 210 ms", "no more waiting", "vague", "change.goal"),
        ("p99 at most 210 ms", "a lower p99", "vague", "change.goal"),
        ("coalescing lowers latency_p99 from", "coalescing lowers waiting from", "vague", "change.hypothesis"),
        (", because misses no longer queue", "", "vague", "change.hypothesis"),
        ('title = "what a person calls it"', 'title = ""', "missing", "change.title"),
        ('others = "what others did"', "", "missing", "change.role.others"),
        ("q = 0.99", "", "metric", "metrics.latency_p99"),
        ('role = "guardrail"', 'role = "primary"', "primary", "metrics.errors.role"),
        ('role = "primary"', 'role = "secondary"', "primary", "metrics"),
        ("baseline = 0.38", "#", "baseline", "metrics.latency_p99.baseline"),
        ("chosen = true", "", "option", "options"),
        ('because = "why not"', "", "option", "options[0].because"),
        ('accepting = "what it costs us"', "", "option", "options[1].accepting"),
        ("[weights]\nfit = 2 ", "[weights]\nlatency = 2 ", "option", "weights.latency"),
        ("fit = 5", "fit = 1", "option", "options[1]"),
        ('falsified_by = "the metric and the value that would show it is not"', "", "unfalsifiable", "assumptions[0]"),
        ("share = 0.05", "share = 5", "stage", "rollout.stages[2].share"),
        ("share = 0.25", "share = 0.02", "stage", "rollout.stages[3].share"),
        ('bake = "6h"', 'bake = "six hours"', "stage", "rollout.stages[2].bake"),
        ('metric = "errors"', 'metric = "crashes"', "guardrail", "rollout.guardrails[0].metric"),
        ('worse_by = "0.2 pp"', 'worse_by = "0.2"', "guardrail", "rollout.guardrails[0].worse_by"),
        ('worse_by = "0.2 pp"', "above = 0.01", "guardrail", "rollout.guardrails[0].for"),
        ('worse_by = "0.2 pp"', "", "guardrail", "rollout.guardrails[0]"),
        ("units_per_day = 100000", "units_per_day = 10", "untestable", "metrics.latency_p99"),
        ("density = 0.3 ", "#", "untestable", "metrics.latency_p99.density"),
        ("density = 0.3 ", "standard_deviation = 0.4 #", "untestable", "metrics.latency_p99"),
        ("mde = 0.05 ", "mde = 5 ", "untestable", "experiment.mde"),
        ("mde = 0.05 ", "mde = 0.5 ", "untestable", "metrics.latency_p99.target"),
        (f'unit_of_analysis = "user"{" " * 16}# what is randomised, or intervals are too short\nunit_field = "user_id"',
         'unit_of_analysis = "request"', "untestable", "metrics.latency_p99.unit_of_analysis"),
        ("flag = ", "# flag = ", "missing", "rollout.flag"),
        ("time_to_ship = 4, ", "time_to_shop = 4, ", "option", "options"),
        ('worse_by = "0.2 pp"', 'worse_by = "0 pp"', "guardrail", "rollout.guardrails[0].worse_by"),
        ('worse_by = "0.2 pp"', 'below = 0.1\nfor = "10m"', "guardrail", "rollout.guardrails[0]"),
        ('worse_by = "0.2 pp"', 'worse_by = "0.2 pp"\nfor = "ten minutes"', "guardrail", "rollout.guardrails[0].for"),
        ('bake = "6h"', 'bake = "0h"', "stage", "rollout.stages[2].bake"),
        ("mde = 0.05", "#", "untestable", "experiment.mde"),
        ("[privacy]", "[privacy_]", None, ""),
    ],
)  # fmt: skip
def test_each_fault_has_its_finding(old: str, new: str, code: str | None, path: str) -> None:
    assert old in GOOD
    broken = GOOD.replace(old, new, 1)
    if code is None:
        with pytest.raises(
            BrokenDocument, match=r"line 1.*privacy_ is no key of a change file; did you mean 'privacy'"
        ):
            check_change(broken.encode())
    else:
        assert (code, path) in codes(broken)


def test_a_vanity_metric_is_called_one() -> None:
    text = GOOD + (
        '\n[metrics.page_views]\nrole = "secondary"\nkind = "count"\nevent = "page_viewed"\nunit = "views"\n'
        'unit_of_analysis = "user"\nside = "client"\nwindow = "1d"\nsegment = "all"\nbetter = "higher"\n'
    )
    assert codes(text) == [("vanity", "metrics.page_views")]


def test_what_the_traffic_can_show_is_said_beside_what_is_asked() -> None:
    found = check_change(GOOD.replace("units_per_day = 100000", "units_per_day = 100").encode())
    message = next(f.message for f in found if f.path == "metrics.latency_p99")
    # √(0.99 · 0.01) / 0.3 = 0.332; (1.960 + 0.842) · 0.332 · √(2 / 700) = 0.0497
    assert "1,400 units in 14 days show no less than 0.0497 (13.1% of the baseline)" in message
    assert "0.019 is asked for, which needs 9,568 units, 96 days" in message


def test_looking_before_the_end_costs_traffic() -> None:
    text = GOOD.replace("units_per_day = 100000", "units_per_day = 800").encode()
    assert [finding.code for finding in check_change(text) if finding.path == "metrics.latency_p99"] == []
    watched = check_change(text.replace(b"days = 14", b"days = 14\nsequential = true"))
    assert [finding.code for finding in watched if finding.path == "metrics.latency_p99"] == ["untestable"]


def test_a_word_of_praise_beside_a_figure_is_a_warning() -> None:
    for goal, severity in (("a much better p99", "error"), ("a much better p99: 210 ms at most", "warning")):
        found = check_change(GOOD.replace("p99 at most 210 ms", goal).encode())
        assert [(finding.code, finding.severity) for finding in found] == [("vague", severity)]


def test_figures_in_words_are_figures() -> None:
    for goal in (
        "half the median latency",
        "errors fall to zero",
        "a tenth of the loads at once",
        "nobody waits a second",
    ):
        assert codes(GOOD.replace("p99 at most 210 ms", goal)) == []


def test_text_in_guillemets_is_a_language_and_no_gap() -> None:
    assert codes(GOOD.replace("what a person calls it", "un «flux» rapide")) == []


def test_an_arm_is_not_judged_by_what_grows_with_its_share() -> None:
    for kind, unit in (("count", "bookings"), ("rate", "bookings per second")):
        text = GOOD.replace('kind = "quantile"', f'kind = "{kind}"').replace(
            'field = "duration_seconds"\nq = 0.99', ""
        )
        found = check_change(text.replace('unit = "seconds"', f'unit = "{unit}"').encode())
        assert ("untestable", "metrics.latency_p99.kind") in [
            (finding.code, finding.path) for finding in found
        ]


def test_the_latency_of_page_views_is_no_vanity() -> None:
    text = GOOD.replace("latency_p99", "page_view_p99")
    assert codes(text) == []


def test_a_finding_names_its_line() -> None:
    findings = check_change(GOOD.replace("share = 0.05", "share = 5").encode())
    line = next(f.line for f in findings if f.code == "stage")
    assert "stages = [" in GOOD.split("\n")[line - 1]  # inline tables have no line of their own
    findings = check_change(GOOD.replace("q = 0.99", "q = 99").encode())
    assert GOOD.split("\n")[findings[0].line - 1] == "[metrics.latency_p99]"


def test_a_line_is_found_again_in_arrays_and_texts() -> None:
    text = 'a = 1\n[b.c]\nd = """\n[x]\n"""\ne = 2\n[[f]]\ng = 1\n[[f]]\ng = 2\n[f.h]\ni = 1\n'
    lines = line_numbers(text)
    assert [where(lines, path) for path in ("a", "b.c", "b.c.e", "f[0].g", "f[1].g", "f[1].h.i", "f[1].z", "z")] == [
        1, 2, 6, 8, 10, 12, 9, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "missing required field 'change'"),
        (b"[change", "Expected"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"[change]\nname = 3\n", r"line 2: change.name: expected 'str'"),
        (b"[change]\nname = 'a'\nbasline = 1\n", "line 3: change.basline is no key"),
        (b"[change]\nname = 'a'\nnamme = 1\n", "did you mean 'name'"),
        (
            b"[change]\nname='a'\n[[options]]\nname='b'\nkind='buy'\n",
            r"line 5: options\[0\].kind: invalid enum value 'buy'",
        ),
        (b"[change]\nname='a'\n[weights]\nfit = nan\n", "weights.fit is nan"),
        (b"[change]\nname='a'\n[weights]\nfit = 1e999\n", "weights.fit is inf"),
        (b"[change]\nname='a'\n[weights]\nfit = 99999999999999999999\n", "beyond 2"),
        (b"[change]\nname='a'\nname='b'\n", "line 3"),
        (
            "[change]\nname='a'\ntitle='\u202ereversed'\n".encode(),
            r"line 3 holds the hidden character U\+202E",
        ),
        (b"[change]\nname='a'\n# \x00\n", "hidden character U"),
        (b"x = " + b"[" * 500 + b"]" * 500, "nested"),
        (b"[" + b".".join([b"a"] * 50) + b"]\n", "nested more than 8"),
        (b"[change]\nname='a'\ntitle='" + b"x" * 20_000 + b"'", "20,000 characters"),
        (b"[change]\nname='a'\nconstraints=[" + b"'x'," * 2000 + b"]", "more than 1000"),
        (b"x" * 300_000, "larger than"),
        (b"a" + b".a" * 100_000 + b" = 1\n", "line 1 has more than 400 dots"),
        (b"[change]\nname='a'\n[metrics.\"" + b" " * 200_000 + b'"]\n', "up to 100 visible characters"),
        (b"[change]\nname='a'\n[weights]\n\"\\u202Ea\" = 1\n", "visible characters"),
        (b"[change]\nname='a'\ntitle=\"\\u202Ea\"\n", r"change.title holds the hidden character U\+202E"),
        (b"[change]\nname='a'\ntitle=1979-05-27\n", "expected 'str', got 'date'"),
    ],
)
def test_what_is_no_change_file_is_refused_with_its_place(content: bytes, said: str) -> None:
    with pytest.raises(BrokenDocument, match=said):
        parse_change(content)


def test_a_thousand_findings_are_placed_in_the_time_of_one() -> None:
    table = (
        '[metrics.m{}]\nrole="primary"\nkind="quantile"\nevent="e"\nunit="s"\nunit_of_analysis="u"\n'
        'side="server"\nwindow="10m"\nsegment="a"\nbetter="lower"\n'
    )
    text = '[change]\nname="a"\n' + "".join(table.format(number) for number in range(900))
    before = time.process_time()
    assert len(check_change(text.encode())) > 2000
    assert time.process_time() - before < 5  # a scan of the file for each finding took minutes


def test_files_of_many_like_lines_are_compared_without_a_hang() -> None:
    lines = ["\n".join(f"#{number * step % 150}" for number in range(30_000)) for step in (1, 7)]
    moved = compare_changes(*(f"{comments}\n{GOOD}".encode() for comments in lines))
    assert not moved.is_broken
    assert "not compared line by line" in moved.diff


def test_windows_line_ends_and_a_byte_order_mark_are_read() -> None:
    assert parse_change(b"\xef\xbb\xbf[change]\r\nname = 'a'\r\n").change.name == "a"


def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(BrokenDocument, match=r"regular file|cannot be read"):
            read_change(path)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_change_file_or_a_broken_document(content: bytes) -> None:
    try:
        parse_change(content)
    except BrokenDocument as refusal:
        assert "change file" in str(refusal)  # noqa: PT017 - hardly any bytes are one


values = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "kind", "scores"]), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_judged_or_refused(data: st.DataObject) -> None:
    """One value of a good file is replaced by something else; whatever it is, there is an answer."""
    lines = GOOD.split("\n")
    index = data.draw(
        st.sampled_from(
            [i for i, line in enumerate(lines) if " = " in line and not line.startswith((" ", "#"))]
        )
    )
    key = lines[index].partition(" = ")[0]
    lines[index] = f"{key} = {toml(data.draw(values))}"
    try:
        check_change("\n".join(lines).encode())
    except BrokenDocument as refusal:
        assert str(refusal)  # noqa: PT017 - many are refused, some are judged


numbers = st.sampled_from([None, 0.0, 5e-324, 1e-17, 0.05, 0.5, 1.0, 50.0, 1e15, 1e300, -1.0])
rates = st.sampled_from([0.0, 5e-324, 1e-17, 0.05, 0.3, 0.5, 0.8, 0.999999, 1.0, 50.0])
sizes = st.sampled_from([None, -1, 0, 1, 14, 1000, 2**53 - 1])
tables = st.builds(
    MetricTable, kind=st.sampled_from(get_args(Kind)), role=st.sampled_from(get_args(Role)),
    better=st.sampled_from(["lower", "higher"]), design=st.just("controlled"), title=st.just(""), field=st.just("a"),
    q=numbers, baseline=numbers, target=numbers, standard_deviation=numbers, density=numbers, where=st.just(""),
)  # fmt: skip
experiments = st.builds(
    ExperimentTable, alpha=rates, power=rates, split=rates, mde=numbers, non_inferiority=numbers, units_per_day=sizes,
    days=sizes,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(tables, min_size=1, max_size=3),
    experiments,
    st.sampled_from(["10 %", "0.2 pp", "999999 %", "0 %"]),
)
def test_no_number_of_an_experiment_ends_in_anything_but_findings(
    metrics: list[MetricTable], experiment: ExperimentTable, limit: str
) -> None:
    guardrails = tuple(GuardrailTable(metric=f"m{index}", worse_by=limit) for index in range(len(metrics)))
    file = ChangeFile(
        change=parse_change(b"[change]\nname = 'a'").change,
        metrics={f"m{index}": table for index, table in enumerate(metrics)},
        experiment=experiment,
        rollout=RolloutTable(guardrails=guardrails),
    )
    for _, severity, _, message in enough_traffic(file):
        assert severity in ("error", "warning")
        assert "nan" not in message


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08X}" if c.isprintable() else "" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    return str(value) if isinstance(value, int) else repr(value)


def test_percent_and_percentage_points_are_different_units() -> None:
    assert parse_limit("10 %") != parse_limit("10 pp")
    with pytest.raises(InvalidInput, match="such as 10 %"):
        parse_limit("10 percent")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    database = Database(tmp_path / "fairlead.db")
    database.migrate()
    return Ledger(database)


def test_a_file_is_frozen_byte_by_byte_and_twice_is_once(ledger: Ledger) -> None:
    first = freeze_change(GOOD.encode(), ledger)
    assert (first.name, first.version, first.content) == ("feed_latency", 1, GOOD.encode())
    assert freeze_change(GOOD.encode(), ledger) == first
    second = freeze_change(GOOD.replace("target = 0.21", "target = 0.25").encode(), ledger)
    assert (second.version, second.follows) == (2, first.sha256)
    assert ledger.frozen("feed_latency") == second


def test_a_target_that_is_moved_after_a_figure_was_seen_stays_visible(ledger: Ledger) -> None:
    texts = [
        GOOD.replace("target = 0.21", f"target = {target}").encode() for target in (0.21, 0.25, 0.3, 0.35)
    ]
    for text in texts[:2]:
        freeze_change(text, ledger)
    assert moved_promises(ledger, "feed_latency") == ()  # nothing was measured: a plan was mended
    ledger.record_evidence(figure(change="feed_latency"))
    freeze_change(texts[2] + b'\n[reflection]\nsurprised = "much"\n', ledger)
    assert moved_promises(ledger, "feed_latency") == ("metrics.latency_p99.target",)
    assert moved_promises(ledger, "another") == ()


def test_a_file_with_errors_is_not_frozen(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match=r"no figure.*fairlead change check"):
        freeze_change(GOOD.replace("p99 at most 210 ms", "a lot faster").encode(), ledger)
    assert ledger.frozen("feed_latency") is None


def test_what_was_promised_may_not_change_and_what_happened_may_be_added() -> None:
    frozen = GOOD.encode()
    assert compare_changes(frozen, frozen).diff == ""
    grown = compare_changes(
        frozen,
        (
            GOOD + '\n[[incidents]]\nwhat = "rolled back at 5 %"\n\n[reflection]\nsurprised = "much"\n'
        ).encode(),
    )
    assert not grown.is_broken
    assert grown.grown == ("incidents[0].what", "reflection.surprised")
    moved = compare_changes(frozen, GOOD.replace("target = 0.21", "target = 0.35").encode())
    assert moved.broken == ("metrics.latency_p99.target",)
    assert "-target = 0.21" in moved.diff
    reworded = compare_changes(frozen, GOOD.replace("who answers for it", "Ann").encode())
    assert not reworded.is_broken
    assert reworded.reworded == ("change.owner",)
    assert compare_changes(frozen, b"[change").is_broken


def test_an_incident_that_vanishes_has_not_grown() -> None:
    incident = '\n[[incidents]]\nwhat = "rolled back"\ncause = "a leak"\n'
    gone = compare_changes((GOOD + incident).encode(), GOOD.encode())
    assert (gone.is_broken, gone.grown) == (False, ())
    assert gone.reworded == ("incidents[0].what", "incidents[0].cause")


def test_an_owner_of_any_name_is_a_string_of_the_front_matter() -> None:
    text = madr(parse_change(GOOD.replace("who answers for it", "@team: *it* # \\u0022we\\u0022").encode()))
    assert text.split("\n")[2] == r'decision-makers: "@team: *it* # \"we\""'


def test_dropping_a_guardrail_breaks_the_promise() -> None:
    without = re.sub(r"\[\[rollout.guardrails\]\]\n(.+\n)+", "", GOOD)
    assert compare_changes(GOOD.encode(), without.encode()).is_broken


def test_a_decision_record_has_the_sections_of_madr_and_no_markup_of_ours() -> None:
    text = madr(parse_change(GOOD.replace("take what exists", "take *what* <exists>").encode()))
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert headings[:6] == [
        "# what a person calls it",
        "## Context and Problem Statement",
        "## Decision Drivers",
        "## Considered Options",
        "## Decision Outcome",
        "### Consequences",
    ]
    assert r"take \*what\* \<exists\>" in text
    assert 'Chosen option: "build it", because why this one' in text
    assert "If fit weighed" in text


def test_a_name_that_no_flag_could_have_is_refused() -> None:
    for name in ("Feed", "feed-latency", "", "a" * 65, "fé"):
        with pytest.raises(InvalidInput, match="lower case letters"):
            new_change(name)
