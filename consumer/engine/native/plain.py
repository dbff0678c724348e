"""Facts about many records at once, in plain Python."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter, lt

from consumer.engine.model import CURRENCY_BITS

# A record as it was fetched (`consumer.engine.model.Record`): offset, timestamp, key, value, headers.
_Record = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]
# Bytes of a header beside its name and value: tuples (64, and 8 for its place in another), text (64), bytes (48).
_HEADER = 184
# Bytes of a character in a name that is not ASCII, at most.
_WIDEST = 4


def sizes_of(records: Sequence[_Record]) -> array[int]:
    """Return the bytes that each of these fetched records holds in memory.

    The objects around key and value are left aside: some hundred bytes a record, which the budget of open events
    bounds. Headers are counted with theirs, for a record may have a hundred thousand of two bytes each.
    """
    return array(
        "q",
        [
            len(value or b"") + len(key or b"") + (size_of_headers(headers) if headers else 0)
            for _, _, key, value, headers in records
        ],
    )


def size_of_headers(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Return the bytes that a record's headers hold in memory, objects included; it may be more, but never less."""
    return _HEADER * len(headers) + sum(
        (len(name) if name.isascii() else _WIDEST * len(name)) + len(value or b"") for name, value in headers
    )


def offsets_of(records: Sequence[_Record]) -> array[int]:
    """Return the offset of each record."""
    return array("q", map(itemgetter(0), records))


def rising(offsets: array[int]) -> bool:
    """Return whether each offset is higher than the one before it."""
    return all(map(lt, offsets, offsets[1:]))


def sum_values(
    values: array[int], kinds: bytes | bytearray, first: int, end: int
) -> dict[int, tuple[int, int]]:
    """Add the packed values (`reading.packed_value`) of the rows from `first` to before `end`.

    Gives how many there are, and their sum, by the number of their kind with the currency's bits below it.
    """
    found: dict[int, tuple[int, int]] = {}
    for value, kind in zip(values[first:end], kinds[first:end], strict=True):
        if value:
            key = kind << CURRENCY_BITS | value & (1 << CURRENCY_BITS) - 1
            count, total = found.get(key, (0, 0))
            found[key] = count + 1, total + (value >> CURRENCY_BITS)
    return found


def count_ages(times: array[int], now: float, bounds: array[float], counts: array[int]) -> tuple[int, int]:
    """Count how old each of these times is at `now`: in the first bucket whose bound it does not exceed.

    The last bound is infinite. Gives how many of the times lie before `now`, and their sum.
    """
    for time in times:
        counts[bisect_left(bounds, now - time)] += 1
    past = [time for time in times if time < now]
    return len(past), sum(past)
