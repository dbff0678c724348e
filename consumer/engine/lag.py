"""How far behind a partition is: where its log ends, and the lag, in records and in seconds. Nowhere else is it told.

Theory of operation. Where the log ends is heard of from time to time (`EndOffsets`), so what was heard is old. The
end that is told is therefore at least what has been read, passed over, or fetched: ``committed <= position <= end``
always. Lag counts from the committed position, as Kafka's own tools count it, and is no less than what is open. Both
lags are zero together: in seconds it is 0 exactly where there is none in records.
"""

from __future__ import annotations

from consumer.engine.assignment import AssignmentState
from consumer.engine.spans import Span


def end_of(state: AssignmentState, held_to: int = 0) -> int | None:
    """The offset after the last record of the log, as far as is known; None while nothing was heard of it.

    `held_to`: the offset after the last record that was fetched and is not read yet; 0: none is.
    """
    return None if state.end is None else max(state.end, state.reached, held_to, state.position() or 0)


def lag_of(state: AssignmentState, held_to: int = 0) -> int | None:
    """Offsets from the committed position to the end; None while one of them is not known.

    None are left when all is read, settled and committed: the rest are markers and aborted transactions. And none are
    in a log that ends where logs begin.
    """
    # Where nothing is committed yet, from where reading began.
    begin = state.committed.next_offset if state.committed is not None else state.start
    end, position = end_of(state, held_to), state.position()
    if begin is not None and not state.open and held_to <= state.removed_to:
        begin = max(begin, state.removed_to)  # what was removed will not come
    if end == 0:
        return 0
    if end is None or begin is None or position is None:
        return None
    if not state.open and position == begin and held_to <= position and max(position, state.reached) >= end:
        return 0
    return end - begin


def seconds_of(state: AssignmentState, unix_now: float, held_to: int = 0) -> float | None:
    """Age of the first record that is not settled, by its Kafka timestamp; 0 where `lag_of` is; None: not known."""
    lowest, lag = state.lowest_open(), lag_of(state, held_to)
    if lowest is not None:
        return age(timestamp_of(*lowest), unix_now)
    if not lag:
        return None if lag is None else 0.0
    # What is left is not read yet, or not committed yet. Nobody knows its timestamps: that of the last record read
    # stands for them.
    return age(state.last_timestamp if state.last_timestamp >= 0 else None, unix_now)


def timestamp_of(span: Span, index: int) -> int | None:
    """Kafka's timestamp of an open record, milliseconds; None: it has none."""
    timestamp = span.record(index).timestamp
    return timestamp if timestamp >= 0 else None


def age(timestamp: int | None, unix_now: float) -> float | None:
    """Seconds since a timestamp; 0 if it lies ahead."""
    return None if timestamp is None else max(0.0, unix_now - timestamp / 1000)
