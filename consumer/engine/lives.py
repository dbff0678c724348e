"""Lives of topics: one that was deleted and made anew under its name has another id, and offsets of its own.

An offset means something within one life only. Where the id changes while partitions are held, their assignments end
like lost ones: nothing of them settles or commits any more, and reading begins anew, under new epochs. What was read of
the new life meanwhile, from its middle, is read again then, and found to be delivered. If the id changed while we did
not hold the topic, that is seen at the next assignment: its committed offset is of another id (`Assignment.void`), or
its id is not the one last heard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from consumer.engine import offset_map
from consumer.engine.assignment import AssignmentState
from consumer.engine.context import Context
from consumer.engine.interface import Assignment, NewLife, ReadAnew
from consumer.engine.ledger import Ledger


class Lives:
    """Which life of its topic each assignment is of."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        self._ids: dict[str, str] = {}
        """The id of each topic that was ever ours, as last heard."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These begin. If one is of another life than what was read or committed before, that is reported."""
        anew = Counter(
            one.topic
            for one in assignments
            if one.void is not None or offset_map.are_different_lives(self._ids.get(one.topic), one.topic_id)
        )
        self._ids.update({one.topic: one.topic_id for one in assignments if one.topic_id is not None})
        for topic, partitions in anew.items():
            self._tell(topic, partitions, 0)

    def told(self, ids: Mapping[str, str]) -> bool:
        """The brokers told the ids of topics: assignments of an earlier life end here. Whether any did."""
        ended: dict[str, list[AssignmentState]] = {}
        for state in self._ledger:
            told = ids.get(state.tp.topic)
            if offset_map.are_different_lives(state.topic_id, told):
                ended.setdefault(state.tp.topic, []).append(state)
            elif state.topic_id is None:
                state.topic_id = told
        anew: list[NewLife] = []
        for topic, states in ended.items():
            self._ids[topic] = ids[topic]
            self._tell(topic, len(states), sum(state.open for state in states))
            for state in states:
                self._ledger.drop(state.tp)
                if not state.draining:
                    anew.append(NewLife(*state.tp, state.epoch, ids[topic]))
        if anew:
            self._context.emit(ReadAnew(anew))
        return bool(ended)

    def _tell(self, topic: str, partitions: int, released: int) -> None:
        self._context.counters.bump(self._context.counters.topics_made_anew, topic)
        self._context.report(
            "error", "topic_made_anew", topic=topic, partitions=partitions, released=released
        )
