"""Recorded traffic, sent again: the bursts, the hot keys and the odd requests that invented load lacks.

Redaction left tokens where people were. Here each distinct token becomes a number, and a number becomes whatever
the service under test knows: a test user, a made-up id. Whoever asked often still asks often.

A recording of a share of the traffic, replayed as it is, is that share of the load. `speed` squeezes time, which
raises the rate and keeps the order, and shortens every pause alike: think times and expiries shrink with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

from fairlead.errors import InvalidInput, MissingExtra
from fairlead.lab.limits import LONGEST_RUN, MOST_REQUESTS, number_within
from fairlead.lab.load import RequestSpec
from fairlead.lab.schedule import Schedule
from fairlead.telemetry import ReadReport, RequestRecorded, read_events

try:
    import numpy as np
except ImportError as missing:
    raise MissingExtra("numpy", "lab") from missing

__all__ = ["Recording"]

_TOKEN = re.compile(r"\[\w+:([a-z2-7]{16})\]")


class Recording:
    """Requests in the order of their arrival, ready for `drive`.

    >>> seen = [
    ...     RequestRecorded(at_utc_seconds=at, method="GET", route="/f/{user}", target=f"/f/[personal:{who * 16}]")
    ...     for at, who in ((7.0, "a"), (7.5, "b"), (9.0, "a"))
    ... ]
    >>> recording = Recording(seen, substitute=lambda number: f"user-{number}")
    >>> recording.schedule().offsets.tolist(), [recording.request(row).path for row in range(3)]
    ([0.0, 0.5, 2.0], ['/f/user-0', '/f/user-1', '/f/user-0'])
    """

    def __init__(self, requests: list[RequestRecorded], *, substitute: Callable[[int], str] = str) -> None:
        """requests: in any order. substitute: what stands for the i-th distinct token, from 0, in paths and bodies.

        Raises InvalidInput for a recording that is empty, covers more than a day, or has more than 10,000,000 requests.
        """
        if not requests:
            raise InvalidInput("the recording holds no request; was it recorded with RecordingMiddleware?")
        if len(requests) > MOST_REQUESTS:
            raise InvalidInput(
                f"the recording holds {len(requests):,} requests; at most {MOST_REQUESTS:,} are replayed"
            )
        self._requests = sorted(requests, key=lambda request: request.at_utc_seconds)
        self._substitute = substitute
        self._numbers: dict[str, int] = {}
        span = self._requests[-1].at_utc_seconds - self._requests[0].at_utc_seconds
        self.duration = number_within("the recording's span", span, 0.0, LONGEST_RUN)
        """Seconds from the first request to the last."""
        # By the order of arrival, so that a test that looks at row 0 finds number 0.
        self._specs = [self._spec(request) for request in self._requests]

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        substitute: Callable[[int], str] = str,
        report: ReadReport | None = None,
    ) -> Recording:
        """The recorded requests among the events in a directory of segments, or in one segment; as `read_events`."""
        found = [event for event in read_events(path, report=report) if isinstance(event, RequestRecorded)]
        return cls(found, substitute=substitute)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def share(self) -> float:
        """How much of the traffic was recorded, 0-1: requests over what they stand for."""
        return len(self._requests) / sum(1 / request.inclusion_probability for request in self._requests)

    @property
    def rate(self) -> float:
        """Requests per second that the service had, over the recording's span: recorded, divided by `share`."""
        return len(self._requests) / self.share / self.duration if self.duration else float("nan")

    def schedule(self, *, speed: float = 1.0) -> Schedule:
        """When each is due: `keys` number the distinct requests, `users` the distinct users.

        speed: seconds of the recording in one second of the replay, above 0. `1 / recording.share` replays a share
        at the whole rate.
        """
        speed = number_within("speed", speed, 0.0, 1e6, above=True)
        first = self._requests[0].at_utc_seconds
        keys: dict[tuple[str, str, str], int] = {}
        users: dict[str, int] = {}
        offsets = np.array([(request.at_utc_seconds - first) / speed for request in self._requests])
        return Schedule(
            offsets=offsets,
            keys=np.array(
                [keys.setdefault((each.method, each.target, each.body), len(keys)) for each in self._requests]
            ),
            users=np.array([users.setdefault(each.user, len(users)) for each in self._requests]),
            duration=max(float(offsets[-1]), 1e-3),
        )

    def request(self, row: int) -> RequestSpec:
        """What is sent for one row of the schedule: `drive(recording.schedule(), recording.request)`."""
        return self._specs[row]

    def _spec(self, request: RequestRecorded) -> RequestSpec:
        path, _, query = request.target.partition("?")
        target = self._filled(unquote(path), "/:@!$&'()*+,;=~")
        if query:
            target += "?" + "&".join(
                [
                    "=".join(
                        [self._filled(unquote(part.replace("+", " ")), "") for part in pair.split("=", 1)]
                    )
                    for pair in query.split("&")
                ]
            )
        return RequestSpec(
            method=request.method,
            path=target,
            headers=request.headers,
            body=_TOKEN.sub(self._stand_in, request.body).encode() if request.body else None,
        )

    def _filled(self, text: str, safe: str) -> str:
        return quote(_TOKEN.sub(self._stand_in, text), safe=safe)

    def _stand_in(self, token: re.Match[str]) -> str:
        return self._substitute(self._numbers.setdefault(token[1], len(self._numbers)))
