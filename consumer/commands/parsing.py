"""Options that several commands share, and bounds and rates, parsed before anything is opened.

Times are read by `consumer.commands.base.parse_time`. Which partitions ``--partition`` names depends on the topics
that there are: see `consumer.adapters.kafka.ranges.named_partitions`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from consumer.commands.base import OptionDecorator, flag_option, parse_time, repeatable
from consumer.errors import UsageError

if TYPE_CHECKING:  # it takes a while to import, and help does not need it
    from consumer.adapters.kafka.ranges import Bound

# The result is the last line of stdout, not all of it: so a script need not know the other lines.
JSON_OPTION: Final = flag_option("--json", "as_json", help="The last line on stdout is the result as JSON.")
RECORD_OPTION: Final = click.option(
    "--record",
    metavar="NAME",
    help="Record type of all lines of an NDJSON file, where the mapping has sections: the full name of its schema. "
    'Default: the one that a line names ({"com.shop.Order": {…}}), or that it fits best.',
)
AGAINST_OPTION: Final = click.option(
    "--against",
    metavar="OLD",
    help="Compare with the mapping file OLD over the same records: outcomes, fields, values, event ids. Exit code 1 if "
    "anything changes.",
)
# No help text here: the default differs from command to command.
topics_option: Final = functools.partial(repeatable, "--topic", "topics", metavar="T")
PARTITION_OPTION: Final = repeatable(
    "--partition",
    "partitions",
    metavar="P | TOPIC:P",
    help="Only this partition; may be repeated. Default: all.",
)
_SHARE: Final = click.FloatRange(0, 0.9)


def parsed_option(
    option: str, parse: Callable[[str, str], object], *names: str, **settings: Any
) -> OptionDecorator:
    """Return an option whose text `parse` reads. It gets the option's name, too, which its errors name."""
    return click.option(option, *names, type=lambda text: parse(text, option), **settings)


def record_options(pace: str) -> OptionDecorator:
    """Return a decorator that adds the options of `demo` and `produce`: number of records, rate, and share of bad ones.

    `pace`: the default of ``--rate`` in words.
    """
    options = (
        click.option(
            "--events",
            type=click.IntRange(min=1),
            help="Stop after N events. Default: at the end of the file, or at Ctrl-C.",
        ),
        click.option(
            "--duplicates",
            type=_SHARE,
            default=0.0,
            help="Share of events that are produced twice, such as 0.05.",
        ),
        click.option("--invalid", type=_SHARE, default=0.0, help="Share of invalid records, such as 0.01."),
        click.option(
            "--seed",
            type=int,
            default=1,
            show_default=True,
            help="The same seed gives the same random choices.",
        ),
        click.option("--rate", type=click.FloatRange(min=0.01), help=f"Events per second. Default: {pace}."),
    )
    # In reverse order: each option is put before those that the command has.
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


# Without exponents, signs, nan and inf, which `float` would take.
_RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:/(s|m|min|h))?")
_SECONDS: Final = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bound(text: str, option: str) -> Bound:
    """Parse beginning, end, offset:N or a time. Raises `UsageError`, which names `option`."""
    from consumer.adapters.kafka.ranges import Bound  # help does not need it

    text = text.strip()
    if text == "beginning":
        return Bound("beginning")
    if text == "end":
        return Bound("end")
    if text.startswith("offset:"):
        digits = text.removeprefix("offset:")
        # Other tools count negative offsets from the end, so this mistake has its own message.
        if digits.startswith("-") and digits[1:].isdecimal():
            raise UsageError(
                f"{option} {text}: an offset is 0 or more, counted from the beginning of the partition"
            )
        # The largest offset, 2**63 - 1, has 19 digits. Digits of other scripts are decimal for Python.
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
            raise UsageError(f"{option} {text!r} names no offset: write it as offset:1000")
        return Bound("offset", int(digits))
    forms = "beginning, end, offset:N, or an ISO 8601 time, for example 2026-11-24T12:00:00Z"
    milliseconds = parse_time(text, option, forms)
    # Kafka would use the present end. A user who names a later time expects records that do not exist yet.
    if milliseconds > time.time() * 1000:
        raise UsageError(f"{option} {text} is in the future; the end is `end`")
    return Bound("time", milliseconds)


def parse_since(text: str, option: str) -> int:
    """Parse a duration before now (``2d``), or a time, as milliseconds since 1970. Raises `UsageError`."""
    from consumer.settings.values import parse_duration  # help does not need it

    with contextlib.suppress(ValueError):
        return int((time.time() - parse_duration(text)) * 1000)
    return parse_time(text, option, "a duration before now, such as 2d, or an ISO 8601 time")


def check_order(start: Bound, stop: Bound) -> None:
    """Raise `UsageError` if nothing can lie between the two."""
    # Checked only as far as the text shows: only the brokers know where a time or the end is in a partition.
    if start.kind == "end":
        raise UsageError("--from end leaves nothing to read: the range ends where the topic ends now")
    if stop.kind == "beginning":
        raise UsageError("--to beginning leaves nothing to read: give a later --to")
    if start.kind == stop.kind and start.value > stop.value:
        raise UsageError(f"--from {start} is after --to {stop}: swap them")


def parse_rate(text: str) -> float:
    """Parse ``100``, ``100/s`` or ``6000/m`` as events per second. Raises `UsageError`."""
    found = _RATE.fullmatch(text.strip())
    rate = float(found[1]) / _SECONDS[found[2]] if found else 0.0
    if rate <= 0:
        raise UsageError(f"--rate {text!r} is no rate: write it as 100/s, 6000/m or 50000/h")
    return rate


RATE_OPTION: Final = click.option(
    "--rate",
    type=parse_rate,
    metavar="N/s",
    help="Maximum rate of events sent to the API, such as 100/s or 6000/m. Default: no limit.",
)
