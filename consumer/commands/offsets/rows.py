"""A partition under `pinstream offsets`: where the group stands in it, and what moving the group there means.

*Read again* counts the settled records from the new offset on: those below the old offset, and those above it that
the offset map of the old commit says are settled, since the map goes with the old offset. *Skipped* counts the
records between the old and the new offset that are not settled. Both count offsets, of which some may be no records
(compaction, transaction markers): hence "up to".
"""

from __future__ import annotations

from typing import NamedTuple

from consumer.adapters.kafka.offsets import Extent
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.model import Position, TopicPartition

_NO_END = 1 << 63


class PartitionRow(NamedTuple):
    """One partition. `extent` is None where the topic or the partition is gone."""

    place: TopicPartition
    position: Position | None
    extent: Extent | None

    @property
    def committed(self) -> int | None:
        """The group's offset, if it has one."""
        return None if self.position is None else self.position.next_offset

    @property
    def next_read(self) -> int:
        """The first offset that is not behind the group: what was deleted below the beginning is."""
        begin = 0 if self.extent is None else self.extent.low
        return begin if self.committed is None else max(self.committed, begin)

    @property
    def lag(self) -> int | None:
        """Offsets from there to the end."""
        return None if self.extent is None else max(0, self.extent.end - self.next_read)

    @property
    def unread(self) -> int:
        """What the next run reads of it: the lag, less what the map says is settled."""
        if self.extent is None:
            return 0
        return max(0, self.extent.end - self.next_read - self.settled(self.next_read, self.extent.end))

    def settled(self, start: int = 0, stop: int = _NO_END) -> int:
        """How many offsets from `start` to before `stop` the map says are settled above the committed one."""
        if self.position is None:
            return 0
        text = self.position.metadata
        planned = read_entry(text)  # a named replay's commit: its plan, then the map
        found = offset_map.read(
            text if planned is None else planned[1], self.position.next_offset, where=map_place(self.place)
        )
        bounds = [] if found is None else found.bounds
        runs = zip(bounds[::2], bounds[1::2], strict=True)
        return sum(max(0, min(end, stop) - max(begin, start)) for begin, end in runs)


class Move(NamedTuple):
    """A partition's way from what is committed to `after`. Only of partitions that are there."""

    row: PartitionRow
    extent: Extent
    after: int

    @property
    def change(self) -> int | None:
        """By how many offsets it moves."""
        return None if self.row.committed is None else self.after - self.row.committed

    @property
    def read_again(self) -> int:
        """Settled before, and to be read."""
        if self.row.committed is None:
            return 0
        below = min(self.row.next_read, self.extent.end) - self.after
        return max(0, below) + self.row.settled(self.after)

    @property
    def skipped(self) -> int:
        """Not settled, and never to be read."""
        return max(0, self.after - self.row.next_read - self.row.settled(self.row.next_read, self.after))
