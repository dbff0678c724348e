"""What is known of a partition's log: where it ends, how far it was read, and which records were removed unread.

Theory of operation. The brokers report the log's end from time to time, so it may lie behind what was read since.
Missing offsets are normal, because compaction and transactions leave gaps. Only those *below the log's beginning* may
have been unread records, and count as such, unless the offset map says that they were settled.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumer.engine.model import Chunk
from consumer.engine.records.offset_map import OffsetMap


@dataclass(eq=False, slots=True)
class LogFacts:
    """The log of one assignment, as last reported."""

    end: int | None = None
    reached: int = -1
    """The offset up to which the client has read, markers included."""
    reached_before: int = -1
    """The same in the report before: the client has handed over everything up to there."""
    removed_to: int = 0
    """The offset below which removed records have been reported."""
    unreadable_at: int | None = None
    """The offset from which the partition cannot be read, as the broker sends damaged data; None: it can be."""
    _emptied: tuple[int, int] | None = None
    """Our position and the log's beginning when the log was last seen to be empty, with unread records removed."""

    def reported(self, end: int | None, reached: int, unreadable_at: int | None) -> None:
        """Take a report: the log's end (None: not reported), up to where the client has read, and from where on it
        cannot be read."""
        self.unreadable_at = unreadable_at
        if end is not None:
            self.end, self.reached_before, self.reached = end, self.reached, reached

    def note_empty(self, expected: int | None, beginning: int) -> bool:
        """Note whether the log is empty with unread records removed: it begins at `beginning` and we expect an earlier
        offset. Return True if it was seen so before.

        Seen twice, because records that were fetched earlier may still be on their way to us.
        """
        before, self._emptied = self._emptied, None
        if expected is None or beginning <= expected or self.end != beginning:
            return False
        self._emptied = (expected, beginning)
        return before == self._emptied

    def cut(self) -> None:
        """Forget what was known of the log's end: it was cut, or is another one."""
        self.end, self.reached, self.reached_before, self.removed_to = None, -1, -1, 0


def removed_unread(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
    """Count the offsets that are missing below the log's beginning, from `expected` (None: the chunk's first) on.

    `known`: what was settled before this assignment.
    """
    removed = 0
    for record in chunk.records:
        if expected is not None:
            if expected >= chunk.log_start:
                break
            removed += count_unsettled(expected, min(record.offset, chunk.log_start), known)
        expected = record.offset + 1
    return removed


def count_unsettled(begin: int, end: int, known: OffsetMap | None) -> int:
    """Return how many offsets from `begin` to before `end` `known` does not say to be settled."""
    return max(0, end - begin) - (0 if known is None else known.count(begin, end))
