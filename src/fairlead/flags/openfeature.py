"""Fairlead's flags behind OpenFeature's API, for services that speak that already.

    OpenFeature.set_provider(FairleadProvider(delivery))

The SDK merges contexts and runs hooks; here a flag is evaluated, in this process, and what happens to its document
becomes the provider's events:

    NOT_READY → initialize → READY ⇄ STALE     the document was not confirmed for too long, and answers nevertheless
                    │          ⇅
                    ├────→ ERROR               a document was refused, or there is none to answer with yet
                    └────→ FATAL               the control plane refused the token, and there is nothing to answer with

A flag's metadata inherits the document's, so `version` says which document answered.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from fairlead.clock import SYSTEM_CLOCK, Clock
from fairlead.context import current
from fairlead.errors import FailedStatus, InvalidInput, MissingExtra
from fairlead.flags.delivery import FlagDelivery
from fairlead.flags.delivery_status import DeliveryNotice
from fairlead.flags.evaluate import Evaluation, EvaluationContext, Reason
from fairlead.flags.flag import FlagType, FlagValue, quoted
from fairlead.flags.flag_set import FlagSet
from fairlead.telemetry import EventSink, Tracked

try:
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext as OpenFeatureContext
    from openfeature.event import EventDetails, ProviderEvent, ProviderEventDetails
    from openfeature.exception import ErrorCode, GeneralError, ParseError, ProviderFatalError
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType
    from openfeature.flag_evaluation import Reason as OpenFeatureReason
    from openfeature.provider import AbstractProvider, Metadata
    from openfeature.track import TrackingEventDetails
except ImportError as missing:
    raise MissingExtra(missing.name or "openfeature", "openfeature") from missing

__all__ = ["FairleadProvider"]

_NAME = "fairlead"
_REASONS = {reason: OpenFeatureReason(reason.value) for reason in Reason}
_MOST_ATTRIBUTES = 32
_LONGEST = 256
# The default's type is the type that is asked for; the caller's own may be of another, or None.
_ASKS: Mapping[FlagType, FlagValue] = {
    FlagType.BOOLEAN: False,
    FlagType.STRING: "",
    FlagType.NUMBER: 0,
    FlagType.OBJECT: {},
}

_Value = TypeVar("_Value")


class FairleadProvider(AbstractProvider):
    """Answers OpenFeature's clients from `flags`, with every reason and error code that the specification has for it.

    flags: a FlagSet, or a FlagDelivery that keeps one up to date. A delivery that is not entered yet is entered by
        `initialize`, on a thread of its own, and left by `shutdown`.
    sink: receives a `Tracked` for each call of `track`; None drops them. Exposures are the FlagSet's own.

    An integer is answered only by a flag whose variants are all whole numbers: a flag that errs for half of the users
    would be found too late.
    """

    def __init__(
        self, flags: FlagSet | FlagDelivery, *, sink: EventSink | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__()
        self._delivery = flags if isinstance(flags, FlagDelivery) else None
        self._flags = flags.flags if isinstance(flags, FlagDelivery) else flags
        self._sink = sink
        self._clock = clock
        self._entered = False
        self._ready = self._shut = False
        self._stop_listening: Callable[[], None] | None = None

    def get_metadata(self) -> Metadata:
        return Metadata(name=_NAME)

    def initialize(self, evaluation_context: OpenFeatureContext) -> None:
        """Returns once there is a document to answer with; blocks for the delivery's `start_timeout` at most.

        Raises what the SDK makes its ERROR or FATAL of when there is none. The delivery goes on trying.
        """
        delivery = self._delivery
        if delivery is None:
            self._ready = True
            return
        self._shut = False
        if not delivery.running:
            delivery.__enter__()
            self._entered = True
        if self._shut:  # by another thread meanwhile, as the SDK does with a provider that was replaced
            self.shutdown()
            raise GeneralError("shut down while it was initialised")
        if self._stop_listening is None:
            self._stop_listening = delivery.listen(self._notice)
            # The SDK says READY when this returns, also where the document is stale from the start.
            api.add_handler(ProviderEvent.PROVIDER_READY, self._said_ready)
        if self._has_none(delivery):
            error = delivery.error
            what = str(error) if error else f"{delivery.status.place}: no flag document yet"
            if isinstance(error, FailedStatus) and error.status in (401, 403):
                raise ProviderFatalError(what)
            raise ParseError(what) if isinstance(error, InvalidInput) else GeneralError(what)
        self._ready = True

    @staticmethod
    def _has_none(delivery: FlagDelivery) -> bool:
        return (
            delivery.source is not None
            and delivery.status.source == "initial"
            and not delivery.flags.document.flags
        )

    def shutdown(self) -> None:
        """Stops following. Flags that are still asked answer from the last document."""
        self._ready, self._shut = False, True
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
            with contextlib.suppress(ValueError):  # cleared together with all others
                api.remove_handler(ProviderEvent.PROVIDER_READY, self._said_ready)
        if self._delivery is not None and self._entered:
            self._entered = False
            self._delivery.__exit__(None, None, None)

    def _notice(self, notice: DeliveryNotice) -> None:
        if notice.kind == "changed":
            if not self._ready:  # initialize found nothing to answer with
                self._ready = True
                self.emit_provider_ready(ProviderEventDetails())
            details = ProviderEventDetails(flags_changed=list(notice.flags), metadata=dict(self._version()))
            self.emit_provider_configuration_changed(details)
        elif notice.kind == "stale":
            self.emit_provider_stale(ProviderEventDetails(message=notice.message))
        elif notice.kind == "error":
            self.emit_provider_error(
                ProviderEventDetails(message=notice.message, error_code=ErrorCode.PARSE_ERROR)
            )
        else:
            self._ready = True
            self.emit_provider_ready(ProviderEventDetails())

    def _said_ready(self, details: EventDetails) -> None:
        delivery = self._delivery
        if delivery is not None and details.provider_name == _NAME and self._ready:
            status = delivery.status
            if status.stale:
                message = f"{status.place}: not confirmed for {status.age_seconds:.0f} s"
                self.emit_provider_stale(ProviderEventDetails(message=message))

    def _version(self) -> Mapping[str, bool | str | int | float]:
        assert self._delivery is not None  # noqa: S101  # only a delivery sends notices
        status = self._delivery.status
        return {"epoch": status.epoch, "version": status.version, "source": status.source}

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: OpenFeatureContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, evaluation_context, FlagType.BOOLEAN, _as_it_is)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: OpenFeatureContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, evaluation_context, FlagType.STRING, _as_it_is)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: OpenFeatureContext | None = None
    ) -> FlagResolutionDetails[int]:
        flag = self._flags.document.flags.get(flag_key)
        if flag is not None and flag.type is FlagType.NUMBER:
            for name, value in flag.variants.items():
                if isinstance(value, float) and not value.is_integer():
                    return _failed(
                        default_value,
                        ErrorCode.TYPE_MISMATCH,
                        f"flag {quoted(flag_key)} has variant {quoted(name)}, which is no whole number",
                    )
        return self._resolve(flag_key, default_value, evaluation_context, FlagType.NUMBER, int)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: OpenFeatureContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, default_value, evaluation_context, FlagType.NUMBER, float)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: OpenFeatureContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        return self._resolve(flag_key, default_value, evaluation_context, FlagType.OBJECT, _copied)

    def _resolve(
        self,
        name: str,
        default: _Value,
        given: OpenFeatureContext | None,
        type: FlagType,
        convert: Callable[[Any], _Value],
    ) -> FlagResolutionDetails[_Value]:
        context = EvaluationContext()
        if given is not None:
            context = EvaluationContext(targeting_key=given.targeting_key or "", attributes=given.attributes)
        evaluation = self._flags.evaluate(name, context, _ASKS[type])
        if evaluation.reason is Reason.ERROR:
            return _failed(default, self._code(name, type), evaluation.detail)
        return FlagResolutionDetails(
            value=default if evaluation.variant is None else convert(evaluation.value),
            reason=_REASONS[evaluation.reason],
            variant=evaluation.variant,
            flag_metadata=self._metadata(name, evaluation),
        )

    def _code(self, name: str, type: FlagType) -> ErrorCode:
        flag = self._flags.document.flags.get(name)
        if flag is None:
            return ErrorCode.FLAG_NOT_FOUND
        return ErrorCode.GENERAL if flag.type is type else ErrorCode.TYPE_MISMATCH

    def _metadata(self, name: str, evaluation: Evaluation) -> Mapping[str, Any]:
        document = self._flags.document
        flag = document.flags.get(name)
        own = {} if flag is None else flag.metadata
        detail = {"detail": evaluation.detail} if evaluation.detail else {}
        return MappingProxyType({**document.metadata, **own, **detail})

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: OpenFeatureContext | None = None,
        tracking_event_details: TrackingEventDetails | None = None,
    ) -> None:
        """Hands a `Tracked` to the sink: an outcome that an experiment can count by unit. Never raises."""
        if self._sink is None:
            return
        details = tracking_event_details or TrackingEventDetails()
        value = details.value
        key = evaluation_context.targeting_key if evaluation_context is not None else None
        attributes = list(details.attributes.items())[:_MOST_ATTRIBUTES]
        self._sink.emit(
            Tracked(
                at_utc_seconds=self._clock.utc(),
                request_id=current().request_id,
                name=str(tracking_event_name)[:_LONGEST],
                targeting_key=str(key or ""),
                value=float(value) if isinstance(value, int | float) and math.isfinite(value) else None,
                attributes={str(name)[:_LONGEST]: _text(each) for name, each in attributes},
            )
        )


def _failed(default: _Value, code: ErrorCode, message: str) -> FlagResolutionDetails[_Value]:
    return FlagResolutionDetails(
        value=default, error_code=code, error_message=message, reason=OpenFeatureReason.ERROR
    )


def _as_it_is(value: Any) -> Any:
    return value


def _copied(value: Any) -> Any:
    """A plain copy, the caller's own: the SDK takes no other mappings, and the document's may not be changed."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_copied(item) for item in value]
    return value


def _text(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:_LONGEST]
