"""What a configuration is made of, and what is refused before it reaches a proxy."""

from __future__ import annotations

import re

import pytest

from fairlead.errors import InvalidInput
from fairlead.rollout.haproxy import HaproxyTraffic, haproxy_config

GIVEN = {
    "name": "feed",
    "bind": "127.0.0.1:8080",
    "map_file": "/etc/haproxy/feed.map",
    "control": ["10.0.0.1:8000", "10.0.0.2:8000"],
    "treatment": ["10.0.0.3:8000"],
}


def config(**changed: object) -> str:
    return haproxy_config(**{**GIVEN, **changed})


def test_each_arm_has_a_backend_with_its_servers():
    assert config().split("\nbackend ")[1:] == [
        "feed_control\n    server control1 10.0.0.1:8000\n    server control2 10.0.0.2:8000\n",
        "feed_treatment\n    server treatment1 10.0.0.3:8000\n",
    ]


def test_an_audience_is_removed_from_everybody_unless_insiders_are_named():
    assert "del-header x-audience\n" in config()
    assert "del-header x-audience unless { src 10.0.0.0/8 fd00::/8 }\n" in config(
        insiders=["10.0.0.0/8", "fd00::/8"]
    )


def test_without_a_log_of_its_own_nothing_of_one_is_written():
    assert not {"FAIRLEAD_LOG_KEY", "fairlead/1", "feed_arm"} & set(re.split(r"[^A-Za-z_/1]", config()))


def test_with_a_log_each_backend_says_which_arm_it_is():
    control, treatment = config(log="127.0.0.1:5140").split("\nbackend ")[1:]
    assert "    http-request set-var(txn.feed_arm) str(control)\n" in control
    assert "    http-request set-var(txn.feed_arm) str(treatment)\n" in treatment


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "Feed"},
        {"name": "feed\n"},
        {"name": ""},
        {"map_file": "/etc/my maps/feed.map"},
        {"map_file": "/etc/feed.map)\n    http-request deny"},
        {"map_file": "/etc/feed.map),str(x"},
        {"map_file": "/etc/feed,1.map"},
        {"bind": "*:80 ssl"},
        {"control": ["10.0.0.1:8000 check"]},
        {"treatment": ["a;b"]},
        {"salt": "feed:"},
        {"salt": ""},
        {"header": "x-user id"},
        {"header": ""},
        {"cookie": "a)"},
        {"insiders": ["everybody"]},
        {"insiders": ["10.0.0.1/8"]},
        {"log": "5140"},
        {"log": "127.0.0.1:5140 local0"},
        {"log": "127.0.0.1:5140\n    http-request deny"},
        {"log": "/dev/log"},
    ],
    ids=range(21),
)
def test_what_would_be_read_as_something_else_is_refused(changed: dict):
    with pytest.raises(InvalidInput):
        config(**changed)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sockets": []},
        {"sockets": "/run/haproxy.sock"},
        {"sockets": ["/run/a.sock", "/run/a.sock"]},
        {"sockets": ["haproxy"]},
        {"sockets": ["host:port"]},
        {"sockets": ["host:99999999"]},
        {"sockets": ["/run/a\n.sock"]},
        {"sockets": ["/run/a.sock"], "map_name": "feed.map; show info"},
        {"sockets": ["/run/a.sock"], "timeout": 0},
        {"sockets": ["/run/a.sock"], "map_file": "/etc/my maps/feed.map"},
    ],
    ids=range(10),
)
def test_unusable_arguments_are_refused(arguments: dict):
    with pytest.raises(InvalidInput):
        HaproxyTraffic(**{"map_file": "/etc/haproxy/feed.map", **arguments})
