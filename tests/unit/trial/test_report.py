"""The page: whole, safe to open, and complete for someone who was not there."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import msgspec
import pytest

from fairlead.trial import Arm, Plan, Settings
from fairlead.trial.conclude import conclude
from fairlead.trial.report import render_report, write_report
from fairlead.trial.result import EvidenceFile, Result
from fairlead.trial.walk import Recorded

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "<script>alert('x')</script>\"&<b onclick=y>"


class Page(HTMLParser):
    """Every start tag, and what was left open or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def rendered(paper: SimpleNamespace, tmp_path: Path):
    def make(recorded: Recorded | None = None, **change: object) -> tuple[Result, str]:
        recorded = recorded if recorded is not None else paper.complete()
        result = conclude(paper.system(targets=[paper.target()]), Settings(), recorded, tmp_path)
        result = msgspec.structs.replace(result, **change)
        return result, render_report(result, recorded)

    return make


def test_page_is_balanced_html(rendered):
    _, text = rendered()
    assert Page(text).faults == []


def test_every_picture_is_xml_and_has_its_table(rendered):
    _, text = rendered()
    figures = re.findall(r"<figure\b.*?</figure>", text, flags=re.S)
    assert len(figures) == 5  # p99 by phase, two timelines, a CDF for each of two phases
    for figure in figures:
        (picture,) = re.findall(r"<svg\b.*?</svg>", figure, flags=re.S)
        ElementTree.fromstring(picture)  # noqa: S314 - the text is our own
        assert "<table" in figure


def test_style_is_allowed_by_its_hash_and_nothing_else_is(rendered):
    _, text = rendered()
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for tag, attributes in Page(text).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_page_asks_nothing_of_the_network_and_runs_nothing(rendered):
    _, text = rendered()
    for tag, attributes in Page(text).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"style", "src"}, (tag, name)
            if name in {"href", "xlink:href"}:
                assert (value or "").startswith("#"), (tag, value)
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.S)
    assert "url(" not in style
    assert "@import" not in style


def test_every_definition_stands_on_the_page(rendered):
    result, text = rendered()
    page = Page(text)
    for metric in result.metrics:
        assert metric.definition in page.text
        assert metric.name in page.text


def with_hostile_phases(recorded: Recorded, paper: SimpleNamespace) -> Plan:

    phases = tuple(replace(phase, title=phase.title + HOSTILE) for phase in paper.phases)
    return replace(recorded.plan, phases=phases)


def test_hostile_names_stay_text(paper: SimpleNamespace, tmp_path: Path):
    arms = (
        Arm(name=HOSTILE, variant="control"),
        Arm(name="b" + HOSTILE, variant="treatment"),
        Arm(name="c" + HOSTILE, variant="treatment", without=(HOSTILE,)),
    )
    recorded = paper.recorded([(arm, 0, paper.steady()) for arm in arms], arms)
    recorded.plan = with_hostile_phases(recorded, paper)
    result = conclude(paper.system(targets=[paper.target()]), Settings(), recorded, tmp_path)
    hostile = msgspec.structs.replace(
        result,
        id=HOSTILE,
        title=HOSTILE,
        summary=HOSTILE,
        fairlead_version=HOSTILE,
        workload={HOSTILE: HOSTILE},
        simulated=(HOSTILE,),
        validity=msgspec.structs.replace(result.validity, valid=False, reasons=(HOSTILE,)),
        machine=msgspec.structs.replace(result.machine, cpu=HOSTILE, system=HOSTILE, python=HOSTILE),
        metrics=tuple(
            msgspec.structs.replace(each, title=HOSTILE, definition=HOSTILE) for each in result.metrics
        ),
        targets=tuple(
            msgspec.structs.replace(each, statement=HOSTILE, source=HOSTILE, wording=HOSTILE)
            for each in result.targets
        ),
        evidence=(EvidenceFile(path=HOSTILE, bytes=1, sha256=HOSTILE),),
    )
    page = Page(render_report(hostile, recorded))
    assert page.faults == []
    assert not {tag for tag, _ in page.tags} & {"script", "b onclick=y"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert('x')</script>") >= 12


def test_page_of_a_run_without_turns_says_that_it_is_not_valid(paper: SimpleNamespace, rendered):
    _, text = rendered(paper.recorded([]))
    page = Page(text)
    assert page.faults == []
    assert "The run is not valid: do not use its figures." in page.text
    assert "no arm went through a whole cycle" in page.text


def test_page_of_a_run_with_one_arm_complete_still_renders(paper: SimpleNamespace, rendered):
    _, text = rendered(paper.recorded([(paper.arms[0], 0, paper.steady())]))
    page = Page(text)
    assert page.faults == []
    assert "the treatment has no figure" in page.text


def test_page_of_a_run_in_which_nothing_was_answered_still_renders(paper: SimpleNamespace, rendered):
    nothing = paper.samples([])
    _, text = rendered(paper.recorded([(arm, 0, nothing) for arm in paper.arms]))
    assert Page(text).faults == []


def test_valid_run_says_how_punctual_it_was(rendered):
    _, text = rendered()
    assert "The run is valid." in text
    assert "p99 send lag of 1 ms" in text


def test_evidence_is_listed_with_its_hash(rendered):
    _, text = rendered(evidence=(EvidenceFile(path="events/a.jsonl", bytes=1234, sha256="ab" * 32),))
    assert "events/a.jsonl" in text
    assert "1,234" in text
    assert "ab" * 32 in text


def test_page_is_written_whole(paper: SimpleNamespace, rendered, tmp_path: Path):
    result, text = rendered()
    write_report(result, paper.complete(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == text


def test_what_is_simulated_and_how_it_was_measured_are_on_the_page(rendered):
    result, text = rendered()
    page = Page(text)
    for line in (*result.simulated, *result.workload.values()):
        assert line in page.text
