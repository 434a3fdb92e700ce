"""gRPC calls that keep a Policy, and servers that know how long their caller will wait.

    channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(policy=...))
    server = grpc.aio.server(interceptors=[DeadlineInterceptor()])

The client hands what remains of the deadline to each attempt, as gRPC's own `grpc-timeout`. The server makes a
RequestContext of it, so that nested calls see it, and refuses what comes too late.

A status says who is at fault. UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, INTERNAL, UNKNOWN and DATA_LOSS
speak against the server; every other one is an answer, which breaker and limit take for a success. Of these a moment
may cure the first three. gRPC has no idempotent methods, so the caller names those that may be sent twice.

Streams of requests are left as they are: one that serves many requests has no deadline of one of them.
"""

from __future__ import annotations

import inspect
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from math import inf
from typing import Any

from fairlead.calls.by_origin import PoliciesByOrigin
from fairlead.calls.circuit_breaker import BreakerPermit
from fairlead.calls.error_family import Family, in_family
from fairlead.calls.expiry import first_step
from fairlead.calls.http_semantics import REQUEST_ID_HEADER, request_id_for
from fairlead.calls.policy import Policy
from fairlead.calls.retry import asked_to_wait
from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import RequestContext, current, request_context
from fairlead.deadline import Deadline
from fairlead.errors import CircuitOpen, DeadlineExceeded, MissingExtra, Overloaded, Refused

try:
    import grpc
    import grpc.aio
except ImportError as missing:
    raise MissingExtra("grpcio", "grpc") from missing

__all__ = ["DeadlineInterceptor", "client_interceptors", "transient"]

_Code = grpc.StatusCode
_FAILURES = frozenset(
    {
        _Code.UNAVAILABLE,
        _Code.RESOURCE_EXHAUSTED,
        _Code.DEADLINE_EXCEEDED,
        _Code.INTERNAL,
        _Code.UNKNOWN,
        _Code.DATA_LOSS,
    }
)
_PASSING = frozenset({_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED, _Code.DEADLINE_EXCEEDED})
_PUSHBACK = "grpc-retry-pushback-ms"
_LONGEST_WAIT = 86_400.0
# gRPC's own timer for the moment may fire this much before ours.
_TIMER_SLACK = 0.005
_METHODS = 4096
# The only sign that grpc gives. Should the words change, calls that were never sent are no longer tried again.
_NO_CONNECTION = "failed to connect to all addresses"


def transient(error: Exception) -> bool:
    """For `Retry(on=transient)`: UNAVAILABLE, RESOURCE_EXHAUSTED or a timeout."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _PASSING
    return isinstance(error, TimeoutError)


def client_interceptors(
    *, policy: Policy | Callable[[str], Policy], idempotent: Collection[str] = ()
) -> list[grpc.aio.ClientInterceptor]:
    """What to hand to a channel as `interceptors`, so that its calls go through the policy.

    policy: for all calls, or a function that makes one for each method, "/package.Service/Method".
    idempotent: methods that may be sent twice. Others are tried again only if no connection came about.

    A call with one answer has the policy whole. A call answered by a stream has its deadline and its breaker: an
    answer half given cannot be tried again. `timeout=` of a call bounds it with all its attempts. What the policy
    raises is an `AioRpcError` too: UNAVAILABLE, RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED.
    """
    policies = PoliciesByOrigin(policy, _METHODS)
    return [_UnaryUnary(policies, frozenset(idempotent)), _UnaryStream(policies)]


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, policies: PoliciesByOrigin, idempotent: frozenset[str]) -> None:
        self._policies = policies
        self._idempotent = idempotent

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = _text(client_call_details.method)
        policy = self._policies.of(method)
        policy = policy.replayable if method in self._idempotent else policy.once

        async def attempt(request: Any) -> Any:
            deadline = current().deadline
            call = await continuation(_for_attempt(client_call_details), request)
            try:
                await call
            except grpc.aio.AioRpcError as error:
                if error.code() is _Code.DEADLINE_EXCEEDED and deadline.remaining() <= _TIMER_SLACK:
                    # grpc's timer for the moment came before the policy's.
                    raise _DeadlineExceeded(f"{policy.name}: no answer in time") from error
                if error.code() in _FAILURES:
                    raise _as_failure(error) from error
            except BaseException:
                call.cancel()  # grpc does so only when it was the wait for the answer that was cancelled
                raise
            return call  # done, well or ill: it raises its own error again when awaited

        try:
            with request_context(_bounded(client_call_details.timeout)):
                return await policy.call(attempt, request)
        except RpcFailure as failure:
            original = failure.__cause__
            if original is None:
                raise
            for note in getattr(failure, "__notes__", ()):
                original.add_note(note)
            raise original from None
        except grpc.aio.AioRpcError:
            raise
        except (Refused, DeadlineExceeded) as error:
            raise in_family(error, _FAMILY) from error.__cause__


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, policies: PoliciesByOrigin) -> None:
        self._policies = policies

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = _text(client_call_details.method)
        policy = self._policies.of(method)
        with request_context(_bounded(client_call_details.timeout)) as context:
            context = replace(context, deadline=policy.deadline())
        try:
            permit = policy.begin_stream(context.deadline)
        except (Refused, DeadlineExceeded) as error:
            raise in_family(error, _FAMILY) from None
        with request_context(context):
            try:
                call = await continuation(_for_attempt(client_call_details), request)
            except BaseException as error:
                _end(permit, error)
                raise
        messages = _Messages(call, permit, policy, context.deadline)
        call.add_done_callback(messages.over)
        return messages.read()


class _Messages:
    """The messages of one stream, whose end is the breaker's outcome, whether or not it is read to there."""

    def __init__(self, call: Any, permit: BreakerPermit | None, policy: Policy, deadline: Deadline) -> None:
        self._call = call
        self._permit = permit
        self._policy = policy
        self._deadline = deadline
        self._awaited = False

    async def read(self) -> AsyncIterator[Any]:
        messages = aiter(self._call)
        try:
            while True:
                self._awaited = True
                message = await anext(messages)
                self._awaited = False
                yield message
        except StopAsyncIteration:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() is _Code.DEADLINE_EXCEEDED and self._deadline.remaining() <= _TIMER_SLACK:
                self._policy.count_late()
                raise _DeadlineExceeded(f"{self._policy.name}: the stream did not end in time") from error
            raise
        finally:
            self._call.cancel()  # its reader may have had enough; does nothing to a call that is over

    def over(self, call: Any) -> None:
        code = None if call.cancelled() else first_step(call.code())  # which does not wait, now
        outcome: BaseException | None = None
        if not isinstance(code, grpc.StatusCode) or (code is _Code.DEADLINE_EXCEEDED and not self._awaited):
            outcome = (
                CancelledError()
            )  # the reader left, or was busy: neither speaks for or against the server
        elif code in _FAILURES:
            outcome = _failure(code, "")
        _end(self._permit, outcome)


def _end(permit: BreakerPermit | None, outcome: BaseException | None) -> None:
    if permit is not None:
        permit.__exit__(None if outcome is None else type(outcome), outcome, None)


def _text(method: bytes | str) -> str:
    return method.decode() if isinstance(method, bytes) else method


def _bounded(timeout: float | None) -> RequestContext:
    """The current context, with the `timeout=` that the caller gave to this call."""
    context = current()
    if timeout is None:
        return context
    return replace(context, deadline=context.deadline.sooner(timeout))


def _for_attempt(details: Any) -> Any:
    context = current()
    remaining = context.deadline.remaining()
    metadata = details.metadata
    request_id = request_id_for(context)
    if request_id is not None and not any(key == REQUEST_ID_HEADER for key, _ in metadata or ()):
        metadata = grpc.aio.Metadata(*(metadata or ()), (REQUEST_ID_HEADER, request_id))
    return details._replace(timeout=None if remaining == inf else max(remaining, 0.0), metadata=metadata)


def _pushback(trailing: Any) -> float | None:
    """Seconds that the server asks to wait, at most a day; infinite if it asks for no retry, None if for nothing."""
    for key, value in trailing or ():
        if key == _PUSHBACK:
            text = _text(value)
            if text.isascii() and text.isdigit() and len(text) <= 18:
                return min(int(text) / 1000, _LONGEST_WAIT)
            return inf  # negative or unreadable: gRFC A6 says not to try again
    return None


class RpcFailure(grpc.aio.AioRpcError):  # type: ignore[misc]  # grpc has no types
    """What retry, breaker and limit see of a failed call; the caller gets the call's own error, its cause."""

    retry_after: float | None = None
    """Infinite if the server asked for no retry: no policy waits that long, so it has none."""
    overloaded = False


class NeverSent(RpcFailure, Refused):
    """No connection came about, so nothing began."""


class RpcTimedOut(RpcFailure, TimeoutError):
    """DEADLINE_EXCEEDED."""


def _as_failure(error: grpc.aio.AioRpcError) -> RpcFailure:
    return _failure(error.code(), error.details() or "", error.trailing_metadata())


def _failure(code: grpc.StatusCode, details: str, trailing: Any = None) -> RpcFailure:
    kind: type[RpcFailure] = RpcFailure
    if code is _Code.DEADLINE_EXCEEDED:
        kind = RpcTimedOut
    elif code is _Code.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        kind = NeverSent
    failure: RpcFailure = kind.__new__(kind)
    _fill(failure, code, details, trailing)
    failure.retry_after = _pushback(trailing)
    failure.overloaded = code is _Code.RESOURCE_EXHAUSTED
    return failure


def _fill(error: Any, code: grpc.StatusCode, details: str, trailing: Any = None) -> None:
    # By hand: grpc's constructor calls the next one in line without the message that Fairlead's errors carry.
    error._code = code
    error._details = details
    error._initial_metadata = None
    error._trailing_metadata = trailing
    error._debug_error_string = None


# What the policy raises, in two families at once: for code that knows Fairlead, and for `except AioRpcError`.


class _CircuitOpen(CircuitOpen, grpc.aio.AioRpcError):  # type: ignore[misc]  # grpc has no types
    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        Exception.__init__(self, message)
        self.retry_after = retry_after
        _fill(self, _Code.UNAVAILABLE, message)


class _Overloaded(Overloaded, grpc.aio.AioRpcError):  # type: ignore[misc]  # grpc has no types
    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        Exception.__init__(self, message)
        self.retry_after = retry_after
        _fill(self, _Code.RESOURCE_EXHAUSTED, message)


class _DeadlineExceeded(DeadlineExceeded, grpc.aio.AioRpcError):  # type: ignore[misc]  # grpc has no types
    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        _fill(self, _Code.DEADLINE_EXCEEDED, message)


_FAMILY: Family = (_CircuitOpen, _Overloaded, _DeadlineExceeded)


class DeadlineInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Runs each handler in a RequestContext with its caller's deadline and `x-request-id`; refuses what is too late.

    DeadlineExceeded from a handler ends the call as DEADLINE_EXCEEDED, Overloaded as RESOURCE_EXHAUSTED, CircuitOpen
    as UNAVAILABLE; `retry_after` goes along as `grpc-retry-pushback-ms`. What the messages say stays here: they name
    dependencies. Handlers must be coroutine functions or asynchronous generators; grpc runs others on threads of its
    own, and those are left as they are.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            if inspect.isasyncgenfunction(behaviour):
                wrapped: Any = self._stream(behaviour, handler_call_details)
            elif inspect.iscoroutinefunction(behaviour):
                wrapped = self._single(behaviour, handler_call_details)
            else:
                return handler
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
            if not inspect.iscoroutinefunction(behaviour):
                return handler
            wrapped = self._single(behaviour, handler_call_details)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, behaviour: Any, details: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            with request_context(self._context(context, details)) as opened:
                try:
                    opened.deadline.check(_text(details.method))
                    return await behaviour(request, context)
                except (Refused, DeadlineExceeded) as error:
                    await _abort(context, error)

        return handle

    def _stream(self, behaviour: Any, details: Any) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            with request_context(self._context(context, details)) as opened:
                try:
                    opened.deadline.check(_text(details.method))
                    async with aclosing(behaviour(request, context)) as messages:
                        async for message in messages:
                            yield message
                except (Refused, DeadlineExceeded) as error:
                    await _abort(context, error)

        return handle

    def _context(self, context: Any, details: Any) -> RequestContext:
        remaining = context.time_remaining()
        deadline = (
            Deadline.never(self._clock) if remaining is None else Deadline.after(remaining, self._clock)
        )
        given = dict(details.invocation_metadata or ()).get(REQUEST_ID_HEADER, "")
        found = RequestContext(request_id=_text(given), deadline=deadline)
        return found if request_id_for(found) else replace(found, request_id="")


async def _abort(context: Any, error: Refused | DeadlineExceeded) -> None:
    if isinstance(error, DeadlineExceeded):
        await context.abort(_Code.DEADLINE_EXCEEDED, "the deadline passed")
        return
    wait = min(asked_to_wait(error), _LONGEST_WAIT)
    trailing = () if error.retry_after is None else ((_PUSHBACK, str(int(wait * 1000))),)
    if isinstance(error, CircuitOpen):
        await context.abort(_Code.UNAVAILABLE, "a dependency is not available", trailing)
    else:
        await context.abort(_Code.RESOURCE_EXHAUSTED, "overloaded", trailing)
