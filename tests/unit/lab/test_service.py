from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.errors import InvalidInput
from fairlead.lab import HttpReady, Service, TcpReady, Topology


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("name: ", {"name": "Feed"}),
        ("name: ", {"name": "../feed"}),
        ("name: ", {"name": ""}),
        ("argv of feed", {"argv": "python -m feed"}),
        ("argv of feed", {"argv": []}),
        ("NUL", {"argv": ["a\0b"]}),
        ("port of feed", {"port": 65536}),
        ("port of feed", {"port": -1}),
        ("grace of feed", {"grace": float("nan")}),
        ("grace of feed", {"grace": 61.0}),
        ("ready_within of feed", {"ready_within": 0.0}),
        ("use HttpReady", {"argv": ["feed", "--fd", "{fd}"], "ready": TcpReady()}),
    ],
)
def test_a_wrong_service_is_refused_with_the_reason(message: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=message):
        Service(**{"name": "feed", "argv": ["feed"], **settings})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("path", ["healthz", "/a b", "/a\r\nx: y", ""])
def test_a_health_path_that_would_break_the_request_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="path: "):
        HttpReady(path=path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "{cache.port}"], "no service 'cache'"),
        (["x", "{port:grpc}"], "no port named 'grpc'"),
        (["x", "{url:grpc}"], "no port named 'grpc'"),
        (["x", "{fd}", "{source.fd}"], "only its own"),
    ],
)
def test_a_placeholder_that_names_nothing_is_refused_before_anything_starts(
    argv: list[str], message: str
) -> None:
    services = [Service(name="source", argv=["y", "{fd}"]), Service(name="feed", argv=argv)]
    with pytest.raises(InvalidInput, match=message):
        Topology(services, log_directory=Path("/nonexistent"))


def test_braces_that_are_not_placeholders_are_left_alone() -> None:
    Topology(
        [Service(name="feed", argv=["x", '{"json": {}}', "{other}"])], log_directory=Path("/nonexistent")
    )


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="a name of its own"):
        Topology(
            [Service(name="a", argv=["x"]), Service(name="a", argv=["x"])], log_directory=Path("/nonexistent")
        )


def test_asking_for_a_service_that_is_not_there_names_those_that_are() -> None:
    topology = Topology([Service(name="feed", argv=["x"])], log_directory=Path("/nonexistent"))
    with pytest.raises(InvalidInput, match="it has feed"):
        topology["cache"]
