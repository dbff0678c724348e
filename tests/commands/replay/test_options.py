"""The options of a replay are checked before anything is opened."""

from __future__ import annotations

import pytest

from consumer.adapters.kafka.ranges import Bound
from consumer.commands.parsing import parse_rate
from consumer.commands.replay.command import replay
from consumer.commands.replay.options import ReplayOptions, check_values, parse_where
from consumer.conversion.targets import EVENT_NAMES
from consumer.errors import UsageError


def options(*given: str) -> ReplayOptions:
    """Return the options, as read from a command line with `given`; the later one of two bounds counts."""
    line = ["--topic", "orders", "--from", "beginning", "--to", "end", *given]
    return ReplayOptions(**replay.make_context("replay", line).params)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--from", "offset:x"), "--from 'offset:x' names no offset"),
        (("--to", "2999-01-01"), "--to 2999-01-01 is in the future"),
        (("--from", "offset:7", "--to", "offset:5"), "--from offset:7 is after --to offset:5"),
        (("--name", "x", "--dry-run"), "--name and --dry-run: a dry run keeps no progress"),
        (("--against", "old.toml"), "add --dry-run"),
        *((("--name", name), "--name") for name in ("", "a b", "a/b", "../x", "ä", "x" * 101)),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[str, ...], said: str) -> None:
    """An impossible bound names its option; a name must fit a group's name and a file's name."""
    with pytest.raises(UsageError, match=said):
        options(*given)


def test_bounds_and_names_are_read() -> None:
    """Bounds are offsets, times, beginning or end."""
    read = options("--from", "offset:5", "--to", "2026-01-01T00:00Z", "--name", "after-outage_2026.11")
    assert (read.start, read.stop) == (Bound("offset", 5), Bound("time", 1767225600000))
    assert read.name == "after-outage_2026.11"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100", 100.0), ("100/s", 100.0), ("0.5/s", 0.5), ("6000/m", 100.0), ("60/min", 1.0), ("7200/h", 2.0)],
)
def test_rates(text: str, rate: float) -> None:
    """A rate is a number of events a second, a minute or an hour."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "0/s", "-5", "5/d", "fast", "1e3", "nan", "inf"])
def test_no_rate(text: str) -> None:
    """Text that is no rate, and a rate of zero, are refused with examples."""
    with pytest.raises(UsageError, match="100/s"):
        parse_rate(text)


NEAREST = r"of this name; the nearest is 'checkout' \(it is"


@pytest.mark.parametrize(
    ("where", "known", "said"),
    [
        ("event_name=chekout", EVENT_NAMES, NEAREST),
        ("event_name=purchase", EVENT_NAMES, NEAREST),
        ("event_name=order_completed", frozenset({"checkout"}), "not the record's event type"),
        ("ad_account=8", EVENT_NAMES, "ad_account=8: not one of PINTEREST_AD_ACCOUNT_ID"),
    ],
)
def test_what_can_never_come_is_refused(where: str, known: frozenset[str], said: str) -> None:
    """By a typo or as the record's event type: nothing would be replayed."""
    check_values(parse_where(["event_name=checkout", "ad_account=7"]), frozenset({"checkout"}), ("7",))
    with pytest.raises(UsageError, match=said):
        check_values(parse_where([where]), known, ("7",))


def test_the_fingerprint_is_of_what_is_replayed() -> None:
    """Not of the order of options, the rate, the limit or the output."""
    one = options("--topic", "b", "--where", "event_name=checkout", "--where", "channel=web")
    same = options(
        "--where", "channel=web", "--topic", "b", "--where", "event_name=checkout", "--topic", "b",
        "--rate", "5", "--limit", "9", "--json",
    )  # fmt: skip
    assert one.fingerprint() == same.fingerprint()
    others = [
        options(), options("--topic", "b"), options("--from", "offset:1"), options("--to", "offset:7"),
        options("--partition", "1"), options("--ignore-dedup"), options("--where", "channel!=web"),
        options("--max-age", "0"),
    ]  # fmt: skip
    assert len({each.fingerprint() for each in (one, *others)}) == len(others) + 1
