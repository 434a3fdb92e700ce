"""Tells people by webhook: as JSON, or in the form that Slack and those who imitate it take.

A notice is sent in the background, tried again for up to half a minute, and never delays or ends a rollout. The
address of a Slack webhook is its password: it stands in no message.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fairlead.calls import Policy, Retry
from fairlead.calls.httpx import PolicyTransport, transient
from fairlead.errors import FailedStatus, FairleadError, InvalidInput, MissingExtra
from fairlead.rollout.state import RolloutState

try:
    import httpx
except ImportError as missing:
    raise MissingExtra("httpx", "http") from missing

__all__ = ["Webhook"]

NOTICE_SCHEMA = "fairlead.rollout.notice/1"


class Webhook:
    """Posts each notice to one address. Give it to a `Controller` as its notice."""

    def __init__(
        self,
        url: str,
        *,
        form: Literal["json", "slack"] = "json",
        token: str | None = None,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """url: http or https. token: a bearer token. timeout: seconds for a notice, attempts and waits included.

        Raises InvalidInput.
        """
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidInput("webhook: the address cannot be read; write https://host/path") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidInput("webhook: write an address that begins with http:// or https://")
        if form not in ("json", "slack"):
            raise InvalidInput(f"webhook: form {form!r:.40}; json or slack")
        self._url, self._form, self._host = parsed, form, parsed.host
        policy = Policy(
            name=f"webhook {parsed.host}",
            timeout=timeout,
            attempt_timeout=min(5.0, timeout),
            retry=Retry(attempts=5, on=transient),
            # The same sentence twice does less harm than none.
            idempotent=True,
        )
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            transport=PolicyTransport(transport, policy=policy),
            headers=headers,
            trust_env=False,
            follow_redirects=False,
        )

    async def __call__(self, what: str, state: RolloutState) -> None:
        """Sends one notice. Raises FailedStatus when it was not taken."""
        try:
            answer = await self._client.post(
                self._url,
                content=self._body(what, state),
                headers={"content-type": "application/json"},
                extensions={"idempotent": True},
            )
        except (httpx.HTTPError, FairleadError) as error:
            raise FailedStatus(f"webhook {self._host}: {type(error).__name__.lstrip('_')}") from None
        if answer.status_code >= 300:
            raise FailedStatus(
                f"webhook {self._host}: answered {answer.status_code}", status=answer.status_code
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _body(self, what: str, state: RolloutState) -> bytes:
        if self._form == "slack":
            # Its own marks are escaped, so that no name of a metric calls everybody.
            text = what.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return msgspec.json.encode({"text": f"*{state.rollout}* {text}"})
        return msgspec.json.encode(
            {
                "schema": NOTICE_SCHEMA,
                "rollout": state.rollout,
                "what": what,
                "state": state.phase,
                "stage": state.stage,
                "share": state.want.share if state.want else 0.0,
                "reason": state.reason,
            }
        )
