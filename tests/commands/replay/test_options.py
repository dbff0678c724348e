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


def test_bounds_are_read() -> None:
    """Bounds are offsets, times, beginning or end; an impossible one is a usage error that names its option. ``--name``
    with ``--dry-run`` is refused, since a dry run keeps no progress."""
    read = options("--from", "offset:5", "--to", "2026-01-01T00:00Z")
    assert (read.start, read.stop) == (Bound("offset", 5), Bound("time", 1767225600000))
    with pytest.raises(UsageError, match="--from 'offset:x' names no offset"):
        options("--from", "offset:x")
    with pytest.raises(UsageError, match="--to 2999-01-01 is in the future"):
        options("--to", "2999-01-01")
    with pytest.raises(UsageError, match="--from offset:7 is after --to offset:5"):
        options("--from", "offset:7", "--to", "offset:5")
    with pytest.raises(UsageError, match="--dry-run"):
        options("--name", "x", "--dry-run")


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


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "ä", "x" * 101])
def test_names_can_be_part_of_a_group_and_of_a_file(name: str) -> None:
    """A name must fit a group's name and a file's name, and others are refused."""
    with pytest.raises(UsageError, match="--name"):
        options("--name", name)
    assert options("--name", "after-outage_2026.11").name == "after-outage_2026.11"


def test_what_can_never_come_is_refused() -> None:
    """A value that no record can have, by a typo or as the record's event type, is refused with the nearest
    name: nothing would be replayed."""
    check_values(parse_where(["event_name=checkout", "ad_account=7"]), frozenset({"checkout"}), ("7",))
    with pytest.raises(UsageError, match=r"of this name; the nearest is 'checkout' \(it is"):
        check_values(parse_where(["event_name=chekout"]), EVENT_NAMES, ())
    with pytest.raises(UsageError, match=r"of this name; the nearest is 'checkout' \(it is"):
        check_values(parse_where(["event_name=purchase"]), EVENT_NAMES, ())
    with pytest.raises(UsageError, match="not the record's event type"):
        check_values(parse_where(["event_name=order_completed"]), frozenset({"checkout"}), ())
    with pytest.raises(UsageError, match="ad_account=8: not one of PINTEREST_AD_ACCOUNT_ID"):
        check_values(parse_where(["ad_account=8"]), EVENT_NAMES, ("7",))


def test_the_fingerprint_is_of_what_is_replayed() -> None:
    """The fingerprint depends on which records are replayed, and not on the order of options, the rate, the
    limit or the output."""
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
