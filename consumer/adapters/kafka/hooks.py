"""What a group member tells the event loop, from its own thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from consumer.engine.messages import Assignment
from consumer.engine.model import Position, TopicPartition


class Hooks(Protocol):
    """Called from the thread. The first three block until the event loop has answered, within their limit.

    They raise `TimeoutError`, and whatever the listener raises.
    """

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These are ours."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """These go; what to commit of them."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These are gone."""

    def trouble(self, code: str, text: str) -> None:
        """Something that mends itself. Returns at once."""

    def topic_ids(self, ids: Mapping[str, str]) -> None:
        """Which ids topics have now. Returns at once."""
