"""The values that --from and --to accept, and the messages about others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.ranges import Bound
from consumer.commands.parsing import check_order, parse_bound
from consumer.errors import UsageError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="module")
def now() -> Iterator[None]:
    """It is always the same time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW)
        yield


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("beginning", Bound("beginning")),
        ("end", Bound("end")),
        (" end ", Bound("end")),
        ("offset:0", Bound("offset", 0)),
        ("offset:9223372036854775807", Bound("offset", 9223372036854775807)),
        ("1970-01-01", Bound("time", 0)),
        ("1970-01-01T00:00:01Z", Bound("time", 1000)),
        ("1970-01-01T00:00:01", Bound("time", 1000)),
        ("1970-01-01T01:00:01+01:00", Bound("time", 1000)),
        ("1970-01-01T00:00:01.25Z", Bound("time", 1250)),
        ("1970-01-01T00:00:01,25Z", Bound("time", 1250)),
        ("1969-12-31T23:59:59Z", Bound("time", -1000)),
        ("2026-11-24T12:00:00Z", Bound("time", int(NOW * 1000))),
    ],
)
def test_each_form_is_read(text: str, bound: Bound) -> None:
    """A time without a zone is UTC, a day is its beginning, and now is not the future."""
    assert parse_bound(text, "--from") == bound


FORMS = ("beginning", "end", "offset:N", "ISO 8601", "2026-11-24T12:00:00Z")
NUMBERS = ("", "x", "1.5", "1_000", "+5", " 5", "٣", "1e3", "9" * 20, "0x10", "--5")
AHEAD = ("2026-11-24T12:00:00.001Z", "2026-11-24T13:00:00+00:30", "9999-12-31")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((one, FORMS) for one in ("", "yesterday", "End", "BEGINNING", "1700000000", "12:00", "offset", "latest")),
        *((f"offset:{one}", ("offset:1000",)) for one in NUMBERS),
        ("offset:-2", ("0 or more",)),
        *((one, ("is in the future; the end is `end`",)) for one in AHEAD),
    ],
)  # fmt: skip
def test_text_that_is_no_bound_is_refused(text: str, words: tuple[str, ...]) -> None:
    """One line names all forms, or an example; -1 and -2, the ends in some tools, are refused, too."""
    with pytest.raises(UsageError) as raised:
        parse_bound(text, "--to")
    assert all(word in str(raised.value) for word in ("--to", *words))
    assert "\n" not in str(raised.value)


@given(
    moment=st.datetimes(datetime(1, 1, 2), datetime(2026, 11, 23)),
    offset=st.integers(-14 * 60, 14 * 60),
    timestamp=st.integers(-3, 3),
)
def test_a_time_between_two_timestamps_separates_them(moment: datetime, offset: int, timestamp: int) -> None:
    """With any zone and microseconds, a timestamp is at or after the bound if it is at or after the time."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    bound = parse_bound(aware.isoformat(), "--from")
    near = bound.value + timestamp
    exact = (aware - EPOCH) // timedelta(microseconds=1)  # as a float it would be rounded before 1684
    assert (near >= bound.value) == (near * 1000 >= exact)


@given(
    st.one_of(
        st.sampled_from([Bound("beginning"), Bound("end")]),
        st.builds(Bound, st.just("offset"), st.integers(0, (1 << 63) - 1)),
        st.builds(Bound, st.just("time"), st.integers(-62135596800000, int(NOW * 1000))),
    )
)
def test_a_shown_bound_can_be_read_again(bound: Bound) -> None:
    """A bound that an error shows can be read again."""
    assert parse_bound(str(bound), "--from") == bound


@pytest.mark.parametrize(
    ("start", "stop", "fits"),
    [
        (Bound("end"), Bound("end"), False),
        (Bound("end"), Bound("beginning"), False),
        (Bound("end"), Bound("offset", 5), False),
        (Bound("beginning"), Bound("beginning"), False),
        (Bound("offset", 5), Bound("beginning"), False),
        (Bound("offset", 5), Bound("offset", 4), False),
        (Bound("time", 5), Bound("time", 4), False),
        (Bound("beginning"), Bound("end"), True),
        (Bound("offset", 5), Bound("offset", 5), True),
        (Bound("time", 5), Bound("time", 5), True),
        (Bound("time", 5), Bound("offset", 4), True),
        (Bound("offset", 5), Bound("time", 4), True),
    ],
)
def test_only_bounds_that_may_have_something_between_pass(start: Bound, stop: Bound, fits: bool) -> None:
    """An empty range passes, as do an offset and a time, which only brokers can compare."""
    with contextlib.nullcontext() if fits else pytest.raises(UsageError, match=r"--from|--to"):
        check_order(start, stop)
