from __future__ import annotations

import pytest

from fairlead.cli.extras import parse_needs


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.0", "typer": "0.15.1rc1", "rich": "9"}

    def version(package: str) -> str:
        from importlib.metadata import PackageNotFoundError

        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr("fairlead.cli.extras.version", version)


def test_gathering_extra_has_the_needs_of_all():
    needs = parse_needs(
        [
            "msgspec>=0.19",
            'typer>=0.15; extra == "cli"',
            'numpy>=2.0; extra == "analysis"',
            'fairlead[analysis,cli]; extra == "try"',
            'fairlead[try]; extra == "all"',
        ]
    )
    assert {extra: [need.package for need in each] for extra, each in needs.items()} == {
        "cli": ["typer"],
        "analysis": ["numpy"],
        "try": ["numpy", "typer"],
        "all": ["numpy", "typer"],
    }


@pytest.mark.parametrize(
    ("line", "satisfied"),
    [
        ("numpy>=2.0; extra == 'x'", True),
        ("numpy>=2; extra == 'x'", True),
        ("numpy>=2.0.1; extra == 'x'", False),
        ("numpy; extra == 'x'", True),
        ("numpy<3,>=1.26; extra == 'x'", True),
        ("rich>=13.9; extra == 'x'", False),
        ("typer>=0.15; extra == 'x'", True),
        ("absent>=1; extra == 'x'", False),
    ],
)
def test_need_is_satisfied_from_its_lowest_version_on(line: str, satisfied: bool):
    ((need,),) = parse_needs([line]).values()
    assert need.satisfied is satisfied


def test_extras_that_gather_each_other_end():
    needs = parse_needs(['fairlead[b]; extra == "a"', 'fairlead[a]; extra == "b"', 'numpy; extra == "a"'])
    assert [need.package for need in needs["b"]] == ["numpy"]
