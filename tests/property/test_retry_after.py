"""Whatever a server writes into Retry-After, the wait is none or bounded."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.calls.http_semantics import parse_retry_after

HEADERS = st.one_of(
    st.text(max_size=80),
    st.from_regex(r"\A[0-9A-Za-z,: +-]{0,64}\Z"),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
)


@given(value=HEADERS, date=st.none() | HEADERS, utc=st.floats(0.0, 4e9))
@example(value="Mon, 01 Jan 0001 00:00:00 +2359", date=None, utc=0.0)
@example(value="Fri, 31 Dec 9999 23:59:59 -2359", date=None, utc=0.0)
def test_a_wait_is_none_or_from_zero_to_a_day(value: str, date: str | None, utc: float) -> None:
    wait = parse_retry_after(value, date, utc)
    assert wait is None or 0.0 <= wait <= 86_400.0
