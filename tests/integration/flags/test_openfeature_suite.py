"""OpenFeature's own gherkin suite, against FairleadProvider: every scenario of every file but those named here.

The parser is OpenFeature's upstream, Cucumber's `gherkin-official`: it expands outlines, backgrounds and tables, and
what is left is a list of sentences. pytest-bdd and behave stand on the same parser, and would bring a second way to
write fixtures (with Mako and parse), or a second runner beside pytest, for forty lines that are here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gherkin.parser import Parser
from gherkin.pickles.compiler import Compiler

from fairlead.flags import write_flag_file
from tests.integration.flags.openfeature_steps import World, document_of
from tests.integration.flags.servers import FlagServer
from tests.unit.flags.documents import document

SUITE = Path(__file__).resolve().parents[4] / "shared" / "conformance" / "openfeature"

OPTIONAL = {"@reason-codes-cached": "the provider evaluates in this process and caches nothing"}
"""The suite tags what a provider may leave out. By tag: why it is not run."""


def scenarios() -> Iterator[tuple[str, list[dict[str, Any]], set[str]]]:
    """Name, steps and tags of each."""
    for path in sorted(SUITE.glob("*.feature")):
        feature = Parser().parse(path.read_text(encoding="utf-8"))
        feature["uri"] = path.name
        for number, each in enumerate(Compiler().compile(feature), 1):
            tags = {tag["name"] for tag in each["tags"]}
            yield f"{path.stem}-{number:03}-{each['name']}", each["steps"], tags


ALL = list(scenarios())
RUN = {name: steps for name, steps, tags in ALL if not tags & OPTIONAL.keys()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlagServer]:
    path = tmp_path_factory.mktemp("flags") / "flags.json"
    write_flag_file(path, document())
    with FlagServer(path) as server:
        yield server


@pytest.fixture
def world(server: FlagServer, tmp_path: Path) -> Iterator[World]:
    suite = json.loads((SUITE / "test-flags.json").read_text(encoding="utf-8"))
    world = World(document_of(suite), server, tmp_path)
    try:
        yield world
    finally:
        world.close()


# The suite is OpenFeature's and lies beside the repository, not in it: where it does not there is no test, rather than
# one that is skipped.
if SUITE.is_dir():

    @pytest.mark.parametrize("name", RUN)
    def test_scenario(name: str, world: World) -> None:
        for each in RUN[name]:
            table = each.get("argument", {}).get("dataTable")
            rows = [[cell["value"] for cell in row["cells"]] for row in table["rows"]] if table else None
            world.run(each["text"], rows)

    def test_the_whole_suite_was_found_and_nothing_but_what_is_optional_is_left_out() -> None:
        files = {name.partition("-")[0] for name in RUN}
        assert files == {"evaluation", "evaluation_v2", "hooks", "contextMerging", "metadata"}
        left_out = [name for name, _, tags in ALL if tags & OPTIONAL.keys()]
        assert [name.partition("-")[2][4:] for name in left_out] == ["CACHED reason", "CACHED reason"]
        assert len(RUN) >= 120
