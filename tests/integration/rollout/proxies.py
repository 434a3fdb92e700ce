"""A HAProxy with two services behind it that say what reached them, and users who ask it."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

from fairlead.rollout.haproxy import HaproxyTraffic, haproxy_config
from fairlead.testing import HaproxyServer

_SERVICE = """
frontend {port}_{arm}
    bind abns@fairlead-{port}-{arm}
    http-request return status 200 content-type text/plain lf-string "{arm} %[hdr(x-variant)] %[hdr(x-audience)]"
"""


def proxy(map_file: Path, *, insiders: tuple[str, ...] = ("127.0.0.0/8",), **options: str) -> HaproxyServer:
    """Not started yet. Its services answer with their arm, and with the headers that they were given."""

    def configuration(port: int) -> str:
        arms = {arm: [f"abns@fairlead-{port}-{arm}"] for arm in ("control", "treatment")}
        text = haproxy_config(
            "feed", bind=f"127.0.0.1:{port}", map_file=str(map_file), insiders=insiders, **arms, **options
        )
        return text + "".join(_SERVICE.format(port=port, arm=arm) for arm in arms)

    return HaproxyServer(configuration)


def driver(map_file: Path, *servers: HaproxyServer, timeout: float = 1.0) -> HaproxyTraffic:
    return HaproxyTraffic(
        map_file,
        sockets=[server.socket for server in servers],
        timeout=timeout,
    )


class User:
    """Asks over one kept connection, and once more where that was closed under the question.

    A process on its way out after a reload closes its idle connections, at any moment: HTTP clients ask again
    then what is safe to repeat (RFC 9112, section 9.3.1).
    """

    def __init__(self, server: HaproxyServer) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5.0)

    def asks(self, **headers: str | bytes) -> list[str]:
        """Arm that answered, x-variant and x-audience that reached it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            status, text = self._answer(named)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            status, text = self._answer(named)
        assert status == 200, text
        return text.split(" ")

    def _answer(self, headers: dict[str, str | bytes]) -> tuple[int, str]:
        try:
            self._connection.request("GET", "/", headers=headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()
