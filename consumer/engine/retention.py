"""What was removed from a log before it was read: by retention, or by hand (delete-records).

Theory of operation. Offsets that are missing are normal: compaction and transactions leave gaps. What is missing *below
the log's beginning* is gone for another reason, and may have been records, unread. So of each gap the part
counts that lies below the beginning, as last heard. Nobody can say any more how much of it was records: what is counted
is the most that it can have been. What an offset map names as settled was delivered before, and does not count.
"""

from __future__ import annotations

from collections.abc import Iterator

from consumer.engine.model import Chunk
from consumer.engine.offset_map import OffsetMap


def removed_unread(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
    """Offsets below the log's beginning that were passed over: from `expected` (None: from the chunk's first) on.

    `known`: what was settled before this assignment.
    """
    return sum(count_unsettled(begin, end, known) for begin, end in _gaps_below_beginning(chunk, expected))


def count_unsettled(begin: int, end: int, known: OffsetMap | None) -> int:
    """Of the offsets from `begin` to `end` those that are not known to be settled."""
    if known is None:
        return max(0, end - begin)
    bounds = known.from_offset(begin)
    settled = sum(
        max(0, min(last, end) - min(first, end))
        for first, last in zip(bounds[::2], bounds[1::2], strict=True)
    )
    return max(0, end - begin) - settled


def _gaps_below_beginning(chunk: Chunk, expected: int | None) -> Iterator[tuple[int, int]]:
    for record in chunk.records:
        if expected is not None and expected >= chunk.log_start:
            return
        if expected is not None and record.offset > expected:
            yield expected, min(record.offset, chunk.log_start)
        expected = record.offset + 1
