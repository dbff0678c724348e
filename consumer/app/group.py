"""What Kafka says of the whole group: who has which partitions, and the lag of each. For /group, which the page reads.

Theory of operation. A member knows its own partitions only. The brokers are asked when a page asks, by clients that are
made for the question and end with it: a process without an open page has none. One question is asked at a time, and its
answer is kept for some seconds, so any number of open pages costs one question.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from consumer.adapters.kafka.groups import SharedPartition, read_group
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import TopicPartition
from consumer.errors import PinstreamError
from consumer.settings import Settings

# Seconds for which an answer is kept, and for a question at most.
_KEPT, _TIMEOUT = 15.0, 10.0


class GroupReader:
    """Answers /group. `figures`: those of this process, or of its workers."""

    def __init__(self, settings: Settings, figures: Callable[[], Statistics]) -> None:
        self._kafka, self._figures = settings.kafka, figures
        self._asked: asyncio.Task[dict[str, Any]] | None = None
        self._until = 0.0

    async def document(self) -> dict[str, Any]:
        """Return the latest answer as JSON, or ask: state, members (no name: partitions without a member), problem."""
        now = asyncio.get_running_loop().time
        if self._asked is None or (self._asked.done() and now() >= self._until):
            self._asked = asyncio.create_task(self._ask())
            self._asked.add_done_callback(lambda _: setattr(self, "_until", now() + _KEPT))
        return await asyncio.shield(self._asked)

    async def _ask(self) -> dict[str, Any]:
        own = [TopicPartition(one.topic, one.partition) for one in self._figures().partitions]
        try:
            state, rows = await read_group(
                self._kafka.client_properties(), self._kafka.group_id, own, _TIMEOUT
            )
        except PinstreamError as error:
            return {"state": None, "members": [], "problem": str(error)}
        by_member: defaultdict[str | None, list[SharedPartition]] = defaultdict(list)
        for row in rows:
            by_member[row.member].append(row)
        members = [
            {
                "member": name,
                "lag": sum(row.lag for row in held),
                "partitions": [
                    {"topic": r.place.topic, "partition": r.place.partition, "lag": r.lag} for r in held
                ],
            }
            for name, held in sorted(by_member.items(), key=lambda one: one[0] or "")
        ]
        return {"state": state, "members": members, "problem": None}
