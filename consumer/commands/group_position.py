"""Where a consumer group stands in its partitions, what is wrong with that, and what moving it means.

`pinstream offsets` shows and moves it, `pinstream check` warns of it. A move to another offset has two meanings. *Read
again*: the settled records from the new offset on: those below the old offset, and those above it that are settled by
the offset map of the old commit, because a move drops that map. *Skipped*: the records between the old and the new
offset that are not settled. Both count offsets, and some may be no records (compaction, transaction markers).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from consumer.adapters.kafka.cluster import Extent
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.engine.model import Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.errors import first_of

# Partitions that one line names; it says how many more there are.
MAX_PARTITIONS_NAMED = 5


class GroupPosition(NamedTuple):
    """One partition. `position` is None if nothing is committed, `extent` if the topic or the partition is gone."""

    place: TopicPartition
    position: Position | None
    extent: Extent | None

    @property
    def committed(self) -> int | None:
        """Return the offset that the group has committed, if any."""
        return None if self.position is None else self.position.next_offset

    @property
    def next_read(self) -> int:
        """Return the offset at which the group reads on."""
        # Records below the beginning were deleted.
        begin = 0 if self.extent is None else self.extent.low
        return begin if self.committed is None else max(self.committed, begin)

    @property
    def lag(self) -> int | None:
        """Return the number of offsets from `next_read` to the end; None if the partition is gone."""
        return None if self.extent is None else max(0, self.extent.end - self.next_read)

    def settled(self, start: int = 0, stop: int = 1 << 63) -> int:
        """Count the offsets in [start, stop) above the committed one that are settled by the map."""
        if self.position is None:
            return 0
        # A named replay commits its plan, followed by the map.
        planned = read_entry(self.position)
        found = offset_map.read_map(self.position if planned is None else planned.range.first).settled
        return 0 if found is None else found.count(start, stop)

    def read_again(self, after: int) -> int:
        """Count the settled offsets that are read again if the group moves to `after`."""
        if self.committed is None or self.extent is None:
            return 0
        # Offsets beyond the end (the log was cut) are no records that could be read again.
        below = min(self.next_read, self.extent.end) - after
        return max(0, below) + self.settled(after)

    def skipped(self, after: int) -> int:
        """Count the offsets that are not settled and are never read if the group moves to `after`."""
        return max(0, after - self.next_read - self.settled(self.next_read, after))


def problems(rows: Iterable[GroupPosition]) -> Iterator[str]:
    """Yield what is wrong with committed offsets, and what to do: one line for all partitions with the same problem."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.extent is None:
            text = "no longer exists; the offsets stay until the brokers delete them"
        elif row.committed is None:
            text = "nothing committed; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` starts"
        # The log begins after the committed offset: retention was shorter than the outage.
        elif row.committed < row.extent.low:
            text = (
                "records were deleted unread; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` continues; raise the "
                "topic's retention.ms"
            )
        elif row.committed > row.extent.end:
            text = (
                "the committed offset is beyond the end: the topic was created again, its log was truncated, or this "
                "is another cluster; correct it with `pinstream offsets set`"
            )
        else:
            continue
        places[text].append(str(row.place))
    for text, names in places.items():
        yield f"{first_of(names, MAX_PARTITIONS_NAMED)}: {text}"
