"""What ``--from`` and ``--to`` say: `beginning`, `end`, `offset:N` or a time. Asks nobody; see `ranges` for that.

Kafka's timestamps are whole milliseconds. A time between two of them stands for the later one, on both sides: no
timestamp lies between, so ``>= from`` and ``< to`` mean the same as before.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from consumer.errors import UsageError

Kind = Literal["beginning", "end", "offset", "time"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_FORMS: Final = "use beginning, end, offset:N, or an ISO 8601 time as 2026-11-24T12:00:00Z"


class Bound(NamedTuple):
    """Where a replay begins or ends. `value`: the offset, or milliseconds since 1970; nothing for the others."""

    kind: Kind
    value: int = 0

    def __str__(self) -> str:
        """As one would write it on the command line."""
        if self.kind == "offset":
            return f"offset:{self.value}"
        if self.kind != "time":
            return self.kind
        moment = _EPOCH + self.value * _MILLISECOND
        return moment.isoformat(timespec="milliseconds" if self.value % 1000 else "seconds").replace(
            "+00:00", "Z"
        )


def parse_bound(text: str, option: str, now: float) -> Bound:
    """The bound that `text` names; a naive time is UTC. Raises `UsageError`, naming `option`."""
    text = text.strip()
    if text == "beginning":
        return Bound("beginning")
    if text == "end":
        return Bound("end")
    if text.startswith("offset:"):
        return Bound("offset", _offset(text.removeprefix("offset:"), text, option))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no bound: {_FORMS}") from None
    return Bound("time", _milliseconds(moment, text, option, now))


def check_order(start: Bound, stop: Bound) -> None:
    """Raise `UsageError` if nothing can lie between, as far as the bounds alone tell."""
    if start.kind == "end":
        raise UsageError("--from end leaves nothing to read: the range ends where the topic ends now")
    if stop.kind == "beginning":
        raise UsageError("--to beginning leaves nothing to read: give a later --to")
    if start.kind == stop.kind and start.value > stop.value:
        raise UsageError(f"--from {start} is after --to {stop}: swap them")


def _offset(digits: str, text: str, option: str) -> int:
    if digits.startswith("-") and digits[1:].isdecimal():
        raise UsageError(
            f"{option} {text}: an offset is 0 or more, counted from the beginning of the partition"
        )
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise UsageError(f"{option} {text!r} names no offset: write it as offset:1000")
    return int(digits)


def _milliseconds(moment: datetime, text: str, option: str, now: float) -> int:
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    milliseconds = -(-since // _MILLISECOND)
    if milliseconds > now * 1000:
        raise UsageError(f"{option} {text} is in the future; the end is `end`")
    return milliseconds
