"""The request's context, with the deadline of the attempt that is running.

Nested calls, and the header that tells the next service how long it has, ask the ambient context for what
remains. During an attempt that ends before its request does, the true answer is the attempt's. It has to
be in place before the first line of the called function runs, so it is paid for by calls that never
suspend as well, where an eager `RequestContext` with its `Deadline` would be most of the cost of the call.
So the deadline is made when it is read.
"""

from __future__ import annotations

import msgspec

from fairlead.clock import Clock
from fairlead.context import Priority, RequestContext
from fairlead.deadline import Deadline

__all__ = ["AttemptContext"]


class AttemptContext(msgspec.Struct, frozen=True):
    """Stands for a RequestContext that ends at `end`, in `isinstance`, `==` and `dataclasses.replace` as
    well.
    """

    _request: RequestContext
    _end: float
    _clock: Clock

    __dataclass_fields__ = RequestContext.__dataclass_fields__  # replace() looks for them in the type

    @property  # type: ignore[misc]  # read-only; isinstance(), replace(), == and repr() ask for it
    def __class__(self) -> type[RequestContext]:  # type: ignore[override]  # the one it stands for
        return RequestContext

    @property
    def request_id(self) -> str:
        return self._request.request_id

    @property
    def deadline(self) -> Deadline:
        return Deadline(self._end, self._clock)

    @property
    def priority(self) -> Priority:
        return self._request.priority

    @property
    def targeting_key(self) -> str:
        return self._request.targeting_key

    __eq__ = RequestContext.__eq__
    __hash__ = RequestContext.__hash__
    __repr__ = RequestContext.__repr__
